"""Workers as a user runs them: processes of the `gapstream` command against a real cluster, asked over HTTP and Kafka only."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from pyroaring import BitMap

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 120.0


def free_port() -> int:
    """A port that was free a moment ago, below those that the system hands to outgoing connections (32768 and up on Linux)."""
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def eventually(check: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """The first truthy value of ``check``; AssertionError that says ``what`` was awaited, and what was found last."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = check()
        except (OSError, KeyError, ValueError) as exc:
            last = exc
        else:
            if last:
                return last
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:.0f} s; found last: {last!r}")


class Worker:
    """One worker process with its own port, instance and state folder."""

    def __init__(self, rig: Rig, number: int) -> None:
        self.rig, self.number = rig, number
        self.port = free_port()
        self.log = rig.folder / f"worker-{number}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base of its HTTP routes."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, **environment: str) -> Worker:
        """Start the process; does not wait for readiness."""
        env = {
            **os.environ,
            "GAPSTREAM__HTTP__PORT": str(self.port),
            "GAPSTREAM__APP__INSTANCE": f"worker-{self.number}",
            "GAPSTREAM__APP__STATE_DIR": str(self.rig.folder / f"state-{self.number}"),
            **environment,
        }
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stream_app", "worker", "-c", str(self.rig.config)], cwd=ROOT, env=env, stdout=out, stderr=out
            )
        return self

    def ready(self, seconds: float = WAIT_SECONDS) -> Worker:
        """Wait for /readyz."""

        def check() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the worker ended with {self.process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                    return bool(answer.status == 200)
            except urllib.error.HTTPError as refusal:
                with refusal:
                    raise ValueError(refusal.read().decode()) from refusal

        eventually(check, f"worker {self.number} ready", seconds)
        return self

    def tail(self, size: int = 4000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def get(self, path: str) -> Any:
        """JSON of a route."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def text(self, path: str) -> str:
        """Text of a route."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def stop(self, seconds: float = 15) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The `gapstream` command against this worker."""
        env = {**os.environ, "GAPSTREAM_URL": self.url, "GAPSTREAM_CONFIG": str(self.rig.config)}
        command = [sys.executable, "-m", "stream_app", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)


class Rig:
    """A configuration, workers, and what can be read back."""

    def __init__(self, folder: Path, bootstrap: str, topics: Mapping[str, Any], app_id: str, **sections: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.bootstrap, self.app_id = folder, bootstrap, app_id
        self.config = folder / "gapstream.yaml"
        app = {"id": app_id, "session_timeout": "6s", **sections.pop("app", {})}
        self.config.write_text(yaml.safe_dump({"kafka": {"bootstrap.servers": bootstrap}, "app": app, "topics": dict(topics), **sections}))
        self.workers: list[Worker] = []

    def worker(self) -> Worker:
        """Another one, not started."""
        worker = Worker(self, len(self.workers) + 1)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """Kill what runs."""
        for worker in self.workers:
            if worker.process is not None and worker.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    worker.signal(signal.SIGCONT)
                worker.kill()

    def read(self, topic: str, isolation: str = "read_committed") -> Iterator[Message]:
        """Every record of a topic up to its end now."""
        client = AdminClient({"bootstrap.servers": self.bootstrap})
        metadata = client.list_topics(topic, timeout=10).topics[topic]
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "oracle",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": isolation,
                "enable.partition.eof": True,
            }
        )
        try:
            parts = [TopicPartition(topic, partition, 0) for partition in metadata.partitions]
            consumer.assign(parts)
            ended: set[int] = set()
            while len(ended) < len(parts):
                message = consumer.poll(10)
                if message is None:
                    raise AssertionError(f"{topic} can't be read to its end")
                if message.error() is not None:
                    partition = message.partition()
                    assert partition is not None
                    ended.add(partition)
                else:
                    yield message
        finally:
            consumer.close()


class Alerts:
    """What the alerts topic says, folded here with plain sets: an oracle that shares no code with the product."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, int, str], dict[int, str]] = {}
        self.duplicates: dict[tuple[str, int, str], list[int]] = {}
        self.ids: dict[tuple[str, str], bytes] = {}
        self.last: dict[tuple[str, str], int] = {}
        self.faults: list[str] = []
        self.repeats = 0

    def take(self, message: Message) -> None:
        """Fold one record."""
        value = message.value()
        assert value is not None
        event = json.loads(value)
        key = (event["topic"], event["partition"], event["sink"])
        identity = (event["source"], event["id"])
        if identity in self.ids:
            self.repeats += 1
            if self.ids[identity] != value:
                self.faults.append(f"two contents under {identity}")
            return
        self.ids[identity] = value
        chain = (event["source"], "/".join(map(str, key)))
        if event["sequence"] != self.last.get(chain, 0) + 1:
            self.faults.append(f"{chain}: {event['sequence']} follows {self.last.get(chain, 0)}")
        self.last[chain] = event["sequence"]
        offsets = _offsets(event)
        gaps = self.open.setdefault(key, {})
        if event["type"] in ("gap.opened", "gap.expired"):
            gaps.update(dict.fromkeys(offsets, event["cause"]))
        elif event["type"] in ("gap.filled", "gap.explained", "gap.acknowledged"):
            for offset in offsets:
                gaps.pop(offset, None)
        elif event["type"] == "duplicate.detected":
            self.duplicates.setdefault(key, []).extend(offsets)


def _offsets(event: dict[str, Any]) -> list[int]:
    if event["bitmap"] is not None:
        base = event["bitmap"]["base"]
        return [base + offset for offset in BitMap.deserialize(base64.b64decode(event["bitmap"]["roaring"]))]
    return [offset for first, last in event["ranges"] or [] for offset in range(first, last + 1)]


def listed(answer: Any) -> dict[tuple[str, int, str], set[int]]:
    """Offsets of `gaps --json`, absent ones inside a gap included."""
    found: dict[tuple[str, int, str], set[int]] = {}
    for gap in answer["gaps"]:
        key = (gap["topic"], gap["partition"], gap["sink"])
        found.setdefault(key, set()).update(range(gap["first_offset"], gap["last_offset"] + 1))
    return found
