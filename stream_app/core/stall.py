"""Whether a sink stands still in one partition while records wait for it.

A partition's ledger knows its own records and reports only. That a sink is alive at all, it is told
(:meth:`stream_app.core.ledger.Ledger.heard_in_topic`): from then on a sink that never touched this partition is awaited here as
well, from its floor on where that is configured, else from where the log ended at that moment: what was written before may have
been received before anybody reported.
"""

from __future__ import annotations

from stream_app.core.log import LogState
from stream_app.core.sink import SinkState


def await_here(log: LogState, sink: SinkState, now_ms: int) -> None:
    """The sink is heard of in the topic: without a horizon here, it is awaited from now on."""
    if sink.policy.configured and sink.stands_at is None:
        sink.awaited = log.end if sink.floor is None else sink.floor
        sink.moved_ms = now_ms


def is_idle(log: LogState, sink: SinkState, read: int) -> bool:
    """Whether nothing waited for the sink of what was read up to here."""
    return sink.stands_at is not None and not log.has_record(sink.stands_at, read)


def lag(log: LogState, sink: SinkState) -> int | None:
    """Records at or above the horizon; None while there is no horizon."""
    horizon = sink.horizon
    if horizon is None:
        return None
    return log.records_within(horizon, log.read) + max(log.bound - max(log.read, horizon), 0)


def why_stalled(log: LogState, sink: SinkState, heard_ms: int) -> str | None:
    """In words, what waits for a sink that has not moved, or had nothing ahead of it, for too long; None: it is not stalled."""
    after, first, moved_ms = sink.policy.stall_after_ms, sink.stands_at, sink.moved_ms
    if after is None or first is None or not log.has_record(first, log.read):
        return None
    # Of a sink that stood still when another worker owned the partition, only what it does since then can tell otherwise.
    still = sink.stalled if moved_ms is None else heard_ms - moved_ms >= after
    if not still:
        return None
    if sink.horizon is None:
        waiting = log.records_within(first, log.read)
        return f"heard of in other partitions, and {waiting} records from offset {first} on wait here"
    return f"{lag(log, sink)} records ahead and the horizon has not moved"
