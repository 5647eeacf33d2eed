from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stream_app.core.model import Gap, GapsRecord, Row, StatusRecord, WorkerRecord
from stream_app.service.view import GAPS_LIMIT, BadCursor, StatusView
from stream_app.web.times import rfc3339

NOW = 1_700_000_000_000
STATUS_NAMES = (
    "topic sink type configured state reason partitions partitions_with_gaps missing duplicates lag complete_through "
    "oldest_gap_opened_at expires_at updated_at"
)
PARTITION_NAMES = (
    "topic partition sink configured state reason log_start_offset log_read_offset log_end_offset floor_offset horizon_offset "
    "records observed rows missing duplicates lag absent explained sequence complete_through oldest_gap_opened_at expires_at "
    "checked_at updated_at worker"
)
GAP_NAMES = "topic partition sink first_offset last_offset count cause opened_at first_timestamp last_timestamp expires_at sequence"
CONFIG = {"orders": {"billing": "consumer", "warehouse": "clickhouse"}}


def row(partition: int = 0, sink: str = "billing", **changes: Any) -> Row:
    known: dict[str, Any] = {
        "topic": "orders",
        "partition": partition,
        "sink": sink,
        "configured": True,
        "heard": True,
        "log_start_offset": 0,
        "log_read_offset": 100,
        "log_end_offset": 100,
        "horizon_offset": 100,
        "records": 100,
        "observed": 100,
        "missing": 0,
        "gaps": 0,
        "duplicates": 0,
        "lag": 0,
        "complete_known": True,
        "end_read_ms": NOW - 500,
        "updated_at_ms": NOW - 400,
        "incarnation": "AAA",
    }
    return Row(**known | changes)


class Cluster:
    """Writes what workers would, in the order of the topic."""

    def __init__(self, partitions: int = 1, config: dict[str, dict[str, str]] | None = None) -> None:
        self.view = StatusView(CONFIG if config is None else config, unknown_after_s=300)
        self.view.loaded = True
        self.partitions = partitions

    def beat(self, worker: str = "w1", at_ms: int = NOW, **changes: Any) -> None:
        known: dict[str, Any] = {"session_timeout_ms": 10_000, "topics": {"orders": self.partitions}}
        known["flushed"] = dict.fromkeys(changes.get("checked", {}), NOW - 400)
        record = WorkerRecord(worker=worker, at_ms=at_ms, **known | changes)
        self.view.apply(f"worker/{worker}".encode(), msgspec.json.encode(record))

    def rows(self, partition: int, *rows: Row, worker: str = "w1") -> None:
        record = StatusRecord(topic="orders", partition=partition, worker=worker, rows=list(rows))
        self.view.apply(f"partition/orders/{partition}".encode(), msgspec.json.encode(record))

    def gaps(self, *gaps: Gap, partition: int = 0, sink: str = "billing", page: int = 0) -> None:
        record = GapsRecord(topic="orders", partition=partition, sink=sink, block=page, gaps=list(gaps))
        self.view.apply(f"gaps/orders/{partition}/{sink}/{page}".encode(), msgspec.json.encode(record))

    def status(self, sink: str = "billing", now_ms: int = NOW) -> dict[str, Any]:
        (line,) = [line for line in self.view.status(now_ms)["status"] if line["sink"] == sink]
        return line  # type: ignore[no-any-return]  # values of the JSON that is answered

    def partition(self, partition: int = 0, sink: str = "billing", now_ms: int = NOW) -> dict[str, Any]:
        found = self.view.partitions(now_ms, "orders", sink)["partitions"]
        (one,) = [one for one in found if one["partition"] == partition]
        return one  # type: ignore[no-any-return]  # values of the JSON that is answered


@pytest.fixture
def cluster() -> Cluster:
    one = Cluster()
    one.beat()
    return one


def test_names_of_the_answers_are_those_of_the_contract(cluster: Cluster) -> None:
    cluster.rows(0, row(pages=1))
    cluster.gaps(Gap(first=5, stop=8, count=3, cause="not_received"))
    assert " ".join(cluster.status()) == STATUS_NAMES
    assert " ".join(cluster.partition()) == PARTITION_NAMES
    (gap,) = cluster.view.gaps(NOW)["gaps"]
    assert " ".join(gap) == GAP_NAMES


