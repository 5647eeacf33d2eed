from __future__ import annotations

import base64
import json
import random
import resource
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from stream_app.core.model import MAX_OFFSET, Observation, Run, Runs, Snapshot, Status
from stream_app.core.offsets import OffsetSet
from stream_app.sinks.observation import (
    NAME_CHARS_MAX,
    REASON_CHARS_MAX,
    RUNS_MAX,
    VALUE_BYTES_MAX,
    Rejected,
    RejectReason,
    address,
    encode,
    parse,
)

EXAMPLE = (
    b'{"v":1,"sink":"billing","topic":"orders","partition":3,"runs":[[100,199],[205,205]],"claim":206,'
    b'"status":"received","source":"host-1","sequence":17,"topic_id":null,"at":null}'
)
BASE: dict[str, Any] = {"v": 1, "sink": "billing", "topic": "orders", "partition": 3, "runs": [[100, 199], [205, 205]]}
SNAPSHOT: dict[str, Any] = {"snapshot": [100, 299], "rows": 101, "at": "2026-11-23T10:00:00.000Z"}


SINGLES = tuple((offset, offset + 1) for offset in range(0, RUNS_MAX, 2))


def written(**fields: Any) -> bytes:
    """The base observation with other fields; ``...`` leaves one out."""
    return json.dumps({name: field for name, field in {**BASE, **fields}.items() if field is not ...}).encode()


def roaring(bitmap: BitMap) -> str:
    return base64.b64encode(bitmap.serialize()).decode()


def read(**fields: Any) -> Observation:
    return parse(written(**fields), "orders", 3)


def outcome(value: bytes) -> Observation | Rejected:
    try:
        return parse(value, "orders", 3)
    except Rejected as rejected:
        return rejected


def rejection(value: bytes | None) -> Rejected:
    with pytest.raises(Rejected) as caught:
        parse(value, "orders", 3)
    return caught.value


# --- what is taken ---


def test_example_of_the_contract() -> None:
    assert parse(EXAMPLE, "orders", 3) == Observation(
        sink="billing", runs=((100, 200), (205, 206)), status=Status.RECEIVED, claim=206, source="host-1", sequence=17
    )


def test_unknown_fields_are_ignored() -> None:
    assert read(shoe_size=44, more={"deep": [1, None]}) == read()


def test_last_of_a_doubled_key_counts() -> None:
    assert parse(EXAMPLE[:-1] + b',"sink":"other"}', "orders", 3).sink == "other"


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], ()),
        ([[0, 0]], ((0, 1),)),
        ([[5, 9], [10, 12]], ((5, 13),)),
        ([[5, 9], [10, 12], [13, 13], [15, 15]], ((5, 14), (15, 16))),
        ([[0, 10**12]], ((0, 10**12 + 1),)),
        ([[MAX_OFFSET - 1, MAX_OFFSET - 1]], ((MAX_OFFSET - 1, MAX_OFFSET),)),
    ],
)
def test_runs_are_half_open_and_joined(runs: list[list[int]], expected: Runs) -> None:
    assert read(runs=runs).runs == expected


@pytest.mark.parametrize("runs", [..., None, [], [[100, 199]], [[205, 301]]])
def test_bitmap_adds_to_runs(runs: Any) -> None:
    bitmap = BitMap([0, 1, 2, 10, 70_000])
    expected = OffsetSet([(200, 203), (210, 211), (70_200, 70_201)] if runs != [[205, 301]] else [])
    if runs == [[205, 301]]:
        bitmap, expected = BitMap([0, 1, 2]), OffsetSet([(200, 203)])
    for first, last in runs if isinstance(runs, list) else []:
        expected.add(first, last + 1)
    assert read(runs=runs, bitmap={"base": 200, "roaring": roaring(bitmap)}).runs == tuple(expected.runs())


def test_claim_alone_is_enough() -> None:
    assert read(runs=..., claim=0) == Observation("billing", (), claim=0)
    assert read(runs=None, claim=MAX_OFFSET).claim == MAX_OFFSET


