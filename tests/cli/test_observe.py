"""``gapstream observe``: the command on an embedded broker, and its loop on a producer that does what it is told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, IsolationLevel, KafkaError, KafkaException, TopicPartition

from stream_app.cli import ends
from stream_app.cli import observe as command
from stream_app.cli.observe import Observe, Stop
from stream_app.config import Config, load
from stream_app.demo.broker import EmbeddedBroker
from stream_app.errors import Unavailable
from tests.cli.kit import Command, Ran
from tests.support.kafka_kit import KafkaKit

OBSERVED = "gapstream.observations.orders"
NAMED = ["--source", "nightly"]


def configured(folder: Path, bootstrap: str) -> str:
    file = folder / "observe.yaml"
    file.write_text(f"kafka: {{bootstrap.servers: '{bootstrap}'}}\ntopics: {{orders: {{sinks: {{billing: {{type: consumer}}}}}}}}\n")
    return str(file)


def observation(sequence: int | None = None, **fields: Any) -> str:
    known = {"v": 1, "topic": "orders", "partition": 0, "runs": [[1, 2]], "sequence": sequence, **fields}
    return json.dumps({name: value for name, value in known.items() if value is not None}) + "\n"


# --- the command --------------------------------------------------------------------------------------------------------


RECORDS = 100


class Broker:
    """An embedded broker with the watched topic and its observations, four partitions each, two of them with records."""

    def __init__(self) -> None:
        self._broker = EmbeddedBroker()
        self._broker.make(["orders", OBSERVED])
        self.bootstrap = self._broker.bootstrap
        self._kit = KafkaKit(self.bootstrap)
        for partition in (0, 1):
            self._kit.produce("orders", partition, RECORDS)

    def written(self, partition: int = 0) -> list[dict[str, Any]]:
        values = [message.value() for message in self._kit.read(OBSERVED, partition)]
        return [json.loads(value) for value in values if value is not None]

    def close(self) -> None:
        self._broker.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker()
    yield made
    made.close()


@pytest.fixture
def observe(gapstream: Command, broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ran]:
    """``observe(text, *more)``: the command with these lines on its standard input."""

    def run(text: str, *more: str) -> Ran:
        (tmp_path / "stdin").write_text(text)
        with (tmp_path / "stdin").open("rb") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return gapstream("observe", "--sink", "billing", "-c", configured(tmp_path, broker.bootstrap), *more)

    return run


def test_lines_are_written_and_nothing_is_said(observe: Callable[..., Ran], broker: Broker) -> None:
    assert observe("orders 0 5\norders 0 6 9\n\norders 1 7") == Ran(0, "", "")
    (one,), (other,) = broker.written(0), broker.written(1)
    assert (one["sink"], one["topic"], one["partition"], one["runs"], one["status"]) == ("billing", "orders", 0, [[5, 9]], "received")
    assert (other["partition"], other["runs"], other["source"]) == (1, [[7, 7]], one["source"])


def test_bad_lines_are_told_with_their_numbers_and_the_others_are_written(observe: Callable[..., Ran], broker: Broker) -> None:
    ran = observe("orders 0 5\nnonsense\norders 4 1\nsales 0 1\n" + observation(runs=[[2, 1]]) + "orders 0 6\n", "--json")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "line 2: it has 1 fields, not topic partition offset [last]",
        "line 3: topic orders has the partitions 0 to 3, not 4",
        "line 4: topic 'sales' is not watched: see topics in the configuration",
        "line 5: malformed: run [2, 1] is out of order or out of bounds",
        "4 of 6 lines could not be taken, see above",
    ]
    answer = json.loads(ran.out)
    assert [f"line {one['line']}: {one['error']}" for one in answer.pop("rejected")] == ran.err.splitlines()[:4]
    (written,) = broker.written()
    assert answer == {"accepted": 2, "bad_lines": 4, "unacknowledged": 0, "observations": 1, "source": written["source"]}
    assert written["runs"] == [[5, 6]]


def test_lines_beyond_the_logs_end_are_bad_and_take_no_others_along(observe: Callable[..., Ran], broker: Broker) -> None:
    """What the worker rejects, it rejects whole: good lines must not stand in one observation with such a line."""
    lines = [
        "orders 0 5",
        "orders 0 1200",
        "orders 0 98 103",
        "orders 0 6",
        "orders 0 100 101",
        "orders 0 99 100",
        "orders 2 0",
        "orders 0 99",
    ]
    claims = [observation(runs=[[1, 2], [100, 100]]), observation(claim=101), observation(claim=100)]
    ran = observe("\n".join(lines) + "\n" + "".join(claims), "--json")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "line 2: orders/0 ends at 100: offset 1200 was not written yet",
        "line 3: orders/0 ends at 100: offsets 100 to 103 were not written yet, and nothing of the line is taken: "
        "write orders 0 98 99 instead",
        "line 5: orders/0 ends at 100: offsets 100 to 101 were not written yet",
        "line 6: orders/0 ends at 100: offset 100 was not written yet, and nothing of the line is taken: write orders 0 99 99 instead",
        "line 7: orders/2 ends at 0: offset 0 was not written yet",
        "line 9: orders/0 ends at 100: its offset 100 was not written yet, and nothing of the line is taken: leave out what is above",
        "line 10: orders/0 ends at 100: its claim 101 is above",
        "7 of 11 lines could not be taken, see above",
    ]
    answer = json.loads(ran.out)
    assert [f"line {one['line']}: {one['error']}" for one in answer["rejected"]] == ran.err.splitlines()[:7]
    assert (answer["accepted"], answer["bad_lines"]) == (4, 7)
    said = broker.written(0)
    assert [(one["runs"], one.get("claim"), one["sequence"]) for one in said] == [([[5, 6], [99, 99]], None, 0), ([[1, 2]], 100, 1)]
    assert broker.written(2) == []


def test_a_named_source_keeps_its_sequences(observe: Callable[..., Ran], broker: Broker) -> None:
    text = observation(4, claim=9) + observation(7, status="quarantined", reason="bad", sink="billing")
    for _ in range(2):
        assert observe(text, *NAMED) == Ran(0, "", "")
    written = broker.written()
    assert [(one["source"], one["sequence"]) for one in written] == [("nightly", 4), ("nightly", 7)] * 2
    assert written[0] == written[2], "a second run says the same again, which the ledger knows for a repeat"
    ran = observe("orders 0 1\n" + observation(), *NAMED)
    assert (ran.code, ran.err.splitlines()[:2]) == (
        1,
        [
            "line 1: it has no sequence, and --source needs one: write JSON, or leave --source out",
            "line 2: it has no sequence, and --source needs one in every line",
        ],
    )


def test_each_run_without_a_name_is_another_source(observe: Callable[..., Ran], broker: Broker) -> None:
    for _ in range(2):
        assert observe("orders 0 1\n").code == 0
    first, second = broker.written()
    assert (first["sequence"], second["sequence"]) == (0, 0)
    assert first["source"] != second["source"], "or the second would pass for a repeat"


def test_what_is_probably_a_mistake_is_said_once(observe: Callable[..., Ran], broker: Broker) -> None:
    ran = observe(observation(1, source="theirs") * 3)
    warning = "warning: line 1 has a sequence, which counts with --source only: read again, it is a duplicate\n"
    assert (ran.code, ran.err) == (0, warning)
    assert [one["sequence"] for one in broker.written()] == [0, 1, 2]
    ran = observe(observation(5) + observation(4) + observation(4), *NAMED)
    assert (ran.code, ran.err) == (
        0,
        "warning: line 2: sequence 4 of orders/0 is not above those before it: it counts as a repeat\n",
    )
    ran = observe("orders 0 1\norders 1 1\n", "--sink", "bilking")
    assert (ran.code, ran.err) == (0, "warning: sink bilking is not configured for topic orders: it is listed, and nobody is alerted\n")


@pytest.mark.parametrize("wrong", [["--sink", "log"], ["--sink", ""], ["--source", ""], ["--source", "x" * 201], ["--nonsense"]])
def test_wrong_usage(gapstream: Command, tmp_path: Path, wrong: list[str]) -> None:
    ran = gapstream("observe", "--sink", "billing", "-c", configured(tmp_path, "127.0.0.1:1"), *wrong)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert gapstream("observe").code == 2


def test_no_input_asks_nobody(gapstream: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(os.devnull, "rb") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        ran = gapstream("observe", "--sink", "billing", "--json", "-c", configured(tmp_path, "127.0.0.1:1"))
    assert (ran.code, json.loads(ran.out)["accepted"], ran.err) == (0, 0, "")


def test_kafka_that_can_not_be_reached(observe: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CALL_SECONDS", 0.3)
    ran = observe("orders 0 1\norders 0 2\n", "-X", "kafka.bootstrap.servers=127.0.0.1:1")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("Kafka can't be reached (")
    assert ran.err.endswith("; nothing was taken from line 1 on\n")


def test_a_worker_has_to_make_the_topic(gapstream: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    broker.make(["orders"])
    (tmp_path / "stdin").write_text("orders 0 1\n")
    with (tmp_path / "stdin").open("rb") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        ran = gapstream("observe", "--sink", "billing", "-c", configured(tmp_path, broker.bootstrap))
    broker.close()
    assert (ran.code, ran.err) == (
        3,
        f"topic {OBSERVED} does not exist: start a worker, which sees to it; nothing was taken from line 1 on\n",
    )


class Process:
    """The command as a process of its own, with a pipe to its standard input."""

    def __init__(self, config: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stream_app", "observe", "--sink", "billing", "--json", "-c", config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # as on a terminal
        )

    def write(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, number: signal.Signals) -> tuple[int, dict[str, Any], str]:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out, err = self.process.stdout.read(), self.process.stderr.read()
        return self.process.wait(30), json.loads(out), err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_flushes_and_ends(broker: Broker, tmp_path: Path, number: signal.Signals) -> None:
    one = Process(configured(tmp_path, broker.bootstrap))
    with one.process:
        try:
            one.write("orders 0 1\n")
            deadline = time.monotonic() + 60
            while not broker.written():
                assert time.monotonic() < deadline, "a line is sent within a second, and the input need not end for it"
            one.write("orders 0 2\norders 0 3\norders 0 4444")  # the last line is not whole yet
            code, answer, err = one.end(number)
        finally:
            one.process.kill()
    assert (code, err, answer["accepted"]) == (0, "", 3)
    assert [run for said in broker.written() for run in said["runs"]] in ([[1, 1], [2, 3]], [[1, 1], [2, 2], [3, 3]])


# --- the loop -----------------------------------------------------------------------------------------------------------


class Producer:
    """Acknowledges at the next ``poll`` unless it holds; answers ``failures`` first."""

    def __init__(self, conf: dict[str, Any]) -> None:
        self.conf = conf
        self.counts = {"orders": [2], OBSERVED: [2]}
        """Partitions of topics, as they are told one after the other; the last one stays."""
        self.records: list[tuple[str, int, dict[str, Any]]] = []
        self.open: deque[Callable[[Any, Any], None]] = deque()
        self.failures: deque[KafkaError] = deque()
        self.holds = False
        self.purged = False
        self.asked: list[str] = []
        self.trouble: KafkaException | None = None
        self.at_poll: Callable[[], None] = lambda: None

    def produce(self, topic: str, value: bytes, *, partition: int, on_delivery: Callable[[Any, Any], None]) -> None:
        self.records.append((topic, partition, json.loads(value)))
        self.open.append(on_delivery)

    def poll(self, timeout: float) -> int:
        self.at_poll()
        while self.open and not self.holds:
            self.open.popleft()(self.failures.popleft() if self.failures else None, None)
        return 0

    def purge(self) -> None:
        self.purged = True

    def list_topics(self, topic: str, timeout: float) -> Any:
        self.asked.append(topic)
        if self.trouble is not None:
            raise self.trouble
        told = self.counts.get(topic, [0])
        count = told.pop(0) if len(told) > 1 else told[0]
        error = None if count else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        return SimpleNamespace(topics={topic: SimpleNamespace(error=error, partitions=dict.fromkeys(range(count)))})


class Admin:
    """Tells where logs end, or fails as ``failures`` say for each time that it is asked; None: no answer."""

    def __init__(self) -> None:
        self.ends: dict[int, int] = {}
        """By partition; where nothing is said, far away."""
        self.asked: list[list[int]] = []
        self.failures: deque[dict[int, KafkaError | None]] = deque()
        self.open: list[tuple[int, Future[Any]]] = []
        self.confs: list[dict[str, Any]] = []
        """Of each client."""

    def __call__(self, conf: dict[str, Any]) -> Admin:
        self.confs.append(conf)
        return self

    def list_offsets(
        self, wanted: dict[TopicPartition, Any], /, *, isolation_level: Any, request_timeout: float
    ) -> dict[TopicPartition, Future[Any]]:
        assert isolation_level is IsolationLevel.READ_UNCOMMITTED, "else it would be the last stable offset"
        failures = self.failures.popleft() if self.failures else {}
        self.asked.append(sorted(one.partition for one in wanted))
        futures: dict[TopicPartition, Future[Any]] = {one: Future() for one in wanted}
        for one, future in futures.items():
            error = failures.get(one.partition)
            if error is not None:
                future.set_exception(KafkaException(error))
            elif one.partition in failures:
                self.open.append((one.partition, future))
            else:
                self._answer(one.partition, future)
        return futures

    def _answer(self, partition: int, future: Future[Any]) -> None:
        future.set_result(SimpleNamespace(offset=self.ends.get(partition, 2**40)))

    def answer(self) -> None:
        """What was not answered yet."""
        for one in self.open:
            self._answer(*one)
        self.open.clear()


class World:
    """One run, with a pipe for its standard input."""

    def __init__(self, config: Config, stop: Stop, source: str | None = None) -> None:
        self.made: list[Producer] = []
        self.admin = Admin()
        self.observe = Observe(config, "billing", source, stop, make_producer=self._make, make_admin=self.admin)
        (self.producer,) = self.made
        self.stdin, self.pipe = os.pipe()

    def _make(self, conf: dict[str, Any]) -> Producer:
        self.made.append(Producer(conf))
        return self.made[0]

    def write(self, text: str, *, ended: bool = True) -> None:
        os.write(self.pipe, text.encode())
        if ended:
            self.end()

    def end(self) -> None:
        os.close(self.pipe)
        self.pipe = -1

    def run(self) -> str | None:
        return self.observe.run(self.stdin)

    def close(self) -> None:
        for fd in (self.stdin, self.pipe):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def stop() -> Iterator[Stop]:
    with Stop() as made:
        yield made


@pytest.fixture
def world(tmp_path: Path, stop: Stop) -> Iterator[World]:
    made = World(load(configured(tmp_path, "b:1"), {}, ()), stop)
    yield made
    assert made.producer.purged, "or the end would wait for the brokers"
    made.close()


def test_the_producer_never_gives_up_or_overtakes(world: World) -> None:
    conf = world.producer.conf
    assert (conf["acks"], conf["enable.idempotence"], conf["message.timeout.ms"]) == ("all", True, 0)
    assert (conf["bootstrap.servers"], conf["allow.auto.create.topics"]) == ("b:1", False)
    world.end()
    assert world.run() is None


def test_nothing_is_read_while_the_backlog_is_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledgements are held back until reading has stopped; then everything arrives."""
    monkeypatch.setattr(command, "BACKLOG_BYTES_MAX", 40_000)
    world.producer.holds = True
    turns, sizes = iter(range(10_000)), []

    def at_poll() -> None:
        observe = world.observe
        sizes.append(observe.reports.size + observe._in_flight_bytes)
        if next(turns) == 30:
            world.producer.holds = False

    world.producer.at_poll = at_poll
    monkeypatch.setattr(command, "FLIGHT_SECONDS", 0.001)
    lines = "".join(f"orders 0 {offset}\n" for offset in range(0, 80_000, 2))
    writer = threading.Thread(target=world.write, args=(lines,))
    writer.start()
    assert world.run() is None
    writer.join(30)
    most = 40_000 + command.READ_BYTES // len("orders 0 1\n") * 600  # what is read at once is taken whole
    assert max(sizes) < most
    assert sum(len(said["runs"]) for _, _, said in world.producer.records) == 40_000
    assert world.observe.accepted == 40_000


