"""Names of the topics that belong together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TopicNames:
    """A watched topic and the internal topics beside it."""

    watched: str
    observations: str
    changelog: str

    @classmethod
    def of(cls, app_id: str, topic: str) -> TopicNames:
        """Names for one watched topic; the changelog's is Faust's rule for the table named like the topic."""
        return cls(topic, f"{app_id}.observations.{topic}", f"{app_id}-{topic}-changelog")


def alerts_topic(app_id: str) -> str:
    """Where events go."""
    return f"{app_id}.alerts"


def status_topic(app_id: str) -> str:
    """Where rows and signs of life go; compacted."""
    return f"{app_id}.status"
