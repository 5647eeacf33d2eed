from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from stream_app.core.model import Absent, LogRead
from stream_app.core.offsets import OffsetSet
from stream_app.errors import CouldNotTell, GapstreamError, Unavailable
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.reader import LogReader
from stream_app.kafka.trouble import Trouble, TroubleKind
from stream_app.verify import part as module
from stream_app.verify.part import Part, read_parts

ID = b"i" * 16


def test_what_lies_beyond_the_part_is_left_out() -> None:
    one = Part.empty(3, 10, 20)
    one.take(LogRead(10, 16, ID, ((10, 13),), {Absent.ABORTED: ((13, 16),)}))
    assert not one.done
    one.take(LogRead(16, 40, ID, ((17, 30),), {Absent.TRANSACTION_MARKER: ((30, 40),)}, holes=((16, 17),)))
    assert one.done
    assert (one.records, one.holes) == (OffsetSet([(10, 13), (17, 20)]), OffsetSet([(16, 17)]))
    assert one.absent == {Absent.ABORTED: OffsetSet([(13, 16)]), Absent.TRANSACTION_MARKER: OffsetSet()}


def test_an_empty_part_is_done() -> None:
    assert Part.empty(0, 10, 10).done
    assert Part.empty(0, 10, 5).done


class ScriptedReader:
    """A log reader of which each answer is written down: what can be taken, and what is the matter."""

    def __init__(self, *answers: dict[int, LogRead] | Trouble) -> None:
        self._answers = list(answers)
        self.assigned: dict[int, int] = {}

    def assign(self, topic: str, partition: int, position: int, **_: Any) -> None:
        self.assigned[partition] = position

    def unassign(self, topic: str, partition: int) -> None:
        del self.assigned[partition]

    async def wait(self) -> None:
        if not self._answers:
            await asyncio.Event().wait()

    def troubles(self) -> list[Trouble]:
        first = self._answers[0]
        return [first] if isinstance(first, Trouble) else []

    def take(self) -> dict[tuple[str, int], LogRead]:
        first = self._answers.pop(0)
        return {} if isinstance(first, Trouble) else {("orders", partition): read for partition, read in first.items()}


async def read(reader: ScriptedReader, parts: dict[int, Part]) -> list[int]:
    told: list[int] = []
    await read_parts(cast(LogReader, reader), "orders", parts, Isolation.READ_COMMITTED, check_crcs=True, told=told.append)
    return told


async def test_every_partition_is_read_to_its_end_and_no_further() -> None:
    reader = ScriptedReader(
        {0: LogRead(5, 8, ID, ((5, 8),)), 1: LogRead(0, 10, ID, ((0, 10),))},
        Trouble(TroubleKind.NO_LEADER, "orders", 0, "wait"),
        {0: LogRead(8, 100, ID, ((8, 100),))},
    )
    parts = {0: Part.empty(0, 5, 20), 1: Part.empty(1, 0, 10), 2: Part.empty(2, 7, 7)}
    assert sum(await read(reader, parts)) == 25
    assert [parts[number].records for number in parts] == [OffsetSet([(5, 20)]), OffsetSet([(0, 10)]), OffsetSet()]
    assert reader.assigned == {}


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        *((kind, CouldNotTell) for kind in (TroubleKind.RECREATED, TroubleKind.TRUNCATED, TroubleKind.OUT_OF_RANGE)),
        *((kind, Unavailable) for kind in (TroubleKind.UNKNOWN_TOPIC, TroubleKind.REFUSED, TroubleKind.UNSUPPORTED)),
    ],
)
async def test_what_does_not_pass_ends_it(kind: TroubleKind, raised: type[GapstreamError]) -> None:
    with pytest.raises(raised, match="so it is"):
        await read(ScriptedReader(Trouble(kind, "orders", 0, "so it is")), {0: Part.empty(0, 0, 5)})


async def test_silence_ends_it_with_the_last_that_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    with pytest.raises(Unavailable, match=r"nothing more of orders for 0.05 s: start the broker"):
        await read(ScriptedReader(Trouble(TroubleKind.UNREACHABLE, "orders", 0, "start the broker")), {0: Part.empty(0, 0, 5)})
