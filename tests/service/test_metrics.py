from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from stream_app.core.model import Row, StatusRecord, WorkerRecord
from stream_app.service.metrics import Counters, Histogram, Metrics
from stream_app.service.view import StatusView
from stream_app.version import __version__

NOW = 1_700_000_000_000
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
Labels = dict[str, str]


def row(partition: int = 0, sink: str = "billing", **changes: Any) -> Row:
    known: dict[str, Any] = {
        "topic": "orders",
        "partition": partition,
        "sink": sink,
        "configured": True,
        "heard": True,
        "log_start_offset": 0,
        "log_read_offset": 90,
        "log_end_offset": 100,
        "horizon_offset": 80,
        "records": 95,
        "observed": 79,
        "missing": 0,
        "gaps": 0,
        "duplicates": 0,
        "lag": 20,
        "complete_known": True,
        "end_read_ms": NOW - 1_000,
        "updated_at_ms": NOW - 1_500,
        "incarnation": "AAA",
    }
    return Row(**known | changes)


class Scrape:
    """What a scrape of a worker with these rows finds."""

    def __init__(self, *rows: Row, counters: Counters | None = None, view: StatusView | None = None, **options: Any) -> None:
        view = view or StatusView({"orders": {"billing": "consumer"}}, 300)
        self.text = Metrics(lambda: rows, counters or Counters(), view, lambda: NOW, **options).text().decode()
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}

    def samples(self, name: str) -> list[tuple[Labels, float]]:
        return [(s.labels, s.value) for family in self.families.values() for s in family.samples if s.name == name]

    def value(self, name: str, **labels: str) -> float | None:
        """The one sample with these labels; None: there is none."""
        found = [value for had, value in self.samples(name) if labels.items() <= had.items()]
        assert len(found) < 2, found
        return found[0] if found else None


def test_series_of_a_row() -> None:
    one = row(
        missing=7, missing_by_cause={"expired": 7}, gaps=2, duplicates=3, stalled=True, explained={"tombstone": 5}, absent={"aborted": 4},
        oldest_gap_opened_at_ms=NOW - 60_000, expires_at_ms=NOW + 30_000, complete_bound_ms=NOW - 70_000,
    )  # fmt: skip
    scrape = Scrape(one)
    expected = {
        "gapstream_sink_unknown": 0,
        "gapstream_sink_stalled": 1,
        "gapstream_sink_horizon_offset": 80,
        "gapstream_sink_lag_records": 20,
        "gapstream_observed_records_total": 79,
        "gapstream_duplicate_records_total": 3,
        "gapstream_open_gaps": 2,
        "gapstream_oldest_gap_opened_timestamp_seconds": (NOW - 60_000) / 1_000,
        "gapstream_complete_through_timestamp_seconds": (NOW - 70_000) / 1_000,
        "gapstream_seconds_until_loss": 30,
        "gapstream_last_update_timestamp_seconds": (NOW - 1_000) / 1_000,
    }
    for name, value in expected.items():
        assert scrape.samples(name) == [({"topic": "orders", "partition": "0", "sink": "billing"}, value)], name
    for name, value in {"start_offset": 0, "read_offset": 90, "end_offset": 100, "records_total": 95}.items():
        assert scrape.samples(f"gapstream_log_{name}") == [({"topic": "orders", "partition": "0"}, value)]
    assert {had["cause"]: value for had, value in scrape.samples("gapstream_missing_records")} == {
        "not_received": 0, "expired": 7, "vanished": 0, "unreadable": 0,
    }  # fmt: skip
    assert {had["cause"]: value for had, value in scrape.samples("gapstream_log_absent_offsets_total")} == {
        "transaction_marker": 0, "aborted": 4, "compacted": 0,
    }  # fmt: skip
    assert scrape.value("gapstream_explained_records", cause="tombstone") == 5


