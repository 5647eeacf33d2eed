"""The log reader over TLS and SASL, against a broker that is set up so."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import kafka_cluster
import pytest
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from kafka_cluster import KafkaCluster

from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import KafkaError, RefusedError
from stream_app.kafka.probe import look
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.trouble import TroubleKind
from tests.support.kafka_kit import KafkaKit
from tests.support.log_owner import owning

USER, PASSWORD = "alice", "wonder, land"
PROTOCOLS = ("SSL", "SASL_PLAINTEXT", "SASL_SSL")


@dataclass(frozen=True)
class Secure:
    """A broker with a listener per protocol."""

    ports: dict[str, int]
    ca: Path
    stranger: Path
    """A certificate that signed nothing here."""
    topic: str

    def settings(self, protocol: str, mechanism: str = "PLAIN") -> KafkaSettings:
        tls = ssl.create_default_context(cafile=str(self.ca)) if protocol.endswith("SSL") else None
        return KafkaSettings(
            (("127.0.0.1", self.ports[protocol]),),
            security_protocol=protocol,
            ssl_context=tls,
            sasl_mechanism=mechanism,
            sasl_plain_username=USER,
            sasl_plain_password=PASSWORD,
            request_timeout_ms=10_000,
        )


def certificates(folder: Path) -> None:
    """``ca.pem``, ``stranger.pem``, and ``server.pem`` (key and certificate of 127.0.0.1, signed by the former)."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "stranger"):
        # Python 3.13 insists on what RFC 5280 says of certificates: key usage here, the authority's key below.
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        openssl("req", "-x509", *key, *usage, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    openssl("req", "-new", *key[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=broker")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
    openssl("x509", "-req", "-in", "server.csr", *signing, "-out", "server.crt")
    (folder / "server.pem").write_text((folder / "server.key").read_text() + (folder / "server.crt").read_text())


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("tls")
    certificates(folder)
    ports = dict(zip(PROTOCOLS, kafka_cluster._free_ports(len(PROTOCOLS)), strict=True))
    extra = "".join(f",{name}://127.0.0.1:{port}" for name, port in ports.items())
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule"
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "server.pem"),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
    }
    for name in ("sasl_plaintext", "sasl_ssl"):
        properties[f"listener.name.{name}.plain.sasl.jaas.config"] = f'{plain} required user_{USER}="{PASSWORD}";'
        properties[f"listener.name.{name}.scram-sha-512.sasl.jaas.config"] = f"{scram} required;"
    given = kafka_cluster.server_properties

    def with_listeners(node: int, *rest: object) -> dict[str, str]:
        made = given(node, *rest)  # type: ignore[arg-type]  # handed on as they came
        made["listener.security.protocol.map"] += "".join(f",{name}:{name}" for name in PROTOCOLS)
        return made | {name: made[name] + extra for name in ("listeners", "advertised.listeners")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka_cluster, "server_properties", with_listeners)
        cluster = KafkaCluster(1, properties=properties)
        cluster.start()
    with cluster, contextlib.closing(KafkaKit(cluster.bootstrap)) as kit:
        credentials = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        upsert = UserScramCredentialUpsertion(USER, credentials, PASSWORD.encode())
        for future in kit.admin.alter_user_scram_credentials([upsert]).values():
            future.result(30)
        topic = kit.make_topic(2)
        for partition in range(2):
            kit.produce(topic, partition, 20_000, value=b"v" * 200)
        yield Secure(ports, folder / "ca.pem", folder / "stranger.pem", topic)


CASES = [
    ("SSL", "PLAIN"),
    ("SASL_PLAINTEXT", "PLAIN"),
    ("SASL_PLAINTEXT", "SCRAM-SHA-512"),
    ("SASL_SSL", "PLAIN"),
    ("SASL_SSL", "SCRAM-SHA-512"),
]


@pytest.mark.parametrize(("protocol", "mechanism"), CASES)
async def test_reading(secure: Secure, protocol: str, mechanism: str) -> None:
    async with owning(secure.settings(protocol, mechanism), max_bytes=500_000) as owner:
        for partition in range(2):
            owner.assign(secure.topic, partition, 0)
        for partition in range(2):
            assert (await owner.read_to(20_000, secure.topic, partition)).records == ((0, 20_000),)
        assert (await owner.reader.ends(secure.topic, 0)).high_watermark == 20_000
        assert owner.troubles == []


@pytest.mark.parametrize(("protocol", "mechanism"), CASES)
async def test_a_second_look(secure: Secure, protocol: str, mechanism: str) -> None:
    found = await look(secure.settings(protocol, mechanism), secure.topic, 0, bytes(16), Isolation.READ_COMMITTED, ((7, 8),))
    assert (found.upto, set(found.timestamps)) == (8, {7})


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_refused_in_one_sentence(secure: Secure, mechanism: str) -> None:
    wrong = replace(secure.settings("SASL_SSL", mechanism), sasl_plain_password="mistaken")
    async with owning(wrong) as owner:
        owner.assign(secure.topic, 0, 0)
        refused = await owner.trouble(TroubleKind.REFUSED)
        assert f"refused the {mechanism} login" in refused.message
        assert "sasl.password" in refused.message
        assert "mistaken" not in refused.message
        with pytest.raises(RefusedError):
            await owner.reader.metadata([secure.topic])


async def test_a_mechanism_that_the_broker_does_not_have(secure: Secure) -> None:
    with pytest.raises(RefusedError, match="SCRAM-SHA-256"):
        await look(secure.settings("SASL_PLAINTEXT", "SCRAM-SHA-256"), secure.topic, 0, bytes(16), Isolation.READ_COMMITTED, ((7, 8),))


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
async def test_a_certificate_that_we_do_not_trust(secure: Secure, protocol: str) -> None:
    wary = replace(secure.settings(protocol), ssl_context=ssl.create_default_context(cafile=str(secure.stranger)))
    async with owning(wary) as owner:
        owner.assign(secure.topic, 0, 0)
        assert "TLS with 127.0.0.1" in (await owner.trouble(TroubleKind.REFUSED)).message


@pytest.mark.parametrize(
    ("ours", "theirs"), [("PLAINTEXT", "SSL"), ("SSL", "SASL_PLAINTEXT"), ("SASL_PLAINTEXT", "SASL_SSL"), ("PLAINTEXT", "SASL_PLAINTEXT")]
)
async def test_the_wrong_security_protocol_is_an_error_not_a_hang(secure: Secure, ours: str, theirs: str) -> None:
    settings = secure.settings(theirs) if ours == "PLAINTEXT" else secure.settings(ours)
    mixed = replace(settings, security_protocol=ours, bootstrap_servers=(("127.0.0.1", secure.ports[theirs]),), request_timeout_ms=1_000)
    with pytest.raises(KafkaError):
        await look(mixed, secure.topic, 0, bytes(16), Isolation.READ_COMMITTED, ((7, 8),), timeout=2)
