"""How people see the demo: a live screen on a terminal, plain lines into a pipe, nothing but JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stream_app.demo.faults import Fault, Kind
from stream_app.demo.state import Row, State

SENTENCE = "gapstream names every Kafka record that a sink did not receive. Here a pipeline errs on purpose, and gapstream finds out."
MEANINGS = {
    Kind.LOST: ("received, never reported", "gap.opened"),
    Kind.LATE: ("reported too late", "gap.filled"),
    Kind.DUPLICATE: ("reported twice", "duplicate.detected"),
    Kind.QUARANTINED: ("put aside, and said so", "gap.explained"),
    Kind.VANISHED: ("deleted in the table", "gap.opened"),
}
COLOURS = {Kind.LOST: "red", Kind.LATE: "yellow", Kind.DUPLICATE: "magenta", Kind.QUARANTINED: "cyan", Kind.VANISHED: "red"}
REFRESH_S = 0.25
FIXED_LINES = 20
"""Lines of the screen beside the list of faults and the status, where the terminal has 80 columns."""
SUMMARY_S = 10.0


class Quiet:
    """For ``--json``: says nothing."""

    wants_status = False

    def doing(self, state: State) -> None:
        """Nothing."""

    def injected(self, row: Row) -> None:
        """Nothing."""

    def told(self, row: Row) -> None:
        """Nothing."""

    def tick(self, state: State) -> None:
        """Nothing."""


class Lines:
    """For pipes and logs: one line for each thing that happens, a summary every ten seconds."""

    wants_status = True

    def __init__(self) -> None:
        self._summed_at: float | None = None
        print(SENTENCE, flush=True)

    def doing(self, state: State) -> None:
        """What the demo does now."""
        tail = {"running": f": worker {state.url}, seed {state.seed}, {how_to_stop(state)}"}
        print(f"{state.doing}{tail.get(state.doing, '')}", flush=True)

    def injected(self, row: Row) -> None:
        """Done by the pipeline."""
        print(f"{clock(row.at)} injected {describe(row.fault)}", flush=True)

    def told(self, row: Row) -> None:
        """Read in the alerts topic."""
        print(f"{clock(row.told_at)} detected {describe(row.fault)}, after {delay(row)}", flush=True)

    def tick(self, state: State) -> None:
        """The summary, when it is time."""
        if state.begun_at is None or time.monotonic() - (self._summed_at or state.begun_at) < SUMMARY_S:
            return
        self._summed_at = time.monotonic()
        done, told = sum(state.done.values()), sum(state.told.values())
        print(f"{clock(time.time())} {state.produced} produced, {state.consumed} consumed, {done} faults injected, {told} detected")
        for line in status_lines(state):
            print(f"{clock(time.time())} {line}", flush=True)


class Screen:
    """For terminals. A context manager; the last picture stays."""

    wants_status = True

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._drawn_at = 0.0

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def doing(self, state: State) -> None:
        """Draw at once."""
        self._draw(state)

    def injected(self, row: Row) -> None:
        """Shown with the next picture."""

    def told(self, row: Row) -> None:
        """Shown with the next picture."""

    def tick(self, state: State) -> None:
        """Draw four times a second."""
        if time.monotonic() - self._drawn_at >= REFRESH_S:
            self._draw(state)

    def _draw(self, state: State) -> None:
        self._drawn_at = time.monotonic()
        rows = max(self._console.size.height - FIXED_LINES - len(state.status), 3)
        self._live.update(picture(state, rows), refresh=True)


def picture(state: State, rows: int) -> RenderableType:
    """The whole screen, with at most ``rows`` faults."""
    head = Text(SENTENCE, "bold")
    if state.begun_at is None:
        return Group(head, Text(), Text(f"{state.doing} ..."))
    numbers = Text(f"{state.doing}, {state.elapsed_s:.0f} s{of_seconds(state)}: ")
    numbers.append(f"{state.produced} records produced, {state.consumed} consumed", "bold")
    parts: list[RenderableType] = [head, Text(), numbers, Text(), _counts(state), Text(), _newest(state, rows), Text(), _status(state)]
    foot = [
        Text.assemble("worker: ", (f"{state.url}/api/status", "underline")),
        Text.assemble("ask it: ", (f"gapstream gaps --url {state.url}", "bold")),
        Text(f"seed {state.seed}; {how_to_stop(state)}"),
    ]
    return Group(*parts, Text(), *foot)


def _table(**columns: JustifyMethod) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title, justify in columns.items():
        table.add_column(title.replace("_", " "), justify=justify, no_wrap=True)
    return table


def _counts(state: State) -> Table:
    table = _table(fault="left", what_the_pipeline_did="left", event="left", injected="right", detected="right")
    for kind in state.kinds:
        meaning, event = MEANINGS[kind]
        table.add_row(Text(kind, COLOURS[kind]), meaning, event, str(state.done[kind]), str(state.told[kind]))
    return table


def _newest(state: State, rows: int) -> Table:
    table = _table(time="left", fault="left", topic="left", partition="right", offsets="right", detected="right")
    for row in list(state.rows)[: -rows - 1 : -1]:
        fault = row.fault
        told = Text("...", "dim") if row.told_at is None else Text(f"after {delay(row)}", "green")
        table.add_row(clock(row.at), Text(fault.kind, COLOURS[fault.kind]), fault.topic, str(fault.partition), offsets(fault), told)
    return table


def _status(state: State) -> RenderableType:
    """What ``gapstream status`` would say."""
    if not state.status:
        return Text("the worker has not answered yet")
    table = _table(topic="left", sink="left", state="left", missing="right", duplicates="right", lag="right", complete_through="left")
    for row in sinks(state):
        counts = (_known(row[name]) for name in ("missing", "duplicates", "lag", "complete_through"))
        table.add_row(str(row["topic"]), str(row["sink"]), str(row["state"]), *counts)
    return table


def sinks(state: State) -> list[Mapping[str, Any]]:
    """Rows of the worker's answer, the log itself left out."""
    return [row for row in state.status if row["sink"] != "log"]


def status_lines(state: State) -> list[str]:
    """The worker's own answer, a line for each topic and sink."""
    return [
        f"{row['topic']} -> {row['sink']}: {row['state']}, {_known(row['missing'])} missing, {_known(row['duplicates'])} duplicates, "
        f"lag {_known(row['lag'])}, complete through {_known(row['complete_through'])}"
        for row in sinks(state)
    ]


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)


def clock(at: float | None) -> str:
    """Time of day on this machine."""
    return "" if at is None else datetime.fromtimestamp(at).strftime("%H:%M:%S")


def offsets(fault: Fault) -> str:
    """``5`` or ``5-9``."""
    return str(fault.first) if fault.stop == fault.first + 1 else f"{fault.first}-{fault.stop - 1}"


def describe(fault: Fault) -> str:
    """One fault in a line."""
    return f"{fault.kind}: {fault.topic} partition {fault.partition} offsets {offsets(fault)}"


def delay(row: Row) -> str:
    """From the deed to the event."""
    return "?" if row.delay_s is None else f"{row.delay_s:.1f} s"


def of_seconds(state: State) -> str:
    """How long it runs in all."""
    return "" if state.seconds is None else f" of {state.seconds:g} s"


def how_to_stop(state: State) -> str:
    """What to press."""
    return "Ctrl-C stops it" if state.seconds is None else f"ends after {state.seconds:g} s, or with Ctrl-C"


def is_terminal() -> bool:
    """Whether somebody looks."""
    return sys.stdout.isatty()
