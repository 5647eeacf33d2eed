"""A real Kafka on loopback: KRaft, one node or several, free ports, data that is thrown away.

Standard library only: ``scripts/kafka`` runs it before ``scripts/setup`` has made an environment, and the tests, the
benchmarks and the campaign use the same class.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from kafka_jars import KafkaError, jars, java
from kafka_process import PROPERTIES, broker_directory, destroy, named_cluster, read_facts, start_guard, write_facts
from kafka_wire import NotReadyError, brokers_known_to

QUICK_JVM = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""A small heap, and only the first compiler: ready in a third less time. Benchmarks hand in flags of their own."""
FULL_JVM = ("-Xms512m", "-Xmx1g", "-XX:+UseG1GC")
"""For measuring: both compilers."""

_PORTS = range(20_000, 30_000)
# Below the range that systems give to outgoing connections (Linux from 32768, macOS from 49152): a client that keeps
# dialling a stopped broker's port inside that range ends up connected to itself, and the broker can't come back.
_PORT_ATTEMPTS = 3
"""Between finding a port free and the broker's bind somebody else may take it; then all is begun again."""


class KafkaCluster:
    """One cluster; ``start`` it, use ``bootstrap``, ``stop`` it (or use it as a context manager).

    ``brokers``: how many nodes, each broker and controller. They are numbered from 0, which is also Kafka's node id.
    ``directory``: where properties, data and logs go, removed by ``stop``; default: a new temporary one.
    ``logs``: where the nodes' logs go (``broker-0.log``, ...); default: ``directory``. Not removed if elsewhere.
    ``properties``: server properties over those of ``server_properties``.
    ``jvm``: flags of the Java machine.
    ``guarded``: a guard process removes everything when this process is gone, however it went; without it the
    cluster outlives the process.

    Every method may raise KafkaError, whose text is one sentence that says what to do.
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        directory: Path | None = None,
        logs: Path | None = None,
        properties: Mapping[str, str] | None = None,
        jvm: Sequence[str] = QUICK_JVM,
        guarded: bool = True,
    ) -> None:
        if brokers < 1:
            raise ValueError(f"a cluster has at least 1 broker, not {brokers}")
        self.brokers = brokers
        self._given_directory = directory
        self._given_logs = logs
        self._properties = dict(properties or {})
        self._jvm = tuple(jvm)
        self._guarded = guarded
        self._directory: Path | None = None
        self._ports: list[int] = []
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> KafkaCluster:
        """Start, unless it runs already."""
        if self._directory is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    # ------------------------------------------------------------------------------------------------ whole cluster

    @property
    def bootstrap(self) -> str:
        """``host:port,host:port``: the value of ``bootstrap.servers``."""
        self._require_directory()
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    @property
    def directory(self) -> Path:
        """Folder with everything of this cluster."""
        return self._require_directory()

    def start(self, timeout: float = 90.0) -> None:
        """Fetch Kafka if need be, format, start all nodes, and wait until each knows of all the others.

        After an exception (Ctrl-C too) nothing is left running and nothing is left on disk but the logs.
        """
        if self._directory is not None:
            raise KafkaError("This cluster runs already: stop it before it is started again.")
        libs, machine = jars(), java()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._start_once(libs, machine, timeout)
                return
            except _PortTakenError:
                self.stop()
                if attempt == _PORT_ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End all nodes at once and remove their data. May be called again, and in any state."""
        directory, self._directory = self._directory, None
        self._ports = []
        if directory is not None:
            destroy(directory)
        for node in self._nodes.values():
            node.wait()
        self._nodes.clear()
        if self._guard is not None:
            guard, self._guard = self._guard, None
            if guard.stdin is not None:
                guard.stdin.close()
            guard.wait()

    # -------------------------------------------------------------------------------------------------- one broker

    def kill_broker(self, broker: int) -> None:
        """SIGKILL: the broker has no chance to write or to say anything. Returns when the process is gone.

        The others, and the broker itself when it starts again, go on after ``broker.session.timeout.ms`` (6 s).
        """
        node = self._running(broker)
        node.kill()
        node.wait()

    def stop_broker(self, broker: int, timeout: float = 60.0) -> None:
        """SIGTERM and wait: leadership is handed over and everything is written before the process ends."""
        node = self._running(broker)
        node.terminate()
        node.send_signal(signal.SIGCONT)  # a paused process would keep the SIGTERM for later
        try:
            node.wait(timeout)
        except subprocess.TimeoutExpired:
            raise KafkaError(f"Broker {broker} did not end within {timeout:g} s: see {self.log_file(broker)}.") from None

    def start_broker(self, broker: int, timeout: float = 60.0) -> None:
        """Start a stopped or killed broker again, with its data and its port; returns when it serves clients."""
        if self._alive(broker):
            raise KafkaError(f"Broker {broker} runs already.")
        self._spawn(broker, jars(), java())
        self._wait_for([broker], 1, timeout)

    def pause_broker(self, broker: int) -> None:
        """SIGSTOP: the broker freezes with all its connections open. Returns when none of its threads runs any more."""
        node = self._running(broker)
        node.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, node.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # WNOWAIT leaves an exit to Popen

    def resume_broker(self, broker: int) -> None:
        """SIGCONT: the broker goes on where it was paused."""
        self._running(broker).send_signal(signal.SIGCONT)

    def log_dir(self, broker: int = 0) -> Path:
        """Folder with the broker's partitions, one folder each: ``<topic>-<partition>``."""
        return self._broker_directory(broker) / "data"

    def log_file(self, broker: int = 0) -> Path:
        """What the broker wrote about itself."""
        return (self._given_logs or self._require_directory()) / f"broker-{broker}.log"

    def tool(self, main_class: str, *arguments: str, timeout: float = 60.0) -> str:
        """What a class of Kafka's own tools prints, ``kafka.tools.DumpLogSegments`` for example.

        Raises KafkaError when it ends with an error or not in time.
        """
        command = [java(), "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", *_class_path(jars()), main_class]
        try:
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise KafkaError(f"{main_class} did not end within {timeout:g} s.") from None
        if done.returncode != 0:
            raise KafkaError(f"{main_class} ended with {done.returncode}: {_complaint(done.stderr or done.stdout)}")
        return done.stdout

    # ---------------------------------------------------------------------------------------------------- inside

    def _start_once(self, libs: Path, machine: str, timeout: float) -> None:
        self._directory = self._make_directory()
        if self._given_logs is not None:
            self._given_logs.mkdir(parents=True, exist_ok=True)
        if self._guarded:
            self._guard = start_guard(self._directory)
        ports = _free_ports(2 * self.brokers)
        self._ports, controllers = ports[: self.brokers], ports[self.brokers :]
        for broker in range(self.brokers):
            properties = server_properties(broker, self._ports, controllers, self.log_dir(broker)) | self._properties
            self._broker_directory(broker).mkdir()
            self._properties_file(broker).write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        self._format(libs, machine, timeout)
        for broker in range(self.brokers):
            self._spawn(broker, libs, machine)
        self._wait_for(range(self.brokers), self.brokers, timeout)
        write_facts(self._directory, self.bootstrap, self.brokers)

    def _make_directory(self) -> Path:
        if self._given_directory is None:
            return Path(tempfile.mkdtemp(prefix="gapstream-kafka-")).resolve()
        try:
            self._given_directory.mkdir(parents=True)
        except FileExistsError:
            raise KafkaError(f"{self._given_directory} exists: name a folder that does not, since stop removes it.") from None
        return self._given_directory.resolve()

    def _format(self, libs: Path, machine: str, timeout: float) -> None:
        """Write each node's meta.properties, all at the same time: each costs a start of Java."""
        cluster_id = "gapstream" + secrets.token_hex(7)[:13]  # 22 characters of base64 are 16 bytes
        base = [machine, *QUICK_JVM, *_class_path(libs), "kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config"]
        formats: list[subprocess.Popen[str]] = []
        try:
            for broker in range(self.brokers):
                command = [*base, str(self._properties_file(broker))]
                formats.append(
                    subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
                )
            for one in formats:
                output, _ = one.communicate(timeout=timeout)
                if one.returncode != 0:
                    raise KafkaError(f"Kafka's storage could not be formatted: {_complaint(output)}")
        except subprocess.TimeoutExpired:
            raise KafkaError(f"Formatting Kafka's storage took longer than {timeout:g} s.") from None
        finally:
            for one in formats:
                one.kill()
                one.communicate()

    def _spawn(self, broker: int, libs: Path, machine: str) -> None:
        logger = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]
        command = [machine, *self._jvm, *logger, *_class_path(libs), "kafka.Kafka", str(self._properties_file(broker))]
        with self.log_file(broker).open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches the program that uses the cluster, not the cluster.
            self._nodes[broker] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self._broker_directory(broker)
            )

    def _wait_for(self, brokers: Iterable[int], at_least: int, timeout: float) -> None:
        """Return when each of ``brokers`` answers, is in its own list of live brokers, and that list is long enough."""
        deadline = time.monotonic() + timeout
        for broker in brokers:
            while True:
                try:
                    known = brokers_known_to("127.0.0.1", self._ports[broker], timeout=2.0)
                    if broker in known and len(known) >= at_least:
                        break
                except NotReadyError:
                    pass  # not listening yet, or still starting: the deadline below decides
                self._check_started(broker)
                if time.monotonic() > deadline:
                    raise KafkaError(f"Broker {broker} was not ready within {timeout:g} s: see {self.log_file(broker)}.")
                time.sleep(0.05)

    def _check_started(self, broker: int) -> None:
        if self._alive(broker):
            return
        log = self.log_file(broker).read_text(errors="replace")
        if "Address already in use" in log or "BindException" in log:
            raise _PortTakenError(f"Another program took port {self._ports[broker]} while broker {broker} was starting: try again.")
        raise KafkaError(f"Broker {broker} ended while starting, see {self.log_file(broker)}: {_complaint(log)}")

    def _alive(self, broker: int) -> bool:
        node = self._nodes.get(broker)
        return node is not None and node.poll() is None

    def _running(self, broker: int) -> subprocess.Popen[bytes]:
        self._broker_directory(broker)
        if not self._alive(broker):
            raise KafkaError(f"Broker {broker} does not run.")
        return self._nodes[broker]

    def _require_directory(self) -> Path:
        if self._directory is None:
            raise KafkaError("The cluster does not run: start it first.")
        return self._directory

    def _broker_directory(self, broker: int) -> Path:
        if not 0 <= broker < self.brokers:
            raise ValueError(f"this cluster has brokers 0 to {self.brokers - 1}, not {broker}")
        return broker_directory(self._require_directory(), broker)

    def _properties_file(self, broker: int) -> Path:
        return self._broker_directory(broker) / PROPERTIES


