"""What the tests of faults share: scenarios that run side by side."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rehearsal import Scenario, side_by_side

FACTS = pytest.StashKey[list[str]]()


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
