"""What holds for the policy whatever happens, in whatever order."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.offload import Breaker, Doubt, Outcome, Policy
from agent.core.settings import CloudSettings

S = 1_000_000_000
DAY_NS = 24 * 3600 * S

EVENT = st.tuples(
    st.sampled_from([0, 0, 0, 1, S // 7, S, 13 * S, 30 * S, 700 * S, DAY_NS // 3]),
    st.one_of(
        st.sampled_from(Outcome),
        st.tuples(st.sampled_from("abc"), st.integers(0, 60_000), st.booleans(), st.sampled_from([None, 0, S])),
    ),
)


def doubt_of(device):
    return Doubt(device, 0.0, known=True, waited_ns=0)


@given(
    st.lists(EVENT, max_size=200),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3 * DAY_NS),
)
@settings(deadline=None, max_examples=300)
def test_budgets_hold_and_the_breaker_lets_one_probe_through_at_a_time(events, requests, rate, failures, now_ns):
    limits = CloudSettings(
        when="always", requests_per_day=requests, mb_per_day=0.1, per_device_per_minute=rate, failures=failures
    )
    policy, on_their_way, days, by_device = Policy(limits), deque(), [], {}
    for step_ns, event in events:
        now_ns += step_ns
        if isinstance(event, Outcome):
            if on_their_way:
                on_their_way.popleft()
                policy.settled(now_ns, event)
            continue
        device, n_bytes, connected, expected_ns = event
        before = policy.state(now_ns)
        if policy.consider(now_ns, doubt_of(device), n_bytes, connected=connected, expected_ns=expected_ns) is not None:
            assert policy.state(now_ns) is before
            continue
        assert connected
        assert before is Breaker.CLOSED or not on_their_way
        assert before is not Breaker.OPEN
        on_their_way.append(now_ns)
        if not days or now_ns - days[-1][0] >= DAY_NS:
            days.append([now_ns, 0, 0])
        days[-1][1] += 1
        days[-1][2] += n_bytes
        by_device.setdefault(device, []).append(now_ns)

    assert all(n <= requests and n_bytes <= 100_000 for _, n, n_bytes in days)
    for asked in by_device.values():
        for i, first in enumerate(asked):
            assert sum(t - first < 60 * S for t in asked[i:]) <= 2 * rate

    # Whatever happened: a day later, all settled, the board asks again.
    while on_their_way:
        on_their_way.popleft()
        policy.settled(now_ns, Outcome.TIMED_OUT)
    assert policy.consider(now_ns + DAY_NS, doubt_of("a"), 1, connected=True) is None


@given(
    st.sampled_from(["low-confidence", "unknown", "overload", "overload unknown low-confidence"]),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 10 * S),
)
def test_a_window_is_doubtful_if_one_of_the_reasons_says_so(when, confidence, known, waited_ns):
    doubt = Doubt("a", confidence, known, waited_ns)

    def doubtful(reasons):
        return Policy(CloudSettings(when=reasons)).doubtful(doubt)

    assert doubtful(when) == any(doubtful(reason) for reason in when.split())
    assert doubtful("always")
    assert not doubtful("off")
