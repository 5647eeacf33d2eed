"""What belongs together goes to one worker, while topics grow, and whatever the members' files say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import faust
import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata

from stream_app.kafka.assignor import GroupedAssignor
from stream_app.kafka.names import TopicNames

APP = "gap"


class Cluster:
    """As aiokafka's metadata: partition ids by topic."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        count = self._counts.get(topic)
        return None if count is None else set(range(count))


def group(topic: str) -> set[str]:
    names = TopicNames.of(APP, topic)
    return {names.watched, names.observations, names.changelog}


def counts(**partitions: int | tuple[int, int, int]) -> dict[str, int]:
    """Partitions of the watched topic, its observations and its changelog; one number means the same for all three."""
    found: dict[str, int] = {}
    for topic, given in partitions.items():
        names = TopicNames.of(APP, topic)
        watched, observations, changelog = given if isinstance(given, tuple) else (given, given, given)
        found |= {names.watched: watched, names.observations: observations, names.changelog: changelog}
    return found


@pytest.fixture
def assignor() -> GroupedAssignor:
    return make(0)


def make(replicas: int) -> GroupedAssignor:
    app = faust.App(APP, broker="kafka://127.0.0.1:1", autodiscover=False)
    app.finalize()
    return GroupedAssignor(app, replicas=replicas)


def member(topics: Iterable[str], url: str, held: Mapping[str, list[int]] | None = None) -> ConsumerProtocolMemberMetadata:
    data = ClientMetadata(
        assignment=ClientAssignment(actives={topic: list(numbers) for topic, numbers in (held or {}).items()}, standbys={}),
        url=url,
        changelog_distribution={},
        external_topic_distribution={},
        topic_groups={},
    )
    return ConsumerProtocolMemberMetadata(0, list(topics), data.dumps())


def assign(assignor: GroupedAssignor, partitions: Mapping[str, int], **members: Any) -> dict[str, dict[str, list[int]]]:
    """Member -> topic -> partitions that it reads."""
    given = assignor.assign(Cluster(partitions), members)
    found = {}
    for name, one in given.items():
        data = ClientMetadata.loads(assignor._decompress(one.user_data))
        found[name] = {topic: sorted(numbers) for topic, numbers in data.assignment.actives.items() if numbers}
    return found


def test_the_protocol_is_not_fausts(assignor: GroupedAssignor) -> None:
    assert assignor.name == "gapstream"


def test_topics_of_equal_partition_count_stay_apart(assignor: GroupedAssignor) -> None:
    topics = group("orders") | group("payments")
    found = assignor._get_copartitioned_groups(topics, Cluster(counts(orders=4, payments=4)), {})
    assert found == {4: [group("orders"), group("payments")]}


def test_a_partition_of_each_of_the_three_goes_to_one_worker(assignor: GroupedAssignor) -> None:
    topics = group("orders") | group("payments") | group("sales")
    found = assign(assignor, counts(orders=5, payments=3, sales=1), a=member(topics, "http://a"), b=member(topics, "http://b"))
    held: dict[str, list[int]] = {topic: [] for topic in topics}
    for by_topic in found.values():
        for topic in ("orders", "payments", "sales"):
            names = TopicNames.of(APP, topic)
            mine = by_topic.get(topic, [])
            assert by_topic.get(names.observations, []) == by_topic.get(names.changelog, []) == mine
        for topic, numbers in by_topic.items():
            held[topic] += numbers
    assert {topic: sorted(numbers) for topic, numbers in held.items()} == {
        topic: list(range(count)) for topic, count in counts(orders=5, payments=3, sales=1).items()
    }


@pytest.mark.parametrize(("grown", "handed_out"), [((6, 4, 4), 4), ((6, 4, 6), 4), ((6, 6, 6), 6)])
def test_while_a_topic_grows_only_what_all_three_have_is_handed_out(
    assignor: GroupedAssignor, grown: tuple[int, int, int], handed_out: int
) -> None:
    held = {topic: [0, 1, 2, 3] for topic in group("orders")}
    found = assign(assignor, counts(orders=grown), a=member(group("orders"), "http://a", held))
    assert found["a"] == {topic: list(range(handed_out)) for topic in group("orders")}


