"""What docs/sidecar.md says of the sidecar is so."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from gapstream_sidecar import Sidecar, Stats, carried, complaints, lifetime, pace, reporter

ROOT = Path(__file__).resolve().parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("docs/sidecar.md", "gapstream_sidecar/README.md")}
SIDECAR = PAGES["docs/sidecar.md"]


@pytest.mark.parametrize("name", PAGES)
def test_examples_call_what_there_is(name: str) -> None:
    """Every call of the sidecar's in an example is one that it takes."""
    calls = 0
    for block in re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.Call):
                continue
            target = node.func
            if isinstance(target, ast.Name) and target.id == "Sidecar":
                signature = inspect.signature(Sidecar)
            elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "sidecar":
                method = inspect.signature(getattr(Sidecar, target.attr))
                signature = method.replace(parameters=list(method.parameters.values())[1:])
            else:
                continue
            signature.bind(*node.args, **{word.arg: word.value for word in node.keywords if word.arg is not None})
            calls += 1
    assert calls >= 2


def test_every_argument_and_counter_is_described() -> None:
    assert {one for one in inspect.signature(Sidecar).parameters if f"`{one}" not in SIDECAR and f"{one}=" not in SIDECAR} == {"conf"}
    assert all(f"`{one.name}`" in SIDECAR for one in fields(Stats))


def test_figures_are_those_of_the_program() -> None:
    defaults = {name: one.default for name, one in inspect.signature(Sidecar).parameters.items()}
    assert f"{defaults['observe_before_commit']:g} s at most\n  (`observe_before_commit`)" in SIDECAR
    assert f"{defaults['max_backlog_bytes'] >> 20} MiB for reports" in SIDECAR
    assert f"{carried.METADATA_BYTES:,} bytes of metadata" in SIDECAR
    assert f"{lifetime.EXIT_S:g} s at most for all sidecars" in SIDECAR
    assert f"within the last {reporter.LINGER_S:g} s is lost" in SIDECAR
    assert f"stopped** for {reporter.SUSPENDED_S:g} s" in SIDECAR
    assert (complaints.INTERVAL_S, pace.IN_ORDER_S, pace.SKIPPED_S, pace.BURST) == (60.0, 1.0, 0.2, 5)  # said in words


@pytest.mark.parametrize("name", PAGES)
def test_the_files_it_points_at_are_there(name: str) -> None:
    for target in re.findall(r"\]\(((?!http)[^)#]+)", PAGES[name]):
        assert (ROOT / name).parent.joinpath(target).exists(), target
