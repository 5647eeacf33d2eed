"""The events that a ledger tells: numbered sink by sink, each with the facts that subscribers need beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stream_app.core import stall
from stream_app.core.events import Event, EventType, pieces
from stream_app.core.log import LogState
from stream_app.core.model import Cause
from stream_app.core.offsets import END, OffsetSet
from stream_app.core.openings import Opening
from stream_app.core.sink import SinkState

DUPLICATES_EVERY_MS = 1_000
"""A key tells duplicates at most this often."""


@dataclass(slots=True)
class Telling:
    """What one partition's ledger has to tell. Nothing is told of sinks that stand in no configuration."""

    topic: str
    partition: int
    events: list[Event] = field(default_factory=list)
    """Told but not flushed yet."""

    def tell(self, kind: EventType, sink: SinkState, log: LogState, now_ms: int, **facts: object) -> None:
        """One event; ``facts`` are fields of :class:`Event`."""
        if not sink.policy.configured:
            return
        sink.sequence += 1
        facts.setdefault("open_count", sum(gap.count for gap in sink.open.values()))
        facts.setdefault("open_gaps", sum(map(len, sink.gaps.values())))
        self.events.append(
            Event(
                kind,
                self.topic,
                self.partition,
                sink.policy.name,
                sink.sequence,
                now_ms,
                horizon=sink.horizon,
                log_start=log.start,
                log_end=log.bound,
                **facts,  # type: ignore[arg-type]  # the facts are fields of Event, named by the callers
            )
        )

    def tell_of(self, offsets: OffsetSet, kind: EventType, sink: SinkState, log: LogState, now_ms: int, **facts: object) -> None:
        """The same of offsets that may be too many for one event, or none."""
        for piece in pieces(offsets):
            self.tell(kind, sink, log, now_ms, ranges=piece, **facts)

    def opened(
        self,
        cause: Cause,
        offsets: OffsetSet,
        sink: SinkState,
        log: LogState,
        now_ms: int,
        *,
        retention_ms: int | None,
        passed_ms: int | None = None,
        timestamps: Mapping[int, int] | None = None,
        reason: str | None = None,
        by: str | None = None,
    ) -> None:
        """``gap.opened``, also for what listings need of it, whether it is told or not.

        ``passed_ms``: when the sink's horizon passed it. ``timestamps``: record times in ms by offset, of the gap's ends at least.
        """
        for piece in pieces(offsets):
            first, last = piece.first(), piece.last()
            assert first is not None
            assert last is not None
            times = {offset: ms for offset, ms in (timestamps or {}).items() if offset in piece}
            # The look knows the ends and the earliest of what it was asked for; of a run that was cut since, only the timeline is sure.
            whole = times and all(start in times and stop - 1 in times for start, stop in piece.runs())
            lowest = min(times.values()) if whole else log.timeline.lowest_from(first)
            expires = None
            if cause is Cause.NOT_RECEIVED and retention_ms is not None and lowest is not None:
                expires = lowest + retention_ms
            sequence = sink.sequence + 1 if sink.policy.configured else 0
            sink.remember(Opening(sequence, cause, first, last + 1, now_ms, lowest))
            self.tell(
                EventType.GAP_OPENED,
                sink,
                log,
                now_ms,
                cause=cause,
                ranges=piece,
                first_timestamp_ms=times.get(first),
                last_timestamp_ms=times.get(last),
                passed_at_ms=passed_ms,
                expires_at_ms=expires,
                reason=reason,
                by=by,
            )

    # --- what comes by time rather than at once -----------------------------------------------------------------------

    def explained_early(self, sink: SinkState, log: LogState, now_ms: int) -> None:
        """What was explained before it was open, now that the log is read that far."""
        for reason, offsets in sink.untold.items():
            known = offsets.within(0, log.read)
            if not known:
                continue
            offsets.remove(0, log.read)
            records = log.without_absent(known & sink.explained[reason])
            self.tell_of(records, EventType.GAP_EXPLAINED, sink, log, now_ms, reason=str(reason))

    def duplicates(self, sink: SinkState, log: LogState, now_ms: int) -> None:
        """What arrived again since they were told last: an offset that did so twice is in two events."""
        if not any(sink.untold_duplicates):
            return
        last = sink.told_duplicates_ms
        if last is not None and last <= now_ms < last + DUPLICATES_EVERY_MS:
            return
        for offsets in sink.untold_duplicates:
            self.tell_of(offsets, EventType.DUPLICATE_DETECTED, sink, log, now_ms)
            offsets.remove(0, END)
        sink.told_duplicates_ms = now_ms

    def stall(self, sink: SinkState, log: LogState, heard_ms: int | None, now_ms: int) -> None:
        """Whether the sink stands still; ``heard_ms``: when the observations were read to their end."""
        if heard_ms is not None and sink.policy.mirrored:  # copies that nobody could read don't stand still
            heard_ms = None if sink.copied_ms is None else min(sink.copied_ms, heard_ms)
        if heard_ms is None:
            return
        why = stall.why_stalled(log, sink, heard_ms)
        if why is not None and not sink.stalled:
            self.tell(EventType.SINK_STALLED, sink, log, now_ms, reason=why)
        elif sink.stalled and why is None:
            self.tell(EventType.SINK_RESUMED, sink, log, now_ms)
        sink.stalled = why is not None

    def checks(self, sink: SinkState, log: LogState, unknown_after_ms: int, now_ms: int) -> None:
        """Whether what is asked of the sink fails for so long that the sink is unknown."""
        match sink.checks.judge(sink.policy.checks, unknown_after_ms, now_ms):
            case True:
                self.tell(EventType.SINK_UNKNOWN, sink, log, now_ms, reason=sink.checks.why())
            case False:
                self.tell(EventType.SINK_KNOWN, sink, log, now_ms)
