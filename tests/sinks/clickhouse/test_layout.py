from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stream_app.core.model import CHUNK
from stream_app.core.offsets import END, OffsetSet
from stream_app.sinks.clickhouse.layout import Retention, Span, chunk_runs, joined, portions, spans_of

EDGES = st.builds(lambda chunk, low: chunk * CHUNK + low, st.integers(0, 12), st.sampled_from([0, 1, 5, CHUNK - 1]))
SPANS = st.lists(st.builds(Span, st.integers(0, 2), EDGES, st.one_of(st.none(), EDGES)), max_size=12)


def covered(spans: list[Span]) -> dict[int, OffsetSet]:
    out: dict[int, OffsetSet] = {}
    for span in spans:
        stop = END if span.stop is None else span.stop
        if span.first < stop:
            out.setdefault(span.partition, OffsetSet()).add(span.first, stop)
    return out


@given(SPANS)
def test_joined_spans_cover_what_was_asked_and_share_no_chunk(spans: list[Span]) -> None:
    found = joined(spans)
    asked, answered = covered(spans), covered(found)
    assert asked.keys() == answered.keys()
    assert all(not some - answered[partition] for partition, some in asked.items())
    for one, other in pairwise(found):
        assert one.partition < other.partition or one.last_chunk < other.first // CHUNK
    # Nothing is asked for beside, but what lies between two spans that meet in a chunk.
    for partition, some in answered.items():
        extra = some - asked[partition]
        assert all(first % CHUNK + stop - first <= CHUNK for first, stop in extra.runs())


@given(SPANS, st.integers(1, 5), st.integers(1, 4))
def test_portions_cover_the_same_and_keep_to_their_size(spans: list[Span], chunks_max: int, spans_max: int) -> None:
    found = list(portions(spans, chunks_max, spans_max))
    assert covered([span for portion in found for span in portion]) == covered(joined(spans))
    for portion in found:
        assert 0 < len(portion) <= spans_max
        assert sum(1 if span.stop is None else span.last_chunk - span.first // CHUNK + 1 for span in portion) <= chunks_max
        assert joined(portion) == portion


def test_the_chunks_of_some_offsets() -> None:
    some = OffsetSet([(5, 6), (CHUNK - 1, CHUNK + 1), (5 * CHUNK, 5 * CHUNK + 3)])
    assert chunk_runs(some) == ((0, 2 * CHUNK), (5 * CHUNK, 6 * CHUNK))
    assert spans_of({1: some, 0: OffsetSet()}) == [Span(1, 0, 2 * CHUNK), Span(1, 5 * CHUNK, 6 * CHUNK)]


def test_how_far_back_rows_may_have_gone() -> None:
    assert Retention().bound_ms(5_000) is None
    assert Retention(3_000).bound_ms(5_000) == 2_000
