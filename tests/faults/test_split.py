"""Whoever runs the rest of the network dies, vanishes or talks nonsense: predictions are the same, and in time.

Two brokers: predictions go to the one at home, which stays, and tensors to the other one.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from live import wait_until
from mosquitto import Mosquitto
from played_worker import PlayedWorker, Saying
from rehearsal import IMPATIENT, Rig, Scenario

from agent.app.compose import open_model
from agent.app.split import open_parts
from agent.core.cloud_wire import Refusal, encode_refusal
from agent.core.split_wire import TensorAnswer, decode_tensor_request, encode_tensor_answer

DEADLINE_MS = 300
MARGIN_MS = 1000
"""What turns of the loop may add to the deadline on a machine that plays many scenarios at a time."""
TELEMETRY = "har/board/telemetry"


class Board:
    """An agent whose network ends elsewhere, with its sensor, and both brokers; the other one does not run."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        home, self.edge = rig.broker().start(), rig.broker("allow_anonymous true")
        self.listener = rig.listener(home.port)
        wait_until(lambda: self.listener.connects)
        rig.sensor()
        self.agent = rig.agent(
            [home.url, self.edge.url],
            IMPATIENT + f'[split]\ncut = "code"\nbroker = "b2"\ndeadline_ms = {DEADLINE_MS}\nfailures = 3\n'
            "retry_s = 1\n[telemetry]\ninterval_s = 1\n",
        )

    def figures(self) -> dict[str, Any]:
        """What the telemetry told last of the split."""
        return dict((self.listener.state(TELEMETRY) or {}).get("split", {}))

    def counted(self, outcome: str) -> int:
        """How many requests had this outcome; refusals of any kind together."""
        n = self.figures().get(outcome, 0)
        return sum(n.values()) if isinstance(n, dict) else int(n)

    def again(self, n: int = 2) -> float:
        """Wait until others have run `n` more windows, and return the seconds that it took."""
        began, before = time.monotonic(), self.counted("away")
        try:
            wait_until(lambda: self.counted("away") >= before + n, 30)
        except AssertionError:
            raise AssertionError(f"nothing goes away: {self.figures()}\n{self.agent.tail(10)}") from None
        return time.monotonic() - began

    def breaker(self, state: str) -> None:
        """Wait until the breaker is in this state."""
        wait_until(lambda: self.figures().get("breaker") == state, 20, f"the breaker to be {state}")

    def holds(self) -> None:
        """Stop the agent when all is well again: each prediction came, once, in order, and in time."""
        self.breaker("closed")
        self._rig.calm(self.agent)
        self._rig.nothing_lost(self.agent, self.listener)
        came = list(self.listener.predictions.values())
        assert self.listener.repeats() == 0
        assert [p["seq"] for p in came] == list(range(len(came)))
        assert not any(p["historical"] for p in came)
        longest = max(p["latency_ms"]["infer"] for p in came)
        self._rig.fact(
            f"{len(came)} predictions, {self.counted('away')} with others; at most {longest:.0f} ms in the network, of"
            f" {DEADLINE_MS} ms"
        )
        assert longest < DEADLINE_MS + MARGIN_MS
        assert max(p["latency_ms"]["total"] for p in came) < 2 * DEADLINE_MS + 2 * MARGIN_MS


class Worker:
    """`har-agent cloud-worker` as a process of its own."""

    def __init__(self, rig: Rig, broker: Mosquitto) -> None:
        config = rig.folder / "worker.toml"
        config.write_text(
            f'[agent]\nname = "worker"\n[broker.edge]\nurl = "{broker.url}"\n[worker]\nservice = "har-split"\n'
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

    def kill(self) -> None:
        """Kill it with -9, wherever it is."""
        if self._process:
            self._process.kill()
            self._process.wait()


def split_worker_killed(rig: Rig) -> None:
    """The only worker is killed with -9, again and again, and is away for so long that health says so."""
    board = Board(rig)
    board.edge.start()
    worker = Worker(rig, board.edge)
    worker.start()
    board.agent.start()
    board.again()
    kills = rig.many(2, 20)
    for _ in range(kills):
        worker.kill()
        board.breaker("open")
        worker.start()
        board.again()
        board.breaker("closed")
    rig.fact(f"{kills} kills")
    board.holds()


def split_nobody_there(rig: Rig) -> None:
    """Neither broker nor worker for so long that health says so; then both."""
    board = Board(rig)
    board.agent.start()
    rig.told(board.agent, "split_away", "connection refused")
    board.edge.start()
    Worker(rig, board.edge).start()
    board.again()
    board.holds()


def split_broker_killed(rig: Rig) -> None:
    """Their broker is killed with -9, again and again; then it only stops answering."""
    board = Board(rig)
    board.edge.start()
    worker = Worker(rig, board.edge)
    worker.start()
    board.agent.start()
    board.again()
    kills = rig.many(2, 20)
    for _ in range(kills):
        board.edge.kill()
        rig.more(board.listener, rig.random.randint(1, 6))
        board.edge.start()
        board.again()
    board.edge.pause()
    board.breaker("open")
    board.edge.resume()
    board.again()
    rig.fact(f"{kills} kills")
    board.holds()


def split_answers_nonsense(rig: Rig) -> None:
    """A worker that answers well, and in turn too late, not at all, with garbage, or that it will not."""
    parts = open_parts(open_model("har-base"))

    def good(request: bytes) -> list[bytes]:
        asked = decode_tensor_request(request)
        code = parts.values(asked.at, asked.data, asked.windows)
        scores = parts.run(asked.at, "", code)
        flat = code.reshape(len(code), -1)
        return [encode_tensor_answer(TensorAnswer(0, flat, scores.logits, scores.novelty.astype("float32")))]

    def late(request: bytes) -> list[bytes]:
        time.sleep(1.5 * DEADLINE_MS / 1000)  # which is too long
        return good(request)

    modes: dict[str, tuple[Saying, str]] = {
        "too late": (late, "timed_out"),
        "nothing": (lambda _: [], "timed_out"),
        "garbage": (lambda _: [rig.random.randbytes(200)], "garbled"),
        "half an answer": (lambda request: [good(request)[0][:-5]], "garbled"),
        "megabytes": (lambda request: [good(request)[0] + bytes(2 << 20)], "timed_out"),
        "a refusal": (lambda _: [encode_refusal(Refusal.OTHER_PART, "not mine")], "refused"),
    }
    board = Board(rig)
    board.edge.start()
    worker = PlayedWorker(board.edge.port, good, "har-split")
    rig.ending.callback(worker.close)
    board.agent.start()
    board.again()
    for name, (say, outcome) in modes.items():
        before = board.counted(outcome)
        worker.say = say
        board.breaker("open")
        assert board.counted(outcome) >= before + 3, (name, board.figures())
        worker.say = good
        board.again()
        board.breaker("closed")
    rig.fact(", ".join(modes))
    board.holds()


SCENARIOS: Sequence[Scenario] = [split_nobody_there, split_broker_killed, split_worker_killed, split_answers_nonsense]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_split(scenario: Scenario, play: Callable[[Scenario], None]):
    play(scenario)
