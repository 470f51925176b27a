"""What can be read of a damaged outbox."""

import contextlib
import sqlite3
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from agent.adapters.outbox.database import KEY_BLOCK, PAGE, SCHEMA, SELECT, DamagedError, Row, checked

_MOST_IN_MEMORY = 128 * 1024 * 1024
"""Bytes of a file that is salvaged in memory; a larger one must be readable by SQLite as it stands."""


@contextlib.contextmanager
def salvage(path: Path) -> Iterator[tuple[int, Iterator[Row]]]:
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
        if next(salvaged(db), None) is None:
            db.close()
            with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as template:
                template.execute(f"PRAGMA page_size = {page}")
                template.execute(SCHEMA)
                image[:page] = template.serialize()[:page]
            image[28:32] = (len(image) // page).to_bytes(4)
            db = _opened_image(image)
        del image
    try:
        db.text_factory = bytes
        reserved = 0
        with contextlib.suppress(sqlite3.Error):
            reserved = max(0, db.execute("PRAGMA user_version").fetchone()[0]) * KEY_BLOCK
        yield reserved, salvaged(db)
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
        page = PAGE
    image += bytes(-len(image) % page)
    pages_of_commit: dict[int, bytes] = {}
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
        pages_of_commit[int.from_bytes(head[:4])] = body
        pages = int.from_bytes(head[4:8])
        if pages:
            image += bytes(max(0, pages * page - len(image)))
            for number, content in pages_of_commit.items():
                image[(number - 1) * page : number * page] = content
            pages_of_commit.clear()
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


def salvaged(db: sqlite3.Connection) -> Iterator[Row]:
    """Walk over the rows; where reading fails, go on further up, in steps that double until something is found."""
    at, step = 0, 1
    while at < 1 << 62:
        try:
            with contextlib.closing(db.execute(SELECT, (at,))) as rows:
                for row in rows:
                    at, step = row[0], 1
                    with contextlib.suppress(DamagedError):
                        yield checked(row)
            return
        except sqlite3.Error:
            at += step
            step *= 2
