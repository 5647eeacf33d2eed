from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest

from stream_app.cli.output import Column, print_json, print_json_line, print_line, print_table, text, when

COLUMNS: list[Column | str] = ["topic", Column("missing", "right"), "since"]
ROWS: list[Sequence[object]] = [("orders", 12, None), ("[red]x[/red]", None, "now")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unknown"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        ("", ""),
        ("é ü", "é ü"),
        ("a\nb\t\x1b[31mc", "a\\nb\\t\\x1b[31mc"),
        (1.5, "1.5"),
    ],
)
def test_values(value: object, shown: str) -> None:
    assert text(value) == shown


def test_times_are_rfc_3339_in_utc_with_milliseconds() -> None:
    assert when(1_763_892_000_007) == "2025-11-23T10:00:00.007Z"
    assert when(None) == "unknown"


def test_into_a_pipe_columns_are_aligned_and_plain() -> None:
    out = io.StringIO()
    print_table(COLUMNS, ROWS, style_of=lambda row: "red", out=out)
    assert out.getvalue() == (
        "topic         missing  since\n"
        "orders             12  unknown\n"
        "[red]x[/red]  unknown  now\n"
    )  # fmt: skip


def test_on_a_terminal_a_table_has_colour_and_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    print_table(COLUMNS, ROWS, style_of=lambda row: "red", out=out)
    assert "\x1b[31m" in out.getvalue()
    assert "[red]x[/red]" in out.getvalue()
    assert "unknown" in out.getvalue()


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_an_empty_table_says_so(out: io.StringIO) -> None:
    print_table(COLUMNS, [], empty="no gaps", out=out)
    assert out.getvalue() == "no gaps\n"


def test_lines() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    for out in (pipe, terminal):
        print_line("all [b]well[/b]", "bold", out)
        print_line("plain", out=out)
    assert pipe.getvalue() == "all [b]well[/b]\nplain\n"
    assert "[b]well[/b]" in terminal.getvalue()


def test_json() -> None:
    value = {"gaps": [{"topic": "é", "count": 1, "at": None}]}
    out = io.StringIO()
    print_json(value, out)
    assert json.loads(out.getvalue()) == value
    assert out.getvalue().startswith('{\n  "gaps"')
    out = io.StringIO()
    print_json_line(value, out)
    assert out.getvalue() == '{"gaps":[{"topic":"é","count":1,"at":null}]}\n'