def test_a_refusal_ends_it_and_the_rest_is_not_known(world: World) -> None:
    world.producer.failures.append(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "not you"))
    world.write("orders 0 1\norders 1 1\norders 0 2\n")
    failure = world.run()
    assert failure is not None
    assert "ACLs forbid it (not you)" in failure
    assert (world.observe.accepted, world.observe.unacknowledged) == (1, 2)


def test_a_line_that_is_too_large_for_kafka_is_a_bad_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.producer.failures.append(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    world.write(observation() + observation())
    assert world.run() is None
    assert (world.observe.accepted, world.observe.bad_lines, world.observe.unacknowledged) == (1, 1, 0)
    assert capsys.readouterr().err.startswith("line 1: Kafka takes no record of that size")


def test_no_acknowledgement_at_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "END_SECONDS", 0.2)
    world.producer.holds = True
    world.write("orders 0 1\norders 0 2\norders 1 1\n")
    failure = world.run()
    assert failure is not None
    assert failure.startswith("Kafka did not acknowledge within 0.2 s")
    assert (world.observe.accepted, world.observe.unacknowledged) == (0, 3)


def test_after_a_signal_what_is_there_already_is_taken(world: World, stop: Stop) -> None:
    world.write("orders 0 1\norders 1 2\n", ended=False)
    signal.raise_signal(signal.SIGTERM)
    assert world.run() is None
    assert world.observe.accepted == 2
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_partition_that_is_new_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PROGRESS_SECONDS", 0.001)
    world.producer.counts = {"orders": [3], OBSERVED: [2, 2, 3]}
    world.write("orders 2 1\norders 2 2\norders 1 2\n")
    assert world.run() is None
    assert world.observe.accepted == 3
    assert world.producer.asked == [OBSERVED, "orders"] * 2 + [OBSERVED]


