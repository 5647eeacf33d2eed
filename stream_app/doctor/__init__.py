"""What is wrong with an installation and how to mend it, asked once, without a worker; nothing is changed by asking.

:mod:`local` looks at this machine, :mod:`cluster` at Kafka, :mod:`tables` at ClickHouse; each says what it found as
:class:`Finding`, and :mod:`run` asks them in turn.
"""

from __future__ import annotations

from stream_app.doctor.finding import Finding, Level, exit_code
from stream_app.doctor.run import examine

__all__ = ["Finding", "Level", "examine", "exit_code"]
