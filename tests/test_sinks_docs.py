"""The configuration that docs/sinks.md shows is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from stream_app.config import load, unsupported
from stream_app.config.sinks import CONNECT_HEADERS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/sinks.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_sink_shown_can_be_configured(block: str, tmp_path: Path) -> None:
    file = tmp_path / "gapstream.yaml"
    sinks = yaml.safe_load(block)
    file.write_text(yaml.safe_dump({"kafka": {"bootstrap.servers": "broker:9092"}, "topics": {"orders": {"sinks": sinks}}}))
    config = load(file, environ={"OTHER_PASSWORD": "secret"})
    assert set(config.topics["orders"].sinks) == set(sinks)
    assert unsupported(config) == []


def test_all_types_that_run_are_shown() -> None:
    assert {sink["type"] for block in BLOCKS for sink in yaml.safe_load(block).values()} == {"consumer", "topic", "group"}
    assert all(f"`{name}`" in PAGE for name in CONNECT_HEADERS.values())
