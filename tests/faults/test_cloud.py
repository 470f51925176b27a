"""The cloud dies, vanishes or talks nonsense while it is asked about every window: predictions do not depend on it."""

import json
import struct
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import pytest
from asking import DEADLINE_MS, MARGIN_MS, TELEMETRY, AskingBoard, Worker
from live import wait_until
from played_worker import PlayedWorker, Saying
from rehearsal import Rig, Scenario

from agent.app.compose import open_model
from agent.core.cloud_wire import CloudAnswer, Refusal, encode_answer, encode_refusal, labels_crc

MODEL = "test-cloud@11111111"


class Board(AskingBoard):
    """An agent that asks the cloud about every window."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(
            rig,
            "cloud",
            'when = "always"\nper_device_per_minute = 60000\nrequests_per_day = 1000000\nmb_per_day = 1000\n',
        )

    def by_others(self) -> int:
        """Predictions that the cloud decided."""
        return sum(p["origin"] == "cloud" for p in list(self.listener.predictions.values()))

    def openings(self) -> int:
        """How often the breaker was told to be open, or half-open, after it had been closed."""
        messages = [json.loads(body)["cloud"] for topic, body in list(self.listener.messages) if topic == TELEMETRY]
        return sum(a["breaker"] == "closed" != b["breaker"] for a, b in pairwise(messages))

    def holds(self) -> None:
        """Stop the agent when all is well again: each prediction came, once, in order, and in time."""
        came = self.came()
        spent = [p["latency_ms"] for p in came]
        # The rest would have been spent without a cloud, too.
        held = [ms["total"] - ms["wait"] - ms["infer"] for ms in spent]
        in_vain = sum(p["origin"] == "local" and "cloud" in p["latency_ms"] for p in came)
        self._rig.fact(
            f"{len(came)} predictions, {self.by_others()} by the cloud, {in_vain} after it was asked in vain; held for"
            f" {median(held):.0f} ms in the median, at most {max(held):.0f} ms, of {DEADLINE_MS} ms"
        )
        assert max(held) < DEADLINE_MS + MARGIN_MS
        assert max(ms["total"] for ms in spent) < DEADLINE_MS + 2 * MARGIN_MS


def nobody_there(rig: Rig) -> None:
    """Neither broker nor worker for so long that health says so; then the one, and then the other."""
    board = Board(rig)
    board.agent.start()
    rig.more(board.listener, 3)
    rig.told(board.agent, "cloud_away", "connection refused")
    board.theirs.start()
    board.breaker("open")
    rig.told(board.agent, "cloud_away", "timed out")
    worker = Worker(rig, board.theirs)
    worker.start()
    rig.fact(f"the cloud decides {board.again():.1f} s after the worker was started")
    board.holds()
    assert any("cloud_away" in codes for codes in board.listener.health_codes())
    assert worker.stop() == 0


def worker_killed(rig: Rig) -> None:
    """The only worker is killed with -9, again and again, most times while it starts."""
    board = Board(rig)
    board.theirs.start()
    ears = rig.listener(board.theirs.port)
    worker = Worker(rig, board.theirs)
    worker.start()
    board.agent.start()
    board.again()
    returns, kills = [], 0
    for _ in range(rig.many(4, 20)):
        worker.kill()
        for _ in range(4):
            worker.start()
            time.sleep(rig.random.uniform(0, 0.6))  # the moment
            worker.kill()
        kills += 5
        board.breaker("open")
        worker.start()
        returns.append(board.again())
        board.breaker("closed")
    opened = board.openings()
    rig.fact(
        f"{kills} kills, the breaker opened {opened} times, the cloud decides again {min(returns):.1f} to"
        f" {max(returns):.1f} s after the worker was started"
    )
    assert opened >= len(returns)
    board.holds()
    assert ears.count() == 0, "nothing but questions goes to the broker of the cloud"
    assert worker.stop() == 0


def broker_killed(rig: Rig) -> None:
    """The broker of the cloud is killed with -9, again and again; then it only stops answering."""
    board = Board(rig)
    board.theirs.start()
    worker = Worker(rig, board.theirs)
    worker.start()
    board.agent.start()
    board.again()
    returns, kills = [], rig.many(5, 20)
    for _ in range(kills):
        board.theirs.kill()
        rig.more(board.listener, rig.random.randint(1, 6))
        board.theirs.start()
        returns.append(board.again())
    away = board.figures()["not_asked"].get("link_away", 0)
    board.theirs.pause()
    board.breaker("open")
    wait_until(lambda: board.figures()["not_asked"]["link_away"] > away, 20, "the agent to see that nobody answers")
    board.theirs.resume()
    returns.append(board.again())
    rig.fact(f"{kills} kills, the cloud decides again at most {max(returns):.1f} s after its broker is back")
    board.holds()
    assert worker.stop() == 0


def answers_with(rig: Rig, good: bytes, modes: dict[str, tuple[Saying, str]]) -> None:
    """A worker that answers well, and in turn in other ways, each counted as it should be."""
    board = Board(rig)
    board.theirs.start()
    worker = PlayedWorker(board.theirs.port, lambda _: [good])
    rig.ending.callback(worker.close)
    board.agent.start()
    board.again()
    returns = []
    for say, outcome in modes.values():
        before = board.counted(outcome)
        worker.say = say
        board.breaker("open")
        assert board.counted(outcome) >= before + 3, board.figures()
        worker.say = lambda _: [good]
        returns.append(board.again())
        board.breaker("closed")
    rig.fact(f"{', '.join(modes)}: the cloud decides again after at most {max(returns):.1f} s")
    assert board.openings() >= len(modes)
    board.holds()
    decided = [p for p in board.listener.predictions.values() if p["origin"] == "cloud"]
    assert {(p["model"], p["confidence"]) for p in decided} == {(MODEL, 1.0)}


def right_answer() -> CloudAnswer:
    """An answer that says the first of the shipped model's labels."""
    labels = open_model("har-base").labels
    return CloudAnswer((1.0, *(0.0,) * (len(labels) - 1)), True, labels_crc(labels), MODEL)


