"""One connection to one broker: requests out, whole answers in, without copying them.

An answer is received straight into a buffer of its size. Two buffers take turns: while one answer is being parsed, the
next one is received; when both are held, the socket is no longer read and TCP holds the broker back.

TLS is asyncio's. SASL is left to aiokafka's connection (PLAIN, SCRAM, GSSAPI, OAUTHBEARER): it shakes hands, then the
transport is taken over.
"""

from __future__ import annotations

import asyncio
import collections
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import aiokafka.errors
from aiokafka.conn import create_conn

from stream_app.kafka.failures import BrokerError, KafkaError, MalformedError, RefusedError, UnreachableError
from stream_app.kafka.protocol import (
    Api,
    ErrorCode,
    choose_version,
    decode_api_versions,
    encode_api_versions,
    encode_request,
    error_name,
    open_answer,
)
from stream_app.kafka.wire import Cursor

ANSWER_MAX = 1 << 30
"""Bytes of one answer. Fetch asks for 16 MiB; only a larger batch makes it more (KIP-74), and message.max.bytes rarely exceeds 100 MB."""
BUFFER_MIN = 1 << 16
"""Bytes of the smallest buffer: most answers fit, and a broker's two cost nothing."""
BUFFER_STEP = 1 << 22
"""Large buffers are multiples of it."""
SOFTWARE = "gapstream"
SOFTWARE_VERSION = "1"


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach a cluster; the words are aiokafka's."""

    bootstrap_servers: tuple[tuple[str, int], ...]
    """Host and port of the brokers to ask first."""
    security_protocol: str = "PLAINTEXT"
    """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
    ssl_context: ssl.SSLContext | None = None
    """Needed for SSL and SASL_SSL."""
    sasl_mechanism: str = "PLAIN"
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI or OAUTHBEARER."""
    sasl_plain_username: str | None = None
    sasl_plain_password: str | None = field(default=None, repr=False)
    sasl_kerberos_service_name: str = "kafka"
    sasl_kerberos_domain_name: str | None = None
    sasl_oauth_token_provider: Any = field(default=None, repr=False)
    """An ``aiokafka.abc.AbstractTokenProvider``."""
    client_id: str = "gapstream"
    request_timeout_ms: int = 40_000
    """A connection on which nothing moves for so long while an answer is due is given up."""

    def __post_init__(self) -> None:
        """Refuses what can't work.

        Raises:
            ValueError: no broker, an unknown security protocol, or TLS without a context.
        """
        if not self.bootstrap_servers:
            msg = "no bootstrap server is given; name at least one host:port"
            raise ValueError(msg)
        if self.security_protocol not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
            msg = f"security protocol {self.security_protocol!r} is unknown; use PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
            raise ValueError(msg)
        if self.security_protocol.endswith("SSL") and self.ssl_context is None:
            msg = f"{self.security_protocol} needs a TLS context"
            raise ValueError(msg)

    def with_client_id(self, client_id: str) -> KafkaSettings:
        """The same under another client id."""
        return replace(self, client_id=client_id)