def test_a_partition_that_nobody_sees_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "GROW_SECONDS", 0.0)
    world.producer.counts = {"orders": [3], OBSERVED: [2]}
    world.write("orders 1 1\norders 2 1\norders 1 2\n")
    failure = world.run()
    assert failure == f"topic {OBSERVED} has 2 partitions, not 3: start a worker, which sees to it; nothing was taken from line 2 on"
    assert (world.observe.accepted, world.observe.unacknowledged) == (1, 0), "what was taken before is written all the same"


ONE_LINE = len("orders 0 1\n")
"""As ``READ_BYTES``: each line is read by itself."""
AWAY = KafkaError(KafkaError._TRANSPORT, "away")


def runs(world: World) -> list[tuple[int, list[list[int]]]]:
    return [(partition, said["runs"]) for _, partition, said in world.producer.records]


def test_ends_are_asked_for_once_a_read_and_only_where_a_line_is_above(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.admin.ends = {0: 5, 1: 2}
    world.write("orders 0 1\norders 1 1\norders 0 2\norders 0 7\norders 0 3\n", ended=False)
    world.observe._turn(world.stdin)
    assert (world.admin.asked, world.observe.rejected) == ([[0, 1]], [(4, "orders/0 ends at 5: offset 7 was not written yet")])
    monkeypatch.setattr(command, "READ_BYTES", ONE_LINE)
    world.admin.ends = {0: 9}
    world.write("orders 0 4\norders 0 6\norders 0 8\norders 0 0\n" + observation(claim=9), ended=True)
    assert world.run() is None
    assert world.admin.asked == [[0, 1], [0]], "the log is known to reach up to 9 now"
    assert (world.observe.accepted, world.observe.bad_lines) == (9, 1)
    assert world.admin.confs == [{"client.id": "gapstream", "log_level": 2, "bootstrap.servers": "b:1"}], "one client, and kept"


def test_ends_that_are_not_told_at_once_are_asked_for_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "AGAIN_SECONDS", 0.001)
    world.admin.failures += [{0: AWAY, 1: AWAY}, {1: KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)}]
    world.admin.ends = {1: 1}
    world.write("orders 0 1\norders 1 1\norders 1 0\n")
    assert world.run() is None
    assert world.admin.asked == [[0, 1], [0, 1], [1]]
    assert len(world.admin.confs) == 3, "a client keeps to the leaders that it knows, so another one asks again"
    assert (world.observe.accepted, world.observe.rejected) == (2, [(2, "orders/1 ends at 1: offset 1 was not written yet")])


