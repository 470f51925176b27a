"""What a cloud worker does with requests, without a broker."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from fakes import LABELS, FakeClock, FakeModel, manifest, signal

from agent.core.cloud_wire import (
    MAX_REQUEST,
    NO_SPACE,
    CloudAnswer,
    CloudRefusal,
    Kind,
    Refusal,
    Request,
    code_space,
    decode_answer,
    encode_request,
    labels_crc,
)
from agent.core.decision import calibrated
from agent.core.manifest import NOVELTY, FileEntry, Manifest
from agent.core.settings import WorkerSettings
from agent.errors import InferenceError
from agent.records import Float32Array, Int8Array, Scores
from agent.runtime.worker import MAX_FAILURES, Worker

HERE = "har/board/cloud/answer"
ENCODER = hashlib.sha256(b"encoder").hexdigest()


class CodeModel(FakeModel):
    """A model that also takes codes: its novelty is the mean of one. It fails, or gives no numbers, when told to."""

    def __init__(self, context: int = 0) -> None:
        super().__init__()
        self.context_windows = context
        self.broken = False
        self.classified: list[int] = []

    def infer(self, windows: Float32Array) -> Scores:
        if self.broken:
            raise InferenceError("it is broken")
        return super().infer(windows)

    def classify(self, codes: Int8Array) -> Scores:
        if self.broken:
            raise InferenceError("it is broken")
        self.classified.append(len(codes))
        logits = codes[:, : len(LABELS)].astype(np.float32)
        novelty = codes.mean(axis=1).astype(np.float64)
        return Scores(np.where(codes[:, :1] == 99, np.nan, logits), codes, novelty)


class Desk:
    """A worker, what it is asked, and what it answers."""

    def __init__(self, model: CodeModel, *, files: tuple[str, ...] = (NOVELTY,), **settings: float) -> None:
        self.clock = FakeClock()
        self.answers: list[tuple[str, CloudAnswer | CloudRefusal, bytes]] = []
        self.connected = True
        self.manifest = described(model.context_windows, *files)
        self.worker = Worker([(model, self.manifest)], self._answer, self.clock, WorkerSettings(**settings))

    def _answer(self, topic: str, payload: bytes, correlation: bytes) -> bool:
        if self.connected:
            self.answers.append((topic, decode_answer(payload), correlation))
        return self.connected

    def ask_windows(self, samples: Float32Array, windows: int = 1, hop: int = 0) -> None:
        payload = encode_request(Request(Kind.WINDOW, NO_SPACE, 50.0, samples=samples, windows=windows, hop=hop))
        self.worker.receive(payload, HERE, b"", self.clock.now_ns)

    def ask(self, *codes: Int8Array, correlation: bytes = b"") -> None:
        for code in codes:
            payload = encode_request(Request(Kind.CODE, code_space(ENCODER), 50.0, codes=code))
            self.worker.receive(payload, HERE, correlation, self.clock.now_ns)

    def replies(self) -> list[CloudAnswer | CloudRefusal]:
        """Answer everything."""
        while self.worker.turn(0):
            pass
        return [reply for _, reply, _ in self.answers]

    def reasons(self) -> list[Refusal | None]:
        return [reply.refusal if isinstance(reply, CloudRefusal) else None for reply in self.replies()]


def described(context: int, *files: str) -> Manifest:
    entries = {"encoder.onnx": FileEntry(ENCODER, 1), **{name: FileEntry("", 1) for name in files}}
    return manifest(context=context)._replace(files=entries)


def code(*values: int) -> Int8Array:
    return np.array([values], np.int8)


def test_what_waits_is_scored_in_one_call_and_each_gets_its_own_answer():
    model = CodeModel()
    desk = Desk(model)
    codes = [code(i, 0, 0, 0) for i in range(5)]
    for i, each in enumerate(codes):
        desk.ask(each, correlation=b"%d" % i)
    desk.clock.now_ns = 3_000_000

    replies = desk.replies()

    assert model.classified == [5]
    assert [(topic, correlation) for topic, _, correlation in desk.answers] == [(HERE, b"%d" % i) for i in range(5)]
    for each, reply in zip(codes, replies, strict=True):
        (row,) = calibrated(each[:, :3].astype(np.float32), 1.0).astype(np.float32)
        assert reply == CloudAnswer(tuple(row.tolist()), True, labels_crc(LABELS), model.id)
    worker = desk.worker
    assert (worker.requests, worker.answered, worker.refused.total(), worker.unsent) == (5, 5, 0, 0)
    assert (worker.calls, worker.scored, worker.largest) == (1, 5, 5)
    assert worker.total.count == worker.wait.count == 5
    assert worker.wait.summary_ms()["max"] == 3.0


def test_a_batch_is_never_larger_than_configured():
    model = CodeModel()
    desk = Desk(model, max_batch=2)
    desk.ask(*[code(1, 2, 3, 4)] * 5)

    desk.replies()

    assert model.classified == [2, 2, 1]
    assert desk.worker.largest == 2


@pytest.mark.parametrize(("context", "batches"), [(8, [6, 6, 3]), (2, [4, 4, 2]), (0, [4, 1])])
def test_what_fills_a_batch_is_the_windows_that_are_read(context: int, batches: list[int]):
    model = CodeModel(context)
    desk = Desk(model, files=(), max_batch=4)
    for _ in range(5):
        desk.ask_windows(signal(128 + 2 * 64), windows=3, hop=64)

    assert desk.reasons() == [None] * 5
    assert model.batches == batches
    assert desk.worker.scored == 5


def test_what_is_refused_counts_in_a_turn_as_well():
    desk = Desk(CodeModel(), max_batch=2)
    for _ in range(3):
        desk.worker.receive(b"", HERE, b"", 0)

    assert desk.worker.turn(0)
    assert len(desk.answers) == 2
    assert desk.worker.waiting == 1


def test_what_is_too_long_for_a_request_is_refused_at_once_and_does_not_wait():
    desk = Desk(CodeModel())
    desk.worker.receive(bytes(MAX_REQUEST + 1), HERE, b"17", 0)
    desk.worker.receive(bytes(MAX_REQUEST), HERE, b"18", 0)

    ((_, reply, correlation),) = desk.answers
    assert isinstance(reply, CloudRefusal)
    assert (reply.refusal, correlation) == (Refusal.TOO_LARGE, b"17")
    assert desk.worker.waiting == 1
    assert +desk.worker.refused == Counter(too_large=1)


def test_what_would_have_to_be_sent_back_is_short_or_never_sent():
    desk = Desk(CodeModel())
    desk.ask(code(1, 2, 3, 4), correlation=bytes(65))
    desk.worker.receive(bytes(MAX_REQUEST + 1), HERE, bytes(65), 0)
    desk.ask(code(1, 2, 3, 4), correlation=bytes(64))

    desk.replies()

    assert [correlation for _, _, correlation in desk.answers] == [bytes(64)]
    assert desk.worker.requests == 3
    assert +desk.worker.refused == Counter(long_correlation=2)


def test_what_may_wait_fits_into_memory():
    with pytest.raises(ValueError, match="max_waiting"):
        WorkerSettings(max_waiting=16_385)


def test_a_context_sees_zeros_before_a_short_history_and_the_end_of_a_long_one():
    model = CodeModel(context=3)
    desk = Desk(model)
    short, long = np.array([[8] * 4, [1] * 4], np.int8), np.array([[9] * 4, [7] * 4, [2] * 4, [3] * 4], np.int8)
    desk.ask(short, long)

    first, second = desk.replies()

    (seen,) = model.contexts
    assert seen.tolist() == [[[0] * 4, [8] * 4, [1] * 4], [[7] * 4, [2] * 4, [3] * 4]]
    rows = calibrated(FakeModel().contextualise(seen), 1.0).astype(np.float32).tolist()
    assert isinstance(first, CloudAnswer)
    assert isinstance(second, CloudAnswer)
    assert [first.probabilities, second.probabilities] == [tuple(row) for row in rows]


def test_a_window_that_comes_alone_is_read_without_context():
    model = CodeModel(context=2)
    desk = Desk(model)
    desk.ask(code(1, 2, 3, 4), np.array([[0] * 4, [1, 2, 3, 4]], np.int8))

    alone, after_another = desk.replies()

    assert len(model.contexts) == 1
    assert isinstance(alone, CloudAnswer)
    assert isinstance(after_another, CloudAnswer)
    (row,) = calibrated(np.array([[1, 2, 3, 4]][:1], np.float32)[:, : len(LABELS)], 1.0).astype(np.float32)
    assert alone.probabilities == tuple(row.tolist())
    assert after_another.probabilities != alone.probabilities


@pytest.mark.parametrize(("context", "hop", "seen"), [(2, 64, 2), (8, 64, 3), (0, 64, 1), (2, 32, 1)])
def test_of_samples_the_windows_are_read_that_a_context_sees(context: int, hop: int, seen: int):
    model = CodeModel(context)
    desk = Desk(model, files=())
    samples = signal(128 + 2 * hop).astype(np.float16).astype(np.float32)
    desk.ask_windows(samples, 3, hop)

    (answer,) = desk.replies()

    last = [samples[at : at + 128] for at in (0, hop, 2 * hop)][-seen:]
    reference = FakeModel()
    scores = reference.infer(desk.manifest.normalisation.apply(np.array(last)))
    assert model.batches == [seen]
    if seen == 1:
        logits = scores.logits
        assert model.contexts == []
    else:
        (histories,) = model.contexts
        assert histories[0, -seen:].tolist() == scores.code.tolist()
        assert not histories[0, :-seen].any()
        logits = reference.contextualise(histories)
    (row,) = calibrated(logits, 1.0).astype(np.float32)
    assert isinstance(answer, CloudAnswer)
    assert answer.probabilities == tuple(row.tolist())


def test_a_code_unlike_all_others_is_not_known():
    desk = Desk(CodeModel())
    desk.ask(code(5, 5, 5, 5), code(6, 6, 6, 6))

    assert [reply.known for reply in desk.replies() if isinstance(reply, CloudAnswer)] == [True, False]


def test_the_newest_are_answered_first_and_expired_ones_never():
    desk = Desk(CodeModel(), max_batch=2)
    for i in range(5):
        payload = encode_request(Request(Kind.CODE, code_space(ENCODER), 50.0, codes=code(1, 2, 3, 4)))
        desk.worker.receive(payload, HERE, b"%d" % i, i * 1_000_000_000, expiry_s=3)
    desk.clock.now_ns = 4_000_000_000
    desk.replies()

    assert [correlation for _, _, correlation in desk.answers] == [b"3", b"4", b"1", b"2"]
    assert +desk.worker.refused == Counter(expired=1)


def test_the_oldest_of_more_than_may_wait_is_refused_at_once():
    desk = Desk(CodeModel(), max_waiting=3)
    for i in range(5):
        desk.ask(code(1, 2, 3, 4), correlation=b"%d" % i)

    refused = [(reply.refusal, c) for _, reply, c in desk.answers if isinstance(reply, CloudRefusal)]
    assert refused == [(Refusal.OVERLOADED, b"0"), (Refusal.OVERLOADED, b"1")]
    assert desk.worker.waiting == 3
    assert desk.reasons().count(None) == 3
    assert +desk.worker.refused == Counter(overloaded=2)
    desk.ask(code(1, 2, 3, 4))
    assert desk.reasons()[-1] is None


def test_scores_that_are_no_numbers_are_refused_and_the_others_of_the_batch_are_not():
    desk = Desk(CodeModel())
    desk.ask(code(1, 2, 3, 4), code(99, 2, 3, 4), code(1, 2, 3, 4))

    assert desk.reasons() == [None, Refusal.FAILED, None]
    assert (desk.worker.answered, +desk.worker.refused) == (2, Counter(failed=1))
    assert desk.worker.problem is None


def test_a_model_that_fails_again_and_again_ends_the_worker_and_one_that_recovers_does_not():
    model = CodeModel()
    desk = Desk(model)
    for _ in range(2):
        model.broken = True
        for _ in range(MAX_FAILURES - 1):
            desk.ask(code(1, 2, 3, 4))
            assert desk.reasons()[-1] is Refusal.FAILED
        assert desk.worker.problem == "it is broken"
        model.broken = False
        desk.ask(code(1, 2, 3, 4))
        assert desk.reasons()[-1] is None
        assert desk.worker.problem is None

    model.broken = True
    for _ in range(MAX_FAILURES - 1):
        desk.ask(code(1, 2, 3, 4))
        desk.replies()
    desk.ask(code(1, 2, 3, 4))
    with pytest.raises(InferenceError, match="broken"):
        desk.replies()


def test_a_model_that_fails_for_the_last_time_leaves_no_request_of_its_turn_without_an_answer():
    model = CodeModel()
    model.broken = True
    desk = Desk(model)
    for _ in range(MAX_FAILURES - 1):
        desk.ask(code(1, 2, 3, 4))
        desk.replies()
    desk.ask(code(1, 2, 3, 4), code(1, 2, 3, 4))
    for _ in range(3):
        desk.ask_windows(signal(128))

    with pytest.raises(InferenceError, match="broken"):
        desk.replies()

    assert [reply.refusal for _, reply, _ in desk.answers if isinstance(reply, CloudRefusal)] == [Refusal.FAILED] * 7
    assert desk.worker.refused["failed"] == desk.worker.requests == 7


def test_a_bundle_whose_novelty_needs_the_window_takes_windows_alone():
    desk = Desk(CodeModel(), files=())
    desk.ask(code(1, 2, 3, 4))
    desk.ask_windows(np.zeros((128, 6), np.float32))

    assert desk.reasons() == [Refusal.OTHER_CODE, None]


@pytest.mark.parametrize(
    "root", ["har/+", "#", "har/\0", "har/\x01", "$share/har", "$SYS/broker", "har/" + 600 * "x", 240 * "a/"]
)
@pytest.mark.parametrize("full", [False, True])
def test_a_topic_that_is_no_boards_is_never_written_to(root: str, full: bool):
    desk = Desk(CodeModel(), max_waiting=1)
    if full:
        desk.ask(code(1, 2, 3, 4))
    desk.worker.receive(b"", f"{root}/cloud/answer", b"", 0)

    assert len(desk.replies()) == full
    assert +desk.worker.refused == Counter(no_answer_topic=1)


@pytest.mark.parametrize("board", ["har/kitchen", "a/b/c/pi $1", "/board", "har/Küche"])
def test_any_name_that_an_agent_may_have_is_answered(board: str):
    desk = Desk(CodeModel())
    desk.worker.receive(b"", f"{board}/cloud/answer", b"", 0)

    assert len(desk.replies()) == 1


def test_what_cannot_be_sent_is_counted():
    desk = Desk(CodeModel())
    desk.ask(code(1, 2, 3, 4))
    desk.connected = False
    desk.replies()

    assert desk.worker.unsent == 1


def test_requests_can_be_collected_for_a_while():
    desk = Desk(CodeModel(), linger_ms=5)
    desk.ask(code(1, 2, 3, 4))
    desk.replies()

    assert desk.clock.slept == [0.005]
