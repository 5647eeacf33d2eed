"""Complete through: the record time up to which every record of a log is received or explained, for one sink."""

from __future__ import annotations

from stream_app.core.log import LogState
from stream_app.core.sink import SinkState


def bound(log: LogState, sink: SinkState, lateness_ms: int, *, is_log: bool) -> tuple[int | None, bool]:
    """(record time up to which nothing is unresolved, None: to the log's end; whether it is known at all).

    An open transaction holds it back, too: its records are not in the log yet, and will be of a time that is past by then.
    Unknown, and then as it was told last, while the sink was not heard of, its floor is not fixed, the log was never read to
    its end, or the time of something unresolved is not known.
    """
    told = (sink.complete_ms, sink.complete_ms is not None)
    held = [_decided_ms(log)] if log.undecided else []
    if is_log or sink.horizon is not None or not _is_empty(log, sink):
        if log.end_read_ms is None or not (is_log or (sink.horizon is not None and sink.floor is not None)):
            return told
        held += _unresolved(log, sink, is_log=is_log)
    known = [ms for ms in held if ms is not None]
    if len(known) < len(held):
        return told
    if not known:
        return None, True
    return max(min(known) - lateness_ms, sink.complete_ms or 0), True


def _unresolved(log: LogState, sink: SinkState, *, is_log: bool) -> list[int | None]:
    """What holds it back, as times; None: not known when."""
    held: list[int | None] = [None if opening.lowest_ms is None else opening.lowest_ms - 1 for opening in sink.openings]
    if log.unread if is_log else sink.unread:
        held.append(log.unread_held_ms)
    first = log.read if is_log else _first_in_flight(log, sink)
    if first < log.bound:
        lowest = log.timeline.lowest_from(first) if first < log.read else log.latest_ms
        held.append(None if lowest is None else lowest - 1)
    return held


def _decided_ms(log: LogState) -> int | None:
    """A transaction is open: once it is committed its records stand in the log, so nothing later than what came before it is whole.

    Where that was not seen: what stands last below it was written before it, and no later than it was found to be open.
    """
    if log.stable_ms is not None:
        return log.stable_ms
    times = [ms for ms in (log.latest_ms, log.open_since_ms) if ms is not None]
    return min(times) if log.latest_ms is not None else None


def through(log: LogState, sink: SinkState, lateness_ms: int, *, is_log: bool) -> int | None:
    """Complete through as of when the log's end was last read; what was said before never falls, so it is part of the state."""
    held, known = bound(log, sink, lateness_ms, is_log=is_log)
    if not known or log.end_read_ms is None:
        return sink.complete_ms
    reached = log.end_read_ms - lateness_ms
    return max(reached if held is None else min(reached, held), sink.complete_ms or 0)


def _is_empty(log: LogState, sink: SinkState) -> bool:
    """Read to its end, and nothing there that the sink could have received: silence is all that can be expected."""
    start = log.origin if sink.floor is None else sink.floor
    return log.end_read_ms is not None and log.read >= log.bound and not log.has_record(start, log.read) and not sink.unread


def _first_in_flight(log: LogState, sink: SinkState) -> int:
    """First record that is neither received nor explained nor open; the log's read offset when there is none."""
    start = sink.settled if sink.settled is not None else sink.floor
    first = None if start is None else sink.first_unaccounted(start, log.read, log)
    return log.read if first is None else first
