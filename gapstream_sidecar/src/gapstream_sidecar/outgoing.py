"""What is to be reported about one partition, in layers: each will be one observation. Pure; the outbox moves them.

A layer's number is its sequence from the day it begins, because it may travel under that number in a commit's metadata before
it is sent.
"""

from __future__ import annotations

from array import array
from collections import deque

from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.doubts import LogEnd
from gapstream_sidecar.pace import Pace
from gapstream_sidecar.runs import RUN_BYTES, RunList

RECEIVED = "received"
QUARANTINED = "quarantined"

LAYER_BYTES = 256
"""Memory of a layer beside its runs: object, array, deque slot, dictionary entry (measured: 230)."""

Label = tuple[str, str | None]
"""Status and reason."""


class Layer:
    """Offsets that one observation will hold: each offset once, so that a second receipt needs another layer."""

    __slots__ = ("checked", "number", "origin", "reason", "runs", "serial", "status")

    def __init__(
        self,
        status: str,
        reason: str | None,
        serial: int,
        number: int,
        runs: RunList | None = None,
        origin: tuple[str, int] | None = None,
        *,
        checked: bool = True,
    ) -> None:
        self.status = status
        self.reason = reason
        self.serial = serial
        """Rises with every layer of the partition: the order of sending."""
        self.number = number
        """Its sequence, if it is ours."""
        self.runs = RunList() if runs is None else runs
        self.origin = origin
        """Source and sequence of another owner who said it first."""
        self.checked = checked
        """Not what headers of replayed records tell: they may be wrong, and gapstream rejects the whole of what isn't in the log."""

    @property
    def label(self) -> Label:
        """Offsets with the same one may share an observation."""
        return self.status, self.reason

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return LAYER_BYTES + RUN_BYTES * len(self.runs) + 4 * len(self.reason or "")


class InFlight:
    """The one observation of a partition that is not yet acknowledged."""

    __slots__ = ("layer", "leased", "payload")

    def __init__(self, layer: Layer, payload: bytes, leased: int) -> None:
        self.layer = layer
        self.payload = payload
        self.leased = leased

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return self.layer.size + len(self.payload)


class Outgoing:
    """Everything to be reported about one partition by one source.

    ``via``: the partition whose replayed records tell it with their headers; None for what was delivered in the partition
    itself. What headers tell has a source of its own for each such partition, because it travels with that one's commits:
    whoever inherits these must neither find a number that others tell of by then with more offsets, nor tell one of them
    before lower ones that travel elsewhere.
    """

    __slots__ = (
        "ahead",
        "edge",
        "held_until",
        "in_flight",
        "key",
        "launched",
        "leased",
        "log_end",
        "lost",
        "lost_number",
        "lost_serial",
        "number",
        "pace",
        "queue",
        "queued_bytes",
        "retry_at",
        "run_limit",
        "serial",
        "since",
        "slow",
        "source",
        "tails",
        "told",
        "unknown",
        "urgent",
        "version",
        "via",
    )

    def __init__(self, key: Key, via: Key | None, source: str, log_end: LogEnd, run_limit: int) -> None:
        self.key = key
        self.via = via
        self.source = source
        self.queue: deque[Layer] = deque()
        self.tails: dict[Label, Layer] = {}
        """The queued layers that still take offsets."""
        self.queued_bytes = 0
        self.lost = RunList()
        """Dropped for want of memory, to be reported as unobserved in the place of the newest of the layers it was."""
        self.lost_serial = self.lost_number = 0
        self.in_flight: InFlight | None = None
        self.serial = 0
        """Of the newest layer."""
        self.number = 0
        """The last one that was given to a layer."""
        self.launched = 0
        """The last one that was sent."""
        self.urgent = -1
        """Layers up to this serial don't wait for their turn."""
        self.pace = Pace()
        self.edge: int | None = None
        """One past the offset that was told last; what follows it was not skipped to."""
        self.since = 0.0
        """When there was something to send, by the reporter's clock."""
        self.held_until = float("-inf")
        """Nothing is sent before that."""
        self.log_end = log_end
        self.retry_at = 0.0
        """When an observation that failed is tried again."""
        self.run_limit = run_limit
        self.slow = False
        """An acknowledgement did not come in time, and none has come since: commits don't wait for this partition."""
        self.unknown = False
        """The brokers don't know the topic of observations, or this partition of it: nobody watches."""
        self.ahead: tuple[int, int] | None = None
        """Of a consumer that commits by itself: where it was handed out records first, and how far it may be."""
        self.told = 0
        """One past the highest offset that was sent."""
        self.leased = 0
        """How far the last acknowledged observation lets it go."""
        self.version = 0
        """Changes when what is not acknowledged changes in any other way than by one more offset at its end."""

    @property
    def name(self) -> tuple[Key, Key | None]:
        """The partition, and which one tells of it."""
        return self.key, self.via

    @property
    def replayed(self) -> bool:
        """Whether headers of replayed records tell it, which may be wrong."""
        return self.via is not None

    @property
    def carrier(self) -> Key:
        """The partition with whose commits it travels."""
        return self.key if self.via is None else self.via

    def is_waiting(self) -> bool:
        """Whether there is something that is not in flight."""
        return bool(self.queue or self.lost)

    @property
    def kept_until(self) -> float:
        """Nothing is sent before that: it is held, or headers tell it and its log's end is being asked for, or will be then."""
        return max(self.held_until, self.log_end.awaited_until) if self.replayed else self.held_until

    @property
    def doubted(self) -> list[Layer]:
        """What headers tell and nobody has checked yet."""
        return [layer for layer in self.queue if not layer.checked]

    @property
    def idle(self) -> bool:
        """Whether everything is acknowledged."""
        return self.in_flight is None and not self.queue and not self.lost

    @property
    def loses_next(self) -> bool:
        """Whether what was dropped is sent next: numbers rise, and a layer may be older that was not queued when others were dropped."""
        return bool(self.lost) and not (self.queue and self.queue[0].number < self.lost_number)

    @property
    def next_serial(self) -> int:
        """Of what is sent next; there must be something waiting."""
        return self.lost_serial if self.loses_next else self.queue[0].serial

    def settled(self, serial: int) -> bool:
        """Whether everything up to the layer ``serial`` is acknowledged."""
        if self.in_flight is not None and self.in_flight.layer.serial <= serial:
            return False
        return not (self.lost and self.lost_serial <= serial) and all(layer.serial > serial for layer in self.queue)

    def ends_at(self, offset: int | None) -> bool:
        """Whether the newest layer ends with a run up to ``offset``: as far as a commit of ``offset`` says by itself."""
        return bool(self.queue) and self.queue[-1].runs.bounds[-1:] == array("q", [offset or 0])
