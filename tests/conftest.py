"""Fixtures that every test may use."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail a test that ends with a thread that it did not find."""
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before if t.is_alive()]
    assert left == []


@pytest.fixture(scope="session")
def har_base() -> Path:
    """The folder of the bundle that ships with the agent."""
    return ROOT / "models" / "har-base"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of recorded data, which is not part of the project."""
    folder = Path(os.environ.get("HAR_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "hapt_train.npz").is_file():
        pytest.skip("no recordings in HAR_DATA or ../shared/data")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let golden cases be written anew, what takes long be run in full, and what was measured be kept."""
    parser.addoption("--update-golden", action="store_true", help="write what replays give now as what is expected")
    parser.addoption(
        "--long", action="store_true", help="faults and fleets in full; takes half an hour, and ten minutes"
    )
    parser.addoption("--facts", type=Path, help="write what the fleet tests measured to this JSON file")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether `--update-golden` was given."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether what takes long shall be run in full: with `--long`."""
    return bool(request.config.getoption("--long"))
