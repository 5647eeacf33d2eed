from __future__ import annotations

import hashlib

import pytest

from stream_app.config.model import Http
from stream_app.web.api import Api
from stream_app.web.auth import Scope, Tokens, bearer, host_is_local, same_origin
from tests.web.kit import Token, Worker


def test_a_token_is_found_by_itself_or_by_its_digest() -> None:
    digest = hashlib.sha256(b"two").hexdigest()
    tokens = Tokens([Token("a", "one", "write"), Token("b", token_sha256=digest, topics=["orders"], sinks=["billing"])])
    one, two = tokens.find("one"), tokens.find("two")
    assert one is not None
    assert two is not None
    assert (one.name, one.scope, one.limited) == ("a", Scope.WRITE, False)
    assert (two.name, two.scope, two.limited) == ("b", Scope.READ, True)
    assert two.may_see("orders", "billing")
    assert not two.may_see("orders", "log")
    assert not two.may_see("payments", "billing")
    assert [tokens.find(text) for text in ("", "on", "one ", "ONE", digest, "\udcff")] == [None] * 6


def test_the_section_of_the_configuration_is_understood(worker: Worker) -> None:
    digest = hashlib.sha256(b"two").hexdigest()
    http = Http.model_validate(
        {"tokens": [{"name": "a", "token": "one", "scope": "observe"}, {"name": "b", "token_sha256": digest, "topics": ["orders"]}]}
    )
    tokens = Tokens(Api(worker, http).http.tokens)
    one, two = tokens.find("one"), tokens.find("two")
    assert one is not None
    assert two is not None
    assert (one.scope, one.limited, two.scope, two.topics) == (Scope.OBSERVE, False, Scope.READ, frozenset({"orders"}))
    assert not Tokens(Http().tokens)


def test_no_tokens_is_false_and_a_token_without_text_is_an_error() -> None:
    assert not Tokens([])
    for empty in (None, ""):
        with pytest.raises(ValueError, match="'a' has neither"):
            Tokens([Token("a", empty)])


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("Bearer ", None), ("Bearer", None), ("", None), (None, None)],
)
def test_bearer(header: str | None, token: str | None) -> None:
    assert bearer(header) == token


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:6066", "127.0.0.1:1", "[::1]:6066", "[::1]", "localhost.", "127.0.0.9:80", None])
def test_hosts_of_this_machine(host: str | None) -> None:
    assert host_is_local(host, "127.0.0.9")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:6066", "127.0.0.1.evil.example", "", "[::2]", "10.0.0.1:6066"])
def test_hosts_of_others(host: str) -> None:
    assert not host_is_local(host, "127.0.0.1")


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        (None, "a:6066", True),
        (None, None, True),
        ("http://a:6066", "A:6066", True),
        ("https://a", "a:443", True),
        ("https://a:443", "a", True),
        ("http://a:6067", "a:6066", False),
        ("http://a:443", "a", False),
        ("http://b", "a", False),
        ("null", "a", False),
        ("", "a", False),
        ("http://a", None, False),
    ],
)
def test_origins(origin: str | None, host: str | None, same: bool) -> None:
    assert same_origin(origin, host) is same
