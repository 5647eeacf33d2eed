"""Fetching from one broker: one connection, the next request out before the last answer is parsed.

A partition is asked for again once its last answer was taken; that alone holds the broker back when the owner is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from stream_app.kafka.assigned import Assigned, Key, Question
from stream_app.kafka.batches import BatchParser, last_batch
from stream_app.kafka.cluster import Cluster, read_fetch, refusal
from stream_app.kafka.connection import Connection, Frame
from stream_app.kafka.failures import BrokerError, KafkaError, MalformedError
from stream_app.kafka.protocol import FETCH_BY_ID, Api, ErrorCode, Isolation, Section, Want, encode_fetch
from stream_app.kafka.trouble import TroubleKind

SLICE = 4096
"""Batches per slice: 2 to 6 ms, so that the event loop is never kept from others for long."""
GUESS_MIN_BYTES = 1 << 16
"""A smaller answer is parsed before the next one could be asked for."""
GUESS_MIN_BATCH = 2048
"""Looking ahead costs 0.2 us a batch: worth it where batches are large."""
HOLD_S = 0.02
"""So long a request waits for partitions whose last answer was not taken yet."""
HELD_WAIT_MS = 50
"""Longest wait of the broker while such partitions are left out: they have to wait for its answer."""
PARTITION_MIN_BYTES = 1 << 20
"""A partition's share of a large fetch is not made smaller than this, Kafka's own max.partition.fetch.bytes."""
BATCH_MAX_BYTES = 1 << 27
"""A batch that a broker cuts off is asked for whole up to this size. Since Fetch v3 brokers send the first batch whole, whatever
its size; a length beyond that is more likely damaged than true."""
STUCK_AFTER_S = 10.0
RETRY_S = (0.05, 1.0)
"""First and longest pause after an answer that made no progress where there should be data."""


class Host(Protocol):
    """What a lane needs of the reader."""

    def is_ready(self, part: Assigned) -> None:
        """Something can be taken."""

    def is_lost(self, part: Assigned, failure: KafkaError) -> None:
        """The lane does not fetch it any more: it has to be located anew."""

    def tell(self, kind: TroubleKind, part: Assigned, message: str) -> None:
        """A fact for the owner."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes and times of fetches."""

    max_bytes: int
    partition_max_bytes: int | None
    """None: an equal share of ``max_bytes``."""
    max_wait_ms: int


@dataclass(frozen=True, slots=True)
class _Ask:
    part: Assigned
    offset: int
    epoch: int


@dataclass(frozen=True, slots=True)
class _Flight:
    """A Fetch under way."""

    asks: dict[tuple[bytes | str, int], _Ask]
    answer: asyncio.Future[Frame]


