"""The outbox on SQLite: what the agent has made and the broker does not have yet.

What is trusted, and what follows from it:

- A commit is the unit. One `append` is one commit, and takes the removals that wait along, so that a board with one
  sensor writes one page of its SD card for each prediction. WAL keeps a torn commit out; a CRC in each row keeps out
  what a damaged card makes of a payload, which SQLite does not check.
- The disk is not trusted. What it refuses is held in memory, under the same cap, and moved there once it takes it. A
  damaged file is set aside with all readable rows taken over. Only a second agent on the same files is refused.
- Keys are given here, not by SQLite: its AUTOINCREMENT writes another page at each commit. `user_version` says
  below which key all may be in use; every start, and every 16 million messages, moves it up.
"""

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from agent.adapters.outbox.database import (
    KEY_BLOCK,
    PAGE,
    SELECT,
    SIZE,
    SIZES,
    Row,
    checked,
    commit,
    connect,
    create,
    memory_database,
    newest_key,
    packed_row,
    topic_of,
)
from agent.adapters.outbox.failures import is_damage, kind_of, told
from agent.adapters.outbox.salvage import salvage, salvaged
from agent.core.settings import OutboxSettings
from agent.errors import ConfigError
from agent.ports import Clock
from agent.records import Outgoing, Stored

REMOVAL_WAIT_S = 2.0
"""Removals wait so long for an append to go with: longer than one sensor's windows are apart (1.28 s)."""
RETRY_S = 30.0
"""Between tries of a disk that failed."""
_RETRY_NS = round(RETRY_S * 1e9)
KEPT_CORRUPT = 3
"""Damaged files that are kept."""

_LOCK_RETRY_S = 0.05
_LOOK_NS = 1_000_000_000
"""How often it is looked whether the file is still where the next run will look for it."""
_SHRINK_PAGES = 2048
"""Free pages from which on the file is made smaller, once little is left in it."""
_SHRINK_BELOW = 256 * 1024
_RECENT = 4096
"""Messages whose size is kept at hand; those that are acknowledged at once are among the latest."""
_UNKNOWN_BASE = 1 << 40

_T = TypeVar("_T")
_SUFFIXES = ("", "-wal", "-shm")


