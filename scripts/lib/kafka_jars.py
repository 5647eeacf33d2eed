"""Kafka's own jars and a Java to run them, without a Kafka installation.

Standard library only: it runs before ``scripts/setup`` has made an environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

KAFKA_VERSION = "4.1.1"
JAVA_MIN = 17
"""Kafka 4 brokers need Java 17 (KIP-1013)."""

# slf4j-simple writes the broker's log to stderr, which becomes its log file. Kafka brings log4j, but no binding of
# slf4j to it; without any binding a broker that fails to start says nothing at all.
_POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>gapstream</groupId>
  <artifactId>kafka-jars</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


class KafkaError(Exception):
    """Kafka could not be fetched, started, reached or stopped; the text is one sentence that says what to do."""


def java() -> str:
    """Path of a Java that can run Kafka: ``$JAVA_HOME/bin/java`` where that is set, else ``java`` on ``PATH``.

    Raises KafkaError when there is none, or only one that is too old.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    remedy = f"install Java {JAVA_MIN} or newer (Debian, Ubuntu: apt install openjdk-17-jre-headless) or point JAVA_HOME at one."
    if found is None:
        raise KafkaError(f"Kafka needs Java and there is none {f'in JAVA_HOME={home}' if home else 'on PATH'}: {remedy}")
    done = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    if done.returncode != 0 or version is None:
        raise KafkaError(f"{found} does not run: {remedy}")
    if int(version[1]) < JAVA_MIN:
        raise KafkaError(f"{found} is Java {version[1]}, too old for Kafka {KAFKA_VERSION}: {remedy}")
    return found


def jars() -> Path:
    """Folder with the jars of Kafka, its tools and all that they need; fetched with Maven the first time (43 MB).

    Safe to call from several processes at once: one fetches, the others wait, and a half-fetched folder is never seen.
    Raises KafkaError when Maven is missing or fails.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gapstream"
    libs = cache / f"kafka-{KAFKA_VERSION}" / "libs"
    if libs.is_dir():
        return libs
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"kafka-{KAFKA_VERSION}.lock"):
        if not libs.is_dir():
            _fetch(libs)
    return libs


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path``; waits for whoever holds it. The lock ends with the process, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(libs: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaError("Kafka is fetched with Maven and there is no mvn on PATH: install it (Debian, Ubuntu: apt install maven).")
    java()  # Maven needs it too, and would complain in more than one sentence
    with tempfile.TemporaryDirectory(prefix=f".kafka-{KAFKA_VERSION}-", dir=libs.parent.parent) as folder:
        pom, target = Path(folder) / "pom.xml", Path(folder) / "kafka"
        pom.write_text(_POM)
        command = [maven, "--batch-mode", "--quiet", "-Dstyle.color=never", "--file", str(pom)]
        command += ["dependency:copy-dependencies", f"-DoutputDirectory={target}/libs"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            cause = next((line for line in lines if "ERROR" in line), "no message").replace("[ERROR] ", "")
            raise KafkaError(f"Maven could not fetch Kafka {KAFKA_VERSION}, mend the cause and try again: {cause}")
        shutil.rmtree(libs.parent, ignore_errors=True)  # only a folder without libs can stand here: somebody's half deletion
        target.rename(libs.parent)
