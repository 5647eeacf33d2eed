"""A Faust application whose acknowledged events are reported.

Faust acknowledges an event when the agents are done with it, and commits offsets that it works out from the acknowledgements:
in releases up to 0.15.3 those can lie above an event that nobody has acknowledged yet, or stay behind for ever. So
acknowledgements are what counts here, not commits; commits only take along what is not reported yet.

Streams tell the sensors of their acknowledgements (the compiled ones tell nobody else), and an event that the application
acknowledges by hand comes to the consumer; each is counted once. Faust is never imported: what is needed of it comes with the
application.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from gapstream_sidecar import lifetime
from gapstream_sidecar.aio import AioFollower
from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.follower import Terms
from gapstream_sidecar.messages import origin_of
from gapstream_sidecar.reporter import Reporter

NEEDED = ("on_partitions_assigned", "on_partitions_revoked", "sensors", "main")
"""What an application is known by: attributes that are there before it starts."""
_MARK = "_gapstream_counted"
"""Attribute of a message."""
LOOK_S = 2.0
"""The longest wait for the thread of Faust's consumer to look at its assignment."""


class _Committer:
    """Faust's own aiokafka consumer, with the ``commit`` that it had."""

    def __init__(self, consumer: Any) -> None:
        self.consumer = consumer
        self.commit = consumer.commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.consumer, name)


class Attachment:
    """Counts what one application acknowledges."""

    def __init__(self, app: Any, reporter: Reporter, complaints: Complaints, terms: Terms) -> None:
        self._app = app
        self._reporter = reporter
        self._complaints = complaints
        self._terms = terms
        self._lock = threading.Lock()
        self._follower: AioFollower | None = None
        if not terms.explicit:
            # Not a sensor of its own: that would be a service, and those bind themselves to an event loop that is not there yet.
            self._message_out = app.sensors.on_message_out
            app.sensors.on_message_out = self._on_message_out
        app.on_partitions_assigned.connect(self._assigned)
        app.on_partitions_revoked.connect(self._revoked)
        lifetime.forks(self)

    def after_fork_in_child(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    async def _assigned(self, _app: Any, _assigned: Any, **_: Any) -> None:
        """Before the first event of a new assignment: consumers come and go with restarts."""
        try:
            self._hook()
            await self._look()
        except Exception as error:
            self._reporter.fault("following Faust's assignment", error)

    async def _revoked(self, _app: Any, revoked: Any, **_: Any) -> None:
        """Send what there is to say, so that the next owner has less to say."""
        try:
            keys = [(one.topic, one.partition) for one in revoked]
            awaited = self._reporter.hurry(keys, keys)
            if awaited:
                await asyncio.to_thread(self._reporter.wait, awaited, self._terms.observe_before_commit)
        except Exception as error:
            self._reporter.fault("following Faust's assignment", error)

    # ----------------------------------------------------------------------------------------------------- hooks

    def _hook(self) -> None:
        consumer = self._app.consumer
        if not (self._terms.explicit or "ack" in vars(consumer)):
            acknowledge = consumer.ack
            consumer.ack = lambda message: self._acknowledge(acknowledge, message)
        inside = getattr(getattr(consumer, "_thread", None), "_consumer", None)
        if inside is None:
            self._complaints.say("faust", "gapstream sidecar: Faust's commits can't be followed: they take nothing along")
        elif "commit" not in vars(inside):
            terms = Terms(True, self._terms.observe_before_commit, self._terms.max_bytes)
            self._follower = AioFollower(_Committer(inside), self._reporter, self._complaints, terms, in_group=True)
            inside.commit = self._follower.commit
        if getattr(self._app, "in_transaction", False):
            self._complaints.say(
                "faust",
                "gapstream sidecar: with exactly_once an event counts when it is acknowledged, and again where its transaction was "
                "aborted and it is acknowledged once more",
            )

    async def _look(self) -> None:
        """Have the consumer's own thread look at its assignment, and at what the last owners' commits carried."""
        if self._follower is not None:
            looking = asyncio.run_coroutine_threadsafe(self._follower.look(), self._app.consumer._thread.thread_loop)
            await asyncio.wait_for(asyncio.wrap_future(looking), LOOK_S)

    def _acknowledge(self, acknowledge: Any, message: Any) -> Any:
        """As ``Consumer.ack``; the first acknowledgement of an event is its receipt."""
        open_before = not message.acked
        answer = acknowledge(message)
        if open_before and message.acked:
            self._acknowledged(message)
        return answer

    def _on_message_out(self, partition: Any, offset: int, message: Any) -> None:
        """As the sensors' ``on_message_out``."""
        self._message_out(partition, offset, message)
        self._acknowledged(message)

    def _acknowledged(self, message: Any) -> None:
        """All streams are done with the message."""
        try:
            with self._lock:
                counted = getattr(message, _MARK, False)
                setattr(message, _MARK, True)
            if not counted and self._app.topics.acks_enabled_for(message.topic):  # not those of tables' changelogs
                self._received(message)
        except Exception as error:
            self._reporter.fault("following an acknowledgement", error)

    def _received(self, message: Any) -> None:
        offset = message.offset
        key = (message.topic, message.partition)
        self._reporter.add(key, [(offset, offset + 1)])
        headers = message.headers
        if headers:
            origin = origin_of(list(headers.items()) if isinstance(headers, Mapping) else headers)
            if origin is not None:
                self._reporter.add(origin[0], [(origin[1], origin[1] + 1)], via=key)