class AttachedCluster(KafkaCluster):
    """A cluster that somebody else runs and that this process leaves alone: no broker is stopped, nothing is removed.

    ``bootstrap`` and ``tool`` always work; ``log_dir`` and ``log_file`` when ``scripts/kafka`` runs it on this machine.
    """

    def __init__(self, bootstrap: str) -> None:
        addresses = bootstrap.split(",")
        super().__init__(len(addresses), guarded=False)
        self._bootstrap = bootstrap
        for directory in named_cluster("any").parent.glob("*/"):
            facts = read_facts(directory)
            if facts is not None and set(facts[0].split(",")) & set(addresses):
                self._directory, self.brokers = directory, facts[1]

    def __enter__(self) -> AttachedCluster:
        """Nothing to start."""
        return self

    @property
    def bootstrap(self) -> str:
        """As it was given."""
        return self._bootstrap

    def start(self, timeout: float = 90.0) -> None:
        """Refused: it runs."""
        raise KafkaError(f"Kafka at {self._bootstrap} is not this program's to start.")

    def stop(self) -> None:
        """Leave it running."""

    def _running(self, broker: int) -> subprocess.Popen[bytes]:
        raise KafkaError(f"Broker {broker} at {self._bootstrap} is not this program's to stop: use a KafkaCluster of its own.")

    def _require_directory(self) -> Path:
        if self._directory is None:
            raise KafkaError(f"The files of Kafka at {self._bootstrap} are out of reach: unset GAPSTREAM_KAFKA or use scripts/kafka start.")
        return self._directory


