"""What stands in for a client that is followed, and else is it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class StandIn:
    """What is bound here goes another way; everything else is the client's own: attributes, representation, class."""

    __slots__ = ("__weakref__", "_client")
    _client: Any
    _what: ClassVar[str]
    """Its kind, in words."""

    def __init__(self, client: Any, *ways: tuple[Any, Iterable[str]]) -> None:
        """``ways``: whose methods are called in the client's place, and which."""
        object.__setattr__(self, "_client", client)
        for other, names in ways:
            for name in names:
                object.__setattr__(self, name, getattr(other, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._client, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._client, name)

    def __dir__(self) -> list[str]:
        return dir(self._client)

    def __repr__(self) -> str:
        return f"<gapstream sidecar around {self._client!r}>"

    @property
    def __class__(self) -> type:  # isinstance(x, Consumer) holds, as it did before wrapping
        return type(self._client)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError(f"the class of a wrapped {self._what} can't be changed")
