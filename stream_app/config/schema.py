"""The JSON Schema of ``gapstream.yaml``, for editors."""

from __future__ import annotations

from typing import Any

from stream_app.config.model import Config
from stream_app.kafka.properties import PROPERTIES

_SINKS = ("ConsumerSink", "ClickHouseSink", "TopicSink", "GroupSink")
_FILLED_IN = {"type": "string", "pattern": r"\$\{"}
"""A number or flag that comes from ``${NAME}``."""


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file as it is written, before ``${NAME}`` is filled in."""
    schema = Config.model_json_schema(by_alias=True, mode="validation")
    for name in _SINKS:
        schema["$defs"][name]["required"] = ["type"]  # the rest may come from defaults
    scalar = {"type": ["string", "integer", "boolean"]}
    kafka = {name: {**scalar, "description": one.meaning} for name, one in PROPERTIES.items()}
    schema["properties"]["kafka"] |= {"properties": kafka, "additionalProperties": False}
    found = _loosen(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "gapstream.yaml"}


def _loosen(part: Any) -> Any:
    """Numbers and flags may be ``${NAME}``, and an object may be left empty, which YAML reads as null."""
    if isinstance(part, list):
        return [_loosen(item) for item in part]
    if not isinstance(part, dict):
        return part
    inner = {key: _loosen(value) for key, value in part.items()}
    if inner.get("type") in ("integer", "boolean"):
        outer = {key: inner.pop(key) for key in ("title", "description", "default") if key in inner}
        return {**outer, "anyOf": [inner, _FILLED_IN]}
    if inner.get("type") == "object" and isinstance(inner.get("type"), str):
        inner["type"] = ["object", "null"]
    return inner
