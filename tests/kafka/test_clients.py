from __future__ import annotations

import asyncio
import base64
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import aiokafka
import aiokafka.errors
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from faust.auth import GSSAPICredentials, OAuthCredentials, SASLCredentials, SSLCredentials

from stream_app.errors import ConfigError
from stream_app.kafka import failures, properties
from stream_app.kafka.clients import KafkaClients, OidcTokens, TokenUnavailable, describe_kafka_error, is_kafka_error
from stream_app.kafka.properties import PROPERTIES, check_properties, mask_properties, parse_servers, unused_properties
from stream_app.kafka.topics import TopicsUnavailable
from tests.support.certificates import KEY_PASSWORD, Certificates, make_certificates

PLAIN = {"bootstrap.servers": "one:1,[::1]:2,three"}
LOGIN = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "me", "sasl.password": "pw"}
OIDC = {
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.client.id": "me",
    "sasl.oauthbearer.client.secret": "pw",
    "sasl.oauthbearer.token.endpoint.url": "http://login/token",
}


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("pem"))


def tls(pem: Certificates, **more: str) -> dict[str, str]:
    return {
        **PLAIN,
        "security.protocol": "SSL",
        "ssl.ca.location": str(pem.authority),
        "ssl.certificate.location": str(pem.certificate),
        "ssl.key.location": str(pem.locked_key),
        "ssl.key.password": KEY_PASSWORD,
        **more,
    }


async def aiokafka_takes(given: dict[str, Any]) -> None:
    """Both of aiokafka's clients can be made from it."""
    consumer, producer = aiokafka.AIOKafkaConsumer(**given), aiokafka.AIOKafkaProducer(**given)
    await consumer.stop()
    await producer.stop()


# --- settings of each client ------------------------------------------------------------------------------------------------


async def test_plaintext() -> None:
    clients = KafkaClients(PLAIN)
    assert clients.confluent({"group.id": "g"}) == {**PLAIN, "client.id": "gapstream", "log_level": 2, "group.id": "g"}
    given = clients.aiokafka()
    assert given == {"bootstrap_servers": ["one:1", "[::1]:2", "three:9092"], "client_id": "gapstream", "security_protocol": "PLAINTEXT"}
    await aiokafka_takes(given)
    assert clients.reader().bootstrap_servers == (("one", 1), ("::1", 2), ("three", 9092))
    assert clients.faust_broker() == ["kafka://one:1", "kafka://[::1]:2", "kafka://three:9092"]
    assert clients.faust_credentials() is None


async def test_tls(pem: Certificates) -> None:
    clients = KafkaClients.checked(tls(pem, **{"socket.timeout.ms": "5000", "client.id": "me"}))
    given = clients.aiokafka()
    context = given["ssl_context"]
    assert (given["security_protocol"], given["request_timeout_ms"], given["client_id"]) == ("SSL", 5_000, "me")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.get_ca_certs()[0]["subject"] == ((("commonName", "ca"),),)
    await aiokafka_takes(given)
    reader = clients.reader()
    assert (reader.ssl_context, reader.security_protocol, reader.request_timeout_ms, reader.client_id) == (context, "SSL", 5_000, "me")
    credentials = clients.faust_credentials()
    assert isinstance(credentials, SSLCredentials)
    assert credentials.context is context
    Producer(clients.confluent())


@pytest.mark.parametrize(
    ("more", "verify", "named"),
    [
        ({"ssl.endpoint.identification.algorithm": "none"}, ssl.CERT_REQUIRED, False),
        ({"ssl.endpoint.identification.algorithm": "https"}, ssl.CERT_REQUIRED, True),
        ({"enable.ssl.certificate.verification": "false"}, ssl.CERT_NONE, False),
        ({"enable.ssl.certificate.verification": "1"}, ssl.CERT_REQUIRED, True),
    ],
)
def test_what_is_verified(more: dict[str, str], verify: ssl.VerifyMode, named: bool, pem: Certificates) -> None:
    context = KafkaClients.checked(tls(pem, **more)).ssl_context
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (verify, named)


