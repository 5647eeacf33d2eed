"""What commands print: tables on a terminal, plain aligned columns into a pipe, JSON; never colour where nobody sees it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from stream_app.web.times import rfc3339

UNKNOWN = "unknown"
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    align: Literal["left", "right"] = "left"


def text(value: object) -> str:
    """A value for people: ``unknown`` for None, yes and no, and no character that a terminal would obey."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(value))


def when(ms: int | None) -> str:
    """RFC 3339, UTC, milliseconds; ``unknown`` for None."""
    return text(rfc3339(ms))


def print_json(value: object, out: IO[str] | None = None) -> None:
    """One JSON document, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False), file=out or sys.stdout)


def print_json_line(value: object, out: IO[str] | None = None) -> None:
    """One JSON document on one line, written out at once."""
    print(json.dumps(value, separators=(",", ":"), ensure_ascii=False), file=out or sys.stdout, flush=True)


def print_line(line: str, style: str | None = None, out: IO[str] | None = None) -> None:
    """One line; ``style`` (rich's words, as ``bold red``) on a terminal only."""
    out = out or sys.stdout
    if style is None or not _is_terminal(out):
        print(line, file=out)
        return
    _console(out).print(_rich_text(line, style), soft_wrap=True)


def print_table(
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[object]],
    *,
    style_of: Callable[[Sequence[object]], str | None] | None = None,
    empty: str = "nothing",
    out: IO[str] | None = None,
) -> None:
    """Rows under their titles; ``empty`` where there are none. ``style_of`` a row colours it on a terminal."""
    out = out or sys.stdout
    heads = [Column(column) if isinstance(column, str) else column for column in columns]
    found = list(rows)
    if not found:
        print(empty, file=out)
    elif _is_terminal(out):
        _print_rich(heads, found, style_of, out)
    else:
        _print_plain(heads, found, out)


def _print_plain(heads: Sequence[Column], rows: Sequence[Sequence[object]], out: IO[str]) -> None:
    lines = [[head.title for head in heads], *([text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if head.align == "right" else cell.ljust(width) for head, cell, width in zip(heads, line, widths, strict=True)
        ]
        print(_GAP.join(cells).rstrip(), file=out)


def _print_rich(
    heads: Sequence[Column], rows: Sequence[Sequence[object]], style_of: Callable[[Sequence[object]], str | None] | None, out: IO[str]
) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head.title, justify=head.align, overflow="fold")
    for row in rows:
        style = style_of(row) if style_of is not None else None
        table.add_row(*(_rich_text(text(value)) for value in row), style=style)
    _console(out).print(table)


def _rich_text(line: str, style: str | None = None) -> Any:
    """Text that is not markup: a topic may be named [red]."""
    from rich.text import Text

    return Text(line, style or "")


def _console(out: IO[str]) -> Any:
    from rich.console import Console

    return Console(file=out, highlight=False)


def _is_terminal(out: IO[str]) -> bool:
    return out.isatty()
