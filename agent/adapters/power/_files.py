"""Small files of sysfs and procfs."""

from pathlib import Path

_MOST_BYTES = 4096
"""Attributes are a line; what is longer is not one of them, and is not read to its end."""


def number(path: Path) -> int:
    """Return the integer that is all of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not an integer of a size that a sensor has.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES).strip()
    if len(content) > 20:
        raise ValueError(f"{path} is not a number")
    return int(content)


def text(path: Path) -> str:
    """Return a file without white space at its ends; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace").strip("\0 \t\r\n")
    except OSError:
        return ""
