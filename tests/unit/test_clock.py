"""Whether the wall clock is kept right, where the kernel may not be asked."""

import os
from pathlib import Path

import pytest

from agent.adapters.clock import SystemClock


@pytest.fixture
def clock(tmp_path: Path) -> SystemClock:
    """A clock in a sandbox that refuses adjtimex(2), as systemd's ProtectClock= does."""
    clock = SystemClock(tmp_path / "synchronized")
    clock._adjtimex = lambda: -1
    return clock


def touch(path: Path, seconds_ago: float) -> None:
    path.touch()
    then = SystemClock().wall_ns() / 1e9 - seconds_ago
    os.utime(path, (then, then))


def test_where_the_kernel_may_not_be_asked_systemd_timesyncd_answers(clock: SystemClock, tmp_path: Path) -> None:
    assert not clock.synced()

    touch(tmp_path / "synchronized", seconds_ago=2048)

    assert clock.synced()


def test_what_timesyncd_did_nine_hours_ago_says_nothing_of_now(clock: SystemClock, tmp_path: Path) -> None:
    touch(tmp_path / "synchronized", seconds_ago=9 * 3600)

    assert not clock.synced()


def test_the_kernel_is_believed_where_it_answers(clock: SystemClock, tmp_path: Path) -> None:
    touch(tmp_path / "synchronized", seconds_ago=1)
    clock._adjtimex = lambda: 5  # TIME_ERROR

    assert not clock.synced()