def test_the_log_is_a_sink_and_tells_its_offsets_once() -> None:
    scrape = Scrape(row(log_end_offset=100), row(sink="log", missing=2, missing_by_cause={"log_hole": 2}, heard=False, log_end_offset=101))
    assert scrape.samples("gapstream_log_end_offset") == [({"topic": "orders", "partition": "0"}, 101)]
    assert {had["cause"] for had, _ in scrape.samples("gapstream_missing_records") if had["sink"] == "log"} == {"log_hole", "unreadable"}
    assert scrape.value("gapstream_missing_records", sink="log", cause="log_hole") == 2
    assert scrape.value("gapstream_sink_unknown", sink="log") == 0


def test_sinks_in_no_file_have_no_series() -> None:
    """Nobody is alerted of them, and rules of Prometheus are alerts."""
    lost: dict[str, Any] = {
        "missing": 7,
        "missing_by_cause": {"expired": 7},
        "gaps": 2,
        "oldest_gap_opened_at_ms": NOW,
        "expires_at_ms": NOW,
    }
    stranger = row(sink="stranger", configured=False, complete_bound_ms=NOW - 70_000, **lost)
    left = row(sink="left", configured=False, heard=False)
    for granularity in ("partition", "topic"):
        scrape = Scrape(row(), stranger, left, row(sink="log"), granularity=granularity)
        told = {s.labels["sink"] for family in scrape.families.values() for s in family.samples if "sink" in s.labels}
        assert told == {"billing", "log"}
    assert Scrape(stranger).value("gapstream_log_records_total") == 95, "the log's are of no sink"


def test_what_is_unknown_is_absent_but_for_the_flag_that_says_so() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("horizon_offset", "observed", "missing", "gaps", "duplicates", "lag", "end_read_ms"))
    silent = row(heard=False, complete_known=False, **nothing)
    scrape = Scrape(silent)
    told = {s.name for family in scrape.families.values() for s in family.samples if "sink" in s.labels}
    assert told == {"gapstream_sink_unknown", "gapstream_last_update_timestamp_seconds"}
    assert scrape.value("gapstream_sink_unknown") == 1


def test_a_sink_heard_of_elsewhere_is_not_unknown_here() -> None:
    view = StatusView({}, 300)
    record = StatusRecord(topic="orders", partition=9, worker="w2", rows=[row(9)])
    view.apply(b"partition/orders/9", msgspec.json.encode(record))
    assert Scrape(row(heard=False), view=view).value("gapstream_sink_unknown") == 0


def test_a_sink_that_is_awaited_where_it_never_was_is_stalled() -> None:
    scrape = Scrape(row(heard=False, stalled=True, lag=None))
    assert scrape.value("gapstream_sink_stalled") == 1
    assert scrape.value("gapstream_sink_lag_records") is None


def test_a_sink_whose_checks_fail_is_unknown() -> None:
    assert Scrape(row(unknown="refused")).value("gapstream_sink_unknown") == 1


def test_a_log_whose_end_is_not_read_makes_unknown() -> None:
    assert Scrape(row(end_read_ms=NOW - 300_001)).value("gapstream_sink_unknown") == 1


def test_complete_through_never_falls_and_follows_the_signs_of_life() -> None:
    view = StatusView({}, 300)
    view.loaded = True
    view.apply(b"partition/orders/0", msgspec.json.encode(StatusRecord(topic="orders", partition=0, worker="w1", rows=[row()])))
    checked, flushed = {"orders/0": NOW - 10}, {"orders/0": NOW - 1_500}
    beat = WorkerRecord(worker="w1", at_ms=NOW, session_timeout_ms=10_000, checked=checked, flushed=flushed)
    view.apply(b"worker/w1", msgspec.json.encode(beat))
    scrape = Scrape(row(complete_bound_ms=NOW - 90_000), view=view)
    assert scrape.value("gapstream_complete_through_timestamp_seconds") == (NOW - 10) / 1_000
    assert scrape.value("gapstream_last_update_timestamp_seconds") == (NOW - 10) / 1_000


