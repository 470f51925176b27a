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
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

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
_PAGE = 1024
"""Bytes a page: a prediction fits in one, and a commit writes at least one."""
_WAL_PAGES = 4096
"""Pages of log before they go to their place: with `process`, the only moments that wait for the disk."""
_SHRINK_PAGES = 2048
"""Free pages from which on the file is made smaller, once little is left in it."""
_SHRINK_BELOW = 256 * 1024
_RECENT = 4096
"""Messages whose size is kept at hand; those that are acknowledged at once are among the latest."""
_MOST_IN_MEMORY = 128 * 1024 * 1024
"""Bytes of a file that is salvaged in memory; a larger one must be readable by SQLite as it stands."""
_BLOCK = 1 << 24
_UNKNOWN_BASE = 1 << 40

_APPLICATION = 0x48415245
_SCHEMA = "CREATE TABLE messages(key INTEGER PRIMARY KEY, crc INTEGER, topic BLOB, payload BLOB)"
_INSERT = "INSERT OR IGNORE INTO messages(key, crc, topic, payload) VALUES (?, ?, ?, ?)"
_SELECT = "SELECT key, crc, topic, payload FROM messages WHERE key > ? ORDER BY key"
_DELETE = "DELETE FROM messages WHERE key BETWEEN ? AND ?"
_SIZES = "SELECT key, length(topic) + length(payload) FROM messages ORDER BY key"
_SIZE = "SELECT length(topic) + length(payload) FROM messages WHERE key = ?"

_T = TypeVar("_T")
_Row = tuple[int, int, bytes, bytes]
_SUFFIXES = ("", "-wal", "-shm")


class _DamagedError(sqlite3.DatabaseError):
    """The file is not, or no longer, an outbox, though SQLite can read it."""


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
        rows = [_row(key, message) for key, message in zip(keys, messages, strict=True)]
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
                with contextlib.closing(db.execute(_SIZES)) as rows:
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
                found = db.execute(_SIZE, (key,)).fetchone()
                if found:
                    return int(found[0])
            return None

        return self._guarded(look)

    def _read(self, n: int, after: int) -> list[Stored]:
        found: list[Stored] = []
        for db in filter(None, (self._disk, self._memory)):
            with contextlib.closing(db.execute(_SELECT, (after,))) as rows:
                for row in rows if n > 0 else ():
                    key, _, _, payload = _checked(row)
                    if key not in self._removed:
                        found.append(Stored(key, _topic(row), payload))
                        if len(found) >= n:
                            return found
        return found

    def _write(self, rows: list[_Row]) -> None:
        """Write what is new, and the removals that wait, in one commit; to memory if the disk will not have it."""
        if self._memory:
            _commit(self._memory, self._unwritten, rows)
            self._removed.difference_update(key for key in self._unwritten if key >= self._memory_from)
            self._unwritten.clear()
            return
        assert self._disk is not None
        try:
            self._reserve(self._disk)
            _commit(self._disk, self._unwritten, rows)
        except sqlite3.Error as e:
            self._fail(e)
            self._write(rows)
        else:
            self._removed.clear()
            self._unwritten.clear()

    def _reserve(self, db: sqlite3.Connection) -> None:
        if self._next > self._reserved:
            blocks = self._next // _BLOCK + 1
            db.execute(f"PRAGMA user_version = {blocks}")
            self._reserved = blocks * _BLOCK

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
        if _is_damage(error) and self._clock.monotonic_ns() >= self._quarantine_ns:
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
        self._trouble = _told(error, self._path)
        self._retry_ns = self._clock.monotonic_ns() + _RETRY_NS
        self._hold_in_memory()

    def _hold_in_memory(self) -> None:
        """Let new messages go to memory, and, where SQLite cannot open the file, what can be read of that."""
        rows_in = self._memory or _memory_database()
        # Once this run has keys of its own, rows that are not known to stand below them are left where they are.
        if self._path and self._disk is None and not self._loaded and (self._next == 0 or self._reserved):
            with contextlib.suppress(OSError, sqlite3.Error), _salvage(self._path) as (self._reserved, found):
                _commit(rows_in, set(), (row for row in found if row[0] not in self._removed))
                self._know(max(self._reserved - 1, _newest(rows_in)))
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
        rows = self._disk.execute(_SELECT, (0,)).fetchall()
        memory = _memory_database()
        _commit(memory, set(), [row for row in rows if row[0] not in self._removed])
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
        rows = self._memory.execute(_SELECT, (0,)).fetchall()
        self._reserve(self._disk)
        # Removals alone first: on a full disk they make the room.
        _commit(self._disk, self._removed, [])
        _commit(self._disk, set(), [row for row in rows if row[0] not in self._removed])
        self._memory.close()
        self._memory = None
        self._loaded = False
        self._removed.clear()
        self._unwritten.clear()

    def _start_over(self, error: sqlite3.Error) -> bool:
        """Begin a new file if the disk is full and all in the old one was removed: its log cannot shrink there."""
        if self._disk is None or self._path is None or _kind(error) != sqlite3.SQLITE_FULL:
            return False
        with contextlib.closing(self._disk.execute(_SIZES)) as rows:
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
            for key, size in db.execute(_SIZES):
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
            self._disk = _connect(self._path, self._synchronous)
            self._adopt()
        except sqlite3.Error as e:
            if not _is_damage(e) or self._clock.monotonic_ns() < self._quarantine_ns:
                self._close_disk()
                raise
            self._quarantine(str(e))

    def _adopt(self) -> None:
        """Take over what the open file holds; its keys end below those of this run."""
        assert self._disk is not None
        self._reserved = self._disk.execute("PRAGMA user_version").fetchone()[0] * _BLOCK
        newest = _newest(self._disk)
        if self._memory and not self._loaded and newest >= self._memory_from:
            rows = list(_salvaged(self._disk))
            self._close_disk()
            first = self._memory_from - len(rows)
            self._replace([_row(key, Outgoing(_topic(row), row[3])) for key, row in enumerate(rows, first)])
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
        with _salvage(self._path) as (reserved, found):
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

    def _replace(self, rows: Iterable[_Row]) -> None:
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
        self._disk = _connect(self._path, self._synchronous)
        self._adopt()

    def _write_replacement(self, rows: Iterable[_Row]) -> None:
        # Without a log, which would double what is written: until it is renamed, nobody needs this file.
        with contextlib.closing(sqlite3.connect(self._replacement, isolation_level=None)) as new:
            for pragma in (f"page_size = {_PAGE}", "journal_mode = OFF", "synchronous = OFF"):
                new.execute(f"PRAGMA {pragma}").fetchall()
            _create(new)
            _commit(new, set(), rows)
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


