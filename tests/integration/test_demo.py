"""The demo: everything from the simulated sensor to a subscriber, on a clock that runs as fast as it can."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeClock

from agent.adapters.embedded_broker import EmbeddedBroker
from agent.app.demo import DemoSettings, Received, Status, Summary, demo
from agent.core.gait import parse_script
from agent.errors import ModelContractError, SinkUnavailable


class Watching:
    """An audience that keeps what it was shown."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.shown: list[Received] = []
        self.statuses: list[Status] = []

    def started(self, model: str, broker: str) -> None:
        self.begun.append(model)

    def received(self, received: Received) -> None:
        self.shown.append(received)

    def status(self, status: Status) -> None:
        self.statuses.append(status)


@pytest.fixture
def watching() -> Watching:
    return Watching()


@pytest.fixture
def summary(watching: Watching) -> Summary:
    return demo(DemoSettings(seed=1), watching, clock=FakeClock())


def test_everything_simulated_arrives_at_the_subscriber(watching: Watching, summary: Summary):
    assert summary.complete
    assert not summary.interrupted
    assert summary.samples == 1500
    assert summary.published == summary.received == 1 + (1500 - 128) // 64
    # Those from before the broker was there come behind the first of those from then on.
    assert sorted(r.message["seq"] for r in watching.shown) == list(range(summary.received))
    assert watching.begun == [summary.model]
    assert {r.message["device"] for r in watching.shown} == {"simulated"}


def test_labels_are_held_against_the_simulated_activity(watching: Watching, summary: Summary):
    labelled = [r for r in watching.shown if r.truth]
    right = sum(r.message["label"] == r.truth for r in labelled)

    assert len(labelled) == summary.score["labelled_windows"]
    assert right / len(labelled) == summary.score["accuracy"] >= 0.85


@pytest.mark.parametrize("seed", range(6))
def test_the_shipped_model_knows_simulated_people(seed: int, watching: Watching):
    script = parse_script(
        "standing:12,walking:15,walking_upstairs:12,walking:6,walking_downstairs:12,sitting:12,laying:12,standing:6"
    )
    summary = demo(DemoSettings(script=script, duration_s=100, seed=seed), watching, clock=FakeClock())

    # A sensor on a fake clock gives 100 s at once: a busy machine's queue may drop some, but no message is ever lost.
    assert summary.published == summary.received
    assert summary.score["accuracy"] >= 0.85
    # About one window in 100 of real people whom it has not seen is unknown to it.
    assert summary.score["unknown_windows"] <= 0.05 * summary.score["labelled_windows"]


def test_the_summary_says_what_was_lost(summary: Summary):
    assert json.loads(json.dumps(summary.as_dict()))["messages"]["lost"] == 0
    late = replace(summary, received=summary.published - 2)
    assert not late.complete
    assert late.as_dict()["messages"]["lost"] == 2
    assert not replace(summary, dropped=5).complete


def test_power_that_is_not_measured_has_no_figure(summary: Summary):
    power = summary.as_dict()["power"]

    assert (power["watts"] is None) == (power["source"] == "none")


def test_stopping_before_the_first_window_still_sums_up(watching: Watching):
    # On the real clock: a fake one would let the sensor run to its end at once.
    summary = demo(DemoSettings(), watching, stopping=lambda: True)

    assert summary.interrupted
    assert summary.complete
    assert summary.as_dict()["accuracy"] is None
    assert watching.shown == []


def test_a_model_that_is_not_there_is_said(watching: Watching):
    with pytest.raises(ModelContractError, match="no-such-model"):
        demo(DemoSettings("no-such-model"), watching)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "amqtt", None)
    monkeypatch.delitem(sys.modules, "amqtt.broker", raising=False)

    with pytest.raises(SinkUnavailable, match=r"pip install 'har-edge-agent\[demo\]'"):
        EmbeddedBroker().start()


def test_the_command_ends_gracefully_on_an_interrupt_with_json_alone_on_stdout():
    command = [sys.executable, "-m", "agent", "demo", "--json"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)

    assert "walking" in lines[3]
    summary = json.loads(out)
    assert process.returncode == 0
    assert summary["interrupted"] is True
    assert summary["messages"]["published"] == summary["messages"]["received"] >= 1
