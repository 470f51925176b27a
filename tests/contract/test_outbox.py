"""One contract for every outbox, and what the SQLite one does when its disk, or its file, is not what it should be."""

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import FakeClock, ListOutbox
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.adapters.outbox import KEPT_CORRUPT, REMOVAL_WAIT_S, RETRY_S, SqliteOutbox
from agent.core.settings import DURABILITIES, OutboxSettings
from agent.errors import ConfigError
from agent.ports import Outbox
from agent.records import Outgoing, Stored

SECOND = 1_000_000_000
CAP_MB = 0.1

Make = Callable[[], Outbox]


def messages(n: int, first: int = 0, size: int = 500) -> list[Outgoing]:
    return [Outgoing("har/waist-07/prediction", b"%d " % i + b"x" * size) for i in range(first, first + n)]


def named(stored: list[Stored]) -> list[int]:
    return [int(s.payload.split()[0]) for s in stored]


def held(outbox: Outbox) -> list[int]:
    return named(outbox.oldest(1 << 30))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=[*DURABILITIES, "fake"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Outbox]:
    if request.param == "fake":
        made: Outbox = ListOutbox(int(CAP_MB * 1e6))
    else:
        settings = OutboxSettings(durability=request.param, max_mb=CAP_MB)
        made = SqliteOutbox(tmp_path / "outbox.db", settings, clock)
    yield made
    assert made.problem is None
    made.close()


# --- the contract


def test_gives_back_what_it_was_given_in_order(outbox: Outbox):
    given = [*messages(3), Outgoing("", b""), Outgoing("été", bytes(range(256)))]
    keys = outbox.append(given[:2]) + outbox.append(given[2:])

    assert keys == sorted(set(keys))
    assert outbox.oldest(10) == [Stored(key, m.topic, m.payload) for key, m in zip(keys, given, strict=True)]
    assert outbox.oldest(2) == outbox.oldest(10)[:2]
    assert outbox.oldest(2, keys[1]) == outbox.oldest(10)[2:4]
    assert outbox.oldest(0) == outbox.oldest(5, keys[-1]) == []


def test_forgets_what_is_removed(outbox: Outbox, clock: FakeClock):
    keys = outbox.append(messages(6))
    outbox.remove([keys[4], keys[0]])
    outbox.remove([keys[1]])
    assert held(outbox) == [2, 3, 5]
    outbox.append(messages(1, 6))
    assert held(outbox) == [2, 3, 5, 6]
    outbox.remove([keys[5]])
    clock.now_ns += 10 * SECOND
    outbox.tick()
    assert held(outbox) == [2, 3, 6]
    outbox.remove([])
    assert outbox.append([]) == []


def test_counts_messages_and_bytes(outbox: Outbox, clock: FakeClock):
    given = [Outgoing("é", b"12345"), Outgoing("ab", b""), Outgoing("c", b"123")]
    keys = outbox.append(given)
    assert (outbox.depth, outbox.size_bytes) == (3, 7 + 2 + 4)
    outbox.remove([keys[0], keys[0], 0, -1, keys[-1] + 1000])
    assert (outbox.depth, outbox.size_bytes) == (2, 6)
    clock.now_ns += 10 * SECOND
    outbox.tick()
    outbox.remove(keys[:2])
    assert (outbox.depth, outbox.size_bytes) == (1, 4)


def test_lets_the_oldest_go_at_the_cap(outbox: Outbox, clock: FakeClock):
    for i in range(100):
        outbox.append(messages(5, 5 * i, 1000))
        clock.now_ns += SECOND
        outbox.tick()
    kept = held(outbox)
    assert kept == list(range(500 - len(kept), 500))
    assert 90 <= len(kept) <= 98
    assert outbox.dropped == 500 - len(kept)
    assert outbox.depth == len(kept)
    assert outbox.size_bytes <= CAP_MB * 1e6


def test_one_call_larger_than_the_cap_keeps_its_newest(outbox: Outbox):
    keys = outbox.append(messages(300, 0, 1000))
    kept = held(outbox)
    assert len(keys) == 300
    assert kept == list(range(300 - len(kept), 300))
    assert outbox.dropped == 300 - len(kept)
    outbox.append(messages(1, 300, 200_000))
    assert held(outbox) == [300]
    outbox.remove(keys)
    assert outbox.depth == 1


