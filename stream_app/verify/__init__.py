"""A topic and a table compared once, record by record, without a worker and without state.

:mod:`part` reads the headers of that part of the log, :mod:`run` asks the table and looks again at what it lacks,
:mod:`compare` (pure) says what is missing, doubled and explained, :mod:`report` (pure) makes JSON of it.
"""

from __future__ import annotations

from stream_app.verify.compare import Difference, Verdict
from stream_app.verify.run import Edge, Question, Settings, verify

__all__ = ["Difference", "Edge", "Question", "Settings", "Verdict", "verify"]
