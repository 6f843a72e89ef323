"""Telling subscribers what was committed. Publishing never blocks; who is too slow is dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from threading import Condition, Lock
from typing import Any

log = logging.getLogger(__name__)

# Events a subscriber may be behind: several seconds of the busiest server, some 10 MB at most.
LIMIT = 10_000


def run_id_of(event: Any) -> str | None:
    """The ID of the run that an event is about; None: none."""
    run = getattr(event, "run", None)
    run_id = run.run_id if run is not None else getattr(event, "run_id", None)
    return run_id if isinstance(run_id, str) else None


class Subscription:
    """One subscriber's queue. Made by Feed.subscribe(); to be closed by its owner."""

    def __init__(self, feed: Feed, run_id: str | None, limit: int, wake: Callable[[], None] | None) -> None:
        self.run_id = run_id
        self._feed = feed
        self._limit = limit
        # Called when the queue is no longer empty, or this was dropped: for a loop that waits on a
        # socket, not in get(). On the publisher's thread, so it must be quick and must not block.
        self._wake = wake
        self._filled = Condition(feed._lock)  # _events is no longer empty, or _dropped or _closed was set
        self._events: list[Any] = []
        self._dropped = False
        self._closed = False

    @property
    def dropped(self) -> bool:
        """Whether the queue was full and its events were lost. No more come: load afresh, subscribe anew."""
        return self._dropped

    def get(self, timeout: float | None = 0.0) -> list[Any]:
        """What has been published since the last call, in order.

        Waits up to `timeout` s for the first (None: for ever). Empty: nothing came, or it was dropped
        or closed.
        """
        with self._feed._lock:
            self._filled.wait_for(lambda: self._events or self._dropped or self._closed, timeout)
            events, self._events = self._events, []
            return events

    def close(self) -> None:
        """Get no more. Any thread may call it; a get() that waits returns."""
        self._feed._remove(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _offer_locked(self, events: Sequence[Any]) -> bool:
        """Queue the events, all or none. Returns whether its owner is to be woken."""
        assert self._feed._lock.locked()
        was_empty = not self._events
        if self._events and len(self._events) + len(events) > self._limit:
            # Not where the queue was empty: a large batch is no sign of a slow subscriber. And half a
            # story is worth nothing: its memory is freed at once.
            self._dropped = True
            self._events = []
        else:
            self._events.extend(events)
        self._filled.notify_all()
        return was_empty or self._dropped


class Feed:
    """The subscribers. Any thread may publish, subscribe and close."""

    def __init__(self) -> None:
        self._lock = Lock()  # protects all below and every queue; leaf: take nothing under it
        self._all: dict[Subscription, None] = {}  # a dict, for its order
        self._by_run: dict[str, dict[Subscription, None]] = {}
        self._drops = 0

    def subscribe(
        self, run_id: str | None = None, limit: int = LIMIT, wake: Callable[[], None] | None = None
    ) -> Subscription:
        """A queue of all events from now on, or of one run's. `limit`: events it may be behind."""
        subscription = Subscription(self, run_id, limit, wake)
        with self._lock:
            self._group_locked(run_id)[subscription] = None
        return subscription

    def publish(self, events: Iterable[Any]) -> None:
        """Give the events to whom they concern; all of them are told of the same order. Never blocks."""
        events = list(events)
        if not events:
            return
        woken: list[Subscription] = []
        with self._lock:
            offers = [(subscription, events) for subscription in self._all]
            if self._by_run:
                parts: dict[str, list[Any]] = {}
                for event in events:
                    run_id = run_id_of(event)
                    if run_id in self._by_run:
                        parts.setdefault(run_id, []).append(event)
                offers += [(one, part) for run_id, part in parts.items() for one in self._by_run[run_id]]
            for subscription, part in offers:
                if subscription._offer_locked(part):
                    woken.append(subscription)
                if subscription._dropped:
                    self._drops += 1
                    self._remove_locked(subscription)
        for subscription in woken:
            if subscription._wake is not None:
                try:
                    subscription._wake()
                except Exception:
                    log.exception("a subscriber could not be woken")
                    subscription.close()

    def stats(self) -> dict[str, int]:
        """How many subscribers there are, and how many were ever dropped."""
        with self._lock:
            number = len(self._all) + sum(len(group) for group in self._by_run.values())
            return {"subscribers": number, "dropped": self._drops}

    def close(self) -> None:
        """Close every subscription, so that each owner's loop ends."""
        with self._lock:
            everyone = [*self._all, *(one for group in self._by_run.values() for one in group)]
        for subscription in everyone:
            subscription.close()

    def _remove(self, subscription: Subscription) -> None:
        with self._lock:
            subscription._closed = True
            subscription._events = []
            subscription._filled.notify_all()
            self._remove_locked(subscription)

    def _group_locked(self, run_id: str | None) -> dict[Subscription, None]:
        return self._all if run_id is None else self._by_run.setdefault(run_id, {})

    def _remove_locked(self, subscription: Subscription) -> None:
        self._group_locked(subscription.run_id).pop(subscription, None)
        if subscription.run_id is not None and not self._by_run[subscription.run_id]:
            del self._by_run[subscription.run_id]