def test_an_end_below_zero_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """librdkafka tells it, and no error, where the connection to the leader broke."""
    monkeypatch.setattr(ends, "AGAIN_SECONDS", 0.001)
    told = iter([OFFSET_INVALID, 3])
    monkeypatch.setattr(world.admin, "_answer", lambda partition, future: future.set_result(SimpleNamespace(offset=next(told))))
    world.write("orders 0 2\n")
    assert world.run() is None
    assert (world.observe.accepted, world.admin.asked, len(world.admin.confs)) == (1, [[0], [0]], 2)


def test_ends_that_are_never_told(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ends, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(command, "END_SECONDS", 0.2)
    world.admin.failures += [{1: AWAY}] * 1_000
    world.write("orders 0 1\nnonsense\norders 0 3\norders 1 1\nnonsense\norders 0 4\n")
    failure = world.run()
    assert failure is not None
    assert failure.startswith("it is not known where orders/1 ends: Kafka can't be reached (away)")
    assert failure.endswith("; nothing was taken from line 4 on")
    assert (runs(world), world.observe.accepted, world.observe.unacknowledged) == ([(0, [[1, 1], [3, 3]])], 2, 0)
    assert capsys.readouterr().err.startswith("line 2: ")
    assert len(world.admin.asked) > 2


def test_a_refusal_to_tell_ends_is_not_waited_for(world: World) -> None:
    world.admin.failures.append({0: KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "not you")})
    world.write("orders 1 1\norders 0 1\n")
    failure = world.run()
    assert failure is not None
    assert "orders/0 ends: Kafka's ACLs forbid it (not you)" in failure
    assert failure.endswith("; nothing was taken from line 2 on")
    assert (world.admin.asked, world.observe.accepted) == ([[0, 1]], 1)