def test_statuses() -> None:
    assert read().status is Status.RECEIVED
    assert read(status="unobserved").status is Status.UNOBSERVED
    quarantined = read(status="quarantined", reason="no schema")
    assert (quarantined.status, quarantined.reason) == (Status.QUARANTINED, "no schema")
    acknowledged = read(status="acknowledged", reason="known loss", by="ada")
    assert acknowledged == replace(read(), status=Status.ACKNOWLEDGED, reason="known loss", by="ada")
    assert read(status="acknowledged", reason="was wrong", by="ada", undo=True).undo


def test_topic_id_is_16_bytes() -> None:
    assert read(topic_id="8PHy8_T19vf4-fr7_P3-_w").topic_id == bytes(range(0xF0, 0x100))


def test_snapshot() -> None:
    assert read(**SNAPSHOT).snapshot == Snapshot(100, 300, 101, 1_795_428_000_000)
    assert read(**SNAPSHOT | {"runs": [], "rows": 0}).snapshot == Snapshot(100, 300, 0, 1_795_428_000_000)


def test_doubled_rows_of_a_snapshot() -> None:
    runs = ((100, 103), (205, 206))
    levels = [[[100, 102], [205, 205]], {"base": 101, "roaring": roaring(BitMap([0, 1]))}]
    found = read(**SNAPSHOT | {"rows": 107, "doubled": levels}).snapshot
    assert found is not None
    assert found.doubled == (runs, ((101, 103),))
    for text in ("[]", "null"):
        found = read(**SNAPSHOT | {"doubled": json.loads(text)}).snapshot
        assert found is not None
        assert found.doubled == ()


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.0019Z", 1),
        ("1970-01-01t01:00:00.250+01:00", 250),
        ("2026-11-23T10:00:00.000Z", 1_795_428_000_000),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999),
    ],
)
def test_times_are_milliseconds_since_the_epoch(text: str, at_ms: int) -> None:
    snapshot = read(**SNAPSHOT | {"at": text}).snapshot
    assert snapshot is not None
    assert snapshot.at_ms == at_ms


def test_longest_names_are_taken() -> None:
    name = "\u00e4" * NAME_CHARS_MAX
    taken = read(sink=name, source=name, sequence=0, by=name, reason="r" * REASON_CHARS_MAX)
    assert (taken.sink, taken.source, taken.by, taken.reason) == (name, name, name, "r" * REASON_CHARS_MAX)


