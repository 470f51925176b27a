"""Result files: what a command measured, with the tables and plots that docs/results.md shows of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of ready text under a caption. The numbers behind them belong in the result's `data`."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A picture beside docs/results.md: `file` is its path from there."""

    file: str
    caption: str


@dataclass(frozen=True)
class Result:
    """One experiment. `command`: what was typed to measure it. `text`: paragraphs of Markdown above the tables."""

    title: str
    command: str
    text: Sequence[str]
    tables: Sequence[Table]
    plots: Sequence[Plot]
    data: Any


def write(result: Result, path: Path) -> None:
    """Write a result file that `tools/docs.py` turns into a section of docs/results.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


def spread(values: Sequence[float]) -> str:
    """Return shares as a mean and a standard deviation in per cent, `96.6 ± 0.5`."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
    return f"{100 * mean:.1f} ± {100 * variance**0.5:.1f}"