def test_a_refusal_to_tell_one_end_keeps_nobody_from_asking_for_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "AGAIN_SECONDS", 0.001)
    world.admin.failures += [{0: KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "not you"), 1: AWAY}]
    world.write("orders 1 1\norders 0 1\n")
    failure = world.run()
    assert failure is not None
    assert failure.startswith("it is not known where orders/0 ends: Kafka's ACLs forbid it (not you)")
    assert failure.endswith("; nothing was taken from line 2 on")
    assert (world.admin.asked, world.observe.accepted) == ([[0, 1], [1]], 1)


def test_what_was_taken_leaves_and_is_acknowledged_while_ends_are_awaited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "READ_BYTES", ONE_LINE)
    world.admin.failures += [{}, {1: None}]

    def at_poll() -> None:
        if world.observe.accepted == 1:
            world.admin.answer()

    world.producer.at_poll = at_poll
    world.write("orders 0 1\norders 1 1\n")
    assert world.run() is None
    assert (world.observe.accepted, world.admin.asked) == (2, [[0], [1]])


def test_a_signal_while_ends_are_awaited(world: World, stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "STOP_ENDS_SECONDS", 0.2)
    world.admin.failures.append({1: None})
    world.producer.at_poll = lambda: None if stop.asked else signal.raise_signal(signal.SIGTERM)
    world.write("orders 0 1\norders 1 1\norders 0 2\n")
    began = time.monotonic()
    assert world.run() == f"it is not known where orders/1 ends: {ends.NO_ANSWER}; nothing was taken from line 2 on"
    assert time.monotonic() - began < 5
    assert (world.observe.accepted, world.observe.unacknowledged) == (1, 0)