def test_series_go_with_the_partition() -> None:
    rows = [row(0), row(1)]
    metrics = Metrics(lambda: rows, Counters(), StatusView({}, 300), lambda: NOW)
    assert b'partition="1"' in metrics.text()
    rows.pop()
    assert b'partition="0"' in metrics.text()
    assert b'partition="1"' not in metrics.text()


class TestGranularityTopic:
    def test_counts_are_summed_times_least_flags_most_offsets_out(self) -> None:
        one = row(
            0, missing=3, missing_by_cause={"expired": 1, "vanished": 2}, gaps=2, explained={"tombstone": 1},
            complete_bound_ms=NOW - 9_000,
        )  # fmt: skip
        two = row(
            1, missing=4, missing_by_cause={"expired": 4}, gaps=1, stalled=True, oldest_gap_opened_at_ms=NOW - 1, expires_at_ms=NOW + 1,
            explained={"tombstone": 1, "quarantined": 2},
        )  # fmt: skip
        scrape = Scrape(one, two, granularity="topic")
        assert "partition=" not in scrape.text
        assert scrape.value("gapstream_missing_records", cause="expired") == 5
        assert scrape.value("gapstream_explained_records", cause="tombstone") == 2
        assert scrape.value("gapstream_explained_records", cause="quarantined") == 2
        assert scrape.value("gapstream_log_records_total") == 190
        assert scrape.value("gapstream_open_gaps") == 3
        assert scrape.value("gapstream_sink_stalled") == 1
        assert scrape.value("gapstream_oldest_gap_opened_timestamp_seconds") == (NOW - 1) / 1_000
        assert scrape.value("gapstream_complete_through_timestamp_seconds") == (NOW - 9_000) / 1_000
        offsets = {"gapstream_log_start_offset", "gapstream_log_read_offset", "gapstream_log_end_offset", "gapstream_sink_horizon_offset"}
        assert not offsets & set(scrape.families)

    def test_a_sum_with_an_unknown_part_is_absent(self) -> None:
        scrape = Scrape(row(0, lag=5), row(1, lag=None, missing=None), granularity="topic")
        assert scrape.value("gapstream_sink_lag_records") is None
        assert scrape.value("gapstream_missing_records", cause="expired") is None
        assert scrape.value("gapstream_open_gaps") == 0

    def test_a_partition_where_the_sink_is_silent_adds_nothing_but_is_not_complete(self) -> None:
        silent = row(1, heard=False, missing=None, lag=None, complete_known=False)
        scrape = Scrape(row(0, lag=5), silent, granularity="topic")
        assert scrape.value("gapstream_sink_lag_records") == 5
        assert scrape.value("gapstream_missing_records", cause="expired") == 0
        assert scrape.value("gapstream_complete_through_timestamp_seconds") is None


def test_what_the_process_counts() -> None:
    counters = Counters(12, observations_rejected_total={"malformed": 2}, alerts_total={"gap.opened": 3}, state_bytes={"orders": 99})
    counters.flush_seconds.observe(0.02)
    counters.detection_delay_seconds("orders", "billing").observe(0.3)
    assert counters.detection_delay_seconds("orders", "billing") is counters.detection_delay_seconds("orders", "billing")
    counters.table_checked("warehouse", 0.02, 8_192)
    counters.table_checked("warehouse", 70.0, 8_000)
    counters.table_failed("warehouse")
    scrape = Scrape(counters=counters)
    assert scrape.value("gapstream_clickhouse_checks_total", sink="warehouse", outcome="ok") == 2
    assert scrape.value("gapstream_clickhouse_checks_total", sink="warehouse", outcome="unknown") == 1
    assert scrape.value("gapstream_clickhouse_check_seconds_bucket", sink="warehouse", le="60.0") == 1
    assert scrape.value("gapstream_clickhouse_check_seconds_count", sink="warehouse") == 2
    assert scrape.value("gapstream_clickhouse_rows_read_total", sink="warehouse") == 16_192
    assert scrape.value("gapstream_observations_total") == 12
    assert scrape.value("gapstream_observations_rejected_total", reason="malformed") == 2
    assert scrape.value("gapstream_alerts_total", type="gap.opened") == 3
    assert scrape.value("gapstream_state_bytes", topic="orders") == 99
    assert scrape.value("gapstream_flush_seconds_count") == 1
    assert scrape.value("gapstream_flush_seconds_bucket", le="0.01") == 0
    assert scrape.value("gapstream_flush_seconds_bucket", le="0.025") == 1
    assert scrape.value("gapstream_detection_delay_seconds_sum", topic="orders", sink="billing") == 0.3
    assert scrape.value("gapstream_build_info", version=__version__) == 1


