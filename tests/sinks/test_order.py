from __future__ import annotations

import json

import pytest

from stream_app.core.model import Drop
from stream_app.sinks.observation import Rejected, parse
from stream_app.sinks.order import encode_drop, parse_drop

DROP = Drop("billing", "alice")
VALUE = encode_drop(DROP, "orders", 3)


def test_there_and_back() -> None:
    assert parse_drop(VALUE, "orders", 3) == DROP
    assert json.loads(VALUE) == {"v": 1, "drop": "billing", "topic": "orders", "partition": 3, "by": "alice"}


def test_it_is_no_observation() -> None:
    with pytest.raises(Rejected):
        parse(VALUE, "orders", 3)


@pytest.mark.parametrize(("topic", "partition"), [("orders", 2), ("payments", 3)])
def test_one_that_stands_elsewhere_is_none(topic: str, partition: int) -> None:
    assert parse_drop(VALUE, topic, partition) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"sink": "billing", "claim": 1},  # an observation, whatever else it says
        {"v": 2},
        {"by": None},
        {"drop": None},
        {"drop": 7},
        {"partition": "3"},
        {"more": 1},
    ],
)
def test_whatever_says_more_or_less_is_none(changes: dict[str, object]) -> None:
    assert parse_drop(json.dumps({**json.loads(VALUE), **changes}).encode(), "orders", 3) is None


@pytest.mark.parametrize("value", [None, b"", b"{", b'"drop"', b'[["drop"' + b"[" * 100_000, b'{"drop": \xff}'])
def test_nonsense_is_none(value: bytes | None) -> None:
    assert parse_drop(value, "orders", 3) is None
