"""What scenarios share in which a board asks others: the board, with two brokers, and a worker that is a process.

Predictions go to the broker at home, which stays, and what is asked to the other one.
"""

import subprocess
import sys
import time
from abc import ABC, abstractmethod
from typing import Any

from live import wait_until
from mosquitto import Mosquitto
from rehearsal import IMPATIENT, Rig

DEADLINE_MS = 300
MARGIN_MS = 1000
"""What turns of the loop may add to the deadline on a machine that plays many scenarios at a time."""
TELEMETRY = "har/board/telemetry"


class AskingBoard(ABC):
    """An agent that asks others, with its sensor, and both brokers; theirs does not run."""

    def __init__(self, rig: Rig, section: str, config: str) -> None:
        """`section`: of the configuration, and of the telemetry. `config`: more lines of it."""
        self._section = section
        self._rig = rig
        home, self.theirs = rig.broker().start(), rig.broker("allow_anonymous true")
        self.listener = rig.listener(home.port)
        wait_until(lambda: self.listener.connects)
        rig.sensor()
        self.agent = rig.agent(
            [home.url, self.theirs.url],
            f'{IMPATIENT}[{section}]\nbroker = "b2"\ndeadline_ms = {DEADLINE_MS}\nfailures = 3\nretry_s = 1\n{config}'
            "[telemetry]\ninterval_s = 1\n",
        )

    @abstractmethod
    def by_others(self) -> int:
        """How many windows others have answered, and the answer was used."""

    def figures(self) -> dict[str, Any]:
        """What the telemetry told last of it."""
        return dict((self.listener.state(TELEMETRY) or {}).get(self._section, {}))

    def counted(self, outcome: str) -> int:
        """How many requests had this outcome; refusals of any kind together."""
        n = self.figures().get(outcome, 0)
        return sum(n.values()) if isinstance(n, dict) else int(n)

    def again(self, n: int = 2) -> float:
        """Wait until others have answered `n` more windows, and return the seconds that the first took."""
        began, before = time.monotonic(), self.by_others()
        try:
            wait_until(lambda: self.by_others() > before, 30)
        except AssertionError:
            raise AssertionError(f"nobody answers: {self.figures()}\n{self.agent.tail(10)}") from None
        took = time.monotonic() - began
        wait_until(lambda: self.by_others() >= before + n, 20, "others to go on answering")
        return took

    def breaker(self, state: str) -> None:
        """Wait until the breaker is in this state."""
        wait_until(lambda: self.figures().get("breaker") == state, 20, f"the breaker to be {state}")

    def came(self) -> list[dict[str, Any]]:
        """Stop the agent when all is well again, and return its predictions: each came, once and in order."""
        self.breaker("closed")
        self._rig.calm(self.agent)
        self._rig.nothing_lost(self.agent, self.listener)
        came = list(self.listener.predictions.values())
        assert self.listener.repeats() == 0
        assert [p["seq"] for p in came] == list(range(len(came)))
        assert not any(p["historical"] for p in came)
        return came


class Worker:
    """`har-agent cloud-worker` as a process of its own."""

    def __init__(self, rig: Rig, broker: Mosquitto, service: str = "har-cloud") -> None:
        config = rig.folder / "worker.toml"
        config.write_text(
            f'[agent]\nname = "worker"\n[broker.theirs]\nurl = "{broker.url}"\n[worker]\nservice = "{service}"\n'
            f"{IMPATIENT}"
        )
        self._command = [sys.executable, "-m", "agent", "cloud-worker", "har-base", "--config", str(config)]
        self._log = rig.folder / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None
        rig.ending.callback(self.kill)

    def start(self) -> None:
        """Start it; does not wait for anything."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def stop(self) -> int:
        """SIGTERM, and return the exit status."""
        assert self._process
        self._process.terminate()
        return self._process.wait(20)

    def kill(self) -> None:
        """Kill it with -9, wherever it is."""
        if self._process:
            self._process.kill()
            self._process.wait()