# --- what is rejected ---


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"v": ...}, "`v`"),
        ({"v": "1"}, "v"),
        ({"v": True}, "v"),
        ({"sink": ...}, "`sink`"),
        ({"sink": None}, "sink"),
        ({"sink": ""}, "0 characters"),
        ({"sink": "s" * (NAME_CHARS_MAX + 1)}, "201 characters"),
        ({"sink": "a\nb"}, "control"),
        ({"sink": "a\x00"}, "control"),
        ({"sink": "a\x85"}, "control"),
        ({"sink": "log"}, "built in"),
        ({"topic": ...}, "`topic`"),
        ({"partition": ...}, "`partition`"),
        ({"partition": "3"}, "partition"),
        ({"partition": 3.0}, "partition"),
        ({"runs": ...}, "neither runs nor bitmap nor claim"),
        ({"runs": None, "bitmap": None, "claim": None}, "neither runs nor bitmap nor claim"),
        ({"runs": [[1, 2, 3]]}, "runs"),
        ({"runs": [[1]]}, "runs"),
        ({"runs": [5]}, "runs"),
        ({"runs": {"1": 2}}, "runs"),
        ({"runs": [[5, 4]]}, "out of order"),
        ({"runs": [[5, 9], [9, 12]]}, "out of order"),
        ({"runs": [[5, 9], [5, 9]]}, "out of order"),
        ({"runs": [[10, 12], [5, 9]]}, "out of order"),
        ({"runs": [[-1, 5]]}, "out of bounds"),
        ({"runs": [[0, MAX_OFFSET]]}, "out of bounds"),
        ({"runs": [[0, 10**300]]}, "more than 64 bits"),
        ({"runs": [[0, 1.5]]}, "runs"),
        ({"bitmap": {"base": 0}}, "roaring"),
        ({"bitmap": {"base": 0, "roaring": "*"}}, "base64"),
        ({"bitmap": {"base": 0, "roaring": ""}}, "portable Roaring"),
        ({"bitmap": {"base": 0, "roaring": "AAAA"}}, "portable Roaring"),
        ({"bitmap": {"base": -1, "roaring": roaring(BitMap([5]))}}, "out of bounds"),
        ({"bitmap": {"base": MAX_OFFSET, "roaring": roaring(BitMap())}}, "out of bounds"),
        ({"bitmap": {"base": MAX_OFFSET - 5, "roaring": roaring(BitMap([5]))}}, "out of bounds"),
        ({"bitmap": {"base": 0, "roaring": roaring(BitMap([150]))}}, "overlap"),
        ({"claim": -1}, "claim"),
        ({"claim": MAX_OFFSET + 1}, "claim"),
        ({"claim": "7"}, "claim"),
        ({"status": "lost"}, "status"),
        ({"status": None}, "status"),
        ({"status": "quarantined"}, "needs a reason"),
        ({"status": "quarantined", "reason": " "}, "needs a reason"),
        ({"status": "acknowledged", "by": "ada"}, "needs a reason"),
        ({"status": "acknowledged", "reason": "known"}, "needs by"),
        ({"status": "acknowledged", "reason": "known", "by": ""}, "by has 0"),
        ({"reason": "r" * (REASON_CHARS_MAX + 1)}, "reason"),
        ({"undo": True}, "undone"),
        ({"undo": 1}, "undo"),
        ({"source": "host"}, "need each other"),
        ({"sequence": 5}, "need each other"),
        ({"source": "", "sequence": 5}, "source has 0"),
        ({"source": "s" * (NAME_CHARS_MAX + 1), "sequence": 5}, "source has 201"),
        ({"source": "host", "sequence": -1}, "sequence"),
        ({"source": "host", "sequence": 2**63}, "sequence"),
        ({"topic_id": "AAAA"}, "topic id"),
        ({"topic_id": "A" * 21 + "B"}, "topic id"),
        ({"topic_id": "A" * 22 + "=="}, "topic id"),
        ({"at": "yesterday"}, "at"),
        ({"at": "2026-11-23T10:00:00"}, "timezone"),
        ({"at": 1_795_428_000}, "at"),
        (SNAPSHOT | {"rows": ...}, "needs rows and at"),
        (SNAPSHOT | {"at": None}, "needs rows and at"),
        (SNAPSHOT | {"at": "1969-12-31T23:59:59.999Z"}, "1970 to 9999"),
        (SNAPSHOT | {"at": "9999-12-31T23:59:59.999-00:01"}, "1970 to 9999"),
        (SNAPSHOT | {"runs": ..., "claim": 300}, "needs runs or bitmap"),
        (SNAPSHOT | {"snapshot": [100, 99], "runs": [], "rows": 0}, "range"),
        (SNAPSHOT | {"snapshot": [-1, 300]}, "range"),
        (SNAPSHOT | {"snapshot": [100, MAX_OFFSET]}, "range"),
        (SNAPSHOT | {"snapshot": [101, 299]}, "outside"),
        (SNAPSHOT | {"snapshot": [100, 204]}, "outside"),
        (SNAPSHOT | {"rows": 100}, "fewer rows"),
        (SNAPSHOT | {"status": "unobserved"}, "no other status"),
        ({"doubled": [[[100, 100]]]}, "needs a snapshot"),
        (SNAPSHOT | {"rows": 102, "doubled": [[[200, 200]]]}, "the one before it has not"),
        (SNAPSHOT | {"rows": 103, "doubled": [[[100, 100]], [[101, 101]]]}, "the one before it has not"),
        (SNAPSHOT | {"rows": 103, "doubled": [[]]}, "is empty"),
        (SNAPSHOT | {"rows": 103, "doubled": [[[101, 101], [100, 100]]]}, "out of order"),
        (SNAPSHOT | {"rows": 101, "doubled": [[[100, 100]]]}, "fewer rows"),
        (SNAPSHOT | {"rows": 110, "doubled": [[[100, 100]]] * 9}, "9 levels"),
        (SNAPSHOT | {"doubled": [[100, 100]]}, "doubled"),
    ],
)
def test_malformed(fields: dict[str, Any], detail: str) -> None:
    rejected = rejection(written(**fields))
    assert rejected.reason is RejectReason.MALFORMED
    assert detail in rejected.detail


