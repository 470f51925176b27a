"""What the daemon finds when it starts: what the run before left, and whose state directory it is."""

import json
import os
from pathlib import Path

import pytest

from agent.app.run import _complain_of_root, _left
from agent.core.coverage import Covered

LEFT = {"stream": "waist", "end_ns": 5, "by": "0.1.0", "exact": True}


def test_what_the_run_before_had_covered_is_taken_over(tmp_path: Path):
    (tmp_path / "status.json").write_text(json.dumps({"boot_id": "one", "coverage": [LEFT]}))

    assert _left(tmp_path / "status.json", "one", 10) == [Covered("waist", 5, "0.1.0", exact=True)]


@pytest.mark.parametrize(("boot_id", "now_ns"), [("two", 10), (None, 10), ("one", 4)])
def test_another_boot_of_the_board_had_another_clock(tmp_path: Path, boot_id: str | None, now_ns: int):
    for said in ("one", None):
        (tmp_path / "status.json").write_text(json.dumps({"boot_id": said, "coverage": [LEFT]}))
        assert _left(tmp_path / "status.json", boot_id, now_ns) == []


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"boot_id": "one"}'])
def test_a_status_that_cannot_be_read_leaves_nothing(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)

    assert _left(tmp_path / "status.json", "one", 10) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_is_told_that_it_would_lock_the_service_out(tmp_path: Path):
    said: list[str] = []
    _complain_of_root(tmp_path, said.append)
    _complain_of_root(tmp_path / "nowhere", said.append)
    assert said == []

    os.chown(tmp_path, 12345, 12345)
    _complain_of_root(tmp_path, said.append)
    assert "belongs to user 12345, who cannot change what root makes" in said[0]
