from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.config.reading import Verbatim, parse, substitute


def values(text: str) -> Any:
    source = parse(text, "g.yaml")
    assert source.findings == []
    return source.values


def complaints(text: str) -> list[str]:
    return [str(finding.fault()) for finding in parse(text, "g.yaml").findings]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00Z"),
        ("true", True),
        ("False", False),
        ("12", 12),
        ("-7", -7),
        ("0x1f", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("null", None),
        ("~", None),
        ("", None),
        ("'12'", "12"),
        ('"null"', "null"),
        ("1_000", "1_000"),
        ("[a, 1]", ["a", 1]),
        ("|\n  two\n  lines", "two\nlines\n"),
        ("9" * 5_000, float("inf")),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = values(f"key: {text}\n")["key"]
    assert (found, type(found)) == (value, type(value))


def test_keys_are_text() -> None:
    assert values("{1: a, on: b, 2026-01-01: c}") == {"1": "a", "on": "b", "2026-01-01": "c"}


def test_below_kafka_everything_is_text_as_written() -> None:
    text = "kafka: {sasl.password: 0123, a: true, b: 1e3, c: null}\ntopics: {t: {sinks: {s: {kafka: {a: 1}}}}}\nhttp: {port: 1}"
    assert values(text) == {
        "kafka": {"sasl.password": "0123", "a": "true", "b": "1e3", "c": None},
        "topics": {"t": {"sinks": {"s": {"kafka": {"a": "1"}}}}},
        "http": {"port": 1},
    }


def test_doubled_names_are_told_with_both_lines() -> None:
    text = "topics:\n  orders: {}\n  payments: {}\n  orders: {}\nhttp: {port: 1, port: 2}\n"
    assert complaints(text) == [
        "topics.orders: stands twice, first in line 2: take one away (g.yaml, line 4)",
        "http.port: stands twice, first in line 5: take one away (g.yaml, line 5)",
    ]


def test_anchors_and_merges() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 9}, *a], z: 4}\n"
    assert values(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 9, "y": 2, "z": 4}}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &a [*a]", "a.0: holds itself, or is nested too deeply (g.yaml, line 1)"),
        ("a: !env X", "a: the tag !env is not known here: write the value without it (g.yaml, line 1)"),
        ("a: {<<: 5}", "a: << takes a mapping, or a list of them (g.yaml, line 1)"),
        ("? [a]\n: b", "a key must be text (g.yaml, line 1)"),
        ("a: b: c", "g.yaml, line 1: is not YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "g.yaml, line 2: is not YAML: expected a single document in the stream, but found another document"),
        ("a: \x00", "g.yaml: is not YAML: special characters are not allowed"),
        ("[" * 5_000, "g.yaml: is not YAML: maximum recursion depth exceeded"),
    ],
)
def test_what_is_not_understood_is_one_line(text: str, line: str) -> None:
    (found,) = complaints(text)
    assert found.startswith(line)
    assert "\n" not in found


# --- ${NAME} ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${A}", "one"),
        ("x${A}y${B}z", "xoney${A}z"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${EMPTY}", ""),
        ("$A {A} $", "$A {A} $"),
    ],
)
def test_names_are_filled_in_once(text: str, filled: str) -> None:
    source = substitute({"a": [text]}, {"A": "one", "B": "${A}", "EMPTY": ""})
    assert source.findings == []
    assert source.values == {"a": [filled]}


@pytest.mark.parametrize(("content", "value"), [("pw", "pw"), ("pw\n", "pw"), ("pw\r\n", "pw"), ("pw\n\n", "pw\n"), ("a b", "a b")])
def test_files_are_filled_in_less_one_line_end(content: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(content.encode())
    assert substitute(f"${{file:{tmp_path}/secret}}", {}).values == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("${NOWHERE}", "the environment variable NOWHERE is not set"),
        ("${file:/nowhere}", "the file /nowhere can't be read: No such file or directory"),
        ("${file:/dev}", "the file /dev can't be read: Is a directory"),
        ("${A:-x}", "${ is followed by no name and }: write ${KAFKA_PASSWORD} or ${file:/run/secrets/kafka}, or $${ for the text ${"),
        ("${A", "${ is followed by no name and }: write ${KAFKA_PASSWORD} or ${file:/run/secrets/kafka}, or $${ for the text ${"),
        ("${}", "${ is followed by no name and }: write ${KAFKA_PASSWORD} or ${file:/run/secrets/kafka}, or $${ for the text ${"),
    ],
)
def test_what_can_not_be_filled_in_is_told_with_its_path(text: str, complaint: str) -> None:
    source = substitute({"a": {"b": text, "c": "kept"}}, {"A": "one"})
    assert [str(finding.fault()) for finding in source.findings] == [f"a.b: {complaint}"]
    assert source.values == {"a": {"b": None, "c": "kept"}}


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff")
    (finding,) = substitute(f"${{file:{tmp_path}/secret}}", {}).findings
    assert finding.message == f"the file {tmp_path}/secret can't be read: it is not text in UTF-8"


def test_values_of_the_environment_are_taken_as_they_are() -> None:
    assert substitute({"a": Verbatim("${A}")}, {}).values == {"a": "${A}"}


@given(st.text())
def test_text_comes_back_when_its_dollars_are_doubled(text: str) -> None:
    assert substitute(text.replace("${", "$${"), {}).values == text


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    source = parse(text, "g.yaml")
    assert all("\n" not in str(finding.fault()) for finding in source.findings)