@pytest.mark.parametrize(
    "value",
    [None, b"", b" ", b"null", b"[]", b"5", b'"x"', b"{", EXAMPLE[:-1], EXAMPLE + b"x", b"\xff\xfe", EXAMPLE.replace(b"host", b"\xff")],
)
def test_what_is_no_json_object_is_malformed(value: bytes | None) -> None:
    assert rejection(value).reason is RejectReason.MALFORMED


def test_another_topic_or_partition_than_it_stands_in() -> None:
    assert rejection(written(topic="order")).reason is RejectReason.WRONG_TOPIC
    assert rejection(written(partition=4)).reason is RejectReason.WRONG_PARTITION
    assert rejection(written(partition=10**300)).reason is RejectReason.WRONG_PARTITION


def test_another_version_is_told_whatever_its_shape() -> None:
    for value in (written(v=2), written(v=0), b'{"v":2}', b'{"v":3,"sink":{"name":"billing"}}', written(v=10**300)):
        assert rejection(value).reason is RejectReason.UNSUPPORTED_VERSION


def test_too_large() -> None:
    filler = VALUE_BYTES_MAX - len(written(x=""))
    assert parse(written(x="x" * filler), "orders", 3) == read()
    assert rejection(written(x="x" * (filler + 1))).reason is RejectReason.TOO_LARGE

    runs = [[offset, offset] for offset in range(0, 2 * RUNS_MAX + 2, 2)]
    value = json.dumps({**BASE, "runs": [[0, 0]] * (RUNS_MAX + 1)}, separators=(",", ":")).encode()
    assert len(value) < VALUE_BYTES_MAX
    assert rejection(value).reason is RejectReason.TOO_LARGE

    most, more = BitMap(first for first, _ in runs[:-1]), BitMap(first for first, _ in runs)
    assert len(read(runs=..., bitmap={"base": 7, "roaring": roaring(most)}).runs) == RUNS_MAX
    assert rejection(written(runs=..., bitmap={"base": 7, "roaring": roaring(more)})).reason is RejectReason.TOO_LARGE
    both = written(runs=[[3, 3]], bitmap={"base": 7, "roaring": roaring(most)})
    assert rejection(both).reason is RejectReason.TOO_LARGE


def test_details_are_short_and_printable() -> None:
    long = "x" * 500_000
    for value in (written(topic=long), written(status="\n" + long), written(topic_id=long), written(sink=long), written(v=10**4000)):
        rejected = rejection(value)
        assert len(rejected.detail) < 400
        assert rejected.detail.isprintable()
        assert str(rejected) == f"{rejected.reason}: {rejected.detail}"


# --- a line that stands nowhere ---


def test_address() -> None:
    assert address(EXAMPLE) == ("orders", 3)


def test_address_of_what_has_none_is_rejected() -> None:
    for value, reason in ((b"{}", RejectReason.MALFORMED), (b"x", RejectReason.MALFORMED), (b'{"v":2}', RejectReason.UNSUPPORTED_VERSION)):
        with pytest.raises(Rejected) as caught:
            address(value)
        assert caught.value.reason is reason
    with pytest.raises(Rejected) as caught:
        address(b" " * (VALUE_BYTES_MAX + 1))
    assert caught.value.reason is RejectReason.TOO_LARGE


# --- the way back ---