def test_authorities_as_text_or_folder(pem: Certificates, tmp_path: Path) -> None:
    as_text = {**PLAIN, "security.protocol": "ssl", "ssl.ca.pem": pem.authority.read_text()}
    context = KafkaClients.checked(as_text).ssl_context
    assert context is not None
    assert len(context.get_ca_certs()) == 1
    Producer(KafkaClients(as_text).confluent())
    digest = subprocess.run(["openssl", "x509", "-hash", "-noout", "-in", str(pem.authority)], check=True, capture_output=True, text=True)
    (tmp_path / f"{digest.stdout.strip()}.0").write_bytes(pem.authority.read_bytes())
    as_folder = {**PLAIN, "security.protocol": "ssl", "ssl.ca.location": str(tmp_path)}
    assert KafkaClients.checked(as_folder).ssl_context is not None


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "scram-sha-512"])
@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "sasl_ssl"])
async def test_passwords(mechanism: str, name: str, protocol: str) -> None:
    given = {**PLAIN, "security.protocol": protocol, name: mechanism, "sasl.username": "me", "sasl.password": "pw"}
    clients = KafkaClients.checked(given)
    for_aiokafka = clients.aiokafka()
    assert for_aiokafka["sasl_mechanism"] == mechanism.upper()
    assert (for_aiokafka["sasl_plain_username"], for_aiokafka["sasl_plain_password"]) == ("me", "pw")
    assert ("ssl_context" in for_aiokafka) is (protocol == "sasl_ssl")
    await aiokafka_takes(for_aiokafka)
    assert clients.reader().sasl_plain_password == "pw"
    credentials = clients.faust_credentials()
    assert isinstance(credentials, SASLCredentials)
    assert (credentials.username, credentials.password, credentials.mechanism.value) == ("me", "pw", mechanism.upper())
    assert credentials.protocol.value == protocol.upper()
    Producer(clients.confluent())


async def test_oauth() -> None:
    given = {
        **PLAIN,
        "security.protocol": "SASL_PLAINTEXT",
        **OIDC,
        "sasl.oauthbearer.scope": "s",
        "sasl.oauthbearer.extensions": "a=1, b=2",
    }
    clients = KafkaClients.checked(given)
    tokens = clients.aiokafka()["sasl_oauth_token_provider"]
    assert isinstance(tokens, OidcTokens)
    assert isinstance(tokens, aiokafka.abc.AbstractTokenProvider)
    assert (tokens.endpoint, tokens.client_id, tokens.scope, tokens.extensions()) == ("http://login/token", "me", "s", {"a": "1", "b": "2"})
    assert clients.reader().sasl_oauth_token_provider is tokens
    await aiokafka_takes(clients.aiokafka())
    credentials = clients.faust_credentials()
    assert isinstance(credentials, OAuthCredentials)
    assert credentials.oauth_cb is tokens
    assert "pw" not in repr(tokens)


def test_kerberos(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**PLAIN, "security.protocol": "SASL_SSL", "sasl.mechanism": "gssapi", "sasl.kerberos.service.name": "broker"}
    needs = [message.split(",")[0] for _, message in check_properties(given)]
    assert needs == [
        "GSSAPI needs the Python package gssapi",
        "GSSAPI needs a confluent-kafka built against a librdkafka with libsasl2",
    ]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(properties, "librdkafka_has", lambda feature: True)
    clients = KafkaClients.checked(given)
    assert clients.aiokafka()["sasl_kerberos_service_name"] == "broker"
    assert clients.confluent()["sasl.kerberos.kinit.cmd"] == "true"
    credentials = clients.faust_credentials()
    assert isinstance(credentials, GSSAPICredentials)
    assert credentials.kerberos_service_name == "broker"


def test_what_librdkafka_has_is_asked_of_librdkafka() -> None:
    assert properties.librdkafka_has("sasl_scram")
    assert not properties.librdkafka_has("no_such_feature")