class SqliteOutbox:
    """`ports.Outbox` in one file.

    Attributes:
        dropped: messages let go, oldest first, because the byte cap was reached.
        quarantined: damaged files that were set aside since the start.
    """

    def __init__(self, path: Path | None, settings: OutboxSettings, clock: Clock) -> None:
        """Open or make the file at `path`; None, or the durability `memory`, stores nothing on disk.

        Raises:
            ConfigError: another agent uses the same folder.
        """
        self._clock = clock
        self._folder = path.parent if path is not None else None
        self._path = path if settings.durability != "memory" else None
        self._synchronous = "FULL" if settings.durability == "power-loss" else "NORMAL"
        self._cap = int(settings.max_mb * 1e6)
        self._disk: sqlite3.Connection | None = None
        self._memory: sqlite3.Connection | None = None
        """Where new messages go while the disk takes none; all its keys are above those on disk."""
        self._memory_from = 0
        self._next = 0
        self._reserved = 0
        """Below it all keys may be in use, as the file says; 0 while nothing is known of the file."""
        self._removed: set[int] = set()
        """Removed, but perhaps still on disk."""
        self._unwritten: set[int] = set()
        """Removed since the last commit."""
        self._unwritten_since_ns = 0
        self._recent: dict[int, int] = {}
        self._depth = 0
        self._size = 0
        self._trouble: str | None = None
        self._retry_ns = 0
        self._look_ns = 0
        self._in_place: dict[str, tuple[int, int] | None] = {}
        """Device and number of the open files, as found at their names."""
        self._shrink_ns = 0
        self._quarantine_ns = 0
        """From when on a damaged file may be set aside."""
        self._loaded = False
        """Whether memory holds what could be read of a file that SQLite cannot open."""
        self._lock: int | None = None
        self._closed = False
        self._damage: str | None = None
        self.dropped = 0
        self.quarantined = 0
        if self._path is None:
            if self._folder is not None:
                # Whoever installs a model looks for the lock, too.
                with contextlib.suppress(OSError):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._take_lock()
            self._hold_in_memory()
            return
        try:
            self._open()
        except (OSError, sqlite3.Error) as e:
            self._wait_for_disk(e)
        self._guarded(self._count)

    @property
    def depth(self) -> int:
        """Messages held."""
        return self._depth

    @property
    def size_bytes(self) -> int:
        """Bytes of topics and payloads held."""
        return self._size

    @property
    def trouble(self) -> str | None:
        """Why messages are held in memory now, for people; None if they are not."""
        return self._trouble

    @property
    def damage(self) -> str | None:
        """What became of a damaged file since the start, for people; None if there was none."""
        return self._damage

    @property
    def problem(self) -> str | None:
        """What is wrong with the storage, for people; None if nothing is."""
        return "; ".join(filter(None, (self._trouble, self._damage))) or None

    def append(self, messages: Sequence[Outgoing]) -> list[int]:
        """Store messages and return their keys; as durable as configured on return. Blocks on the disk.

        What the byte cap has no room for is dropped, the oldest first; the newest message always stays.
        """
        keys = list(range(self._next, self._next + len(messages)))
        self._next += len(messages)
        rows = [packed_row(key, message) for key, message in zip(keys, messages, strict=True)]
        sizes = [len(row[2]) + len(row[3]) for row in rows]
        added = sum(sizes)
        self._make_room(added)
        first = 0
        while added > self._cap and first < len(rows) - 1:
            added -= sizes[first]
            first += 1
        self.dropped += first
        if first:
            rows, sizes = rows[first:], sizes[first:]
        self._recent.update(zip(keys[first:], sizes, strict=True))
        while len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        if rows:
            self._write(rows)
        # Only now: what goes wrong on the way counts what is stored anew.
        self._depth += len(rows)
        self._size += added
        return keys

    def remove(self, keys: Sequence[int]) -> None:
        """Forget messages; unknown keys are no error. Written with the next `append`, or by `tick` after a while."""
        for key in keys:
            size = self._recent.pop(key, None)
            if size is None and key not in self._removed:
                size = self._size_of(key)
            if size is not None:
                self._forget(key, size)

    def oldest(self, n: int, after: int = 0) -> list[Stored]:
        """Return up to `n` messages with keys above `after`, in order. May block on the disk."""
        return self._guarded(lambda: self._read(n, after))

    def tick(self) -> None:
        """Do what is due: write delayed removals, try the disk again, give space back. May block on the disk."""
        now_ns = self._clock.monotonic_ns()
        if self._disk and now_ns >= self._look_ns:
            self._look_ns = now_ns + _LOOK_NS
            if not self._is_in_place():
                self._guarded(self._rescue)
        if self._trouble and now_ns >= self._retry_ns:
            self._try_disk()
        if self._unwritten and now_ns - self._unwritten_since_ns >= REMOVAL_WAIT_S * 1e9:
            self._write([])
        if now_ns >= self._shrink_ns:
            self._shrink_ns = now_ns + _RETRY_NS
            if self._size < _SHRINK_BELOW:
                self._shrink()

    def close(self) -> None:
        """Write everything out and release. Idempotent."""
        if self._closed:
            return
        if self._trouble:
            self._try_disk()
        if self._removed:
            self._write([])
        if self._trouble and self._memory:
            lost = self._memory.execute("SELECT count(*) FROM messages WHERE key >= ?", (self._memory_from,)).fetchone()
            self._trouble += f"; {lost[0]} of them were lost with the end of the agent"
        self._closed = True
        for db in (self._disk, self._memory):
            if db:
                with contextlib.suppress(sqlite3.Error):
                    db.close()
        self._disk = self._memory = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- messages

    def _make_room(self, added: int) -> None:
        """Forget the oldest until `added` bytes fit, or nothing is left."""
        over = self._size + added - self._cap
        if over <= 0:
            return

        def victims() -> list[tuple[int, int]]:
            found: list[tuple[int, int]] = []
            freed = 0
            for db in filter(None, (self._disk, self._memory)):
                with contextlib.closing(db.execute(SIZES)) as rows:
                    for key, size in rows:
                        if freed >= over:
                            return found
                        if key not in self._removed:
                            found.append((key, size))
                            freed += size
            return found

        for key, size in self._guarded(victims):
            self._recent.pop(key, None)
            self._forget(key, size)
            self.dropped += 1

    def _forget(self, key: int, size: int) -> None:
        if not self._unwritten:
            self._unwritten_since_ns = self._clock.monotonic_ns()
        self._removed.add(key)
        self._unwritten.add(key)
        self._depth -= 1
        self._size -= size

    def _size_of(self, key: int) -> int | None:
        def look() -> int | None:
            for db in filter(None, (self._memory, self._disk)):
                found = db.execute(SIZE, (key,)).fetchone()
                if found:
                    return int(found[0])
            return None

        return self._guarded(look)

    def _read(self, n: int, after: int) -> list[Stored]:
        found: list[Stored] = []
        for db in filter(None, (self._disk, self._memory)):
            with contextlib.closing(db.execute(SELECT, (after,))) as rows:
                for row in rows if n > 0 else ():
                    key, _, _, payload = checked(row)
                    if key not in self._removed:
                        found.append(Stored(key, topic_of(row), payload))
                        if len(found) >= n:
                            return found
        return found

    def _write(self, rows: list[Row]) -> None:
        """Write what is new, and the removals that wait, in one commit; to memory if the disk will not have it."""
        if self._memory:
            commit(self._memory, self._unwritten, rows)
            self._removed.difference_update(key for key in self._unwritten if key >= self._memory_from)
            self._unwritten.clear()
            return
        assert self._disk is not None
        try:
            self._reserve(self._disk)
            commit(self._disk, self._unwritten, rows)
        except sqlite3.Error as e:
            self._fail(e)
            self._write(rows)
        else:
            self._removed.clear()
            self._unwritten.clear()

    def _reserve(self, db: sqlite3.Connection) -> None:
        if self._next > self._reserved:
            blocks = self._next // KEY_BLOCK + 1
            db.execute(f"PRAGMA user_version = {blocks}")
            self._reserved = blocks * KEY_BLOCK

    def _shrink(self) -> None:
        """Give back what a long outage took: with little left, writing that anew is cheap.

        Not by SQLite's incremental vacuum, for which every commit would keep a map of the pages.
        """
        db = self._memory or self._disk
        # A disk that has no room for this will have it another time.
        with contextlib.suppress(sqlite3.Error):
            if db and db.execute("PRAGMA freelist_count").fetchone()[0] > _SHRINK_PAGES:
                db.execute("VACUUM")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # --- what goes wrong

    def _guarded(self, work: Callable[[], _T]) -> _T:
        """Return what `work` reads; what cannot be read is set aside, or left alone until the disk is back."""
        while True:
            try:
                return work()
            except sqlite3.Error as e:
                if self._disk is None:
                    raise  # in memory: a fault of ours
                self._fail(e)
                if self._trouble:
                    # Until the next try, what cannot be read is left where it is.
                    self._close_disk()

    def _fail(self, error: Exception) -> None:
        """The disk, or the file on it, failed under way: start a new file, or hold messages in memory."""
        if is_damage(error) and self._clock.monotonic_ns() >= self._quarantine_ns:
            try:
                self._quarantine(str(error))
            except (OSError, sqlite3.Error) as e:
                error = e
                self._close_disk()
            else:
                return
        self._wait_for_disk(error)

    def _wait_for_disk(self, error: Exception) -> None:
        """Hold messages in memory, because of `error`, until the next try."""
        assert self._path is not None
        self._trouble = told(error, self._path)
        self._retry_ns = self._clock.monotonic_ns() + _RETRY_NS
        self._hold_in_memory()

    def _hold_in_memory(self) -> None:
        """Let new messages go to memory, and, where SQLite cannot open the file, what can be read of that."""
        rows_in = self._memory or memory_database()
        # Once this run has keys of its own, rows that are not known to stand below them are left where they are.
        if self._path and self._disk is None and not self._loaded and (self._next == 0 or self._reserved):
            with contextlib.suppress(OSError, sqlite3.Error), salvage(self._path) as (self._reserved, found):
                commit(rows_in, set(), (row for row in found if row[0] not in self._removed))
                self._know(max(self._reserved - 1, newest_key(rows_in)))
                self._loaded = True
        if self._next == 0:
            # Nothing is known of the keys on disk; these are above them, unless the clock was put back.
            self._next = _UNKNOWN_BASE + self._clock.wall_ns() // 1000 if self._path else 1
        if not self._memory:
            self._memory = rows_in
            self._memory_from = self._next
        if self._loaded:
            self._count()

    def _is_in_place(self) -> bool:
        """Whether the open files are those that the next run will find; SQLite goes on writing to removed ones."""
        assert self._path is not None
        for suffix in ("", "-wal"):
            try:
                found = self._path.with_name(self._path.name + suffix).stat()
                now: tuple[int, int] | None = (found.st_dev, found.st_ino)
            except OSError:
                now = None
            if self._in_place.setdefault(suffix, now) != now:
                if self._in_place[suffix] is not None:
                    return False
                self._in_place[suffix] = now
        return True

    def _rescue(self) -> None:
        """Somebody removed or replaced the files: take what is in the open ones, for new ones at the next try."""
        assert self._disk is not None
        rows = self._disk.execute(SELECT, (0,)).fetchall()
        memory = memory_database()
        commit(memory, set(), [row for row in rows if row[0] not in self._removed])
        self._close_disk()
        if self._memory:
            self._memory.close()
        self._memory, self._memory_from, self._loaded = memory, self._next, True
        if self._lock is not None:
            # It may have been removed, too.
            os.close(self._lock)
            self._lock = None
        self.quarantined += 1
        self._damage = f"{self._path} was removed or replaced while it was in use; its {len(rows)} messages are kept"
        self._trouble, self._retry_ns = self._damage, 0

    def _try_disk(self) -> None:
        """Open the disk again, and move to it what is held in memory."""
        self._close_disk()
        self._trouble = None
        try:
            self._open()
            try:
                self._move_to_disk()
            except sqlite3.Error as e:
                if not self._start_over(e):
                    raise
                self._move_to_disk()
        except (OSError, sqlite3.Error, ConfigError) as e:
            if self._loaded:
                # Its rows are in memory already.
                self._close_disk()
            self._wait_for_disk(e)
        self._guarded(self._count)

    def _move_to_disk(self) -> None:
        assert self._disk is not None
        assert self._memory is not None
        rows = self._memory.execute(SELECT, (0,)).fetchall()
        self._reserve(self._disk)
        # Removals alone first: on a full disk they make the room.
        commit(self._disk, self._removed, [])
        commit(self._disk, set(), [row for row in rows if row[0] not in self._removed])
        self._memory.close()
        self._memory = None
        self._loaded = False
        self._removed.clear()
        self._unwritten.clear()

    def _start_over(self, error: sqlite3.Error) -> bool:
        """Begin a new file if the disk is full and all in the old one was removed: its log cannot shrink there."""
        if self._disk is None or self._path is None or kind_of(error) != sqlite3.SQLITE_FULL:
            return False
        with contextlib.closing(self._disk.execute(SIZES)) as rows:
            if any(key not in self._removed for key, _ in rows):
                return False
        self._close_disk()
        for suffix in _SUFFIXES:
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._open()
        return True

    def _count(self) -> None:
        """Count anew what is held."""
        self._depth = self._size = 0
        for db in filter(None, (self._disk, self._memory)):
            for key, size in db.execute(SIZES):
                if key not in self._removed:
                    self._depth += 1
                    self._size += size

    def _close_disk(self) -> None:
        if self._disk:
            with contextlib.suppress(sqlite3.Error):
                self._disk.close()
            self._disk = None
            self._in_place.clear()

    # --- the file

    def _open(self) -> None:
        """Open the file, or a new one in place of one that is damaged.

        Raises:
            ConfigError: another agent has it.
            OSError, sqlite3.Error: the disk does not work.
        """
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if os.statvfs(self._path.parent).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not self._path.exists() and self._replacement.exists():
            # Killed between the two renames of a quarantine.
            self._set_aside()
        self._replacement.unlink(missing_ok=True)
        try:
            self._disk = connect(self._path, self._synchronous)
            self._adopt()
        except sqlite3.Error as e:
            if not is_damage(e) or self._clock.monotonic_ns() < self._quarantine_ns:
                self._close_disk()
                raise
            self._quarantine(str(e))

    def _adopt(self) -> None:
        """Take over what the open file holds; its keys end below those of this run."""
        assert self._disk is not None
        self._reserved = self._disk.execute("PRAGMA user_version").fetchone()[0] * KEY_BLOCK
        newest = newest_key(self._disk)
        if self._memory and not self._loaded and newest >= self._memory_from:
            rows = list(salvaged(self._disk))
            self._close_disk()
            first = self._memory_from - len(rows)
            self._replace([packed_row(key, Outgoing(topic_of(row), row[3])) for key, row in enumerate(rows, first)])
            return
        self._know(max(newest, self._reserved - 1))

    def _know(self, newest: int) -> None:
        """Give no key up to `newest`."""
        self._next = max(self._next, newest + 1, 1)

    def _quarantine(self, why: str) -> None:
        """Set the damaged file aside and go on with a new one, which has all rows that can be read.

        Raises:
            OSError, sqlite3.Error: the disk does not take a new file, or does not give the old one.
        """
        assert self._path is not None
        # At most one in a while: a card that damages whatever it is given must not keep the agent busy.
        self._quarantine_ns = self._clock.monotonic_ns() + _RETRY_NS
        self._close_disk()
        held = self._depth
        with salvage(self._path) as (reserved, found):
            self._replace(row for row in found if row[0] not in self._removed)
        self._know(reserved - 1)
        self.quarantined += 1
        self._count()
        assert self._disk is not None
        kept = self._disk.execute("SELECT count(*) FROM messages").fetchone()[0]
        of_held = f" of {held}" if held else ""
        self._damage = (
            f"the outbox was damaged ({why}); {kept}{of_held} messages could be read and are kept;"
            f" the damaged file is kept as {self._path.with_name(self._path.stem)}.corrupt-*: check the disk"
        )

    @property
    def _replacement(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(".new")

    def _replace(self, rows: Iterable[Row]) -> None:
        """Write a new file with `rows`, and set the old one aside; at any moment, one of them is complete."""
        self._replacement.unlink(missing_ok=True)
        try:
            self._write_replacement(rows)
        except (OSError, sqlite3.Error):
            # On a full disk, half of it would be in the way.
            self._replacement.unlink(missing_ok=True)
            raise
        self._set_aside()
        assert self._path is not None
        self._disk = connect(self._path, self._synchronous)
        self._adopt()

    def _write_replacement(self, rows: Iterable[Row]) -> None:
        # Without a log, which would double what is written: until it is renamed, nobody needs this file.
        with contextlib.closing(sqlite3.connect(self._replacement, isolation_level=None)) as new:
            for pragma in (f"page_size = {PAGE}", "journal_mode = OFF", "synchronous = OFF"):
                new.execute(f"PRAGMA {pragma}").fetchall()
            create(new)
            commit(new, set(), rows)
        with self._replacement.open("rb") as written:
            os.fsync(written.fileno())

    def _set_aside(self) -> None:
        """Rename the files to the next `.corrupt-<n>`, and the replacement to their name."""
        assert self._path is not None
        stem = f"{self._path.stem}.corrupt-"
        numbers = {int(found.name.removeprefix(stem).split("-")[0]) for found in self._corrupt(stem)}
        n = max(numbers, default=0) + 1
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").rename(self._path.with_name(f"{stem}{n}{suffix}"))
        self._replacement.rename(self._path)
        for old in sorted(numbers)[: max(0, len(numbers) + 1 - KEPT_CORRUPT)]:
            for suffix in _SUFFIXES:
                self._path.with_name(f"{stem}{old}{suffix}").unlink(missing_ok=True)

    def _corrupt(self, stem: str) -> Iterator[Path]:
        assert self._path is not None
        for found in self._path.parent.iterdir():
            if found.name.startswith(stem) and found.name.removeprefix(stem).split("-")[0].isdecimal():
                yield found

    def _take_lock(self) -> None:
        """Keep a second agent off. The lock goes with the process, however that ends."""
        if self._lock is not None:
            return
        assert self._folder is not None
        name = self._folder / "lock"
        writable = True
        try:
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            if e.errno not in (errno.EROFS, errno.EACCES) or not name.exists():
                raise
            lock, writable = os.open(name, os.O_RDONLY | os.O_CLOEXEC), False
        try:
            _flock(lock)
            if writable:
                os.ftruncate(lock, 0)
                os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as e:
            pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise ConfigError(
                f"another agent (pid {pid}) uses {self._folder}: stop it, or set another agent.state_dir"
            ) from e
        except OSError as e:
            # A full disk has no room for the number, and some network file systems have no locks.
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOLCK, errno.EOPNOTSUPP):
                os.close(lock)
                raise
        self._lock = lock


def _flock(lock: int) -> None:
    """Take the lock; a command that only looks whether an agent runs holds it for a moment."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_LOCK_RETRY_S)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