def test_encode_is_canonical() -> None:
    observation = Observation("billing", ((100, 200), (205, 206)), claim=206, source="host-1", sequence=17)
    assert encode(observation, "orders", 3) == (
        b'{"v":1,"sink":"billing","topic":"orders","partition":3,"runs":[[100,199],[205,205]],"claim":206,'
        b'"status":"received","source":"host-1","sequence":17}'
    )
    snapshot = Observation("dwh", (), topic_id=bytes(16), snapshot=Snapshot(5, 10, 0, 1_795_428_000_001))
    assert encode(snapshot, "t", 0) == (
        b'{"v":1,"sink":"dwh","topic":"t","partition":0,"runs":[],"status":"received","topic_id":"AAAAAAAAAAAAAAAAAAAAAA",'
        b'"at":"2026-11-23T10:00:00.001Z","snapshot":[5,9],"rows":0}'
    )
    twice = Observation("dwh", ((5, 9),), snapshot=Snapshot(5, 10, 9, 1_795_428_000_001, (((5, 8),), ((6, 7),))))
    assert encode(twice, "t", 0).endswith(b'"snapshot":[5,9],"rows":9,"doubled":[[[5,7]],[[6,6]]]}')
    undone = Observation("dwh", ((1, 2),), Status.ACKNOWLEDGED, reason="r", by="b", undo=True)
    assert encode(undone, "t", 0) == (
        b'{"v":1,"sink":"dwh","topic":"t","partition":0,"runs":[[1,1]],"status":"acknowledged","reason":"r","by":"b","undo":true}'
    )
    claim = Observation("dwh", (), claim=0)
    assert encode(claim, "t", 0) == b'{"v":1,"sink":"dwh","topic":"t","partition":0,"claim":0,"status":"received"}'


def test_many_runs_are_written_as_a_bitmap() -> None:
    many = Observation("dwh", tuple((10**12 + offset, 10**12 + offset + 1) for offset in range(0, 2 * RUNS_MAX, 2)))
    value = encode(many, "t", 0)
    assert b'"bitmap":{"base":1000000000000,' in value
    assert len(value) < 100_000
    assert parse(value, "t", 0) == many
    widest = replace(many, runs=(*many.runs[:2000], (10**12 + 2**32 - 1, 10**12 + 2**32)))
    assert b'"bitmap"' in encode(widest, "t", 0)
    assert parse(encode(widest, "t", 0), "t", 0) == widest
    doubled = tuple((10**12 + offset, 10**12 + offset + 1) for offset in range(0, 40_000, 2))
    twice = Observation("dwh", doubled, snapshot=Snapshot(0, 10**13, 60_000, 0, (doubled, doubled)))
    assert len(encode(twice, "t", 0)) < 100_000
    assert parse(encode(twice, "t", 0), "t", 0) == twice
    wider = replace(many, runs=(*many.runs[:2000], (10**12 + 2**32, 10**12 + 2**32 + 1)))
    assert b'"runs"' in encode(wider, "t", 0)
    assert parse(encode(wider, "t", 0), "t", 0) == wider


@pytest.mark.parametrize(
    "observation",
    [
        Observation("", ((1, 2),)),
        Observation("log", ((1, 2),)),
        Observation("\ud800", ((1, 2),)),
        Observation("s", ((1, 1),)),
        Observation("s", ((1, 2), (2, 3))),
        Observation("s", ((5, 6), (1, 2))),
        Observation("s", ((-1, 2),)),
        Observation("s", ((1, MAX_OFFSET + 1),)),
        Observation("s", tuple((offset, offset + 1) for offset in range(0, 2 * RUNS_MAX + 2, 2))),
        Observation("s", tuple((offset << 40, (offset << 40) + 1) for offset in range(60_000))),
        Observation("s", (), claim=-1),
        Observation("s", (), Status.QUARANTINED),
        Observation("s", (), undo=True),
        Observation("s", (), source="host"),
        Observation("s", (), topic_id=b"short"),
        Observation("s", (), snapshot=Snapshot(5, 5, 0, 0)),
        Observation("s", (), snapshot=Snapshot(5, 9, 0, 10**18)),
        Observation("s", ((5, 6),), snapshot=Snapshot(5, 9, 2, 0, (((6, 7),),))),
        Observation("s", ((5, 6),), snapshot=Snapshot(5, 9, 2, 0, ((),))),
        Observation("s", ((0, RUNS_MAX),), snapshot=Snapshot(0, RUNS_MAX, 9 * RUNS_MAX, 0, (((0, RUNS_MAX),),) * 9)),
        Observation("s", ((0, RUNS_MAX),), snapshot=Snapshot(0, RUNS_MAX, 3 * RUNS_MAX, 0, (SINGLES,) * 3)),
    ],
    ids=lambda observation: repr(observation)[:60],
)
def test_what_parse_would_reject_is_not_written(observation: Observation) -> None:
    with pytest.raises(ValueError, match=r"can't be written|surrogates"):
        encode(observation, "t", 0)


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=NAME_CHARS_MAX).filter(lambda name: name != "log")
OFFSETS = st.integers(0, 300) | st.integers(65_500, 65_600) | st.integers(0, MAX_OFFSET - 1)