def test_a_healthy_row_is_ok_and_complete_through_the_last_look_at_the_end(cluster: Cluster) -> None:
    cluster.rows(0, row())
    line = cluster.status()
    assert (line["state"], line["reason"], line["missing"], line["type"]) == ("ok", None, 0, "consumer")
    assert line["complete_through"] == rfc3339(NOW - 500)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"missing": 3, "gaps": 1, "catching_up": True, "stalled": True}, "gaps"),
        ({"catching_up": True, "stalled": True}, "catching_up"),
        ({"stalled": True}, "stalled"),
        ({}, "ok"),
    ],
)
def test_the_first_state_that_holds_is_told(cluster: Cluster, changes: dict[str, Any], state: str) -> None:
    cluster.rows(0, row(**changes))
    assert cluster.partition()["state"] == cluster.status()["state"] == state
    assert cluster.partition(now_ms=NOW + 10_001)["state"] == "unknown"


@pytest.mark.parametrize(
    ("rows", "configured"),
    [
        ([], None),
        ([{"configured": False}], False),
        ([{"configured": False}, {"configured": True}], True),
    ],
)
def test_whether_a_sink_stands_in_a_configuration(cluster: Cluster, rows: list[dict[str, Any]], configured: bool | None) -> None:
    for partition, changes in enumerate(rows):
        cluster.rows(partition, row(partition, "old", **changes))
    assert cluster.view.stands_in_configuration("orders", "old") is configured
    assert cluster.view.stands_in_configuration("orders", "billing") is True
    assert cluster.view.stands_in_configuration("orders", "log") is True
    assert cluster.view.stands_in_configuration("payments", "old") is None


