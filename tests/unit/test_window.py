import numpy as np
import pytest
from fakes import signal

from agent.core.window import WindowRing


def windows(ring, values, size):
    out = []
    for at in range(0, len(values), size):
        out += [w.copy() for _, w in ring.push(values[at : at + size])]
    return out


@pytest.mark.parametrize("hop", [1, 32, 50, 64, 127, 128])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_windows_are_the_slices_of_the_signal(hop, size):
    values = signal(1000)
    wanted = [values[a : a + 128] for a in range(0, 1000 - 127, hop)]

    got = windows(WindowRing(128, hop), values, size)

    assert len(got) == len(wanted)
    assert all(np.array_equal(g, w) for g, w in zip(got, wanted, strict=True))


def test_a_window_is_one_contiguous_view_that_cannot_be_written():
    ring = WindowRing(128, 50)
    views = [w for _, w in ring.push(signal(700))]

    assert all(w.flags.c_contiguous and not w.flags.owndata and not w.flags.writeable for w in views)


def test_uncovered_counts_samples_that_no_window_holds():
    ring = WindowRing(128, 64)

    counts = []
    for n in (100, 28, 10, 60):
        list(ring.push(signal(n)))
        counts.append(ring.uncovered)

    assert counts == [100, 0, 10, 6]


def test_after_clear_no_window_holds_older_samples():
    ring = WindowRing(128, 64)
    list(ring.push(np.full((127, 6), 9, np.float32)))
    ring.clear()
    new = signal(128)

    ((_, window),) = ring.push(new)

    assert np.array_equal(window, new)


@pytest.mark.parametrize("hop", [0, -1, 129])
def test_a_hop_outside_the_window_is_refused(hop):
    with pytest.raises(ValueError, match="hop"):
        WindowRing(128, hop)
