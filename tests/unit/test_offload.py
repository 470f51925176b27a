"""The policy as a table: what was set, what happened before, and what is then said of the window in doubt."""

import tracemalloc

import pytest

from agent.core.offload import Breaker, Doubt, Outcome, Policy, Reason
from agent.core.settings import CloudSettings

S = 1_000_000_000
MS = 1_000_000
DAY = 24 * 3600

SURE = Doubt("a", 0.99, known=True, waited_ns=0)
UNSURE = SURE._replace(confidence=0.79)
NEW = SURE._replace(known=False)
LATE = SURE._replace(waited_ns=501 * MS)

AWAY = {"connected": False}
SLOW = {"expected_ns": 301 * MS}
IN_TIME = {"expected_ns": 300 * MS}

LOW = {"when": "low-confidence"}
TWO_FAILURES = {**LOW, "failures": 2}
BAD = Outcome.TIMED_OUT
PROBE_FAILED = [(0, BAD), (1, BAD), (31, BAD)]


def after(settings, history):
    """A policy with a history of (second, outcome): of a request that was asked then, None while it is awaited."""
    policy = Policy(CloudSettings(**settings))
    for t, outcome in history:
        assert policy.consider(int(t * S), UNSURE, 1000, connected=True) is None
        if outcome:
            policy.settled(int(t * S), outcome)
    return policy


@pytest.mark.parametrize(
    ("settings", "doubt", "doubtful"),
    [
        ({}, UNSURE, False),
        ({"when": "off"}, NEW, False),
        ({"when": "always"}, SURE, True),
        (LOW, UNSURE, True),
        (LOW, SURE._replace(confidence=0.8), False),
        (LOW, NEW, False),
        (LOW, LATE, False),
        ({**LOW, "confidence": 0.5}, UNSURE, False),
        ({"when": "unknown"}, NEW, True),
        ({"when": "unknown"}, UNSURE, False),
        ({"when": "overload"}, LATE, True),
        ({"when": "overload"}, SURE._replace(waited_ns=500 * MS), False),
        ({"when": "overload unknown"}, NEW, True),
        ({"when": "overload unknown"}, LATE, True),
        ({"when": "overload unknown"}, UNSURE, False),
    ],
)
def test_what_gives_a_reason_for_doubt(settings, doubt, doubtful):
    assert Policy(CloudSettings(**settings)).doubtful(doubt) is doubtful


