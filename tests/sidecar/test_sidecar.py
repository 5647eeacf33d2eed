"""What is taken for wrapping, and what is refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, DeserializingConsumer, KafkaException, Producer

import gapstream_sidecar
from gapstream_sidecar import ConfigurationError, UnsupportedError
from gapstream_sidecar.clientconf import ClientConf, known
from tests.sidecar.conftest import Bench
from tests.sidecar.fakes import FakeConsumer

NOWHERE: dict[str, Any] = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}


def test_a_real_consumer_can_be_wrapped_without_brokers(bench: Bench) -> None:
    consumer = bench.sidecar().wrap(Consumer({**NOWHERE, "group.id": "g", "enable.auto.commit": False}))
    assert isinstance(consumer, Consumer)
    consumer.subscribe(["orders"], on_revoke=lambda *_: None)
    assert consumer.poll(0) is None
    assert consumer.consume(5, 0) == []
    assert consumer.assignment() == []
    assert consumer.memberid() is None
    with pytest.raises(KafkaException):
        consumer.commit(asynchronous=False)
    consumer.unsubscribe()
    consumer.close()
    with pytest.raises(RuntimeError):
        consumer.poll(0)


@pytest.mark.parametrize("kind", [Consumer, DeserializingConsumer])
@pytest.mark.parametrize(
    ("conf", "told"),
    [
        ({}, ClientConf(auto_commit=True, auto_store=True, group="g")),
        ({"enable.auto.commit": False}, ClientConf(auto_commit=False, auto_store=True, group="g")),
        ({"enable.auto.offset.store": "false"}, ClientConf(auto_commit=True, auto_store=False, group="g")),
        ({"auto.commit.enable": "false", "enable.auto.offset.store": 0}, ClientConf(auto_commit=True, auto_store=False, group="g")),
        ({"default.topic.config": {"auto.commit.enable": False}}, ClientConf(auto_commit=True, auto_store=True, group="g")),
    ],
)
def test_a_consumer_tells_its_own_configuration(kind: Any, conf: dict[str, Any], told: ClientConf) -> None:
    consumer = kind({**NOWHERE, "group.id": "g", **conf})
    try:
        assert known(consumer, {"enable.auto.commit": "whatever"}) == told
    finally:
        consumer.close()
    assert known(consumer, None) is None  # closed: there is nothing inside any more


@pytest.mark.parametrize(
    ("conf", "told"),
    [
        ({}, ClientConf(auto_commit=True, auto_store=True, group="")),
        ({"group.id": "g", "enable.auto.commit": "False"}, ClientConf(auto_commit=False, auto_store=True, group="g")),
        ({"auto.commit.enable": "f", "enable.auto.offset.store": False}, ClientConf(auto_commit=True, auto_store=False, group="")),
    ],
)
def test_else_the_configuration_is_what_was_handed_over(bench: Bench, conf: dict[str, Any], told: ClientConf) -> None:
    assert known(bench.consumer(), conf) == told


def test_nothing_is_guessed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"FakeConsumer commits: hand its configuration to wrap\(\) as well"):
        bench.sidecar().wrap(bench.consumer())
    monkeypatch.setattr("gapstream_sidecar.clientconf._library", lambda: None)  # as where librdkafka is linked in
    consumer = Consumer({**NOWHERE, "group.id": "g"})
    with pytest.raises(ConfigurationError, match=r"cimpl\.Consumer commits"):
        bench.sidecar().wrap(consumer)
    assert bench.sidecar().wrap(consumer, {"group.id": "g"})
    consumer.close()


class Proxied(Consumer):
    """As instrumentation makes them: a consumer by its type, with the real one inside."""

    def __init__(self, inside: Consumer) -> None:
        self.inside = inside


def test_a_stand_in_of_somebody_else_is_not_asked(bench: Bench) -> None:
    inside = Consumer({**NOWHERE, "group.id": "g"})
    with pytest.raises(ConfigurationError, match="Proxied commits"):
        bench.sidecar().wrap(Proxied(inside))
    inside.close()


class AIOConsumer(FakeConsumer):
    async def poll(self, *_: Any) -> Any: ...


@pytest.mark.parametrize("other", [AIOConsumer([]), object(), None])
def test_other_clients_are_refused_in_one_sentence(bench: Bench, other: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"{type(other).__qualname__} is not supported by gapstream-sidecar"):
        bench.sidecar().wrap(other)


def test_a_client_is_wrapped_once(bench: Bench) -> None:
    consumer, _ = bench.wrapped()
    producer = bench.sidecar().wrap(Producer(NOWHERE))
    for one in (consumer, producer):
        with pytest.raises(UnsupportedError, match="wrapped already"):
            bench.sidecar().wrap(one)


def test_the_package_says_what_it_exports() -> None:
    assert all(hasattr(gapstream_sidecar, name) for name in gapstream_sidecar.__all__)
