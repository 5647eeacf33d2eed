"""The project's rules that ruff and mypy can't express, as functions from a file's path and text to its faults."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

LINES_MAX = 600
"""Beyond that a file holds two things."""
TEST_LINES_MAX = 900
"""A test module mirrors its module: what is tested together stands together."""

_CORE = PurePosixPath("stream_app/core")
_SIDECAR = PurePosixPath("gapstream_sidecar/src")
_MAY_PRINT = tuple(PurePosixPath(path) for path in ("stream_app/cli", "stream_app/demo", "scripts", "deploy", "tests"))

_CORE_MAY_IMPORT = {"msgspec", "pyroaring"}
_CORE_MAY_NOT_IMPORT = {
    *("asyncio", "concurrent", "multiprocessing", "select", "selectors", "signal", "threading"),
    *("http", "os", "socket", "ssl", "subprocess", "urllib"),
    *("logging", "random", "secrets", "time", "uuid"),
}
"""Standard modules that read a clock, roll dice, log, or touch the world."""
_CLOCKS = {"now", "utcnow", "today"}
_SUPPRESS = {"suppress", "contextlib.suppress"}

_SKIPPED_FOLDERS = {
    *(".git", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "build", "dist", "htmlcov"),
    *("gapstream-data", "bench-results", "campaign-results"),
}
_CODE_SUFFIXES = {".py", ".js", ".mjs", ".css", ".html", ".sh"}

# Put together here, so that this file does not break the rules that it states.
_UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b|\bNotImplemented" + r"Error\b")
_REGISTRIES = re.compile(
    "|".join(
        re.escape(name)
        for name in (
            "py" + "pi.org", "python" + "hosted.org", "registry.npm" + "js", "npmjs" + ".com", "repo1.mav" + "en", "repo.mav" + "en",
            "deb.deb" + "ian", "archive.ubun" + "tu", "crates" + ".io", "proxy.gol" + "ang", "rubygems" + ".org", "anaconda" + ".org",
        )
    )
)  # fmt: skip
_TYPE_IGNORE = re.compile(r"#\s*type:\s*ignore(?P<code>\[[a-z, -]+\])?(?P<rest>.*)")
_NOQA = re.compile(r"#\s*(?:ruff:\s*|flake8:\s*)?noqa(?P<code>:\s*[A-Z]+[0-9]+(?:[, ]+[A-Z]+[0-9]+)*)?(?P<rest>.*)", re.IGNORECASE)
_SKIPS = re.compile(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)\b|unittest\.skip")


def project_files(root: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """Path below ``root`` and text of each text file of the project; what tools made is left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(folder) / name
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a picture or a font
            yield PurePosixPath(path.relative_to(root).as_posix()), text


def faults(path: PurePosixPath, text: str) -> list[str]:
    """One line for each rule that the file breaks, with its place: ``path:line: what is wrong, what to do``."""
    is_python = path.suffix == ".py" or text.startswith(("#!/usr/bin/env python3\n", "#!/usr/bin/env -S python3"))
    found = [*_too_long(path, text), *_lines(path, text, _REGISTRIES, "names a package registry's host: leave it to the package manager")]
    if is_python:
        tree = ast.parse(text, str(path))
        found += _lines(path, text, _UNFINISHED, "is unfinished: finish it or leave it out")
        found += [fault for rule in _PYTHON_RULES for fault in rule(path, tree)]
        found += _excuses(path, text)
    if is_python and path.parts[0] == "tests" and path != PurePosixPath("tests/support/conventions.py"):
        found += _lines(path, text, _SKIPS, "skips a test: make it run everywhere or remove it")
    return sorted(found)


def _too_long(path: PurePosixPath, text: str) -> list[str]:
    lines = text.count("\n")
    is_code = path.suffix in _CODE_SUFFIXES or text.startswith("#!")
    most = TEST_LINES_MAX if path.parts[0] == "tests" else LINES_MAX
    return [f"{path}:{lines}: has {lines} lines, {most} at most: move one thing out"] if is_code and lines > most else []


def _lines(path: PurePosixPath, text: str, pattern: re.Pattern[str], complaint: str) -> list[str]:
    return [f"{path}:{number}: {complaint}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def _excuses(path: PurePosixPath, text: str) -> list[str]:
    """Each switched-off check names its code and says why in some words behind it."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in (_TYPE_IGNORE, _NOQA):
            excuse = pattern.search(line)
            if excuse is None:
                continue
            if excuse["code"] is None:
                found.append(f"{path}:{number}: switches off every check: name the code")
            elif len(re.findall(r"\w{2,}", excuse["rest"])) < 2:
                found.append(f"{path}:{number}: switches off a check without a reason: write it behind the code")
    return found


def _core_is_pure(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    if not path.is_relative_to(_CORE):
        return
    for node in ast.walk(tree):
        for module in imported_modules(node):
            if not _core_may_import(module):
                yield f"{path}:{_line(node)}: core imports {module}: hand in what it needs as an argument"
        if isinstance(node, ast.Attribute) and node.attr in _CLOCKS and ast.unparse(node.value).split(".")[-1] in {"datetime", "date"}:
            yield f"{path}:{_line(node)}: core reads a clock: hand in the time as an argument"


def _core_may_import(module: str) -> bool:
    top = module.split(".")[0]
    if top == "stream_app":
        return module == "stream_app.core" or module.startswith("stream_app.core.")
    return top in _CORE_MAY_IMPORT or (top in sys.stdlib_module_names and top not in _CORE_MAY_NOT_IMPORT)


def _sidecar_stands_alone(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    if path.is_relative_to(_SIDECAR):
        for node in ast.walk(tree):
            for module in imported_modules(node):
                if module.split(".")[0] == "stream_app":
                    yield f"{path}:{_line(node)}: the sidecar imports {module}: it is a distribution of its own"


def imported_modules(node: ast.AST) -> list[str]:
    """Full names of the modules that an import statement names; none for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        if node.module == "stream_app":  # from stream_app import web: names a module, not a value
            return [f"stream_app.{alias.name}" for alias in node.names]
        return [node.module]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")]
    return []


def _nothing_is_swallowed(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{path}:{_line(node)}: catches everything: name the exception"
        elif isinstance(node, ast.ExceptHandler) and _catches_all(node.type) and all(_does_nothing(part) for part in node.body):
            yield f"{path}:{_line(node)}: swallows every exception: name the one that is meant, or log it"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _SUPPRESS and any(map(_catches_all, node.args)):
            yield f"{path}:{_line(node)}: swallows every exception: name the one that is meant"


def _catches_all(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(map(_catches_all, node.elts))
    return isinstance(node, ast.Name) and node.id in {"Exception", "BaseException"}


def _does_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass | ast.Continue) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _only_commands_print(path: PurePosixPath, tree: ast.Module) -> Iterator[str]:
    if any(path.is_relative_to(folder) for folder in _MAY_PRINT):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{path}:{_line(node)}: prints: log it, or return it to the command line"


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


_PYTHON_RULES: tuple[Callable[[PurePosixPath, ast.Module], Iterator[str]], ...] = (
    _core_is_pure,
    _sidecar_stands_alone,
    _nothing_is_swallowed,
    _only_commands_print,
)
