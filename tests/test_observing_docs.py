"""What docs/observing.md and docs/http.md say of observations is what the program takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from stream_app.cli import observe
from stream_app.core.model import Status
from stream_app.service.observing import WAIT_SECONDS
from stream_app.sinks.observation import REASON_CHARS_MAX, RUNS_MAX, VALUE_BYTES_MAX, parse
from stream_app.web.observations import BODY_BYTES_MAX, BODY_SECONDS, HELD_BYTES_MAX, LINES_MAX, REQUESTS_MAX

ROOT = Path(__file__).resolve().parent.parent
OBSERVING = (ROOT / "docs/observing.md").read_text()
HTTP = (ROOT / "docs/http.md").read_text()
MIB = 1024 * 1024


def test_every_observation_shown_is_one() -> None:
    shown = [line for line in OBSERVING.splitlines() if line.startswith('{"v":1')]
    assert len(shown) == 3
    said = [parse(line.encode(), "orders", 3) for line in shown]
    assert said[0].runs == ((100, 200), (205, 206))
    assert [one.status for one in said] == [Status.RECEIVED, Status.RECEIVED, Status.QUARANTINED]
    assert [one.sequence for one in said[1:]] == [17, 18]


def test_every_field_is_described() -> None:
    described = {name for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", OBSERVING, re.MULTILINE) for name in re.findall(r"\w+", row)}
    shown = set().union(*(json.loads(line) for line in OBSERVING.splitlines() if line.startswith('{"v":1')))
    assert shown | {"bitmap", "claim", "topic_id", "at"} <= described


def test_limits_are_those_of_the_program() -> None:
    assert f"{VALUE_BYTES_MAX // MIB} MiB and {RUNS_MAX:,} runs" in OBSERVING
    assert f"up to {REASON_CHARS_MAX:,} characters" in OBSERVING
    assert f"({observe.END_SECONDS:g} s at the end of the input, {observe.STOP_SECONDS:g} s after a signal)" in OBSERVING
    assert f"where a log ends for {observe.END_SECONDS:g} s ({observe.STOP_ENDS_SECONDS:g} s after a signal)" in OBSERVING
    assert f"the first {observe.REJECTED_LISTED_MAX:,} are listed" in OBSERVING
    assert f"more than {BODY_BYTES_MAX // MIB} MiB, or than {LINES_MAX:,} lines" in HTTP
    assert f"more than {HELD_BYTES_MAX // MIB} MiB, or {REQUESTS_MAX} requests" in HTTP
    assert f"within {WAIT_SECONDS:g} s" in HTTP
    assert f"not there after {BODY_SECONDS:g} s" in HTTP


def test_the_files_it_points_at_are_there() -> None:
    for target in re.findall(r"\]\((\.\./[^)#]+|[a-z]+\.md)", OBSERVING):
        assert (ROOT / "docs" / target).exists(), target
