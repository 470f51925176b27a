"""What an error of the disk, or of the database on it, means, and what to do about it."""

import errno
import sqlite3
from pathlib import Path

from agent.errors import ConfigError

_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_FORMAT,
    }
)


def is_damage(error: Exception) -> bool:
    """Whether the file is to blame, and not the disk."""
    return isinstance(error, sqlite3.Error) and kind_of(error) in _DAMAGE


def kind_of(error: sqlite3.Error) -> int:
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


def told(error: Exception, path: Path) -> str:
    """What is wrong, and what to do, for people."""
    held = "messages are held in memory until then"
    if isinstance(error, ConfigError):
        return f"{error}; {held}"
    if isinstance(error, OSError):
        why, todo = error.strerror or str(error), _SYSTEM_ADVICE.get(error.errno or 0)
    else:
        why, todo = str(error), _SQLITE_ADVICE.get(kind_of(error)) if isinstance(error, sqlite3.Error) else None
    return f"{path.parent} cannot be written ({why}): {todo or 'check the disk'}; {held}"