def answers_nonsense(rig: Rig) -> None:
    """Bytes that are no answer, or one for other labels."""
    labels, right = open_model("har-base").labels, right_answer()
    good, scores = encode_answer(right), struct.Struct(f"<{len(labels)}f")
    start, nans = good.index(scores.pack(*right.probabilities)), scores.pack(*[float("nan")] * len(labels))
    wrong = {
        "garbage": rig.random.randbytes(200),
        "half an answer": good[: start + 5],
        "no numbers": good[:start] + nans + good[start + scores.size :],
        "other labels": encode_answer(right._replace(labels_crc=labels_crc(labels[::-1]))),
        "fewer labels": encode_answer(right._replace(probabilities=(0.5, 0.5))),
    }
    answers_with(rig, good, {name: (lambda _, answer=answer: [answer], "garbled") for name, answer in wrong.items()})


def answers_too_late(rig: Rig) -> None:
    """After the deadline, not at all, with more than anybody takes, or that it will not."""
    good = encode_answer(right_answer())

    def late(_: bytes) -> list[bytes]:
        time.sleep(1.5 * DEADLINE_MS / 1000)  # which is too long
        return [good]

    modes: dict[str, tuple[Saying, str]] = {
        "too late": (late, "timed_out"),
        "nothing": (lambda _: [], "timed_out"),
        "megabytes": (lambda _: [good + bytes(2 << 20)], "timed_out"),
        "a refusal": (lambda _: [encode_refusal(Refusal.OTHER_CODE, "not mine")], "refused"),
    }
    answers_with(rig, good, modes)


SCENARIOS: Sequence[Scenario] = [nobody_there, worker_killed, answers_nonsense, answers_too_late, broker_killed]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_cloud(scenario: Scenario, play: Callable[[Scenario], None]):
    play(scenario)