@st.composite
def some_runs(draw: st.DrawFn) -> Runs:
    borders = sorted(draw(st.lists(OFFSETS, unique=True, max_size=12)))
    runs: list[Run] = list(zip(borders[::2], borders[1::2], strict=False))
    if draw(st.integers(0, 5)) == 0:
        base, step = draw(st.integers(0, 2**40)), draw(st.integers(2, 70_000))
        runs = [(base + index * step, base + index * step + 1) for index in range(1200)]
    return tuple(runs)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    runs, status = draw(some_runs()), draw(st.sampled_from(Status))
    explained = status in (Status.QUARANTINED, Status.ACKNOWLEDGED)
    source = draw(st.none() | NAMES)
    snapshot = None
    if status is Status.RECEIVED and draw(st.booleans()):
        first = runs[0][0] if runs else draw(OFFSETS)
        stop = runs[-1][1] if runs else first + 1
        count = sum(stop - first for first, stop in runs)
        doubled = tuple(runs[level:] for level in range(draw(st.integers(0, min(len(runs), 8))))) if count < 2**60 else ()
        count += sum(stop - first for level in doubled for first, stop in level)
        rows = count + draw(st.integers(0, min(1000, MAX_OFFSET - count)))
        at_ms = draw(st.integers(0, 253_402_300_799_999))
        snapshot = Snapshot(draw(st.integers(0, first)), draw(st.integers(stop, MAX_OFFSET)), rows, at_ms, doubled)
    return Observation(
        sink=draw(NAMES),
        runs=runs,
        status=status,
        claim=draw(st.none() | st.integers(0, MAX_OFFSET)),
        reason=draw(NAMES.filter(lambda text: bool(text.strip()))) if explained else draw(st.none() | NAMES),
        source=source,
        sequence=None if source is None else draw(st.integers(0, MAX_OFFSET)),
        topic_id=draw(st.none() | st.binary(min_size=16, max_size=16)),
        by=draw(NAMES) if status is Status.ACKNOWLEDGED else draw(st.none() | NAMES),
        undo=status is Status.ACKNOWLEDGED and draw(st.booleans()),
        snapshot=snapshot,
    )


@settings(max_examples=150, deadline=None)
@given(observations(), NAMES, st.integers(0, 2**31 - 1))
def test_what_was_written_is_read(observation: Observation, topic: str, partition: int) -> None:
    value = encode(observation, topic, partition)
    assert address(value) == (topic, partition)
    assert parse(value, topic, partition) == observation
    assert encode(parse(value, topic, partition), topic, partition) == value
    json.loads(value)


# --- hostile bytes ---

HOSTILE: list[Any] = [
    None, True, -1, 0, 1.5, 1e308, 2**63, 2**64, 10**400, "", "x", "\x00", "\ud7ff", "A" * 5000, [], [[]], [[0, 0]], [[1, 0]],
    [[0, 2**70]], [[2**62, 2**62]] * 50, {}, {"base": 5}, {"base": -5, "roaring": ""}, {"base": 2**70, "roaring": "OjAAAAAAAAA="},
    "9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00+23:59", "received", "acknowledged", [0, 2**63], [5, 4],
]  # fmt: skip


def mutated(rng: random.Random, bases: list[dict[str, Any]]) -> bytes:
    fields = dict(rng.choice(bases))
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2))):
            fields[rng.choice([*fields, "claim", "runs", "bitmap", "snapshot", "at", "rows", "status", "topic_id"])] = rng.choice(HOSTILE)
    elif kind == 1:
        bitmap = bytearray(base64.b64decode(fields.get("bitmap", {}).get("roaring", "OjAAAAAAAAA=")))
        for _ in range(rng.choice((1, 1, 3, 6))):
            bitmap[rng.randrange(min(len(bitmap), rng.choice((8, 40, 10_000))))] = rng.choice((0, 1, 255, rng.randrange(256)))
        if rng.randrange(4) == 0:
            del bitmap[rng.randrange(len(bitmap)) :]
        fields["bitmap"] = {"base": rng.choice((0, 7, 2**62, 2**63 - 2)), "roaring": base64.b64encode(bitmap).decode()}
        fields.pop("runs", None)
    value = bytearray(json.dumps(fields).encode())
    if kind == 2:
        for _ in range(rng.choice((1, 1, 2, 8))):
            value[rng.randrange(len(value))] = rng.choice((*b'{}[]",:\\-0e.', rng.randrange(256)))
    elif kind == 3:
        at = rng.randrange(len(value))
        value[at : at + rng.randint(0, 30)] = rng.choice((b"", rng.randbytes(20), b"[" * 3000, b"9" * 3000, b'"\\u0000'))
    return bytes(value)


