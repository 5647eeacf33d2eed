"""The witness: a process that knows neither seed nor plan, reads the alerts topic, and says what it found there.

Run as ``python -m stream_app.demo.detector BOOTSTRAP APP_ID``. Says on stdout ``{"ready":true}``, and for each event that shows
something ``{"seen":[FAULT, ...],"at":SECONDS}``. To the line ``report N`` on stdin it answers ``{"report":N,"detected":[FAULT,
...],"trouble":TEXT or null}``: all faults as of now. The end of stdin ends it.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from stream_app.alerts import subscribe
from stream_app.demo.broker import SILENT
from stream_app.demo.faults import listed
from stream_app.demo.lines import Outlet, listen
from stream_app.demo.sightings import Sightings


def run(bootstrap: str, app_id: str) -> None:
    """For ever."""
    outlet, lock, sightings = Outlet(), threading.Lock(), Sightings()

    def answer(line: str) -> None:
        with lock:
            faults, trouble = sightings.faults(), sightings.trouble
        outlet.say(report=int(line.removeprefix("report ")), detected=listed(faults), trouble=trouble)

    listen(answer, lambda: os._exit(0))  # the main thread waits inside the client
    outlet.say(ready=True)
    kafka = {"bootstrap.servers": bootstrap, "log_level": SILENT}
    for event in subscribe(kafka, app_id):
        with lock:
            seen = sightings.note(event)
        if seen:
            outlet.say(seen=listed(seen), at=time.time())


if __name__ == "__main__":
    run(*sys.argv[1:])
