"""The small parts: the embedded broker and what is overlooked there, what is compared, what people see, and the guard."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiokafka.record.memory_records import MemoryRecords
from confluent_kafka import Producer
from rich.console import Console

from stream_app.cli.main import main
from stream_app.demo import guard, run, warehouse
from stream_app.demo.broker import EmbeddedBroker
from stream_app.demo.faults import Fault, Kind
from stream_app.demo.overlook import with_checksums
from stream_app.demo.screen import Lines, picture
from stream_app.demo.state import Outcome, State
from stream_app.errors import Unavailable

LOST = Fault(Kind.LOST, "orders", 1, 5, 10)
LATE = Fault(Kind.LATE, "orders", 1, 20, 21)


def batch(attributes: int, crc: int) -> bytes:
    """One record batch of format 2 without records (org.apache.kafka.common.record.DefaultRecordBatch)."""
    return struct.pack(">qiiBIhiqqqhii", 7, 49, 0, 2, crc, attributes, 0, 0, 0, 1, 0, 0, 0)


def test_markers_without_a_checksum_get_one_and_damage_stays_damage() -> None:
    mended = MemoryRecords(with_checksums(batch(0x30, 0) + batch(0x30, 5) + batch(0x10, 0)))
    assert [mended.next_batch().validate_crc() for _ in range(3)] == [True, False, False]


def test_what_is_no_whole_batch_is_left_as_it_is() -> None:
    cut = batch(0x30, 0)[:40]
    assert with_checksums(cut) == cut
    assert with_checksums(b"") == b""


def test_the_embedded_broker_makes_topics_that_clients_can_use() -> None:
    broker = EmbeddedBroker()
    try:
        assert broker.make(["orders", "payments"]) == {"orders": 4, "payments": 4}
        errors: list[object] = []
        producer = Producer({"bootstrap.servers": broker.bootstrap})
        producer.produce("orders", b"x", partition=3, on_delivery=lambda error, _: errors.append(error))
        assert producer.flush(10) == 0
        assert errors == [None]
    finally:
        broker.close()


def test_a_fault_is_detected_whichever_of_both_is_heard_first() -> None:
    state = State(1, "http://127.0.0.1:1", None)
    assert state.note_seen(Fault(Kind.LOST, "orders", 1, 5, 7), 10.0) == []
    row = state.note_injected(LOST, 11.0)
    assert row.told_at is None
    assert state.note_seen(Fault(Kind.LATE, "orders", 1, 5, 10), 12.0) == []
    assert state.note_seen(Fault(Kind.LOST, "orders", 1, 7, 10), 13.0) == [row]
    assert row.delay_s == 2.0
    state.note_seen(LATE, 14.0)
    assert state.note_injected(LATE, 15.0).delay_s == 0.0
    assert state.told == {**dict.fromkeys(Kind, 0), Kind.LOST: 1, Kind.LATE: 1}


def test_json_is_sorted_and_closed() -> None:
    state = State(7, "http://127.0.0.1:1", 30, injected=[LATE, LOST], detected=[LOST, LATE])
    assert state.is_equal()
    listed = [
        {"kind": "lost", "topic": "orders", "partition": 1, "first_offset": 5, "last_offset": 9},
        {"kind": "late", "topic": "orders", "partition": 1, "first_offset": 20, "last_offset": 20},
    ]
    assert Outcome(state, None).as_json() == {"ok": True, "seed": 7, "injected": listed, "detected": listed}
    state.detected.pop()
    assert not state.is_equal()
    assert Outcome(state, "why").as_json() == {"ok": False, "seed": 7, "injected": listed, "detected": listed[:1]}


def running() -> State:
    state = State(7, "http://127.0.0.1:6099", None, doing="running", begun_at=time.monotonic(), produced=160, consumed=159)
    state.note_injected(LOST, 100.0)
    state.note_seen(LOST, 101.5)
    state.note_injected(LATE, 102.0)
    row = {"topic": "orders", "state": "unknown", "missing": None, "duplicates": None, "lag": 4, "complete_through": None}
    state.status = [{**row, "sink": "billing"}, {**row, "sink": "log"}]
    return state


def test_the_screen_fits_a_small_terminal_and_says_what_is_known() -> None:
    console = Console(width=80, height=24, record=True, file=io.StringIO())
    console.print(picture(running(), 3))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert not any("…" in line for line in lines)
    (lost,) = (line.split() for line in lines if "5-9" in line)
    assert lost[1:] == ["lost", "orders", "1", "5-9", "after", "1.5", "s"]
    (late,) = (line.split() for line in lines if " 20 " in line)
    assert late[1:] == ["late", "orders", "1", "20", "..."]
    (status,) = (line.split() for line in lines if "billing" in line)
    assert status == ["orders", "billing", "unknown", "unknown", "unknown", "4", "unknown"]
    assert any("gapstream gaps --url http://127.0.0.1:6099" in line for line in lines)


def test_lines_for_pipes_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    state = running()
    lines = Lines()
    lines.doing(state)
    lines.injected(state.rows[0])
    lines.told(state.rows[0])
    said = capsys.readouterr().out.splitlines()[1:]
    assert said[0] == "running: worker http://127.0.0.1:6099, seed 7, Ctrl-C stops it"
    assert said[1].endswith("injected lost: orders partition 1 offsets 5-9")
    assert said[2].endswith("detected lost: orders partition 1 offsets 5-9, after 1.5 s")


def test_without_clickhouse_it_says_so_and_runs_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[run.Options] = []

    def demo(options: run.Options, view: run.View) -> Outcome:
        ran.append(options)
        return Outcome(State(options.seed, "http://127.0.0.1:1", options.seconds), None)

    monkeypatch.setattr(warehouse, "is_installed", lambda: False)
    monkeypatch.setattr(run, "run", demo)
    assert main(["demo", "--json", "--seed", "5"]) == 0
    assert [(options.clickhouse, options.seconds) for options in ran] == [(False, 30)]
    assert "pip install 'gapstream[demo]'" in capsys.readouterr().err


def test_a_clickhouse_that_is_gone_is_told() -> None:
    with pytest.raises(Unavailable, match="the embedded ClickHouse does not answer"):
        warehouse.create(1)


def test_the_guard_kills_what_is_left_and_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    (folder / "state").mkdir(parents=True)
    sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) for _ in range(2)]
    try:
        told = f"+{sleepers[0].pid}\n+{sleepers[1].pid}\n-{sleepers[1].pid}\n"
        subprocess.run([sys.executable, "-I", "-S", guard.__file__, str(folder)], input=told, text=True, check=True, timeout=20)
        assert sleepers[0].wait(10) == -9
        assert sleepers[1].poll() is None
        assert not folder.exists()
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
