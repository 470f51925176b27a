"""A source that goes away comes back: for ever, not too often, and it is said."""

from collections import deque

import pytest
from fakes import FakeClock, ScriptedSource, cut, even_times, signal

from agent.core.backoff import Backoff, BackoffSettings
from agent.errors import InputError, SourceUnavailable
from agent.records import BadFrame, Dropped, GapReason, Loss, SampleBatch
from agent.runtime.supervisor import Reopening

GONE = Dropped("s", 0, GapReason.DISCONNECTED)
BATCH = cut(even_times(1), signal(1), [1])
BAD = [BadFrame("s", Loss.NUMBER, 1)]
AWAY, REFUSED = SourceUnavailable("unplugged"), SourceUnavailable("no such port")


class Outside:
    """Opens sources that were scripted; an exception is what opening raises."""

    def __init__(self, *scripts):
        self.scripts = deque(scripts)
        self.sources = []

    def __call__(self):
        script = self.scripts.popleft()
        if isinstance(script, Exception):
            raise script
        self.sources.append(ScriptedSource(script))
        return self.sources[-1]


def reopening(outside, **settings):
    clock = FakeClock()
    backoff = Backoff(BackoffSettings(**settings), lambda: 1.0)
    return Reopening(outside, backoff, clock, "s"), clock


def test_an_outage_is_one_interruption_and_it_comes_back():
    outside = Outside([BATCH, AWAY], REFUSED, REFUSED, [BATCH])
    source, clock = reopening(outside)
    got = [item for _ in range(60) for item in source.poll(0.1)]
    assert got == [*BATCH, GONE]
    assert source.problem == "no such port"

    while source.reopened == 0:
        got += source.poll(0.1)
    assert got == [*BATCH, GONE, *BATCH]
    assert source.problem is None
    assert source.reopened == 1
    assert outside.sources[0].closed
    assert not outside.sources[1].closed
    # 1 + 2 + 4 seconds, in pieces no longer than a poll may be.
    assert clock.now_ns == pytest.approx(7e9)
    assert max(clock.slept) <= 0.1


def test_what_never_opened_interrupts_nothing():
    source, _ = reopening(Outside(REFUSED, REFUSED, REFUSED))

    assert source.problem == "no sample has come yet"
    assert [item for _ in range(30) for item in source.poll(0.1)] == []
    assert source.problem == "no such port"
    assert source.reopened == 0


def test_an_interruption_that_the_source_told_itself_is_not_told_twice():
    source, _ = reopening(Outside([BATCH, [*BAD, GONE], AWAY]))

    assert [item for _ in range(4) for item in source.poll(0.1)] == [*BATCH, *BAD, GONE]


def test_only_samples_make_it_well():
    source, clock = reopening(Outside([BAD, BATCH, AWAY], [BAD, BAD, AWAY]), stable_s=0.5)
    source.poll(0.1)
    assert source.problem == "no sample has come yet"
    source.poll(0.1)
    assert source.problem is None
    source.poll(0.1)
    clock.now_ns += 2_000_000_000
    source.poll(0.1)
    assert source.problem == "unplugged"


def test_the_wait_starts_again_only_after_a_stable_spell():
    outside = Outside([BATCH, AWAY], [BATCH, AWAY], [BATCH, [], AWAY], [BATCH])
    source, clock = reopening(outside, stable_s=30)

    def polls_until_open():
        before = clock.now_ns
        while not any(isinstance(item, SampleBatch) for item in source.poll(0.5)):
            pass
        return (clock.now_ns - before) / 1e9

    assert polls_until_open() == 0
    assert polls_until_open() == pytest.approx(1)
    assert polls_until_open() == pytest.approx(2)
    clock.now_ns += 31_000_000_000
    assert polls_until_open() == pytest.approx(1)


def test_an_unexpected_error_ends_nothing_but_is_told():
    source, _ = reopening(Outside([InputError("of no use")]))
    assert [type(d) for d in source.poll(0.1)] == [Dropped]
    assert source.problem == "unexpected: InputError: of no use"


def test_the_end_is_handed_on():
    source, _ = reopening(Outside([]))
    assert source.poll(0.1) is None


def test_closing_closes_what_is_open():
    outside = Outside([BATCH])
    source, _ = reopening(outside)
    source.poll(0.1)
    source.close()
    source.close()

    assert outside.sources[0].closed
