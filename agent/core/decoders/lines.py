"""What the text protocols share: one sample a line."""

from collections.abc import Callable

from agent.core.framing import LineFramer
from agent.core.input import RowIntake
from agent.records import BadFrame, Decoded, Loss

ReadLine = Callable[[bytes], list[float] | Loss | None]
"""A line's numbers, time first if the sensor sends it; what is wrong with it; or None for a line that is no data."""


class LineDecoder:
    """`ports.Decoder` of a sensor that sends a sample a line. `BadFrame.where` is the line since the last reset."""

    def __init__(self, intake: RowIntake, read: ReadLine) -> None:
        self._intake = intake
        self._read = read
        self._framer = LineFramer()
        self._line = 1

    def feed(self, data: bytes, t_rx_ns: int) -> list[Decoded]:
        """See `ports.Decoder.feed`."""
        line = self._framer.only(data)
        if line is not None:
            row = self._read(line)
            if isinstance(row, list) and (one := self._intake.take_one(row, t_rx_ns)) is not None:
                self._line += 1
                return [one]
        block = line or self._framer.feed(data)
        bad: list[Decoded] = []
        if self._framer.too_long:
            bad, self._framer.too_long = self._bad(Loss.TOO_LONG, self._framer.too_long), []
        if not block:
            return bad
        first, last, taken = self._line, block.count(b"\n"), 0
        self._line += last
        rows: list[list[float]] = []
        wheres: list[int] = []
        places: list[int] = []
        for where, line in enumerate(block.split(b"\n")[:last], first):
            read = self._read(line)
            if isinstance(read, list):
                rows.append(read)
                wheres.append(where)
                places.append(taken)
                taken += 1
            elif read is not None:
                bad += self._bad(read, [where])
                # A line of the right length was a sample, whatever became of it.
                taken += read is Loss.NUMBER
        if not rows:
            self._intake.skip(taken)
            return bad
        return self._intake.take(rows, t_rx_ns, wheres, None if taken == len(rows) else places, taken) + bad

    def reset(self) -> list[Decoded]:
        """See `ports.Decoder.reset`."""
        block, torn = self._framer.finish()
        out: list[Decoded] = self._bad(Loss.TORN, [self._line]) if block.strip() or torn.strip() else []
        self._framer, self._line = LineFramer(), 1
        return [*out, self._intake.interrupted()]

    def _bad(self, reason: Loss, wheres: list[int]) -> list[Decoded]:
        return [BadFrame(self._intake.stream, reason, where) for where in wheres]