class TestUnknown:
    def test_a_sink_whose_checks_fail(self, cluster: Cluster) -> None:
        cluster.rows(0, row(missing=7, gaps=2, unknown="b1:9092 can't be reached", reason="something else"))
        assert (cluster.partition()["state"], cluster.status()["state"]) == ("unknown", "unknown")
        assert cluster.partition()["reason"] == cluster.status()["reason"] == "b1:9092 can't be reached"
        assert cluster.partition()["missing"] == 7, "counts keep their last known value"

    def test_why_it_can_be_heard_of_nowhere_says_more_than_that(self, cluster: Cluster) -> None:
        cluster.rows(0, row(heard=False, observed=None, missing=None, gaps=None, unknown="topic copy: there is none"))
        assert cluster.partition()["reason"] == cluster.status()["reason"] == "topic copy: there is none"
        assert cluster.status()["missing"] is None
        cluster.rows(0, row(heard=False, observed=None, missing=None, gaps=None))
        assert cluster.partition()["reason"] == cluster.status()["reason"] == "never heard of"

    def test_a_sink_that_was_asked_and_never_answered(self, cluster: Cluster) -> None:
        cluster.rows(0, row(heard=False, missing=None, gaps=None, duplicates=None, unknown="c1:8123 can't be reached"))
        assert (cluster.partition()["state"], cluster.partition()["reason"]) == ("unknown", "c1:8123 can't be reached")

    def test_rows_of_a_silent_worker_after_its_session_timeout(self, cluster: Cluster) -> None:
        cluster.rows(0, row(missing=7, gaps=2))
        assert cluster.partition(now_ms=NOW + 10_000)["state"] == "gaps"
        late = cluster.partition(now_ms=NOW + 10_001)
        assert late["state"] == "unknown"
        assert late["reason"] == f"worker w1 is gone, last heard of at {rfc3339(NOW)}"
        assert late["missing"] == 7, "counts keep their last known value"
        assert cluster.status(now_ms=NOW + 10_001)["missing"] == 7

    def test_a_stopped_worker_until_another_takes_over(self, cluster: Cluster) -> None:
        cluster.rows(0, row())
        cluster.beat(stopped=True)
        assert cluster.partition()["reason"] == "worker w1 has stopped and no other has taken over yet"
        cluster.beat("w2")
        cluster.rows(0, row(), worker="w2")
        assert (cluster.partition()["state"], cluster.partition()["worker"]) == ("ok", "w2")

    def test_a_worker_that_lost_the_partition_but_lives(self, cluster: Cluster) -> None:
        cluster.rows(0, row())
        cluster.beat(at_ms=NOW + 20_000, checked={"orders/1": NOW + 20_000})
        assert cluster.partition(now_ms=NOW + 20_000)["state"] == "unknown"
        cluster.beat(at_ms=NOW + 20_000, checked={"orders/0": NOW + 20_000})
        assert cluster.partition(now_ms=NOW + 20_000)["state"] == "ok"

    def test_a_worker_nobody_heard_of(self) -> None:
        cluster = Cluster()
        cluster.rows(0, row())
        assert cluster.partition()["reason"] == "worker w1 was never heard of"

    def test_a_log_whose_end_was_not_read_for_long(self, cluster: Cluster) -> None:
        cluster.rows(0, row())
        cluster.beat(at_ms=NOW + 300_001, checked={"orders/0": NOW})
        assert cluster.partition(now_ms=NOW + 300_000)["state"] == "ok"
        assert cluster.partition(now_ms=NOW + 300_001)["reason"] == f"the end of the log was last read at {rfc3339(NOW)}"

    def test_a_sink_heard_of_in_no_partition_has_no_counts(self, cluster: Cluster) -> None:
        cluster.rows(0, row(), row(sink="warehouse", heard=False))
        line = cluster.status("warehouse")
        assert (line["state"], line["reason"], line["configured"]) == ("unknown", "never heard of", True)
        assert [line[name] for name in ("missing", "duplicates", "lag", "partitions_with_gaps", "complete_through")] == [None] * 5
        one = cluster.partition(sink="warehouse")
        assert (one["state"], one["reason"]) == ("unknown", "never heard of")
        assert [one[name] for name in ("missing", "observed", "lag", "horizon_offset", "complete_through")] == [None] * 5
        assert one["log_end_offset"] == 100

    def test_a_partition_where_a_known_sink_is_silent_is_no_unknown(self) -> None:
        cluster = Cluster(2)
        cluster.beat()
        cluster.rows(0, row())
        silent = row(1, heard=False, missing=None, gaps=None, duplicates=None, reason="never heard of in this partition")
        cluster.rows(1, silent)
        assert cluster.partition(1)["state"] == "ok"
        line = cluster.status()
        assert (line["state"], line["missing"]) == ("ok", 0)
        assert line["reason"] == "1 of 2 partitions: never heard of in this partition"

    def test_a_partition_without_a_row(self) -> None:
        cluster = Cluster(3)
        cluster.beat()
        cluster.rows(0, row(missing=4, gaps=1))
        line = cluster.status()
        assert (line["state"], line["reason"]) == ("unknown", "2 of 3 partitions: no worker has reported it yet")
        assert (line["partitions"], line["missing"], line["complete_through"]) == (3, 4, None)
        empty = cluster.partition(2)
        assert (empty["state"], empty["missing"], empty["records"], empty["updated_at"], empty["worker"]) == ("unknown", *[None] * 4)
        assert (empty["absent"], empty["explained"]) == ({}, {})

    def test_a_topic_that_no_worker_has_seen(self) -> None:
        view = StatusView(CONFIG, 300)
        assert [(line["sink"], line["state"], line["reason"], line["partitions"]) for line in view.status(NOW)["status"]] == [
            ("billing", "unknown", "never heard of", None),
            ("log", "unknown", "no worker has reported it yet", None),
            ("warehouse", "unknown", "never heard of", None),
        ]
        assert view.partitions(NOW) == {"partitions": []}


