"""The programs in examples/: built and run as a reader would, against a real Kafka and a worker that tells what they lose."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka_cluster import KafkaCluster

from tests.support.kafka_kit import KafkaKit
from tests.support.rig import ROOT, Rig, Worker, eventually, listed

LANGUAGES = ("java", "go")
LOST = {0: {5, 6, 17}, 1: {3}}
POISON = {0: {9}, 1: {20, 21}}
RECORDS = 30
BUILD_SECONDS = 300
"""Of the first run on a machine, which fetches a compiler's plug-ins and Kafka's clients."""
ENDED = {"java": 143, "go": 0}
"""A JVM that ends by SIGTERM says so: 128 and 15."""


def example(language: str) -> Path:
    return ROOT / "examples" / language / "run"


def value(partition: int, offset: int) -> bytes:
    return b"lose me" if offset in LOST[partition] else b"poison" if offset in POISON[partition] else b"good"


@pytest.fixture
def topic(kit: KafkaKit) -> str:
    made = kit.make_topic(len(LOST))
    for partition in LOST:
        kit.produce(made, partition, RECORDS, value=[value(partition, offset) for offset in range(RECORDS)].__getitem__)
    return made


@pytest.fixture
def worker(kafka: KafkaCluster, topic: str, tmp_path: Path) -> Iterator[Worker]:
    sinks = {language: {"type": "consumer", "grace": "200ms"} for language in LANGUAGES}
    rig = Rig(tmp_path, kafka.bootstrap, {topic: {"sinks": sinks}}, f"app-{uuid.uuid4().hex[:8]}")
    yield rig.worker().start()
    rig.close()


@pytest.mark.timeout(2 * BUILD_SECONDS)
def test_what_the_examples_lose_is_what_is_missing(worker: Worker, kit: KafkaKit, topic: str, tmp_path: Path) -> None:
    """Also after a restart: nothing is told twice, and what was reported is not handed out again."""
    for language in LANGUAGES:  # built before they are run: the first time may take a while
        done = subprocess.run([str(example(language))], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        assert (done.returncode, done.stderr) == (2, "usage: run BOOTSTRAP_SERVERS TOPIC SINK [APP_ID]\n")
    worker.ready()
    wanted = {partition: set(offsets) for partition, offsets in LOST.items()}
    run_and_compare(worker, topic, wanted, tmp_path)
    kit.produce(topic, 0, 4, value=[b"good", b"good", b"lose me", b"good"].__getitem__)
    wanted[0].add(RECORDS + 2)
    run_and_compare(worker, topic, wanted, tmp_path)


def run_and_compare(worker: Worker, topic: str, wanted: dict[int, set[int]], folder: Path) -> None:
    """Run all of them until the worker tells exactly these offsets, then end them."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    logs = {language: folder / f"{language}.log" for language in LANGUAGES}
    try:
        for language, log in logs.items():
            with log.open("ab") as out:
                command = [str(example(language)), worker.rig.bootstrap, topic, language, worker.rig.app_id]
                running[language] = subprocess.Popen(command, stdout=out, stderr=out)
        for language, process in running.items():
            await_verdict(worker, topic, language, wanted, process, logs[language])
    finally:
        ended = {language: end(process) for language, process in running.items()}
    assert ended == ENDED, [log.read_text() for log in logs.values()]


def await_verdict(worker: Worker, topic: str, sink: str, wanted: dict[int, set[int]], process: subprocess.Popen[bytes], log: Path) -> None:
    """Exactly these offsets are missing, the poisoned ones are explained, and nothing was told twice."""
    expected = {(topic, partition, sink): offsets for partition, offsets in wanted.items()}
    quarantined = {partition: {"quarantined": len(offsets)} for partition, offsets in POISON.items()}

    def agreed() -> bool:
        assert process.poll() is None, log.read_text()
        rows = {row["partition"]: row for row in worker.get(f"/api/partitions?topic={topic}&sink={sink}")["partitions"]}
        return (
            listed(worker.get(f"/api/gaps?topic={topic}&sink={sink}")) == expected
            and {partition: row["explained"] for partition, row in rows.items()} == quarantined
            and all((row["duplicates"], row["lag"]) == (0, 0) for row in rows.values())
        )

    eventually(agreed, f"{sink} lacks {wanted}")


def end(process: subprocess.Popen[bytes]) -> int:
    """Its exit status after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(20)
    process.kill()
    return process.wait()


@pytest.mark.parametrize(
    ("language", "there", "missing"),
    [
        ("java", (), "Java is needed and there is none on PATH: install Java 17"),
        ("java", ("java",), "a JDK is needed to build it, and there is no javac on PATH"),
        ("java", ("java", "javac"), "built with Maven, and there is no mvn on PATH"),
        ("go", (), "built with Go, and there is no go on PATH: install Go 1.26.0 or newer"),
    ],
)
def test_a_toolchain_that_is_missing_is_named(language: str, there: tuple[str, ...], missing: str, tmp_path: Path) -> None:
    tools = ("bash", "cat", "cut", "dirname", "find", "mkdir", "mktemp", "readlink", "rm", "sed", "sha256sum", "sort", "xargs", "cp", "mv")
    for name in tools:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [str(tmp_path / "bash"), str(example(language))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"examples/{language}/run: ")
    assert missing in done.stderr
