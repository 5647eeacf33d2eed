"""Reads a topic once with confluent-kafka's ``consume`` and keeps each partition's next offset: nothing else, as fast as it goes.

Prints ``{"records": ..., "seconds": ...}``: from the assignment, before anything is fetched, to the last record.
"""

from __future__ import annotations

import argparse
import gc
import json
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

# What it takes to make this loop fast. As librdkafka is configured by default, its queue runs full and then sleeps
# for a second (fetch.queue.backoff.ms); CRCs are not checked.
TUNED: dict[str, str | int | bool] = {
    "fetch.queue.backoff.ms": 10,
    "queued.min.messages": 1_000_000,
    "queued.max.messages.kbytes": 1_048_576,
    "fetch.max.bytes": 64 << 20,
    "max.partition.fetch.bytes": 16 << 20,
    "check.crcs": False,
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": False,
    "isolation.level": "read_committed",
}


def main() -> None:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another property of the consumer")
    options = parser.parse_args()
    changed = dict(one.split("=", 1) for one in options.set)
    consumer = Consumer({"bootstrap.servers": options.bootstrap, "group.id": "bench", **TUNED, **changed})
    partitions = consumer.list_topics(options.topic, timeout=30).topics[options.topic].partitions
    stops = {partition: consumer.get_watermark_offsets(TopicPartition(options.topic, partition), timeout=30)[1] for partition in partitions}
    gc.disable()  # messages are no part of cycles; looking for some is a quarter of the processor time of this loop
    seconds = read(consumer, options.topic, stops)
    print(json.dumps({"records": sum(stops.values()), "seconds": seconds}))


def read(consumer: Consumer, topic: str, stops: dict[int, int]) -> float:
    """Seconds from the assignment to the last record; raises KafkaException if the records are not those of ``stops``."""
    wanted = sum(stops.values())
    offsets: dict[int | None, int | None] = {}
    got = 0
    began = time.perf_counter()
    consumer.assign([TopicPartition(topic, partition, 0) for partition in stops])
    while got < wanted:
        batch = consumer.consume(10_000, timeout=5.0)
        for message in batch:
            offsets[message.partition()] = message.offset()
        got += len(batch)
    seconds = time.perf_counter() - began
    if offsets != {partition: stop - 1 for partition, stop in stops.items() if stop}:
        raise KafkaException(f"read to {offsets}, but the ends are {stops}")
    return seconds


if __name__ == "__main__":
    main()
