"""Whoever runs the rest of the network dies, vanishes or talks nonsense: predictions are the same, and in time."""

import time
from collections.abc import Callable, Sequence

import pytest
from asking import DEADLINE_MS, MARGIN_MS, AskingBoard, Worker
from played_worker import PlayedWorker, Saying
from rehearsal import Rig, Scenario

from agent.app.compose import open_model
from agent.app.split import open_parts
from agent.core.cloud_wire import Refusal, encode_refusal
from agent.core.split_wire import TensorAnswer, decode_tensor_request, encode_tensor_answer


class Board(AskingBoard):
    """An agent whose network ends elsewhere."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig, "split", 'cut = "code"\n')

    def by_others(self) -> int:
        """Windows of which others have run the rest."""
        return self.counted("away")

    def holds(self) -> None:
        """Stop the agent when all is well again: each prediction came, once, in order, and in time."""
        came = self.came()
        longest = max(p["latency_ms"]["infer"] for p in came)
        self._rig.fact(
            f"{len(came)} predictions, {self.by_others()} with others; at most {longest:.0f} ms in the network, of"
            f" {DEADLINE_MS} ms"
        )
        assert longest < DEADLINE_MS + MARGIN_MS
        assert max(p["latency_ms"]["total"] for p in came) < 2 * DEADLINE_MS + 2 * MARGIN_MS


def split_worker_killed(rig: Rig) -> None:
    """The only worker is killed with -9, again and again, and is away for so long that health says so."""
    board = Board(rig)
    board.theirs.start()
    worker = Worker(rig, board.theirs, "har-split")
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
    board.theirs.start()
    Worker(rig, board.theirs, "har-split").start()
    board.again()
    board.holds()


def split_broker_killed(rig: Rig) -> None:
    """Their broker is killed with -9, again and again; then it only stops answering."""
    board = Board(rig)
    board.theirs.start()
    worker = Worker(rig, board.theirs, "har-split")
    worker.start()
    board.agent.start()
    board.again()
    kills = rig.many(2, 20)
    for _ in range(kills):
        board.theirs.kill()
        rig.more(board.listener, rig.random.randint(1, 6))
        board.theirs.start()
        board.again()
    board.theirs.pause()
    board.breaker("open")
    board.theirs.resume()
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
    board.theirs.start()
    worker = PlayedWorker(board.theirs.port, good, "har-split")
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
