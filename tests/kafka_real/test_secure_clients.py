"""One section ``kafka`` lets every client of the program in, or keeps every one out, whatever the broker asks for."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import kafka_cluster
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as AiokafkaError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from kafka_cluster import KafkaCluster

from stream_app.kafka.clients import KafkaClients, describe_kafka_error
from stream_app.kafka.cluster import Cluster
from stream_app.kafka.failures import KafkaError
from tests.support.certificates import KEY_PASSWORD, Certificates, make_certificates

USER, PASSWORD = "alice", "wonder, land"
LISTENERS = {"TLS": "SSL", "MUTUAL": "SSL", "CLEAR": "SASL_PLAINTEXT", "SECURE": "SASL_SSL", "TOKENS": "SASL_PLAINTEXT"}


@dataclass(frozen=True)
class Secure:
    """A broker with a listener per way in, and what is needed for each."""

    ports: dict[str, int]
    pem: Certificates
    tokens: str

    def properties(self, listener: str, **more: str) -> dict[str, str]:
        """For one listener, with ``_`` for ``.`` in ``more``."""
        given = {"bootstrap.servers": f"127.0.0.1:{self.ports[listener]}", "security.protocol": LISTENERS[listener]}
        if LISTENERS[listener].endswith("SSL"):
            given["ssl.ca.location"] = str(self.pem.authority)
        if listener == "MUTUAL":
            given |= {
                "ssl.certificate.location": str(self.pem.certificate),
                "ssl.key.location": str(self.pem.locked_key),
                "ssl.key.password": KEY_PASSWORD,
            }
        if listener in ("CLEAR", "SECURE"):
            given |= {"sasl.mechanism": "PLAIN", "sasl.username": USER, "sasl.password": PASSWORD}
        if listener == "TOKENS":
            given |= {
                "sasl.mechanism": "OAUTHBEARER",
                "sasl.oauthbearer.method": "oidc",
                "sasl.oauthbearer.client.id": USER,
                "sasl.oauthbearer.client.secret": PASSWORD,
                "sasl.oauthbearer.token.endpoint.url": self.tokens,
                "sasl.oauthbearer.scope": "kafka",
            }
        return given | {name.replace("_", "."): value for name, value in more.items()}


class TokenEndpoint(BaseHTTPRequestHandler):
    """Gives unsecured tokens (RFC 7515, appendix A.5), which Kafka takes where nothing else is configured."""

    def do_POST(self) -> None:
        """To whoever knows the secret."""
        self.rfile.read(int(self.headers["Content-Length"]))
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers["Authorization"] != f"Basic {login}":
            self.send_error(401)
            return
        now = int(time.time())
        parts = ({"alg": "none"}, {"sub": USER, "iat": now, "exp": now + 3600, "scope": "kafka"})
        token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."
        answer = json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 3600}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def tokens() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), TokenEndpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/token"
    server.shutdown()
    thread.join()
    server.server_close()


def broker_properties(pem: Certificates, folder: Path) -> dict[str, str]:
    keys = folder / "broker.pem"
    keys.write_text(pem.key.read_text() + pem.certificate.read_text())
    modules = "org.apache.kafka.common.security"
    found = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keys),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(pem.authority),
        "listener.name.mutual.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.tokens.oauthbearer.sasl.jaas.config": (
            f"{modules}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=broker;"
        ),
    }
    for name in ("clear", "secure"):
        found[f"listener.name.{name}.plain.sasl.jaas.config"] = f'{modules}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        for scram in ("256", "512"):
            found[f"listener.name.{name}.scram-sha-{scram}.sasl.jaas.config"] = f"{modules}.scram.ScramLoginModule required;"
    return found


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, tokens: str) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("secure")
    pem = make_certificates(folder)
    ports = dict(zip(LISTENERS, kafka_cluster._free_ports(len(LISTENERS)), strict=True))
    extra = "".join(f",{name}://127.0.0.1:{port}" for name, port in ports.items())
    given = kafka_cluster.server_properties

    def with_listeners(node: int, *rest: object) -> dict[str, str]:
        made = given(node, *rest)  # type: ignore[arg-type]  # handed on as they came
        made["listener.security.protocol.map"] += "".join(f",{name}:{protocol}" for name, protocol in LISTENERS.items())
        return made | {name: made[name] + extra for name in ("listeners", "advertised.listeners")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka_cluster, "server_properties", with_listeners)
        cluster = KafkaCluster(1, properties=broker_properties(pem, folder))
        cluster.start()
    with cluster:
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            upsert = UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
            for future in admin.alter_user_scram_credentials([upsert]).values():
                future.result(30)
        yield Secure(ports, pem, tokens)


async def ask_librdkafka(clients: KafkaClients, timeout_s: float) -> None:
    AdminClient(clients.confluent()).list_topics(timeout=timeout_s)


async def ask_aiokafka(clients: KafkaClients) -> None:
    producer = AIOKafkaProducer(**clients.aiokafka())
    try:
        await producer.start()
    finally:
        await producer.stop()


async def ask_reader(clients: KafkaClients) -> None:
    cluster = Cluster(clients.reader())
    try:
        await cluster.metadata([])
    finally:
        await cluster.close()


WAYS = [
    ("TLS", {}),
    ("TLS", {"ssl_endpoint_identification_algorithm": "none"}),
    ("MUTUAL", {}),
    ("CLEAR", {}),
    ("CLEAR", {"sasl_mechanism": "SCRAM-SHA-256"}),
    ("CLEAR", {"sasl_mechanism": "scram-sha-512"}),
    ("SECURE", {}),
    ("SECURE", {"sasl_mechanism": "SCRAM-SHA-512"}),
    ("TOKENS", {}),
]


@pytest.mark.parametrize(("listener", "more"), WAYS)
async def test_every_client_gets_in(secure: Secure, listener: str, more: dict[str, str]) -> None:
    clients = KafkaClients.checked(secure.properties(listener, **more))
    await ask_librdkafka(clients, 20)
    await ask_aiokafka(clients)
    await ask_reader(clients)


async def test_trust_by_text_and_without_verification(secure: Secure) -> None:
    by_text = secure.properties("TLS", ssl_ca_pem=secure.pem.authority.read_text())
    del by_text["ssl.ca.location"]
    unverified = secure.properties("TLS", enable_ssl_certificate_verification="false")
    del unverified["ssl.ca.location"]
    for properties in (by_text, unverified):
        clients = KafkaClients.checked(properties)
        await ask_librdkafka(clients, 20)
        await ask_aiokafka(clients)
        await ask_reader(clients)


REFUSALS = [
    ("CLEAR", {"sasl_password": "mistaken"}),
    ("SECURE", {"sasl_password": "mistaken", "sasl_mechanism": "SCRAM-SHA-512"}),
    ("TOKENS", {"sasl_oauthbearer_client_secret": "mistaken"}),
    ("TLS", {"ssl_ca_location": "STRANGER"}),
    ("MUTUAL", {"ssl_certificate_location": "", "ssl_key_location": "", "ssl_key_password": ""}),
]


@pytest.mark.parametrize(("listener", "more"), REFUSALS)
async def test_every_client_is_kept_out_and_says_so_in_a_sentence(secure: Secure, listener: str, more: dict[str, str]) -> None:
    given = secure.properties(listener, **{name: value.replace("STRANGER", str(secure.pem.stranger)) for name, value in more.items()})
    clients = KafkaClients.checked({name: value for name, value in given.items() if value})
    sentences = []
    with pytest.raises(KafkaException) as librdkafka:
        await ask_librdkafka(clients, 3)
    sentences.append(describe_kafka_error(librdkafka.value))
    with pytest.raises((AiokafkaError, OSError)) as aiokafka:
        await ask_aiokafka(clients)
    sentences.append(describe_kafka_error(aiokafka.value))
    with pytest.raises(KafkaError) as reader:
        await ask_reader(clients)
    sentences.append(describe_kafka_error(reader.value))
    for sentence in sentences:
        assert "\n" not in sentence
        assert "mistaken" not in sentence
