"""Observations over HTTP and by ``gapstream observe``, from the request to the gap that a worker tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.kafka_kit import KafkaKit
from tests.support.rig import ROOT, Rig, Worker, eventually, listed

SINKS = {"sinks": {sink: {"type": "consumer", "grace": "200ms"} for sink in ("http", "plain", "json", "growth", "beyond")}}


@dataclass
class Watching:
    rig: Rig
    worker: Worker
    topic: str


@pytest.fixture(scope="module")
def watching(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> Watching:
    topic = shared_kit.make_topic(2)
    for partition in (0, 1):
        shared_kit.produce(topic, partition, 30)
    rig = make_rig({topic: SINKS})
    return Watching(rig, rig.worker().start().ready(), topic)


def post(watching: Watching, *lines: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    body = "\n".join(json.dumps({"v": 1, "topic": watching.topic, "sink": "http", "partition": 0, **line}) for line in lines)
    headers = {"Content-Type": "application/x-ndjson"}
    request = urllib.request.Request(f"{watching.worker.url}/api/observations", body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def observe(watching: Watching, text: str, *arguments: str, told: list[str] | None = None) -> dict[str, Any]:
    """``told``: of bad lines, on stderr; None: there are none."""
    command = [sys.executable, "-m", "stream_app", "observe", "--json", "-c", str(watching.rig.config), *arguments]
    done = subprocess.run(command, input=text, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()) == ((0, []) if told is None else (1, told))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def row(watching: Watching, sink: str, partition: int = 0) -> dict[str, Any]:
    rows = watching.worker.get(f"/api/partitions?topic={watching.topic}&sink={sink}")["partitions"]
    found: dict[str, Any] = next(one for one in rows if one["partition"] == partition)
    return found


def await_gaps(watching: Watching, sink: str, wanted: dict[int, set[int]]) -> None:
    expected = {(watching.topic, partition, sink): offsets for partition, offsets in wanted.items()}
    eventually(lambda: listed(watching.worker.get(f"/api/gaps?sink={sink}")) == expected, f"gaps of {sink}: {wanted}")


def test_over_http(watching: Watching, shared_kit: KafkaKit) -> None:
    status, answer = post(watching, {"runs": [[0, 4], [7, 29]]}, {"partition": 5, "runs": [[0, 1]]}, {"partition": 1, "runs": [[0, 29]]})
    assert (status, answer["accepted"], [one["line"] for one in answer["rejected"]]) == (207, 2, [2])
    await_gaps(watching, "http", {0: {5, 6}})
    assert post(watching, {"runs": [[5, 5]]}, {"runs": [[6, 6]], "status": "quarantined", "reason": "tombstone"})[0] == 200
    await_gaps(watching, "http", {})
    assert row(watching, "http")["explained"] == {"quarantined": 1}


def test_plain_lines(watching: Watching) -> None:
    """Each line counts: two offsets are left out, and three come twice, in this run and in another one."""
    text = "".join(f"{watching.topic} 1 {offset}\n" for offset in range(30) if offset not in (11, 20))
    answer = observe(watching, text + f"{watching.topic} 1 3\n{watching.topic} 1 4\n", "--sink", "plain")
    assert (answer["accepted"], answer["rejected"]) == (30, [])
    await_gaps(watching, "plain", {1: {11, 20}})
    observe(watching, f"{watching.topic} 1 5\n{watching.topic} 1 20\n", "--sink", "plain")
    await_gaps(watching, "plain", {1: {11}})
    eventually(lambda: row(watching, "plain", 1)["duplicates"] == 3, "the lines that came twice")


def test_lines_beyond_the_logs_end_take_no_others_along(watching: Watching) -> None:
    """They would share an observation with good ones, which the worker rejects whole."""
    topic = watching.topic
    text = f"{topic} 1 0 12\n{topic} 1 1200\n{topic} 1 13 27\n{topic} 1 28 30\n{topic} 1 28 29\n{topic} 0 0 29\n"
    wrong = json.dumps({"v": 1, "topic": topic, "partition": 0, "claim": 31}) + "\n"
    told = [
        f"line 2: {topic}/1 ends at 30: offset 1200 was not written yet",
        f"line 4: {topic}/1 ends at 30: offset 30 was not written yet, and nothing of the line is taken: write {topic} 1 28 29 instead",
        f"line 7: {topic}/0 ends at 30: its claim 31 is above",
        "3 of 7 lines could not be taken, see above",
    ]
    answer = observe(watching, text + wrong, "--sink", "beyond", told=told)
    assert (answer["accepted"], [one["line"] for one in answer["rejected"]]) == (4, [2, 4, 7])
    eventually(lambda: [row(watching, "beyond", partition)["observed"] for partition in (0, 1)] == [30, 30], "the good lines are received")
    await_gaps(watching, "beyond", {})


def test_a_named_source_that_starts_again_repeats_nothing(watching: Watching) -> None:
    lines = [{"v": 1, "topic": watching.topic, "partition": 0, "sequence": at + 1, "runs": [[at, at]]} for at in range(30) if at != 13]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    half = "".join(text.splitlines(keepends=True)[:10])
    for given in (half, text, text):
        observe(watching, given, "--sink", "json", "--source", "nightly")
    await_gaps(watching, "json", {0: {13}})
    last = {"v": 1, "topic": watching.topic, "partition": 0, "sequence": 40, "runs": [[13, 13]]}
    observe(watching, json.dumps(last), "--sink", "json", "--source", "nightly")
    await_gaps(watching, "json", {})
    assert (row(watching, "json")["duplicates"], row(watching, "json")["observed"]) == (0, 30)


def test_a_partition_that_was_just_added_is_never_rejected(watching: Watching, shared_kit: KafkaKit) -> None:
    shared_kit.add_partitions(watching.topic, 3)
    shared_kit.produce(watching.topic, 2, 5)
    answers: list[tuple[int, dict[str, Any]]] = []

    def accepted() -> bool:
        answers.append(post(watching, {"sink": "growth", "partition": 2, "runs": [[0, 1], [4, 4]], "source": "app", "sequence": 1}))
        return answers[-1][0] == 200

    eventually(accepted, "the new partition can be observed")
    assert {(status, answer["rejected"] == [], bool(answer.get("unknown"))) for status, answer in answers} <= {
        (503, True, True),
        (200, True, False),
    }
    await_gaps(watching, "growth", {2: {2, 3}})
