"""Random tables in the real engine: what a check finds is what was done to them, offset by offset."""

from __future__ import annotations

import random

import pytest

from stream_app.core.model import CHUNK, DOUBLED_MAX
from stream_app.core.offsets import END, OffsetSet
from stream_app.sinks.clickhouse import Check, ClickHouseTable, Facts, Span, Unknown
from stream_app.sinks.clickhouse.client import ClickHouseClient
from tests.sinks.clickhouse.kit import layout, offsets
from tests.support.clickhouse_kit import ClickHouse
from tests.support.tables import KAFKA_ENGINE, TINYBIRD, Made, fill, make


def assert_equals(
    found: Check | Unknown, made: Made, topic: str, asked: list[Span], *, judged: bool = True, mark: str | None = None
) -> None:
    """All of what was asked was answered, and truly."""
    assert isinstance(found, Check)
    answered: dict[int, OffsetSet] = {}
    for held in found.held:
        first, stop = held.span.first, END if held.span.stop is None else held.span.stop
        counts = made.counts(topic, held.span.partition, mark)
        inside = {offset: count for offset, count in counts.items() if first <= offset < stop}
        assert offsets(held.present) == set(inside)
        most = min(max(inside.values(), default=1) - 1, DOUBLED_MAX) if judged else 0
        assert [offsets(level) for level in held.levels] == [{o for o, count in inside.items() if count > 1 + more} for more in range(most)]
        assert held.rows == (sum(inside.values()) if judged else len(inside))
        aside = made.quarantined(topic, held.span.partition)
        assert offsets(held.quarantined) == {offset for offset in aside if first <= offset < stop}
        answered.setdefault(held.span.partition, OffsetSet()).add(first, stop)
    for span in asked:
        if span.stop is None or span.first < span.stop:
            assert not answered[span.partition].missing_in(span.first, END if span.stop is None else span.stop)


def random_spans(rng: random.Random, made: Made, topic: str) -> list[Span]:
    spans = []
    for (name, partition), end in made.ends.items():
        if name == topic:
            spans.append(Span(partition, rng.randrange(end + 10), None))
            for _ in range(rng.randrange(4)):
                first = end - rng.randrange(2_500)
                spans.append(Span(partition, max(first, 0), max(first, 0) + rng.randrange(4_000)))
    rng.shuffle(spans)
    return spans[: rng.randrange(1, len(spans) + 1)]


PLAIN = ("LowCardinality(String)", "Int32", "Int64", "DateTime64(3, 'UTC')")
SHAPES = {
    "names of Tinybird": (TINYBIRD, PLAIN, "ORDER BY (`{0}`, `{1}`, `{2}`)"),
    "names of the Kafka engine": (KAFKA_ENGINE, ("String", "UInt64", "UInt64", "Nullable(DateTime64(3))"), "ORDER BY tuple()"),
    "nullable, with odd names": (
        ("the `topic`", "gapstream_partition", "o\\ffset", "gapstream_rows"),
        ("Nullable(String)", "Nullable(Int64)", "Nullable(UInt64)", "Nullable(DateTime64(3))"),
        "PARTITION BY assumeNotNull(`{1}`) ORDER BY tuple()",
    ),
}


@pytest.mark.parametrize(
    ("shape", "first"),
    [*((shape, CHUNK - 1_000) for shape in SHAPES), ("names of Tinybird", 0), ("names of the Kafka engine", (1 << 45) - 700)],
)
async def test_any_spans_of_any_table(clickhouse: ClickHouse, client: ClickHouseClient, shape: str, first: int) -> None:
    rng = random.Random(random.randrange(1 << 30))
    names, types, order = SHAPES[shape]
    made = make(rng, {"orders": 3, "it's": 1}, 2_500, first=first)
    quoted = [name.replace("\\", "\\\\").replace("`", "\\`") for name in names]
    fill(clickhouse, made, names=quoted, types=types, engine=f"MergeTree {order.format(*quoted)}", quarantine="aside")
    for topic in ("orders", "it's"):
        table = ClickHouseTable(client, layout(clickhouse, names, quarantine="aside"), topic)
        assert isinstance(await table.inspect(), Facts)
        for _ in range(3):
            asked = random_spans(rng, made, topic)
            assert_equals(await table.check(asked), made, topic, asked)
