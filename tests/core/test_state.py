from __future__ import annotations

import random
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.core import state as state_module
from stream_app.core.ledger import Ledger
from stream_app.core.minutes import HOUR, KEPT_MINUTES
from stream_app.core.model import Absent, Cause, Look, Snapshot, Status, Timed
from stream_app.core.offsets import OffsetSet
from stream_app.core.policy import Policy
from stream_app.core.sink import AGAIN_MAX
from stream_app.core.state import (
    VERSION,
    Changes,
    Clock,
    Head,
    LogMinutes,
    SinkGaps,
    SinkHead,
    SinkMinutes,
    SnapshotsHead,
    StateCodec,
    StateError,
    name_topic,
)
from tests.core.strategies import BASE, GRACE, OTHER_ID, SKEW, TOPIC_ID, Rig, log_read, plain, policy

PREFIX = struct.Struct(">IB16sB")
HEAD, SINK, GAPS, LOG_SET, SINK_SET, CLOCK, MINUTES, DOUBLED = b"h", b"s", b"g", b"l", b"t", b"c", b"m", b"d"
POLICIES = {"s": policy(tombstones_optional=True), "first": policy("first", floor=None)}


MINUTE = BASE // 60_000
MINUTES_READ = (
    Timed(0, MINUTE - 61, BASE - 61 * 60_000, BASE - 61 * 60_000 + 1),
    Timed(8, MINUTE, BASE, BASE + 7),
    Timed(20, None),
    Timed(30, MINUTE - 61, BASE - 61 * 60_000, BASE - 61 * 60_000 + 2),
)


