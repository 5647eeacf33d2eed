"""``gapstream verify``: topic and table compared once, without a worker."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from stream_app.cli.main import EXIT_COULD_NOT_TELL, warn, with_config, with_json
from stream_app.cli.output import Column, print_json, print_line, print_table
from stream_app.errors import UsageError
from stream_app.web.times import parse_duration, parse_time

if TYPE_CHECKING:
    from stream_app.config import Config
    from stream_app.verify import Edge, Verdict
    from stream_app.verify.target import Chosen

EXIT_DIFFERENT = 1
LISTED_MAX = 50
"""Lines of gaps and of duplicates; --json has all of them."""

_RANGE: tuple[Column | str, ...] = (
    Column("PARTITION", "right"),
    Column("FIRST", "right"),
    Column("LAST", "right"),
    Column("RECORDS", "right"),
)
_PARTITIONS = (*_RANGE, Column("ROWS", "right"), Column("MISSING", "right"), Column("DUPLICATES", "right"), "EXPLAINED")
_GAPS = (*_RANGE, "CAUSE", "RECORDS FROM", "UNTIL")


class _Edge(click.ParamType):
    """Where a part begins or ends: digits are an offset, everything else a TIME."""

    name = "X"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Edge:
        from stream_app.verify import Edge

        if isinstance(value, Edge):
            return value
        text = str(value)
        if text.isascii() and text.isdigit():
            return Edge(offset=int(text))
        try:
            return Edge(time_ms=parse_time(text, time.time_ns() // 1_000_000))
        except ValueError as error:
            self.fail(f"{error}, or an offset", param, ctx)


class _Duration(click.ParamType):
    """Milliseconds of a duration."""

    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    epilog="""\b
Example:
  gapstream verify --topic orders --sink warehouse
  gapstream verify --topic orders --clickhouse http://localhost:8123 --table default.orders
  gapstream verify --topic orders --sink warehouse --from -24h --until -1h
  gapstream verify --topic orders --sink warehouse --partition 3 --from 15000 --until 20000 --json

