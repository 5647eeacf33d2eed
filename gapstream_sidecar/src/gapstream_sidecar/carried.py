"""What travels in a commit's metadata: observations that are not acknowledged yet, for the next owner to report. Pure.

The text is JSON. ``said`` has one row for each observation: its source and number, its status, its reason, its offsets as
first, length, gap, length, ... and, where headers of replayed records told it, topic and number of the partition that it
speaks of: such a row may be wrong, and is checked by the next owner too. A length of 0 at the end of the last row reaches to
the committed offset, so that the text stays the same while an application commits one record after the other.

The next owner reports a row under the row's own source and number: it is the same observation, whoever sends it, and
gapstream takes it once. What finds no room is told by its span, as unobserved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.runs import RunList

METADATA_BYTES = 3_000
"""Brokers take 4,096 (``offset.metadata.max.bytes``); what is beyond that they refuse, and the commit with it."""
SPANS_MAX = 5
"""Partitions of which a span is told beyond that: 5 of them take 600 bytes with topics of 60 letters."""
UNOBSERVED = "unobserved"
_LEAST_BYTES = 4
_DECODER = json.JSONDecoder()
"""Of a run: two digits and two commas."""
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


def encode(sink: str, rows: Iterable[Carried], key: Key, offset: int) -> str:
    """The metadata of a commit of ``offset`` in ``key``; the oldest rows come first and stay exact."""
    said: list[list[object]] = []
    spans: dict[tuple[Key, bool], tuple[int, int]] = {}
    size = len(_text(sink, []))
    listed = list(rows)
    for row in listed:
        if not spans and size + _LEAST_BYTES * len(row.runs) <= METADATA_BYTES:  # or it is not even written down
            made = _row(row, key, offset if row is listed[-1] else None)
            size += len(_dumped(made)) + 1
            if size <= METADATA_BYTES:
                said.append(made)
                continue
        first, stop = row.runs.bounds[0], row.runs.bounds[-1]
        low, high = spans.get((row.key, row.replayed), (first, stop))
        spans[row.key, row.replayed] = (min(low, first), max(high, stop))
    for (about, replayed), span in list(spans.items())[:SPANS_MAX]:
        said.append(_row(Carried(about, "", 0, UNOBSERVED, None, RunList([span]), replayed), key, None))
    return _text(sink, said)


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
        return [_carried(row, key, offset) for row in told["said"]]
    except (KeyError, TypeError, IndexError, OverflowError) as error:
        raise ValueError(f"it is not of the form that this version writes: {error!r}") from error


def _text(sink: str, said: list[list[object]]) -> str:
    return _dumped({"gapstream": _VERSION, "sink": sink, "said": said})


def _dumped(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _row(row: Carried, key: Key, offset: int | None) -> list[object]:
    """``offset``: up to which nothing has to be said."""
    bounds = row.runs.bounds
    steps = [after - before for before, after in pairwise(bounds)]
    if row.key == key and bounds[-1] == offset:
        steps[-1] = 0
    made: list[object] = [row.source, row.number, row.status, row.reason, [bounds[0], *steps]]
    return [*made, *row.key] if row.replayed or row.key != key else made


def _carried(row: list[object], key: Key, offset: int) -> Carried:
    source, number, status, reason, steps = row[:5]
    if not (isinstance(source, str) and isinstance(number, int) and isinstance(status, str) and isinstance(steps, list)):
        raise TypeError("a row of another shape")
    bounds = [int(steps[0])]
    for step in steps[1:]:
        bounds.append(bounds[-1] + int(step))
    if steps[-1] == 0:
        bounds[-1] = offset
    if len(bounds) % 2 or bounds[0] < 0 or any(after <= before for before, after in pairwise(bounds)):
        raise ValueError("runs that don't rise")
    replayed = len(row) > 5
    about = (str(row[5]), int(str(row[6]))) if replayed else key
    runs = RunList(zip(bounds[::2], bounds[1::2], strict=True))
    return Carried(about, source, number, status, None if reason is None else str(reason), runs, replayed)
