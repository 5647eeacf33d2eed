from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.web.times import ago, parse_duration, parse_time, rfc3339, span

NOW = 1_763_892_000_000
"""2025-11-23T10:00:00Z"""


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (NOW + 7, "2025-11-23T10:00:00.007Z"),
        (-5, "1969-12-31T23:59:59.995Z"),
        (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (-62_135_596_800_001, None),
        (253_402_300_800_000, None),
        (2**63 - 1, None),
        (-(2**63), None),
        (None, None),
    ],
)
def test_times_in_json(ms: int | None, text: str | None) -> None:
    assert rfc3339(ms) == text


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("now", NOW),
        ("-2h", NOW - 7_200_000),
        ("-500ms", NOW - 500),
        ("@12", 12),
        ("2025-11-23T10:00:00Z", NOW),
        ("2025-11-23t10:00:00z", NOW),
        ("2025-11-23 10:00:00Z", NOW),
        ("2025-11-23T10:00:00.0079Z", NOW + 7),
        ("2025-11-23T11:30:00+01:30", NOW),
    ],
)
def test_a_time_argument(text: str, ms: int) -> None:
    assert parse_time(text, NOW) == ms


NO_TIMES = """
2h|--2h|-2|@|@-1|@1e3|-٢h|2025-11-23|2025-11-23T10:00:00|2025-13-01T00:00:00Z|20251123T100000Z|yesterday|
"""


@pytest.mark.parametrize("text", NO_TIMES.strip().split("|"))
def test_no_time_argument(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a (time|duration)"):
        parse_time(text, NOW)


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_what_is_written_is_read_back(ms: int) -> None:
    text = rfc3339(ms)
    assert text is not None
    assert parse_time(text, NOW) == ms


@pytest.mark.parametrize(
    ("text", "ms"), [("500ms", 500), ("2s", 2_000), ("15m", 900_000), ("24h", 86_400_000), ("7d", 604_800_000), ("0s", 0)]
)
def test_durations(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "5", "s", "1.5h", "-1s", "1 s", "1w", "9" * 13 + "s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0ms"), (999, "999ms"), (1_999, "1s"), (62_000, "1m 2s"), (3_600_000, "1h"), (90_061_000, "1d 1h"), (86_700_000, "1d")],
)
def test_spans_for_people(ms: int, text: str) -> None:
    assert span(ms) == text


def test_ago_for_people() -> None:
    assert ago(NOW - 2_000, NOW) == "2s ago"
    assert ago(NOW + 7_200_000, NOW) == "in 2h"
    assert ago(None, NOW) == "unknown"