class Lane:
    """The partitions that one broker leads and that are read under one isolation level (a Fetch has one for all)."""

    def __init__(self, node: int, isolation: Isolation, cluster: Cluster, limits: Limits, host: Host) -> None:
        self.node = node
        self.isolation = isolation
        self._cluster = cluster
        self._limits = limits
        self._host = host
        self._parts: dict[Key, Assigned] = {}  # in the order to be asked for: served ones go to the end (KIP-74)
        self._wake = asyncio.Event()
        self._renew = False
        self.by_name = False
        """Whether the broker names topics by name only: then a topic made anew has to be looked for."""

    @property
    def parts(self) -> list[Assigned]:
        """What is fetched here."""
        return [*self._parts.values()]

    def add(self, part: Assigned) -> None:
        """Fetches ``part`` from now on, until it is removed or lost."""
        self._parts[part.key] = part
        self._wake.set()

    def remove(self, part: Assigned) -> None:
        """Stops; what is in flight for it is dropped."""
        if self._parts.get(part.key) is part:
            del self._parts[part.key]
            self._wake.set()

    def wake(self) -> None:
        """Something was taken: more may be asked for."""
        self._wake.set()

    async def run(self) -> None:
        """Fetches until cancelled; failures of the connection send every partition back to be located."""
        while True:
            while not self._parts:
                self._wake.clear()
                await self._wake.wait()
            connection: Connection | None = None
            try:
                connection = await self._cluster.open(self.node)
                await self._serve(connection)
            except KafkaError as failure:
                for part in self.parts:
                    self._lose(part, failure)
            finally:
                if connection is not None:
                    connection.close()

    async def _serve(self, connection: Connection) -> None:
        """Fetches over ``connection`` until there is nothing to fetch, or a fresh connection is wanted."""
        version = connection.version(Api.FETCH)
        self.by_name = version < FETCH_BY_ID
        flight: _Flight | None = None
        self._renew = False
        while not self._renew:
            flight = flight or await self._next_flight(connection, version)
            if flight is None:
                return
            frame = await flight.answer
            try:
                answers = self._match(flight, read_fetch(frame, version), version)
                in_turn = _in_turn(flight, answers)
                flight = self._look_ahead(connection, version, frame.view, answers)
                for ask, section in answers:
                    await self._read(frame.view, ask, section, in_turn=ask in in_turn)
            finally:
                frame.release()

    # ------------------------------------------------------------------------------------------------- requests

    async def _next_flight(self, connection: Connection, version: int) -> _Flight | None:
        """Waits until something can be asked for, and a little for what was not taken yet; None: nothing is left to fetch."""
        loop = asyncio.get_running_loop()
        hold_until: float | None = None
        while self._parts:
            now = loop.time()
            asks = [*self._askable(now)]
            pauses = [part.not_before for part in self._parts.values() if part.not_before > now]
            held = len(asks) + len(pauses) < len(self._parts)
            if asks and (not held or (hold_until is not None and now >= hold_until)):
                return self._send(connection, version, asks, self._wait_ms(held, min(pauses, default=None), now))
            if asks and hold_until is None:
                hold_until = now + HOLD_S
            until = min([*pauses, *([hold_until] if asks and hold_until is not None else [])], default=None)
            self._wake.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._wake.wait()
            except TimeoutError:
                continue
        return None

    def _askable(self, now: float) -> Iterator[_Ask]:
        for part in self._parts.values():
            if part.ready is None and part.not_before <= now:
                assert part.position is not None
                yield _Ask(part, part.position, part.epoch)

    def _wait_ms(self, held: bool, pause: float | None, now: float) -> int:
        wait_ms = min(self._limits.max_wait_ms, HELD_WAIT_MS) if held else self._limits.max_wait_ms
        return wait_ms if pause is None else min(wait_ms, max(1, int((pause - now) * 1000)))

    def _send(self, connection: Connection, version: int, asks: list[_Ask], max_wait_ms: int) -> _Flight:
        share = self._limits.partition_max_bytes or max(PARTITION_MIN_BYTES, self._limits.max_bytes // len(asks))
        wants, by_key = [], {}
        for ask in asks:
            part = ask.part
            assert part.leader is not None
            assert part.topic_id is not None
            size = max(share, part.want_bytes)
            wants.append(Want(part.topic, part.topic_id, part.partition, ask.offset, part.leader.epoch, ask.epoch, size))
            by_key[(part.topic_id if version >= FETCH_BY_ID else part.topic, part.partition)] = ask
        max_bytes = max(self._limits.max_bytes, *(want.max_bytes for want in wants))
        body = encode_fetch(version, wants, isolation=self.isolation, max_wait_ms=max_wait_ms, max_bytes=max_bytes)
        return _Flight(by_key, connection.send(Api.FETCH, version, body))

    def _look_ahead(self, connection: Connection, version: int, view: memoryview, answers: list[tuple[_Ask, Section]]) -> _Flight | None:
        """Sends the next request before this answer is parsed, where a short look tells what comes next for all partitions.

        If parsing then disagrees (damage, the stable end), the answer to a wrong guess is dropped.
        """
        if self._renew or sum(section.end - section.start for _, section in answers) < GUESS_MIN_BYTES:
            return None
        guesses: dict[Key, _Ask] = {}
        for ask, section in answers:
            part = ask.part
            if section.error or section.diverging or not self._is_current(ask):
                return None
            guess: tuple[int, int] | None = (ask.offset, ask.epoch)
            if section.end > section.start:
                guess = last_batch(view, section.start, section.end, GUESS_MIN_BATCH)
            if guess is None:
                return None
            guesses[part.key] = _Ask(part, *guess)
        now = asyncio.get_running_loop().time()
        for ask in self._askable(now):
            guesses.setdefault(ask.part.key, ask)
        if any(part.ready is not None or part.key not in guesses for part in self._parts.values()):
            return None
        served = [ask.part.key for ask, section in answers if section.end > section.start]
        order = [*(key for key in self._parts if key not in served), *served]
        return self._send(connection, version, [guesses[key] for key in order], self._limits.max_wait_ms)

    # -------------------------------------------------------------------------------------------------- answers

    def _is_current(self, ask: _Ask) -> bool:
        return self._parts.get(ask.part.key) is ask.part and ask.part.position == ask.offset

    def _match(self, flight: _Flight, sections: list[Section], version: int) -> list[tuple[_Ask, Section]]:
        """The answer's partitions beside what was asked; one that is left out is lost."""
        asks = dict(flight.asks)
        pairs = []
        for section in sections:
            ask = asks.pop((section.topic_id if version >= FETCH_BY_ID else section.topic, section.partition), None)
            if ask is not None:
                pairs.append((ask, section))
        for ask in asks.values():
            if self._is_current(ask):
                self._lose(ask.part, MalformedError(f"broker {self.node} left {ask.part.topic}/{ask.part.partition} out of its answer"))
        return pairs

    async def _read(self, view: memoryview, ask: _Ask, section: Section, *, in_turn: bool) -> None:
        part = ask.part
        if not self._is_current(ask):
            return
        if section.error == ErrorCode.OFFSET_OUT_OF_RANGE:
            part.question = Question.OUT_OF_RANGE
            self._lose(part, refusal(section.error, f"fetch {part.topic}/{part.partition} from offset {part.position}"))
        elif section.error:
            self._lose(part, refusal(section.error, f"fetch {part.topic}/{part.partition}"))
        elif section.diverging is not None:
            part.question = Question.DIVERGED
            self._lose(
                part,
                BrokerError(ErrorCode.FENCED_LEADER_EPOCH, f"{part.topic}/{part.partition} may have been truncated; it is looked into"),
            )
        else:
            parser = part.parser(view, section)
            parser.expect_epochs(part.epoch, part.leader.epoch if part.leader is not None else -1)
            while True:
                if parser.step(SLICE):
                    break
                await asyncio.sleep(0)
            if self._is_current(ask):
                self._accept(part, parser, section, in_turn=in_turn)

    def _accept(self, part: Assigned, parser: BatchParser, section: Section, *, in_turn: bool) -> None:
        now = asyncio.get_running_loop().time()
        position = part.position or 0
        moved = parser.next > position
        part.succeeded()
        if section.end > section.start:
            self._parts[part.key] = self._parts.pop(part.key)
        if part.accept(parser, section, now):
            self._host.is_ready(part)
        part.want_bytes = parser.needed if parser.needed <= BATCH_MAX_BYTES else 0
        if moved:
            part.stalls, part.stalled_since, part.not_before = 0, None, 0.0
            if part.condemned is not None and parser.next > part.condemned:
                part.condemned = None
        if parser.odd_epoch is not None:
            self._host.tell(TroubleKind.SUSPECT, part, _odd_epoch(part, *parser.odd_epoch))
        if parser.damage is not None:
            self._damaged(part, parser, now, moved=moved)
        elif moved:
            return
        elif section.high_watermark < position:
            ended = f"its leader says that it ends at {section.high_watermark}; see the broker's log and its disks if it lasts"
            self._stalled(part, now, TroubleKind.SUSPECT, f"{part.topic}/{part.partition} was read up to offset {position}, but {ended}")
        elif section.last_stable < 0 and part.isolation is Isolation.READ_COMMITTED:
            message = f"the broker tells no last stable offset of {part.topic}/{part.partition}; read it with isolation: read_uncommitted"
            self._stalled(part, now, TroubleKind.STUCK, message)
        elif position >= part.bound(section.high_watermark, section.last_stable):
            part.stalls, part.stalled_since = 0, None
        elif in_turn:
            where = f"offset {position} of {part.topic}/{part.partition}"
            message = f"the broker gives nothing at {where}, which its log holds; see the broker's log and its disks"
            self._stalled(part, now, TroubleKind.STUCK, message)

    def _damaged(self, part: Assigned, parser: BatchParser, now: float, *, moved: bool) -> None:
        """Damaged once: once more on a fresh connection. Damaged again, and the parser could not step over it: its length is damaged."""
        assert parser.damage is not None
        base = parser.damage.base
        what = f"the batch at offset {base} of {part.topic}/{part.partition} is damaged ({parser.damage.why})"
        if moved or part.condemned is None:
            part.condemned = base
            self._host.tell(TroubleKind.DAMAGED, part, f"{what}; it is read once more over a fresh connection")
            self._renew = True
        else:
            message = f"{what} and can't be skipped, because its length is damaged too; repair the broker's log"
            self._stalled(part, now, TroubleKind.STUCK, message)

    def _stalled(self, part: Assigned, now: float, kind: TroubleKind, message: str) -> None:
        first_s, longest_s = RETRY_S
        part.not_before = now + min(first_s * 2**part.stalls, longest_s)
        part.stalls = min(part.stalls + 1, 16)
        part.stalled_since = part.stalled_since or now
        if now - part.stalled_since >= STUCK_AFTER_S:
            self._renew = True  # it may be this connection
            self._host.tell(kind, part, message)

    def _lose(self, part: Assigned, failure: KafkaError) -> None:
        self.remove(part)
        self._host.is_lost(part, failure)


def _odd_epoch(part: Assigned, base: int, epoch: int) -> str:
    where = f"offset {base} of {part.topic}/{part.partition}"
    return (
        f"the batch at {where} claims leader epoch {epoch}, which does not lie between those before it and its leader's; "
        "the claim counts for nothing; see the broker's log and its disks"
    )


def _in_turn(flight: _Flight, answers: list[tuple[_Ask, Section]]) -> set[_Ask]:
    """Whose empty answer means that there was nothing: others may be empty because those before them filled the answer (KIP-74)."""
    if any(section.end > section.start for _, section in answers):
        return {next(iter(flight.asks.values()))}
    return {ask for ask, _ in answers}