def test_ends_are_not_awaited_when_kafka_refuses_what_was_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "READ_BYTES", ONE_LINE)
    world.admin.failures += [{}, {1: None}]
    world.producer.failures.append(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "not you"))
    world.write("orders 0 1\norders 1 1\n")
    failure = world.run()
    assert failure is not None
    assert failure.startswith("Kafka's ACLs forbid it (not you)")
    assert failure.endswith("; nothing was taken from line 2 on")


def test_settings_that_no_client_takes(tmp_path: Path, stop: Stop) -> None:
    def refuse(conf: dict[str, Any]) -> Producer:
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG, "no such property"))

    with pytest.raises(Unavailable, match="no such property"):
        Observe(load(configured(tmp_path, "b:1"), {}, ()), "billing", None, stop, make_producer=refuse)


def test_bad_lines_in_the_answer_are_bounded(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "REJECTED_LISTED_MAX", 3)
    world.write("x\n" * 10)
    assert world.run() is None
    assert (len(world.observe.summary()["rejected"]), world.observe.summary()["bad_lines"]) == (3, 10)
    assert capsys.readouterr().err.count("\n") == 10


def test_progress_is_told_on_a_terminal_only(
    tmp_path: Path, stop: Stop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    world = World(load(configured(tmp_path, "b:1"), {}, ()), stop)
    world.write("orders 0 1\nnonsense\norders 0 2\n")
    assert world.run() is None
    world.close()
    err = capsys.readouterr().err
    assert err.startswith(f"{command.CLEAR_LINE}0 lines, 0 bad, 0 on the way, 0 observations{command.CLEAR_LINE}line 2: "), (
        "no line runs into another"
    )
    assert err.endswith(command.CLEAR_LINE)
