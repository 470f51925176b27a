"""How a command that runs for long is ended."""

import signal
import time
from collections.abc import Iterator

import pytest

from agent.cli._stopping import Stopping


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock in a list; the process that runs tests ends as usual, by KeyboardInterrupt."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_signal_asks_to_stop_and_a_later_one_ends(now_s: list[float]):
    with Stopping() as stopping:
        assert not stopping()
        signal.raise_signal(signal.SIGTERM)
        assert stopping()
        now_s[0] += 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_comes_twice_at_once_is_one(now_s: list[float]):
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGINT)
        now_s[0] += 0.1
        signal.raise_signal(signal.SIGINT)
        assert stopping()
        now_s[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_reloading_is_asked_for_once_and_stops_nothing(now_s: list[float]):
    with Stopping(hangup=True) as stopping:
        signal.raise_signal(signal.SIGHUP)
        assert (stopping.take_reload(), stopping.take_reload(), stopping()) == (True, False, False)
