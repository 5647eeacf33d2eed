"""The embedded ClickHouse, asked by the client that everybody uses and by plain HTTP."""

from __future__ import annotations

import gzip
import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import clickhouse_connect
import cramjam
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.httpclient import HttpClient

from tests.support.clickhouse_kit import ClickHouse, ClickHouseError, EngineProcess


@pytest.fixture
def client(clickhouse: ClickHouse) -> Iterator[Client]:
    address = urlsplit(clickhouse.url)
    made = clickhouse_connect.get_client(
        host=address.hostname, port=address.port, database=clickhouse.database, autogenerate_session_id=False
    )
    yield made
    made.close()


def ask(url: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_rows_come_back_as_they_went(client: Client) -> None:
    client.command("CREATE TABLE t (a UInt64, b String, c Nullable(Int32), d LowCardinality(String)) ENGINE = MergeTree ORDER BY a")
    rows = [(number, f"text\t{number}\n", None if number % 3 else number, f"d{number % 4}") for number in range(5000)]
    for compression in ("gzip", "zstd", "lz4", None):
        client.write_compression = compression
        client.insert("t", rows, column_names=["a", "b", "c", "d"])
    assert client.query("SELECT *, count() FROM t GROUP BY ALL ORDER BY a").result_rows == [(*row, 4) for row in rows]


def test_values_settings_and_databases_are_those_of_the_request(client: Client, clickhouse: ClickHouse) -> None:
    assert client.query("SELECT {text:String}", parameters={"text": "it's \\ here"}).result_rows == [("it's \\ here",)]
    assert client.query("SELECT getSetting('max_block_size')", settings={"max_block_size": 77}).result_rows == [(77,)]
    assert client.query("SELECT getSetting('max_block_size') = 77").result_rows == [(0,)]
    assert client.query("SELECT currentDatabase()").result_rows == [(clickhouse.database,)]
    assert clickhouse.rows("SELECT currentDatabase()", database="default") == [("default",)]


def test_the_summary_says_how_much_was_read(client: Client) -> None:
    client.command("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
    written = client.insert("t", [list(range(100_000))], column_names=["a"], column_oriented=True)
    assert written.written_rows == 100_000
    found = client.query("SELECT count(), sum(a) FROM t")
    assert found.result_rows == [(100_000, 4_999_950_000)]
    assert int(found.summary["read_rows"]) == 100_000
    assert int(client.query("SELECT max(a) FROM t WHERE a < 10").summary["read_rows"]) <= 8192 * 2


@pytest.mark.parametrize(
    ("sql", "status", "code"),
    [
        ("SELECT * FROM nowhere", 404, 60),
        ("SELECT nothing", 404, 47),
        ("SELECT 1 +", 400, 62),
        ("SELECT 1 SETTINGS no_such_setting = 1", 404, 115),
        ("SELECT number FROM numbers(100) SETTINGS max_rows_to_read = 10", 500, 158),
        ("SELECT sleep(3) SETTINGS max_execution_time = 0.2", 408, 159),
        ("INSERT INTO nowhere (a) FORMAT CSV\n1\n", 404, 60),
        ("INSERT INTO system.one (dummy) FORMAT Native\ncut off", 501, 48),
    ],
)
def test_errors_have_the_codes_and_the_status_of_a_server(clickhouse: ClickHouse, sql: str, status: int, code: int) -> None:
    got = ask(clickhouse.url, "POST", f"/?database={clickhouse.database}", sql.encode())
    assert (got[0], got[2]["X-ClickHouse-Exception-Code"]) == (status, str(code))
    assert re.match(rf"Code: {code}\. DB::Exception: .*\([A-Z_]+\) \(version [\d.]+", got[1].decode(), re.DOTALL)


def test_the_client_knows_the_error(client: Client) -> None:
    with pytest.raises(DatabaseError) as raised:
        client.query("SELECT * FROM nowhere")
    assert (raised.value.code, raised.value.name) == (60, "UNKNOWN_TABLE")


def test_a_block_that_is_cut_off_leaves_no_row(client: Client, clickhouse: ClickHouse) -> None:
    client.command("CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    block = client.raw_query("SELECT number AS a, toString(number) AS b FROM numbers(1000)", fmt="Native")
    with pytest.raises(ClickHouseError, match=r"Code: 33\. .*CANNOT_READ_ALL_DATA"):
        clickhouse.run("INSERT INTO t (a, b) FORMAT Native", block[: len(block) // 2])
    clickhouse.run("INSERT INTO t (a, b) FORMAT Native", block)
    assert clickhouse.rows("SELECT count(), uniqExact(a) FROM t") == [(1000, 1000)]


def test_what_comes_by_get_changes_nothing(clickhouse: ClickHouse) -> None:
    status, body, _ = ask(clickhouse.url, "GET", f"/?database={clickhouse.database}&query=CREATE+TABLE+t+(a+Int8)+ENGINE=Memory")
    assert (status, body.split(b".")[0]) == (500, b"Code: 164")
    assert ask(clickhouse.url, "GET", "/?query=SELECT+1")[1] == b"1\n"
    assert ask(clickhouse.url, "GET", "/ping")[:2] == (200, b"Ok.\n")
    assert ask(clickhouse.url, "GET", "/")[:2] == (200, b"Ok.\n")


def test_bodies_may_be_compressed(clickhouse: ClickHouse) -> None:
    for encoding, body in {"gzip": gzip.compress(b"SELECT 5"), "lz4": bytes(cramjam.lz4.compress(b"SELECT 5"))}.items():
        assert ask(clickhouse.url, "POST", "/", body, {"Content-Encoding": encoding})[:2] == (200, b"5\n")
    assert ask(clickhouse.url, "POST", "/", b"no gzip", {"Content-Encoding": "gzip"})[2]["X-ClickHouse-Exception-Code"] == "271"
    assert ask(clickhouse.url, "POST", "/", b"?", {"Content-Encoding": "snappy"})[0] == 501


def test_a_statement_may_come_as_a_form(client: Client) -> None:
    assert isinstance(client, HttpClient)
    client.form_encode_query_params = True
    assert client.query("SELECT {text:String}, {number:Int32}", parameters={"text": "ä", "number": 7}).result_rows == [("ä", 7)]


def test_it_keeps_its_data_and_ends_on_a_signal(tmp_path: Path) -> None:
    with EngineProcess(tmp_path) as engine:
        assert engine.said["ready"] is True
        server = ClickHouse(engine.url)
        server.run("CREATE TABLE t (a UInt32) ENGINE = MergeTree ORDER BY a")
        server.run("INSERT INTO t VALUES (1), (2)")
        assert engine.stop() == 0
    with EngineProcess(tmp_path) as engine:
        assert ask(engine.url, "POST", f"/?database={server.database}", b"SELECT sum(a) FROM t")[:2] == (200, b"3\n")
        port = str(engine.said["port"])
        command = [sys.executable, "-m", "stream_app.demo.engine", "--port", port, "--path", str(tmp_path / "other")]
        taken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (taken.returncode, taken.stdout) == (2, "")
        assert port in taken.stderr
        assert engine.stop(signal.SIGINT) == 0
