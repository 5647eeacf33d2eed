"""What docs/pipes.md shows can be asked, and every pipe, column and parameter stands there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from stream_app.service.pipes import EXTRA, PIPES
from stream_app.web.pipes import LIMIT_MAX, PARAMETERS, paths

PAGE = (Path(__file__).resolve().parent.parent / "docs/pipes.md").read_text()


def test_every_address_shown_is_served() -> None:
    shown = [urlsplit(address) for address in re.findall(r"'(https?://[^']+)'", PAGE)]
    assert len(shown) > 4
    for one in shown:
        assert one.path in paths()
        assert {name for name, _ in parse_qsl(one.query)} <= PARAMETERS


def test_every_pipe_parameter_and_extra_column_is_told() -> None:
    for pipe in PIPES.values():
        assert re.search(rf"^\| `{pipe.name}` \|.* {pipe.minutes} minutes", PAGE, re.MULTILINE)
        assert f"/v0/pipes/{pipe.name}." in PAGE
    assert all(f"`{name}`" in PAGE for name in {*PARAMETERS, *(name for name, _ in EXTRA)})
    assert f"{LIMIT_MAX:,}" in PAGE