def _row(key: int, message: Outgoing) -> _Row:
    # A topic made of a file's name may hold what is no Unicode; that is for the link to refuse.
    topic = message.topic.encode("utf-8", "surrogatepass")
    return key, _crc(key, topic, message.payload), topic, message.payload


def _crc(key: int, topic: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(topic, key & 0xFFFFFFFF))


def _topic(row: _Row) -> str:
    return row[2].decode("utf-8", "surrogatepass")


def _checked(row: _Row) -> _Row:
    """Return a row that is what was stored.

    Raises:
        _DamagedError: it is not.
    """
    key, crc, topic, payload = row
    if type(topic) is not bytes or type(payload) is not bytes or crc != _crc(key, topic, payload):
        raise _DamagedError(f"message {key} is not what was stored")
    return row


def _commit(db: sqlite3.Connection, removed: set[int], rows: Iterable[_Row]) -> None:
    """Remove and add in one transaction, or do neither.

    Raises:
        sqlite3.Error: neither was done.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        # Removals first, so that what comes takes their place in the page.
        if removed:
            db.executemany(_DELETE, _runs(removed))
        db.executemany(_INSERT, rows)
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _newest(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(key), 0) FROM messages").fetchone()[0])


def _runs(keys: set[int]) -> list[tuple[int, int]]:
    """Keys as runs, first and last of each: what was acknowledged together is removed by one statement."""
    runs: list[tuple[int, int]] = []
    first = last = -1
    for key in sorted(keys):
        if key != last + 1 or first < 0:
            if first >= 0:
                runs.append((first, last))
            first = key
        last = key
    if first >= 0:
        runs.append((first, last))
    return runs


def _memory_database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute(_SCHEMA)
    return db


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """Open the file, or make one.

    Raises:
        sqlite3.Error: see `_is_damage`.
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=0.1)
    try:
        # Exclusive: no shared memory file and no lock at each commit. The log is flushed to the disk by checkpoints.
        for pragma in (
            f"page_size = {_PAGE}",
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            f"wal_autocheckpoint = {_WAL_PAGES}",
            f"journal_size_limit = {_WAL_PAGES * _PAGE}",
            "secure_delete = OFF",
            "temp_store = MEMORY",
            "cache_size = -512",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        tables = db.execute("SELECT sql FROM sqlite_master").fetchall()
        application = db.execute("PRAGMA application_id").fetchone()[0]
        if not tables and application == 0:
            _create(db)
        elif tables != [(_SCHEMA,)] or application != _APPLICATION:
            raise _DamagedError("its tables are not those of an outbox")
        else:
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise _DamagedError(" ".join(str(found).split()))
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def _salvage(path: Path) -> Iterator[tuple[int, Iterator[_Row]]]:
    """Give the key below which all may be in use, and every row that can still be read and is what was stored.

    Works on a copy in memory, unless the file is too large: that needs no right to write, and a damaged first page,
    which says where the table is, can be put right there: the table of an outbox always begins on the second.

    Raises:
        OSError, sqlite3.Error: the file cannot be read.
    """
    if path.stat().st_size > _MOST_IN_MEMORY:
        db = sqlite3.connect(path, isolation_level=None, timeout=0.1)
    else:
        page, image = _image(path)
        db = _opened_image(image)
        if next(_salvaged(db), None) is None:
            db.close()
            with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as template:
                template.execute(f"PRAGMA page_size = {page}")
                template.execute(_SCHEMA)
                image[:page] = template.serialize()[:page]
            image[28:32] = (len(image) // page).to_bytes(4)
            db = _opened_image(image)
        del image
    try:
        db.text_factory = bytes
        reserved = 0
        with contextlib.suppress(sqlite3.Error):
            reserved = max(0, db.execute("PRAGMA user_version").fetchone()[0]) * _BLOCK
        yield reserved, _salvaged(db)
    finally:
        db.close()


def _opened_image(image: bytearray) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    # An image that is not even that of a database gives errors on reading.
    with contextlib.suppress(sqlite3.Error):
        db.deserialize(image)
    return db


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _image(path: Path) -> tuple[int, bytearray]:
    """Return the page size, and the database as it is with all whole commits of its log, in rollback mode.

    Formats: https://www.sqlite.org/fileformat2.html, sections 1.3 and 4.
    """
    image = bytearray(path.read_bytes())
    log = _bytes_of(Path(f"{path}-wal"))
    page = int.from_bytes(image[16:18]) or int.from_bytes(log[8:12])
    if page not in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        page = _PAGE
    image += bytes(-len(image) % page)
    commit: dict[int, bytes] = {}
    order: Literal["little", "big"] = "big" if log[:4] == b"\x37\x7f\x06\x83" else "little"
    if len(log) < 32:
        # Torn in its header.
        log = bytes(32)
    sums = _log_sums(log[:24], (0, 0), order)
    if int.from_bytes(log[8:12]) != page or log[24:32] != _packed(sums):
        log = b""
    for at in range(32, len(log) - page - 23, page + 24):
        head, body = log[at : at + 24], log[at + 24 : at + 24 + page]
        sums = _log_sums(head[:8] + body, sums, order)
        if head[8:16] != log[16:24] or head[16:24] != _packed(sums):
            break
        commit[int.from_bytes(head[:4])] = body
        pages = int.from_bytes(head[4:8])
        if pages:
            image += bytes(max(0, pages * page - len(image)))
            for number, content in commit.items():
                image[(number - 1) * page : number * page] = content
            commit.clear()
            image[28:32] = pages.to_bytes(4)
    image[18:20] = b"\x01\x01"
    return page, image


def _log_sums(data: bytes, sums: tuple[int, int], order: Literal["little", "big"]) -> tuple[int, int]:
    words = array("I", data)
    if order != sys.byteorder:
        words.byteswap()
    a, b = sums
    for i in range(0, len(words), 2):
        a = (a + words[i] + b) & 0xFFFFFFFF
        b = (b + words[i + 1] + a) & 0xFFFFFFFF
    return a, b


def _packed(sums: tuple[int, int]) -> bytes:
    return sums[0].to_bytes(4) + sums[1].to_bytes(4)


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.execute(_SCHEMA)
    db.execute(f"PRAGMA application_id = {_APPLICATION}")
    db.execute("COMMIT")


def _salvaged(db: sqlite3.Connection) -> Iterator[_Row]:
    """Walk over the rows; where reading fails, go on further up, in steps that double until something is found."""
    at, step = 0, 1
    while at < 1 << 62:
        try:
            with contextlib.closing(db.execute(_SELECT, (at,))) as rows:
                for row in rows:
                    at, step = row[0], 1
                    with contextlib.suppress(_DamagedError):
                        yield _checked(row)
            return
        except sqlite3.Error:
            at += step
            step *= 2


_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_FORMAT,
    }
)


