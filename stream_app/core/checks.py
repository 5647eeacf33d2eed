"""Whether what is asked of a sink answers: a sink whose checks fail for long enough is unknown, and that is told once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(slots=True)
class Checks:
    """The checks of one sink in one partition, by name (``group``: its commits are asked for)."""

    unknown: dict[str, str] = field(default_factory=dict)
    """Those that failed for long enough, with the reason as it was told: kept, so that whoever takes over tells it no second time."""
    failing: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Since when by this worker's clock, and why; of this owner, not kept."""
    passed: set[str] = field(default_factory=set)
    """Those that answered this owner last; not kept."""

    def note(self, name: str, failure: str | None, now_ms: int) -> None:
        """A check answered (None), or why it did not."""
        if failure is None:
            self.failing.pop(name, None)
            self.passed.add(name)
        else:
            self.passed.discard(name)
            since, _ = self.failing.get(name, (now_ms, failure))
            self.failing[name] = since, failure

    def fail_at_once(self, name: str, failure: str) -> None:
        """A check of which it is known that it fails, so that it is not waited for."""
        self.passed.discard(name)
        self.failing[name] = 0, failure

    def stands_open(self, name: str) -> bool:
        """Whether it failed and did not answer since, whoever asked."""
        return name in self.failing or (name in self.unknown and name not in self.passed)

    def late(self, name: str, reason: str, since_ms: int) -> None:
        """A check that was begun at ``since_ms`` has not answered yet: failing since then, unless it did before.

        It is not known any more how things stand, but neither did it fail: what it answers at last counts.
        """
        if name not in self.failing:
            self.failing[name] = since_ms, reason
            self.passed.discard(name)

    def judge(self, known: Collection[str], unknown_after_ms: int, now_ms: int) -> bool | None:
        """Decide anew; True: the sink is unknown from now on, False: it is known again, None: it stays what it was.

        ``known``: the checks that the sink has; what another configuration had counts no more.
        """
        before = bool(self.unknown)
        stay = {name: reason for name, reason in self.unknown.items() if name in known and name not in self.passed}
        fail = {name: why for name, (since, why) in self.failing.items() if name in known and now_ms - since >= unknown_after_ms}
        self.unknown = stay | fail
        after = bool(self.unknown)
        return None if after == before else after

    def why(self) -> str | None:
        """Why the sink is unknown; None: it is not."""
        return "; ".join(self.unknown.values()) or None
