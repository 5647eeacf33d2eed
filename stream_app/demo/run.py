"""The demo itself: starts everything, lets it run, compares, and ends everything."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import yaml

from stream_app.demo import warehouse
from stream_app.demo.asking import StatusWatch, ask
from stream_app.demo.broker import EmbeddedBroker
from stream_app.demo.crew import Asked, Crew, Ended, Message, Said
from stream_app.demo.faults import Fault
from stream_app.demo.pipeline import SINK, Settings
from stream_app.demo.state import Outcome, Row, State
from stream_app.errors import UsageError
from stream_app.kafka.names import TopicNames, alerts_topic, status_topic

APP_ID = "demo"
TOPICS = ("orders", "payments")
HOST = "127.0.0.1"
START_SECONDS = 60.0
"""Normally 5 to 10 s, most of it imports and the consumer group's first assignment."""
SETTLE_SECONDS = 10.0
"""After its time is over a run may need so much longer, on a machine that is out of breath, until the last event is read."""
REPORT_SECONDS = 5.0
TICK_S = 0.1
SETTLE_TICK_S = 0.3
SEED_MAX = 1_000_000


class View(Protocol):
    """Shows a running demo. Called by one thread."""

    wants_status: bool
    """Whether the worker's status is to be asked for."""

    def doing(self, state: State) -> None:
        """``state.doing`` or ``state.status`` changed."""

    def injected(self, row: Row) -> None:
        """A fault was done."""

    def told(self, row: Row) -> None:
        """A fault's event was read."""

    def tick(self, state: State) -> None:
        """Ten times a second."""


class _Over(Exception):
    """The run can't go on; the message says why, in one sentence."""


