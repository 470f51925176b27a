"""A process that is killed at any moment: what `append` returned for is in the file."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.adapters.clock import SystemClock
from agent.adapters.outbox import SqliteOutbox
from agent.core.settings import OutboxSettings
from agent.records import Outgoing

KILLS = 20
CAP_MB = 4.0


def writer(path: str, first: int, durability: str) -> None:
    """Append for ever, remove half of it, and tell on standard output what is done."""
    outbox = SqliteOutbox(Path(path), OutboxSettings(durability=durability, max_mb=CAP_MB), SystemClock())
    names = iter(range(first, 1 << 62))
    while True:
        batch = [next(names) for _ in range(random.randint(1, 9))]
        keys = outbox.append([Outgoing("har/a/prediction", b"%d " % name + b"x" * 400) for name in batch])
        told = [f"+{name}" for name in batch]
        if random.random() < 0.7:
            # Told first: what is to be removed may or may not be there.
            os.write(1, "".join(f"-{name}\n" for name in batch).encode())
            outbox.remove(keys)
            told = []
        os.write(1, "".join(f"{line}\n" for line in told).encode())
        outbox.tick()


@pytest.mark.parametrize("durability", ["process", "power-loss"])
def test_what_was_appended_is_there_after_kill_9(tmp_path: Path, durability: str):
    rng = random.Random(1)
    path = tmp_path / "outbox.db"
    appended: set[int] = set()
    removed: set[int] = set()
    stored: list[int] = []
    for _ in range(KILLS):
        first = max(appended | removed | set(stored), default=0) + 1
        code = f"import test_outbox_kill; test_outbox_kill.writer({str(path)!r}, {first}, {durability!r})"
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path))},
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        lines = rng.randint(1, 2000)
        said = [child.stdout.readline() for _ in range(lines)]
        os.kill(child.pid, signal.SIGKILL)
        said += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        assert child.wait(10) == -signal.SIGKILL
        for line in said:
            assert line.endswith(b"\n")
            (appended if line.startswith(b"+") else removed).add(int(line[1:]))

        outbox = SqliteOutbox(path, OutboxSettings(durability=durability, max_mb=CAP_MB), SystemClock())
        assert outbox.problem is None
        stored = [int(s.payload.split()[0]) for s in outbox.oldest(1 << 30)]
        outbox.close()
        assert stored == sorted(set(stored))
        newest = appended - set(stored)
        assert not newest or max(newest) < min(stored), "only the byte cap lets anything go, and the oldest first"
        appended &= set(stored)
    assert len(appended) > 100
