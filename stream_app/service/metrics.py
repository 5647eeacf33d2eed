"""Prometheus series, computed at the scrape from the rows that this worker owns and from counters that the process keeps.

What is unknown has no sample: an absent series can be alerted on, a zero that nobody counted can't be told from a good one.
A revoked partition's series go away with its rows. Sinks that stand in no configuration have none: nobody is to be paged for them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from stream_app.core.model import Absent, Cause, Row
from stream_app.service.view import LOG, StatusView
from stream_app.version import __version__

FLUSH_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. A Kafka transaction takes 10 to 50 ms on a healthy cluster, and the session ends after 10 s by default."""
DELAY_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds. A verdict follows its grace by about one flush; what takes minutes waited for a broker."""
CHECK_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds. A table ordered by offset answers in tens of milliseconds; a query is given up after a minute by default."""

_SINK_CAUSES = tuple(cause for cause in map(str, Cause) if cause != Cause.LOG_HOLE)
_LOG_CAUSES = (str(Cause.LOG_HOLE), str(Cause.UNREADABLE))


class Histogram:
    """Counts observations by upper bound, as Prometheus does: a bound holds all that is at or below it."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: ascending upper bounds; one of infinity is added."""
        self.bounds = (*bounds, math.inf)
        self.counts = [0] * len(self.bounds)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound as text and how many are at or below it, for prometheus_client."""
        total, found = 0, []
        for bound, count in zip(self.bounds, self.counts, strict=True):
            total += count
            found.append(("+Inf" if bound == math.inf else repr(bound), float(total)))
        return found


@dataclass(slots=True)
class Counters:
    """What the process counts while it runs; plain numbers, written by whoever does the work."""

    observations_total: int = 0
    observations_rejected_total: dict[str, int] = field(default_factory=dict)
    """By reason."""
    alerts_total: dict[str, int] = field(default_factory=dict)
    """Committed events by type, as in ``gap.opened``."""
    flush_seconds: Histogram = field(default_factory=lambda: Histogram(FLUSH_BUCKETS))
    state_bytes: dict[str, int] = field(default_factory=dict)
    """By topic: the state of the partitions owned now."""
    detection_delays: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    """By topic and sink."""
    table_checks_total: dict[tuple[str, str], int] = field(default_factory=dict)
    """By sink and outcome: ``ok`` or ``unknown``."""
    table_check_seconds: dict[str, Histogram] = field(default_factory=dict)
    """By sink, of checks that were answered."""
    table_rows_read_total: dict[str, int] = field(default_factory=dict)
    """By sink: rows that servers read for checks."""

    def table_checked(self, sink: str, seconds: float, rows_read: int) -> None:
        """A table answered."""
        self.table_failed(sink, "ok")
        self.table_check_seconds.setdefault(sink, Histogram(CHECK_BUCKETS)).observe(seconds)
        self.table_rows_read_total[sink] = self.table_rows_read_total.get(sink, 0) + rows_read

    def table_failed(self, sink: str, outcome: str = "unknown") -> None:
        """A table was asked, with this outcome."""
        self.table_checks_total[sink, outcome] = self.table_checks_total.get((sink, outcome), 0) + 1

    def detection_delay_seconds(self, topic: str, sink: str) -> Histogram:
        """The histogram of one topic and sink; made when first asked for."""
        key = (topic, sink)
        if key not in self.detection_delays:
            self.detection_delays[key] = Histogram(DELAY_BUCKETS)
        return self.detection_delays[key]


Value = float | Mapping[str, float] | None
"""A number, numbers by the series' extra label, or None: unknown."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series that has a sample per row."""

    name: str
    help: str
    value: Callable[[Row], Value]
    merge: str | None
    """How rows become one under granularity ``topic``: ``sum`` or ``least`` (unknown if one of them is), ``min`` or ``max``
    (of those that have one), None: left out."""
    extra: str | None = None
    """Name of the label beside topic, partition and sink."""
    of_log: bool = False
    """One sample per partition, without a sink."""

    @property
    def counter(self) -> bool:
        """Whether it only rises; a gauge otherwise."""
        return self.name.endswith("_total")


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1_000


def _open_seconds(row: Row, now_ms: int) -> Value:
    if row.last_stable_offset is None:
        return None
    return 0.0 if row.open_since_ms is None else max(now_ms - row.open_since_ms, 0) / 1_000


def _stalled(row: Row) -> Value:
    """A sink that is awaited in a partition which it never touched is stalled there, too."""
    return int(row.stalled) if row.heard or row.stalled or row.sink == LOG else None


