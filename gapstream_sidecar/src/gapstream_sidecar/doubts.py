"""What is known of where a partition's log ends, and what follows from that for what headers of replayed records tell. Pure.

Headers may be wrong, and gapstream rejects an observation whole that holds what is not in the log.
"""

from __future__ import annotations

from gapstream_sidecar.runs import RunList

NOWHERE = -1
"""Instead of an end: the topic is watched, but there is no such partition, or not yet."""
UNWATCHED = -2
"""Instead of an end: nobody watches the topic, if there is one."""
END_FRESH_S = 10.0
"""A log's end is asked for again after so long, also where there was no answer: topics are made anew, and logs lose their ends."""
NOWHERE_S = 15.0
"""So long it must be answered that nobody watches a partition before that is believed: its topic may be on its way to be made."""
ASK_AGAIN_S = 2.0
"""Until then it is asked for again so often, and not before that."""


class LogEnd:
    """Where one partition's log ends, as far as it was asked for."""

    __slots__ = ("_fresh_until", "_nowhere_since", "_untold_until", "ask_at", "asked_until", "end")

    def __init__(self) -> None:
        self.end = 0
        """As it was found last."""
        self.asked_until = float("-inf")
        """It is being asked for; until then the answer is waited for."""
        self.ask_at = float("-inf")
        """It is not asked for before that."""
        self._fresh_until = float("-inf")
        self._untold_until = float("-inf")
        """There was no answer, and none is asked for again until then."""
        self._nowhere_since: float | None = None
        """Since when every answer is that nobody watches the partition."""

    @property
    def awaited_until(self) -> float:
        """It is being asked for until then, or will be then."""
        return max(self.asked_until, self.ask_at)

    def answered(self, answer: int | None, now: float) -> None:
        """It was asked for: the end, ``NOWHERE`` or ``UNWATCHED``, or None where there was no answer."""
        self.asked_until = float("-inf")
        if answer in (NOWHERE, UNWATCHED):
            self._nowhere_since = now if self._nowhere_since is None else self._nowhere_since
            if self._is_believed_nowhere(now):
                self._fresh_until = now + END_FRESH_S
            else:
                self.ask_at = now + ASK_AGAIN_S
        elif answer is None:
            self._untold_until = now + END_FRESH_S
        else:
            self.end, self._fresh_until, self._nowhere_since = answer, now + END_FRESH_S, None

    def is_nowhere(self, now: float) -> bool:
        """Whether it is known, and believed, that nobody watches the partition."""
        return self._is_believed_nowhere(now) and now < self._fresh_until

    def _is_believed_nowhere(self, now: float) -> bool:
        return self._nowhere_since is not None and now - self._nowhere_since >= NOWHERE_S

    def is_untold(self, now: float) -> bool:
        """Whether there was no answer just now: what headers tell has to be believed."""
        return now < self._untold_until

    def covers(self, stop: int, now: float) -> bool:
        """Whether it is known that everything below ``stop`` is in the log."""
        return stop <= self.end and now < self._fresh_until


def split(runs: RunList, end: int) -> tuple[RunList, RunList]:
    """What lies below the log's end, and what beyond; a run that lies on both sides is cut.

    Of a span that a wrong header made, what is below may cover more than was received. But it is told as unobserved, and that is
    true; kept whole it would be rejected, and what was received there would be missing.
    """
    beyond = RunList()
    beyond.bounds = runs.bounds[:]
    return beyond.take_below(end), beyond
