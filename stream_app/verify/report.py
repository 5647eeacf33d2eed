"""A verdict as JSON and as rows of tables. The only place where half-open ranges become closed ones. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stream_app.verify.compare import Difference, Verdict
from stream_app.web.times import rfc3339

RESULTS = {True: "equal", False: "different", None: "unknown"}


def as_json(verdict: Verdict, topic: str, sink: str | None, table: str, checked_at_ms: int) -> dict[str, Any]:
    """What ``gapstream verify --json`` prints; where the result is unknown the lists are null."""
    known = verdict.equal is not None
    return {
        "topic": topic,
        "sink": sink,
        "table": table,
        "result": RESULTS[verdict.equal],
        "reason": verdict.reason,
        "statement": verdict.statement,
        "checked_at": rfc3339(checked_at_ms),
        "partitions": [_partition(one) for one in verdict.differences] if known else None,
        "missing": [row for one in verdict.differences for row in missing(one)] if known else None,
        "duplicates": [row for one in verdict.differences for row in duplicates(one)] if known else None,
        "notes": list(verdict.notes),
    }


def _partition(one: Difference) -> dict[str, Any]:
    part = one.part
    return {
        "partition": part.partition,
        "first_offset": part.first if part.first < part.stop else None,
        "last_offset": part.stop - 1 if part.first < part.stop else None,
        "records": part.records.count,
        "rows": one.rows,
        "missing": one.missing_count,
        "missing_above_last": one.above_last,
        "duplicates": one.surplus,
        "absent": {str(cause): count for cause, count in one.absent_counts().items()},
        "explained": {str(reason): some.count for reason, some in one.explained.items() if some},
        "unexpected": one.unexpected.count,
    }


def missing(one: Difference) -> Iterator[dict[str, Any]]:
    """The gaps of a partition, as ``gapstream gaps`` has them."""
    for gap in one.gaps():
        yield {
            "partition": one.part.partition,
            "first_offset": gap.first,
            "last_offset": gap.stop - 1,
            "count": gap.count,
            "cause": str(gap.cause),
            "first_timestamp": rfc3339(gap.first_timestamp_ms),
            "last_timestamp": rfc3339(gap.last_timestamp_ms),
        }


def duplicates(one: Difference) -> Iterator[dict[str, Any]]:
    """Runs of offsets that have more than one row each; ``count`` is the number of offsets."""
    for first, stop in one.doubled.runs():
        yield {"partition": one.part.partition, "first_offset": first, "last_offset": stop - 1, "count": stop - first}
