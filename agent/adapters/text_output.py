"""Text out: to a file, a gzip file or standard output; and predictions as lines of it."""

import errno
import io
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from agent.core.wire import CSV_COLUMNS, csv_row, encode, prediction_message
from agent.errors import OutputError
from agent.records import Prediction, Turn

FORMATS = ("jsonl", "csv")
STDOUT = "-"
T = TypeVar("T")


class TextOutput:
    """UTF-8 text to `path`; `-` is standard output, a name that ends with .gz is compressed.

    What is no Unicode is written as an escape.
    """

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            OutputError: the file cannot be made.
        """
        if path.endswith((".zst", ".zstd")):
            raise OutputError(f"{path}: zstd is read, not written; use a name that ends with .gz, or none of them")
        self._path = path
        self._open_files = ExitStack()
        self._file = self._guard(self._open)

    def __enter__(self) -> Self:
        """Return this output; leaving closes it."""
        return self

    def __exit__(self, *exc: object) -> None:
        """See `close`."""
        self.close()

    def write(self, text: str) -> None:
        """Write `text`.

        Raises:
            OutputError: the reader of standard output has gone, or the disk is full.
        """
        self._guard(lambda: self._file.write(text))

    def flush(self) -> None:
        """Hand everything to the operating system.

        Raises:
            OutputError: as `write`.
        """
        self._guard(self._file.flush)

    def close(self) -> None:
        """Flush, and close what was opened here. Idempotent.

        Raises:
            OutputError: as `write`.
        """
        try:
            if not self._file.closed:
                self.flush()
        finally:
            self._guard(self._open_files.close)

    def _open(self) -> IO[str]:
        if self._path == STDOUT:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "it is closed")
            return sys.stdout
        raw: Any = self._open_files.enter_context(Path(self._path).open("wb"))  # noqa: SIM115  it closes
        if self._path.endswith(".gz"):
            import gzip

            # Without a name and a time inside, equal text gives equal files.
            raw = self._open_files.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
        return self._open_files.enter_context(io.TextIOWrapper(raw, "utf-8", "backslashreplace", newline=""))

    def _guard(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except BrokenPipeError as e:
            raise OutputError("the reader of standard output closed it before all was written") from e
        except OSError as e:
            where = "standard output" if self._path == STDOUT else self._path
            hint = "; free some space or write elsewhere" if e.errno == errno.ENOSPC else ""
            raise OutputError(f"{where} cannot be written: {e.strerror or e}{hint}") from e


class PredictionLines:
    """`ports.Sink` that writes predictions, one a line, as JSONL or CSV.

    `recording` is set by whoever replays several files through one sink.
    """

    def __init__(self, output: TextOutput, fmt: str, labels: tuple[str, ...]) -> None:
        """`fmt`: one of `FORMATS`. `labels`: the model's."""
        self.recording = ""
        self._output = output
        self._labels = labels
        self._as_csv = fmt == "csv"
        if self._as_csv:
            self._write_csv([("recording", *CSV_COLUMNS)])

    def write(self, turn: Turn) -> None:
        """Write the turn's predictions.

        Raises:
            OutputError: see `TextOutput.write`.
        """
        predictions = [e for e in turn.events if isinstance(e, Prediction)]
        if self._as_csv:
            self._write_csv([(self.recording, *csv_row(p)) for p in predictions])
            return
        lines = [
            encode({"recording": self.recording, **prediction_message(p, self._labels)}).decode() + "\n"
            for p in predictions
        ]
        self._output.write("".join(lines))

    def close(self) -> None:
        """Close the output. Idempotent."""
        self._output.close()

    def _write_csv(self, rows: list[tuple[object, ...]]) -> None:
        import csv

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._output.write(text.getvalue())
