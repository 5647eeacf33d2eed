"""Keeps a partition's log, observations and changelog on one worker.

Faust's own rule puts topics of equal partition count together, which tears a topic from its observations while it grows. Ours:
partitions of one number are handed out together, as many as exist in all three. Growth grows the changelog first and the
observations last, so the observations topic decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from faust.assignor.client_assignment import ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor

from stream_app.kafka.names import TopicNames


class GroupedAssignor(PartitionAssignor):
    """One co-partitioned group per watched topic."""

    @property
    def name(self) -> str:
        """Protocol name in the group: another one than Faust's, since the rule is another."""
        return "gapstream"

    def left_out(self, partitions: Mapping[str, int]) -> set[tuple[str, int]]:
        """Partitions of changelogs, by how many there are, that this generation hands to no worker; none while there is no generation.

        A static member that comes back is given what it had (KIP-345), whatever grew meanwhile.
        """
        if not self.changelog_distribution:
            return set()
        handed = {
            (topic, number) for topics in self.changelog_distribution.values() for topic, numbers in topics.items() for number in numbers
        }
        return {(topic, number) for topic, count in partitions.items() for number in range(count)} - handed

    def _perform_assignment(self, cluster: Any, member_metadata: Mapping[str, Any]) -> Any:
        """As Faust's, with what members held reduced to what exists.

        A topic that was made anew may have fewer partitions than before. Faust's would count those that are gone against a
        worker's share, fail, and with that end the worker's membership without a word.
        """
        subscribed = {topic for metadata in member_metadata.values() for topic in metadata.subscription}
        groups = self._get_copartitioned_groups(subscribed, cluster, {})
        counts = {topic: count for count, found in groups.items() for group in found for topic in group}
        held = {member: _reduced(metadata, counts) for member, metadata in member_metadata.items()}
        return super()._perform_assignment(cluster, held)

    def _get_copartitioned_groups(  # type: ignore[override]  # a class method there; here the app's names are needed
        self, topics: set[str], cluster: Any, subscriptions: Mapping[str, list[str]]
    ) -> dict[int, list[set[str]]]:
        app_id = self.app.conf.id
        groups: dict[int, list[set[str]]] = {}
        # By what the members subscribe to, not by what the leader watches: their files, or what their patterns found, may differ.
        for name in (TopicNames.of(app_id, topic) for topic in sorted(topics)):
            group = {name.watched, name.observations, name.changelog}
            if not group <= topics:
                continue
            counts = [len(cluster.partitions_for_topic(topic) or ()) for topic in sorted(group)]
            if 0 not in counts:
                groups.setdefault(min(counts), []).append(group)
        return groups


def _reduced(metadata: ConsumerProtocolMemberMetadata, counts: Mapping[str, int]) -> ConsumerProtocolMemberMetadata:
    """The same without partitions that are not to be handed out any more; ``counts``: how many are, by topic."""
    client = ClientMetadata.loads(metadata.user_data)
    for held in (client.assignment.actives, client.assignment.standbys):
        for topic, numbers in held.items():
            held[topic] = [number for number in numbers if number < counts.get(topic, 0)]
    return ConsumerProtocolMemberMetadata(metadata.version, metadata.subscription, client.dumps())
