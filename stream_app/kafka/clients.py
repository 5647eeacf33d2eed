"""One section ``kafka``, the settings of every client: confluent-kafka, aiokafka, Faust, and the log reader.

Which properties may stand there is told in :mod:`stream_app.kafka.properties`; here they are translated. Clients are
imported when their settings are asked for, so that a command which only asks a worker stays quick.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stream_app.errors import ConfigError, Fault
from stream_app.kafka.properties import (
    PASSWORD_MECHANISMS,
    check_properties,
    make_ssl_context,
    mask_properties,
    parse_extensions,
    parse_servers,
    sasl_mechanism,
    security_protocol,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from stream_app.kafka.connection import KafkaSettings

CLIENT_ID = "gapstream"
QUIET_LOG_LEVEL = 2
"""librdkafka writes its log to stderr, between the sentences of ours; what matters comes as an error (syslog: 2 critical, 3 error)."""
TOKEN_SECONDS = 10.0
"""A token endpoint that does not answer for so long has failed."""
TOKEN_BYTES_MAX = 1 << 20
TOKEN_LIFETIME_S = 300.0
"""Assumed where the endpoint names none (RFC 6749 only recommends ``expires_in``)."""
TOKEN_RENEWED_AT = 0.8
"""Part of its life after which a token is renewed, as librdkafka does."""


@dataclass(frozen=True)
class KafkaClients:
    """Settings of every client for one cluster. Making one checks nothing: see :meth:`checked`."""

    properties: Mapping[str, str]

    def __repr__(self) -> str:
        return f"KafkaClients({mask_properties(self.properties)!r})"

    @classmethod
    def checked(cls, properties: Mapping[str, str], path: str = "kafka") -> KafkaClients:
        """From properties that may be wrong.

        Raises:
            ConfigError: they are; each fault's path begins with ``path``.
        """
        problems = check_properties(properties)
        if problems:
            raise ConfigError(Fault(f"{path}.{name}", message) for name, message in problems)
        return cls(properties)

    @property
    def servers(self) -> tuple[tuple[str, int], ...]:
        """Host and port of the brokers to ask first."""
        return parse_servers(self.properties["bootstrap.servers"])

    @property
    def client_id(self) -> str:
        """``client.id``."""
        return self.properties.get("client.id", CLIENT_ID)

    @property
    def protocol(self) -> str:
        """``security.protocol``, in capitals."""
        return security_protocol(self.properties)

    @property
    def mechanism(self) -> str | None:
        """``sasl.mechanism``, in capitals; None without SASL."""
        return sasl_mechanism(self.properties) if self.protocol.startswith("SASL_") else None

    @cached_property
    def ssl_context(self) -> ssl.SSLContext | None:
        """For Python's clients; None without TLS."""
        return make_ssl_context(self.properties) if self.protocol.endswith("SSL") else None

    @cached_property
    def tokens(self) -> OidcTokens | None:
        """The token source for Python's clients, one for all connections; None without OAUTHBEARER."""
        return OidcTokens.of(self.properties) if self.mechanism == "OAUTHBEARER" else None

    def confluent(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """For confluent-kafka: the properties as they are, with ``more`` over them."""
        conf: dict[str, Any] = {"client.id": CLIENT_ID, "log_level": QUIET_LOG_LEVEL, **self.properties}
        if self.mechanism is not None:
            conf.pop("sasl.mechanisms", None)
            conf["sasl.mechanism"] = self.mechanism
        if self.mechanism == "GSSAPI":
            conf["sasl.kerberos.kinit.cmd"] = "true"  # tickets are taken from the cache, as aiokafka does
        return conf | dict(more or {})

    def aiokafka(self) -> dict[str, Any]:
        """Keyword arguments of ``AIOKafkaConsumer`` and ``AIOKafkaProducer`` that say how to connect."""
        return {
            "bootstrap_servers": [_address(host, port) for host, port in self.servers],
            "client_id": self.client_id,
            **self._python(),
        }

    def reader(self) -> KafkaSettings:
        """Settings of the log reader."""
        from stream_app.kafka.connection import KafkaSettings

        return KafkaSettings(bootstrap_servers=self.servers, client_id=self.client_id, **self._python())

    def _python(self) -> dict[str, Any]:
        """Timeout and security in aiokafka's words, which the log reader shares."""
        given: dict[str, Any] = {"security_protocol": self.protocol}
        if "socket.timeout.ms" in self.properties:
            given["request_timeout_ms"] = int(self.properties["socket.timeout.ms"])
        if self.ssl_context is not None:
            given["ssl_context"] = self.ssl_context
        if self.mechanism is None:
            return given
        given["sasl_mechanism"] = self.mechanism
        if self.mechanism in PASSWORD_MECHANISMS:
            given["sasl_plain_username"] = self.properties["sasl.username"]
            given["sasl_plain_password"] = self.properties["sasl.password"]
        elif self.mechanism == "GSSAPI":
            given["sasl_kerberos_service_name"] = self.properties.get("sasl.kerberos.service.name", "kafka")
        else:
            from aiokafka.abc import AbstractTokenProvider

            AbstractTokenProvider.register(OidcTokens)  # aiokafka asks with isinstance
            given["sasl_oauth_token_provider"] = self.tokens
        return given

    def faust_broker(self) -> list[str]:
        """Faust's setting ``broker``."""
        return [f"kafka://{_address(host, port)}" for host, port in self.servers]

    def faust_credentials(self) -> Any:
        """Faust's setting ``broker_credentials``; None for PLAINTEXT."""
        import faust

        context = self.ssl_context
        if self.mechanism is None:
            return None if context is None else faust.SSLCredentials(context)
        if self.mechanism in PASSWORD_MECHANISMS:
            username, password = self.properties["sasl.username"], self.properties["sasl.password"]
            return faust.SASLCredentials(username=username, password=password, ssl_context=context, mechanism=self.mechanism)
        if self.mechanism == "GSSAPI":
            service = self.properties.get("sasl.kerberos.service.name", "kafka")
            return faust.GSSAPICredentials(kerberos_service_name=service, ssl_context=context, mechanism=self.mechanism)
        from faust.auth import OAuthCredentials

        return OAuthCredentials(oauth_cb=self._python()["sasl_oauth_token_provider"], ssl_context=context)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- tokens ---------------------------------------------------------------------------------------------------------------


class TokenUnavailable(ConnectionError):
    """The token endpoint gave none. An OSError, because aiokafka tries again after those."""


@dataclass(eq=False)
class OidcTokens:
    """Access tokens by the client credentials grant (RFC 6749, 4.4), kept until most of their life is over.

    Implements ``aiokafka.abc.AbstractTokenProvider``. aiokafka's consumer runs in a thread and event loop of its own, so this
    belongs to no loop: the endpoint is asked in a thread, by one caller at a time.
    """

    endpoint: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str | None = None
    with_extensions: Mapping[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _token: str | None = field(default=None, repr=False)
    _renew_at: float = 0.0

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> OidcTokens:
        """From checked properties."""
        prefix = "sasl.oauthbearer."
        extensions = properties.get(prefix + "extensions")
        return cls(
            properties[prefix + "token.endpoint.url"],
            properties[prefix + "client.id"],
            properties[prefix + "client.secret"],
            properties.get(prefix + "scope"),
            {} if extensions is None else parse_extensions(extensions),
        )

    async def token(self) -> str:
        """A token that is valid now. Raises TokenUnavailable."""
        return await asyncio.to_thread(self._current)

    def extensions(self) -> dict[str, str]:
        """SASL extensions (KIP-342)."""
        return dict(self.with_extensions)

    def _current(self) -> str:
        with self._lock:
            if self._token is None or time.monotonic() >= self._renew_at:
                asked_at = time.monotonic()
                self._token, lifetime_s = self._fetch()
                self._renew_at = asked_at + lifetime_s * TOKEN_RENEWED_AT
            return self._token

    def _fetch(self) -> tuple[str, float]:
        form = {"grant_type": "client_credentials"} | ({"scope": self.scope} if self.scope else {})
        login = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Accept": "application/json"}
        body = urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(self.endpoint, body, headers)  # noqa: S310  # http and https only: check_properties
        try:
            with urllib.request.urlopen(request, timeout=TOKEN_SECONDS) as answer:  # noqa: S310  # as above
                found = json.loads(answer.read(TOKEN_BYTES_MAX))
            return str(found["access_token"]), float(found.get("expires_in", TOKEN_LIFETIME_S))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the answer, too
            what = f"no access_token in its answer ({error})" if isinstance(error, KeyError) else str(error)
            msg = f"{self.endpoint} gave no token: {what}; see sasl.oauthbearer.token.endpoint.url, client.id and client.secret"
            raise TokenUnavailable(msg) from error


# --- what went wrong ------------------------------------------------------------------------------------------------------

# Numbers of Kafka's protocol (clients/src/main/java/org/apache/kafka/common/protocol/Errors.java) are positive, those of
# librdkafka itself (rdkafka.h, rd_kafka_resp_err_t) negative.
_LOGIN = {33, 34, 58, -169}
_FORBIDDEN = {29, 30, 31, 53, 65}
_UNKNOWN_TOPIC = {3, 100, -188, -190}
_TLS = {-181}
_UNREACHABLE = {7, 8, 13, -185, -187, -193, -195, -196}


def is_kafka_error(error: BaseException) -> bool:
    """Whether a Kafka client, or a part of the program that speaks to Kafka, raised it."""
    return _our_sentence(error) is not None or _code(error) is not None


def describe_kafka_error(error: BaseException) -> str:
    """One sentence for people: what failed, and what to look at."""
    sentence = _our_sentence(error)
    if sentence is not None:
        return sentence
    tls = _find_cause(error, ssl.SSLError)
    code = _code(error)
    detail = _detail(error if tls is None else tls)
    if tls is not None or code in _TLS:
        return f"TLS with Kafka failed ({detail}): see ssl.ca.location and the broker's certificate"
    if code in _LOGIN:
        return f"Kafka refused the login ({detail}): see sasl.mechanism, sasl.username and sasl.password"
    if code in _FORBIDDEN:
        return f"Kafka's ACLs forbid it ({detail}): grant it to the principal of this configuration"
    if code in _UNKNOWN_TOPIC:
        return f"Kafka does not know that topic or partition ({detail}): see its name, and whether this principal may describe it"
    if code in _UNREACHABLE or isinstance(error, OSError):
        return f"Kafka can't be reached ({detail}): see bootstrap.servers, security.protocol and whether the brokers are up"
    return f"Kafka could not do it ({detail}): see the brokers' logs if it lasts"


def _our_sentence(error: BaseException) -> str | None:
    """The message of an error of ours, which is a sentence already."""
    for module, name in (("stream_app.kafka.failures", "KafkaError"), ("stream_app.kafka.topics", "TopicsUnavailable")):
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return str(error)
    return str(error) if isinstance(error, TokenUnavailable) else None


def _code(error: BaseException) -> int | None:
    """The error code of a client's error; None for what no client raised. A client that raised is imported already."""
    confluent = sys.modules.get("confluent_kafka")
    if confluent is not None and isinstance(error, confluent.KafkaException):
        inner = error.args[0] if error.args else None
        return int(inner.code()) if isinstance(inner, confluent.KafkaError) else -1
    errors = sys.modules.get("aiokafka.errors")
    if errors is not None and isinstance(error, errors.KafkaError):
        if isinstance(error, errors.KafkaConnectionError | errors.NodeNotReadyError):
            return 13
        return int(getattr(error, "errno", None) or -1)
    return None


def _find_cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, kind):
        seen = seen.__cause__
    return seen


def _detail(error: BaseException) -> str:
    inner: Any = error.args[0] if error.args else None
    text = inner.str() if callable(getattr(inner, "str", None)) else str(error)
    return " ".join(text.split()) or type(error).__name__


def listed_offset(answer: Future[Any]) -> int | None:
    """What an answer of ``AdminClient.list_offsets`` tells, -1 where nothing is as late as the time asked for; raises KafkaException.

    None: no answer. librdkafka tells OFFSET_INVALID, and no error, where the connection to the leader broke.
    """
    offset = int(answer.result().offset)
    return None if offset < -1 else offset