VERDICTS = [
    # the link
    (LOW, [], 0, "a", AWAY, Reason.LINK_AWAY),
    (LOW, [], 0, "a", IN_TIME, None),
    (LOW, [(0, Outcome.ANSWERED)], 1, "a", IN_TIME, None),
    (LOW, [], 0, "a", SLOW, None),
    (LOW, [(0, BAD)], 1, "a", SLOW, Reason.LINK_SLOW),
    (LOW, [(0, None)], 1, "a", SLOW, Reason.LINK_SLOW),
    (LOW, [(0, Outcome.NOT_SENT)], 29, "a", SLOW, Reason.LINK_SLOW),
    (LOW, [(0, BAD)], 29, "a", SLOW, Reason.LINK_SLOW),
    (LOW, [(0, BAD)], 30, "a", SLOW, None),
    (LOW, [(0, BAD), (30, BAD)], 31, "a", SLOW, Reason.LINK_SLOW),
    # what was answered in time says more than what is expected
    (LOW, [(0, BAD), (30, Outcome.ANSWERED)], 31, "a", SLOW, None),
    (LOW, [(0, Outcome.ANSWERED), (1, Outcome.ABANDONED)], 2, "a", SLOW, None),
    (LOW, [(0, Outcome.ANSWERED), (1, BAD)], 2, "a", SLOW, Reason.LINK_SLOW),
    # budgets of 24 hours, which begin with the first request
    ({**LOW, "requests_per_day": 2}, [(9, None)], 10, "a", {}, None),
    ({**LOW, "requests_per_day": 2}, [(9, None), (10, None)], 11, "a", {}, Reason.REQUEST_BUDGET),
    ({**LOW, "requests_per_day": 2}, [(9, None), (10, None)], 8 + DAY, "b", {}, Reason.REQUEST_BUDGET),
    ({**LOW, "requests_per_day": 2}, [(9, None), (10, None)], 9 + DAY, "a", {}, None),
    ({**LOW, "requests_per_day": 2}, [(9, None), (2 * DAY, None)], 3 * DAY - 1, "a", {}, None),
    ({**LOW, "mb_per_day": 0.1}, [(i * 9, None) for i in range(99)], 900, "a", {}, None),
    ({**LOW, "mb_per_day": 0.1}, [(i * 9, None) for i in range(100)], 900, "a", {}, Reason.BYTE_BUDGET),
    ({**LOW, "mb_per_day": 0.1}, [(i * 9, None) for i in range(100)], DAY, "a", {}, None),
    ({**LOW, "mb_per_day": 0.1}, [*((i * 9, None) for i in range(100)), (DAY, None)], DAY + 9, "a", {}, None),
    # a device's rate: a minute's worth at once, then one after the other
    ({**LOW, "per_device_per_minute": 3}, [(0, None)] * 2, 0, "a", {}, None),
    ({**LOW, "per_device_per_minute": 3}, [(0, None)] * 3, 0, "a", {}, Reason.DEVICE_RATE),
    ({**LOW, "per_device_per_minute": 3}, [(0, None)] * 3, 19.9, "a", {}, Reason.DEVICE_RATE),
    ({**LOW, "per_device_per_minute": 3}, [(0, None)] * 3, 20, "a", {}, None),
    ({**LOW, "per_device_per_minute": 3}, [(0, None)] * 3, 0, "b", {}, None),
    ({**LOW, "per_device_per_minute": 7}, [(0, None)] * 6, 0, "a", {}, None),
    # the breaker: only failures in a row open it
    (TWO_FAILURES, [(0, BAD)], 1, "a", {}, None),
    (TWO_FAILURES, [(0, BAD), (1, BAD)], 2, "a", {}, Reason.BREAKER_OPEN),
    (TWO_FAILURES, [(0, Outcome.LATE), (1, Outcome.REFUSED)], 2, "a", {}, Reason.BREAKER_OPEN),
    (TWO_FAILURES, [(0, Outcome.GARBLED), (1, BAD)], 2, "a", {}, Reason.BREAKER_OPEN),
    (TWO_FAILURES, [(0, BAD), (1, Outcome.ANSWERED), (2, BAD)], 3, "a", {}, None),
    (TWO_FAILURES, [(0, BAD), (1, Outcome.NOT_SENT), (2, Outcome.ABANDONED)], 3, "a", {}, None),
    (TWO_FAILURES, [(0, BAD), (1, Outcome.NOT_SENT), (2, BAD)], 3, "a", {}, Reason.BREAKER_OPEN),
    (TWO_FAILURES, [(0, BAD), (1, BAD)], 2, "a", AWAY, Reason.LINK_AWAY),
    (TWO_FAILURES, [(0, BAD), (1, BAD)], 30.9, "a", {}, Reason.BREAKER_OPEN),
    # it lets one probe through, for the whole board
    (TWO_FAILURES, [(0, BAD), (1, BAD)], 31, "a", {}, None),
    (TWO_FAILURES, [(0, BAD), (1, BAD)], 31, "a", SLOW, None),
    (TWO_FAILURES, [(0, BAD), (1, BAD), (31, None)], 32, "b", {}, Reason.BREAKER_OPEN),
    (TWO_FAILURES, [(0, BAD), (1, BAD), (31, Outcome.ANSWERED)], 31, "b", {}, None),
    (TWO_FAILURES, [(0, BAD), (1, BAD), (31, Outcome.ABANDONED)], 31, "a", {}, None),
    (TWO_FAILURES, [(0, BAD), (1, BAD), (31, Outcome.NOT_SENT)], 31, "a", {}, None),
    # and waits for twice the time after each that fails
    (TWO_FAILURES, PROBE_FAILED, 90.9, "a", {}, Reason.BREAKER_OPEN),
    (TWO_FAILURES, PROBE_FAILED, 91, "a", {}, None),
    (TWO_FAILURES, [*PROBE_FAILED, (91, BAD)], 210.9, "a", {}, Reason.BREAKER_OPEN),
    (TWO_FAILURES, [*PROBE_FAILED, (91, BAD)], 211, "a", {}, None),
    # until one has been answered
    (TWO_FAILURES, [*PROBE_FAILED, (91, Outcome.ANSWERED), (92, BAD)], 93, "a", {}, None),
    (TWO_FAILURES, [*PROBE_FAILED, (91, Outcome.ANSWERED), (92, BAD), (93, BAD)], 123, "a", {}, None),
]


