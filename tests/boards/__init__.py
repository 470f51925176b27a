"""Boards as trees of files: see README.md beside this."""

from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).parent


class BoardTree(NamedTuple):
    """Where a board's files were written, and how it answers `vcgencmd`."""

    name: str
    sysfs: Path
    procfs: Path

    def vcgencmd(self, command: str) -> str | None:
        answer = _HERE / f"{self.name}.{command}.txt"
        return answer.read_text() if answer.exists() else None

    def put(self, path: str, content: object) -> None:
        put(self.sysfs.parent / path, content)


def put(path: Path, content: object) -> None:
    """Write an attribute as the kernel gives it: with a line's end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def board(name: str, folder: Path) -> BoardTree:
    """Write the tree of a board into `folder`."""
    for line in (_HERE / f"{name}.tree").read_text().splitlines():
        path, _, content = line.partition(": ")
        put(folder / path, content.replace(r"\0", "\0"))
    return BoardTree(name, folder / "sys", folder / "proc")