class TestCompleteThrough:
    def test_an_open_gap_holds_it_back_and_lateness_is_taken_off_the_end(self, cluster: Cluster) -> None:
        cluster.rows(0, row(complete_bound_ms=NOW - 9_000, lateness_ms=2_000))
        assert cluster.status()["complete_through"] == rfc3339(NOW - 9_000)
        cluster.rows(0, row(lateness_ms=2_000))
        assert cluster.status()["complete_through"] == rfc3339(NOW - 2_500)

    def test_a_later_look_at_the_end_moves_it_but_only_the_owners(self, cluster: Cluster) -> None:
        cluster.rows(0, row())
        cluster.beat("w2", checked={"orders/0": NOW + 9_000})
        assert cluster.status()["complete_through"] == rfc3339(NOW - 500)
        cluster.beat("w1", at_ms=NOW + 1_000, checked={"orders/0": NOW + 900})
        assert cluster.status()["complete_through"] == cluster.status()["updated_at"] == rfc3339(NOW + 900)

    def test_a_look_at_the_end_counts_for_the_flush_that_it_names(self, cluster: Cluster) -> None:
        """What was read since the flush, and not flushed yet, may hold a record that did not arrive."""
        cluster.rows(0, row())
        cluster.beat(checked={"orders/0": NOW + 900}, flushed={"orders/0": NOW + 800})
        assert cluster.status()["complete_through"] == rfc3339(NOW - 500)
        cluster.rows(0, row(updated_at_ms=NOW + 800, end_read_ms=NOW + 700))
        assert cluster.status()["complete_through"] == rfc3339(NOW + 900)

    def test_it_never_falls_even_with_another_owner(self, cluster: Cluster) -> None:
        cluster.rows(0, row())
        cluster.beat("w2")
        cluster.rows(0, row(complete_bound_ms=NOW - 60_000), worker="w2")
        assert cluster.partition()["complete_through"] == rfc3339(NOW - 500)

    def test_it_does_not_depend_on_being_asked(self, cluster: Cluster) -> None:
        cluster.beat(checked={"orders/0": NOW + 700})
        cluster.rows(0, row())
        cluster.beat(checked={})
        cluster.rows(0, row(complete_bound_ms=NOW - 60_000))
        assert cluster.partition()["complete_through"] == rfc3339(NOW + 700)

    def test_before_the_topic_is_read_nothing_is_kept(self, cluster: Cluster) -> None:
        """An old row and a new sign of life, read from two partitions of the topic, together say nothing."""
        cluster.view.loaded = False
        cluster.rows(0, row())
        cluster.beat(at_ms=NOW + 60_000, checked={"orders/0": NOW + 60_000})
        cluster.rows(0, row(complete_bound_ms=NOW - 60_000))
        cluster.view.loaded = True
        assert cluster.partition()["complete_through"] == rfc3339(NOW - 60_000)
        cluster.rows(0, row(complete_bound_ms=NOW - 90_000))
        assert cluster.partition()["complete_through"] == rfc3339(NOW - 60_000), "from then on it never falls"

    def test_it_stays_when_the_topic_is_read_again(self, cluster: Cluster) -> None:
        cluster.rows(0, row(pages=1))
        cluster.gaps(Gap(first=1, stop=2, count=1, cause="expired"))
        cluster.view.restart()
        assert (cluster.view.loaded, cluster.view.partitions(NOW)["partitions"], cluster.view.gaps(NOW)["gaps"]) == (False, [], [])
        cluster.beat()
        cluster.rows(0, row(complete_bound_ms=NOW - 60_000))
        cluster.view.loaded = True
        assert cluster.partition()["complete_through"] == rfc3339(NOW - 500)

    def test_it_begins_anew_with_another_incarnation_or_sink(self, cluster: Cluster) -> None:
        cluster.rows(0, row())
        cluster.rows(0, row(incarnation="BBB", complete_bound_ms=NOW - 60_000))
        assert cluster.partition()["complete_through"] == rfc3339(NOW - 60_000)
        cluster.rows(0, row(sink="warehouse"))
        cluster.rows(0, row(incarnation="BBB", complete_bound_ms=NOW - 90_000))
        assert cluster.partition()["complete_through"] == rfc3339(NOW - 90_000)

    def test_unknown_is_null_and_what_was_told_comes_back(self, cluster: Cluster) -> None:
        cluster.rows(0, row())
        cluster.rows(0, row(complete_known=False))
        assert cluster.status()["complete_through"] is None
        cluster.rows(0, row(complete_bound_ms=NOW - 60_000))
        assert cluster.status()["complete_through"] == rfc3339(NOW - 500)
        cluster.rows(0, row(end_read_ms=None))
        assert cluster.partition()["complete_through"] is None

    def test_of_a_sink_it_is_the_minimum_and_null_if_one_partition_is(self) -> None:
        cluster = Cluster(2)
        cluster.beat()
        cluster.rows(0, row(0, complete_bound_ms=NOW - 8_000))
        assert cluster.status()["complete_through"] is None
        cluster.rows(1, row(1))
        assert cluster.status()["complete_through"] == rfc3339(NOW - 8_000)
        cluster.rows(1, row(1, complete_known=False))
        assert cluster.status()["complete_through"] is None