class Frame:
    """One answer, without its size, in a buffer that belongs to the connection until :meth:`release`."""

    __slots__ = ("_buffer", "_release", "view")

    def __init__(self, buffer: bytearray, size: int, release: Callable[[bytearray], None]) -> None:
        self.view = memoryview(buffer)[:size]
        self._buffer: bytearray | None = buffer
        self._release = release

    def release(self) -> None:
        """Gives the buffer back; what was cut out of ``view`` must no longer be used. Harmless when repeated."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self._release(buffer)


@dataclass(slots=True)
class _Due:
    """A request whose answer is due."""

    correlation: int
    sent_at: float
    answer: asyncio.Future[Frame]


class Connection(asyncio.BufferedProtocol):
    """Requests in the order they are sent, answers in the same order (Kafka serves a connection one request at a time)."""

    def __init__(self, host: str, port: int, *, client_id: str, timeout_s: float, caps: Mapping[Api, int] | None = None) -> None:
        """``caps`` lowers the versions used, per API."""
        self.host, self.port = host, port
        self.offered: dict[int, tuple[int, int]] = {}
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._caps = dict(caps or {})
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._handshake: object = None  # keeps what shook hands alive: its destructors would close the transport
        self._failure: KafkaError | None = None
        self._due: collections.deque[_Due] = collections.deque()
        self._correlation = 0
        self._head = bytearray(4)
        self._head_view = memoryview(self._head)
        self._body: memoryview | None = None  # the answer under way, cut to its size
        self._buffer: bytearray | None = None
        self._got = 0
        self._held = 0
        self._free: list[bytearray] = []
        self._waiting_size: int | None = None
        self._moved_at = self._loop.time()
        self._watch: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.host}:{self.port}>"

    @property
    def closed(self) -> bool:
        """Whether it can't be used any more."""
        return self._failure is not None

    # ------------------------------------------------------------------------------------------------- requests

    def version(self, api: Api) -> int:
        """The version of ``api`` spoken on this connection.

        Raises:
            UnsupportedError: there is none in common.
        """
        return choose_version(api, self.offered, self._caps.get(api))

    def send(self, api: Api, version: int, body: bytes) -> asyncio.Future[Frame]:
        """Sends a request; the answer must be released. The future fails with :class:`UnreachableError` when the connection does.

        Raises:
            KafkaError: the connection is closed; the reason.
        """
        if self._failure is not None or self._transport is None:
            raise self._failure or UnreachableError(f"not connected to {self.host}:{self.port}")
        self._correlation = (self._correlation + 1) & 0x7FFFFFFF
        due = _Due(self._correlation, self._loop.time(), self._loop.create_future())
        self._due.append(due)
        self._transport.write(encode_request(api, version, due.correlation, self._client_id, body))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._check_progress)
        return due.answer

    async def call(self, api: Api, version: int, body: bytes) -> Cursor:
        """Sends a small request and returns a cursor on a copy of the answer's body.

        Raises:
            KafkaError: the connection is or gets closed.
        """
        frame = await self.send(api, version, body)
        copy = memoryview(bytes(frame.view))
        frame.release()
        return open_answer(api, version, copy)[1]

    def close(self, failure: KafkaError | None = None) -> None:
        """Closes at once; whatever is due fails. Harmless when repeated."""
        if self._failure is not None:
            return
        self._failure = failure or UnreachableError(f"the connection to {self.host}:{self.port} was closed")
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._due:
            due = self._due.popleft()
            if not due.answer.done():
                due.answer.set_exception(self._failure)
                due.answer.exception()  # whoever sent it may be gone

    def _check_progress(self) -> None:
        self._watch = None
        if not self._due or self._failure is not None:
            return
        now = self._loop.time()
        since = now if self._waiting_size is not None else max(self._moved_at, self._due[0].sent_at)
        if now - since >= self._timeout_s:
            where = f"{self.host}:{self.port}"
            self.close(UnreachableError(f"no answer from {where} for {self._timeout_s:g} s; see whether the broker is overloaded"))
        else:
            self._watch = self._loop.call_at(since + self._timeout_s, self._check_progress)

    # ------------------------------------------------------------------------------------------ asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not asyncio's

    def adopt(self, transport: asyncio.Transport, handshake: object) -> None:
        """Takes over a transport on which ``handshake`` (kept alive) has logged in."""
        transport.set_protocol(self)
        self._transport = transport
        self._handshake = handshake

    def get_buffer(self, sizehint: int) -> memoryview:
        """asyncio: where to put what comes in."""
        if self._body is not None:
            return self._body[self._got :]
        return self._head_view[self._got :]

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio: so much came in."""
        self._moved_at = self._loop.time()
        self._got += nbytes
        if self._body is not None:
            if self._got == len(self._body):
                self._finish()
        elif self._got == 4:
            size = int.from_bytes(self._head, "big", signed=True)
            if 4 <= size <= ANSWER_MAX:
                self._begin(size)
            else:
                msg = f"{self.host}:{self.port} sent an answer of {size} bytes; is this a Kafka broker, and is its security protocol right?"
                self.close(MalformedError(msg))

    def eof_received(self) -> None:
        """asyncio: the broker closed its side; the transport closes ours."""

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: disconnected."""
        why = f": {exc}" if exc else ""
        self.close(UnreachableError(f"the connection to {self.host}:{self.port} was lost{why}"))

    # -------------------------------------------------------------------------------------------------- buffers

    def _begin(self, size: int) -> None:
        """An answer of ``size`` bytes follows: finds a buffer, or stops reading until one is given back."""
        if self._held >= 2:
            self._waiting_size = size
            assert self._transport is not None
            self._transport.pause_reading()
            return
        buffer = next((one for one in self._free if len(one) >= size), None)
        if buffer is not None:
            self._free.remove(buffer)
        else:
            if self._free:
                self._free.pop()  # too small: the new one takes its place
            buffer = bytearray(_rounded(size))
        self._held += 1
        self._buffer = buffer
        self._body = memoryview(buffer)[:size]
        self._got = 0

    def _finish(self) -> None:
        assert self._body is not None
        assert self._buffer is not None
        frame = Frame(self._buffer, len(self._body), self._give_back)
        self._body = self._buffer = None
        self._got = 0
        due = self._due.popleft() if self._due else None
        if due is None or int.from_bytes(frame.view[:4], "big") != due.correlation:
            frame.release()
            if due is not None:
                self._due.appendleft(due)
            self.close(MalformedError(f"{self.host}:{self.port} answered something that was not asked; is this a Kafka broker?"))
        elif due.answer.done():  # given up
            frame.release()
        else:
            due.answer.set_result(frame)

    def _give_back(self, buffer: bytearray) -> None:
        self._held -= 1
        self._free.append(buffer)
        if self._waiting_size is not None and self._failure is None:
            size, self._waiting_size = self._waiting_size, None
            self._moved_at = self._loop.time()
            self._begin(size)
            assert self._transport is not None
            self._transport.resume_reading()