def test_librdkafka_knows_every_property_that_may_stand_here() -> None:
    for name in PROPERTIES:
        with pytest.raises(KafkaException) as caught:
            Producer({name: "1", "no.such.property": "1"})
        assert "no.such.property" in str(caught.value) or f'"{name}"' in str(caught.value)
        assert f'No such configuration property: "{name}"' not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    given = {**PLAIN, **LOGIN, **OIDC, "ssl.key.password": "pw", "ssl.key.pem": "pw", "ssl.keystore.password": "pw"}
    assert "pw" not in repr(KafkaClients(given))
    assert mask_properties({"sasl.password": "", "sasl.username": "me"}) == {"sasl.password": "", "sasl.username": "me"}


# --- what is wrong ----------------------------------------------------------------------------------------------------------

SASL = {"security.protocol": "SASL_SSL"}
NO_PEM = "not every client takes it: put the certificate and the key into PEM files for ssl.certificate.location and ssl.key.location"
TICKETS = "aiokafka takes Kerberos tickets from the credential cache only: leave it out and keep a ticket there with kinit"
MSK = "IAM of Amazon MSK needs the extra gapstream[msk], which this version does not have: use SCRAM-SHA-512 or SSL with MSK"

PROBLEMS: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"linger.ms": "5"}, {"linger.ms": "is no property that every client of the program honours"}),
    ({"metadata.max.age.ms": "5"}, {"metadata.max.age.ms": "is no property that every client of the program honours"}),
    ({"broker.address.family": "v4"}, {"broker.address.family": "is no property that every client of the program honours"}),
    (
        {"ssl.ca.locations": "x"},
        {"ssl.ca.locations": "is no property that every client of the program honours: is ssl.ca.location meant?"},
    ),
    ({"metadata.broker.list": "b"}, {"metadata.broker.list": "write it as bootstrap.servers"}),
    ({"session.timeout.ms": "9"}, {"session.timeout.ms": "write it as app.session_timeout"}),
    ({"ssl.keystore.location": "k.p12"}, {"ssl.keystore.location": NO_PEM}),
    ({"ssl.key.pem": "x"}, {"ssl.key.pem": NO_PEM}),
    ({"sasl.kerberos.keytab": "x"}, {"sasl.kerberos.keytab": TICKETS}),
    ({"bootstrap.servers": "a:1,,b:2"}, {"bootstrap.servers": "'' is not host:port"}),
    ({"bootstrap.servers": "a:0"}, {"bootstrap.servers": "'a:0' is not host:port"}),
    ({"bootstrap.servers": "a:65536"}, {"bootstrap.servers": "'a:65536' is not host:port"}),
    ({"bootstrap.servers": "::1"}, {"bootstrap.servers": "'::1' is not host:port"}),
    ({"bootstrap.servers": " "}, {"bootstrap.servers": "is empty"}),
    ({"socket.timeout.ms": "1s"}, {"socket.timeout.ms": "must be a whole number of milliseconds, 1000 to 300000"}),
    ({"socket.timeout.ms": "999"}, {"socket.timeout.ms": "must be a whole number of milliseconds, 1000 to 300000"}),
    ({"security.protocol": "TLS"}, {"security.protocol": "'TLS' is none of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"}),
    (SASL, {"sasl.mechanism": "is required with security.protocol SASL_SSL: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI, OAUTHBEARER"}),
    (
        {**SASL, "sasl.mechanism": "SCRAM"},
        {"sasl.mechanism": "'SCRAM' is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI, OAUTHBEARER"},
    ),
    (
        {**SASL, **LOGIN, "sasl.mechanisms": "PLAIN"},
        {"sasl.mechanisms": "says something else than sasl.mechanism: leave one of them out"},
    ),
    (
        {**SASL, "sasl.mechanism": "PLAIN"},
        {"sasl.username": "is required with sasl.mechanism PLAIN", "sasl.password": "is required with sasl.mechanism PLAIN"},
    ),
    ({**SASL, **LOGIN, "sasl.password": ""}, {"sasl.password": "is empty"}),
    ({**SASL, "sasl.mechanism": "AWS_MSK_IAM"}, {"sasl.mechanism": MSK}),
    ({**SASL, **OIDC, "sasl.oauthbearer.method": "aws_msk_iam"}, {"sasl.oauthbearer.method": MSK}),
    ({**SASL, **OIDC, "sasl.oauthbearer.method": "default"}, {"sasl.oauthbearer.method": "'default' can't be used: write oidc"}),
    (
        {**SASL, "sasl.mechanism": "OAUTHBEARER"},
        {name: "is required with sasl.mechanism OAUTHBEARER" for name in OIDC if name.startswith("sasl.oauthbearer")},
    ),
    (
        {**SASL, **OIDC, "sasl.oauthbearer.token.endpoint.url": "ftp://x"},
        {"sasl.oauthbearer.token.endpoint.url": "must be an address that begins with https:// or http://"},
    ),
    ({**SASL, **OIDC, "sasl.oauthbearer.extensions": "a"}, {"sasl.oauthbearer.extensions": "must be name=value,name=value"}),
    (
        {"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "http"},
        {"ssl.endpoint.identification.algorithm": "'http' is none of https, none"},
    ),
    (
        {"security.protocol": "SSL", "enable.ssl.certificate.verification": "no"},
        {"enable.ssl.certificate.verification": "must be true or false"},
    ),
    ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}, {"ssl.ca.location": "/nowhere can't be read"}),
    (
        {"security.protocol": "SSL", "ssl.certificate.location": "/dev"},
        {"ssl.certificate.location": "/dev is a folder, a file is needed", "ssl.key.location": "is required with ssl.certificate.location"},
    ),
]