def test_the_line_of_a_sink_sums_up_its_partitions() -> None:
    cluster = Cluster(3)
    cluster.beat()
    cluster.rows(0, row(0, missing=3, gaps=2, duplicates=1, lag=10, oldest_gap_opened_at_ms=NOW - 50, expires_at_ms=NOW + 70))
    cluster.rows(1, row(1, missing=4, gaps=1, duplicates=0, lag=0, oldest_gap_opened_at_ms=NOW - 90, expires_at_ms=NOW + 90))
    cluster.rows(2, row(2, lag=None, updated_at_ms=NOW - 5_000, end_read_ms=NOW - 5_000))
    line = cluster.status()
    assert (line["state"], line["partitions"], line["partitions_with_gaps"]) == ("gaps", 3, 2)
    assert (line["missing"], line["duplicates"], line["lag"]) == (7, 1, 10)
    assert line["oldest_gap_opened_at"] == rfc3339(NOW - 90)
    assert line["expires_at"] == rfc3339(NOW + 70)
    assert line["updated_at"] == rfc3339(NOW - 5_000)


def test_the_log_is_a_sink_of_every_partition(cluster: Cluster) -> None:
    cluster.rows(0, row(sink="log", records=100))
    assert (cluster.status("log")["type"], cluster.status("log")["state"]) == ("log", "ok")
    assert cluster.partition(sink="log")["configured"] is True


def test_a_sink_in_no_file_is_kept_apart(cluster: Cluster) -> None:
    cluster.rows(0, row(sink="stray", configured=False))
    assert (cluster.status("stray")["configured"], cluster.status("stray")["type"]) == (False, None)
    assert cluster.partition(sink="stray")["configured"] is False


@pytest.mark.parametrize("all_of_them", [False, True])
def test_gaps_of_a_sink_in_no_file_are_not_listed_and_its_numbers_are(cluster: Cluster, all_of_them: bool) -> None:
    """A fold of the alerts topic has none of them."""
    stray = row(sink="stray", configured=False, missing=3, gaps=1, pages=1)
    cluster.rows(0, row(missing=1, gaps=1, pages=1), row(sink="log", missing=1, gaps=1, pages=1), stray)
    open_one, explained = Gap(first=5, stop=8, count=3, cause="not_received"), Gap(first=9, stop=10, count=1, cause="tombstone", open=False)
    for sink in ("billing", "log", "stray"):
        cluster.gaps(open_one, explained, sink=sink)

    def listed(**asked: Any) -> set[str]:
        return {gap["sink"] for gap in cluster.view.gaps(NOW, all=all_of_them, **asked)["gaps"]}

    assert listed() == {"billing", "log"}
    assert listed(sink="stray") == set(), "nor where somebody names it"
    assert (cluster.partition(sink="stray")["missing"], cluster.status("stray")["missing"]) == (3, 3)
    assert [gap.first for gap in cluster.view.gaps_of(("orders", 0, "stray"))] == [5, 9], "explain knows them"
    cluster.rows(0, row(), row(sink="log"), row(sink="stray", missing=3, gaps=1, pages=1))
    assert listed() == {"stray"}, "it was put into the file"


def test_a_sink_that_left_the_file_and_was_never_heard_of_is_in_none(cluster: Cluster) -> None:
    cluster.rows(0, row(sink="stray", configured=False, heard=False))
    line = cluster.status("stray")
    assert (line["configured"], line["state"], line["missing"]) == (False, "unknown", None)


def test_while_a_topic_grows_the_newest_count_is_taken() -> None:
    cluster = Cluster(4)
    cluster.beat("old", topics={"orders": 2})
    cluster.beat("new", topics={"orders": 4})
    assert cluster.view.partition_count("orders", NOW) == 4
    cluster.beat("new", topics={"orders": 4}, at_ms=NOW - 60_000)
    assert cluster.view.partition_count("orders", NOW) == 2, "only workers that are alive count"
    assert cluster.view.partition_count("orders", NOW + 60_000) == 2, "then the last that spoke"
    assert cluster.view.partition_count("payments", NOW) is None


