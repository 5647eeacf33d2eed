"""Types of single settings: what a file may hold there, and how it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, SecretStr, model_validator

from stream_app.web.times import parse_time

MASK = "***"
NAME_MAX = 249
"""Characters of a topic's name (org.apache.kafka.common.internals.Topic)."""
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{NAME_MAX}}}")
_SECRET_WORD = re.compile(r"token|secret|passw|api.?key|credential|signature", re.IGNORECASE)
FLOORS = ("first", "earliest", "latest")


class Section(BaseModel):
    """A part of the file: unknown keys are faults, nothing changes after loading, an empty part holds the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """As the file would have it, without secrets."""
        yield from self.model_dump(mode="json", by_alias=True).items()

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return {} if value is None else value


def legal_name(text: str) -> bool:
    """Whether Kafka takes it as the name of a topic, group or static member."""
    return _NAME.fullmatch(text) is not None and text not in (".", "..")


def read_name(text: str) -> str:
    """A name that Kafka takes.

    Raises:
        ValueError: it is none.
    """
    if not legal_name(text):
        msg = f"{text!r} is not a name: letters, digits, dot, underscore and hyphen, {NAME_MAX} at most"
        raise ValueError(msg)
    return text


def read_templated_name(text: str) -> str:
    """A name in which ``{topic}`` may stand."""
    read_name(text.replace("{topic}", "topic"))
    return text


def _read_group(text: str) -> str:
    """Kafka takes any text for the name of a group."""
    if not 0 < len(text) <= NAME_MAX or not text.isprintable():
        msg = f"{text!r} is no name of a group: 1 to {NAME_MAX} characters that can be printed"
        raise ValueError(msg)
    return text


def is_pattern(text: str) -> bool:
    """Whether it is written as ``/regular expression/``."""
    return len(text) > 2 and text.startswith("/") and text.endswith("/")


def compile_pattern(text: str) -> re.Pattern[str]:
    """The expression between the slashes; the whole name has to match it.

    Raises:
        ValueError: it is not a regular expression.
    """
    try:
        return re.compile(text[1:-1])
    except re.error as error:
        msg = f"{text!r} is not a regular expression: {error}"
        raise ValueError(msg) from error


def read_name_or_pattern(text: str) -> str:
    """A name, or ``/regular expression/``."""
    if is_pattern(text):
        compile_pattern(text)
        return text
    return read_name(text)


def matches(wanted: str, name: str) -> bool:
    """Whether ``name`` is ``wanted``, or is matched whole by it where it is a pattern."""
    return compile_pattern(wanted).fullmatch(name) is not None if is_pattern(wanted) else wanted == name


def read_url(text: str) -> str:
    """An address that begins with http:// or https:// and names a host.

    Raises:
        ValueError: it does not.
    """
    complaint = "must be an address such as https://host:port"
    try:
        parts = urlsplit(text)
        named = parts.hostname is not None and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ValueError(complaint) from error
    if parts.scheme not in ("http", "https") or not named:
        raise ValueError(complaint)
    return text


def mask_url(text: str | None) -> str | None:
    """The address with user, password and the like of tokens in its query left out."""
    if text is None:
        return None
    parts = urlsplit(text)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{MASK}@{host}" if "@" in parts.netloc else host
    query = parts.query
    if _SECRET_WORD.search(query):
        query = urlencode([(key, MASK if _SECRET_WORD.search(key) else value) for key, value in parse_qsl(query)], safe="*")
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def mask_settings(settings: dict[str, str]) -> dict[str, str]:
    """Settings with what looks like a secret left out."""
    return {key: MASK if _SECRET_WORD.search(key) else value for key, value in settings.items()}


def _mask(secret: SecretStr | None) -> str | None:
    if secret is None:
        return None
    return MASK if secret.get_secret_value() else ""


def _not_empty(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value():
        msg = "is empty"
        raise ValueError(msg)
    return secret


def _read_floor(text: str) -> str:
    if text not in FLOORS:
        try:
            parse_time(text, 0)
        except ValueError as error:
            msg = f"{text!r} is none of first, earliest, latest or a time such as 2026-11-23T10:00:00Z, now, -2h, @milliseconds"
            raise ValueError(msg) from error
    return text


def _read_texts(value: Any) -> Any:
    """Settings of another system may be written as numbers and booleans; they are sent as text."""
    if not isinstance(value, dict):
        return value
    return {key: _text_of(item) for key, item in value.items()}


def _read_properties(value: Any) -> Any:
    """A property without a value is empty, which its check says."""
    if not isinstance(value, dict):
        return {} if value is None else value
    return {key: "" if item is None else _text_of(item) for key, item in value.items()}


def _text_of(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _filled(text: str) -> str:
    if not text.strip():
        msg = "is empty"
        raise ValueError(msg)
    return text


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        msg = "must be a whole number"
        raise ValueError(msg)  # Python would take true for 1
    return value


Whole = Annotated[int, BeforeValidator(_no_flag)]
"""A whole number."""
Text = Annotated[str, AfterValidator(_filled)]
"""Text that is not empty."""
Name = Annotated[str, AfterValidator(read_name)]
GroupName = Annotated[str, AfterValidator(_read_group)]
"""A consumer group; ``{topic}`` may stand in it."""
TemplatedName = Annotated[str, AfterValidator(read_templated_name)]
NameOrPattern = Annotated[str, AfterValidator(read_name_or_pattern)]
Url = Annotated[str, AfterValidator(read_url), PlainSerializer(mask_url, return_type=str)]
Secret = Annotated[SecretStr, AfterValidator(_not_empty), PlainSerializer(_mask, return_type=str)]
SecretStrOrEmpty = Annotated[SecretStr, PlainSerializer(_mask, return_type=str)]
SecretUrl = Annotated[
    SecretStr, AfterValidator(lambda url: SecretStr(read_url(url.get_secret_value()))), PlainSerializer(_mask, return_type=str)
]
"""An address that whoever knows it can use."""
Secrets = Annotated[tuple[Secret, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
"""One secret or several."""
Floor = Annotated[str, AfterValidator(_read_floor)]
"""``first``, ``earliest``, ``latest``, or a TIME, which is resolved when the floor is."""
Settings = Annotated[
    dict[str, str],
    BeforeValidator(_read_texts, json_schema_input_type=dict[str, str | int | float | bool]),
    PlainSerializer(mask_settings, return_type=dict[str, str]),
]
"""Another system's settings."""
Headers = Annotated[dict[str, Secret], BeforeValidator(_read_texts, json_schema_input_type=dict[str, str | int | float | bool])]
"""HTTP headers; their values may be secrets and are never shown."""
Properties = Annotated[dict[str, str], BeforeValidator(_read_properties)]
"""Kafka properties by librdkafka's names."""
Isolation = Literal["read_committed", "read_uncommitted"]
