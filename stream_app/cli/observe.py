"""``gapstream observe``: what a program in any language says on its standard output becomes observations."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import click

from stream_app.cli.ends import AdminLike, Ends
from stream_app.cli.main import EXIT_COULD_NOT_TELL, warn, with_config, with_json
from stream_app.cli.output import print_json_line, text
from stream_app.cli.reports import BadLine, Lines, Partition, Report, Reports, Said, coordinates, json_fields, plain
from stream_app.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from stream_app.config import Config

BACKLOG_BYTES_MAX = 16 * 1024 * 1024
"""Gathered, or on the way and not acknowledged: above it nothing is read, and whoever writes the lines waits."""
READ_BYTES = 64 * 1024
"""A pipe's size on Linux."""
CALL_SECONDS = 10.0
GROW_SECONDS = 20.0
"""A worker lets the observations topic grow with the watched one within five seconds; then clients have to hear of it."""
END_SECONDS = 30.0
"""What was read has so long to be acknowledged at the end of the input, and logs to tell where they end: brokers may be restarting."""
STOP_SECONDS = 8.0
"""For both after a signal: whoever sent it kills after ten."""
STOP_ENDS_SECONDS = STOP_SECONDS / 2
"""Of these for where logs end: what is taken then has to be acknowledged still."""
DRAIN_SECONDS = 1.0
"""After a signal so long is read what is there already."""
FLIGHT_SECONDS = 0.05
"""The longest rest while acknowledgements are awaited."""
REST_SECONDS = 1.0
PROGRESS_SECONDS = 0.5
REJECTED_LISTED_MAX = 1_000
"""Bad lines in the answer of ``--json``; all of them are counted, and told on stderr."""
EXIT_BAD_LINES = 1
CLEAR_LINE = "\r\033[K"
"""Of a terminal (ECMA-48: carriage return, erase in line)."""


class ProducerLike(Protocol):
    """The part of ``confluent_kafka.Producer`` that is used."""

    def produce(self, topic: str, value: bytes, *, partition: int, on_delivery: Callable[[Any, Any], None]) -> None:
        """Queue a record. Raises KafkaException."""

    def poll(self, timeout: float) -> int:
        """Wait for events and run their callbacks."""

    def purge(self) -> None:
        """Drop what is queued and in flight."""

    def list_topics(self, topic: str, timeout: float) -> Any:
        """The cluster's metadata. Raises KafkaException."""


@click.command(
    epilog="""\b
Example:
  gapstream observe --sink warehouse -c gapstream.yaml < received.txt
  echo orders 3 100 199 | gapstream observe --sink billing
  gapstream observe --sink billing --source nightly < observations.ndjson

Exit codes: 0 all lines are written, 1 some could not be taken, 2 usage, 3 Kafka did not acknowledge all of them."""
)
@click.option("--sink", required=True, metavar="S", help="The sink that reports.")
@click.option("--source", metavar="NAME", help="Name of the source; then every line is JSON with a sequence. Default: a random one.")
@with_json
@with_config
def command(config: Config, sink: str, source: str | None, as_json: bool) -> int:
    """Report what a sink has received, as lines on standard input.

    A line is "topic partition offset [last]", or an observation in JSON. Each line counts, and is sent within a second. Lines about
    offsets that are not in the log yet are told on stderr and left out, as all that can't be taken.
    """
    _check_names(sink, source)
    with Stop() as stop:
        observe = Observe(config, sink, source, stop)
        failure = observe.run(sys.stdin.fileno())
    if as_json:
        print_json_line(observe.summary())
    return _tell_end(observe, failure)


def _tell_end(observe: Observe, failure: str | None) -> int:
    """Say on stderr what is not as it should be; the exit code."""
    if observe.bad_lines:
        click.echo(f"{observe.bad_lines} of {observe.lines.number} lines could not be taken, see above", err=True)
    if failure is not None:
        left = observe.unacknowledged
        unknown = f"; {left} line{'s are' if left != 1 else ' is'} not known to be written" if left else ""
        click.echo(failure + unknown, err=True)
        return EXIT_COULD_NOT_TELL
    return EXIT_BAD_LINES if observe.bad_lines else 0


def _check_names(sink: str, source: str | None) -> None:
    from stream_app.core.model import Observation
    from stream_app.sinks.observation import encode

    named = None if source is None else Observation("x", ((0, 1),), source=source, sequence=0)
    for name, said in (("sink", Observation(sink, ((0, 1),))), ("source", named)):
        try:
            if said is not None:
                encode(said, "x", 0)
        except ValueError as error:
            raise UsageError(f"--{name} can't be that: {error}") from error