def test_mutations_are_taken_or_rejected_and_nothing_else() -> None:
    rng = random.Random(20_261_123)
    sparse = BitMap(rng.sample(range(2**20), 300))
    mixed = BitMap(range(0, 40_000, 2)) | BitMap(range(70_000, 140_000)) | BitMap([2**32 - 1])
    mixed.run_optimize()
    bases = [
        BASE,
        json.loads(EXAMPLE),
        {**BASE, **SNAPSHOT},
        {**BASE, "status": "acknowledged", "reason": "known", "by": "ada", "undo": True, "topic_id": "A" * 22},
        *({**BASE, "runs": None, "bitmap": {"base": 5, "roaring": roaring(bitmap)}} for bitmap in (sparse, mixed)),
    ]
    outcomes = dict.fromkeys(("taken", *RejectReason), 0)
    for _ in range(1000):
        value = mutated(rng, bases)
        began = time.perf_counter()
        found = outcome(value)
        # Some ms in fact; room for a machine under load.
        assert time.perf_counter() - began < 2
        if isinstance(found, Rejected):
            outcomes[found.reason] += 1
            assert found.detail
        else:
            outcomes["taken"] += 1
            assert parse(encode(found, "orders", 3), "orders", 3) == found
    assert outcomes["taken"] > 50
    assert outcomes[RejectReason.MALFORMED] > 300


ROOM = VALUE_BYTES_MAX - 300
HEAD = json.dumps(BASE).encode()[:-1]


def of_bitmap(*runs: range) -> bytes:
    bitmap = BitMap.union(*map(BitMap, runs))
    bitmap.run_optimize()
    return written(runs=..., bitmap={"base": 3, "roaring": roaring(bitmap)})


WORST: dict[str, Callable[[], bytes]] = {
    "bitsets": lambda: of_bitmap(range(0, 94 << 16, 2)),
    "nearly full containers": lambda: of_bitmap(*(range(chunk << 16, (chunk << 16) + 65_535) for chunk in range(45_000))),
    "single values": lambda: of_bitmap(range(5, 45_000 << 16, 1 << 16)),
    "empty arrays": lambda: HEAD + b',"x":[' + b"[]," * (ROOM // 3) + b"1]}",
    "deep": lambda: HEAD + b',"x":' + b"[" * ROOM,
    "digits": lambda: HEAD + b',"claim":' + b"9" * ROOM + b"}",
    "fraction": lambda: HEAD + b',"claim":0.' + b"9" * ROOM + b"}",
    "keys": lambda: HEAD + b',"x":1,"y":2' * (ROOM // 12) + b"}",
    "escapes": lambda: HEAD + b',"sink":"' + rb"\u0041" * (ROOM // 6) + b'"}',
    "tiny runs": lambda: HEAD + b',"runs":[' + b"[0,0]," * (ROOM // 6) + b"[0,0]]}",
    "numbers for runs": lambda: HEAD + b',"runs":[' + b"1," * (ROOM // 2) + b"1]}",
}


@pytest.mark.parametrize("name", WORST)
def test_worst_megabyte_costs_bounded_time_and_memory(name: str) -> None:
    value = WORST[name]()
    assert VALUE_BYTES_MAX // 2 < len(value) <= VALUE_BYTES_MAX
    resident_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    found = outcome(value)
    assert time.perf_counter() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident_kib < 100 * 1024
    assert not isinstance(found, Rejected) or found.reason in (RejectReason.MALFORMED, RejectReason.TOO_LARGE)
    tracemalloc.start()
    try:
        outcome(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * 1024 * 1024
