"""Slots on a real file system: whole or not at all, one at a time, and readable by whom they belong to."""

import errno
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from agent.adapters import slot_store
from agent.adapters.owner import as_owner_of
from agent.adapters.slot_store import FolderSlotStore
from agent.core.slots import RolledBack, SlotState, installed
from agent.errors import OutputError

STATE = SlotState(active="a", models={"a": "x@1", "b": None}, rolled_back=RolledBack("y@2", "slow", "2026-01-01"))


@pytest.fixture
def state_of_another():
    """A state directory of user 12345, who can get there: nobody but root can look into tmp_path."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir(0o755)
        os.chown(folder / "state", 12345, 12346)
        yield folder / "state"


@pytest.fixture
def store(tmp_path):
    store = FolderSlotStore(tmp_path)
    with store.locked():
        yield store


def files(tmp_path):
    return sorted(p.name for p in (tmp_path / "models").iterdir())


def test_what_is_saved_is_loaded(store, tmp_path):
    store.save(STATE)

    assert FolderSlotStore(tmp_path).load() == (STATE, None)
    assert files(tmp_path) == [".lock", "slots.json"]


def test_nothing_saved_is_a_state_without_problems(tmp_path):
    assert FolderSlotStore(tmp_path / "nowhere").load() == (SlotState(), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b'{"v": true}',
        b'{"v": 1, "active": "a"}',
        b'{"v": 1, "active": "a", "candidate": "a", "previous": null, "confirmed": true, "trial_starts": 0, '
        b'"models": {"a": "x", "b": null}, "rolled_back": null}',
        b'{"v": 1, "active": "b", "candidate": null, "previous": null, "confirmed": true, "trial_starts": 0, '
        b'"models": {"a": "x", "b": null}, "rolled_back": null}',
        b'{"v": 1, "active": ["a"], "candidate": null, "previous": null, "confirmed": true, "trial_starts": 0, '
        b'"models": {"a": "x", "b": null}, "rolled_back": null}',
    ],
)
def test_a_state_that_makes_no_sense_is_told_and_kept_aside_by_the_next(store, tmp_path, data):
    (tmp_path / "models" / "slots.json").write_bytes(data)

    state, damage = store.load()

    assert state == SlotState()
    assert "slots.json cannot be used" in damage
    assert (tmp_path / "models" / "slots.json").read_bytes() == data
    store.save(STATE)
    assert store.load() == (STATE, None)
    assert (tmp_path / "models" / "slots.json.damaged").read_bytes() == data


def test_a_bundle_is_placed_whole_over_another(store, tmp_path):
    store.stage({"x": b"old", "only-old": b""})
    store.place("b")
    store.stage({"x": b"new"})
    store.place("b")

    assert [p.name for p in (tmp_path / "models" / "b").iterdir()] == ["x"]
    assert (tmp_path / "models" / "b" / "x").read_bytes() == b"new"
    assert files(tmp_path) == [".lock", "b"]


def test_a_damaged_slot_is_kept_for_people(store, tmp_path):
    for content in (b"first", b"second"):
        store.stage({"x": content})
        store.place("a")
        store.quarantine("a")
    store.quarantine("a")

    assert (tmp_path / "models" / "a.damaged" / "x").read_bytes() == b"second"


def test_only_one_at_a_time_may_change_something(store, tmp_path):
    with pytest.raises(OutputError, match="another har-agent"), FolderSlotStore(tmp_path).locked():
        pytest.fail("locked twice")


def test_a_lock_ends_with_its_process(tmp_path):
    code = f"""
import os, pathlib
from agent.adapters.slot_store import FolderSlotStore
with FolderSlotStore(pathlib.Path({str(tmp_path)!r})).locked():
    os._exit(9)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)

    assert ran.returncode == 9
    with FolderSlotStore(tmp_path).locked():
        pass


