from __future__ import annotations

import time

import msgspec
import pytest

from stream_app.core.model import StatusRecord
from stream_app.service.view import StatusView
from tests.cli.kit import Command, Served, cells
from tests.web.kit import NOW, make_row


def test_json_is_the_answer_itself(gapstream: Command, served: Served) -> None:
    assert gapstream("status", "--json", *served.args()).json() == served.worker.view.status(NOW)


def test_one_line_per_topic_and_sink_and_a_sum(gapstream: Command, served: Served) -> None:
    ran = gapstream("status", *served.args())
    lines = ran.out.splitlines()
    assert (ran.code, ran.err) == (0, "")
    assert cells(lines[0]) == [
        "TOPIC", "SINK", "STATE", "COMPLETE THROUGH", "MISSING", "IN PARTITIONS", "SINCE", "REPLAYABLE FOR", "LAG", "WHY",
    ]  # fmt: skip
    assert cells(lines[1])[:3] == ["orders", "billing", "gaps"]
    assert cells(lines[1])[3].startswith("2023-11-14T22:13:20.000Z (")
    assert cells(lines[1])[4:] == ["3", "1 of 1", "unknown", "unknown", "0"]
    assert lines[-1] == "18 records are missing, in 6 partitions of 6 of 6 sinks."
    assert "\x1b" not in ran.out


def test_what_is_unknown_says_so_and_why(gapstream: Command, served: Served) -> None:
    served.worker.now_ms = NOW + 20_000
    view = served.worker.view
    rows = [make_row("orders", 0, "billing"), make_row("orders", 0, "stray"), make_row("orders", 0, "log")]
    rows[1].configured = False
    view.apply(b"partition/orders/0", msgspec.json.encode(StatusRecord(topic="orders", partition=0, worker="w1", rows=rows)))
    lines = [cells(line) for line in gapstream("status", *served.args()).out.splitlines()]
    assert lines[1][:3] == ["orders", "billing", "unknown"]
    assert lines[1][4:] == ["0", "0 of 1", "-", "-", "0", "worker w1 is gone, last heard of at 2023-11-14T22:13:20.000Z"]
    assert lines[3][:2] == ["orders", "stray (in no file)"]
    assert lines[4] == ["orders", "warehouse", *["unknown"] * 3, "unknown of 1", *["unknown"] * 3, "never heard of"]
    assert gapstream("status", *served.args()).out.splitlines()[-1] == (
        "9 records are known to be missing, in 3 partitions of 3 of 6 sinks; 6 of 6 sinks are unknown."
    )


def test_what_sinks_in_no_file_lack_is_shown_and_not_counted(gapstream: Command, served: Served) -> None:
    """The sum is what gapstream gaps lists."""
    rows = [make_row("orders", 0, sink, missing=3, gaps=1) for sink in ("billing", "log", "stray", "warehouse")]
    rows[2].configured = False
    served.worker.view.apply(b"partition/orders/0", msgspec.json.encode(StatusRecord(topic="orders", partition=0, worker="w1", rows=rows)))
    lines = gapstream("status", *served.args()).out.splitlines()
    assert cells(lines[3])[1:5] == ["stray (in no file)", "gaps", "2023-11-14T22:13:20.000Z " + cells(lines[3])[3][25:], "3"]
    assert lines[-1] == "18 records are missing, in 6 partitions of 6 of 6 sinks."


def test_nothing_known_is_not_nothing_missing(gapstream: Command, served: Served) -> None:
    served.worker.view = StatusView({"orders": {"billing": "consumer"}}, 300)
    served.worker.view.loaded = True
    assert gapstream("status", *served.args()).out.splitlines()[-1] == "no records are known to be missing; 2 of 2 sinks are unknown."


def test_how_long_it_can_be_replayed(gapstream: Command, served: Served) -> None:
    now_ms = time.time_ns() // 1_000_000
    for expires, shown in ((now_ms + 7_290_000, "2h 1m"), (now_ms - 1, "past")):
        rows = [make_row("orders", 0, "billing", missing=1, gaps=1, expires_at_ms=expires, oldest_gap_opened_at_ms=NOW)]
        record = StatusRecord(topic="orders", partition=0, worker="w1", rows=rows)
        served.worker.view.apply(b"partition/orders/0", msgspec.json.encode(record))
        line = cells(gapstream("status", *served.args()).out.splitlines()[1])
        assert line[6:8] == ["2023-11-14T22:13:20.000Z", shown]


