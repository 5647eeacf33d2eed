"""Keeps a partition's log, observations and changelog on one worker.

Faust's own rule puts topics of equal partition count together, which tears a topic from its observations while it grows. Ours:
the observations topic decides how many partitions are handed out, the watched topic and the changelog follow. Growth grows
the changelog first and the observations last, so what is handed out exists in all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faust.assignor.partition_assignor import PartitionAssignor

from stream_app.kafka.names import TopicNames


class GroupedAssignor(PartitionAssignor):
    """One co-partitioned group per watched topic."""

    @property
    def name(self) -> str:
        """Protocol name in the group: another one than Faust's, since the rule is another."""
        return "gapstream"

    def _get_copartitioned_groups(  # type: ignore[override]  # a class method there; here the app's names are needed
        self, topics: set[str], cluster: Any, subscriptions: Mapping[str, list[str]]
    ) -> dict[int, list[set[str]]]:
        names: Mapping[str, TopicNames] = self.app.topic_names  # type: ignore[attr-defined]  # our App has it
        groups: dict[int, list[set[str]]] = {}
        for name in names.values():
            group = {name.watched, name.observations, name.changelog} & topics
            counts = [len(cluster.partitions_for_topic(topic) or ()) for topic in sorted(group)]
            if len(group) < 3 or 0 in counts:
                continue
            decided = len(cluster.partitions_for_topic(name.observations))
            groups.setdefault(min(decided, *counts), []).append(group)
        return groups
