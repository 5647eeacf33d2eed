from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.web.kit import Worker


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)


Command = Callable[..., Ran]


@dataclass
class Served:
    worker: Worker
    url: str

    def args(self, who: str = "all") -> list[str]:
        return ["--url", self.url, "--token", who]


def cells(line: str) -> list[str]:
    """The cells of a plain table's line."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]