class _Stopped(Exception):
    """Somebody asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class Options:
    """From the command line."""

    seconds: float | None
    """None: until it is stopped."""
    seed: int
    port: int
    clickhouse: bool
    """Whether a topic is loaded into a table."""


def choose(seconds: float | None, seed: int | None, port: int | None) -> Options:
    """Fill in what was not given. Raises UsageError if the port is taken."""
    if port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise UsageError(f"port {port} can't be used ({error.strerror}): name another one, or leave --port out") from error
    return Options(seconds, secrets.randbelow(SEED_MAX) if seed is None else seed, port or _free_port(), warehouse.is_installed())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def run(options: Options, view: View) -> Outcome:
    """One demo, from start to end; everything that it started is gone when it returns.

    Raises GapstreamError if it can't even begin.
    """
    state = State(options.seed, f"http://{HOST}:{options.port}", options.seconds)
    with contextlib.closing(EmbeddedBroker()) as broker, Crew() as crew, crew.signals():
        try:
            return _Demo(options, state, view, crew, broker).run()
        finally:
            state.doing = "ending"
            view.doing(state)
            crew.close()


class _Demo:
    def __init__(self, options: Options, state: State, view: View, crew: Crew, broker: EmbeddedBroker) -> None:
        self._options, self._state, self._view, self._crew, self._broker = options, state, view, crew, broker
        self._clickhouse = _free_port() if options.clickhouse else None
        self._topics = (*TOPICS, warehouse.TOPIC) if options.clickhouse else TOPICS
        self._ready: set[str] = set()
        self._asked = self._answered = 0
        self._ticked = 0.0

    def run(self) -> Outcome:
        """Until its time is over, something broke, or somebody stopped it."""
        watch = None
        try:
            self._start()
            if self._view.wants_status:
                watch = StatusWatch(self._options.port, self._note_status)
            self._pump_until(lambda: self._state.seconds is not None and self._state.elapsed_s >= self._state.seconds, None)
            return self._compare()
        except _Over as over:
            return self._end(str(over), None)
        except _Stopped as stopped:
            return self._end(None, stopped.number)
        finally:
            if watch is not None:
                watch.stop()

    # --- the begin ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        table = ", a ClickHouse" if self._clickhouse else ""
        self._doing(f"starting the embedded broker{table}, a worker, a pipeline and a detector")
        deadline = time.monotonic() + START_SECONDS
        if self._clickhouse is not None:
            self._start_clickhouse(self._clickhouse)
        partitions = self._broker.make(self._topics)
        names = [TopicNames.of(APP_ID, topic) for topic in self._topics]
        self._broker.make(topic for name in names for topic in (name.observations, name.changelog))
        self._broker.make([alerts_topic(APP_ID), status_topic(APP_ID)])
        config = self._crew.folder / "gapstream.yaml"
        config.write_text(self._config())
        settings = Settings(self._broker.bootstrap, APP_ID, partitions, self._options.seed, self._options.seconds, self._clickhouse)
        self._state.kinds = settings.plan().kinds
        if self._clickhouse is not None:  # a table that is not there when it is first asked is asked again much later
            self._pump_until(lambda: "clickhouse" in self._ready, deadline)
            warehouse.create(self._clickhouse)
        worker = ["-m", "stream_app", "worker", "-c", str(config)]
        self._crew.start("worker", ["-m", "stream_app.demo.overlook", *worker], speaks=False)
        self._crew.start("pipeline", ["-m", "stream_app.demo.pipeline", settings.to_json()], speaks=True, listens=True)
        self._crew.start("detector", ["-m", "stream_app.demo.detector", self._broker.bootstrap, APP_ID], speaks=True, listens=True)
        self._pump_until(lambda: {"pipeline", "detector"} <= self._ready, deadline)
        self._doing("waiting for the worker")
        self._pump_until(self._is_worker_ready, deadline)
        self._crew.tell("pipeline", "go")
        self._state.begun_at = time.monotonic()
        self._doing("running")

    def _start_clickhouse(self, port: int) -> None:
        folder = str(self._crew.folder / "clickhouse")
        self._crew.start("clickhouse", ["-m", "stream_app.demo.engine", "--port", str(port), "--path", folder], speaks=True)

    def _sinks(self, topic: str) -> dict[str, Any]:
        if topic == warehouse.TOPIC and self._clickhouse is not None:
            return {warehouse.SINK: warehouse.sink(self._clickhouse)}
        return {SINK: {"type": "consumer", "grace": "1s", "from": "earliest"}}

    def _config(self) -> str:
        text: str = yaml.safe_dump(
            {
                "kafka": {"bootstrap.servers": self._broker.bootstrap},
                "app": {
                    "id": APP_ID,
                    "instance": "worker-1",
                    "state_dir": str(self._crew.folder / "state"),
                    "standby_replicas": 0,
                    "topics": {"create": False},
                },
                "topics": {topic: {"sinks": self._sinks(topic)} for topic in self._topics},
                "http": {"host": HOST, "port": self._options.port},
            }
        )
        return text

    def _is_worker_ready(self) -> bool:
        return ask(self._options.port, "/readyz")[0] == HTTPStatus.OK

    # --- the middle ---------------------------------------------------------------------------------------------------

    def _doing(self, what: str) -> None:
        self._state.doing = what
        self._view.doing(self._state)

    def _pump_until(self, done: Callable[[], bool], deadline: float | None) -> None:
        """Take messages until ``done``. Raises _Over beyond ``deadline`` (monotonic)."""
        while not done():
            if deadline is not None and time.monotonic() > deadline:
                raise _Over(f"not everything was ready within {START_SECONDS:g} s{self._why_not_ready()}; run the demo again")
            self._pump(TICK_S)

    def _why_not_ready(self) -> str:
        wanted = (*(["clickhouse"] if self._clickhouse else []), "pipeline", "detector")
        missing = [name for name in wanted if name not in self._ready]
        if missing:
            return f" ({' and '.join(missing)} said nothing)"
        words = self._crew.last_words("worker")
        return f" (the worker's last words: {words})" if words else " (the worker said nothing)"

    def _pump(self, timeout_s: float) -> None:
        for message in self._crew.messages(timeout_s):
            self._take(message)
        if time.monotonic() - self._ticked >= TICK_S:
            self._ticked = time.monotonic()
            self._view.tick(self._state)

    def _take(self, message: Message) -> None:
        match message:
            case Asked(number):
                raise _Stopped(number)
            case Ended(name, status):
                raise _Over(self._obituary(name, status))
            case Said(name, {"ready": True}):
                self._ready.add(name)
            case Said(_, {"injected": fault, "at": at}):
                self._note_injected(Fault.from_json(fault), at)
            case Said(_, {"seen": faults, "at": at}):
                for fault in faults:
                    self._note_seen(Fault.from_json(fault), at)
            case Said(_, {"produced": produced, "consumed": consumed}):
                self._state.produced, self._state.consumed = max(produced, consumed), consumed  # what is consumed is produced
            case Said(_, {"report": number, "detected": faults, "trouble": trouble}):
                self._answered = number
                self._state.detected = [Fault.from_json(fault) for fault in faults]
                self._state.trouble = trouble

    def _note_injected(self, fault: Fault, at: float) -> None:
        row = self._state.note_injected(fault, at)
        self._view.injected(row)
        if row.told_at is not None:
            self._view.told(row)

    def _note_seen(self, fault: Fault, at: float) -> None:
        for row in self._state.note_seen(fault, at):
            self._view.told(row)

    def _note_status(self, status: list[dict[str, object]]) -> None:
        self._state.status = status  # one assignment, from the thread that asks

    def _obituary(self, name: str, status: int) -> str:
        if status < 0:
            what = f"the {name} was killed by {signal.Signals(-status).name}"
        else:
            words = self._crew.last_words(name)
            what = f"the {name} ended by itself with status {status}" + (f", saying: {words}" if words else "")
        return f"{what}; without it nothing can be compared, so run the demo again"

    # --- the end ------------------------------------------------------------------------------------------------------

    def _compare(self) -> Outcome:
        self._doing("waiting for the last events")
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            self._report()
            failure = self._difference()
            if failure is None or time.monotonic() > deadline:
                return Outcome(self._state, failure)
            self._pump(SETTLE_TICK_S)

    def _report(self) -> None:
        """Have the detector say everything it knows."""
        self._asked += 1
        self._crew.tell("detector", f"report {self._asked}")
        deadline = time.monotonic() + REPORT_SECONDS
        while self._answered < self._asked and time.monotonic() < deadline:
            self._pump(TICK_S)

    def _difference(self) -> str | None:
        """Why this run is no success; None: it is one."""
        state = self._state
        absent = [str(kind) for kind in state.kinds if not state.done[kind]]
        if self._answered < self._asked:
            return "the detector did not answer in time; run the demo again with more --seconds"
        if state.trouble is not None:
            return state.trouble
        if not state.is_equal():
            untold = len(set(state.injected) - set(state.detected))
            invented = len(set(state.detected) - set(state.injected))
            return f"{untold} of {len(state.injected)} injected faults were not told, and {invented} were told that nobody injected"
        if absent:
            return f"no fault of the kind {' or '.join(absent)} was injected in time; run the demo again with more --seconds"
        if not self._crew.runs("worker"):
            return "the worker is gone; run the demo again"
        return None

    def _end(self, failure: str | None, stopped_by: int | None) -> Outcome:
        """Before its time: with what the detector knows by now."""
        self._doing("stopping")
        if "detector" in self._ready and self._crew.runs("detector"):
            self._hear_last_report()
        if failure is None and stopped_by is not None and self._state.seconds is not None:
            failure = f"stopped by {signal.Signals(stopped_by).name} before its {self._state.seconds:g} s were over"
        return Outcome(self._state, failure, stopped_by)

    def _hear_last_report(self) -> None:
        """Whatever else ends meanwhile has been told."""
        self._asked += 1
        self._crew.tell("detector", f"report {self._asked}")
        deadline = time.monotonic() + REPORT_SECONDS
        while self._answered < self._asked and time.monotonic() < deadline:
            for message in self._crew.messages(TICK_S):
                if isinstance(message, Said):
                    self._take(message)
                elif isinstance(message, Ended) and message.name == "detector":
                    return
