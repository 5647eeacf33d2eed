"""Nothing is left out silently: tests that need servers which are not there are listed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.servers import FOLDER, NEEDS, lacking, not_run

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_of_the_folder_says_what_it_needs() -> None:
    trees = [ast.parse(file.read_text()) for file in (ROOT / FOLDER).glob("test_*.py")]
    named = {one.name for tree in trees for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for name in named if name.startswith("test_")} == set(NEEDS)


def test_what_is_not_run_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {name for names in NEEDS.values() for name in names}:
        monkeypatch.delenv(name, raising=False)
    assert len(list(not_run())) == len(NEEDS)
    test = next(iter(NEEDS))
    assert lacking(test) == NEEDS[test]
    for name in NEEDS[test]:
        monkeypatch.setenv(name, "given")
    assert lacking(test) == ()
    assert not any(test in line for line in not_run())
    assert lacking("test_of_another_kind") == ()
