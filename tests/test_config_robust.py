"""Whatever is wrong with a file, its faults are told: nothing breaks, nothing hangs, nothing is said twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.config.loading import settle

REFERENCE = yaml.safe_load((Path(__file__).parent.parent / "docs" / "reference-config.yaml").read_text())
ENVIRON = {"KAFKA_PASSWORD": "x", "CH_PASSWORD": "x", "SLACK_URL": "https://hooks"}  # some of its variables are not set
JUNK: tuple[Any, ...] = (
    None,
    True,
    5,
    -1,
    2.5,
    "",
    "x",
    "5s",
    "/(/",
    "${NOWHERE}",
    "{topic}",
    [],
    {},
    [1],
    ["x", None],
    {"a": 1},
    [{}],
    {"": {}},
)


def paths(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


PATHS = list(paths(REFERENCE))


def put(values: Any, path: tuple[Any, ...], junk: Any) -> None:
    """Replace what is there; where an earlier change removed the way there, nothing happens."""
    for key in path[:-1]:
        if (
            not isinstance(values, dict | list)
            or (isinstance(values, dict) and key not in values)
            or (isinstance(values, list) and not values)
        ):
            return
        values = values[key] if isinstance(values, dict) else values[0]
    if isinstance(values, dict):
        values[path[-1]] = copy.deepcopy(junk)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(JUNK)), min_size=1, max_size=6))
def test_junk_anywhere(tmp_path_factory: Any, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    values = copy.deepcopy(REFERENCE)
    for path, junk in changes:
        put(values, path, junk)
        if junk == "x" and isinstance(values.get(path[0]), dict):
            values[path[0]]["unknown"] = 1
    file = tmp_path_factory.getbasetemp() / "junk.yaml"
    file.write_text(yaml.safe_dump(values))
    settled = settle(file, ENVIRON)
    lines = [str(fault) for fault in settled.faults]
    assert len(set(lines)) == len(lines)
    assert not any("\n" in line for line in lines)
    assert settle(file, ENVIRON).faults == settled.faults
    file.write_text(yaml.safe_dump(settled.config.masked()).replace("'***'", "https://masked"))
    again = settle(file, {})  # what was left is right, but for what was taken out
    assert not any("is no setting here" in str(fault) for fault in again.faults)


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from([f"GAPSTREAM__{'__'.join(map(str, path))}".upper() for path in PATHS]),
        st.sampled_from(["", "x", "[", "{}", "5", "null"]),
        max_size=4,
    )
)
def test_junk_in_the_environment(environ: dict[str, str]) -> None:
    settled = settle(Path(__file__).parent.parent / "docs" / "reference-config.yaml", ENVIRON | environ)
    assert not any("\n" in str(fault) for fault in settled.faults)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([".".join(map(str, path)) for path in PATHS]), st.sampled_from(["", "x", "[", "{}", "5", "null", "${X}"])
        ),
        max_size=4,
    )
)
def test_junk_in_flags(flags: list[tuple[str, str]]) -> None:
    settled = settle(Path(__file__).parent.parent / "docs" / "reference-config.yaml", ENVIRON, [f"{path}={value}" for path, value in flags])
    assert not any("\n" in str(fault) for fault in settled.faults)
