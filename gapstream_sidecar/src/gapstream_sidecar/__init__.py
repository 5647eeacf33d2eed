"""Reports to gapstream which Kafka records a consumer has received.

::

    from gapstream_sidecar import Sidecar

    sidecar = Sidecar({"bootstrap.servers": "broker:9092"}, sink="billing")
    consumer = sidecar.wrap(confluent_kafka.Consumer(conf))

Then the application polls and commits as before.
"""

from __future__ import annotations

from gapstream_sidecar.errors import ConfigurationError, SidecarError, UnsupportedError
from gapstream_sidecar.sidecar import Sidecar
from gapstream_sidecar.stats import Stats

__all__ = ["ConfigurationError", "Sidecar", "SidecarError", "Stats", "UnsupportedError"]
