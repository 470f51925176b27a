"""Model slots in the state directory: two folders and `slots.json`. A power cut leaves what was, or what shall be.

models/slots.json        core.slots.SlotState
models/a, models/b       the bundles
models/incoming          a bundle that is being written
models/*.damaged         what could not be used, for people to look at
models/.lock             flock of whoever changes something
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from agent.core.slots import Slot, SlotState, dump, parse
from agent.errors import OutputError

_STATE_CAP = 64 << 10


class FolderSlotStore:
    """`ports.SlotStore` on a file system."""

    def __init__(
        self,
        state_dir: Path,
        patience_s: float = 0.0,
        acting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`patience_s`: how long to wait for another process that changes something, before giving up.

        `acting`: is entered for every change, such as by root, to act as the agent's own user.
        """
        self._root = state_dir / "models"
        self._patience_s = patience_s
        self._acting = acting

    def load(self) -> tuple[SlotState, str | None]:
        """See `ports.SlotStore.load`."""
        path = self._root / "slots.json"
        try:
            with path.open("rb") as f:
                return parse(f.read(_STATE_CAP)), None
        except (FileNotFoundError, NotADirectoryError):
            return SlotState(), None
        except (OSError, ValueError) as e:
            return SlotState(), f"{path} cannot be used: {getattr(e, 'strerror', None) or e}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See `ports.SlotStore.locked`."""
        with self._acting():
            with self._errors("prepared"):
                self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
                # For reading: flock does not need more.
                fd = os.open(self._root / ".lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                with self._errors("locked"):
                    self._lock(fd)
                yield
            finally:
                os.close(fd)

    def save(self, state: SlotState) -> None:
        """See `ports.SlotStore.save`."""
        path, fresh = self._root / "slots.json", self._root / "slots.json.new"
        with self._errors("written"):
            if self.load()[1] is not None:
                path.replace(self._root / "slots.json.damaged")
            self._write(fresh, dump(state))
            fresh.replace(path)
            _sync(self._root)

    def stage(self, files: Mapping[str, bytes]) -> None:
        """See `ports.SlotStore.stage`."""
        folder = self._root / "incoming"
        with self._errors("written"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o755)
            for name, data in files.items():
                self._write(folder / name, data)
            _sync(folder)

    def place(self, slot: Slot) -> None:
        """See `ports.SlotStore.place`."""
        old = self._root / "outgoing"
        with self._errors("written"):
            shutil.rmtree(old, ignore_errors=True)
            if os.path.lexists(self._root / slot):
                (self._root / slot).rename(old)
            (self._root / "incoming").rename(self._root / slot)
            _sync(self._root)
            shutil.rmtree(old, ignore_errors=True)

    def quarantine(self, slot: Slot) -> None:
        """See `ports.SlotStore.quarantine`."""
        damaged = self._root / f"{slot}.damaged"
        with self._errors("put aside"):
            if os.path.lexists(self._root / slot):
                shutil.rmtree(damaged, ignore_errors=True)
                (self._root / slot).rename(damaged)
                _sync(self._root)

    def folder(self, slot: Slot) -> str:
        """See `ports.SlotStore.folder`."""
        return str(self._root / slot)

    def _lock(self, fd: int) -> None:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                if time.monotonic() >= deadline:
                    raise OutputError(
                        f"another har-agent is changing the models in {self._root}: try again when it has ended"
                    ) from e
                time.sleep(0.02)
            else:
                return

    def _write(self, path: Path, data: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as f:  # noqa: PTH123
            f.write(data)
            f.flush()
            os.fsync(f.fileno())

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise OutputError(f"{e.filename or self._root} cannot be {what}: {e.strerror or e}") from e


def _sync(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
