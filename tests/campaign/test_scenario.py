"""A scenario has gone well only where it found what it expected, and really did what it is about."""

from __future__ import annotations

import pytest

from tests.campaign.log import main
from tests.campaign.log_long import SCENARIOS
from tests.campaign.scenario import Ground, Outcome, Scenario, table


def nothing(ground: Ground) -> Outcome:
    return Outcome("a", "a", 1)


def test_a_fault_that_was_never_made_shows_nothing() -> None:
    assert Outcome("0 gaps", "0 gaps", 3).good
    assert not Outcome("0 gaps", "0 gaps", 0).good
    assert not Outcome("0 gaps", "1 gaps", 3).good


def test_the_table_shows_details_where_something_differs() -> None:
    one = Scenario("T00", "nothing much", nothing)
    assert table([(one, Outcome("a", "a", 1_000, ["why"]))]) == [
        "T00      made   1,000  as expected: nothing much", "         expected  a", "         found     a",
    ]  # fmt: skip
    assert table([(one, Outcome("a", "b", 1, ["why"]))])[0::3] == ["T00      made       1  DIFFERS: nothing much", "           why"]


def test_each_scenario_has_an_id_of_its_own() -> None:
    ids = [scenario.id for scenario in SCENARIOS]
    assert len(ids) == len(set(ids))


def test_an_unknown_scenario_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scenarios", "T00"]) == 2
    assert capsys.readouterr().err.startswith("no scenario T00: there are T0")
