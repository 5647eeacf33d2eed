"""A plain Faust agent that counts the records of a topic, one by one, in a table: what one writes without a log reader.

Prints ``{"records": ..., "seconds": ...}``: from the 1,000th record on, for ``--seconds``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
import uuid
from typing import Any

import faust

WARM = 1_000
"""Records before the clock starts: recovery and the first fetch are over."""
STOP_S = 10.0


async def measure(bootstrap: str, topic: str, partitions: int, seconds: float, folder: str) -> tuple[int, float]:
    """Records counted, and in what time."""
    app = faust.App(
        f"bench-{uuid.uuid4().hex[:8]}",
        broker=f"kafka://{bootstrap}",
        store="rocksdb://",
        datadir=folder,
        web_enabled=False,
        autodiscover=False,
        topic_partitions=partitions,
        topic_replication_factor=1,
        worker_redirect_stdouts=False,
        # Without it each update of the table is a produce request of its own, which halves the rate.
        producer_linger_ms=50,
        producer_max_batch_size=1 << 20,
    )
    records = app.topic(topic, value_type=bytes, value_serializer="raw", key_type=bytes, key_serializer="raw")
    counts: Any = app.Table("counts", default=int, partitions=partitions)
    done = asyncio.get_running_loop().create_future()
    seen, began = 0, 0.0

    async def count(stream: Any) -> None:
        nonlocal seen, began
        async for event in stream.events():
            counts[event.message.partition] += 1
            seen += 1
            if seen == WARM:
                began = time.perf_counter()
            elif seen > WARM and not done.done() and time.perf_counter() - began >= seconds:
                done.set_result((seen - WARM, time.perf_counter() - began))

    app.agent(records)(count)
    app.loop = asyncio.get_running_loop()
    app.finalize()
    app.worker_init_post_autodiscover()
    starting = asyncio.create_task(app.start())
    measured: tuple[int, float] = await done
    print(json.dumps({"records": measured[0], "seconds": measured[1]}), flush=True)
    await asyncio.wait([asyncio.create_task(app.stop())], timeout=STOP_S)
    starting.cancel()
    return measured


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="gapstream-bench-faust-") as folder:
        asyncio.run(measure(options.bootstrap, options.topic, options.partitions, options.seconds, folder))


if __name__ == "__main__":
    main()