def _is_damage(error: Exception) -> bool:
    """Whether the file is to blame, and not the disk."""
    return isinstance(error, sqlite3.Error) and _kind(error) in _DAMAGE


def _kind(error: sqlite3.Error) -> int:
    """The low byte of SQLite's extended code; what comes without one was said by Python about what it read."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & 0xFF


_MAKE_ROOM = "make room on that disk"
_ALLOW = "let the agent's user write there"
_END = "end the program that has it open"
_MOVE = "make it a directory, or set another agent.state_dir"
_SQLITE_ADVICE = {
    sqlite3.SQLITE_FULL: _MAKE_ROOM,
    sqlite3.SQLITE_READONLY: _ALLOW,
    sqlite3.SQLITE_CANTOPEN: _ALLOW,
    sqlite3.SQLITE_PERM: _ALLOW,
    sqlite3.SQLITE_BUSY: _END,
    sqlite3.SQLITE_LOCKED: _END,
}
_SYSTEM_ADVICE = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EROFS: _ALLOW,
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.ENOTDIR: _MOVE,
    errno.EEXIST: _MOVE,
}


def _told(error: Exception, path: Path) -> str:
    """What is wrong, and what to do, for people."""
    held = "messages are held in memory until then"
    if isinstance(error, ConfigError):
        return f"{error}; {held}"
    if isinstance(error, OSError):
        why, todo = error.strerror or str(error), _SYSTEM_ADVICE.get(error.errno or 0)
    else:
        why, todo = str(error), _SQLITE_ADVICE.get(_kind(error)) if isinstance(error, sqlite3.Error) else None
    return f"{path.parent} cannot be written ({why}): {todo or 'check the disk'}; {held}"
