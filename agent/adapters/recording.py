"""Recordings on disk or standard input as a source: CSV or raw bytes, plain or compressed."""

import importlib
import io
import os
import stat
import sys
from pathlib import Path
from typing import Any, cast

from agent.core import harraw
from agent.core.decoders.recording import Declared, RecordingDecoder
from agent.errors import InputError, SourceUnavailable
from agent.records import Decoded

BLOCK = 1 << 16
"""Bytes that are decoded at a time: enough to work column by column, little enough to keep memory flat."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
STDIN = "-"


class RecordingSource:
    """`ports.Source` over one recording. `path`: a file, or `-` for standard input.

    Compression, and whether it is CSV or raw, are told by the first bytes, whatever the name ends with.
    """

    def __init__(self, path: str, declared: Declared | None = None) -> None:
        """Open the file.

        Raises:
            SourceUnavailable: there is no such file, or it may not be read.
            InputError: it is a directory.
        """
        self.path = path
        self._raw = _open(path)
        self.size: int | None = None
        """Bytes in the file as stored; None where that cannot be known."""
        # What a damaged file raises, known once it is clear which library reads it.
        self._damage: tuple[type[Exception], ...] = (EOFError,)
        self._ended = False
        self._broken: InputError | None = None
        try:
            found = os.fstat(self._raw.fileno())
            if path != STDIN and stat.S_ISREG(found.st_mode):
                self.size = found.st_size
            self._data = self._uncompressed()
        except OSError as e:
            self._raw.close()
            raise SourceUnavailable(f"it cannot be read: {e.strerror or e}") from e
        self._name = "stdin" if path == STDIN else Path(path).name.split(".")[0] or Path(path).name
        self._declared = declared
        self._head = b""
        self._decoder: RecordingDecoder | harraw.RawDecoder | None = None

    @property
    def device(self) -> str:
        """The stream's name, once the header is read."""
        return self._decoder.device if self._decoder else self._name

    @property
    def is_raw(self) -> bool:
        """Whether it holds bytes as a sensor sent them, what cannot be read included; known after the first block."""
        return isinstance(self._decoder, harraw.RawDecoder)

    @property
    def position(self) -> int:
        """Bytes of the file, as stored, that have been read."""
        return self._raw.tell() if self.size is not None else 0

    def poll(self, timeout_s: float) -> list[Decoded] | None:  # noqa: ARG002  a file does not wait
        """Return what the next block holds; None at the end.

        Raises:
            InputError: the recording cannot be used, or is cut short inside its compression.
            SourceUnavailable: reading failed.
        """
        if self._broken:
            raise self._broken
        if self._ended:
            return None
        try:
            block = self._data.read1(BLOCK)
        except self._damage as e:
            block = self._break(e)
        except OSError as e:
            raise SourceUnavailable(f"reading failed: {e.strerror or e}") from e
        if self._decoder is None:
            if block and harraw.START.startswith(self._head + block):
                # A pipe may give its first bytes one by one.
                self._head += block
                return []
            block = self._head + block
            kind = harraw.RawDecoder if block.startswith(harraw.START) else RecordingDecoder
            self._decoder = kind(self._name, self._declared)
        if block:
            return self._decoder.feed(block)
        self._ended = True
        try:
            return self._decoder.finish()
        except InputError as e:
            # Too little came for a header: if that is because the file is damaged, that is what to say.
            raise self._broken or e from e

    def _break(self, cause: Exception) -> bytes:
        """Note that nothing more can be read; what has been decoded so far still counts."""
        self._broken = InputError("its compressed data is cut short or damaged; what came before was replayed")
        self._broken.__cause__ = cause
        return b""

    def close(self) -> None:
        """Close the file."""
        if self.path != STDIN:
            self._data.close()
            self._raw.close()

    def _uncompressed(self) -> io.BufferedReader:
        raw = self._raw
        start = raw.peek(4)
        if self.size is None:
            # A pipe may give its first byte alone, and peek() does not wait for the second.
            start = raw.read(4)
            raw = io.BufferedReader(_Pushback(start, raw))
        if start.startswith(_GZIP):
            gzip, zlib = (importlib.import_module(name) for name in ("gzip", "zlib"))
            self._damage += (gzip.BadGzipFile, zlib.error)
            return cast("io.BufferedReader", gzip.GzipFile(fileobj=raw))
        if start.startswith(_ZSTD):
            try:
                # In the standard library from Python 3.14 on; before that, the same code as a package.
                zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
            except ImportError as e:
                raise SourceUnavailable(
                    "it is compressed with zstd, which needs: pip install 'har-edge-agent[zstd]'"
                ) from e
            self._damage += (zstd.ZstdError,)
            return cast("io.BufferedReader", zstd.ZstdFile(raw))
        return raw


class _Pushback(io.RawIOBase):
    """A stream with what was read of its beginning put back."""

    def __init__(self, head: bytes, rest: io.BufferedReader) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Give the head first, then what one read of the rest brings."""
        data, self._head = self._head or self._rest.read1(len(buffer)), b""
        n = min(len(data), len(buffer))
        buffer[:n], self._head = data[:n], data[n:]
        return n


def _open(path: str) -> io.BufferedReader:
    if path == STDIN:
        if sys.stdin is None:
            raise SourceUnavailable("standard input is closed")
        return cast("io.BufferedReader", sys.stdin.buffer)
    try:
        return Path(path).open("rb")
    except IsADirectoryError as e:
        raise InputError(f"it is a directory; give its files, such as {path.rstrip('/')}/*.csv") from e
    except FileNotFoundError as e:
        raise SourceUnavailable("there is no such file") from e
    except OSError as e:
        raise SourceUnavailable(f"it cannot be opened: {e.strerror or e}") from e