@pytest.mark.parametrize(("settings", "history", "t", "device", "link", "verdict"), VERDICTS)
def test_a_window_in_doubt_is_asked_or_it_is_said_why_not(settings, history, t, device, link, verdict):
    policy, doubt = after(settings, history), UNSURE._replace(device=device)

    assert policy.consider(int(t * S), doubt, 1000, **{"connected": True, **link}) == verdict


def test_every_reason_that_users_read_is_given():
    assert {verdict for *_, verdict in VERDICTS} == {None, *Reason}


def test_nothing_waits_longer_than_sixteen_times_for_a_probe():
    policy, t, waits = after(TWO_FAILURES, [(0, BAD), (0, BAD)]), 0, []
    for _ in range(7):
        asked = next(s for s in range(t, t + 1000) if policy.consider(s * S, UNSURE, 1, connected=True) is None)
        waits.append(asked - t)
        t = asked
        policy.settled(t * S, BAD)

    assert waits == [30, 60, 120, 240, 480, 480, 480]


def test_the_state_of_the_breaker_is_that_of_its_header():
    policy = Policy(CloudSettings(**TWO_FAILURES))
    states = []
    for t, outcome in [(0, BAD), (1, BAD), (31, BAD), (91, Outcome.ABANDONED), (91, Outcome.ANSWERED)]:
        before = policy.state(t * S)
        assert policy.consider(t * S, UNSURE, 1, connected=True) is None
        asked = policy.state(t * S)
        policy.settled(t * S, outcome)
        states.append((before, asked, policy.state(t * S)))

    assert states == [
        (Breaker.CLOSED, Breaker.CLOSED, Breaker.CLOSED),
        (Breaker.CLOSED, Breaker.CLOSED, Breaker.OPEN),
        (Breaker.HALF_OPEN, Breaker.HALF_OPEN, Breaker.OPEN),
        (Breaker.HALF_OPEN, Breaker.HALF_OPEN, Breaker.HALF_OPEN),
        (Breaker.HALF_OPEN, Breaker.HALF_OPEN, Breaker.CLOSED),
    ]


def test_a_breaker_is_open_for_its_time_and_not_until_something_is_asked():
    policy = after(TWO_FAILURES, [(0, BAD), (1, BAD)])

    assert policy.state(31 * S - 1) is Breaker.OPEN
    assert policy.state(31 * S) is Breaker.HALF_OPEN


def test_what_was_asked_before_the_breaker_opened_is_no_probe():
    policy = Policy(CloudSettings(**TWO_FAILURES))
    for _ in range(4):
        assert policy.consider(0, UNSURE, 1, connected=True) is None
    policy.settled(1 * S, BAD)
    policy.settled(1 * S, BAD)
    policy.settled(2 * S, Outcome.ANSWERED)

    assert policy.state(2 * S) is Breaker.OPEN
    # One of them is not settled, and could be taken for the probe.
    assert policy.consider(31 * S, UNSURE, 1, connected=True) is Reason.BREAKER_OPEN
    policy.settled(31 * S, BAD)
    assert policy.consider(31 * S, UNSURE, 1, connected=True) is None


def test_what_is_refused_costs_nothing():
    policy = Policy(CloudSettings(when="low-confidence", requests_per_day=1))
    for t in range(100):
        policy.consider(t * S, UNSURE, 1000, connected=False)
        policy.consider(t * S, UNSURE, 20_000_000, connected=True)

    assert policy.consider(100 * S, UNSURE, 1000, connected=True) is None


def test_devices_that_come_and_go_are_forgotten():
    policy = Policy(CloudSettings(when="always", requests_per_day=1_000_000))
    tracemalloc.start()
    try:
        for t in range(10_000):
            assert policy.consider(t * S, SURE._replace(device=f"d{t}"), 1, connected=True) is None
            policy.settled(t * S, Outcome.ANSWERED)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 300_000
