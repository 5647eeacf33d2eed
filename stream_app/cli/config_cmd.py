"""``gapstream config``: the effective configuration."""

from __future__ import annotations

from collections.abc import Sequence

import click

from stream_app.cli.main import config_options, warn, with_json
from stream_app.cli.output import print_json


@click.command(
    epilog="""\b
Example:
  gapstream config -c gapstream.yaml
  gapstream config -X http.port=6067 --json
  gapstream config --schema > gapstream.schema.json"""
)
@click.option("--schema", is_flag=True, help="Print the file's JSON Schema instead, for editors.")
@with_json
@config_options
def command(config_path: str | None, overrides: Sequence[str], schema: bool, as_json: bool) -> None:
    """Print the effective configuration: file, environment, flags and defaults together, secrets masked."""
    from stream_app.config import json_schema, load

    if schema:
        print_json(json_schema())
        return
    values = load(config_path, None, overrides, warn).masked()
    if as_json:
        print_json(values)
    else:
        click.echo(_yaml(values), nl=False)


def _yaml(values: object) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1_000)
