"""A producer of its own process that begins a transaction and never ends it, for somebody to kill or to abandon.

Prints a line once its records are acknowledged: ``python -m tests.campaign.left_open BOOTSTRAP ID TIMEOUT_MS CODEC TOPIC:PARTITION:N ...``.
"""

from __future__ import annotations

import signal
import sys

from confluent_kafka import Producer

PATIENCE_S = 120.0


def main(arguments: list[str]) -> None:
    """Write, say so, sleep for ever."""
    bootstrap, name, timeout_ms, codec, *places = arguments
    conf = {"bootstrap.servers": bootstrap, "transactional.id": name, "transaction.timeout.ms": int(timeout_ms)}
    producer = Producer({**conf, "compression.type": codec, "log_level": 2})
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    for place in places:
        topic, partition, count = place.split(":")
        for number in range(int(count)):
            producer.produce(topic, b"never ended", f"k{number % 7}".encode(), int(partition))
    if producer.flush(PATIENCE_S) == 0:
        print("written", flush=True)
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