def stored_by(changes: Changes, stored: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
    """What a table holds after these changes; a deletion of what is not there fails."""
    held = dict(stored or {})
    for key, value in changes:
        if value is None:
            del held[key]
        else:
            held[key] = value
    return held


def load(stored: dict[bytes, bytes], policies: dict[str, Policy] | None = None) -> Ledger:
    loaded = StateCodec(0).load("t", stored.items(), POLICIES if policies is None else policies, BASE)
    assert loaded is not None
    return loaded


def rich() -> Rig:
    """A partition in which every field and every set holds something."""
    rig = Rig(dict(POLICIES), ever_compacted=True)
    ledger = rig.ledger
    ledger.observations_id = b"o" * 16
    rig.read([*["record"] * 40, "transaction_marker", "aborted", "hole", "unreadable"], leader_epoch=7, start=1, minutes=MINUTES_READ)
    rig.read("unread", 4)
    ledger.log.ever_compacted = False
    rig.read("hole", 2)
    ledger.log.ever_compacted = True
    rig.observe((0, 5), (20, 40), source="a", sequence=3)
    rig.observe((3, 5), source="b", sequence=1)
    rig.observe((30, 40), claim=45, sink="first")
    rig.observe((5, 6), status=Status.QUARANTINED, reason="bad")
    rig.observe((6, 7), status=Status.UNOBSERVED)
    found = {"holes": ((8, 9),), "unreadable": ((9, 10),), "tombstones": ((10, 11),), "timestamps": {12: 5, 19: 6}}
    rig.wait(GRACE)
    rig.judge(lambda due: Look(due.stop, 8, **found))  # type: ignore[arg-type]  # fields of Look
    rig.ledger.evaluate(rig.now)
    ledger.vanish("s", OffsetSet([(21, 24)]), rig.now)
    rig.read("record", 10, start=15, ahead=90, last_stable=130, leader_epoch=4, epochs=((2, 100), (4, 105)))
    for first in (7, 9, 12, 21):
        rig.observe((first, first + 1), status=Status.ACKNOWLEDGED, reason="known", by="me")
    rig.sink().acknowledged[Cause.NOT_RECEIVED].add(16, 17)
    rig.sink().acknowledged[Cause.LOG_HOLE].add(50, 51)
    rig.sink().open[Cause.LOG_HOLE].add(48, 49)
    rig.sink().open[Cause.NOT_RECEIVED].add(25, 26)
    rig.sink().open[Cause.UNREADABLE].add(26, 27)
    rig.sink().find_gaps(ledger.log)
    for _ in range(12):
        rig.observe((100, 104))
    rig.observe((100, 102), source="a", sequence=4)
    rig.observe((104, 105), status=Status.QUARANTINED, reason="bad")
    rig.observe((105, 106), status=Status.UNOBSERVED)
    for sequence in range(5, 5 + AGAIN_MAX):
        rig.observe((20, 21), source="a", sequence=sequence)
    rig.sink().stalled, rig.sink().absent_observed, rig.sink("first").absent_observed = True, 2, 3
    rig.sink().complete_ms = BASE
    rig.sink().doubted_to = 9
    for sequence, claim in enumerate((45, 41)):
        rig.observe(sink="first", claim=claim, source="group:g", sequence=sequence)
    rig.sink("first").awaited = 4
    rig.sink("first").checks.unknown["group"] = "it does not answer"
    doubled = tuple(((30 + level, 33 + level),) for level in range(8))
    for at, first in ((60, 30), (70, 33), (80, 36)):
        rig.observe((first, 42), source="table:me", sequence=at, snapshot=Snapshot(30, 44, 20, at, doubled))
    rig.sink().snapshots.kept_from_ms = BASE
    rig.observe((99, 100), sink="stranger")
    ledger.dropped["gone"] = 17
    ledger.partitions, ledger.unnamed_to, ledger.reborn, ledger.mirrored = 3, 2, True, {"s/topic:t/0": (7, 9, bytes(16))}
    return rig


def dump(ledger: Ledger) -> dict[bytes, bytes]:
    """The whole state, also what was written before; takes the marks of what was not."""
    codec = StateCodec(ledger.partition)
    minutes = ledger.log.minutes
    minutes._changed = {-1 if run.minute is None else run.minute // HOUR for run in minutes.runs}
    for sink in ledger.sinks.values():
        sink.doubled._changed = {minute // HOUR for minute in sink.doubled.counts}
    stored = stored_by(codec.changes(ledger, force=True))
    sets: list[tuple[int, str | None, list[OffsetSet]]] = [(LOG_SET[0], None, state_module._log_sets(ledger.log))]
    sets += [(SINK_SET[0], name, state_module._sink_sets(sink)) for name, sink in ledger.sinks.items()]
    for kind, name, each in sets:
        for number, offsets in enumerate(each):
            for chunk, value in offsets.dump().items():
                stored[codec._key(ledger.log.topic_id, kind, name) + struct.pack(">BQ", number, chunk + 1)] = value
    return stored


def kind_of(key: bytes) -> bytes:
    return key[PREFIX.size - 1 : PREFIX.size]


# --- there and back ---


def test_what_is_loaded_is_what_was_kept() -> None:
    rig = rich()
    assert plain(load(dump(rig.ledger))) == plain(rig.ledger)


STRUCTS: dict[bytes, Any] = {HEAD: Head, SINK: SinkHead, GAPS: SinkGaps, CLOCK: Clock, MINUTES: LogMinutes, DOUBLED: SinkMinutes}
FIELDS = [(kind, name) for kind, struct_ in STRUCTS.items() for name in struct_.__struct_fields__ if name != "v"]
NOTHING = {bool: False, int: 0, str: "", bytes: bytes(16), list: [], tuple: (), dict: {}, type(None): None}


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda each: each if isinstance(each, str) else each.decode())
def test_no_field_can_be_dropped(kind: bytes, name: str) -> None:
    """Every field of every value says something of the state above: without it another ledger comes back, or none."""
    rig = rich()
    stored, differing = dump(rig.ledger), []
    for key, value in stored.items():
        if kind_of(key) == kind:
            decoded = msgspec.msgpack.decode(value, type=STRUCTS[kind])
            known = getattr(decoded, name)
            nothing = NOTHING.get(type(known))
            setattr(decoded, name, None if known == nothing else nothing)
            try:
                without = load({**stored, key: msgspec.msgpack.encode(decoded)})
                differing.append(plain(without) != plain(rig.ledger))
            except StateError:
                differing.append(True)
    assert any(differing)


@pytest.mark.parametrize("name", SnapshotsHead.__struct_fields__)
def test_no_field_of_snapshots_can_be_dropped(name: str) -> None:
    rig = rich()
    rig.sink().snapshots.agreed_to = 60
    stored = dump(rig.ledger)
    (key,) = (key for key in stored if kind_of(key) == SINK and key.endswith(b"s") and not key.endswith(b"ters"))
    decoded = msgspec.msgpack.decode(stored[key], type=SinkHead)
    assert decoded.snapshots is not None
    setattr(decoded.snapshots, name, NOTHING[type(getattr(decoded.snapshots, name))])
    changed = {**stored, key: msgspec.msgpack.encode(decoded)}
    if name == "sampled_ms":
        with pytest.raises(StateError, match="times of them"):
            load(changed)
    else:
        assert plain(load(changed)) != plain(rig.ledger)


def test_no_set_can_be_dropped() -> None:
    rig = rich()
    stored = dump(rig.ledger)
    sets = {key[:-8] for key in stored if kind_of(key) in (LOG_SET, SINK_SET)}
    assert {key[-1] for key in sets if kind_of(key) == LOG_SET} == set(range(len(state_module._log_sets(rig.ledger.log))))
    assert {key[-1] for key in sets if key[-2:-1] == b"s"} == set(range(len(state_module._sink_sets(rig.sink()))))
    for prefix in sets:
        without = {key: value for key, value in stored.items() if key[:-8] != prefix}
        assert len(without) < len(stored)
        assert plain(load(without)) != plain(rig.ledger), prefix


def test_a_sink_that_left_the_configuration_stays_apart_after_loading() -> None:
    rig = rich()
    rig.ledger.configure({"first": POLICIES["first"]}, rig.now)
    rig.ledger.take_events()
    loaded = load(dump(rig.ledger), {"first": POLICIES["first"]})
    assert loaded.sinks["s"].policy == Policy.unconfigured("s")
    assert loaded.take_events() == []
    back = load(dump(rig.ledger), POLICIES)
    assert {str(event.type) for event in back.take_events()} == {"gap.opened"}


def test_a_sink_that_leaves_while_nobody_worked_is_closed_by_the_next_owner() -> None:
    rig = rich()
    rig.ledger.take_events()
    loaded = load(dump(rig.ledger), {"first": POLICIES["first"]})
    assert {str(event.type) for event in loaded.take_events()} == {"gap.explained", "sink.removed"}


def test_no_state_is_no_ledger() -> None:
    assert StateCodec(0).load("t", [], POLICIES, BASE) is None


# --- what is written ---


def test_nothing_is_written_when_nothing_changed() -> None:
    rig, codec = rich(), StateCodec(0)
    assert codec.changes(rig.ledger)
    assert codec.changes(rig.ledger) == []


def test_only_what_changed_is_written_and_what_is_empty_is_deleted() -> None:
    rig, codec = Rig(), StateCodec(0)
    rig.read("record", 200_000)
    rig.observe((0, 100_000), (100_001, 200_000))
    stored = stored_by(codec.changes(rig.ledger))
    rig.verdict()
    changed = codec.changes(rig.ledger)
    stored = stored_by(changed, stored)
    assert len([key for key, value in changed if value is not None]) <= 4
    assert [key for key, value in changed if value is None]
    rig.observe((100_000, 100_001))
    rig.flush()
    changed = codec.changes(rig.ledger)
    assert {kind_of(key) for key, value in changed if value is None} == {SINK_SET, GAPS}
    assert stored_by(changed, stored) == dump(rig.ledger)


def test_time_alone_is_written_once_a_minute_or_when_asked() -> None:
    rig, codec = Rig(), StateCodec(0)
    rig.read("record")
    codec.changes(rig.ledger)
    for _ in range(59):
        rig.wait(1_000)
        rig.read([])
        rig.flush()
        assert codec.changes(rig.ledger) == []
    rig.wait(1_000)
    rig.read([])
    ((key, value),) = codec.changes(rig.ledger)
    assert kind_of(key) == CLOCK
    assert value is not None
    rig.wait(1_000)
    rig.read([])
    assert len(codec.changes(rig.ledger, force=True)) == 1


def test_what_was_loaded_is_not_written_again() -> None:
    rig, codec = rich(), StateCodec(0)
    stored = stored_by(codec.changes(rig.ledger, force=True))
    again = StateCodec(0)
    loaded = again.load("t", stored.items(), POLICIES, BASE)
    assert loaded is not None
    assert again.changes(loaded) == []
    assert again.size_bytes() == codec.size_bytes() == sum(len(key) + len(value) for key, value in stored.items())


def test_keys_of_another_incarnation_are_deleted() -> None:
    rig, codec = rich(), StateCodec(0)
    stored = stored_by(codec.changes(rig.ledger))
    rig.recreate(OTHER_ID)
    stored = stored_by(codec.changes(rig.ledger), stored)
    assert {PREFIX.unpack_from(key)[2] for key in stored} == {OTHER_ID}
    assert plain(load(stored)) == plain(rig.ledger) | {"policies": plain(POLICIES)} | {"sinks": plain(load(stored).sinks)}
    rig.read("record", 10)
    rig.observe((5, 6))
    stored = stored_by(codec.changes(rig.ledger), stored)
    rig.ledger.configure(POLICIES, rig.now)
    assert plain(load(stored)) == plain(rig.ledger)


def test_a_key_begins_with_the_partition_and_names_version_and_incarnation() -> None:
    rig = Rig()
    rig.read("record")
    for key, _ in StateCodec(0x01020304).changes(rig.ledger):
        assert PREFIX.unpack_from(key)[:3] == (0x01020304, VERSION, TOPIC_ID)


def test_ten_million_dense_records_and_a_sink_in_order_are_below_twenty_kilobytes() -> None:
    rig, codec, stored = Rig(), StateCodec(0), dict[bytes, bytes]()
    total, step = 10_000_000, 100_000
    for first in range(0, total, step):
        rig.now += 1_000
        assert rig.ledger.fold_log(
            log_read(first, [], stop=first + step, records=((first, first + step),), min_timestamp_ms=rig.now), rig.now
        )
        rig.observe((first, first + step), claim=first + step, source="host-1", sequence=first)
        rig.wait(0)
        rig.judge()
        rig.flush()
        stored = stored_by(codec.changes(rig.ledger), stored)
    assert rig.sink().observed == total
    size = sum(len(key) + len(value) for key, value in stored.items())
    assert size == codec.size_bytes() < 20_000


def test_a_day_of_a_dense_log_by_minute_is_below_twenty_kilobytes_more() -> None:
    rig, codec = Rig(), StateCodec(0)
    for minute in range(MINUTE - KEPT_MINUTES, MINUTE + 1):
        at = rig.ledger.log.read
        times = minute * 60_000 + 12, minute * 60_000 + 59_990
        rig.ledger.fold_log(
            log_read(at, [], stop=at + 600_000, records=((at, at + 600_000),), minutes=(Timed(at, minute, *times),)), rig.now
        )
        rig.observe((at, at + 600_000), claim=at + 600_000)
        codec.changes(rig.ledger)
    assert len(rig.ledger.log.minutes.runs) == KEPT_MINUTES + 1
    stored = dump(rig.ledger)
    assert sum(len(key) + len(value) for key, value in stored.items() if kind_of(key) == MINUTES) < 20_000


def test_a_flush_writes_the_hours_that_changed_and_deletes_those_that_are_over() -> None:
    rig, codec = Rig(), StateCodec(0)
    for minute in range(MINUTE - 200, MINUTE):
        rig.read("record", minutes=(Timed(rig.ledger.log.read, minute, minute * 60_000, minute * 60_000),))
    stored = stored_by(codec.changes(rig.ledger))
    hours = {key for key in stored if kind_of(key) == MINUTES}
    rig.read("record", minutes=(Timed(200, MINUTE, BASE, BASE),))
    assert len([key for key, _ in codec.changes(rig.ledger) if kind_of(key) == MINUTES]) == 1
    rig.now += (KEPT_MINUTES + 20) * 60_000
    rig.read([])
    gone = {key for key, value in codec.changes(rig.ledger) if kind_of(key) == MINUTES and value is None}
    assert hours <= gone


def test_state_of_before_there_were_minutes_is_read() -> None:
    stored = {key: value for key, value in dump(rich().ledger).items() if kind_of(key) not in (MINUTES, DOUBLED)}
    loaded = load(stored)
    assert not loaded.log.minutes
    assert loaded.log.read == rich().ledger.log.read


# --- state that can't be read ---


def test_another_version_is_refused() -> None:
    stored = dump(rich().ledger)
    for at in (next(iter(stored)), *stored):
        other = bytearray(at)
        other[4] = VERSION + 1
        with pytest.raises(StateError, match=f"version {VERSION + 1}"):
            load({**{key: value for key, value in stored.items() if key != at}, bytes(other): stored[at]})


@pytest.mark.parametrize("kind", sorted(STRUCTS))
def test_another_version_of_a_value_is_refused(kind: bytes) -> None:
    stored = dump(rich().ledger)
    key = next(key for key in stored if kind_of(key) == kind)
    decoded = msgspec.msgpack.decode(stored[key], type=STRUCTS[kind])
    decoded.v = VERSION + 1
    with pytest.raises(StateError, match=f"version {VERSION + 1}"):
        load({**stored, key: msgspec.msgpack.encode(decoded)})


def without(kind: bytes) -> dict[bytes, bytes]:
    return {key: value for key, value in dump(rich().ledger).items() if kind_of(key) != kind}


@pytest.mark.parametrize("kind", [HEAD, SINK])
def test_state_without_a_head_is_refused(kind: bytes) -> None:
    with pytest.raises(StateError, match="head"):
        load(without(kind))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"", b""),
        (b"\0\0\0\0\1", b""),
        (PREFIX.pack(0, VERSION, TOPIC_ID, ord("?")), b""),
        (PREFIX.pack(1, VERSION, TOPIC_ID, CLOCK[0]), b""),
        (PREFIX.pack(0, VERSION, OTHER_ID, SINK[0]) + b"\0\1x", b""),
        (PREFIX.pack(0, VERSION, TOPIC_ID, SINK[0]) + b"\0\5abc", b""),
        (PREFIX.pack(0, VERSION, TOPIC_ID, SINK[0]) + b"\0\1\xff", b""),
        (PREFIX.pack(0, VERSION, TOPIC_ID, LOG_SET[0]) + struct.pack(">BQ", 200, 1), b"\1"),
        (PREFIX.pack(0, VERSION, TOPIC_ID, LOG_SET[0]) + struct.pack(">BQ", 0, 2**63), b"\1"),
        (PREFIX.pack(0, VERSION, TOPIC_ID, LOG_SET[0]) + b"\0", b"\1"),
        (PREFIX.pack(0, VERSION, TOPIC_ID, SINK_SET[0]) + b"\0\7nobody?" + struct.pack(">BQ", 0, 1), b"\1"),
        (PREFIX.pack(0, VERSION, TOPIC_ID, MINUTES[0]) + b"\0\0\0\1", msgspec.msgpack.encode([VERSION, [8], [0], [0], [0], {}])),
        (
            PREFIX.pack(0, VERSION, TOPIC_ID, MINUTES[0]) + b"\0\0\0\1",
            msgspec.msgpack.encode([VERSION, [2**62] * 3, [0] * 3, [0] * 3, [0] * 3, {}]),
        ),
        (PREFIX.pack(0, VERSION, TOPIC_ID, MINUTES[0]) + b"\0\0\0\1", msgspec.msgpack.encode([VERSION, [90], [0, 1], [0], [0], {}])),
        (PREFIX.pack(0, VERSION, TOPIC_ID, DOUBLED[0]) + b"\0\7nobody?\0\0\0\1", msgspec.msgpack.encode([VERSION, [[1, 1]]])),
        (PREFIX.pack(0, VERSION, TOPIC_ID, CLOCK[0]), msgspec.msgpack.encode([VERSION, None, {"nobody": 5}])),
    ],
)
def test_a_key_or_value_that_has_no_place_is_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(StateError):
        load({**dump(rich().ledger), key: value})


