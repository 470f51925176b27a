"""The gate of the tests that need a fleet of boards (rig B), and the fleet that they share.

    HAR_RIGS=1 .venv/bin/python -m pytest tests/deploy -m fleet [--long] [--facts docs/results/fleet.json]

They need root, systemd-nspawn and mmdebstrap, and minutes: without HAR_RIGS=1 they are skipped, so that `make test`
passes on any machine. With it, what is missing here is a failure. CI runs what takes six minutes, `--long` all of it.
What they measured is shown at the end.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet import Fleet, missing
from live import Listener
from rollouts import Operator, at_work, live_release, release_id

FACTS = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a fleet where nobody asked for one."""
    if os.environ.get("HAR_RIGS") == "1":
        return
    for item in items:
        if item.get_closest_marker("fleet"):
            item.add_marker(pytest.mark.skip(reason="a fleet of boards takes root and minutes: set HAR_RIGS=1"))


@pytest.fixture(scope="session")
def boards_can_be_had() -> None:
    """Fail where HAR_RIGS asks for boards that cannot be had here."""
    problem = missing()
    if problem:
        pytest.fail(problem)


@pytest.fixture(scope="session")
def desk(boards_can_be_had: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """Six bare boards with sensors, a broker on a seventh, and an operator with releases to roll out."""
    with Fleet(7) as fleet, closing(Operator(fleet, tmp_path_factory.mktemp("desk"))) as operator:
        operator.prepare()
        yield operator


@pytest.fixture(scope="session")
def listener(desk: Operator) -> Listener:
    """Return a subscriber that is there from the first prediction on."""
    return desk.listen()


@pytest.fixture(scope="session")
def deployed(desk: Operator, listener: Listener) -> None:
    """Bring the fleet to the release `better`, if no test before has."""
    better = desk.releases["better"]
    if {live_release(board) for board in desk.boards} != {release_id(better)}:
        ran = desk.play("site", har_agent_release_dir=str(better))
        assert ran.rc == 0, ran.said
    at_work(listener, desk.boards)


@pytest.fixture
def nothing_lost(desk: Operator, listener: Listener) -> Iterator[None]:
    """Hold all that came against what must have been made: no hole, and no repeat that differs."""
    yield
    at_work(listener, desk.boards)
    assert listener.holes() == []
    assert listener.differing() == []


@pytest.fixture(scope="session")
def fact(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return what notes something that was measured, to be shown at the end."""
    return request.config.stash.setdefault(FACTS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured, and write it where that was asked for."""
    facts = config.stash.get(FACTS, [])
    for line in facts:
        terminalreporter.write_line(f"fleet: {line}")
    if path := config.getoption("--facts"):
        machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[2], 1)}
        path.write_text(json.dumps({"v": 1, "machine": machine, "facts": facts}, indent=1) + "\n", "utf-8")