class _PortTakenError(KafkaError):
    pass


def server_properties(node: int, ports: Sequence[int], controllers: Sequence[int], data: Path) -> dict[str, str]:
    """Properties of one node: small, quick to start, and impatient, so that tests see retention, compaction and failover soon.

    ``ports`` and ``controllers`` are the client and controller ports of all nodes, by node id.
    """
    brokers = len(ports)
    replicas = min(3, brokers)
    in_sync = 2 if brokers >= 3 else 1  # with two nodes, losing one must not stop writing
    internal_topics = {
        f"{topic}.{key}": str(value)
        for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
        for key, value in (("num.partitions", 5), ("replication.factor", replicas), ("min.isr", in_sync))
        if (topic, key) != ("offsets.topic", "min.isr")  # the one that doesn't exist
    }
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "controller.quorum.voters": ",".join(f"{i}@127.0.0.1:{port}" for i, port in enumerate(controllers)),
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{ports[node]},CONTROLLER://127.0.0.1:{controllers[node]}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports[node]}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "num.recovery.threads.per.data.dir": "2",
        "default.replication.factor": str(replicas),
        "min.insync.replicas": str(in_sync),
        **internal_topics,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "500",
        # A broker that was killed or frozen is fenced, and its partitions get another leader, after 6 s instead of 9 s.
        "broker.session.timeout.ms": "6000",
        "broker.heartbeat.interval.ms": "1000",
        # Retention and compaction: looked at every second from the start on, instead of every 5 min after 30 s;
        # removed segments leave the disk after 1 s instead of 60 s.
        # Only where a topic asks for it: a record with an old timestamp would go within a second otherwise.
        "log.retention.ms": "-1",
        "log.initial.task.delay.ms": "500",
        "log.retention.check.interval.ms": "1000",
        "log.segment.delete.delay.ms": "1000",
        "log.cleaner.backoff.ms": "500",
        "log.cleaner.dedupe.buffer.size": "16777216",  # 128 MB otherwise, a quarter of the heap
        # A transaction whose producer is gone is aborted within a second of its timeout, instead of ten.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    }


def _complaint(output: str) -> str:
    """The line of a Java program's output that tells most: the first that names an error, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.lstrip().startswith("at ")]
    telling = [line for line in lines if "ERROR" in line or "Exception" in line]
    return (telling or lines[-1:] or ["it said nothing"])[0][:300]


def _class_path(libs: Path) -> list[str]:
    return ["-cp", f"{libs}/*"]


def _free_ports(count: int) -> list[int]:
    """Different ports of loopback that nobody listens on at this moment."""
    found: list[int] = []
    # Not by the global random numbers: two test runs with one seed would look for the same ports.
    for port in secrets.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):  # in use: the next one
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise KafkaError(f"There are not {count} free ports between {_PORTS.start} and {_PORTS.stop - 1}: end some programs and try again.")