\b
Exit codes: 0 the table has every record once, 1 it has not, 2 usage or configuration, 3 could not tell."""
)
@click.option("--topic", required=True, metavar="T")
@click.option("--sink", metavar="S", help="A sink of the configuration, of type clickhouse.")
@click.option(
    "--clickhouse", "url", metavar="URL", help="Instead of a sink: a server, as http://localhost:8123; user and password may stand in it."
)
@click.option("--table", metavar="DB.T", help="With --clickhouse: the table.")
@click.option("--columns", metavar="ROLE=NAME,..", help="With --clickhouse: topic, partition, offset, timestamp; found where not given.")
@click.option("--partition", type=click.IntRange(min=0), metavar="P", help="This one only.")
@click.option("--from", "start", type=_Edge(), help="Begin here (inclusive): a TIME or, with one partition, an offset.")
@click.option("--until", type=_Edge(), help="End here (exclusive), likewise; else where the log ends now.")
@click.option(
    "--settle", type=_Duration(), default="30s", show_default=True, help="Records younger than this are given the time to arrive."
)
@with_json
@with_config
def command(
    config: Config,
    topic: str,
    sink: str | None,
    url: str | None,
    table: str | None,
    columns: str | None,
    partition: int | None,
    start: Edge | None,
    until: Edge | None,
    settle: int,
    as_json: bool,
) -> int:
    """Compare a topic with a table, once: reads the headers of that part of the topic, asks the table, prints what differs."""
    from stream_app.kafka.clients import KafkaClients
    from stream_app.kafka.protocol import Isolation
    from stream_app.verify import Edge, Question, Settings, verify

    chosen = _choose(config, topic, sink, url, table, columns)
    begun_ms = time.time_ns() // 1_000_000
    if start is None and chosen.floor not in ("first", "earliest", "latest"):
        start = Edge(time_ms=parse_time(chosen.floor, begun_ms))
    watched = config.topic(topic)
    isolation = Isolation.READ_UNCOMMITTED if watched is not None and watched.isolation == "read_uncommitted" else Isolation.READ_COMMITTED
    settings = Settings(KafkaClients(config.kafka), isolation, watched is None or watched.check_crcs)
    question = Question(
        topic=topic,
        partitions=None if partition is None else (partition,),
        start=start,
        until=until,
        settle_ms=settle,
        tombstones_optional=chosen.tombstones_optional,
        floor_first=chosen.floor in ("first", "latest"),
    )

    async def run(progress: Callable[[str, int, int], None]) -> Verdict:
        try:
            return await verify(settings, question, chosen.target, progress)
        finally:
            await chosen.client.close()

    with _progress() as progress:
        verdict = asyncio.run(run(progress))
    _print(verdict, topic, sink, chosen.name, begun_ms, as_json)
    return EXIT_COULD_NOT_TELL if verdict.equal is None else 0 if verdict.equal else EXIT_DIFFERENT


def _choose(config: Config, topic: str, sink: str | None, url: str | None, table: str | None, columns: str | None) -> Chosen:
    from stream_app.verify.target import Named, of_named, of_sink

    if sink is not None:
        if url is not None or table is not None or columns is not None:
            raise UsageError("--sink and --clickhouse exclude each other: a sink's table and columns stand in the configuration")
        return of_sink(config, topic, sink)
    if url is None or table is None:
        raise UsageError("say what to compare with: --sink NAME, or --clickhouse URL and --table DB.TABLE")
    return of_named(config, topic, Named.of(url, table, columns))


# --- printing -----------------------------------------------------------------------------------------------------------------


def _print(verdict: Verdict, topic: str, sink: str | None, table: str, begun_ms: int, as_json: bool) -> None:
    from stream_app.verify import report

    if as_json:
        print_json(report.as_json(verdict, topic, sink, table, begun_ms))
    for note in verdict.notes if not as_json else ():
        warn(note)
    if verdict.equal is None:
        click.echo(f"could not tell: {verdict.reason}", err=True)
        if verdict.statement is not None and not as_json:
            click.echo(verdict.statement)
        return
    if not as_json:
        found = report.as_json(verdict, topic, sink, table, begun_ms)
        _print_tables(found, topic, table)


def _print_tables(found: dict[str, Any], topic: str, table: str) -> None:
    names = ("partition", "first_offset", "last_offset", "records", "rows", "missing", "duplicates")
    partitions = found["partitions"]
    explained = [", ".join(f"{count} {reason}" for reason, count in one["explained"].items()) for one in partitions]
    print_table(
        _PARTITIONS,
        [[*(one[name] if one[name] is not None else "-" for name in names), more] for one, more in zip(partitions, explained, strict=True)],
    )
    for title, columns, keys, rows in (
        (
            "missing",
            _GAPS,
            ("partition", "first_offset", "last_offset", "count", "cause", "first_timestamp", "last_timestamp"),
            found["missing"],
        ),
        ("duplicates", _RANGE, ("partition", "first_offset", "last_offset", "count"), found["duplicates"]),
    ):
        if rows:
            _print_list(title, columns, keys, rows)
    records, missing, surplus = (sum(one[name] for one in partitions) for name in ("records", "missing", "duplicates"))
    if not records and found["result"] == "equal":
        print_line(f"there is no record of {topic} in that part: nothing was compared", "yellow")
    elif found["result"] == "equal":
        print_line(f"equal: all {records} records of {topic} are in {table}, each once", "green")
    else:
        print_line(f"different: of {records} records of {topic}, {table} lacks {missing} and has {surplus} rows too many", "bold red")


def _print_list(title: str, columns: Sequence[Column | str], keys: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    print_line(f"\n{title}:")
    print_table(columns, [[row[key] for key in keys] for row in rows[:LISTED_MAX]])
    if len(rows) > LISTED_MAX:
        print_line(f"... and {len(rows) - LISTED_MAX} more: --json has all of them")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr where somebody sees it."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    shown = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*shown, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("asking Kafka", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=max(total, 1))

        yield tell