class Stop:
    """SIGTERM and SIGINT ask for the end; a second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        self.fd, self._wake = os.pipe()
        """Becomes readable when a signal comes."""
        os.set_blocking(self._wake, False)

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        self._woken = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        for one in self._before:
            signal.signal(one, signal.default_int_handler)  # KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._wake)


class _Bad(NamedTuple):
    """A line that can't be taken, until it is its turn to be told."""

    line: int
    error: str


class Observe:
    """One run of the command."""

    def __init__(
        self,
        config: Config,
        sink: str,
        source: str | None,
        stop: Stop,
        *,
        make_producer: Callable[[dict[str, Any]], ProducerLike] | None = None,
        make_admin: Callable[[dict[str, Any]], AdminLike] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``make_producer``, ``make_admin``: confluent-kafka's, unless others are given."""
        self.lines = Lines()
        self.bad_lines = self.accepted = self.observations = self.in_flight_lines = 0
        self.rejected: list[tuple[int, str]] = []
        self.reports = Reports(sink, source or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}", numbered=source is not None)
        self._config, self._source, self._stop, self._clock = config, source, stop, clock
        self._failure: str | None = None
        """Why nothing more is read."""
        self._refused = False
        """Whether Kafka refused an observation: what follows it would make a repeat of it, so none follows."""
        self._in_flight_bytes = 0
        self._known: dict[tuple[bytes, bytes], Partition] = {}
        """As plain lines name them."""
        self._warned: set[str] = set()
        self._progress_at: float | None = clock() if sys.stderr.isatty() else None
        self._stop_by = float("inf")
        """Set when a signal is noticed."""
        self._producer, self._topics = _connect(config, make_producer)
        self._ends = Ends(lambda: _settings(config), make_admin)

    @property
    def unacknowledged(self) -> int:
        """Lines that were taken and are not known to be written."""
        return self.reports.lines + self.in_flight_lines

    def summary(self) -> dict[str, Any]:
        """As ``POST /api/observations`` answers, and what a run has beside."""
        listed = [{"line": number, "error": error} for number, error in self.rejected]
        counts = {"bad_lines": self.bad_lines, "unacknowledged": self.unacknowledged, "observations": self.observations}
        return {"accepted": self.accepted, "rejected": listed, **counts, "source": self.reports.source}

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, stdin: int) -> str | None:
        """Until the end of ``stdin``, a signal, or a failure that lasts; why not all is known to be written, or None."""
        try:
            while not self._stop.asked and self._failure is None:
                if self._turn(stdin):
                    self._take(self.lines.end())
                    break
        except Unavailable as error:
            self._failure = str(error)
        if self._stop.asked and self._failure is None:
            self._drain(stdin)
        self._finish()
        self._producer.purge()  # or the client would wait for the brokers
        return self._failure

    def _turn(self, stdin: int) -> bool:
        """Send what is due, and read if there is room; whether the input has ended."""
        now = self._clock()
        full = self.reports.size + self._in_flight_bytes > BACKLOG_BYTES_MAX
        self._send(None if full and not self._in_flight_bytes else now)
        self._producer.poll(0)
        self._tell_progress(now)
        if full:
            self._producer.poll(FLIGHT_SECONDS)
            return False
        ready, _, _ = select.select([stdin, self._stop.fd], [], [], self._pause(now))
        if stdin not in ready:
            return False
        data = os.read(stdin, READ_BYTES)
        self._take(self.lines.feed(data))
        return not data

    def _drain(self, stdin: int) -> None:
        """Take what was written before the signal: in a shell's pipeline it reaches both sides at once."""
        deadline = self._clock() + DRAIN_SECONDS
        try:
            while self._failure is None and self._clock() < deadline and select.select([stdin], [], [], 0)[0]:
                if self._turn(stdin):
                    self._take(self.lines.end())
                    break
        except Unavailable as error:
            self._failure = str(error)

    def _pause(self, now: float) -> float:
        rest = FLIGHT_SECONDS if self.in_flight_lines else REST_SECONDS
        due = self.reports.next_due
        return rest if due is None else min(max(due - now, 0.0), rest)

    def _finish(self) -> None:
        """Send what is left, and wait for the acknowledgements."""
        if not self._refused:
            self._send(None)
        seconds = END_SECONDS if self._failure is None and not self._stop.asked else STOP_SECONDS
        deadline = min(self._clock() + seconds, self._stopping())
        while self.in_flight_lines and not self._refused and self._clock() < deadline:
            self._producer.poll(FLIGHT_SECONDS)
            self._tell_progress(self._clock())
        self._clear_progress()
        if self.in_flight_lines and self._failure is None:
            self._failure = f"Kafka did not acknowledge within {seconds:g} s: see bootstrap.servers and whether the brokers are up"

    def _stopping(self) -> float:
        """By when all has to be over, for a signal that came."""
        if self._stop.asked:
            self._stop_by = min(self._stop_by, self._clock() + STOP_SECONDS)
        return self._stop_by

    def _tell_progress(self, now: float) -> None:
        if self._progress_at is not None and now >= self._progress_at:
            self._progress_at = now + PROGRESS_SECONDS
            said = f"{self.lines.number} lines, {self.bad_lines} bad, {self.unacknowledged} on the way, {self.observations} observations"
            click.echo(f"{CLEAR_LINE}{said}", nl=False, err=True)

    def _clear_progress(self) -> None:
        """Before anything else is said on the terminal."""
        if self._progress_at is not None:
            click.echo(CLEAR_LINE, nl=False, err=True)

    # --- lines in -----------------------------------------------------------------------------------------------------

    def _take(self, lines: Iterable[tuple[int, bytes | None]]) -> None:
        """Take the lines of one read. Where logs end is asked for once, for all that speak of more than is known of theirs."""
        said, failed = self._understand(lines)
        above = {one.partition for one in said if isinstance(one, Said) and one.is_above}
        unknown = self._find_ends(above) if above else {}
        for one in said:
            if isinstance(one, _Bad):
                self._reject(one.line, one.error)
            elif not one.is_above:
                self._put(one)
            elif one.partition in unknown:
                where = f"{one.partition.topic}/{one.partition.number}"
                why = self._failure or f"it is not known where {where} ends: {unknown[one.partition]}"
                raise Unavailable(f"{why}; nothing was taken from line {one.line} on")
            else:
                self._reject(one.line, one.why_above())
        if failed is not None:
            raise failed

    def _understand(self, lines: Iterable[tuple[int, bytes | None]]) -> tuple[list[Said | _Bad], Unavailable | None]:
        """What the lines say, up to the first one that can't be looked into, and why that is so."""
        said: list[Said | _Bad] = []
        for number, line in lines:
            try:
                one = self._read_line(number, line)
                if one is not None:
                    said.append(one)
            except BadLine as error:
                said.append(_Bad(number, str(error)))
            except Unavailable as error:
                return said, Unavailable(f"{error}; nothing was taken from line {number} on")
        return said, None

    def _find_ends(self, partitions: Iterable[Partition]) -> dict[Partition, str]:
        """Ask where these end; those that did not tell, and why."""
        deadline = self._clock() + END_SECONDS

        def go_on() -> bool:
            now = self._clock()
            self._send(now)
            self._producer.poll(0)
            self._tell_progress(now)
            stopping = self._stopping() - STOP_SECONDS + STOP_ENDS_SECONDS
            return self._failure is None and now < min(deadline, stopping)

        return self._ends.find(partitions, go_on)

    def _put(self, said: Said) -> None:
        now = self._clock()
        if said.fields is None:
            self.reports.gather(said.partition, said.first, said.stop, now)
            return
        if not self.reports.add(said.fields, said.line, said.partition, now):
            where, sequence = f"{said.partition.topic}/{said.partition.number}", said.fields["sequence"]
            self._warn_once(f"line {said.line}: sequence {sequence} of {where} is not above those before it: it counts as a repeat")

    def _read_line(self, number: int, line: bytes | None) -> Said | None:
        """None: it is blank. Raises BadLine and Unavailable."""
        if line is None:
            raise BadLine("it is longer than an observation may be")
        if line.lstrip().startswith(b"{"):
            return self._read_json(number, line)
        return self._read_plain(number, line) if line.strip() else None

    def _read_plain(self, number: int, line: bytes) -> Said:
        if self._source is not None:
            raise BadLine("it has no sequence, and --source needs one: write JSON, or leave --source out")
        found = plain(line)
        partition = self._known.get((found.topic, found.partition))
        if partition is None:
            partition = self._known[found.topic, found.partition] = self._find(*coordinates(found))
        return Said(number, partition, found.first, found.stop, 0, None)

    def _read_json(self, number: int, line: bytes) -> Said:
        fields = json_fields(line, self.reports.sink, self._source)
        if self._source is None and fields.get("sequence") is not None:
            self._warn_once(f"line {number} has a sequence, which counts with --source only: read again, it is a duplicate")
        partition = self._find(fields["topic"], fields["partition"])
        found = self.reports.check(fields, partition)
        first, stop = (found.runs[0][0], found.runs[-1][1]) if found.runs else (0, 0)
        return Said(number, partition, first, stop, found.claim or 0, fields)

    def _find(self, topic: str, number: int) -> Partition:
        """Raises BadLine where there is no such partition, Unavailable where that can't be asked."""
        known = self._config.topic(topic)
        if known is None:
            raise BadLine(f"topic {topic[:249]!r} is not watched: see topics in the configuration")
        sink = self.reports.sink
        if sink not in known.sinks:
            self._warn_once(f"sink {sink} is not configured for topic {topic}: it is listed, and nobody is alerted")
        self._topics.check(topic, number)
        return self.reports.of(topic, number)

    def _warn_once(self, warning: str) -> None:
        """Each kind once: lines differ in numbers only."""
        kind = "".join(char for char in warning if not char.isdigit())
        if kind not in self._warned:
            self._warned.add(kind)
            self._clear_progress()
            warn(text(warning))

    def _reject(self, number: int, error: str) -> None:
        self.bad_lines += 1
        if len(self.rejected) < REJECTED_LISTED_MAX:
            self.rejected.append((number, error))
        self._clear_progress()
        click.echo(f"line {number}: {text(error)}", err=True)

    # --- observations out ---------------------------------------------------------------------------------------------

    def _send(self, now: float | None) -> None:
        """Hand over what is due by ``now``; None: everything."""
        for report in self.reports.take(now):
            self._in_flight_bytes += report.size
            self.in_flight_lines += report.lines
            self._producer.produce(
                self._topics.observations(report.topic), report.value, partition=report.partition, on_delivery=self._told(report)
            )

    def _told(self, report: Report) -> Callable[[Any, Any], None]:
        def told(error: Any, _message: Any) -> None:
            self._in_flight_bytes -= report.size
            if error is not None:
                self._refuse(report, error)
                return
            self.in_flight_lines -= report.lines
            self.accepted += report.lines
            self.observations += 1

        return told

    def _refuse(self, report: Report, error: Any) -> None:
        """One that is too large is its line's fault; any other is the end."""
        from confluent_kafka import KafkaError, KafkaException

        from stream_app.kafka.clients import describe_kafka_error

        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and report.line is not None:
            self.in_flight_lines -= report.lines
            self._reject(report.line, "Kafka takes no record of that size: split it, and give the parts new sequences")
        else:
            self._refused = True
            self._failure = self._failure or describe_kafka_error(KafkaException(error))