def _missing(row: Row) -> Value:
    if row.missing is None:
        return None
    return dict.fromkeys(_LOG_CAUSES if row.sink == LOG else _SINK_CAUSES, 0) | row.missing_by_cause


def _row_series(view: StatusView, now_ms: int) -> list[Series]:
    def heard(value: Callable[[Row], Value]) -> Callable[[Row], Value]:
        return lambda row: value(row) if row.heard or row.sink == LOG else None

    return [
        Series("gapstream_log_start_offset", "Log start offset.", lambda r: r.log_start_offset, None, of_log=True),
        Series("gapstream_log_read_offset", "Next offset of the log to be read.", lambda r: r.log_read_offset, None, of_log=True),
        Series("gapstream_log_end_offset", "Log end offset, exclusive.", lambda r: r.log_end_offset, None, of_log=True),
        Series("gapstream_log_records_total", "Records read from the log.", lambda r: r.records, "sum", of_log=True),
        Series(
            "gapstream_log_absent_offsets_total", "Offsets of the log without a record, by cause.",
            lambda r: dict.fromkeys(map(str, Absent), 0) | r.absent, "sum", extra="cause", of_log=True,
        ),
        Series(
            "gapstream_log_open_transaction_seconds", "How long an open transaction has held the last stable offset; 0 if none does.",
            lambda r: _open_seconds(r, now_ms), "max", of_log=True,
        ),
        Series(
            "gapstream_sink_unknown", "1 if nothing can be said of the sink now, else 0.",
            lambda r: int(view.why_unknown(r, now_ms) is not None), "max",
        ),
        Series("gapstream_sink_stalled", "1 if the sink stands still with records ahead, else 0.", _stalled, "max"),
        Series("gapstream_sink_horizon_offset", "Offset below which the sink claims to be done.", heard(lambda r: r.horizon_offset), None),
        Series("gapstream_sink_lag_records", "Records at or above the sink's horizon.", heard(lambda r: r.lag), "sum"),
        Series("gapstream_observed_records_total", "Records that the sink was seen to have.", heard(lambda r: r.observed), "sum"),
        Series("gapstream_duplicate_records_total", "Records seen there once more, ever told.", heard(lambda r: r.duplicates), "sum"),
        Series("gapstream_missing_records", "Records in open gaps, by cause.", heard(_missing), "sum", extra="cause"),
        Series("gapstream_open_gaps", "Open gaps.", heard(lambda r: r.gaps), "sum"),
        Series(
            "gapstream_oldest_gap_opened_timestamp_seconds", "When the oldest open gap was opened; absent without one.",
            lambda r: _seconds(r.oldest_gap_opened_at_ms), "min",
        ),
        Series(
            "gapstream_explained_records", "Records that did not arrive for a known reason, by reason.",
            heard(lambda r: r.explained), "sum", extra="cause",
        ),
        Series(
            "gapstream_complete_through_timestamp_seconds", "Every record up to this time is received or explained.",
            heard(lambda r: _seconds(view.complete_through_ms(r))), "least",
        ),
        Series(
            "gapstream_seconds_until_loss", "Until retention takes a record that is missing and can still be replayed; absent without one.",
            lambda r: None if r.expires_at_ms is None else max(r.expires_at_ms - now_ms, 0) / 1_000, "min",
        ),
        Series(
            "gapstream_last_update_timestamp_seconds", "As of when the other series of this row hold.",
            lambda r: _seconds(view.updated_at_ms(r)), "min",
        ),
    ]  # fmt: skip


