"""A source behind a thread: nothing lost, errors handed on, the thread never left behind."""

import threading

import numpy as np
import pytest
from fakes import ScriptedSource

from agent.adapters.clock import SystemClock
from agent.errors import SourceUnavailable
from agent.records import Decoded, SampleBatch
from agent.runtime.queues import BoundedQueue, Overflow
from agent.runtime.reader import ReaderThread


class Watched(ScriptedSource):
    """Remembers which thread closed it."""

    closed_by = ""

    def close(self) -> None:
        super().close()
        self.closed_by = threading.current_thread().name


class Endless(Watched):
    """A source that always has another sample."""

    def poll(self, timeout_s: float) -> list[Decoded] | None:
        return [batch(0)]


def batch(seq0: int, t_rx_ns: int | None = None) -> SampleBatch:
    return SampleBatch("a", np.array([seq0], np.int64), np.zeros((1, 6), np.float32), seq0, t_rx_ns)


def reader(source: Watched, capacity: int = 1000) -> ReaderThread:
    return ReaderThread(source, BoundedQueue(capacity, Overflow.DROP_OLDEST), SystemClock(), "reader-under-test")


def read_all(r: ReaderThread) -> list[Decoded]:
    got: list[Decoded] = []
    while (decoded := r.poll(5)) is not None:
        got += decoded
    return got


def test_gives_everything_in_order_with_the_time_it_came():
    source = Watched([[batch(i)] for i in range(100)])
    r = reader(source)
    r.start()
    got = read_all(r)
    r.close()

    assert [b.seq0 for b in got if isinstance(b, SampleBatch)] == list(range(100))
    times = [b.t_rx_ns for b in got if isinstance(b, SampleBatch) and b.t_rx_ns is not None]
    assert len(times) == 100
    assert times == sorted(times)
    assert r.dropped == 0
    assert source.closed_by == "reader-under-test"


def test_keeps_a_receive_time_that_the_source_knows():
    r = reader(Watched([[batch(0, t_rx_ns=77)]]))
    r.start()
    (got,) = read_all(r)
    r.close()

    assert isinstance(got, SampleBatch)
    assert got.t_rx_ns == 77


@pytest.mark.parametrize("error", [SourceUnavailable("unplugged"), ZeroDivisionError("a bug")])
def test_what_ends_the_source_comes_out_after_the_samples(error: Exception):
    source = Watched([[batch(0)], error])
    r = reader(source)
    r.start()

    with pytest.raises(type(error), match=str(error)):
        read_all(r)
    r.close()
    assert source.closed_by == "reader-under-test"


def test_closing_ends_the_thread_of_a_source_that_never_ends():
    source = Endless([])
    r = reader(source, capacity=4)
    r.start()
    assert r.poll(5)
    r.close()
    r.close()

    assert source.closed_by == "reader-under-test"
    assert "reader-under-test" not in {t.name for t in threading.enumerate()}


def test_closing_before_the_start_closes_the_source():
    source = Watched([])
    reader(source).close()

    assert source.closed_by == threading.current_thread().name
