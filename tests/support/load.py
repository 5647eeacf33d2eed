"""Load on a real cluster: who writes, and who receives and reports it, each in a thread of its own."""

from __future__ import annotations

import threading
import time

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from gapstream_sidecar import Sidecar

_QUIET = {"log_level": 2}
_PATIENCE_S = 90.0


class Writer(threading.Thread):
    """Writes to every partition in turn, idempotent and acknowledged by all replicas, until told to stop."""

    def __init__(self, bootstrap: str, topic: str, partitions: int, *, every_s: float = 0.003, give_up_s: float = 60.0) -> None:
        """``give_up_s``: a record not acknowledged so long is given up; it may be in the log, or not, or twice (librdkafka begins a
        new epoch of the producer then and can't tell)."""
        super().__init__(daemon=True)
        conf = {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 2, "message.timeout.ms": round(give_up_s * 1000)}
        self._producer = Producer({**conf, **_QUIET})
        self._topic, self._partitions, self._every_s = topic, partitions, every_s
        self._stopping = threading.Event()
        self.acked: dict[int, int] = dict.fromkeys(range(partitions), -1)
        """Highest acknowledged offset of each partition."""
        self.given_up = 0

    def run(self) -> None:
        """In the thread."""
        number = 0
        while not self._stopping.wait(self._every_s):
            try:
                self._producer.produce(self._topic, b"v" * 50, partition=number % self._partitions, on_delivery=self._delivered)
                number += 1
            except BufferError:
                time.sleep(0.01)
            self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        if error is not None:
            self.given_up += 1
        else:
            assert offset is not None
            self.acked[partition] = max(self.acked[partition], offset)

    def finish(self) -> None:
        """Returns when all is acknowledged or given up."""
        self._stopping.set()
        self.join()
        assert self._producer.flush(_PATIENCE_S) == 0


class Reporter(threading.Thread):
    """A consumer application with the sidecar: receives everything, and says so."""

    def __init__(self, bootstrap: str, topic: str, partitions: int, *, sink: str, app_id: str) -> None:
        super().__init__(daemon=True)
        conf = {"bootstrap.servers": bootstrap, "group.id": f"{app_id}-{sink}", "enable.auto.commit": False, "auto.offset.reset": "error"}
        self._consumer = Consumer({**conf, "fetch.queue.backoff.ms": 10, **_QUIET})
        self._sidecar = Sidecar({"bootstrap.servers": bootstrap, **_QUIET}, sink=sink, app_id=app_id, explicit=True)
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
        self._topic = topic
        self._stopping = threading.Event()

    def run(self) -> None:
        """In the thread."""
        while not self._stopping.is_set():
            runs: dict[int, list[list[int]]] = {}
            for message in self._consumer.consume(1_000, timeout=0.1):
                partition, offset = message.partition(), message.offset()
                if message.error() is not None or partition is None or offset is None:
                    continue  # a broker is away: librdkafka goes on by itself
                known = runs.setdefault(partition, [])
                if known and known[-1][1] + 1 == offset:
                    known[-1][1] = offset
                else:
                    known.append([offset, offset])
            for partition, found in runs.items():
                for first, last in found:
                    self._sidecar.received(self._topic, partition, first, last)

    def finish(self) -> None:
        """Receives no more."""
        self._stopping.set()
        self.join()
        self._consumer.close()
        self._sidecar.close()
