"""Whole lines, and whole zero-ended blocks, out of a stream of bytes."""

MAX_LINE = 1 << 16
"""A longer line is not text from a sensor: without a cap, a stream without line ends would fill the memory."""


class LineFramer:
    """Cuts bytes, however they come, after line ends: LF, CRLF or a lone CR.

    A line that is too long is dropped and leaves an empty one, so that lines can be counted. `too_long` has its number,
    from 1, until whoever reads it takes it away.
    """

    def __init__(self) -> None:
        self.too_long: list[int] = []
        self._rest = b""
        self._skipping = False
        self._lines = 0

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
            # The end of a line whose beginning was dropped.
            block = block[block.index(b"\n") :]
            self._skipping = False
        if len(block) > MAX_LINE:
            block = self._without_long_lines(block)
        self._lines += block.count(b"\n")
        if len(self._rest) > MAX_LINE + 1:
            if not self._skipping:
                self.too_long.append(self._lines + 1)
            # A CR that waits is still the line's end.
            self._rest, self._skipping = self._rest[-1:] if self._rest.endswith(b"\r") else b"", True
        return block

    def only(self, data: bytes) -> bytes | None:
        """Take `data` if it is one whole line, and nothing waits for its end; None, with nothing taken, otherwise.

        The common case of a live sensor, for less than `feed` costs.
        """
        end = len(data) - 1
        if self._rest or self._skipping or data.find(b"\n") != end or not 0 <= end < MAX_LINE:
            return None
        if data.find(b"\r") not in (-1, end - 1):
            return None
        self._lines += 1
        return data

    def finish(self) -> tuple[bytes, bytes]:
        """End the input: return the last whole line, which a lone CR may have ended, and what was torn off after it."""
        rest, self._rest = self._rest, b""
        if self._skipping:
            return (b"\n", b"") if rest.endswith(b"\r") else (b"", b"")
        if rest.endswith(b"\r"):
            return self._without_long_lines(rest[:-1] + b"\n"), b""
        return b"", rest

    def _without_long_lines(self, block: bytes) -> bytes:
        lines = block.split(b"\n")
        for i, line in enumerate(lines):
            if len(line) > MAX_LINE:
                self.too_long.append(self._lines + i + 1)
                lines[i] = b""
        return b"\n".join(lines)


class BlockFramer:
    """Cuts bytes, however they come, after 0x00, the end of a COBS block. Blocks over `longest` are dropped.

    `skipped`: bytes of dropped blocks, until whoever reads it takes it away.
    """

    def __init__(self, longest: int) -> None:
        self.skipped = 0
        self._longest = longest
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the blocks that are complete with `data`, without their zeros; empty ones are left out."""
        *blocks, rest = (self._rest + data).split(b"\0")
        if self._skipping and blocks:
            # The end of a block whose beginning was dropped.
            self.skipped += len(blocks.pop(0))
            self._skipping = False
        if self._skipping or len(rest) > self._longest:
            self.skipped += len(rest)
            rest, self._skipping = b"", True
        self._rest = rest
        self.skipped += sum(len(block) for block in blocks if len(block) > self._longest)
        return [block for block in blocks if 0 < len(block) <= self._longest]

    def finish(self) -> bytes:
        """End the input: return what was torn off after the last zero."""
        rest, self._rest, self._skipping = self._rest, b"", False
        return rest
