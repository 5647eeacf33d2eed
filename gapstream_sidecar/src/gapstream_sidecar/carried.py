"""What travels in a commit's metadata: observations that are not acknowledged yet, for the next owner to report. Pure.

The text is JSON. ``said`` has one row for each observation: its source and number, its status, its reason, its offsets as
first, length, gap, length, ... and, where headers of replayed records told it, topic and number of the partition that it
speaks of: such a row may be wrong, and is checked by the next owner too. A length of 0 at the end of the last row reaches to
the committed offset, so that the text stays the same while an application commits one record after the other.

The next owner reports a row under the row's own source and number: it is the same observation, whoever sends it, and
gapstream takes it once.

What finds no room is unobserved, as exactly as there is room for: by a few runs of each partition, which are rows too; or in
``rest``, by topic, as [partitions as first, length, gap, ...], first offset, length: one of each partition, or one of them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.runs import RunList

METADATA_BYTES = 3_000
"""For what is exact; the rest has what is left of ``WHOLE_BYTES``."""
WHOLE_BYTES = 4_000
"""Brokers take 4,096 (``offset.metadata.max.bytes``); what is beyond that they refuse, and the commit with it."""
REST_RUNS = 4
"""Runs that what headers told of one partition is put into: a wrong one is far off, so the largest holes part it from the others."""
PARTITIONS_MAX = 10_000
"""Of one topic in the rest: a wrong number of them must not have the next owner work for minutes."""
UNOBSERVED = "unobserved"
_LEAST_BYTES = 4
"""Of a run: two digits and two commas."""
CARRIED_RUNS_MAX = METADATA_BYTES // _LEAST_BYTES
"""An observation of more runs than that never travels as it is, so the next owner can't tell it again."""
_DECODER = json.JSONDecoder()
_VERSION = 1
_MARK = '{"gapstream":'


@dataclass(frozen=True, slots=True)
class Carried:
    """One observation that somebody may have to report in another's place."""

    key: Key
    source: str
    """Empty where it does not matter who says it."""
    number: int
    """Its sequence."""
    status: str
    reason: str | None
    runs: RunList
    replayed: bool = False
    """Headers of replayed records tell it: of ``key``, which may be another partition than theirs."""


def encode(sink: str, rows: Iterable[Carried], key: Key, offset: int) -> tuple[str, list[str]]:
    """The metadata of a commit of ``offset`` in ``key``; the oldest rows come first and stay exact.

    And the topics of which there is no room to say anything: replays from more than about ten at once, or from thousands of partitions.
    """
    said: list[list[object]] = []
    rest: dict[tuple[Key, bool], RunList] = {}
    size = len(_text(sink, []))
    listed = list(rows)
    for row in listed:
        if not rest and size + _LEAST_BYTES * len(row.runs) <= METADATA_BYTES:  # or it is not even written down
            made = _row(row, key, offset if row is listed[-1] else None)
            size += len(_dumped(made)) + 1
            if size <= METADATA_BYTES:
                said.append(made)
                continue
        told = rest.setdefault((row.key, row.replayed), RunList())
        for run in row.runs.coarser(REST_RUNS) if row.replayed else [(row.runs.bounds[0], row.runs.bounds[-1])]:
            told.add(*run)
        told.coarsen(REST_RUNS if row.replayed else 1)
    text = _text(sink, [*said, *_unobserved(rest, key)])
    if len(text) <= WHOLE_BYTES:
        return text, []
    own = {about: runs for about, runs in rest.items() if not about[1]}
    return _with_topics(sink, [*said, *_unobserved(own, key)], [(about, runs) for (about, replayed), runs in rest.items() if replayed])


def _unobserved(rest: dict[tuple[Key, bool], RunList], key: Key) -> list[list[object]]:
    return [_row(Carried(about, "", 0, UNOBSERVED, None, runs, replayed), key, None) for (about, replayed), runs in rest.items()]