def test_a_bound_holds_what_is_equal_to_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.sum == 6.0


def full(**options: Any) -> Scrape:
    """With at least one sample of every series."""
    counters = Counters(alerts_total={"gap.opened": 1}, observations_rejected_total={"malformed": 1}, state_bytes={"orders": 1})
    counters.detection_delay_seconds("orders", "billing").observe(1)
    counters.table_checked("warehouse", 0.1, 8_192)
    one = row(explained={"quarantined": 1}, expires_at_ms=NOW, oldest_gap_opened_at_ms=NOW, last_stable_offset=90, open_since_ms=NOW)
    return Scrape(one, counters=counters, **options)


def test_extra_labels_stand_on_every_series() -> None:
    scrape = full(labels={"env": "prod", "az": "a"})
    for family in scrape.families.values():
        assert family.samples, family.name
        for sample in family.samples:
            assert (sample.labels["env"], sample.labels["az"]) == ("prod", "a")


@pytest.mark.parametrize(
    ("stable", "since", "expected"), [(None, None, None), (None, NOW - 5_000, None), (100, None, 0.0), (90, NOW - 5_000, 5.0)]
)
def test_an_open_transaction_has_an_age_where_the_stable_end_is_told(stable: int | None, since: int | None, expected: float | None) -> None:
    scrape = Scrape(row(sink="log", last_stable_offset=stable, open_since_ms=since))
    name = "gapstream_log_open_transaction_seconds"
    assert [sample.value for sample in scrape.families[name].samples] == ([] if expected is None else [expected])


class TestDocs:
    SECTION = re.compile(
        r"## `(?P<name>\w+)`\n\n(?P<help>.+)\n\nType: (?P<type>\w+)\n\n```\n(?P<sample>.+)\n```\n\nWhen it moves: (?P<advice>.+)\n"
    )

    def test_the_document_names_every_series_and_no_other(self) -> None:
        text = DOCS.read_text()
        documented = {found["name"]: (found["help"], found["type"]) for found in self.SECTION.finditer(text)}
        assert len(documented) == text.count("\n## "), "every section has the same form"
        helps = dict(re.findall(r"^# HELP (\w+) (.+)$", full().text, re.MULTILINE))
        types = dict(re.findall(r"^# TYPE (\w+) (.+)$", full().text, re.MULTILINE))
        assert documented == {name: (helps[name], types[name]) for name in helps}

    def test_the_sample_lines_are_as_a_scrape_has_them(self) -> None:
        scraped = {}
        for line in full().text.splitlines():
            if not line.startswith("#"):
                name = re.match(r"\w+", line)
                assert name is not None
                scraped[name[0]] = re.findall(r'(\w+)="', line)
        for found in self.SECTION.finditer(DOCS.read_text()):
            (family,) = text_string_to_metric_families(f"# TYPE {found['name']} {found['type']}\n{found['sample']}\n")
            (sample,) = family.samples
            assert scraped[sample.name] == list(sample.labels), found["name"]


def test_no_offset_gap_or_client_id_is_a_label() -> None:
    labels = {name for family in full().families.values() for sample in family.samples for name in sample.labels}
    assert labels == {"topic", "partition", "sink", "cause", "type", "reason", "version", "le", "outcome"}


@pytest.mark.parametrize("granularity", ["partition", "topic"])
def test_no_rows_is_fine(granularity: str) -> None:
    assert Scrape(granularity=granularity).value("gapstream_observations_total") == 0