class TestGaps:
    @pytest.fixture
    def listed(self) -> Cluster:
        cluster = Cluster(2)
        cluster.beat()
        cluster.rows(0, row(0, pages=2), row(0, sink="log", pages=1))
        cluster.rows(1, row(1, pages=1))
        # Open gaps come first on the pages, explained ones after them: a page is not in the order of the list.
        cluster.gaps(
            Gap(first=10, stop=15, count=4, cause="not_received", opened_at_ms=NOW, first_timestamp_ms=0, sequence=3),
            Gap(first=40, stop=41, count=1, cause="expired"),
        )
        cluster.gaps(Gap(first=20, stop=30, count=10, cause="tombstone", open=False), page=1)
        cluster.gaps(Gap(first=7, stop=8, count=1, cause="log_hole"), sink="log")
        cluster.gaps(Gap(first=1, stop=2, count=1, cause="not_received"), partition=1)
        return cluster

    @staticmethod
    def firsts(answer: dict[str, Any]) -> list[int]:
        return [gap["first_offset"] for gap in answer["gaps"]]

    def test_closed_ranges_in_order_without_explained_ones(self, listed: Cluster) -> None:
        answer = listed.view.gaps(NOW)
        assert self.firsts(answer) == [10, 40, 7, 1]
        assert answer["next"] is None
        gap = answer["gaps"][0]
        assert [gap[name] for name in ("last_offset", "count", "opened_at", "first_timestamp", "last_timestamp", "sequence")] == [
            14, 4, rfc3339(NOW), "1970-01-01T00:00:00.000Z", None, 3,
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("question", "firsts"),
        [
            ({"all": True}, [10, 20, 40, 7, 1]),
            ({"cause": "not_received"}, [10, 1]),
            ({"cause": "tombstone"}, []),
            ({"cause": "tombstone", "all": True}, [20]),
            ({"partition": 1}, [1]),
            ({"sink": "log"}, [7]),
            ({"topic": "payments"}, []),
            ({"topic": "orders", "partition": 0, "sink": "billing"}, [10, 40]),
            ({"allow": lambda topic, sink: sink == "log"}, [7]),
        ],
    )
    def test_questions(self, listed: Cluster, question: dict[str, Any], firsts: list[int]) -> None:
        assert self.firsts(listed.view.gaps(NOW, **question)) == firsts

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
    def test_pages_together_are_the_whole(self, listed: Cluster, limit: int) -> None:
        found, cursor = [], None
        while True:
            answer = listed.view.gaps(NOW, all=True, limit=limit, cursor=cursor)
            assert len(answer["gaps"]) <= limit
            found += self.firsts(answer)
            cursor = answer["next"]
            if cursor is None:
                break
        assert found == [10, 20, 40, 7, 1]

    def test_a_cursor_stays_true_while_gaps_come_and_go(self, listed: Cluster) -> None:
        answer = listed.view.gaps(NOW, limit=1)
        assert self.firsts(answer) == [10]
        listed.gaps(Gap(first=3, stop=4, count=1, cause="not_received"), Gap(first=12, stop=13, count=1, cause="not_received"))
        assert self.firsts(listed.view.gaps(NOW, cursor=answer["next"])) == [12, 7, 1]

    def test_a_cursor_of_a_row_that_is_gone(self, listed: Cluster) -> None:
        answer = listed.view.gaps(NOW, limit=1)
        for page in (0, 1):
            listed.view.apply(f"gaps/orders/0/billing/{page}".encode(), None)
        assert self.firsts(listed.view.gaps(NOW, cursor=answer["next"])) == [7, 1]

    @pytest.mark.parametrize("cursor", ["", "x", "!!!!", "W10", "bnVsbA", "é", "W1siYSJdLDEsMiwzXQ"])
    def test_a_made_up_cursor(self, listed: Cluster, cursor: str) -> None:
        with pytest.raises(BadCursor, match="none that this server gave out"):
            listed.view.gaps(NOW, cursor=cursor)

    def test_pages_that_an_earlier_owner_left_over_are_not_listed(self, listed: Cluster) -> None:
        listed.rows(0, row(0, pages=1))
        assert self.firsts(listed.view.gaps(NOW, all=True, partition=0, sink="billing")) == [10, 40]

    def test_a_gap_between_two_pages_of_one_flush_is_listed_once(self, listed: Cluster) -> None:
        listed.gaps(Gap(first=40, stop=41, count=1, cause="expired"), page=1)
        assert self.firsts(listed.view.gaps(NOW, partition=0, sink="billing")) == [10, 40]

    def test_a_sink_with_slashes_in_its_name(self) -> None:
        cluster = Cluster()
        cluster.rows(0, row(sink="a/b/0", pages=1))
        cluster.gaps(Gap(first=1, stop=2, count=1, cause="vanished"), sink="a/b/0")
        assert [gap["sink"] for gap in cluster.view.gaps(NOW)["gaps"]] == ["a/b/0"]
        assert cluster.view.malformed == 0

    def test_many_gaps_come_in_pages_of_the_default_size(self) -> None:
        cluster = Cluster()
        cluster.rows(0, row(pages=1))
        cluster.gaps(*(Gap(first=2 * n, stop=2 * n + 1, count=1, cause="not_received") for n in range(GAPS_LIMIT + 1)))
        answer = cluster.view.gaps(NOW)
        assert len(answer["gaps"]) == GAPS_LIMIT
        assert self.firsts(cluster.view.gaps(NOW, cursor=answer["next"])) == [2 * GAPS_LIMIT]


