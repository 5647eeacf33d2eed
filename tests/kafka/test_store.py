"""The local copy of a changelog: state and offset together, or neither; forgotten, handed on, and read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faust
import pytest
import rocksdict
from faust.types import TP

from stream_app.kafka.store import NO_OP_KEY, StateStore, StateTable

CHANGELOG = "gap-orders-changelog"


def open_store(folder: Path) -> StateStore:
    """As the application makes it."""
    app = faust.App("gap", broker="kafka://127.0.0.1:1", store="rocksdb://", datadir=str(folder), autodiscover=False)
    app.finalize()
    return StateTable(app, "orders").store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    made = open_store(tmp_path)
    yield made
    made.revoke_partitions(made.table, {TP(CHANGELOG, partition) for partition in range(8)})


def event(offset: int, key: bytes, value: bytes | None, partition: int = 0, topic: str = CHANGELOG) -> Any:
    """A record of a changelog as Faust's recovery hands it on."""
    message = SimpleNamespace(topic=topic, partition=partition, offset=offset, key=key, value=value, tp=TP(topic, partition))
    return SimpleNamespace(message=message)


def apply(store: StateStore, *events: Any) -> None:
    store.apply_changelog_batch(events, to_key=lambda key: key, to_value=lambda value: value)


def kept(store: StateStore, partition: int = 0) -> dict[bytes, bytes]:
    return dict(store.items_of(partition))


def offset(store: StateStore, partition: int = 0) -> int | None:
    return store.persisted_offset(TP(CHANGELOG, partition))


def test_the_tables_changelog_is_the_one_that_is_made(store: StateStore) -> None:
    assert list(store.table.changelog_topic.topics) == [CHANGELOG]


def test_an_empty_store(store: StateStore) -> None:
    assert kept(store) == {}
    assert offset(store) is None


def test_a_commit_is_mirrored_with_its_offset(store: StateStore) -> None:
    store.put(0, [(b"a", b"1"), (b"b", b"2"), (b"c", b"")], 7)
    assert kept(store) == {b"a": b"1", b"b": b"2", b"c": b""}
    assert offset(store) == 7
    store.put(0, [(b"a", None), (b"b", b"3"), (b"never", None)], 12)
    assert kept(store) == {b"b": b"3", b"c": b""}
    assert offset(store) == 12


def test_state_and_offset_are_one_write(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between two writes would leave one without the other."""
    written: list[Any] = []

    class Recorder:
        def get(self, key: bytes) -> bytes | None:
            return b"7" if written else None

        def write(self, batch: rocksdict.WriteBatch) -> None:
            written.append(len(batch))

        def put(self, key: bytes, value: bytes) -> None:
            raise AssertionError("a write of its own")

        delete = put

    monkeypatch.setattr(store, "_db_for_partition", lambda _partition: Recorder())
    store.put(0, [(b"a", b"1"), (b"b", None)], 7)
    assert written == [3]
    apply(store, event(8, b"a", b"1"), event(9, b"b", b"2"), event(20, NO_OP_KEY, b""))
    assert written == [3, 3]


def test_partitions_are_kept_apart(store: StateStore) -> None:
    store.put(0, [(b"a", b"0")], 1)
    store.put(3, [(b"a", b"3")], 5)
    assert (kept(store, 0), kept(store, 3)) == ({b"a": b"0"}, {b"a": b"3"})
    assert (offset(store, 0), offset(store, 3), offset(store, 1)) == (1, 5, None)


def test_a_changelog_is_applied_in_its_order(store: StateStore) -> None:
    apply(
        store,
        event(0, b"a", b"1"),
        event(1, b"b", b"1"),
        event(0, b"a", b"other", partition=2),
        event(2, b"a", b"2"),
        event(3, b"b", None),
        event(4, b"c", b"\x00\xff"),
    )
    assert kept(store) == {b"a": b"2", b"c": b"\x00\xff"}
    assert kept(store, 2) == {b"a": b"other"}
    assert (offset(store), offset(store, 2)) == (4, 0)


def test_what_stands_in_for_a_marker_moves_the_offset_only(store: StateStore) -> None:
    apply(store, event(0, b"a", b"1"), event(5, NO_OP_KEY, b""))
    assert kept(store) == {b"a": b"1"}
    assert offset(store) == 5
    apply(store, event(9, NO_OP_KEY, b"", partition=1))
    assert (kept(store, 1), offset(store, 1)) == ({}, 9)


def test_records_of_another_changelog_are_left_out(store: StateStore) -> None:
    apply(store, event(0, b"a", b"1"), event(900, b"x", b"foreign", topic="gap-payments-changelog"))
    assert kept(store) == {b"a": b"1"}
    assert offset(store) == 0
    apply(store, event(900, b"x", b"foreign", partition=4, topic="gap-payments-changelog"))
    assert (kept(store, 4), offset(store, 4)) == ({}, None)


def test_what_the_copy_holds_already_is_not_applied_again(store: StateStore) -> None:
    """Faust keeps what it read until a later recovery: by then the owner may have written more."""
    store.put(0, [(b"old", None), (b"new", b"1")], 20)
    apply(store, event(12, b"old", b"1"), event(13, b"new", b"0"), event(20, b"new", b"0"), event(9, b"a", b"1", partition=1))
    assert (kept(store), offset(store)) == ({b"new": b"1"}, 20)
    assert (kept(store, 1), offset(store, 1)) == ({b"a": b"1"}, 9)
    apply(store, event(20, b"new", b"0"), event(22, b"new", b"2"), event(22, b"new", b"3"))
    assert (kept(store), offset(store)) == ({b"new": b"2"}, 22)


def test_dropped_state_is_read_from_the_changelog_again(store: StateStore) -> None:
    store.put(0, [(b"a", b"1")], 7)
    store.put(1, [(b"a", b"1")], 7)
    store.drop(0)
    assert offset(store) is None, "Faust reads from the beginning where there is no offset"
    assert kept(store) == {}
    assert offset(store, 1) == 7
    apply(store, event(0, b"b", b"2"))
    assert (kept(store), offset(store)) == ({b"b": b"2"}, 0)


def test_what_was_never_there_can_be_dropped(store: StateStore) -> None:
    store.drop(5)
    assert offset(store, 5) is None


def test_a_partition_handed_on_is_closed_and_can_be_opened_by_another(store: StateStore, tmp_path: Path) -> None:
    store.put(0, [(b"a", b"1")], 7)
    store.put(1, [(b"b", b"1")], 8)
    other = open_store(tmp_path)
    with pytest.raises(Exception, match="lock"):
        offset(other, 0)
    store.revoke_partitions(store.table, {TP(CHANGELOG, 0), TP("gap-payments-changelog", 1)})
    assert (kept(other, 0), offset(other, 0)) == ({b"a": b"1"}, 7)
    with pytest.raises(Exception, match="lock"):
        offset(other, 1)
    other.revoke_partitions(other.table, {TP(CHANGELOG, 0)})


async def test_a_stop_closes_all_and_keeps_all(store: StateStore, tmp_path: Path) -> None:
    store.put(0, [(b"a", b"1")], 7)
    store.put(1, [(b"b", b"1")], 8)
    await store.stop()
    other = open_store(tmp_path)
    assert (kept(other, 0), kept(other, 1), offset(other, 1)) == ({b"a": b"1"}, {b"b": b"1"}, 8)
    await other.stop()
