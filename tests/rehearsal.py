"""Scenarios of faults: what each plays with, what must hold after each, and how they run side by side."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from live import Agent, Listener, Sensor, holes, wait_until
from mosquitto import PERSISTENT, Mosquitto

AT_ONCE = 12
"""Scenarios that run at a time: they wait more than they work."""

IMPATIENT = """
[mqtt]
keepalive_s = 2
ack_timeout_s = 1.0
connect_timeout_s = 1.0
retry_first_s = 0.1
retry_longest_s = 0.5
stable_s = 1.0
"""
"""The times of the link, shortened: what takes minutes in the field takes seconds here."""

NOT_OF_INTEREST = {"clock_unsynced"}
"""What health may say of the machine that runs the tests."""


class Rig:
    """What a scenario plays with. All of it ends with the scenario."""

    def __init__(self, name: str, folder: Path, long: bool) -> None:
        self.name = name
        self.folder = folder
        self.facts: list[str] = []
        """What was measured, for people."""
        self.random = random.Random(name)
        self.ending = ExitStack()
        self._long = long

    def many(self, bounded: int, full: int) -> int:
        """How often, or how long: in CI, and in the long version."""
        return full if self._long else bounded

    def broker(self, config: str | None = None, port: int | None = None) -> Mosquitto:
        """A broker, not started, that keeps what it has acknowledged when it is killed."""
        folder = self.folder / f"broker-{self.random.getrandbits(32):08x}"
        folder.mkdir()
        broker = Mosquitto(folder, (config or PERSISTENT).replace("{folder}", str(folder)), port)
        self.ending.callback(broker.kill)
        return broker

    def listener(self, port: int) -> Listener:
        """A subscriber at the broker on this port."""
        listener = Listener(port)
        self.ending.callback(listener.close)
        return listener

    def sensor(self, speed: float = 5.0, name: str = "imu") -> Sensor:
        """A sensor, 5 times as fast as a real one: four windows a second."""
        sensor = Sensor(self.folder, name, speed)
        self.ending.callback(sensor.close)
        return sensor

    def agent(
        self,
        brokers: Sequence[str],
        config: str = IMPATIENT,
        *,
        name: str = "board",
        device: str = "imu",
        folder: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Agent:
        """An agent, not started, that reads the sensor of that name.

        `brokers`: addresses; one may go on with more lines of its section.
        """
        sections = [f'[broker.b{n}]\nurl = "{url}"' for n, url in enumerate(brokers, 1)]
        sections.append(f'[serial.{device}]\nport = "{self.folder}/tty-{device}"\ntime = "ms"')
        agent = Agent(folder or self.folder, "\n".join([*sections, config]), name, env)
        self.ending.callback(lambda: agent.process and agent.process.poll() is None and agent.kill())
        return agent

    def fact(self, text: str) -> None:
        """Note what was measured."""
        self.facts.append(text)

    def more(self, listener: Listener, n: int = 1, timeout_s: float = 20.0) -> float:
        """Wait for `n` predictions that are new, and return the seconds that it took."""
        began, before = time.monotonic(), listener.count()
        wait_until(lambda: listener.count() >= before + n, timeout_s, f"{n} more predictions")
        return time.monotonic() - began

    def told(self, agent: Agent, code: str, words: str = "", timeout_s: float = 30.0) -> float:
        """Wait until the agent's health gives this reason, with these words in it; return the seconds that it took."""
        began = time.monotonic()
        try:
            wait_until(lambda: code in agent.health() and words in agent.why(code), timeout_s)
        except AssertionError:
            said = agent.status().get("health")
            raise AssertionError(f"health never said {code} ({words!r}), but {said}\n{agent.tail(10)}") from None
        return time.monotonic() - began

    def told_no_more(self, agent: Agent, code: str, timeout_s: float = 30.0) -> float:
        """Wait until health has left this reason behind; return the seconds that it took."""
        began = time.monotonic()
        wait_until(lambda: code not in agent.health(), timeout_s, f"{code} to go: {agent.why(code)}")
        return time.monotonic() - began

    def calm(self, agent: Agent, timeout_s: float = 30.0) -> float:
        """Wait until health has nothing to say any more; return the seconds that it took."""
        began = time.monotonic()
        try:
            wait_until(lambda: agent.status().get("health") and not agent.health() - NOT_OF_INTEREST, timeout_s)
        except AssertionError:
            raise AssertionError(f"never calm: {agent.status().get('health')}\n{agent.tail(10)}") from None
        return time.monotonic() - began

    def nothing_lost(self, agent: Agent, *listeners: Listener) -> None:
        """Stop the agent in order; all that it made must have come, and repeats must say what came first."""
        self.stop(agent)
        status = agent.status()
        made, boot = status["telemetry"]["delivery"]["published"], f"{status['boot']}:"
        drops = status["telemetry"]["drops"]
        assert agent.stored() == []
        assert (drops["input"], drops["outbox"]) == (0, 0)

        def came() -> int:
            return sum(name.startswith(boot) for name in ids(listeners))

        # The broker has them all; a listener may still be behind, and what is history comes between what is live.
        wait_until(lambda: came() >= made, 5, f"{made} predictions, of which {came()} came")
        assert came() == made
        self.all_came(*listeners)
        if repeats := sum(listener.repeats() for listener in listeners):
            self.fact(f"{repeats} repeats among {len(ids(listeners))} predictions")

    def stop(self, agent: Agent) -> None:
        """Stop the agent in order."""
        code = agent.stop()
        assert code == 0, f"exit {code}\n{agent.tail()}"

    def all_came(self, *listeners: Listener) -> None:
        """No number is missing, and repeats say what came first."""
        assert holes(ids(listeners)) == []
        assert [listener.differing() for listener in listeners] == [[]] * len(listeners)


def ids(listeners: Iterable[Listener]) -> set[str]:
    """Ids of all predictions that any of them got."""
    return set[str]().union(*(listener.ids() for listener in listeners))


Scenario = Callable[[Rig], None]


def side_by_side(scenarios: Sequence[Scenario], folder: Path, long: bool) -> dict[Scenario, tuple[Rig, Future[None]]]:
    """Play them all, the first ones first, and return how each went; raises nothing of theirs."""
    played = {}
    with ThreadPoolExecutor(AT_ONCE, "scenario") as pool:
        for scenario in scenarios:
            own = folder / scenario.__name__
            own.mkdir()
            rig = Rig(scenario.__name__, own, long)
            played[scenario] = rig, pool.submit(_play, scenario, rig)
    return played


def _play(scenario: Scenario, rig: Rig) -> None:
    began = time.monotonic()
    with rig.ending:
        scenario(rig)
    rig.fact(f"{time.monotonic() - began:.0f} s")
