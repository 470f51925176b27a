"""The database of the outbox: its table, its rows, and one transaction."""

import contextlib
import sqlite3
import zlib
from collections.abc import Iterable
from pathlib import Path

from agent.records import Outgoing

PAGE = 1024
"""Bytes a page: a prediction fits in one, and a commit writes at least one."""
WAL_PAGES = 4096
"""Pages of log before they go to their place: with `process`, the only moments that wait for the disk."""

APPLICATION = 0x48415245
KEY_BLOCK = 1 << 24
"""Keys that `user_version` counts by: below so many blocks, all may be in use."""
SCHEMA = "CREATE TABLE messages(key INTEGER PRIMARY KEY, crc INTEGER, topic BLOB, payload BLOB)"
INSERT = "INSERT OR IGNORE INTO messages(key, crc, topic, payload) VALUES (?, ?, ?, ?)"
SELECT = "SELECT key, crc, topic, payload FROM messages WHERE key > ? ORDER BY key"
DELETE = "DELETE FROM messages WHERE key BETWEEN ? AND ?"
SIZES = "SELECT key, length(topic) + length(payload) FROM messages ORDER BY key"
SIZE = "SELECT length(topic) + length(payload) FROM messages WHERE key = ?"

Row = tuple[int, int, bytes, bytes]


class DamagedError(sqlite3.DatabaseError):
    """The file is not, or no longer, an outbox, though SQLite can read it."""


def packed_row(key: int, message: Outgoing) -> Row:
    """Return a message as it is stored under `key`."""
    # A topic made of a file's name may hold what is no Unicode; that is for the link to refuse.
    topic = message.topic.encode("utf-8", "surrogatepass")
    return key, row_crc(key, topic, message.payload), topic, message.payload


def row_crc(key: int, topic: bytes, payload: bytes) -> int:
    """Return the checksum of a row."""
    return zlib.crc32(payload, zlib.crc32(topic, key & 0xFFFFFFFF))


def topic_of(row: Row) -> str:
    """Return the topic of a row."""
    return row[2].decode("utf-8", "surrogatepass")


def checked(row: Row) -> Row:
    """Return a row that is what was stored.

    Raises:
        DamagedError: it is not.
    """
    key, crc, topic, payload = row
    if type(topic) is not bytes or type(payload) is not bytes or crc != row_crc(key, topic, payload):
        raise DamagedError(f"message {key} is not what was stored")
    return row


def commit(db: sqlite3.Connection, removed: set[int], rows: Iterable[Row]) -> None:
    """Remove and add in one transaction, or do neither.

    Raises:
        sqlite3.Error: neither was done.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        # Removals first, so that what comes takes their place in the page.
        if removed:
            db.executemany(DELETE, key_runs(removed))
        db.executemany(INSERT, rows)
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def newest_key(db: sqlite3.Connection) -> int:
    """Return the highest key; 0 of none."""
    return int(db.execute("SELECT coalesce(max(key), 0) FROM messages").fetchone()[0])


def key_runs(keys: set[int]) -> list[tuple[int, int]]:
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


def memory_database() -> sqlite3.Connection:
    """Open an outbox that is nowhere but in memory."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute(SCHEMA)
    return db


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """Open the file, or make one.

    Raises:
        sqlite3.Error: see `is_damage`.
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=0.1)
    try:
        # Exclusive: no shared memory file and no lock at each commit. The log is flushed to the disk by checkpoints.
        for pragma in (
            f"page_size = {PAGE}",
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            f"wal_autocheckpoint = {WAL_PAGES}",
            f"journal_size_limit = {WAL_PAGES * PAGE}",
            "secure_delete = OFF",
            "temp_store = MEMORY",
            "cache_size = -512",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        tables = db.execute("SELECT sql FROM sqlite_master").fetchall()
        application = db.execute("PRAGMA application_id").fetchone()[0]
        if not tables and application == 0:
            create(db)
        elif tables != [(SCHEMA,)] or application != APPLICATION:
            raise DamagedError("its tables are not those of an outbox")
        else:
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise DamagedError(" ".join(str(found).split()))
    except BaseException:
        db.close()
        raise
    return db


def create(db: sqlite3.Connection) -> None:
    """Make the table in an empty database."""
    db.execute("BEGIN IMMEDIATE")
    db.execute(SCHEMA)
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute("COMMIT")
