from __future__ import annotations

import pytest

from stream_app.doctor.finding import Finding, Level, error, exit_code, ok, unknown, warning


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 0),
        ([ok("a", "fine")], 0),
        ([ok("a", "fine"), warning("a", "slow")], 0),
        ([ok("a", "fine"), unknown("a", "away")], 3),
        ([unknown("a", "away"), error("a", "broken")], 1),
        ([warning("a", "slow"), error("a", "broken")], 1),
    ],
)
def test_what_is_known_to_be_wrong_comes_before_what_is_not_known(found: list[Finding], code: int) -> None:
    assert exit_code(found) == code


def test_a_finding_as_json() -> None:
    one = warning("topics.orders", "slow", "add an index", "ALTER TABLE ...")
    expected = {"level": "warning", "about": "topics.orders", "message": "slow", "mend": "add an index", "statement": "ALTER TABLE ..."}
    assert one.as_json() == expected
    assert one.level is Level.WARNING
