"""Disks that are full, cannot be written, or damage what they were given: the agent works on, and says so."""

import contextlib
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live import Agent, Listener, wait_until
from mosquitto import Mosquitto
from rehearsal import IMPATIENT, Rig, Scenario, ids

FAST_HISTORY = IMPATIENT + "[outbox]\nhistory_hz = 500\n"


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "512k") -> Iterator[Path]:
    """A file system of its own at `folder`."""
    folder.mkdir()
    ran = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        pytest.skip(f"no file system can be mounted here: {ran.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill it with one file, but for about `leave` bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - leave))
    return filler


def full_under_way(rig: Rig) -> None:
    """No broker, and the disk fills up; somebody makes room, and the broker comes back."""
    broker = rig.broker()
    rig.sensor(10)
    agent = rig.agent([broker.url], FAST_HISTORY)
    with small_disk(agent.state, "16m"):
        filler = fill(agent.state, 64 * 1024)
        agent.start()
        rig.told(agent, "outbox_degraded", "make room on that disk")
        rss = agent.rss_mib()
        filler.unlink()
        began = time.monotonic()
        rig.told(agent, "broker_away")
        broker.start()
        listener = rig.listener(broker.port)
        rig.more(listener)
        rig.told_no_more(agent, "outbox_degraded", 60)
        took = time.monotonic() - began
        rig.calm(agent)
        rig.fact(f"calm {took:.0f} s after there was room; {agent.rss_mib() - rss:+.1f} MiB")
        assert agent.rss_mib() - rss < 16
        rig.nothing_lost(agent, listener)
        assert len(ids([listener])) > 200


def full_from_the_start(rig: Rig) -> None:
    """Not a byte is free when the agent starts: it starts, and delivers what it makes."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor()
    agent = rig.agent([broker.url])
    with small_disk(agent.state):
        filler = fill(agent.state)
        agent.start()
        rig.more(listener, 5)
        rig.told(agent, "outbox_degraded", "make room on that disk", 6)
        filler.unlink()
        rig.fact(f"calm {rig.told_no_more(agent, 'outbox_degraded', 60):.0f} s after there was room")
        assert any("outbox_degraded" in codes for codes in listener.health_codes())
        rig.more(listener)
        rig.calm(agent)
        rig.nothing_lost(agent, listener)


def read_only(rig: Rig) -> None:
    """A file system that went read-only with predictions on it: they are delivered all the same."""
    broker = rig.broker()
    rig.sensor()
    agent = rig.agent([broker.url], FAST_HISTORY)
    with small_disk(agent.state):
        before = store(rig, agent)
        remount(agent.state, "ro")
        broker.start()
        listener = rig.listener(broker.port)
        agent.start()
        rig.told(agent, "outbox_degraded", "let the agent's user write there")
        wait_until(lambda: before <= listener.ids(), 10, "what was stored before")
        remount(agent.state, "rw")
        rig.fact(f"calm {rig.told_no_more(agent, 'outbox_degraded', 60):.0f} s after it could be written")
        rig.calm(agent)
        assert any("outbox_degraded" in codes for codes in listener.health_codes())
        rig.nothing_lost(agent, listener)


def a_file_in_the_way(rig: Rig) -> None:
    """The state directory is a file, until somebody removes it."""
    broker = rig.broker().start()
    listener = rig.listener(broker.port)
    rig.sensor()
    agent = rig.agent([broker.url])
    agent.state.write_text("in the way")
    agent.start()
    rig.more(listener, 5)
    rig.told(agent, "outbox_degraded", "make it a directory", 6)
    agent.state.unlink()
    rig.fact(f"calm {rig.told_no_more(agent, 'outbox_degraded', 60):.0f} s after it was gone")
    rig.calm(agent)
    rig.nothing_lost(agent, listener)
    assert (agent.state / "outbox.db").exists()


def damaged(rig: Rig) -> None:
    """Random bytes over some pages of the outbox, then over all of it: what can be read is delivered, the rest told."""
    broker = rig.broker()
    rig.sensor(10)
    agent = rig.agent([broker.url], FAST_HISTORY)
    for _ in range(rig.many(1, 10)):
        stored = store(rig, agent, 60)
        path = agent.state / "outbox.db"
        pages = path.stat().st_size // 1024
        hit = rig.random.sample(range(2, pages), 3)
        with path.open("r+b") as file:
            for page in hit:
                file.seek(page * 1024 + 512 + rig.random.randrange(256))  # before that may be room
                file.write(rig.random.randbytes(256))
        listener = serve(rig, agent, broker)
        rig.told(agent, "outbox_quarantined", "could be read and are kept")
        rig.more(listener, 5)
        lost = stored - listener.ids()
        rig.fact(f"{len(lost)} of {len(stored)} were on the {len(hit)} of {pages} pages that were damaged")
        assert len(lost) <= 3 * len(hit)
        assert list(agent.state.glob("outbox.corrupt-*"))
        rig.stop(agent)
        assert listener.differing() == []
        listener.close()
        broker.kill()

        store(rig, agent, 20)
        path.write_bytes(rig.random.randbytes(path.stat().st_size))
        listener = serve(rig, agent, broker)
        rig.told(agent, "outbox_quarantined")
        rig.more(listener, 5)
        rig.stop(agent)
        listener.close()
        broker.kill()
    broker.start()
    listener = rig.listener(broker.port)
    agent.start()
    rig.more(listener, 5)
    assert not agent.health() - {"clock_unsynced"}, "a damage that was told is not told again by the next run"
    rig.nothing_lost(agent, listener)
    assert len(list(agent.state.glob("outbox.corrupt-*"))) <= 9, "damaged files do not fill the disk"


def torn_log(rig: Rig) -> None:
    """Killed with -9, and the log torn in its last commit, as a power cut does: all but the torn is delivered."""
    broker = rig.broker()
    rig.sensor(10)
    agent = rig.agent([broker.url], FAST_HISTORY)
    torn = []
    for _ in range(rig.many(2, 20)):
        agent.start()
        wait_until(lambda: len(so_far(agent)) >= 15, 20, "something to be stored")
        agent.kill()
        whole = agent.stored()
        tear(rig, agent.state / "outbox.db-wal")
        left = agent.stored()
        torn.append(len(whole) - len(left))
        assert left == whole[: len(left)], "a turn's predictions are one commit, and only the last one may go"
        listener = serve(rig, agent, broker)
        rig.more(listener)
        deliver(listener, set(left))
        assert "outbox_quarantined" not in agent.health(), "a torn log is no damage"
        rig.stop(agent)
        listener.close()
        broker.kill()
    rig.fact(f"predictions in the torn commits: {torn}")


def tear(rig: Rig, log: Path) -> None:
    """Spoil or cut off some of the last commit's bytes."""
    size = log.stat().st_size
    with log.open("r+b") as file:
        if rig.random.random() < 0.5:
            file.truncate(size - rig.random.randint(1, 700))
        else:
            file.seek(size - 700)
            file.write(rig.random.randbytes(rig.random.randint(1, 700)))


def deliver(listener: Listener, expected: set[str]) -> None:
    """Wait until all of them have come."""
    wait_until(lambda: expected <= listener.ids(), 10, "what was whole")


def store(rig: Rig, agent: Agent, least: int = 10) -> set[str]:
    """Let the agent run without a broker, end it in order, and return what it left in the outbox."""
    agent.start()
    wait_until(lambda: len(so_far(agent)) >= least, 30, f"{least} predictions to be stored")
    rig.stop(agent)
    return set(agent.stored())


def so_far(agent: Agent) -> list[str]:
    """What can be seen from outside of the outbox of an agent that runs."""
    with contextlib.suppress(sqlite3.Error):
        return agent.stored()
    return []


def serve(rig: Rig, agent: Agent, broker: Mosquitto) -> Listener:
    """Start the broker and the agent, and return a subscriber."""
    broker.start()
    listener = rig.listener(broker.port)
    wait_until(lambda: listener.connects)
    agent.start()
    return listener


def remount(disk: Path, how: str) -> None:
    """Make it `ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


SCENARIOS = [full_under_way, read_only, full_from_the_start, a_file_in_the_way, damaged, torn_log]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_disk(scenario: Scenario, play: Callable[[Scenario], None]):
    play(scenario)
