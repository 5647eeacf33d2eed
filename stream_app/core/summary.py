"""What each sink has and lacks by minute of record time, told anew where it changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from stream_app.core.log import LogState
from stream_app.core.minutes import BLOCK, Span
from stream_app.core.model import Cause, MinuteRow, Reason
from stream_app.core.offsets import OffsetSet, drop

if TYPE_CHECKING:
    from stream_app.core.ledger import Ledger
    from stream_app.core.sink import SinkState

BLOCKS_AT_ONCE = 8
"""Of one sink, so many blocks are told with one flush, the newest first: about 3 ms of work."""
_HELD = 2
"""Blocks of a sink that are held in memory, since records still arrive in them."""


class Summaries:
    """What is told of one ledger by minute; made when a worker takes it over."""

    def __init__(self) -> None:
        """Nothing is told yet: the sinks are touched everywhere."""
        self._due: dict[str, set[int]] = {}
        self._held: dict[str, dict[int, dict[int, MinuteRow | None]]] = {}

    def changed(self, ledger: Ledger) -> Iterator[tuple[str, int, list[MinuteRow]]]:
        """Sink, block and its minutes, of blocks in which something may have changed; without minutes: there is nothing in it.

        Of a sink that was forgotten, nothing is in any block.
        """
        minutes = ledger.log.minutes
        moved = minutes.take_told()
        gone, ledger.gone = ledger.gone - ledger.sinks.keys(), set()
        for name in gone:
            self._due.pop(name, None)
            self._held.pop(name, None)
            yield from ((name, block, []) for block in minutes.blocks() | moved)
        for sink in ledger.judged():
            name = sink.policy.name
            touched = {minute for first, stop in sink.touched.take() for minute in minutes.touching(first, stop)}
            held = self._held.setdefault(name, {})
            for minute in touched:
                held.get(minute // BLOCK, {}).pop(minute, None)
            for block in moved:
                held.pop(block, None)
            due = self._due.setdefault(name, set())
            due |= {minute // BLOCK for minute in touched} | moved
            for block in sorted(due)[-BLOCKS_AT_ONCE:]:
                due.discard(block)
                yield name, block, self._block(sink, ledger.log, block)
            for block in sorted(held)[:-_HELD]:
                del held[block]

    def _block(self, sink: SinkState, log: LogState, block: int) -> list[MinuteRow]:
        known = self._held[sink.policy.name].setdefault(block, {})
        wanted = [minute for minute in range(block * BLOCK, (block + 1) * BLOCK) if minute not in known]
        for minute, spans in log.minutes.spans(wanted, log.read).items():
            known[minute] = minute_row(sink, log, minute, spans)
        return [row for _, row in sorted(known.items()) if row is not None]


def minute_row(sink: SinkState, log: LogState, minute: int, spans: Collection[Span]) -> MinuteRow | None:
    """What a sink has and lacks of the records in ``spans``; None: nothing is known of it there."""
    received = missing = opened = explained = 0
    first = last = None
    for span in spans:
        count, low, high = _received(sink, log, span)
        if low is not None and high is not None:
            first = low if first is None else min(first, low)
            last = high if last is None else max(last, high)
        received += count
        still = sum(sink.open[cause].count_within(span.first, span.stop) for cause in Cause if sink.open[cause])
        lacking = {reason: some.count_within(span.first, span.stop) for reason, some in sink.explained.items() if some}
        accepted = lacking.pop(Reason.ACKNOWLEDGED, 0)
        opened, missing, explained = opened + still, missing + still + accepted, explained + sum(lacking.values())
    duplicates = sink.doubled.counts.get(minute, 0)
    if not spans or not (received or missing or explained or duplicates):
        return None
    low_ms, high_ms = min(span.run.low_ms for span in spans), max(span.run.high_ms for span in spans)
    return MinuteRow(minute, received, duplicates, first, last, missing, opened, explained, low_ms, high_ms)


def _received(sink: SinkState, log: LogState, span: Span) -> tuple[int, int | None, int | None]:
    """How many records of a span the sink has, and the lowest and the highest of them."""
    stop, held = span.stop, span.run.held
    first = max(span.first, sink.floor or 0, log.origin)
    if first >= stop or (held is not None and sink.settled is None):
        return 0, None, None
    settled = max(sink.settled or 0, first)
    found = OffsetSet([(first, min(settled, stop) - (span.run.tail if held is not None else 0))] if first < min(settled, stop) else ())
    for known in (*sink.open.values(), *sink.explained.values(), sink.unread):
        drop(found, known)
    if held is not None:
        lacking = sum(known.count_within(first, stop) for known in (*sink.open.values(), *sink.explained.values(), sink.unread) if known)
        return (held - lacking, found.first(), found.last()) if held > lacking else (0, None, None)
    log.without_absent(found)
    if settled < stop and sink.received:
        found.update(sink.received.within(settled, stop))
    return found.count, found.first(), found.last()
