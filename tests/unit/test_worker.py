"""What a cloud worker does with requests, without a broker."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from agent.core.manifest import NOVELTY, Exit, FileEntry, Manifest
from agent.core.settings import WorkerSettings
from agent.core.split_wire import (
    MAX_TENSORS,
    TensorAnswer,
    TensorRequest,
    decode_tensor_answer,
    decode_tensor_request,
    encode_tensor_request,
)
from agent.errors import InferenceError, ModelContractError
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


# --- tensors of a network that was split

NETWORK = b"network1"
THERE = "har/board/split/answer"
STEPS = ("window", "a", "b", "c", "code")
"""The tensors of a network that can be cut there."""
WINDOW = np.array([[1, 2, 3, 4]], np.float32)


class Cut(NamedTuple):
    name: str
    bytes: int = 16


class FakeParts:
    """A network of formulas, or a part of it, each tensor float32 (B, 4): what is behind one is twice that, and one.

    `d`, an exit's head, reads `b`.
    """

    def __init__(self, at: str = "window", until: str = "", exits: Sequence[str] = ("d",)) -> None:
        self.id, self.network, self.until = "fake@11111111", NETWORK, until
        first, last = STEPS.index(at), STEPS.index(until) if until else len(STEPS)
        self.cuts = [Cut(name) for name in STEPS[first:last]]
        self.exits = [Exit(name, "b", None, 0.9) for name in exits]
        self.ran: list[tuple[str, str, str, int]] = []
        self.problem: Exception | None = None

    def values(self, at: str, data: bytes, count: int) -> Any:
        if len(data) != 16 * count:
            raise ValueError(f"{len(data)} bytes are not {count} times the 16 of {at}")
        return np.frombuffer(data, np.float32).reshape(count, 4)

    def run(self, at: str, until: str, values: Any, leave: str = "") -> Any:
        if self.problem is not None:
            raise self.problem
        self.ran.append((at, until, leave, len(values)))
        ends = "b" if leave else until or "code"
        for _ in range(STEPS.index(at), STEPS.index(ends)):
            values = 2 * values + 1
        if until:
            return np.repeat(values, 1000, axis=1) if values[0, 0] > 1e6 else values
        code = np.zeros((len(values), 4), np.int8) if leave else np.nan_to_num(values).astype(np.int8)
        return Scores(values[:, :3] * (-1 if leave else 1), code, values[:, 3].astype(np.float64))


class Place:
    """A worker that has parts, what it answers, and what it passes on."""

    def __init__(self, *parts: FakeParts, goes_on: str = "", **settings: float) -> None:
        self.clock = FakeClock()
        self.parts = parts
        self.answers: list[tuple[str, TensorAnswer | CloudRefusal, bytes]] = []
        self.passed: list[tuple[bytes, str, bytes, int]] = []
        self.connected = True
        self.worker = Worker(
            [], self._answer, self.clock, WorkerSettings("here", next=goes_on, **settings), parts, self._pass_on
        )

    def _answer(self, topic: str, payload: bytes, correlation: bytes) -> bool:
        self.answers.append((topic, decode_tensor_answer(payload), correlation))
        return True

    def _pass_on(self, payload: bytes, answer_to: str, correlation: bytes, expiry_s: int) -> bool:
        self.passed.append((payload, answer_to, correlation, expiry_s))
        return self.connected

    def ask(self, at: str = "window", until: str = "", leave: str = "", **others: Any) -> None:
        """Send a window as it is, or so many, as the tensor `at`."""
        values = others.pop("values", WINDOW)
        request = TensorRequest(NETWORK, at, until, leave, len(values), 0, values.tobytes())._replace(**others)
        self.worker.receive(encode_tensor_request(request), THERE, b"17", self.clock.now_ns)

    def turn(self) -> None:
        while self.worker.turn(0):
            pass

    def refusals(self) -> list[CloudRefusal]:
        self.turn()
        return [said for _, said, _ in self.answers if isinstance(said, CloudRefusal)]

    def scores(self) -> list[TensorAnswer]:
        self.turn()
        return [said for _, said, _ in self.answers if isinstance(said, TensorAnswer)]


def scores_of(values: Float32Array = WINDOW) -> tuple[list[Any], ...]:
    """What the whole network gives, as lists."""
    logits, code, novelty, _ = FakeParts().run("window", "", values)
    return code.tolist(), logits.tolist(), novelty.tolist()


def as_lists(answer: TensorAnswer) -> tuple[list[Any], ...]:
    return tuple(array.tolist() for array in answer[1:])


def test_tensors_of_one_kind_go_through_the_network_at_once_and_each_gets_its_own_scores():
    place, others = Place(FakeParts()), np.array([[4, 3, 2, 1], [0, 1, 0, 1]], np.float32)
    place.ask()
    place.ask(values=others)
    place.ask("b", values=4 * WINDOW + 3)

    window, two, rest = place.scores()

    assert place.parts[0].ran == [("window", "", "", 3), ("b", "", "", 1)]
    assert as_lists(window) == as_lists(rest) == scores_of()
    assert as_lists(two) == scores_of(others)
    assert {topic for topic, _, _ in place.answers} == {THERE}
    worker = place.worker
    assert (worker.requests, worker.answered, worker.passed_on, worker.refused.total()) == (3, 3, 0, 0)
    assert (worker.calls, worker.scored, worker.largest) == (2, 3, 2)


def test_an_exit_has_no_code():
    place = Place(FakeParts())
    place.ask("code")
    place.ask(leave="d")
    place.ask("b", leave="d")

    code, window, at_head = place.scores()

    assert place.parts[0].ran == [("code", "", "", 1), ("window", "", "d", 1), ("b", "", "d", 1)]
    assert [len(answer.code[0]) for answer in (code, window, at_head)] == [4, 0, 0]
    assert code.logits.tolist() == [[1, 2, 3]]
    assert window.logits.tolist() == [[-7, -11, -15]]
    assert at_head.logits.tolist() == [[-1, -2, -3]]


def test_of_several_parts_that_which_goes_on_to_the_end_answers():
    place = Place(FakeParts("window", "c"), FakeParts())
    place.ask()

    assert len(place.scores()) == 1
    assert [len(part.ran) for part in place.parts] == [0, 1]


def test_a_chain_ends_with_what_the_whole_network_gives_and_tells_how_long_it_took():
    places = [Place(FakeParts(*ends), goes_on="next") for ends in (("window", "a"), ("a", "c"))]
    last = Place(FakeParts("c"))
    places[0].ask(elapsed_us=10)
    for place, after in zip(places, [*places[1:], last], strict=True):
        place.clock.now_ns += 5_000_000
        place.turn()
        ((payload, *rest),) = place.passed
        after.worker.receive(payload, *rest[:2], after.clock.now_ns, rest[2])
        assert (place.worker.answered, place.worker.passed_on, place.worker.total.count) == (0, 1, 1)

    (answer,) = last.scores()

    assert as_lists(answer) == scores_of()
    assert answer.elapsed_us == 10_010
    assert [(topic, correlation) for topic, _, correlation in last.answers] == [(THERE, b"17")]
    assert [place.parts[0].ran for place in (*places, last)] == [
        [("window", "a", "", 1)], [("a", "c", "", 1)], [("c", "", "", 1)]]  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "asked", "ran", "goes_on"),
    [
        (("window", ""), ("window", "b", ""), ("window", "b", ""), ("b", "", "")),
        (("window", ""), ("a", "b", ""), ("a", "b", ""), ("b", "", "")),
        (("a", "c"), ("a", "b", ""), ("a", "b", ""), ("b", "", "")),
        (("a", "c"), ("a", "c", ""), ("a", "c", ""), ("c", "", "")),
        (("a", "c"), ("b", "code", ""), ("b", "c", ""), ("c", "code", "")),
        # The head is there, but somebody else is to go on before it, or at it.
        (("window", ""), ("window", "a", "d"), ("window", "a", ""), ("a", "", "d")),
        (("window", ""), ("window", "b", "d"), ("window", "b", ""), ("b", "", "d")),
        # It is there, and comes before.
        (("window", ""), ("window", "c", "d"), ("window", "", "d"), None),
        (("a", "b"), ("a", "", "d"), ("a", "", "d"), None),
        # It is elsewhere.
        (("a", "b"), ("a", "", "f"), ("a", "b", ""), ("b", "", "f")),
    ],
)
def test_how_far_a_tensor_goes_here_and_what_is_left_to_the_next(
    ends: tuple[str, str],
    asked: tuple[str, str, str],
    ran: tuple[str, str, str],
    goes_on: tuple[str, str, str] | None,
):
    place = Place(FakeParts(*ends), goes_on="next")
    place.ask(*asked)
    place.turn()

    assert place.parts[0].ran == [(*ran, 1)]
    passed = [decode_tensor_request(payload)[1:4] for payload, *_ in place.passed]
    assert passed == ([goes_on] if goes_on else [])
    assert len(place.answers) == (goes_on is None)


def test_what_is_passed_on_expires_with_what_is_left():
    place = Place(FakeParts(until="b"), goes_on="next")
    request = encode_tensor_request(TensorRequest(NETWORK, "window", "", "", 1, 0, WINDOW.tobytes()))
    for expiry_s in (0, 1, 5):
        place.worker.receive(request, THERE, b"", place.clock.now_ns, expiry_s)
    place.clock.now_ns += 900_000_000
    place.turn()
    place.worker.receive(request, THERE, b"", 0, 5)
    place.clock.now_ns = 2_500_000_000
    place.turn()
    place.worker.receive(request, THERE, b"", 0, 2)
    place.turn()

    assert [expiry_s for *_, expiry_s in place.passed] == [0, 1, 5, 3]
    assert +place.worker.refused == Counter(expired=1)


def test_a_worker_with_several_segments_uses_the_one_that_begins_there():
    place = Place(FakeParts("window", "a"), FakeParts("c"), goes_on="next")
    place.ask()
    place.ask("c", values=8 * WINDOW + 7)

    (answer,) = place.scores()

    assert as_lists(answer) == scores_of()
    assert [decode_tensor_request(payload).at for payload, *_ in place.passed] == ["a"]


@pytest.mark.parametrize(
    ("ends", "asked", "refusal", "sentence"),
    [
        (
            ("window", ""),
            {"network": b"another1"},
            Refusal.OTHER_PART,
            r"616e6f7468657231 is not here \(fake@11111111\)",
        ),
        (
            ("b", ""),
            {},
            Refusal.OTHER_PART,
            "nothing of fake@11111111 goes on from 'window' here: set cut to one of b, c, code",
        ),
        (("window", ""), {"at": "x"}, Refusal.OTHER_PART, "goes on from 'x' here"),
        (("window", "b"), {"at": "b"}, Refusal.OTHER_PART, "goes on from 'b' here"),
        (
            ("window", ""),
            {"at": "c", "until": "b"},
            Refusal.OTHER_PART,
            "no tensor 'b' behind 'c': before its end there is code",
        ),
        (
            ("window", ""),
            {"at": "b", "until": "b"},
            Refusal.OTHER_PART,
            "no tensor 'b' behind 'b': before its end there is c, code",
        ),
        (("window", ""), {"at": "code", "until": "x"}, Refusal.OTHER_PART, "before its end there is nothing"),
        (("window", ""), {"leave": "f"}, Refusal.OTHER_PART, "no exit 'f' behind 'window'"),
        (("window", ""), {"at": "c", "leave": "d"}, Refusal.OTHER_PART, "no exit 'd' behind 'c'"),
        (("window", "b"), {}, Refusal.NOWHERE_NEXT, r"from 'window' to 'b' here.* set next in the worker's \[worker\]"),
        (("window", ""), {"until": "c"}, Refusal.NOWHERE_NEXT, "from 'window' to 'c' here"),
        (("window", ""), {"data": bytes(15)}, Refusal.BAD_REQUEST, "15 bytes are not 1 times the 16 of window"),
    ],
)
def test_a_tensor_for_which_there_is_no_part_is_refused_with_what_to_do(
    ends: tuple[str, str], asked: dict[str, Any], refusal: Refusal, sentence: str
):
    place = Place(FakeParts(*ends))
    place.ask(**asked)

    (said,) = place.refusals()

    assert said.refusal is refusal
    assert re.search(sentence, said.sentence)
    assert place.parts[0].ran == []
    assert +place.worker.refused == Counter({refusal.name.lower(): 1})


def test_a_worker_without_parts_says_that_it_has_none():
    place = Place()
    place.ask()

    (said,) = place.refusals()

    assert said.refusal is Refusal.OTHER_PART
    assert "none that can be split" in said.sentence


def test_tensors_have_a_size_of_their_own_and_what_is_longer_does_not_wait():
    place = Place(FakeParts())
    for payload in (b"HT" + bytes(MAX_TENSORS - 1), b"HT" + bytes(MAX_TENSORS - 2), bytes(MAX_REQUEST + 1)):
        place.worker.receive(payload, THERE, b"", 0)

    assert place.worker.waiting == 1
    assert [said.refusal for said in place.refusals()] == [
        Refusal.TOO_LARGE, Refusal.TOO_LARGE, Refusal.UNKNOWN_VERSION]  # fmt: skip


def test_what_waits_has_a_size_also_where_requests_are_large():
    place = Place(FakeParts(), max_waiting=8)
    for _ in range(3):
        place.worker.receive(b"HT" + bytes(MAX_TENSORS - 2), THERE, b"", 0)
    place.ask()

    assert place.worker.waiting == 2
    assert +place.worker.refused == Counter(overloaded=2)
    assert len(place.scores()) == 1


def test_scores_of_a_tensor_that_are_no_numbers_are_refused_and_the_others_of_the_call_are_not():
    place = Place(FakeParts())
    place.ask()
    place.ask(values=np.array([[1, 2, 3, 4], [1, np.nan, 3, 4]], np.float32))

    assert [as_lists(answer) for answer in place.scores()] == [scores_of()]
    (refused,) = place.refusals()
    assert refused == CloudRefusal(Refusal.FAILED, "fake@11111111 gives scores that are no numbers")


def test_what_grows_beyond_a_message_on_its_way_is_refused():
    place = Place(FakeParts(until="b"), goes_on="next")
    place.ask(values=np.full((5, 4), 1e6, np.float32))

    (refused,) = place.refusals()

    assert refused.refusal is Refusal.TOO_LARGE
    assert "send fewer windows at once" in refused.sentence
    assert (place.passed, place.worker.passed_on) == ([], 0)


@pytest.mark.parametrize("problem", [InferenceError("it is broken"), ModelContractError("it is broken")])
def test_a_part_that_fails_again_and_again_ends_the_worker(problem: Exception):
    place = Place(FakeParts())
    place.parts[0].problem = problem
    for _ in range(MAX_FAILURES - 1):
        place.ask()
        place.turn()
    assert place.worker.problem == "it is broken"
    place.ask()
    place.ask("b")
    with pytest.raises(InferenceError, match="broken"):
        place.turn()

    assert [said.refusal for said in place.refusals()] == [Refusal.FAILED] * (MAX_FAILURES + 1)


def test_what_cannot_be_passed_on_is_counted():
    place = Place(FakeParts(until="b"), goes_on="next")
    place.connected = False
    place.ask()
    place.turn()

    assert place.worker.unsent == 1


def test_the_next_service_has_a_name_like_others():
    with pytest.raises(ValueError, match="next must be 1 to 64 printable"):
        WorkerSettings(next="a/b")