def test_keys_are_never_used_again(outbox: Outbox, clock: FakeClock):
    last = 0
    for i in range(5):
        keys = outbox.append(messages(2, i))
        assert last < keys[0] < keys[1]
        last = keys[1]
        outbox.remove(keys)
        clock.now_ns += 10 * SECOND
        outbox.tick()


def test_closing_twice_is_closing_once(outbox: Outbox):
    outbox.append(messages(1))
    outbox.close()
    outbox.close()


# --- files


class Files:
    """A state directory and the agents that follow each other on it."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.folder = folder
        self.path = folder / "outbox.db"
        self.clock = clock
        self._opened: list[SqliteOutbox] = []

    def open(self, durability: str = "process", max_mb: float = 64) -> SqliteOutbox:
        outbox = SqliteOutbox(self.path, OutboxSettings(durability=durability, max_mb=max_mb), self.clock)
        self._opened.append(outbox)
        return outbox

    def wait(self, outbox: SqliteOutbox, seconds: float) -> None:
        self.clock.now_ns += round(seconds * SECOND)
        outbox.tick()

    def copy(self, to: Path) -> "Files":
        """The files as a kill -9 would leave them now."""
        shutil.copytree(self.folder, to)
        return Files(to, self.clock)

    def size(self) -> int:
        return sum(found.stat().st_size for found in self.folder.iterdir())

    def close(self) -> None:
        for outbox in self._opened:
            outbox.close()


@pytest.fixture
def files(tmp_path: Path, clock: FakeClock) -> Iterator[Files]:
    made = Files(tmp_path / "state" / "deep", clock)
    yield made
    made.close()


@pytest.mark.parametrize("durability", ["power-loss", "process"])
def test_everything_outlives_a_restart(files: Files, durability: str):
    outbox = files.open(durability)
    keys = outbox.append(messages(5))
    outbox.remove(keys[:2])
    outbox.close()

    again = files.open(durability)
    assert (held(again), again.depth, again.problem) == ([2, 3, 4], 3, None)
    assert again.size_bytes == outbox.size_bytes
    again.remove(keys)
    again.close()
    last = files.open(durability)
    assert last.append(messages(1))[0] > keys[-1]


def test_what_append_returned_for_is_there_after_a_kill(files: Files, tmp_path: Path):
    outbox = files.open()
    outbox.remove(outbox.append(messages(3))[:1])
    outbox.append(messages(2, 3))
    left = files.copy(tmp_path / "left")
    assert held(left.open()) == [1, 2, 3, 4]
    left.close()


def test_memory_writes_nothing(files: Files):
    outbox = files.open("memory")
    outbox.append(messages(5))
    assert outbox.depth == 5
    assert [p.name for p in files.folder.iterdir()] == ["lock"], "another agent is kept out all the same"


def test_files_stay_bounded_and_give_space_back(files: Files):
    outbox = files.open(max_mb=8)
    for i in range(400):
        outbox.append(messages(50, 50 * i))
    full = files.size()
    assert 8e6 < full < 8e6 * 2.5 + 8e6
    while outbox.depth:
        outbox.remove([s.key for s in outbox.oldest(500)])
        files.wait(outbox, REMOVAL_WAIT_S)
    files.wait(outbox, 60)
    assert files.size() < 1e6
    outbox.append(messages(1))
    assert outbox.depth == 1


def test_a_second_agent_is_told_who_has_the_files(files: Files):
    outbox = files.open()
    with pytest.raises(ConfigError, match=rf"pid {os.getpid()}\b.*state_dir"):
        files.open()
    outbox.close()
    files.open()


# --- damage


def test_a_file_that_is_no_database_is_set_aside(files: Files):
    files.folder.mkdir(parents=True)
    files.path.write_bytes(b"this is no database, it never was " * 1000)
    outbox = files.open()
    assert outbox.quarantined == 1
    assert "damaged" in str(outbox.problem)
    outbox.append(messages(2))
    files.wait(outbox, 100)
    assert "damaged" in str(outbox.problem), "until the agent starts again"
    assert (files.folder / "outbox.corrupt-1").read_bytes().startswith(b"this is no")
    outbox.close()
    again = files.open()
    assert (held(again), again.problem, again.quarantined) == ([0, 1], None, 0)


def test_a_database_of_something_else_is_set_aside(files: Files):
    files.folder.mkdir(parents=True)
    other = sqlite3.connect(files.path)
    other.execute("CREATE TABLE messages(key INTEGER PRIMARY KEY, text TEXT)")
    other.execute("INSERT INTO messages VALUES (1, 'not ours')")
    other.commit()
    other.close()
    outbox = files.open()
    assert (outbox.quarantined, outbox.depth) == (1, 0)
    outbox.append(messages(1))
    assert held(outbox) == [0]


def test_the_latest_damaged_files_are_kept(files: Files):
    for i in range(KEPT_CORRUPT + 2):
        files.folder.mkdir(parents=True, exist_ok=True)
        files.path.write_bytes(b"%d is no database" % i * 1000)
        files.open().close()
    kept = sorted(found.name for found in files.folder.glob("*corrupt*"))
    assert kept == [f"outbox.corrupt-{n}" for n in (3, 4, 5)]


def filled(files: Files, n: int = 300) -> None:
    """Leave a closed file with `n` messages of which the first tenth was removed."""
    outbox = files.open()
    keys = outbox.append(messages(n))
    outbox.remove(keys[: n // 10])
    outbox.close()


def check_survivors(files: Files, n: int = 300) -> int:
    """Open what is left, use it and close it; return how many messages survived."""
    outbox = files.open()
    survived = held(outbox)
    assert survived == sorted(set(survived))
    assert set(survived) <= set(range(n)), "nothing that was never stored"
    assert all(s.payload == messages(1, i)[0].payload for i, s in zip(survived, outbox.oldest(n), strict=True))
    assert outbox.depth == len(survived)
    if outbox.quarantined:
        assert outbox.problem
    keys = outbox.append(messages(2, n))
    assert held(outbox) == [*survived, n, n + 1]
    outbox.remove(keys)
    outbox.close()
    return len(survived)


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_over_the_file(files: Files, seed: int):
    filled(files)
    rng = random.Random(seed)
    data = bytearray(files.path.read_bytes())
    for _ in range(rng.choice((1, 3, 20))):
        at = rng.randrange(len(data))
        data[at : at + rng.choice((1, 16, 200))] = rng.randbytes(rng.choice((1, 16, 200)))
    files.path.write_bytes(data)
    check_survivors(files)


def test_most_of_a_file_with_one_bad_page_is_salvaged(files: Files):
    filled(files)
    data = bytearray(files.path.read_bytes())
    data[100 * 1024 : 101 * 1024] = b"\xff" * 1024
    files.path.write_bytes(data)
    assert check_survivors(files) >= 265


def test_a_file_without_its_first_page_is_salvaged(files: Files):
    filled(files)
    data = bytearray(files.path.read_bytes())
    data[:1024] = b"\xff" * 1024
    files.path.write_bytes(data)
    assert check_survivors(files) == 270


def test_a_payload_that_changed_on_disk_is_not_delivered(files: Files):
    filled(files)
    data = files.path.read_bytes()
    at = data.index(b"100 xxx")
    files.path.write_bytes(data[: at + 50] + b"y" + data[at + 51 :])
    assert check_survivors(files) == 269


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(files: Files, share: float):
    filled(files)
    os.truncate(files.path, int(files.path.stat().st_size * share))
    check_survivors(files)


def test_a_log_torn_at_every_length_keeps_what_is_whole_before_it(files: Files, tmp_path: Path):
    outbox = files.open()
    lengths = []
    for i in range(12):
        outbox.append(messages(1, i))
        lengths.append(len((files.folder / "outbox.db-wal").read_bytes().rstrip(b"\0")))
    left = files.copy(tmp_path / "left")
    outbox.close()
    log = left.folder / "outbox.db-wal"
    whole, base = log.read_bytes(), left.path.read_bytes()
    assert lengths == sorted(lengths)
    for length in range(0, len(whole), 97):
        left.path.write_bytes(base)
        log.write_bytes(whole[:length])
        survived = left.open()
        expected = sum(n <= length for n in lengths)
        assert held(survived) == list(range(len(held(survived))))
        assert len(held(survived)) >= expected
        assert survived.problem is None, "a torn write is no damage"
        survived.close()


def test_a_file_that_is_damaged_under_way(files: Files):
    filled(files, 3000)
    outbox = files.open()
    data = bytearray(files.path.read_bytes())
    data[1000 * 1024 : 1040 * 1024] = os.urandom(40 * 1024)
    files.path.write_bytes(data)
    survived = held(outbox)
    assert 2600 <= len(survived) < 2700
    assert outbox.quarantined == 1
    assert f"{len(survived)} of 2700" in str(outbox.problem)
    assert outbox.depth == len(survived)
    outbox.append(messages(1, 3000))
    assert held(outbox) == [*survived, 3000]


def test_a_kill_between_the_renames_of_a_quarantine(files: Files):
    filled(files, 10)
    files.path.rename(files.folder / "outbox.new")
    (files.folder / "outbox.db-wal").write_bytes(b"of the file that was set aside")
    assert check_survivors(files, 10) == 9


# --- a disk that does not work


def test_a_file_in_place_of_the_directory(files: Files):
    files.folder.parent.mkdir()
    files.folder.write_bytes(b"in the way")
    outbox = files.open()
    assert "make it a directory" in str(outbox.problem)
    keys = outbox.append(messages(4))
    outbox.remove(keys[:1])
    files.wait(outbox, 1)
    assert held(outbox) == [1, 2, 3]

    files.folder.unlink()
    assert outbox.problem
    files.wait(outbox, RETRY_S)
    assert outbox.problem is None
    assert held(outbox) == [1, 2, 3]
    assert outbox.append(messages(1, 4))[0] > keys[-1]
    outbox.close()
    assert held(files.open()) == [1, 2, 3, 4]


def test_messages_on_a_disk_that_was_away_come_before_those_held_meanwhile(files: Files):
    filled(files, 10)
    away = files.folder.with_name("away")
    files.folder.rename(away)
    files.folder.write_bytes(b"in the way")
    outbox = files.open()
    keys = outbox.append(messages(3, 10))
    files.folder.unlink()
    away.rename(files.folder)
    files.wait(outbox, RETRY_S)
    assert held(outbox) == list(range(1, 13))
    outbox.remove(keys[:1])
    assert held(outbox) == [*range(1, 10), 11, 12]


def test_keys_of_a_disk_that_was_away_are_made_to_fit_if_the_clock_was_put_back(files: Files):
    class Back(FakeClock):
        def wall_ns(self) -> int:
            return 0

    test_messages_on_a_disk_that_was_away_come_before_those_held_meanwhile(files)
    files.close()
    files.clock = Back()
    away = files.folder.with_name("away")
    files.folder.rename(away)
    files.folder.write_bytes(b"in the way")
    outbox = files.open()
    keys = outbox.append(messages(2, 13))
    files.folder.unlink()
    away.rename(files.folder)
    files.wait(outbox, RETRY_S)
    assert held(outbox) == [*range(1, 10), 11, 12, 13, 14]
    outbox.remove(keys[:1])
    assert held(outbox) == [*range(1, 10), 11, 12, 14]
    outbox.close()
    again = files.open()
    assert again.append(messages(1))[0] > keys[-1]
    assert again.problem is None


def test_another_program_has_the_file_open(files: Files):
    filled(files, 10)
    other = sqlite3.connect(files.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    outbox = files.open()
    assert "end the program" in str(outbox.problem)
    outbox.append(messages(1, 10))
    other.close()
    files.wait(outbox, RETRY_S)
    assert (held(outbox), outbox.problem) == (list(range(1, 11)), None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a file system: needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(small_disk: Path, clock: FakeClock):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 100_000)
    files = Files(small_disk, clock)
    outbox = files.open()
    keys = []
    for i in range(200):
        keys += outbox.append(messages(5, 5 * i))
        files.wait(outbox, 1)
    assert "make room" in str(outbox.problem)
    assert held(outbox) == list(range(1000))
    assert keys == sorted(set(keys))

    outbox.remove(keys[:900])
    assert held(outbox) == list(range(900, 1000))
    filler.unlink()
    files.wait(outbox, RETRY_S)
    assert (held(outbox), outbox.problem) == (list(range(900, 1000)), None)
    outbox.close()
    assert held(files.open()) == list(range(900, 1000))
    files.close()


def test_a_full_disk_that_stays_full_is_used_again_once_the_broker_has_taken_enough(small_disk: Path, clock: FakeClock):
    files = Files(small_disk, clock)
    outbox = files.open()
    keys: list[int] = []
    while not outbox.problem:
        keys += outbox.append(messages(5, len(keys)))
    outbox.remove(keys)
    files.wait(outbox, RETRY_S)
    assert (outbox.problem, outbox.depth) == (None, 0)
    outbox.append(messages(3))
    outbox.close()
    assert held(files.open()) == [0, 1, 2]
    files.close()


def test_a_damaged_file_on_a_full_disk(small_disk: Path, clock: FakeClock):
    files = Files(small_disk, clock)
    filled(files, 60)
    data = bytearray(files.path.read_bytes())
    data[30 * 1024 : 31 * 1024] = b"\xff" * 1024
    files.path.write_bytes(data)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 1_000_000)
    outbox = files.open()
    survived = held(outbox)
    assert len(survived) >= 50
    assert outbox.problem
    keys = outbox.append(messages(2, 60))
    outbox.remove([outbox.oldest(1)[0].key, keys[0]])
    assert held(outbox) == [*survived[1:], 61]
    files.wait(outbox, RETRY_S)
    assert (held(outbox), outbox.depth) == ([*survived[1:], 61], len(survived))
    filler.unlink()
    for _ in range(2):
        files.wait(outbox, RETRY_S)
        assert (held(outbox), outbox.depth) == ([*survived[1:], 61], len(survived))
    assert outbox.quarantined == 1
    outbox.close()
    assert held(files.open()) == [*survived[1:], 61]
    files.close()


def test_a_disk_that_is_full_from_the_start(small_disk: Path, clock: FakeClock):
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 1_000_000)
    files = Files(small_disk, clock)
    outbox = files.open()
    outbox.append(messages(3))
    assert held(outbox) == [0, 1, 2]
    filler.unlink()
    files.wait(outbox, RETRY_S)
    assert (held(outbox), outbox.problem) == ([0, 1, 2], None)
    files.close()


@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
def test_a_read_only_directory(small_disk: Path, tmp_path: Path, clock: FakeClock, clean: bool):
    before = Files(tmp_path / "before", clock)
    outbox = before.open()
    keys = outbox.append(messages(10))
    if clean:
        outbox.close()
    shutil.copytree(before.folder, small_disk, dirs_exist_ok=True)
    before.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    files = Files(small_disk, clock)
    outbox = files.open()
    new = outbox.append(messages(2, 10))
    assert keys[-1] < new[0]
    assert "write" in str(outbox.problem)
    assert (held(outbox), outbox.depth) == (list(range(12)), 12)
    outbox.remove([keys[0], new[0]])
    for _ in range(3):
        files.wait(outbox, RETRY_S)
        assert (held(outbox), outbox.depth) == ([*range(1, 10), 11], 10), "what was removed does not come back"
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    files.wait(outbox, RETRY_S)
    assert (held(outbox), outbox.problem) == ([*range(1, 10), 11], None)
    outbox.close()
    assert held(files.open()) == [*range(1, 10), 11]
    files.close()


def test_a_read_only_directory_that_turns_out_to_be_full(small_disk: Path, tmp_path: Path, clock: FakeClock):
    before = Files(tmp_path / "before", clock)
    filled(before, 100)
    shutil.copytree(before.folder, small_disk, dirs_exist_ok=True)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 1_000_000)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    files = Files(small_disk, clock)
    outbox = files.open()
    outbox.append(messages(2, 100))
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    files.wait(outbox, RETRY_S)
    assert "make room" in str(outbox.problem)
    assert (held(outbox), outbox.depth) == (list(range(10, 102)), 92)
    filler.unlink()
    files.wait(outbox, RETRY_S)
    assert (held(outbox), outbox.depth, outbox.problem) == (list(range(10, 102)), 92, None)
    files.close()


def test_a_file_that_may_not_grow(tmp_path: Path):
    """The full disk for those who cannot mount one: a limit on the size of files, in a process of its own."""
    child = subprocess.run(
        [sys.executable, "-c", "import test_outbox; test_outbox.limited()", tmp_path],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent.parent), *sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (child.returncode, child.stdout) == (0, "done\n"), child.stderr


def limited() -> None:
    """What `test_a_file_that_may_not_grow` runs."""
    files = Files(Path(sys.argv[1]) / "state", FakeClock())
    outbox = files.open()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    for i in range(60):
        outbox.append(messages(5, 5 * i))
    assert outbox.problem, "the limit was not felt"
    assert held(outbox) == list(range(300))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    files.wait(outbox, RETRY_S)
    assert (held(outbox), outbox.problem) == (list(range(300)), None)
    files.close()
    sys.stdout.write("done\n")


class Abuse(RuleBasedStateMachine):
    """Whatever happens to disk and agent: all that is held is what should be; a kill takes only what no disk took."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.generation = 0
        self.model: dict[int, int] = {}
        """Name of a message by its key."""
        self.names = 0
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.begin(Path(self.temporary.name) / "0")

    def begin(self, folder: Path) -> None:
        self.files = Files(folder, self.clock)
        self.outbox = self.files.open(max_mb=4)

    @rule(n=st.integers(1, 60), size=st.sampled_from([10, 500, 3000]))
    def append(self, n: int, size: int) -> None:
        keys = self.outbox.append(messages(n, self.names, size))
        assert keys[0] > max(self.model, default=0)
        self.model |= dict(zip(keys, range(self.names, self.names + n), strict=True))
        self.names += n

    @rule(part=st.floats(0, 1), share=st.sampled_from([0.1, 0.5, 1.0]))
    def remove(self, part: float, share: float) -> None:
        keys = list(self.model)
        at = int(len(keys) * part)
        gone = keys[at : at + int(len(keys) * share)]
        self.outbox.remove(gone)
        for key in gone:
            del self.model[key]

    @rule(s=st.sampled_from([0.5, REMOVAL_WAIT_S, RETRY_S]))
    def time_passes(self, s: float) -> None:
        self.files.wait(self.outbox, s)

    @rule(size=st.sampled_from([2_000, 30_000, 100_000]))
    def fill_the_disk(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.limit[1]))

    @rule()
    def empty_the_disk(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)

    @rule()
    def restart(self) -> None:
        self.empty_the_disk()
        self.outbox.close()
        assert self.outbox.problem is None
        self.begin(self.files.folder)

    @rule()
    def kill(self) -> None:
        healthy = self.outbox.problem is None
        self.empty_the_disk()
        self.generation += 1
        copied = self.files.copy(Path(self.temporary.name) / str(self.generation))
        self.files.close()
        self.begin(copied.folder)
        after = {s.key: name for s in self.outbox.oldest(1 << 30) for name in named([s])}
        if healthy and self.outbox.problem is None:
            assert after.items() >= self.model.items(), "what was removed last may be back"
        self.model = after

    @invariant()
    def all_is_there(self) -> None:
        stored = self.outbox.oldest(1 << 30)
        assert {s.key: name for s, name in zip(stored, named(stored), strict=True)} == self.model
        assert [s.key for s in stored] == sorted(self.model)
        assert self.outbox.depth == len(stored)
        assert self.outbox.size_bytes == sum(len(s.topic) + len(s.payload) for s in stored)
        assert self.outbox.quarantined == 0

    def teardown(self) -> None:
        self.empty_the_disk()
        self.files.wait(self.outbox, RETRY_S)
        assert self.outbox.problem is None
        self.files.close()
        self.temporary.cleanup()


TestAbuse = Abuse.TestCase
TestAbuse.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("how", ["db", "log", "both", "folder", "other"])
def test_files_that_are_removed_under_way_are_written_anew(files: Files, tmp_path: Path, how: str):
    outbox = files.open()
    keys = outbox.append(messages(5))
    outbox.remove(keys[:1])
    outbox.tick()
    path = files.folder / "outbox.db"
    if how == "folder":
        shutil.rmtree(files.folder)
    else:
        for suffix in {"db": ("",), "log": ("-wal",), "both": ("", "-wal"), "other": ("",)}[how]:
            Path(f"{path}{suffix}").unlink()
    if how == "other":
        path.write_bytes(b"something else" * 500)
    for _ in range(3):
        files.clock.now_ns += 40_000_000_000
        outbox.tick()
    outbox.append(messages(1, 5))

    assert outbox.quarantined >= 1
    assert "removed or replaced" in (outbox.problem or "") or how == "other"
    assert outbox.trouble is None
    killed = files.copy(tmp_path / "killed")
    assert [s.payload for s in killed.open().oldest(9)] == [m.payload for m in messages(6)[1:]]
    killed.close()
