"""Whole lines out of a stream of bytes."""

MAX_LINE = 1 << 16
"""A longer line is not text from a sensor: without a cap, a stream without line ends would fill the memory."""


class LineFramer:
    """Cuts bytes, however they come, after line ends: LF, CRLF or a lone CR."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self.too_long = 0
        """Lines that were dropped for their length."""

    def feed(self, data: bytes) -> bytes:
        """Return the whole lines that are complete with `data`, each ended by LF; empty if there is none."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        # A CR at the very end may be half of a CRLF: it waits.
        end = max(end, data.rfind(b"\r", end, len(data) - 1) + 1)
        block, self._rest = data[:end], data[end:]
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._skipping and block:
            # The end of a line whose beginning was dropped; it keeps its place in the count of lines.
            block = block[block.index(b"\n") :]
            self._skipping = False
        if len(self._rest) > MAX_LINE:
            self.too_long += not self._skipping
            self._rest, self._skipping = b"", True
        return block

    def finish(self) -> tuple[bytes, bytes]:
        """End the input: return the last whole line, which a lone CR may have ended, and what was torn off after it."""
        rest, self._rest = self._rest, b""
        if self._skipping:
            return (b"\n", b"") if rest.endswith(b"\r") else (b"", b"")
        return (rest[:-1] + b"\n", b"") if rest.endswith(b"\r") else (b"", rest)
