"""The alert events as others read them: one by one, without repeats, and folded into what is open now.

``subscribe`` reads the topic ``<app.id>.alerts``; ``Fold`` turns events into the set of open gaps, the same that
``gapstream gaps`` lists. Events that came another way (a webhook, a copy of the topic) can be folded too: ``decode`` them.
"""

from __future__ import annotations

from stream_app.alerts.event import AlertEvent, EventError, decode
from stream_app.alerts.fold import Conflict, Fold, Hole
from stream_app.alerts.subscribe import subscribe

__all__ = ["AlertEvent", "Conflict", "EventError", "Fold", "Hole", "decode", "subscribe"]
