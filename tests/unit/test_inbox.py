import numpy as np
from fakes import FakeClock, FakeModel, cut, even_times, manifest, signal

from agent.pipeline import Pipeline
from agent.records import SampleBatch
from agent.runtime.inbox import ATTENTIVE_S, CROWD_HZ, Inbox
from agent.runtime.queues import BoundedQueue, Overflow


class Feeder:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def close(self) -> None:
        self.calls.append("close")


def batch(i: int) -> SampleBatch:
    return SampleBatch("s", np.array([i], np.int64), np.zeros((1, 6), np.float32), i)


def inbox(clock: FakeClock, linger_s: float = 0.0) -> tuple[Inbox, BoundedQueue, Feeder]:
    queue, feeder = BoundedQueue(100_000, Overflow.DROP_OLDEST), Feeder()
    return Inbox(queue, [feeder], clock, linger_s), queue, feeder


def test_feeders_are_started_and_closed_and_what_came_is_still_there():
    taken, queue, feeder = inbox(FakeClock())
    taken.start()
    queue.put(batch(0))
    taken.close()

    assert feeder.calls == ["start", "close"]
    assert [b.seq0 for b in taken.poll(0)] == [0]
    assert taken.poll(0) is None


def test_few_items_are_handed_on_at_once():
    clock = FakeClock()
    taken, queue, _ = inbox(clock, linger_s=0.02)
    queue.put(batch(0))

    assert len(taken.poll(0.25)) == 1
    assert clock.slept == []


def test_many_items_are_collected():
    clock = FakeClock()
    taken, queue, _ = inbox(clock, linger_s=0.02)
    for i in range(CROWD_HZ + 1):
        queue.put(batch(i))
    taken.poll(0)
    queue.put(batch(0))

    taken.poll(0.25)
    assert clock.slept == [0.02]

    clock.now_ns += 5_000_000_000
    queue.put(batch(0))
    taken.poll(0.25)
    assert clock.slept == [0.02], "after a pause it is calm again"


def test_nobody_wakes_up_before_something_can_be_complete():
    clock = FakeClock()
    taken, queue, _ = inbox(clock)
    queue.put(batch(0))
    taken.rest(1_000_000_000)

    assert abs(taken.rest_s() - (1 - ATTENTIVE_S)) < 1e-9
    assert len(taken.poll(0.25)) == 1
    assert clock.slept == [0.25], "and never for longer than a poll may wait"

    clock.now_ns = 1_000_000_000 - round(ATTENTIVE_S * 1e9)
    queue.put(batch(1))
    assert len(taken.poll(0.25)) == 1
    assert clock.slept == [0.25]


def test_the_pipeline_knows_when_its_next_window_is_due():
    pipeline = Pipeline(FakeModel(), manifest())
    assert pipeline.due_ns() == 0, "nothing is known yet"
    period_ns = 20_000_000
    windows = 0
    for i, b in enumerate(cut(even_times(400), signal(400), [1])):
        t_rx_ns = 5_000_000_000 + i * period_ns
        due_ns = pipeline.due_ns()
        events = pipeline.feed([b._replace(t_rx_ns=t_rx_ns)])
        if due_ns and events:
            windows += 1
            assert t_rx_ns - period_ns <= due_ns <= t_rx_ns, "at most a sample before it"
        elif due_ns:
            assert due_ns > t_rx_ns - period_ns
    assert windows == 5


def test_with_many_streams_something_is_always_due():
    pipeline = Pipeline(FakeModel(), manifest())
    for n in range(9):
        pipeline.feed([b._replace(t_rx_ns=1) for b in cut(even_times(40), signal(40), [40], f"s{n}")])
        assert (pipeline.due_ns() > 0) == (n < 8)