@pytest.mark.parametrize("terminal", [True, False])
def test_colours_are_for_terminals(gapstream: Command, served: Served, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr("stream_app.cli.output._is_terminal", lambda out: terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    ran = gapstream("status", *served.args())
    assert ("\x1b[" in ran.out) is terminal
    assert "18 records are missing" in ran.out


def test_no_topics(gapstream: Command, served: Served) -> None:
    served.worker.view = StatusView({}, 300)
    served.worker.view.loaded = True
    assert gapstream("status", *served.args()).out == "no topic is watched: see topics in the configuration\n"


def test_nothing_missing_and_all_known(gapstream: Command, served: Served) -> None:
    for topic in ("orders", "payments"):
        rows = [make_row(topic, 0, sink) for sink in ("billing", "log", "warehouse")]
        record = StatusRecord(topic=topic, partition=0, worker="w1", rows=rows)
        served.worker.view.apply(f"partition/{topic}/0".encode(), msgspec.json.encode(record))
    assert gapstream("status", *served.args()).out.splitlines()[-1] == "0 records are missing."


class TestCouldNotTell:
    @pytest.mark.parametrize("command", ["status", "gaps", "partitions"])
    @pytest.mark.parametrize("json", [[], ["--json"]])
    def test_nobody_answers(self, gapstream: Command, command: str, json: list[str]) -> None:
        ran = gapstream(command, "--url", "http://127.0.0.1:1", *json)
        assert (ran.code, ran.out) == (3, "")
        assert ran.err.startswith("no worker can be reached at http://127.0.0.1:1: ")
        assert ran.err.count("\n") == 1

    def test_a_token_is_needed_or_wrong_or_too_small(self, gapstream: Command, served: Served) -> None:
        ran = gapstream("status", "--url", served.url)
        assert (ran.code, ran.out) == (3, "")
        assert ran.err == (
            f"the worker at {served.url} refuses: a token is needed: send Authorization: Bearer TOKEN; see --token or GAPSTREAM_TOKEN\n"
        )
        assert gapstream("status", *served.args("wrong")).code == 3
        ran = gapstream("gaps", "--topic", "orders", *served.args("part"))
        assert (ran.code, ran.err) == (3, f"the worker at {served.url} forbids it: this token is not for that topic\n")

    def test_not_ready(self, gapstream: Command, served: Served) -> None:
        served.worker.view.loaded = False
        ran = gapstream("status", *served.args())
        assert (ran.code, ran.out) == (3, "")
        assert ran.err == f"the worker at {served.url} can't answer yet: not ready: the status topic is not read to its end yet\n"

    @pytest.mark.parametrize("kind", ["html", "list", "empty", "strings", "broken", "redirect"])
    def test_something_else_answers(self, gapstream: Command, odd_server: str, kind: str) -> None:
        ran = gapstream("status", "--url", f"{odd_server}/{kind}")
        assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)


class TestUsage:
    @pytest.mark.parametrize("url", ["127.0.0.1:6066", "ftp://a", "http://", "http://a:x", "http://a?b=1", "http://u:p@a", "http://[::1"])
    def test_a_url_that_is_none(self, gapstream: Command, url: str) -> None:
        ran = gapstream("status", "--url", url)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert url in ran.err

    def test_a_token_that_can_not_be_sent(self, gapstream: Command, served: Served) -> None:
        ran = gapstream("status", *served.args("a\nb"))
        assert (ran.code, ran.out) == (2, "")

    def test_environment(self, gapstream: Command, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GAPSTREAM_URL", served.url + "/")
        monkeypatch.setenv("GAPSTREAM_TOKEN", "all")
        assert len(gapstream("status", "--json").json()["status"]) == 6

    @pytest.mark.parametrize("command", ["status", "gaps", "partitions", "watch"])
    def test_help_has_an_example(self, gapstream: Command, command: str) -> None:
        ran = gapstream(command, "--help")
        assert ran.code == 0
        assert f"Example:\n    gapstream {command}" in ran.out