@pytest.mark.parametrize(("given", "found"), PROBLEMS)
def test_problems(given: dict[str, str], found: dict[str, str]) -> None:
    assert dict(check_properties({"bootstrap.servers": "b:1", **given})) == found


def test_files_that_do_not_belong_together(pem: Certificates, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not PEM")
    stranger = f"{pem.stranger}.key"
    for more, name, start in [
        ({"ssl.key.password": "wrong"}, "ssl.key.location", "can't be used with ssl.certificate.location and ssl.key.password ("),
        ({"ssl.key.location": stranger}, "ssl.key.location", "can't be used with ssl.certificate.location and ssl.key.password ("),
        ({"ssl.certificate.location": str(text)}, "ssl.key.location", "can't be used with ssl.certificate.location and ssl.key.password ("),
        ({"ssl.ca.location": str(text)}, "ssl.ca.location", "holds no certificates in PEM ("),
        ({"ssl.ca.pem": "x"}, "ssl.ca.pem", "stands beside ssl.ca.location: leave one of them out"),
    ]:
        ((found, message),) = check_properties(tls(pem, **more))
        assert found == name
        assert message.startswith(start)
    without = {name: value for name, value in tls(pem).items() if name != "ssl.key.password"}
    ((found, _),) = check_properties(without)  # and OpenSSL does not ask on the terminal
    assert found == "ssl.key.location"
    as_text = {**PLAIN, "security.protocol": "SSL", "ssl.ca.pem": "not PEM"}
    ((found, message),) = check_properties(as_text)
    assert found == "ssl.ca.pem"
    assert message.startswith("holds no certificates in PEM (")


def test_what_is_wrong_is_a_config_error_with_the_path() -> None:
    with pytest.raises(ConfigError) as caught:
        KafkaClients.checked({"acks": "all"}, "topics.orders.sinks.copy.kafka")
    assert str(caught.value).splitlines() == [
        "topics.orders.sinks.copy.kafka.acks: is no property that every client of the program honours",
        "topics.orders.sinks.copy.kafka.bootstrap.servers: is required: host:port of one broker or more",
    ]


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({}, set()),
        ({**LOGIN}, set(LOGIN)),
        ({**LOGIN, "security.protocol": "SASL_PLAINTEXT"}, set()),
        ({**LOGIN, "security.protocol": "SASL_PLAINTEXT", "ssl.ca.pem": "x"}, {"ssl.ca.pem"}),
        ({**OIDC, "security.protocol": "SASL_SSL", "ssl.ca.pem": "x", "sasl.password": "x"}, {"sasl.password"}),
        ({"security.protocol": "SSL", "ssl.ca.pem": "x", "client.id": "me"}, set()),
    ],
)
def test_properties_that_nothing_looks_at(given: dict[str, str], unused: set[str]) -> None:
    assert {name for name, _ in unused_properties({"bootstrap.servers": "b", **given})} == unused


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("a", (("a", 9092),)),
        (" a:1 , b_c.d-e:2", (("a", 1), ("b_c.d-e", 2))),
        ("[fe80::1%eth0]:3,[::1]", (("fe80::1%eth0", 3), ("::1", 9092))),
        ("127.0.0.1:4", (("127.0.0.1", 4),)),
    ],
)
def test_servers(text: str, servers: tuple[tuple[str, int], ...]) -> None:
    assert parse_servers(text) == servers