def test_others_may_read_what_is_installed(store, tmp_path):
    before = os.umask(0o022)
    try:
        store.stage({"x": b""})
        store.place("a")
        store.save(STATE)
    finally:
        os.umask(before)

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "models").rglob("*")}
    assert modes["a"] == 0o755
    assert modes["x"] == modes["slots.json"] == modes[".lock"] == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_what_root_installs_belongs_to_the_agent(state_of_another):
    store = FolderSlotStore(state_of_another, acting=partial(as_owner_of, state_of_another))
    with store.locked():
        store.stage({"x": b""})
        store.place("a")
        store.save(STATE)

    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in state_of_another.rglob("*")} == {(12345, 12346)}
    assert (os.geteuid(), os.getegid()) == (0, os.getgid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_a_link_that_the_agent_has_put_there_leads_root_nowhere(state_of_another, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"of root")
    precious.chmod(0o600)
    (state_of_another / "models").mkdir()
    (state_of_another / "models" / "slots.json.new").symlink_to(precious)
    os.chown(state_of_another / "models", 12345, 12346)
    store = FolderSlotStore(state_of_another, acting=partial(as_owner_of, state_of_another))
    with store.locked(), pytest.raises(OutputError, match="Permission denied"):
        store.save(STATE)

    assert precious.read_bytes() == b"of root"
    assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as others")
def test_root_acts_as_itself_where_nobody_else_is_meant(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with as_owner_of(folder):
            assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as others")
def test_root_is_root_again_whatever_happens(state_of_another, monkeypatch):
    before = os.getgroups()
    seen = []

    def act():
        seen.append((os.geteuid(), os.getegid(), os.getgroups()))
        raise CutError

    with pytest.raises(CutError), as_owner_of(state_of_another):
        act()
    assert seen == [(12345, 12346, [12346])]
    assert (os.geteuid(), os.getgroups()) == (0, before)

    def refuse(_uid):
        monkeypatch.undo()
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "seteuid", refuse)
    with pytest.raises(OutputError, match="run this as that user"), as_owner_of(state_of_another):
        pytest.fail("entered")
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, os.getgid(), before)


class CutError(Exception):
    """The power goes."""


class Disk:
    """The calls that change a file system, which stop at the nth, or fail from it on."""

    def __init__(self, monkeypatch, at, error):
        self.calls, self._at, self._error = 0, at, error
        for module, name in ((slot_store.os, "fsync"), (slot_store.os, "open")):
            monkeypatch.setattr(module, name, self._wrap(getattr(module, name)))
        for name in ("rename", "replace", "mkdir"):
            monkeypatch.setattr(slot_store.Path, name, self._wrap(getattr(slot_store.Path, name)))

    def _wrap(self, function):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls > self._at:
                raise self._error
            return function(*args, **kwargs)

        return call


def change(store):
    """Replace what is in slot b by something else."""
    with store.locked():
        state, _ = store.load()
        store.stage({"x": b"new"})
        store.place("b")
        store.save(installed(state, "b", "new@2"))


@pytest.mark.parametrize("error", [CutError(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_stop_at_any_call_to_the_system_leaves_a_state_that_is_whole(tmp_path, monkeypatch, error):
    for at in range(100):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        store = FolderSlotStore(folder)
        with store.locked():
            store.stage({"x": b"old"})
            store.place("a")
            store.save(STATE)
        with monkeypatch.context() as patched:
            disk = Disk(patched, at, error)
            try:
                change(store)
            except CutError:
                pass
            except OutputError as e:
                assert "No space left on device" in str(e)  # noqa: PT017
        state, damage = store.load()

        assert damage is None
        assert state in (STATE, installed(STATE, "b", "new@2"))
        assert (folder / "models" / "a" / "x").read_bytes() == b"old"
        if state.candidate:
            assert (folder / "models" / "b" / "x").read_bytes() == b"new"
        change(store)
        assert store.load()[0].candidate == "b"
        if disk.calls <= at:
            break
    assert 10 < at < 99


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError, match="cannot be prepared"), FolderSlotStore(tmp_path / "file").locked():
        pytest.fail("locked")
    assert FolderSlotStore(tmp_path / "file").load()[0].active is None
