from __future__ import annotations

from stream_app.kafka.names import TopicNames, alerts_topic, status_topic


def test_names_are_those_of_the_contract() -> None:
    assert TopicNames.of("gapstream", "orders") == TopicNames("orders", "gapstream.observations.orders", "gapstream-orders-changelog")
    assert (alerts_topic("gapstream"), status_topic("gapstream")) == ("gapstream.alerts", "gapstream.status")