def _rounded(size: int) -> int:
    """Bytes of a buffer for an answer of ``size``: answers that grow little by little must not need a new one each."""
    return max(BUFFER_MIN, 1 << (size - 1).bit_length()) if size <= BUFFER_STEP else -(-size // BUFFER_STEP) * BUFFER_STEP


async def open_connection(settings: KafkaSettings, host: str, port: int, *, caps: Mapping[Api, int] | None = None) -> Connection:
    """Connects, shakes hands and asks which versions the broker speaks.

    Raises:
        UnreachableError: nobody there, or not in time.
        RefusedError: TLS or SASL said no.
        UnsupportedError, MalformedError: not a broker we can talk to.
    """
    timeout_s = settings.request_timeout_ms / 1000
    where = f"{host}:{port}"
    connection = Connection(host, port, client_id=settings.client_id, timeout_s=timeout_s, caps=caps)
    try:
        async with asyncio.timeout(timeout_s):
            if settings.security_protocol.startswith("SASL_"):
                await _connect_sasl(settings, connection)
            else:
                tls = settings.ssl_context if settings.security_protocol == "SSL" else None
                await asyncio.get_running_loop().create_connection(lambda: connection, host, port, ssl=tls)
            await _ask_versions(connection)
    except TimeoutError as error:
        connection.close()
        raise UnreachableError(f"{where} did not answer within {timeout_s:g} s; see whether it is up and reachable from here") from error
    except ssl.SSLError as error:
        connection.close()
        raise RefusedError(f"TLS with {where} failed ({error}); see ssl.ca.location and the broker's certificate") from error
    except OSError as error:
        connection.close()
        raise UnreachableError(f"{where} can't be reached ({error}); see whether it is up and reachable from here") from error
    except BaseException:
        connection.close()
        raise
    return connection


async def _connect_sasl(settings: KafkaSettings, connection: Connection) -> None:
    where = f"{connection.host}:{connection.port}"
    try:
        link = await create_conn(
            connection.host,
            connection.port,
            client_id=settings.client_id,
            request_timeout_ms=settings.request_timeout_ms,
            ssl_context=settings.ssl_context,
            security_protocol=settings.security_protocol,
            sasl_mechanism=settings.sasl_mechanism,
            sasl_plain_username=settings.sasl_plain_username,
            sasl_plain_password=settings.sasl_plain_password,
            sasl_kerberos_service_name=settings.sasl_kerberos_service_name,
            sasl_kerberos_domain_name=settings.sasl_kerberos_domain_name,
            sasl_oauth_token_provider=settings.sasl_oauth_token_provider,
        )
    except aiokafka.errors.KafkaConnectionError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise error.__cause__ from error
        raise UnreachableError(f"{where} closed the connection during the SASL handshake; see whether its listener speaks SASL") from error
    except OSError:  # TLS, timeouts, sockets
        raise
    except Exception as error:  # the mechanisms raise what they like: ValueError, AssertionError, whatever a token provider does
        why = str(error) or type(error).__name__
        raise RefusedError(f"{where} refused the {settings.sasl_mechanism} login ({why}); see sasl.username and sasl.password") from error
    # Nothing is buffered: after the handshake the broker speaks only when asked.
    writer, task = link._writer, link._read_task
    link._writer = link._reader = None
    task.cancel()
    connection.adopt(writer.transport, (link, writer))


async def _ask_versions(connection: Connection) -> None:
    where = f"{connection.host}:{connection.port}"
    for version in (3, 0):
        cursor = await connection.call(Api.API_VERSIONS, version, encode_api_versions(version, SOFTWARE, SOFTWARE_VERSION))
        code, offered = decode_api_versions(cursor, version)
        if code != ErrorCode.UNSUPPORTED_VERSION:
            break
    else:
        raise MalformedError(f"{where} speaks no version of ApiVersions; Kafka 1.0 or newer is needed")
    if code != ErrorCode.NONE:
        raise BrokerError(code, f"{where} answered {error_name(code)} to the first request; see the broker's log")
    connection.offered = offered