def _connect(config: Config, make_producer: Callable[[dict[str, Any]], ProducerLike] | None) -> tuple[ProducerLike, Topics]:
    from confluent_kafka import KafkaException, Producer

    from gapstream_sidecar.settings import producer_settings
    from stream_app.kafka.clients import describe_kafka_error
    from stream_app.sinks.observation import VALUE_BYTES_MAX

    settings = producer_settings(_settings(config), 4 * BACKLOG_BYTES_MAX)
    settings["message.max.bytes"] = VALUE_BYTES_MAX + READ_BYTES  # the broker judges what is left of it when it is compressed
    try:
        producer = (make_producer or Producer)(settings)
    except KafkaException as error:
        raise Unavailable(describe_kafka_error(error)) from error
    return producer, Topics(producer, config.app.id)


def _settings(config: Config) -> dict[str, Any]:
    """How a client connects."""
    from stream_app.kafka.clients import KafkaClients

    return KafkaClients(config.kafka).confluent()


class Topics:
    """Which partitions can be observed, as the cluster says."""

    def __init__(self, producer: ProducerLike, app_id: str) -> None:
        self._producer, self._app_id = producer, app_id
        self._counts: dict[str, int] = {}

    def observations(self, topic: str) -> str:
        """Where observations of a watched topic go."""
        from stream_app.kafka.names import TopicNames

        return TopicNames.of(self._app_id, topic).observations

    def check(self, topic: str, partition: int) -> None:
        """Return when the partition can be observed.

        Raises BadLine when the watched topic has no such partition; Unavailable when it has and its observations topic has not,
        or when the cluster can't be asked.
        """
        deadline = time.monotonic() + GROW_SECONDS
        while partition >= self._counts.get(topic, 0):
            self._counts[topic] = self._count(self.observations(topic))
            if partition < self._counts[topic]:
                return
            there = self._count(topic)
            if partition >= there:
                what = f"has the partitions 0 to {there - 1}, not {partition}" if there else "does not exist"
                raise BadLine(f"topic {topic} {what}")
            have = self._counts[topic]
            if not have or time.monotonic() > deadline:
                what = f"has {have} partitions, not {there}" if have else "does not exist"
                raise Unavailable(f"topic {self.observations(topic)} {what}: start a worker, which sees to it")
            time.sleep(PROGRESS_SECONDS)

    def _count(self, topic: str) -> int:
        from confluent_kafka import KafkaError, KafkaException

        from stream_app.kafka.clients import describe_kafka_error

        try:
            found = self._producer.list_topics(topic, timeout=CALL_SECONDS).topics[topic]
        except KafkaException as error:
            raise Unavailable(describe_kafka_error(error)) from error
        if found.error is not None and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise Unavailable(describe_kafka_error(KafkaException(found.error)))
        return len(found.partitions)