@pytest.mark.parametrize("shrunk", [(2, 5, 5), (2, 3, 5), (1, 5, 5), (2, 2, 2)])
@pytest.mark.parametrize("replicas", [0, 1])
def test_what_a_topic_that_was_made_anew_has_no_more_is_not_handed_out(shrunk: tuple[int, int, int], replicas: int) -> None:
    """The topics that belong to it keep their partitions; who held the first ones keeps them, the others get nothing."""
    topics = group("orders") | group("payments")
    held = [{**dict.fromkeys(group("orders"), mine), **{topic: [1] for topic in group("payments")}} for mine in ([0, 3, 4], [1, 2])]
    members = {name: member(topics, f"http://{name}", mine) for name, mine in zip("ab", held, strict=True)}
    found = assign(make(replicas), counts(orders=shrunk, payments=2), **members)
    for topic in group("orders"):
        assert sorted(found["a"].get(topic, []) + found["b"].get(topic, [])) == list(range(shrunk[0]))
        assert found["a"][topic] == [0]
    for topic in group("payments"):
        assert sorted(found["a"][topic] + found["b"][topic]) == [0, 1]


def test_a_group_that_is_not_complete_is_not_handed_out(assignor: GroupedAssignor) -> None:
    partitions = counts(orders=2, payments=2)
    names = TopicNames.of(APP, "payments")
    topics = group("orders") | group("payments")
    for missing in (names.watched, names.observations, names.changelog):
        have = {topic: count for topic, count in partitions.items() if topic != missing}
        assert assignor._get_copartitioned_groups(topics, Cluster(have), {}) == {2: [group("orders")]}
        assert assignor._get_copartitioned_groups(topics - {missing}, Cluster(partitions), {}) == {2: [group("orders")]}


def test_members_with_different_files(assignor: GroupedAssignor) -> None:
    """The leader's own file does not count: it may be the older one."""
    both = group("orders") | group("payments")
    found = assign(assignor, counts(orders=4, payments=2), old=member(group("orders"), "http://old"), new=member(both, "http://new"))
    assert found["new"]["payments"] == [0, 1]
    assert "payments" not in found["old"]
    assert sorted(found["old"]["orders"] + found["new"]["orders"]) == [0, 1, 2, 3]
    assert len(found["old"]["orders"]) == 2


def test_a_standby_follows_the_changelog_on_another_worker() -> None:
    assignor = make(1)
    topics = group("orders")
    given = assignor.assign(
        Cluster(counts(orders=4)),
        {"a": member(topics, "http://a"), "b": member(topics, "http://b")},
    )
    changelog = TopicNames.of(APP, "orders").changelog
    actives, standbys = {}, {}
    for name, one in given.items():
        data = ClientMetadata.loads(assignor._decompress(one.user_data))
        actives[name], standbys[name] = set(data.assignment.actives[changelog]), set(data.assignment.standbys[changelog])
    assert standbys == {"a": actives["b"], "b": actives["a"]}


def test_who_held_a_partition_keeps_it(assignor: GroupedAssignor) -> None:
    topics = group("orders")
    held = {topic: [1, 3] for topic in topics}
    found = assign(assignor, counts(orders=4), a=member(topics, "http://a"), b=member(topics, "http://b", held))
    assert found["b"]["orders"] == [1, 3]
    assert found["a"]["orders"] == [0, 2]


def test_what_a_generation_hands_to_nobody_is_left_out(assignor: GroupedAssignor) -> None:
    assert assignor.left_out({"c": 2}) == set(), "there is no generation yet"
    assignor.changelog_distribution = {"http://a": {"c": [0, 2]}, "http://b": {"c": [1], "d": [0]}}
    assert assignor.left_out({"c": 3, "d": 1}) == set()
    assert assignor.left_out({"c": 5, "e": 1}) == {("c", 3), ("c", 4), ("e", 0)}
