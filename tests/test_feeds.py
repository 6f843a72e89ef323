"""Subscribers get everything in order, or are told that they did not; the publisher never waits."""

from __future__ import annotations

import threading

from storing import PATIENCE, a_run

from apsislib.feeds import Feed
from apsislib.runs import Drop, Expect, Note, Output, Save
from apsislib.store import Grew


def note(number: int, text: str = "x") -> Note:
    return Note(f"r{number}", 1.0, text)


def test_a_subscriber_gets_what_is_published_from_then_on():
    feed = Feed()
    feed.publish([note(1)])
    with feed.subscribe() as subscription:
        feed.publish([note(2), note(3)])
        feed.publish(iter([note(4)]))
        assert subscription.get() == [note(2), note(3), note(4)]
        assert subscription.get() == subscription.get(timeout=0.01) == []
    feed.publish([note(5)])
    assert subscription.get(timeout=None) == [] and not subscription.dropped
    assert feed.stats() == {"subscribers": 0, "dropped": 0}


def test_a_subscriber_of_a_run_gets_that_runs_events_only():
    feed = Feed()
    one, other, everything = feed.subscribe("r1"), feed.subscribe("r2"), feed.subscribe()
    events = [
        Save(a_run(1)),
        Save(a_run(11)),
        note(1),
        Expect(a_run(2)),
        Output("r1", b"x"),
        Drop("r2"),
        Grew("r1", "output", 5),
        object(),
    ]
    feed.publish(events)
    assert one.get() == [events[0], events[2], events[4], events[6]]
    assert other.get() == [events[3], events[5]]
    assert everything.get() == events
    feed.publish([note(3)])
    assert one.get() == []


def test_a_slow_subscriber_is_dropped_and_the_others_are_not():
    feed = Feed()
    slow, quick = feed.subscribe(limit=10), feed.subscribe(limit=10)
    for number in range(11):
        feed.publish([note(number)])
        assert quick.get() == [note(number)]
    assert slow.dropped and not quick.dropped
    assert slow.get(timeout=None) == []  # and it does not wait for what will never come
    assert feed.stats() == {"subscribers": 1, "dropped": 1}
    slow.close()
    slow.close()


def test_one_batch_larger_than_the_limit_does_not_drop_who_had_kept_up():
    feed = Feed()
    subscription = feed.subscribe(limit=10)
    feed.publish([note(number) for number in range(25)])
    assert len(subscription.get()) == 25 and not subscription.dropped


def test_a_waiting_subscriber_wakes_for_an_event_and_for_the_end():
    feed = Feed()
    subscription = feed.subscribe("r1")
    got: list[list[object]] = []

    def wait() -> None:
        got.append(subscription.get(timeout=None))
        got.append(subscription.get(timeout=None))

    thread = threading.Thread(target=wait)
    thread.start()
    feed.publish([note(2)])
    feed.publish([note(1)])
    while len(got) < 1 and thread.is_alive():
        thread.join(0.01)
    feed.close()
    thread.join(PATIENCE)
    assert not thread.is_alive() and got == [[note(1)], []]


def test_a_loop_on_a_socket_is_woken_when_its_queue_fills_and_when_it_is_dropped():
    feed = Feed()
    woken: list[bool] = []
    subscription = feed.subscribe(limit=3, wake=lambda: woken.append(subscription.dropped))
    feed.publish([note(1)])
    feed.publish([note(2)])  # it knows already
    assert woken == [False]
    subscription.get()
    feed.publish([note(3), note(4)])
    feed.publish([note(5), note(6)])
    assert woken == [False, False, True]
    feed.publish([note(7)])
    assert len(woken) == 3


def test_a_subscriber_that_cannot_be_woken_loses_only_itself(caplog):
    feed = Feed()

    def wake() -> None:
        raise OSError("closed")

    feed.subscribe(wake=wake)
    other = feed.subscribe()
    feed.publish([note(1)])
    feed.publish([note(2)])
    assert other.get() == [note(1), note(2)]
    assert feed.stats()["subscribers"] == 1 and "could not be woken" in caplog.text


def test_all_subscribers_see_the_same_order_whoever_publishes():
    feed = Feed()
    subscriptions = [feed.subscribe() for _ in range(3)]

    def publish(number: int) -> None:
        for line in range(200):
            feed.publish([note(number, str(line))])

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stories = [subscription.get() for subscription in subscriptions]
    assert len(stories[0]) == 800 and stories[0] == stories[1] == stories[2]


def test_subscriptions_of_runs_leave_nothing_behind():
    feed = Feed()
    for number in range(100):
        with feed.subscribe(f"r{number}"):
            feed.publish([note(number)])
    assert feed._by_run == {} and feed._all == {}
