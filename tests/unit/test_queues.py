"""The queue between reader and engine: bounded, and every sample it lets go is counted."""

import threading

import numpy as np
import pytest

from agent.errors import SourceUnavailable
from agent.records import BadFrame, Dropped, LabelChange, Loss, SampleBatch
from agent.runtime.queues import BoundedQueue, Overflow


def batch(n: int, seq0: int = 0, stream: str = "a") -> SampleBatch:
    return SampleBatch(stream, np.arange(n, dtype=np.int64), np.zeros((n, 6), np.float32), seq0)


def test_takes_everything_that_waits_in_order():
    q = BoundedQueue(100, Overflow.DROP_OLDEST)
    items = (batch(3), BadFrame("a", Loss.COLUMNS, 7), batch(2, 3))
    for item in items:
        assert q.put(item)

    assert len(q) == 6
    assert q.take(0) == list(items)
    assert len(q) == 0
    assert q.take(0) == []


def test_drop_oldest_lets_whole_batches_go_and_counts_their_samples():
    q = BoundedQueue(10, Overflow.DROP_OLDEST)
    kept = batch(4, 9), batch(6, 13)
    for item in (batch(4), batch(5, 4, "b"), *kept):
        q.put(item)

    taken = q.take(0)
    assert taken == [Dropped("a", 4), Dropped("b", 5), *kept]
    assert q.dropped == 9
    assert q.take(0) == [], "a loss is told once"


def test_the_newest_batch_is_taken_in_even_if_it_is_larger_than_the_queue():
    q = BoundedQueue(10, Overflow.DROP_OLDEST)
    q.put(batch(3))
    huge = batch(25, 3)
    q.put(huge)

    assert q.take(0) == [Dropped("a", 3), huge]


def test_bad_frames_that_are_let_go_are_counted_too():
    q = BoundedQueue(2, Overflow.DROP_OLDEST)
    for line in range(5):
        q.put(BadFrame("a", Loss.NUMBER, line))

    taken = q.take(0)
    assert taken == [BadFrame("a", Loss.NUMBER, 3), BadFrame("a", Loss.NUMBER, 4)], "no sample of it is missing"
    assert q.dropped == 3


def test_block_waits_for_room_and_loses_nothing():
    q = BoundedQueue(8, Overflow.BLOCK)
    everything = [batch(3, 3 * i) for i in range(50)]

    def fill() -> None:
        for item in everything:
            assert q.put(item)
        q.close()

    reader = threading.Thread(target=fill)
    reader.start()
    got = []
    while (taken := q.take(5)) is not None:
        assert sum(len(b.t_ns) for b in taken if isinstance(b, SampleBatch)) <= 8
        got += taken
    reader.join(5)

    assert got == everything
    assert q.dropped == 0


def test_closing_wakes_a_reader_that_waits_for_room():
    q = BoundedQueue(3, Overflow.BLOCK)
    q.put(batch(3))
    accepted: list[bool] = []
    reader = threading.Thread(target=lambda: accepted.append(q.put(batch(1, 3))))
    reader.start()
    q.close()
    reader.join(5)

    assert accepted == [False]


def test_what_was_put_before_closing_can_still_be_taken():
    q = BoundedQueue(3, Overflow.DROP_OLDEST)
    last = batch(1)
    q.put(last)
    q.close()

    assert not q.put(batch(1))
    assert q.take(0) == [last]
    assert q.take(0) is None


def test_the_first_error_comes_out_after_the_samples():
    q = BoundedQueue(3, Overflow.DROP_OLDEST)
    q.put(batch(1))
    q.close(SourceUnavailable("unplugged"))
    q.close(SourceUnavailable("later"))

    assert q.take(0) is not None
    with pytest.raises(SourceUnavailable, match="unplugged"):
        q.take(0)


def test_a_queue_without_room_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        BoundedQueue(0, Overflow.BLOCK)


def test_a_label_that_was_dropped_with_its_batch_goes_to_the_next_that_is_kept():
    q = BoundedQueue(10, Overflow.DROP_OLDEST)
    q.put(batch(6)._replace(truth=(LabelChange(2, 2, "walking"), LabelChange(4, 4, None))))
    for item in (batch(6, 6, "b"), batch(6, 12), batch(4, 18)._replace(truth=(LabelChange(20, 2, "laying"),))):
        q.put(item)

    taken = [item for item in q.take(0) if isinstance(item, SampleBatch)]
    assert [item.truth for item in taken] == [(LabelChange(12, 0, None),), (LabelChange(20, 2, "laying"),)]