def test_tombstones_take_away(cluster: Cluster) -> None:
    cluster.rows(0, row(pages=1))
    cluster.gaps(Gap(first=1, stop=2, count=1, cause="not_received"))
    for key in (b"gaps/orders/0/billing/0", b"partition/orders/0", b"worker/w1"):
        cluster.view.apply(key, None)
        cluster.view.apply(key, None)
    assert cluster.view.malformed == 0
    assert cluster.view.gaps(NOW)["gaps"] == []
    assert cluster.view.partitions(NOW)["partitions"] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"partition/orders/0", b"{"),
        (b"partition/orders/0", b'{"kind":"worker","worker":"w1","at_ms":1,"session_timeout_ms":1}'),
        (b"partition/orders/1", msgspec.json.encode(StatusRecord(topic="orders", partition=0, worker="w1", rows=[]))),
        (b"partition/orders/1", msgspec.json.encode(StatusRecord(topic="orders", partition=1, worker="w1", rows=[row(0)]))),
        (b"partition/orders/0", msgspec.json.encode(StatusRecord(v=2, topic="orders", partition=0, worker="w1", rows=[]))),
        (b"partition/orders/x", None),
        (b"gaps/orders/0/0", None),
        (b"gaps/orders/0/billing/0", msgspec.json.encode(GapsRecord(topic="orders", partition=0, sink="other", block=0, gaps=[]))),
        (b"worker/w2", msgspec.json.encode(WorkerRecord(worker="w1", at_ms=1, session_timeout_ms=1))),
        (b"worker/w1", msgspec.json.encode(WorkerRecord(worker="w1", at_ms=1, session_timeout_ms=1, checked={"x": 1}))),
        (b"nonsense/a", None),
        (b"\xff", None),
    ],
)
def test_malformed_records_are_counted_and_change_nothing(cluster: Cluster, key: bytes, value: bytes | None) -> None:
    cluster.rows(0, row())
    before = cluster.view.status(NOW)
    cluster.view.apply(key, value)
    assert cluster.view.malformed == 1
    assert repr(key) in (cluster.view.last_malformed or "")
    assert cluster.view.status(NOW) == before


def test_an_asker_sees_only_what_it_may(cluster: Cluster) -> None:
    cluster.rows(0, row(), row(sink="log"))
    assert [line["sink"] for line in cluster.view.status(NOW, allow=lambda topic, sink: sink == "log")["status"]] == ["log"]
    assert cluster.view.partitions(NOW, allow=lambda topic, sink: False) == {"partitions": []}


def test_one_partition_with_its_sinks_and_their_gaps() -> None:
    cluster = Cluster(partitions=2)
    cluster.beat()
    for partition in range(2):
        cluster.rows(partition, row(partition, pages=2), row(partition, "log"), row(partition, "stranger", configured=False))
        cluster.gaps(Gap(first=8, stop=9, count=1, cause="tombstone", open=False), partition=partition, page=1)
    cluster.gaps(Gap(first=4, stop=6, count=2, cause="expired"), partition=1)
    found = cluster.view.of_partition("orders", 1, NOW)
    assert [(judged.partition, judged.sink, judged.row is None, [gap.first for gap in gaps]) for judged, gaps in found] == [
        (1, "billing", False, [4, 8]),
        (1, "log", False, []),
        (1, "stranger", False, []),
        (1, "warehouse", True, []),
    ]
    assert cluster.view.sinks("orders") == ["billing", "log", "stranger", "warehouse"]
    assert cluster.view.of_partition("orders", 7, NOW) == []
    assert cluster.view.of_partition("other", 0, NOW) == []