@pytest.mark.parametrize("bad", [-1, 2**63, 2**64 - 1, "x", None, 1.5])
def test_an_offset_that_is_none_is_refused(bad: Any) -> None:
    stored = dump(rich().ledger)
    key = next(key for key in stored if kind_of(key) == HEAD)
    head = msgspec.msgpack.decode(stored[key])
    head[Head.__struct_fields__.index("read")] = bad
    with pytest.raises(StateError):
        load({**stored, key: msgspec.msgpack.encode(head)})


@given(seed=st.integers(0, 2**32))
@settings(max_examples=500)
def test_hostile_bytes_are_refused_or_make_a_ledger_that_works(seed: int) -> None:
    dice, stored = random.Random(seed), dict(STORED)
    for _ in range(dice.randint(1, 3)):
        key = dice.choice(sorted(stored))
        value = bytearray(stored.pop(key))
        part = bytearray(key) if dice.random() < 0.3 else value
        what = dice.randrange(4)
        if what == 0 and part:
            part[dice.randrange(len(part))] = dice.randrange(256)
        elif what == 1:
            del part[dice.randrange(len(part) + 1) :]
        elif what == 2:
            part += dice.randbytes(dice.randint(1, 9))
        else:
            part[:] = dice.randbytes(dice.randint(0, 40))
        stored[bytes(part) if part is not value else key] = bytes(value)
    try:
        loaded = StateCodec(0).load("t", stored.items(), POLICIES, BASE)
    except StateError:
        return
    assert loaded is not None
    loaded.begin(BASE)
    loaded.evaluate(BASE)