def test_nothing_heavy_is_imported_for_checking() -> None:
    code = (
        "import sys; from stream_app.config import load; import stream_app.kafka.clients; "
        "print([m for m in ('faust', 'aiokafka', 'confluent_kafka', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- tokens -----------------------------------------------------------------------------------------------------------------


class TokenServer:
    """An endpoint that answers what it is told to and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, dict[str, list[str]]]] = []
        self.status, self.answer = 200, b""
        self.give(3600)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.asked.append((self.headers["Authorization"], parse_qs(body)))
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(outer.answer)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def give(self, lifetime_s: float | None) -> None:
        found: dict[str, object] = {"access_token": f"token-{len(self.asked)}"}
        self.answer = json.dumps(found | ({} if lifetime_s is None else {"expires_in": lifetime_s})).encode()


@pytest.fixture
def endpoint() -> Iterator[TokenServer]:
    server = TokenServer()
    server.thread.start()
    yield server
    server.server.shutdown()
    server.thread.join()
    server.server.server_close()


async def test_a_token_is_asked_for_once_and_kept(endpoint: TokenServer) -> None:
    tokens = OidcTokens(endpoint.url, "me", "pw", "kafka")
    assert await asyncio.gather(*(tokens.token() for _ in range(8))) == ["token-0"] * 8
    assert endpoint.asked == [("Basic " + base64.b64encode(b"me:pw").decode(), {"grant_type": ["client_credentials"], "scope": ["kafka"]})]


async def test_a_token_is_renewed_before_it_ends(endpoint: TokenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("stream_app.kafka.clients.time.monotonic", lambda: now)
    tokens = OidcTokens(endpoint.url, "me", "pw")
    endpoint.give(100)
    assert await tokens.token() == "token-0"
    endpoint.give(None)
    now += 79
    assert await tokens.token() == "token-0"
    now += 1
    assert await tokens.token() == "token-1"
    now += 239
    assert await tokens.token() == "token-1"
    now += 1
    endpoint.give(1)
    assert await tokens.token() == "token-2"


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        (401, b"{}", "HTTP Error 401: Unauthorized"),
        (200, b"{}", "no access_token in its answer ('access_token')"),
        (200, b"<html>", "Expecting value: line 1 column 1 (char 0)"),
        (200, b"[]", "list indices must be integers or slices, not str"),
        (200, b'{"access_token": "a", "expires_in": "soon"}', "could not convert string to float: 'soon'"),
    ],
)
async def test_no_token(status: int, answer: bytes, why: str, endpoint: TokenServer) -> None:
    endpoint.status, endpoint.answer = status, answer
    with pytest.raises(TokenUnavailable) as caught:
        await OidcTokens(endpoint.url, "me", "pw").token()
    assert str(caught.value) == (
        f"{endpoint.url} gave no token: {why}; see sasl.oauthbearer.token.endpoint.url, client.id and client.secret"
    )
    assert describe_kafka_error(caught.value) == str(caught.value)


# --- what went wrong --------------------------------------------------------------------------------------------------------


def confluent(code: int, text: str = "why") -> KafkaException:
    return KafkaException(KafkaError(code, text))


LOGIN_REFUSED = "Kafka refused the login (why): see sasl.mechanism, sasl.username and sasl.password"
UNREACHABLE = "Kafka can't be reached (why): see bootstrap.servers, security.protocol and whether the brokers are up"
TLS_FAILED = "TLS with Kafka failed (why): see ssl.ca.location and the broker's certificate"
FORBIDDEN = "Kafka's ACLs forbid it (why): grant it to the principal of this configuration"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (confluent(KafkaError._AUTHENTICATION), LOGIN_REFUSED),
        (confluent(KafkaError.SASL_AUTHENTICATION_FAILED), LOGIN_REFUSED),
        (confluent(KafkaError._TRANSPORT), UNREACHABLE),
        (confluent(KafkaError._ALL_BROKERS_DOWN), UNREACHABLE),
        (confluent(KafkaError._TIMED_OUT, "why\n  "), UNREACHABLE),
        (confluent(KafkaError._RESOLVE), UNREACHABLE),
        (confluent(KafkaError._SSL), TLS_FAILED),
        (confluent(KafkaError.TOPIC_AUTHORIZATION_FAILED), FORBIDDEN),
        (
            confluent(KafkaError.UNKNOWN_TOPIC_OR_PART),
            "Kafka does not know that topic or partition (why): see its name, and whether this principal may describe it",
        ),
        (confluent(KafkaError.INVALID_CONFIG), "Kafka could not do it (why): see the brokers' logs if it lasts"),
        (KafkaException("why"), "Kafka could not do it (why): see the brokers' logs if it lasts"),
        (
            aiokafka.errors.SaslAuthenticationFailed("why"),
            "Kafka refused the login ([Error 58] SaslAuthenticationFailed: why): see sasl.mechanism, sasl.username and sasl.password",
        ),
        (
            aiokafka.errors.KafkaConnectionError("why"),
            "Kafka can't be reached (KafkaConnectionError: why): see bootstrap.servers, security.protocol and whether the brokers are up",
        ),
        (
            aiokafka.errors.GroupAuthorizationFailedError("why"),
            "Kafka's ACLs forbid it ([Error 30] GroupAuthorizationFailedError: why): grant it to the principal of this configuration",
        ),
        (failures.RefusedError("a sentence of ours"), "a sentence of ours"),
        (TopicsUnavailable("could not list the topics"), "could not list the topics"),
    ],
)
def test_errors_of_clients_become_a_sentence(error: Exception, sentence: str) -> None:
    assert is_kafka_error(error)
    assert describe_kafka_error(error) == sentence


def test_tls_behind_another_error_is_named() -> None:
    error = aiokafka.errors.KafkaConnectionError("Connection closed")
    error.__cause__ = ssl.SSLError(1, "why")
    assert describe_kafka_error(error) == TLS_FAILED


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), RuntimeError("x")])
def test_other_errors_are_nobodys(error: Exception) -> None:
    assert not is_kafka_error(error)


def everyone(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*map(everyone, kind.__subclasses__()))


def test_every_error_of_the_clients_is_described() -> None:
    for kind in everyone(aiokafka.errors.KafkaError) | everyone(failures.KafkaError):
        if kind is aiokafka.errors.BrokerResponseError:
            continue  # only its subclasses have a number
        error = kind.__new__(kind)
        assert is_kafka_error(error)
        sentence = describe_kafka_error(error)
        assert "\n" not in sentence
    codes = {getattr(KafkaError, name) for name in dir(KafkaError) if name.isupper() and isinstance(getattr(KafkaError, name), int)}
    assert len(codes) > 100
    for code in codes:
        assert "(why)" in describe_kafka_error(confluent(code))
