"""The pipeline of docker-compose.yml: orders into Kafka, and from there into ClickHouse, with a loss now and then.

``pipeline.py produce`` writes records; ``pipeline.py consume`` inserts them and reports them by the sidecar, as a consumer
of your own would: see the two lines of ``consume`` that name the sidecar.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from gapstream_sidecar import Sidecar

log = logging.getLogger("pipeline")

TOPIC = "orders"
_BATCH_MAX = 1_000
"""Rows of one insert: ClickHouse wants few and large ones."""
_RETRY_S = 2.0


def produce(stop: threading.Event) -> None:
    """Write ``RECORDS_PER_SECOND`` records a second until ``stop``."""
    per_second = int(os.environ.get("RECORDS_PER_SECOND", "200"))
    if per_second < 1:
        raise SystemExit(f"pipeline: RECORDS_PER_SECOND={per_second} must be at least 1.")
    producer = Producer({"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"], "enable.idempotence": True})
    next_at = time.monotonic()
    for order in itertools.count(time.time_ns() // 1_000):
        value = json.dumps({"order_id": order, "amount_cents": order % 10_000})
        producer.produce(TOPIC, value, key=str(order), on_delivery=_delivered)
        producer.poll(0)
        next_at += 1 / per_second
        if stop.wait(max(0.0, next_at - time.monotonic())):
            break
    left = producer.flush(10.0)
    log.info("stopped, %d records unacknowledged", left)


def consume(stop: threading.Event) -> None:
    """Insert every record into ClickHouse, but for one of ``LOSE_ONE_IN``, and commit, until ``stop``."""
    lose_one_in = int(os.environ.get("LOSE_ONE_IN", "0"))
    kafka = {"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP"]}
    with Sidecar(kafka, sink="loader", app_id="gapstream") as sidecar:
        consumer = sidecar.wrap(Consumer({**kafka, "group.id": "loader", "enable.auto.commit": False, "auto.offset.reset": "earliest"}))
        consumer.subscribe([TOPIC])
        try:
            while not stop.is_set():
                messages = [message for message in consumer.consume(_BATCH_MAX, 1.0) if _is_record(message)]
                rows = [_row(message) for message in messages if not _is_lost(message, lose_one_in)]
                if messages and _insert(rows, stop):
                    consumer.commit(asynchronous=False)
        finally:
            consumer.close()


def _delivered(error: KafkaError | None, _message: Message) -> None:
    if error is not None:
        log.error("a record was not written: %s", error)


def _is_record(message: Message) -> bool:
    error = message.error()
    if error is not None:
        raise KafkaException(error)
    return True


def _is_lost(message: Message, lose_one_in: int) -> bool:
    """Decided by the record's place, so that a record that is delivered twice is lost twice."""
    if lose_one_in < 1:
        return False
    return zlib.crc32(f"{message.partition()}/{message.offset()}".encode()) % lose_one_in == 0


def _row(message: Message) -> dict[str, Any]:
    milliseconds = message.timestamp()[1]
    seconds = datetime.fromtimestamp(milliseconds // 1_000, UTC)
    return {
        "__topic": message.topic(),
        "__partition": message.partition(),
        "__offset": message.offset(),
        "__timestamp": f"{seconds:%Y-%m-%d %H:%M:%S}.{milliseconds % 1_000:03d}",
        **json.loads(message.value() or b"{}"),
    }


def _insert(rows: list[dict[str, Any]], stop: threading.Event) -> bool:
    """Insert, again and again until it worked; False if ``stop`` came first.

    A repeat after an answer that was lost makes duplicates; gapstream tells those too.
    """
    request = urllib.request.Request(  # noqa: S310 - the address is the operator's
        f"{os.environ['CLICKHOUSE_URL']}/?query=INSERT+INTO+orders+FORMAT+JSONEachRow",
        data="\n".join(map(json.dumps, rows)).encode(),
        headers={"X-ClickHouse-User": os.environ["CLICKHOUSE_USER"], "X-ClickHouse-Key": os.environ["CLICKHOUSE_PASSWORD"]},
    )
    while rows:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the address is the operator's
                answer.read()
                break
        except urllib.error.HTTPError as error:
            log.error("ClickHouse refused %d rows, next attempt in %g s: %s", len(rows), _RETRY_S, error.read().decode(errors="replace"))
        except OSError as error:
            log.error("ClickHouse is out of reach, next attempt in %g s: %s", _RETRY_S, error)
        if stop.wait(_RETRY_S):
            return False
    return True


def main(arguments: list[str]) -> int:
    """Run one role until SIGTERM or SIGINT; 2 for wrong usage."""
    roles: dict[str, Callable[[threading.Event], None]] = {"produce": produce, "consume": consume}
    if len(arguments) != 1 or arguments[0] not in roles:
        print("usage: pipeline.py produce|consume", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    roles[arguments[0]](stop)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
