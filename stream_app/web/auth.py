"""Who asks, and what they may see: bearer tokens with scopes, or loopback with a checked Host."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from pydantic import SecretStr

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Scope(IntEnum):
    """What a token allows; each scope holds those below it."""

    READ = 1
    OBSERVE = 2
    WRITE = 3


class TokenConfig(Protocol):
    """One entry of ``http.tokens``."""

    @property
    def name(self) -> str:
        """For logs and for ``by``."""

    @property
    def token(self) -> SecretStr | str | None:
        """The token itself, or None where only its digest is configured."""

    @property
    def token_sha256(self) -> SecretStr | str | None:
        """Its SHA-256 in hexadecimal digits."""

    @property
    def scope(self) -> str:
        """``read``, ``observe`` or ``write``."""

    @property
    def topics(self) -> Sequence[str]:
        """Empty: all."""

    @property
    def sinks(self) -> Sequence[str]:
        """Empty: all."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who sent a request."""

    name: str
    scope: Scope
    topics: frozenset[str] = frozenset()
    """Topics that may be seen; empty: all."""
    sinks: frozenset[str] = frozenset()
    """Sinks that may be seen; empty: all."""

    @property
    def limited(self) -> bool:
        """Whether some topic or sink is hidden from this asker."""
        return bool(self.topics or self.sinks)

    def may_see(self, topic: str, sink: str) -> bool:
        """Whether rows of this topic and sink are shown."""
        return self.may_see_topic(topic) and self.may_see_sink(sink)

    def may_see_topic(self, topic: str) -> bool:
        """Whether the topic may be asked for."""
        return not self.topics or topic in self.topics

    def may_see_sink(self, sink: str) -> bool:
        """Whether the sink may be asked for."""
        return not self.sinks or sink in self.sinks


LOCAL = Asker("local", Scope.WRITE)
"""Anybody on this machine, where no tokens are configured."""
NOBODY = Asker("nobody", Scope.READ, frozenset({""}), frozenset({""}))
"""Whoever asks an open path without a token where tokens are configured; sees no topic and no sink."""


class Tokens:
    """The configured tokens; knows their digests only."""

    def __init__(self, tokens: Sequence[TokenConfig]) -> None:
        self._askers = [(_digest_of(token), _asker(token)) for token in tokens]

    def __bool__(self) -> bool:
        """Whether any token is configured: then one is needed."""
        return bool(self._askers)

    def find(self, presented: str) -> Asker | None:
        """Who holds this token; None: nobody. Takes as long for a near miss as for a far one."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, asker in self._askers:
            if hmac.compare_digest(digest, known):
                found = asker
        return found


def _text(secret: SecretStr | str) -> str:
    return secret.get_secret_value() if isinstance(secret, SecretStr) else secret


def _digest_of(token: TokenConfig) -> bytes:
    if token.token_sha256 is not None:
        return bytes.fromhex(_text(token.token_sha256))
    if not token.token:
        raise ValueError(f"token {token.name!r} has neither token nor token_sha256")
    return hashlib.sha256(_text(token.token).encode()).digest()


def _asker(token: TokenConfig) -> Asker:
    return Asker(token.name, Scope[str(token.scope).upper()], frozenset(token.topics), frozenset(token.sinks))


def bearer(authorization: str | None) -> str | None:
    """The token of an ``Authorization: Bearer`` header (RFC 6750, section 2.1); None if there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def host_name(header: str) -> str:
    """The name in a Host header, without port, brackets and case."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].rstrip(".").lower()


def host_is_local(header: str | None, configured: str) -> bool:
    """Whether a Host header names this machine by a name that only this machine can have.

    A page of a foreign site whose name was made to resolve to 127.0.0.1 (DNS rebinding) sends that site's name. What
    sends no Host at all is no browser.
    """
    return header is None or host_name(header) in LOOPBACK_HOSTS | {configured.strip("[]").lower()}


def same_origin(origin: str | None, host: str | None) -> bool:
    """Whether an Origin header (RFC 6454), where sent, names the host that was asked."""
    if origin is None:
        return True
    scheme, mark, authority = origin.lower().partition("://")
    if not mark or host is None:
        return False
    port = f":{_DEFAULT_PORTS.get(scheme, '')}"
    return authority.removesuffix(port) == host.lower().removesuffix(port)
