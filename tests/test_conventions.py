"""The project keeps the rules of tests/support/conventions.py, and each of those rules can be broken."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest

from tests.support.conventions import LINES_MAX, faults, imported_modules, project_files

ROOT = Path(__file__).resolve().parent.parent

SOMEWHERE = "stream_app/web/example.py"
CORE = "stream_app/core/example.py"
OFF = "no" + "qa"
IGNORE = "type: " + "ignore"


def test_the_project_keeps_its_rules() -> None:
    files = dict(project_files(ROOT))
    assert PurePosixPath("stream_app/core/model.py") in files
    assert PurePosixPath("scripts/kafka") in files
    assert [fault for path, text in files.items() for fault in faults(path, text)] == []


@pytest.mark.parametrize(("project", "sources"), [(".", "stream_app"), ("gapstream_sidecar", "gapstream_sidecar/src")])
def test_what_is_imported_is_required(project: str, sources: str) -> None:
    metadata = tomllib.loads((ROOT / project / "pyproject.toml").read_text())["project"]
    extras = [requirements for name, requirements in metadata.get("optional-dependencies", {}).items() if name != "dev"]
    required = {_normal(re.split(r"[^\w.-]", requirement)[0]) for some in [metadata["dependencies"], *extras] for requirement in some}
    distributions = {**packages_distributions(), "gapstream_sidecar": ["gapstream-sidecar"]}  # installed in place, so it lists no files
    imported: dict[str, str] = {}
    for path in sorted((ROOT / sources).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            imported |= {module.split(".")[0]: f"{path}:{getattr(node, 'lineno', 0)}" for module in imported_modules(node)}
    own = {"", sources.split("/")[0]}  # "": a relative import
    foreign = {name: place for name, place in imported.items() if name not in sys.stdlib_module_names | own}
    assert "confluent_kafka" in foreign
    assert {place: name for name, place in foreign.items() if not set(map(_normal, distributions.get(name, ()))) & required} == {}


def _normal(distribution: str) -> str:
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        (CORE, "import time\n", "core imports time"),
        (CORE, "from time import monotonic\n", "core imports time"),
        (CORE, "import os.path\n", "core imports os.path"),
        (CORE, "def f() -> None:\n    import asyncio\n", "core imports asyncio"),
        (CORE, "import faust\n", "core imports faust"),
        (CORE, "from stream_app import web\n", "core imports stream_app.web"),
        (CORE, "from stream_app.kafka.reader import Reader\n", "core imports stream_app.kafka.reader"),
        (CORE, "import stream_app.corea\n", "core imports stream_app.corea"),
        (CORE, "from ..kafka import reader\n", "core imports ..kafka"),
        (CORE, "import datetime\nx = datetime.datetime.now()\n", "core reads a clock"),
        (CORE, "from datetime import datetime\nx = datetime.utcnow\n", "core reads a clock"),
        ("gapstream_sidecar/src/gapstream_sidecar/a.py", "from stream_app.core import model\n", "the sidecar imports stream_app.core"),
        (SOMEWHERE, "try:\n    f()\nexcept:\n    raise\n", "catches everything"),
        (SOMEWHERE, "try:\n    f()\nexcept Exception:\n    pass\n", "swallows every exception"),
        (SOMEWHERE, "try:\n    f()\nexcept (KeyError, BaseException):\n    ...\n", "swallows every exception"),
        (SOMEWHERE, "for x in y:\n    try:\n        f()\n    except Exception:\n        continue\n", "swallows every exception"),
        (SOMEWHERE, "with contextlib.suppress(Exception):\n    f()\n", "swallows every exception"),
        (SOMEWHERE, "print('x')\n", "prints"),
        ("gapstream_sidecar/src/gapstream_sidecar/a.py", "print('x')\n", "prints"),
        (SOMEWHERE, f"import x  # {OFF}\n", "switches off every check"),
        (SOMEWHERE, f"import x  # {OFF}: F401\n", "without a reason"),
        (SOMEWHERE, f"# ruff: {OFF}\n", "switches off every check"),
        (SOMEWHERE, f"x = y  # {IGNORE}\n", "switches off every check"),
        (SOMEWHERE, f"x = y  # {IGNORE}[attr-defined]\n", "without a reason"),
        (SOMEWHERE, "x = 1  # TO" + "DO: later\n", "is unfinished"),
        (SOMEWHERE, "raise NotImplemented" + "Error\n", "is unfinished"),
        (SOMEWHERE, "x = 1\n" * (LINES_MAX + 1), "lines"),
        ("stream_app/web/static/app.js", "x\n" * (LINES_MAX + 1), "lines"),
        ("docs/INSTALL.md", "see https://py" + "pi.org/project/gapstream\n", "registry"),
        ("deploy/Dockerfile", "RUN pip install -i https://files.python" + "hosted.org/x\n", "registry"),
        ("tests/core/test_x.py", "@pytest.mark.sk" + "ip\ndef test_x() -> None: ...\n", "skips a test"),
    ],
)
def test_a_broken_rule_is_found(path: str, text: str, complaint: str) -> None:
    found = faults(PurePosixPath(path), text)
    assert len(found) == 1
    assert complaint in found[0]
    assert found[0].startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (CORE, "import enum\nimport msgspec\nfrom pyroaring import BitMap\nfrom stream_app.core.model import Run\n"),
        (CORE, "import sys\nimport stream_app.core\nfrom stream_app.core import model\n"),
        (CORE, "from datetime import datetime, UTC\nx = datetime.fromtimestamp(0, UTC)\nledger.now\n"),
        (SOMEWHERE, "import time\nx = time.time()\n"),
        (SOMEWHERE, "try:\n    f()\nexcept KeyError:\n    pass\n"),
        (SOMEWHERE, "try:\n    f()\nexcept Exception:\n    log.exception('f')\n"),
        (SOMEWHERE, "with contextlib.suppress(FileNotFoundError):\n    f()\n"),
        (SOMEWHERE, f"import x  # {OFF}: F401 - for those who import it from here\n"),
        (SOMEWHERE, f"x = y  # {IGNORE}[attr-defined]  # made at import time\n"),
        ("stream_app/cli/status.py", "print('x')\n"),
        (SOMEWHERE, "x = 1\n" * LINES_MAX),
        ("docs/LONG.md", "line\n" * (LINES_MAX + 1)),
    ],
)
def test_a_kept_rule_is_not_complained_about(path: str, text: str) -> None:
    assert faults(PurePosixPath(path), text) == []