def _with_topics(sink: str, said: list[list[object]], rest: list[tuple[Key, RunList]]) -> tuple[str, list[str]]:
    """The text with the rest by topic, and the topics that it has no room for."""
    topics: dict[str, list[list[object]]] = {}
    together: dict[str, tuple[RunList, RunList]] = {}
    for (topic, partition), runs in rest:
        first, stop = runs.bounds[0], runs.bounds[-1]
        topics.setdefault(topic, []).append([[partition, 1], first, stop - first])
        partitions, offsets = together.setdefault(topic, (RunList(), RunList()))
        partitions.add(partition, partition + 1)
        offsets.add(first, stop)
        offsets.coarsen(1)
    text = _text(sink, said, list(topics.items()))
    if len(text) <= WHOLE_BYTES:
        return text, []
    told: list[tuple[str, list[list[object]]]] = []
    untold = []
    for topic, (partitions, offsets) in together.items():
        one = (topic, [[_steps(partitions), offsets.bounds[0], offsets.bounds[1] - offsets.bounds[0]]])
        longer = _text(sink, said, [*told, one])
        if len(longer) <= WHOLE_BYTES and partitions.count() <= PARTITIONS_MAX:
            told.append(one)
        else:
            untold.append(topic)
    return _text(sink, said, told), untold


def decode(text: str | None, sink: str, key: Key, offset: int) -> list[Carried]:
    """The rows of a commit of ``offset`` in ``key``; none for a text of somebody else, or of another sink.

    Raises ValueError for a text of ours that can't be read.
    """
    if not text or not text.startswith(_MARK):
        return []
    try:
        told, _ = _DECODER.raw_decode(text)  # confluent-kafka commits the C string's end too, and reads beyond it where others did not
        if told["gapstream"] != _VERSION or told["sink"] != sink:
            return []
        return [*(_carried(row, key, offset) for row in told["said"]), *_of_topics(told.get("rest", []))]
    except (KeyError, TypeError, IndexError, OverflowError) as error:
        raise ValueError(f"it is not of the form that this version writes: {error!r}") from error


def _text(sink: str, said: list[list[object]], rest: Sequence[object] = ()) -> str:
    told: dict[str, object] = {"gapstream": _VERSION, "sink": sink, "said": said}
    return _dumped(told | {"rest": rest} if rest else told)


def _dumped(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _row(row: Carried, key: Key, offset: int | None) -> list[object]:
    """``offset``: up to which nothing has to be said."""
    steps = _steps(row.runs)
    if row.key == key and row.runs.bounds[-1] == offset:
        steps[-1] = 0
    made: list[object] = [row.source, row.number, row.status, row.reason, steps]
    return [*made, *row.key] if row.replayed or row.key != key else made


def _steps(runs: RunList) -> list[int]:
    """First, length, gap, length, ..."""
    return [runs.bounds[0], *(after - before for before, after in pairwise(runs.bounds))]


def _carried(row: list[object], key: Key, offset: int) -> Carried:
    source, number, status, reason, steps = row[:5]
    if not (isinstance(source, str) and isinstance(number, int) and isinstance(status, str) and isinstance(steps, list)):
        raise TypeError("a row of another shape")
    runs = _runs(steps, offset)
    replayed = len(row) > 5
    about = (str(row[5]), int(str(row[6]))) if replayed else key
    return Carried(about, source, number, status, None if reason is None else str(reason), runs, replayed)


def _of_topics(rest: list[list[object]]) -> Iterator[Carried]:
    """What is unobserved by topic."""
    for topic, told in rest:
        if not (isinstance(topic, str) and isinstance(told, list)):
            raise TypeError("a rest of another shape")
        for steps, first, length in told:
            runs, partitions = _runs([first, length]), _runs(steps)
            if partitions.count() > PARTITIONS_MAX:
                raise ValueError("more partitions than there are")
            for low, high in partitions:
                for partition in range(low, high):
                    yield Carried((topic, partition), "", 0, UNOBSERVED, None, runs.coarser(1), replayed=True)


def _runs(steps: list[int], offset: int | None = None) -> RunList:
    """``offset``: where a length of 0 at the end reaches to."""
    bounds = [int(steps[0])]
    for step in steps[1:]:
        bounds.append(bounds[-1] + int(step))
    if offset is not None and steps[-1] == 0:
        bounds[-1] = offset
    if len(bounds) % 2 or bounds[0] < 0 or any(after <= before for before, after in pairwise(bounds)):
        raise ValueError("runs that don't rise")
    return RunList(zip(bounds[::2], bounds[1::2], strict=True))