STORED = dump(rich().ledger)
"""Made once: what the test above damages."""


def test_the_broker_clock_and_the_head_come_back() -> None:
    rig = rich()
    loaded = load(dump(rig.ledger))
    assert loaded.broker_ms == rig.ledger.broker_ms == rig.now + SKEW
    assert loaded.observed_to == rig.ledger.observed_to
    assert loaded.log.absent_counts == {Absent.TRANSACTION_MARKER: 1, Absent.ABORTED: 1, Absent.COMPACTED: 1}


def test_a_state_that_learns_its_topics_id_is_written_anew_under_it() -> None:
    """All of it, and nothing stays under the old one; what is read back says the same."""
    ledger, codec = rich().ledger, StateCodec(0)
    stored = stored_by(codec.changes(ledger, force=True))
    name_topic(ledger, OTHER_ID)
    named = stored_by(codec.changes(ledger, force=True), stored)
    assert {PREFIX.unpack_from(key)[2] for key in stored} == {TOPIC_ID}
    assert named == {
        PREFIX.pack(0, VERSION, OTHER_ID, PREFIX.unpack_from(key)[3]) + key[PREFIX.size :]: value for key, value in stored.items()
    }
    loaded = load(stored)
    name_topic(loaded, OTHER_ID)
    assert stored_by(StateCodec(0).changes(loaded, force=True)) == named, "as one that was read back learns it"
