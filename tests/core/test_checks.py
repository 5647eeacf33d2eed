from __future__ import annotations

from stream_app.core.checks import Checks
from tests.core.strategies import BASE, Rig, policy

AFTER = 10_000


def judged(checks: Checks, now_ms: int, known: tuple[str, ...] = ("group", "table")) -> bool | None:
    return checks.judge(known, AFTER, now_ms)


def rig_with(*checks: str) -> Rig:
    rig = Rig({"s": policy(checks=checks)})
    rig.ledger.unknown_after_ms = AFTER
    return rig


def test_a_check_must_fail_for_long_enough() -> None:
    checks = Checks()
    checks.note("group", "refused", BASE)
    assert judged(checks, BASE + AFTER - 1) is None
    checks.note("group", "no answer", BASE + AFTER - 1)
    assert judged(checks, BASE + AFTER) is True
    assert checks.why() == "no answer", "why it fails now, since it began"
    assert judged(checks, BASE + AFTER + 1) is None


def test_one_answer_begins_anew() -> None:
    checks = Checks()
    checks.note("group", "refused", BASE)
    checks.note("group", None, BASE + 5_000)
    checks.note("group", "refused", BASE + 6_000)
    assert judged(checks, BASE + AFTER) is None
    assert judged(checks, BASE + 6_000 + AFTER) is True
    checks.note("group", None, BASE + 20_000)
    assert judged(checks, BASE + 20_000) is False
    assert checks.why() is None


def test_all_checks_must_answer() -> None:
    checks = Checks()
    for name in ("group", "table"):
        checks.note(name, f"{name} is away", BASE)
    assert judged(checks, BASE + AFTER) is True
    assert checks.why() == "group is away; table is away"
    checks.note("group", None, BASE + AFTER)
    assert judged(checks, BASE + AFTER) is None
    assert checks.why() == "table is away"
    checks.note("table", None, BASE + AFTER)
    assert judged(checks, BASE + AFTER) is False


def test_whoever_takes_over_waits_for_an_answer_of_its_own() -> None:
    """It does not know yet, and neither "known" nor a second "unknown" would be true."""
    checks = Checks({"group": "refused"})
    assert judged(checks, BASE) is None
    checks.note("group", "no answer", BASE)
    assert judged(checks, BASE) is None
    assert checks.why() == "refused"
    assert judged(checks, BASE + AFTER) is None
    assert checks.why() == "no answer"
    checks.note("group", None, BASE + AFTER)
    assert judged(checks, BASE + AFTER) is False


def test_a_check_that_the_sink_has_no_more_does_not_count() -> None:
    checks = Checks({"group": "refused"})
    checks.note("group", "refused", BASE)
    assert judged(checks, BASE + AFTER, known=("table",)) is False
    assert checks.unknown == {}


def test_a_check_that_has_not_answered_yet_fails_since_it_was_begun() -> None:
    checks = Checks()
    checks.note("table", None, BASE)
    checks.late("table", "it is silent", BASE + 1_000)
    assert judged(checks, BASE + 1_000 + AFTER - 1) is None
    assert judged(checks, BASE + 1_000 + AFTER) is True
    assert checks.why() == "it is silent"
    checks.note("table", None, BASE + 20_000)
    assert judged(checks, BASE + 20_000) is False


def test_a_late_check_that_fails_at_last_failed_since_it_was_begun() -> None:
    checks = Checks()
    checks.late("table", "it is silent", BASE)
    checks.note("table", "given up", BASE + AFTER)
    assert judged(checks, BASE + AFTER) is True
    assert checks.why() == "given up"


def test_a_check_that_failed_before_it_was_late_keeps_its_time_and_its_reason() -> None:
    checks = Checks()
    checks.note("table", "refused", BASE)
    checks.late("table", "it is silent", BASE + 5_000)
    assert judged(checks, BASE + AFTER) is True
    assert checks.why() == "refused"


# --- in the ledger ---


def test_unknown_and_known_are_told_once() -> None:
    rig = rig_with("group")
    rig.ledger.note_check("s", "group", "the broker is away", rig.now)
    assert rig.types() == []
    rig.wait(AFTER)
    (event,) = rig.flush()
    assert (event.type, event.reason, event.sink) == ("sink.unknown", "the broker is away", "s")
    rig.wait(AFTER)
    assert rig.types() == []
    rig.ledger.note_check("s", "group", None, rig.now)
    assert rig.types() == ["sink.known"]
    assert rig.types() == []


def test_that_a_sink_is_known_again_is_told_before_its_gaps() -> None:
    rig = rig_with("group")
    rig.read("record", 10)
    rig.ledger.note_check("s", "group", "the broker is away", rig.now)
    rig.wait(AFTER)
    assert rig.types() == ["sink.unknown"]
    rig.observe((0, 4), (6, 10))
    rig.ledger.note_check("s", "group", None, rig.now)
    rig.verdict()
    assert rig.types() == ["sink.known", "gap.opened"]


def test_a_check_of_a_sink_that_is_not_there_is_ignored() -> None:
    rig = rig_with("group")
    rig.ledger.note_check("gone", "group", "away", rig.now)
    rig.wait(AFTER)
    assert rig.types() == []