class Metrics(Collector):
    """The series of one worker, with a registry of its own."""

    def __init__(
        self,
        rows: Callable[[], Iterable[Row]],
        counters: Counters,
        view: StatusView,
        clock_ms: Callable[[], int],
        *,
        granularity: str = "partition",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """``rows``: of the partitions owned now; ``granularity``: ``partition`` or ``topic``; ``labels``: put on every series."""
        self._rows, self._counters, self._view, self._clock_ms = rows, counters, view, clock_ms
        self._by_topic = granularity == "topic"
        self._labels = dict(labels or {})
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The answer of ``/metrics``, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """No samples: registering must not compute any."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All series as of now."""
        rows = list(self._rows())
        one_of_log = list({(row.topic, row.partition): row for row in sorted(rows, key=lambda row: row.sink == LOG)}.values())
        of_sinks = [row for row in rows if row.configured]
        for series in _row_series(self._view, self._clock_ms()):
            if not (self._by_topic and series.merge is None):
                yield self._family(series, one_of_log if series.of_log else of_sinks)
        yield from self._process()

    def _family(self, series: Series, rows: list[Row]) -> Metric:
        names = ["topic", *([] if self._by_topic else ["partition"]), *([] if series.of_log else ["sink"])]
        family = self._new(series.name, series.help, [*names, *([series.extra] if series.extra else [])], counter=series.counter)
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            of_row = {"topic": row.topic, "partition": str(row.partition), "sink": row.sink}
            groups.setdefault(tuple(of_row[name] for name in names), []).append(row)
        for key, group in groups.items():
            value = _merged(series, group)
            if isinstance(value, Mapping):
                for extra, number in sorted(value.items()):
                    self._add(family, [*key, extra], number)
            elif value is not None:
                self._add(family, key, value)
        return family

    def _process(self) -> Iterator[Metric]:
        counters = self._counters
        yield self._by_label("gapstream_alerts_total", "Events written to the alerts topic, by type.", "type", counters.alerts_total)
        observations = self._new("gapstream_observations_total", "Observations accepted.", [], counter=True)
        self._add(observations, [], counters.observations_total)
        yield observations
        yield self._by_label(
            "gapstream_observations_rejected_total",
            "Observations rejected whole, by reason.",
            "reason",
            counters.observations_rejected_total,
        )
        yield self._by_label("gapstream_state_bytes", "Size of the state, by topic.", "topic", counters.state_bytes)
        flushes = HistogramMetricFamily("gapstream_flush_seconds", "How long flushes took.", labels=[*self._labels])
        flushes.add_metric([*self._labels.values()], counters.flush_seconds.buckets(), counters.flush_seconds.sum)
        yield flushes
        delays = HistogramMetricFamily(
            "gapstream_detection_delay_seconds",
            "From the observation that passed a gap, plus grace, to the gap's event.",
            labels=["topic", "sink", *self._labels],
        )
        for (topic, sink), histogram in sorted(counters.detection_delays.items()):
            delays.add_metric([topic, sink, *self._labels.values()], histogram.buckets(), histogram.sum)
        yield delays
        yield from self._tables()
        malformed = self._new(
            "gapstream_status_malformed_total", "Records of the status topic that could not be understood.", [], counter=True
        )
        self._add(malformed, [], self._view.malformed)
        yield malformed
        yield self._by_label("gapstream_build_info", "1, with the version as a label.", "version", {__version__: 1})

    def _tables(self) -> Iterator[Metric]:
        counters, name = self._counters, "gapstream_clickhouse_checks_total"
        checks = self._new(name, "Checks of tables, by outcome.", ["sink", "outcome"], counter=True)
        for (sink, outcome), count in sorted(counters.table_checks_total.items()):
            self._add(checks, [sink, outcome], count)
        yield checks
        seconds = HistogramMetricFamily(
            "gapstream_clickhouse_check_seconds", "How long checks of tables took that were answered.", labels=["sink", *self._labels]
        )
        for sink, histogram in sorted(counters.table_check_seconds.items()):
            seconds.add_metric([sink, *self._labels.values()], histogram.buckets(), histogram.sum)
        yield seconds
        yield self._by_label(
            "gapstream_clickhouse_rows_read_total", "Rows that servers read for checks.", "sink", counters.table_rows_read_total
        )

    def _by_label(self, name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
        family = self._new(name, text, [label], counter=name.endswith("_total"))
        for value, count in sorted(values.items()):
            self._add(family, [value], count)
        return family

    def _new(self, name: str, text: str, labels: Sequence[str], *, counter: bool) -> CounterMetricFamily | GaugeMetricFamily:
        family = CounterMetricFamily if counter else GaugeMetricFamily
        return family(name, text, labels=[*labels, *self._labels])

    def _add(self, family: CounterMetricFamily | GaugeMetricFamily, labels: Sequence[str], value: float) -> None:
        family.add_metric([*labels, *self._labels.values()], value)


def _merged(series: Series, rows: list[Row]) -> Value:
    """One value for rows that share their labels; one row's value is itself."""
    if series.merge == "sum" and not series.of_log:
        # In a partition where a sink that is known elsewhere was never heard of, there is nothing of it to be counted.
        rows = [row for row in rows if row.heard or row.sink == LOG] or rows
    values = [series.value(row) for row in rows]
    if len(values) == 1:
        return values[0]
    if series.extra is not None:
        total: dict[str, float] = {}
        for value in values:
            if not isinstance(value, Mapping):
                return None
            for name, number in value.items():
                total[name] = total.get(name, 0) + number
        return total
    numbers = [value for value in values if isinstance(value, int | float)]
    if not numbers or (series.merge in ("sum", "least") and len(numbers) < len(values)):
        return None
    merges: dict[str | None, Callable[[list[float]], float]] = {"sum": sum, "least": min, "min": min, "max": max}
    return merges[series.merge](numbers)
