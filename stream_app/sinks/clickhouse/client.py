"""The connection to a server: clickhouse-connect, with the settings that keep an answer whole, in threads of its own.

Nothing is known of a table from an answer that may be a part of it. So every limit throws instead of cutting off, a shard or
a replica that is not there fails the query, caches and profiles that would change what is counted are switched off, and the
server sends nothing until it has everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

from stream_app.errors import UsageError

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

T = TypeVar("T")

CONNECT_S = 10
QUERY_S = 60
"""A query that runs longer is given up; ``max_execution_time`` in the sink's settings changes it."""
UNLIMITED_S = 3_600
"""How long an answer is waited for where ``max_execution_time`` is 0, which means no limit."""
ANSWER_S = 15
"""What the network may take beyond that."""

_OVERFLOW = (
    *("read", "read_overflow_mode_leaf", "group_by", "sort", "result", "timeout", "timeout_overflow_mode_leaf", "set", "join"),
    *("transfer", "distinct"),
)
SETTINGS: Mapping[str, str] = {
    **{mode if mode.endswith("_leaf") else f"{mode}_overflow_mode": "throw" for mode in _OVERFLOW},
    "skip_unavailable_shards": "0",
    "fallback_to_stale_replicas_for_distributed_queries": "0",
    "optimize_skip_unused_shards": "0",  # rows may stand on another shard than their key says
    "distributed_group_by_no_merge": "0",
    "use_query_cache": "0",
    "final": "0",
    "limit": "0",
    "offset": "0",
    "wait_end_of_query": "1",
}
"""Sent with every query where the server knows them; the sink's own settings may not name them."""
_OF_THE_INTERFACE = ("wait_end_of_query",)
"""No settings of a query: every server knows them."""


_SYSTEM = re.compile(r"\[Errno -?\d+\] [\w ,.-]+")


class Refused(Exception):
    """The server gave no answer; ``str()`` says what to do."""

    def __init__(self, message: str, code: int | None = None) -> None:
        """``code``: ClickHouse's, where there is one."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows as tuples; text is bytes."""

    rows: list[tuple[Any, ...]]
    rows_read: int
    elapsed_s: float


