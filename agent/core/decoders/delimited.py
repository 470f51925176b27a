"""The format `csv`: a line of six numbers, or of a time and six numbers, as most sketches print."""

from agent.core.decoders.lines import LineDecoder, ReadLine
from agent.core.input import RowIntake
from agent.records import CHANNELS, Loss

_SEPARATORS = bytes.maketrans(b",;\t", b"   ")


def fields(line: bytes) -> list[bytes]:
    """Cut a line at commas, semicolons, tabs and spaces; several of them, or some at the end, are one cut."""
    return line.translate(_SEPARATORS).split()


def delimited(intake: RowIntake) -> LineDecoder:
    """Return the decoder."""
    return LineDecoder(intake, _reader(len(CHANNELS) + intake.timed))


def _reader(columns: int) -> ReadLine:
    def read(line: bytes) -> list[float] | Loss | None:
        cells = fields(line)
        if len(cells) != columns:
            if not cells:
                return None
            return Loss.COLUMNS if line.isascii() else Loss.ENCODING
        try:
            # float() takes 1_000 for a number; a sensor does not write it.
            return list(map(float, cells)) if b"_" not in line else Loss.NUMBER
        except ValueError:
            return Loss.NUMBER

    return read
