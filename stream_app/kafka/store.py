"""One Faust table of raw bytes per watched topic, with writes that need no current event.

A flush writes its changelog records itself, in a transaction, so nothing is sent from here: :meth:`StateStore.put` mirrors what
was committed into RocksDB, the changes and the changelog offset they reach in one WriteBatch. RocksDB is a cache: what is in
the changelog counts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import faust
import rocksdict
from faust.stores.rocksdb import Store
from faust.tables.table import Table
from faust.types import TP, EventT, StoreT

from stream_app.core.state import Changes

NO_OP_KEY = b"\x00gapstream.no-op"
"""Key of the event that the driver delivers in place of a transaction marker, so that Faust's recovery sees the end."""
ROCKSDB_OPTIONS = {"block_cache_size": 4 << 20, "write_buffer_size": 2 << 20, "max_write_buffer_number": 2}
"""Per partition; Faust's default of 2 GiB of block cache is per partition too. A state is below 100 kB in most cases."""


class StateStore(Store):
    """RocksDB per partition; see the module."""

    def put(self, partition: int, changes: Changes, changelog_offset: int) -> None:
        """Mirror committed changes; ``changelog_offset``: of the last record of the commit."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in changes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(self.offset_key, str(changelog_offset).encode())
        self._db_for_partition(partition).write(batch)

    def items_of(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values of one partition."""
        return self._visible_items(self._db_for_partition(partition))

    def drop(self, partition: int) -> None:
        """Forget one partition's copy, so that it is read from the changelog again."""
        db = self._dbs.pop(partition, None)
        if db is not None:
            db.close()
            del db
            gc.collect()
        path = str(self.partition_path(partition))
        rocksdict.Rdict.destroy(path)

    def apply_changelog_batch(self, batch: Iterable[EventT[Any]], to_key: Callable[[Any], Any], to_value: Callable[[Any], Any]) -> None:
        """Apply changelog records as they came, each partition's with its offset in one WriteBatch.

        Records of another table's changelog are left out: Faust's recovery hands over what it finds queued of a partition
        that it does not track any more, to whichever table came last. So are those that the copy holds already, for it also
        keeps records until a later recovery, and newer ones may have been mirrored since.
        """
        changes: dict[int, Changes] = {}
        offsets: dict[int, int] = {}
        for event in batch:
            message = event.message
            if message.topic not in self.table.changelog_topic.topics:
                continue
            partition = message.partition
            if partition not in offsets:
                held = self.persisted_offset(message.tp)
                offsets[partition] = -1 if held is None else held
            if message.offset <= offsets[partition]:
                continue
            offsets[partition] = message.offset
            found = changes.setdefault(partition, [])
            if message.key != NO_OP_KEY:
                found.append((cast(bytes, message.key), message.value))
        for partition, found in changes.items():
            self.put(partition, found, offsets[partition])

    def revoke_partitions(self, table: Any, tps: set[TP]) -> None:
        """Close what is handed on, so that its files are unlocked at once."""
        for tp in tps:
            if tp.topic in table.changelog_topic.topics:
                db = self._dbs.pop(tp.partition, None)
                if db is not None:
                    db.close()
        gc.collect()

    async def stop(self) -> None:
        """Close all; part of a clean stop."""
        for db in self._dbs.values():
            db.close()
        self._dbs.clear()
        gc.collect()


class StateTable(Table):  # type: ignore[type-arg]  # Faust's generic has no use here
    """The table of one watched topic."""

    def __init__(self, app: faust.App, name: str, partitions: int | None = None) -> None:
        """``name``: the watched topic."""
        super().__init__(
            app,
            name=name,
            key_type=bytes,
            value_type=bytes,
            partitions=partitions,
            recovery_buffer_size=1000,
            options=dict(ROCKSDB_OPTIONS),
        )

    def _new_store_by_url(self, url: Any) -> StoreT:  # type: ignore[type-arg]  # as above
        return StateStore(
            url,
            self.app,
            self,
            table_name=self.name,
            key_type=bytes,
            key_serializer="raw",
            value_type=bytes,
            value_serializer="raw",
            options=dict(ROCKSDB_OPTIONS),
        )

    @property
    def store(self) -> StateStore:
        """The table's store, by its own type."""
        data = self.data
        assert isinstance(data, StateStore)
        return data