@dataclass(slots=True)
class ClickHouseClient:
    """One server, as one user. Connects when it is first asked; a lost connection is made anew by the next question."""

    url: str
    username: str = "default"
    password: str = field(default="", repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    """The sink's own, beside :data:`SETTINGS`."""
    ca: str | None = None
    """File with the certificates to trust."""
    query_s: float = QUERY_S
    _client: Client | None = field(default=None, repr=False)

    async def query(self, sql: str) -> Answer:
        """The answer of one SELECT or EXPLAIN.

        Raises:
            Refused: there is none.
            UsageError: clickhouse-connect is not installed.
        """
        return await _apart(lambda: self._query(sql))

    async def close(self) -> None:
        """Gives the connections back."""
        if self._client is not None:
            await _apart(self._client.close)
            self._client = None

    # --- in a thread ----------------------------------------------------------------------------------------------------------

    def _query(self, sql: str) -> Answer:
        begun = time.perf_counter()
        try:
            if self._client is None:
                self._client = self._connect()
            found = self._client.query(sql, settings=self._sent(self._client), query_formats={"String": "bytes", "FixedString": "bytes"})
            rows = list(found.result_rows)
        except UsageError:
            raise
        except Exception as error:
            if not _is_refusal(error):
                raise
            raise Refused(describe(error, self), getattr(error, "code", None)) from error
        return Answer([tuple(row) for row in rows], int(found.summary.get("read_rows", 0)), time.perf_counter() - begun)

    def _connect(self) -> Client:
        try:
            import clickhouse_connect
        except ImportError as error:
            msg = "ClickHouse needs its client, which is not installed: pip install 'gapstream[clickhouse]'"
            raise UsageError(msg) from error
        logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # it says what it raises, too
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of connections that it gives up
        parts = urlsplit(self.url)
        return clickhouse_connect.get_client(
            interface=parts.scheme,
            host=parts.hostname or "",
            port=parts.port or (8443 if parts.scheme == "https" else 8123),
            proxy_path=parts.path.strip("/"),
            username=unquote(parts.username) if parts.username else self.username,
            password=unquote(parts.password) if parts.password else self.password,
            ca_cert=self.ca,
            connect_timeout=CONNECT_S,
            send_receive_timeout=math.ceil(float(self.settings.get("max_execution_time", self.query_s)) or UNLIMITED_S) + ANSWER_S,
            query_retries=0,  # what failed is asked again by the next check
            autogenerate_session_id=False,  # sessions take one query at a time, and not every service has them
            client_name="gapstream",
        )

    def _sent(self, client: Client) -> dict[str, str]:
        known = client.server_settings
        sent = {"max_execution_time": f"{self.query_s:g}"} if _writable(known.get("max_execution_time")) else {}
        sent |= self.settings
        return sent | {name: value for name, value in SETTINGS.items() if name in known or name in _OF_THE_INTERFACE}


def _writable(setting: Any) -> bool:
    return setting is not None and setting.readonly != 1


async def _apart(call: Callable[[], T]) -> T:
    """The result of a call that blocks, in a thread that nobody waits for: a server that is silent must not keep a process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():  # nobody waits any more
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:  # it is raised where the result is awaited
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="clickhouse", daemon=True).start()
    return await done


def _is_refusal(error: Exception) -> bool:
    """Whether the server, the way to it, or the client in view of them raised it."""
    from clickhouse_connect.driver.exceptions import ClickHouseError
    from urllib3.exceptions import HTTPError

    return isinstance(error, ClickHouseError | HTTPError | OSError)


def describe(error: Exception, client: ClickHouseClient) -> str:
    """One sentence for people: what failed, and what to look at."""
    code = getattr(error, "code", None)
    message = _message(error)
    match code:
        case 192 | 193 | 194 | 516:
            return f"ClickHouse refused the login of {client.username} ({message}): see username and password"
        case 497:
            return f"ClickHouse does not let {client.username} read this ({message}): grant it SELECT"
        case 60 | 81:
            return f"ClickHouse has no such table ({message}): see database and table"
        case 16 | 47:
            return f"ClickHouse does not know a column ({message}): see columns and where"
        case 158 | 159 | 160 | 241 | 307 | 396:
            return f"ClickHouse gave the query up ({message}): order the table by topic, partition and offset, or allow the query more"
        case 279 | 210 | 209 | 369 | 519 | 439 | 202:
            return f"ClickHouse could not ask all of its shards, or is too busy ({message}): see its log if it lasts"
        case 164:
            return f"ClickHouse does not let {client.username} change a setting ({message}): give it a profile with readonly = 2"
        case None if "is readonly" in message:
            return f"ClickHouse does not let {client.username} change a setting ({message}): give it a profile with readonly = 2"
        case None:
            return f"ClickHouse at {_place(client.url)} can't be reached or did not answer ({message}): see url, and whether it is up"
        case _:
            return f"ClickHouse could not answer ({message}): see its log if it lasts"


def _message(error: Exception) -> str:
    """ClickHouse's own words, without the client's and its version; of a connection what the system said."""
    words = str(error)
    system = _SYSTEM.search(words)
    if system is not None:
        return system[0]
    if "timed out" in words.lower():
        return "it did not answer in time"
    if any(mark in words for mark in ("RemoteDisconnected", "IncompleteRead", "Connection broken", "connection closed by server")):
        return "the connection broke off"
    if type(error).__name__ == "StreamFailureError" and "DB::Exception" not in words:  # it shows what came, in ClickHouse's binary format
        return "its answer is not whole"
    for mark in ("DB::Exception: ", "server response: "):
        words = words.rpartition(mark)[2]
    words = words.partition(" (version ")[0].partition(" (for url")[0]
    return " ".join(words.split())[:300].rstrip(".") or type(error).__name__


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
