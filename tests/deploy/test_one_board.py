"""What happens to one board while the others go on: each test has one of its own.

The proof of the service's confinement takes a minute, of waiting for the most part: it begins with the first test here,
and is asked for by the last.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest
import sandbox
from live import Listener, wait_until
from rollouts import WINDOW_S, Operator, at_work, boots, live_release

pytestmark = [pytest.mark.fleet, pytest.mark.usefixtures("deployed", "proof")]


@pytest.fixture(scope="module")
def proof(desk: Operator, deployed: None) -> Iterator[Future[list[str]]]:
    """The service held to what it promises, on the fifth board."""
    run = partial(desk.boards[4].run, check=False, timeout=120)
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(sandbox.prove, run)


def test_a_wrong_configuration_is_refused(desk: Operator, listener: Listener):
    one = desk.boards[0]
    before = boots(listener, [one])
    config = one.read("/etc/har-agent/config.toml")

    ran = desk.play(
        "site", only=[one], har_agent_release_dir=str(desk.releases["better"]),
        har_agent_config={**desk.settings["har_agent_config"], "telemetry": {"intervall_s": 5}},
    )  # fmt: skip

    assert ran.outcomes() == {"board1": "failed"}, ran.said
    assert "did you mean interval_s?" in ran.why("board1"), ran.why("board1")
    assert one.read("/etc/har-agent/config.toml") == config
    at_work(listener, [one])
    assert boots(listener, [one]) == before


def test_going_back_by_hand(desk: Operator, listener: Listener, fact: Callable[[str], None]):
    two = desk.boards[1]

    def deployment() -> tuple[str, str]:
        return live_release(two), two.read("/etc/har-agent/config.toml")

    before = deployment()

    ran = desk.play("rollback", only=[two], har_agent_rollback_reason="calls stairs walking")

    assert ran.rc == 0, ran.said
    assert ran.outcomes() == {"board2": "rolled back"}
    assert ran.why("board2") == "calls stairs walking"
    assert deployment() != before
    fact(f"rolling one board back by hand: {ran.seconds:.0f} s")
    # On the board, without a controller.
    two.run("har-agent-release rollback")
    assert deployment() == before
    at_work(listener, [two])
    assert listener.holes() == []


def test_a_power_cut_and_a_cold_boot(desk: Operator, listener: Listener, fact: Callable[[str], None]):
    six = desk.boards[5]
    before = boots(listener, [six])

    six.power_cut()
    began = time.monotonic()
    six.boot(wait=False)
    wait_until(lambda: boots(listener, [six]) != before, 60, "the agent to be online again")
    # What the one before had not sent yet comes as well.
    first = f"{boots(listener, [six])[six.name]}:imu-{six.name}:0"
    wait_until(lambda: first in listener.ids(), 30, "the first label")
    took_s = time.monotonic() - began

    fact(f"cold boot of a board to its first label: {took_s:.1f} s, of which {WINDOW_S} s are a window")
    assert listener.holes() == []


def test_decommissioning_leaves_nothing_behind(desk: Operator, listener: Listener):
    four = desk.boards[3]
    topics = [f"har/{four.name}/status", f"har/{four.name}/health", f"har/imu-{four.name}/activity",
              f"har/imu-{four.name}/availability", f"homeassistant/device/{four.name}/config"]  # fmt: skip
    assert [topic for topic in topics if not listener.state(topic)] == []

    ran = desk.play("decommission", only=[four], har_agent_confirm="board4", har_agent_keep_state=False)

    assert ran.rc == 0, ran.said
    with closing(desk.listen("fresh")) as fresh:
        at_work(fresh, [desk.boards[0]])
        assert [topic for topic in topics if fresh.state(topic)] == []
    assert four.run("systemctl is-active har-agent", check=False).stdout.strip() != "active"
    for path in ("/opt/har-agent", "/etc/har-agent", "/var/lib/har-agent", "/etc/systemd/system/har-agent.service"):
        assert four.run(f"test -e {path}", check=False).returncode == 1, path


def test_the_service_is_confined_and_supervised(proof: Future[list[str]], fact: Callable[[str], None]):
    for measured in proof.result():
        fact(measured)
