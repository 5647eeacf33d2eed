"""docker-compose.yml and deploy/: what can be known of them without a Docker engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_refers_only_to_what_is_there(name: str) -> None:
    service = SERVICES[name]
    assert ("image" in service) != ("build" in service)
    if "build" in service:
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
    for needed, condition in service.get("depends_on", {}).items():
        if condition["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[needed]
        else:
            assert "restart" not in SERVICES[needed], "what restarts never completes"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_published_on_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


def test_the_worker_gets_every_variable_of_its_configuration() -> None:
    used = set(re.findall(r"\$\{(\w+)\}", (ROOT / "deploy/gapstream.yaml").read_text()))
    assert used
    assert used <= set(SERVICES["gapstream"]["environment"])


def test_the_pipeline_gets_every_variable_that_it_reads() -> None:
    read = set(re.findall(r"environ(?:\.get\(|\[)[\"'](\w+)", (ROOT / "deploy/pipeline.py").read_text()))
    given = set(SERVICES["producer"]["environment"]) | set(SERVICES["consumer"]["environment"])
    assert read == given


def test_the_watched_topic_is_the_one_that_is_made_and_written() -> None:
    topics = yaml.safe_load((ROOT / "deploy/gapstream.yaml").read_text())["topics"]
    assert list(topics) == ["orders"]
    assert "--topic=orders" in SERVICES["topics"]["command"]
    pipeline = (ROOT / "deploy/pipeline.py").read_text()
    assert 'TOPIC = "orders"' in pipeline
    assert f'sink="{next(name for name, sink in topics["orders"]["sinks"].items() if sink["type"] == "consumer")}"' in pipeline


def test_the_image_holds_what_is_copied_into_it() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in (ROOT / "deploy/Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert copied == kept
    assert all((ROOT / path).exists() for path in copied)
