"""What the tests of faults share: the option `--long`, and scenarios that run side by side."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rehearsal import Scenario, side_by_side

FACTS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let faults be as many, and as long, as the project promises to survive."""
    parser.addoption("--long", action="store_true", help="faults in full numbers; takes half an hour")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether `--long` was given."""
    return bool(request.config.getoption("--long", False))


@pytest.fixture(scope="session")
def play(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, long: bool
) -> Callable[[Scenario], None]:
    """Return what raises as a scenario did. All that were selected run side by side, before the first is answered."""
    wanted: dict[Scenario, None] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "scenario" in item.callspec.params:
            wanted[item.callspec.params["scenario"]] = None
    folder: Path = tmp_path_factory.mktemp("faults")
    played = side_by_side(list(wanted), folder, long)
    facts = [f"{rig.name}: {'; '.join(rig.facts)}" for rig, _ in played.values() if rig.facts]
    request.config.stash[FACTS] = facts
    return lambda scenario: played[scenario][1].result()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured."""
    for fact in config.stash.get(FACTS, []):
        terminalreporter.write_line(fact)
