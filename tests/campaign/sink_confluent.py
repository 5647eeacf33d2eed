"""An instance on confluent-kafka."""

from __future__ import annotations

import argparse
import time
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaException, Message, TopicPartition

from tests.campaign.sink_instance import BATCH_MAX, SESSION_MS, Instance, die, processing
from tests.campaign.sink_notes import Commits


class Mortal(Consumer):
    """The client itself, which is called when the sidecar has observed: a process can die on either side of that."""

    instance: ConfluentInstance

    def commit(self, *args: Any, **kwargs: Any) -> Any:
        """As Consumer.commit."""
        self.instance.at("observed")
        answer = super().commit(*args, **kwargs)
        self.instance.committed(answer)
        self.instance.at("committed")
        return answer


class ConfluentInstance(Instance):
    """Its callbacks run inside ``consume`` and ``close`` only, so every request is before or after a rebalance, never amid one."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        conf = {
            "bootstrap.servers": options.bootstrap,
            "group.id": options.group,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": 500,
            "partition.assignment.strategy": options.assignor,
            "enable.auto.commit": options.mode != "manual",
            "enable.auto.offset.store": options.mode != "stored",
            "auto.commit.interval.ms": 200,
            "fetch.queue.backoff.ms": 10,
            "log_level": 2,
        }
        if options.member:
            conf["group.instance.id"] = options.member
        mortal = Mortal(conf)
        mortal.instance = self
        self.consumer = self.sidecar.wrap(mortal, conf)
        self._asked: tuple[int, Commits] | None = None
        self._last: dict[int, Message] = {}
        self._gone = False

    def run(self) -> None:
        """Until it is over."""
        self.consumer.subscribe([self.options.topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        idle = 0
        while not self.stopping and not (idle and self.done(self._committed())):
            self.book.came_back()
            self.at("back")
            messages = self.consumer.consume(self.rng.randrange(1, BATCH_MAX), 0.3)
            idle = 0 if messages else idle + 1
            self._take(messages)
            self.at("handed")
            time.sleep(processing(self.rng))
            self.batches += bool(messages)
            self.at("processed")
            self._ask()
            self._err()
        self._leave()

    def _leave(self) -> None:
        if self.options.mode == "manual" and not self._gone and self.draw(0.5):
            self._commit(self.book.pending(), offsets=self.book.pending(), asynchronous=False)
        self.book.came_back()
        self._gone = True
        self.consumer.close()
        self.end()

    def _take(self, messages: list[Message]) -> None:
        batch: dict[int, list[int]] = {}
        for message in messages:
            if message.error() is not None:
                self.notes.write("error", text=str(message.error()))
                continue
            partition, offset = message.partition(), message.offset()
            assert partition is not None
            assert offset is not None
            batch.setdefault(partition, []).append(offset)
            self._last[partition] = message
        for partition, offsets in batch.items():
            self.book.took(partition, offsets)

    # ---------------------------------------------------------------------------------------------------- asking

    def _ask(self) -> None:
        pending = self.book.pending()
        if pending and self.options.mode == "stored":
            self._store(pending)
        elif pending and self.options.mode == "manual" and (not self.faulty or self.draw(0.7)):
            self._commit_somehow(pending)
        if self.draw(0.35):
            self.flush(2)

    def _commit_somehow(self, pending: Commits) -> None:
        kind = (
            self.rng.choice(("offsets", "message", "positions", "asynchronous", "asynchronous positions")) if self.faulty else "positions"
        )
        self.fault(f"commit {kind}")
        if kind == "message":
            partition = self.rng.choice(sorted(pending))
            message = self._last[partition]
            offset = message.offset()
            assert offset is not None
            self._commit({partition: offset + 1}, message=message, asynchronous=False)
        elif "positions" in kind:
            self._commit(dict(self.book.stop), asynchronous=kind != "positions")
        else:
            commits = self.some(pending)
            if commits:
                self._commit(commits, offsets=commits, asynchronous=kind != "offsets")

    def _commit(self, asked: Commits, *, asynchronous: bool, message: Message | None = None, offsets: Commits | None = None) -> None:
        if not asked:
            return
        number = self.book.ask(asked)
        self._asked = (number, asked)
        self.at("asked")
        named: dict[str, Any] = {} if message is None else {"message": message}
        if offsets is not None:
            named["offsets"] = self._parts(offsets)
        try:
            self.consumer.commit(asynchronous=asynchronous, **named)
        except KafkaException as error:
            self.notes.write("refused", text=str(error))
        finally:
            self._asked = None
            self.book.answered(number, ())
        self.at("confirmed")

    def committed(self, answer: list[TopicPartition] | None) -> None:
        """The client's own commit came back: of what it took, everything asked for is told or travels."""
        if self._asked is not None and answer is not None:
            number, asked = self._asked
            self.book.answered(number, [one.partition for one in answer if one.error is None and one.partition in asked])

    def _store(self, pending: Commits) -> None:
        commits = self.some(pending) if self.faulty else pending
        for partition, offset in commits.items():
            message = self._last[partition]
            whole = message.offset() == offset - 1 and self.draw(0.5)
            number = self.book.ask({partition: offset})
            self.at("asked")
            try:
                if whole:
                    self.consumer.store_offsets(message=message)
                else:
                    self.consumer.store_offsets(offsets=self._parts({partition: offset}))
            except KafkaException as error:
                self.notes.write("refused", text=str(error))
            self.book.answered(number, ())
            self.at("stored")

    def _parts(self, commits: Commits) -> list[TopicPartition]:
        return [TopicPartition(self.options.topic, partition, offset) for partition, offset in commits.items()]

    def _committed(self) -> Commits:
        if self.until is None:
            return {}
        found = self.consumer.committed([TopicPartition(self.options.topic, partition) for partition in self.until], 10)
        return {one.partition: one.offset for one in found}

    # --------------------------------------------------------------------------------------------------- mistakes

    def _err(self) -> None:
        kind = self.mistake()
        owned = sorted(self.book.stop)
        if kind is None or not owned:
            return
        partition = self.rng.choice(owned)
        stop = self.book.stop[partition]
        _, high = self.consumer.get_watermark_offsets(TopicPartition(self.options.topic, partition), cached=True)
        target = self.target(kind, stop, high)
        if target is None:
            return
        self.fault(kind, partition=partition, stands=stop, to=target)
        if kind != "ahead":
            try:
                self.consumer.seek(TopicPartition(self.options.topic, partition, target))
            except KafkaException as error:
                self.notes.write("refused", text=str(error))
            return
        if self.options.mode == "stored":
            number = self.book.ask({partition: target})
            self.consumer.store_offsets(offsets=self._parts({partition: target}))
            self.book.answered(number, ())
        else:
            self._commit({partition: target}, offsets={partition: target}, asynchronous=False)
        self._gone = self.stopping = True
        if self.draw(0.5) and self.options.mode == "manual":
            self.notes.write("death", point="ahead")
            die()

    # ------------------------------------------------------------------------------------------------- rebalances

    def _assigned(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        self.book.assigned(one.partition for one in parts)
        latest = self.to_latest(one.partition for one in parts)
        if latest:
            moved = [TopicPartition(one.topic, one.partition, OFFSET_END if one.partition in latest else one.offset) for one in parts]
            if self.options.assignor == "cooperative-sticky":
                consumer.incremental_assign(moved)
            else:
                consumer.assign(moved)

    def _revoked(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        partitions = [one.partition for one in parts]
        pending = self.book.pending(partitions)
        if self.options.mode == "manual" and pending and not self._gone and self.draw(0.5):
            self._commit(pending, offsets=pending, asynchronous=False)
        self.book.revoked(partitions)

    def _lost(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        self.fault("lost")
        self.book.revoked(one.partition for one in parts)
