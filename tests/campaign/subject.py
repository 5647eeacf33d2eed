"""The product under test: one application with one worker, asked by what users have and by the state in its changelogs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_app.core.ledger import Ledger
from tests.campaign.changelogs import Changelogs
from tests.campaign.mix import Topic
from tests.campaign.oracles import ISOLATIONS, Archive, Received, as_it_found_them, disagree, receive, with_received, with_written
from tests.campaign.reporter import SINK, Reporter
from tests.campaign.verdicts import (
    ABORTED,
    HOLE,
    MARKER,
    RECORD,
    UNREAD,
    Files,
    Kinds,
    Span,
    compare,
    explanations,
    gaps_of,
    read_ledger,
    runs,
    where,
)  # fmt: skip
from tests.support.dump_log import Where
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Alerts, Rig, Worker, eventually

PATIENCE_S = 240.0
"""For whatever a worker has to do: it may have to come back from a broker's crash first, on a machine that does other things too."""
ASKED = 400
"""Offsets of one question why."""
SHOWN_S = 60.0
"""Until answers of the API show what was flushed."""
EVENTS = {"gap.opened", "gap.filled", "gap.expired", "log.unread", "sink.stalled", "sink.resumed"}
"""All that may be told; sinks stall where a round takes long."""


class Subject:
    """An application that watches all topics of the campaign; what it said once must stay so."""

    def __init__(self, kit: KafkaKit, folder: Path, app_id: str, topics: Sequence[Topic], archive: Archive, rng: random.Random) -> None:
        """Nothing is started."""
        self.kit, self.app_id, self.archive = kit, app_id, archive
        self.isolation = {place: topic.isolation for topic in topics for place in topic.places}
        self.compacts = {place: topic.compacts for topic in topics for place in topic.places}
        sinks = {SINK: {"type": "consumer", "grace": "0s", "from": "earliest"}}
        self.rig = Rig(folder, kit.bootstrap, {topic.name: {"isolation": topic.isolation, "sinks": sinks} for topic in topics}, app_id)
        self.worker: Worker = self.rig.worker()
        self.reporter = Reporter(kit.bootstrap, app_id, self.isolation, rng)
        self.said: dict[Where, bytearray] = {place: bytearray() for place in self.isolation}
        """Verdicts by offset that were compared."""
        self.differences: list[str] = []
        self.rng = rng
        self.compared = self.loose = self.explained = self.kills = 0
        self._asleep: dict[Where, tuple[int, int, int]] = {}
        self._reached: dict[Where, int] | None = dict.fromkeys(self.isolation, 0)
        """How far it may have read when the archive was read last; None: to the end."""
        self._changelogs: Changelogs | None = None

    # --- its worker ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker; the first time wait until it has taken note of every partition."""
        self.worker.start()
        if self._changelogs is None:
            self.worker.ready(PATIENCE_S)
            self._changelogs = Changelogs(self.kit, self.app_id, self.isolation, SINK)
            self.await_read(dict.fromkeys(self.isolation, 0))

    def kill(self) -> None:
        """SIGKILL, whatever it does."""
        self.worker.kill()
        self.kills += 1

    def sleeps(self) -> None:
        """It was killed or stopped while nothing was written: note where it may stand, before anything is written or removed."""
        ends = self.ends()
        self._reached = {place: max(ends[place], len(said)) for place, said in self.said.items()}
        self._asleep = {place: (len(said), self._reached[place], 0) for place, said in self.said.items()}

    def wakes(self) -> None:
        """It is about to be started: what was removed since is removed now, and was not read."""
        self._asleep = {place: (low, high, self.kit.offsets(*place)[0]) for place, (low, high, _) in self._asleep.items()}

    def close(self) -> None:
        """Kill it for good."""
        self.rig.close()
        if self._changelogs is not None:
            self._changelogs.close()

    def ends(self) -> dict[Where, int]:
        """How far each partition can be read now under its isolation level."""
        return {place: self.kit.offsets(*place, isolation=isolation)[1] for place, isolation in self.isolation.items()}

    def ledgers(self) -> dict[Where, Ledger]:
        """What it has flushed."""
        assert self._changelogs is not None
        return self._changelogs.ledgers()

    def await_read(self, stops: Mapping[Where, int]) -> dict[Where, Ledger]:
        """Its state once all of these are read and flushed."""

        def read() -> dict[Where, Ledger] | None:
            ledgers = self.ledgers()
            lacking = {place for place, stop in stops.items() if place not in ledgers or ledgers[place].log.read < stop}
            return None if lacking else ledgers

        try:
            return dict(eventually(read, f"{self.app_id} has read all", PATIENCE_S))
        except AssertionError:
            found = {place: (ledger.log.read, stops.get(place)) for place, ledger in self.ledgers().items()}
            raise AssertionError(f"{self.app_id} does not read on: read and end are {found}\n{self.worker.tail()}") from None

    # --- what it says of the log --------------------------------------------------------------------------------------

    def compare(self) -> dict[Where, Received]:
        """Await that it has read all there is, then compare each new offset with both oracles; what a consumer got of them."""
        before, starts = dict(self.archive.latest), {place: self.kit.offsets(*place)[0] for place in self.isolation}
        ledgers = self.await_read(self.ends())
        first = {place: max(len(said), starts[place]) for place, said in self.said.items()}
        received = {}
        stops = {}
        for isolation in ISOLATIONS:
            ends = {place: self.kit.offsets(*place, isolation=isolation)[1] for place in self.isolation}
            stops[isolation] = {place: max(end, first[place]) for place, end in ends.items()}
            received[isolation] = receive(self.kit.bootstrap, isolation, first, stops[isolation])
        files = self.archive.read()
        written = self.archive.written()
        for place, ledger in ledgers.items():
            for isolation in ISOLATIONS:
                kinds, stop = files[place].of(isolation), stops[isolation][place]
                faults = disagree(received[isolation][place].offsets, kinds, first[place], stop, self.compacts[place])
                self._differ(place, *(f"oracles under {isolation}: {fault}" for fault in faults))
            isolation = self.isolation[place]
            was: Kinds = before[place].of(isolation) if place in before else b""
            was = as_it_found_them(was, len(self.said[place]), len(was) if self._reached is None else self._reached[place])
            was = with_written(was, isolation, written.get(place, {}), files[place].end)
            got = {level: received[level][place].offsets for level in ISOLATIONS}
            self._ask_why(place, files[place])
            self._compare(place, ledger, was, with_received(files[place].of(isolation), isolation, got, stops[isolation][place]))
        self._asleep, self._reached = {}, None
        self._await_none(self._rows, "/api/partitions")
        return {place: received[isolation][place] for place, isolation in self.isolation.items()}

    def _compare(self, place: Where, ledger: Ledger, before: Kinds, after: Kinds) -> None:
        try:
            said = read_ledger(ledger)
        except AssertionError as exc:
            self._differ(place, str(exc))
            return
        known, kept = self.said[place], ledger.log.forgotten
        if said[kept : len(known)] != known[kept:]:
            changed = [offset for offset in range(kept, len(known)) if said[offset : offset + 1] != known[offset : offset + 1]]
            self._differ(place, f"it changed its mind about {list(runs(changed))[:5]}")
        first = len(known) or ledger.log.origin
        removed = self._asleep.get(place, (first, first, first))
        found = compare(said, before, after, Span(first, ledger.log.read, self.compacts[place], removed))
        self._differ(place, *found.differences)
        self.compared += found.offsets
        self.loose += found.loose
        known += said[len(known) :]

    def _ask_why(self, place: Where, files: Files) -> None:
        """``/api/explain``, which asks Kafka itself, of the log's end and of some other stretch."""
        start, end = self.kit.offsets(*place)
        for first in (max(start, end - ASKED), self.rng.randrange(start, end + 1)):
            stop = min(first + ASKED, files.end)
            if first >= stop:
                continue
            answer = self._answer(f"/api/explain?topic={place[0]}&partition={place[1]}&first={first}&last={stop - 1}")
            self.explained += stop - first
            faults: dict[str, list[int]] = {}
            for run in answer["runs"]:
                stable = run["evidence"]["last_stable_offset"] if self.isolation[place] == "read_committed" else None
                for offset in range(run["first_offset"], run["last_offset"] + 1):
                    kind = files.of_offset(offset, self.isolation[place])
                    if run["verdict"] not in explanations(offset, kind, stable, self.compacts[place]):
                        faults.setdefault(f"{run['verdict']}, files {chr(kind)}", []).append(offset)
            self._differ(place, *(f"explain: {what}: {list(runs(offsets))[:5]}" for what, offsets in faults.items()))

    def _answer(self, path: str) -> Any:
        """Asked again where Kafka could not be asked just now."""
        return eventually(lambda: self.worker.get(path), path, SHOWN_S)

    def _differ(self, place: Where, *faults: str) -> None:
        self.differences += [f"{self.app_id} {place[0]}/{place[1]}: {fault}" for fault in faults]

    def _rows(self) -> list[str]:
        """What ``/api/partitions`` counts otherwise."""
        ledgers = self.ledgers()
        rows = {(row["topic"], row["partition"]): row for row in self.worker.get("/api/partitions?sink=log")["partitions"]}
        found = []
        for place, known in self.said.items():
            row, log = rows[place], ledgers[place].log
            said = known + read_ledger(ledgers[place])[len(known) :]  # markers of timeouts come at any time
            absent = {"transaction_marker": said.count(MARKER), "aborted": said.count(ABORTED), "compacted": said.count(HOLE)}
            wanted: dict[str, Any] = {
                "log_read_offset": log.read,
                "log_start_offset": log.start,
                "missing": 0,
                "records": said.count(RECORD),
            }
            wanted["absent"] = {cause: count for cause, count in absent.items() if count}
            found += [f"{place}: {name} is {row[name]}, not {value}" for name, value in wanted.items() if row[name] != value]
        return found

    def _await_none(self, differences: Callable[[], list[str]], what: str) -> None:
        """An answer that lags is not wrong: it has some time to become right."""
        last: list[str] = []

        def right() -> bool:
            nonlocal last
            last = differences()
            return not last

        try:
            eventually(right, what, SHOWN_S)
        except AssertionError as exc:
            self.differences += [f"{self.app_id}: {what}: {one}" for one in (last[:10] or [str(exc)])]

    # --- what it says of a sink ---------------------------------------------------------------------------------------

    def report(self, received: Mapping[Where, Received]) -> None:
        """Report what a consumer got, but for a few, and check that exactly these few are missing, and some reported late no more."""
        self.say(received)
        self.check_gaps()

    def say(self, received: Mapping[Where, Received]) -> None:
        """Report, without waiting for what comes of it."""
        for place, faults in self.reporter.report(self.said, received).items():
            self._differ(place, *faults)

    def check_gaps(self) -> None:
        """What is open, why, and how it is listed."""

        def settled() -> dict[Where, Ledger] | None:
            ledgers = self.ledgers()
            return None if any(self._behind(place, ledger) for place, ledger in ledgers.items()) else ledgers

        ledgers: dict[Where, Ledger] = eventually(settled, f"{self.app_id} has judged all that was reported", PATIENCE_S)
        files = self.archive.read()
        for place, ledger in ledgers.items():
            self._differ(place, *self.reporter.check(place, ledger, files[place].kinds))
        self._await_none(self._gaps, "/api/gaps")

    def _behind(self, place: Where, ledger: Ledger) -> bool:
        """Whether it has not read or judged what was reported, or does not know where the log begins now."""
        observations = self.kit.offsets(f"{self.app_id}.observations.{place[0]}", place[1])[1]
        settled = ledger.sinks[SINK].settled or 0
        return ledger.observed_to < observations or settled < self.reporter.told[place] or ledger.log.start < self.kit.offsets(*place)[0]

    def _gaps(self) -> list[str]:
        """What ``/api/gaps`` lists otherwise."""
        listed: dict[Where, list[tuple[int, int, int, str]]] = {place: [] for place in self.isolation}
        for gap in self.worker.get("/api/gaps?limit=10000")["gaps"]:
            listed[gap["topic"], gap["partition"]].append((gap["first_offset"], gap["last_offset"], gap["count"], gap["cause"]))
        found = []
        for place, ledger in self.ledgers().items():
            wanted = gaps_of(self.said[place], self.reporter.opened(ledger))
            lacks, extra = sorted(set(wanted) - set(listed[place])), sorted(set(listed[place]) - set(wanted))
            if lacks or extra:
                found.append(f"{place}: not listed {lacks[:5]}, listed {extra[:5]}")
        return found

    # --- at the end ---------------------------------------------------------------------------------------------------

    def check_alerts(self) -> None:
        """The alerts topic folds to what is open, each event is there once, and nothing else was told of the logs."""
        alerts, unread = Alerts(), {place: set[int]() for place in self.isolation}
        births: dict[Where, set[str]] = {place: set() for place in self.isolation}
        for event, message in self.reporter.events(self.rig):
            alerts.take(message)
            place = (event["topic"], event["partition"])
            births[place].add(event["source"])
            if event["type"] not in EVENTS or (event["sink"] == "log") != (event["type"] == "log.unread"):
                self._differ(place, f"told: {event}")
            if event["type"] == "log.unread":
                unread[place].update(offset for first, last in event["ranges"] for offset in range(first, last + 1))
        self.differences += [f"{self.app_id} alerts: {fault}" for fault in alerts.faults]
        if alerts.repeats:
            self.differences.append(f"{self.app_id} alerts: {alerts.repeats} events are there more than once")
        for place, ledger in self.ledgers().items():
            opened = {offset: cause for cause, offsets in self.reporter.opened(ledger).items() for offset in offsets}
            told = alerts.open.get((*place, SINK), {})
            if told != opened:
                self._differ(place, f"alerts fold to {len(told)} open records, not to {len(opened)}")
            if len(births[place]) > 1:
                self._differ(place, f"its state began anew: {births[place]}")
            said = set(where(self.said[place], UNREAD))
            if unread[place] != said:
                self._differ(place, f"log.unread told of {list(runs(sorted(unread[place])))[:5]}, not of {list(runs(sorted(said)))[:5]}")

    def check_log(self) -> None:
        """The worker's own log speaks of no defect."""
        telling = [line for line in self.worker.log.read_text(errors="replace").splitlines() if "defect" in line or "Traceback" in line]
        self.differences += [f"{self.app_id}'s log: {line[:300]}" for line in telling[:5]]
