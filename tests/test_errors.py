from __future__ import annotations

import pytest

import stream_app.errors
from stream_app.errors import ConfigError, CouldNotTell, Fault, GapstreamError, Unavailable, UsageError


def everyone(kind: type[GapstreamError]) -> set[type[GapstreamError]]:
    return {kind}.union(*map(everyone, kind.__subclasses__()))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("say what"), 2),
        (ConfigError([Fault("http.port", "must be a whole number")]), 2),
        (Unavailable("nobody answers"), 3),
        (CouldNotTell("unknown"), 3),
    ],
)
def test_exit_codes(error: GapstreamError, code: int) -> None:
    assert error.exit_code == code


def test_every_error_of_the_module_has_an_exit_code_and_stands_in_its_docstring() -> None:
    for kind in everyone(GapstreamError) - {GapstreamError}:
        if kind.__module__ == stream_app.errors.__name__:
            assert kind.exit_code in (2, 3)
            assert kind.__name__ in (stream_app.errors.__doc__ or "")


def test_a_config_error_has_one_line_per_fault() -> None:
    error = ConfigError([Fault("http.port", "must be a whole number"), Fault("", "gapstream.yaml: no such file")])
    assert str(error) == "http.port: must be a whole number\ngapstream.yaml: no such file"
    assert [fault.path for fault in error.faults] == ["http.port", ""]
