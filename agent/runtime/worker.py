"""What a cloud worker does with requests: all that wait go through a model at once, and each is answered by itself.

A tensor of a network that was split goes as far as the part that is here, which is not always the end: it is passed on
to another service then, with what the answer needs to find the board, and whoever comes to the end answers.

The connection's thread lays requests on a stack, the main thread takes them in `turn`. Batches make themselves: what
comes while one is being scored is the next.

A stack, because an answer that comes too late is worth nothing: where more is asked than can be answered, the newest
get theirs in time, and of the oldest, which would not, the stack lets go. A queue would make all of them late.
"""

import itertools
import math
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from agent.core.cloud_wire import (
    MAX_REQUEST,
    CloudAnswer,
    Kind,
    Refusal,
    Request,
    RequestError,
    code_space,
    decode_request,
    encode_answer,
    encode_refusal,
    labels_crc,
)
from agent.core.decision import calibrated
from agent.core.histogram import Histogram
from agent.core.manifest import NOVELTY, Manifest
from agent.core.settings import WorkerSettings
from agent.core.split_wire import (
    MAX_TENSORS,
    TensorAnswer,
    TensorRequest,
    decode_tensor_request,
    encode_tensor_answer,
    encode_tensor_request,
    is_tensor_request,
)
from agent.errors import InferenceError, ModelContractError
from agent.ports import Clock, Model, Parts
from agent.records import Float32Array, Int8Array, Scores

ANSWERS_END = "/cloud/answer", "/split/answer"
"""How a topic ends under which a worker answers: nobody may have it write anywhere else."""
UNANSWERABLE, LONG_CORRELATION, EXPIRED = "no_answer_topic", "long_correlation", "expired"
"""What requests are counted under that say nowhere to answer, or somewhere else; whose answer would have to carry more
than a worker keeps for them; and that waited too long."""
MAX_FAILURES = 3
"""Calls in a row in which a model may fail: what shares the load with this worker does better without it."""
_SAME_RATE = 1e-3
_LONGEST_CORRELATION = 64
"""Bytes that are sent back with an answer: several times what boards send."""
_LONGEST_TOPIC, _MOST_LEVELS = 500, 20
"""Characters of a topic for answers, where a level has 200 bytes at most; and levels: mosquitto takes 200."""


class CodeModel(Model, Protocol):
    """A model that also scores codes that were made elsewhere."""

    def classify(self, codes: Int8Array) -> Scores:
        """Score int8 (B, *code) as `infer` scores the windows that they were made of.

        Raises:
            InferenceError: the runtime refused the call.
        """


class _Asked(NamedTuple):
    """A request that waits: where to answer, and with what the answer is told from others."""

    payload: bytes
    answer_to: str
    correlation: bytes
    t_rx_ns: int
    expires_ns: int | None


class _Served:
    """A bundle that answers."""

    def __init__(self, model: CodeModel, manifest: Manifest) -> None:
        self.model, self.manifest = model, manifest
        self.space = code_space(manifest.files["encoder.onnx"].sha256)
        self.takes_codes = NOVELTY in manifest.files
        self._labels_crc = labels_crc(manifest.labels)

    def fits_rate(self, rate_hz: float) -> bool:
        return math.isclose(rate_hz, self.manifest.input.rate_hz, rel_tol=_SAME_RATE)

    def seen(self, request: Request) -> int:
        """How many of a request's windows are read: what a context sees of them, the last one where none would fit."""
        fits = request.hop == self.manifest.input.hop
        return min(request.windows, self.model.context_windows or 1) if fits else 1

    def score(self, kind: Kind, requests: Sequence[Request]) -> "list[_Made]":
        """Answer requests of one kind, in order; None where the model gives what is no number.

        Each window is read in its context where its request tells what came before.

        Raises:
            InferenceError: the model failed.
        """
        manifest = self.manifest
        if kind is Kind.WINDOW:
            cut = [self._windows(r) for r in requests]
            scores = self.model.infer(manifest.normalisation.apply(np.concatenate(cut)))
            ends = np.cumsum([len(windows) for windows in cut])
            codes = np.split(scores.code, ends[:-1])
            logits, novelty = scores.logits[ends - 1], scores.novelty[ends - 1]
        else:
            codes = [r.codes.reshape(-1, *manifest.code.shape) for r in requests if r.codes is not None]
            scores = self.model.classify(np.stack([history[-1] for history in codes]))
            logits, novelty = scores.logits, scores.novelty
        rows = calibrated(logits, manifest.calibration.temperature)
        deep = np.array([len(history) > 1 for history in codes])
        if manifest.context is not None and deep.any():
            histories = self._histories([history for history in codes if len(history) > 1])
            rows[deep] = calibrated(self.model.contextualise(histories), manifest.context.temperature)
        numbers = np.isfinite(rows[:, 0]) & np.isfinite(novelty)
        known = novelty <= manifest.calibration.novelty_threshold
        return [
            CloudAnswer(tuple(row), is_known, self._labels_crc, self.model.id) if are_numbers else None
            for row, is_known, are_numbers in zip(rows.tolist(), known.tolist(), numbers.tolist(), strict=True)
        ]

    def _windows(self, request: Request) -> Float32Array:
        """Return those windows of a request that are read, (n, window, 6)."""
        samples, window = request.samples, self.manifest.input.window
        assert samples is not None  # its kind says so
        first = len(samples) - window - (self.seen(request) - 1) * request.hop
        cut = sliding_window_view(samples[first:], window, axis=0)[:: request.hop or 1]
        return np.ascontiguousarray(cut.transpose(0, 2, 1))

    def _histories(self, codes: Sequence[Int8Array]) -> Int8Array:
        """Return int8 (B, windows, *code): zeros before what a request has, the last of what is too much."""
        windows = self.model.context_windows
        histories = np.zeros((len(codes), windows, *self.manifest.code.shape), np.int8)
        for row, sent in zip(histories, codes, strict=True):
            row[-min(windows, len(sent)) :] = sent[-windows:]
        return histories


_Made = CloudAnswer | TensorAnswer | TensorRequest | None
"""What becomes of a request: an answer, what is passed on, or nothing that could be told, because it is no number."""


class _Stretch(NamedTuple):
    """From one tensor of a network to another, which is passed on; or to the end or an exit, which answers."""

    part: Parts
    at: str
    until: str
    exit: str

    def run(self, tensors: "Sequence[tuple[TensorRequest, NDArray[Any]]]") -> list[_Made]:
        """Run the values of requests, each (windows, …), at once; in order, as `_Served.score`.

        Raises:
            InferenceError: the runtime refused the call, or the part.
        """
        part, at, until, leave = self
        try:
            made = part.run(at, until, np.concatenate([values for _, values in tensors]), leave)
        except ModelContractError as error:
            raise InferenceError(str(error)) from error
        ends = np.cumsum([request.windows for request, _ in tensors]).tolist()
        cut = [(request, slice(end - request.windows, end)) for (request, _), end in zip(tensors, ends, strict=True)]
        if not isinstance(made, Scores):
            return [
                request._replace(
                    at=until, until="" if request.until == until else request.until, data=made[rows].tobytes()
                )
                for request, rows in cut
            ]
        # Also where the request began at the code: in a chain it is not the board that has it.
        code = made.code.reshape(ends[-1], -1)[:, : 0 if leave else None]
        logits, novelty = made.logits, made.novelty.astype(np.float32)
        numbers = np.isfinite(logits).all(axis=1) & np.isfinite(novelty)
        return [
            TensorAnswer(request.elapsed_us, code[rows], logits[rows], novelty[rows]) if numbers[rows].all() else None
            for request, rows in cut
        ]


class _Part:
    """A network that can be split, or the part of one that is here."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.begins = [cut.name for cut in parts.cuts]
        self._tensors = [*self.begins, parts.until] if parts.until else self.begins

    def reaches(self, request: TensorRequest) -> bool:
        """Whether a request that begins here ends here, too."""
        try:
            end = self.stretch(request)
        except RequestError:
            return False
        return not end.until or end.until == request.until

    def stretch(self, request: TensorRequest) -> _Stretch:
        """Return how far a tensor goes here: to what it is to be passed on as, the exit that is to answer, or the end.

        Raises:
            RequestError: what is asked for is not behind it.
        """
        parts, at = self.parts, request.at
        ahead = self._tensors[self._tensors.index(at) :]
        stop = ahead.index(request.until) if request.until in ahead[1:] else None
        head = next((e for e in parts.exits if e.name == request.exit and e.at in ahead), None)
        if head is not None and (stop is None or ahead.index(head.at) < stop):
            return _Stretch(parts, at, "", head.name)
        no_exit, no_stop = bool(request.exit) and head is None, bool(request.until) and stop is None
        # Behind a segment somebody else may have it.
        if not parts.until and (no_exit or no_stop):
            missing = f"no exit {request.exit!r}" if no_exit else f"no tensor {request.until!r}"
            rest = ", ".join(ahead[1:]) or "nothing"
            raise RequestError(
                Refusal.OTHER_PART, f"{parts.id} has {missing} behind {at!r}: before its end there is {rest}"
            )
        return _Stretch(parts, at, parts.until if stop is None else request.until, "")

    def values(self, request: TensorRequest) -> NDArray[Any]:
        """Return what a request holds.

        Raises:
            RequestError: that tensor has another size.
        """
        try:
            return self.parts.values(request.at, request.data, request.windows)
        except ValueError as error:
            raise RequestError(Refusal.BAD_REQUEST, str(error)) from None


class _Call(NamedTuple):
    """A call of a model, for requests that are answered by it in this order. `model`: its id."""

    model: str
    asked: list[_Asked]
    run: Callable[[], list[_Made]]


class Worker:
    """See the module. `receive` is for one other thread, everything else for one."""

    def __init__(
        self,
        bundles: Sequence[tuple[CodeModel, Manifest]],
        answer: Callable[[str, bytes, bytes], bool],
        clock: Clock,
        settings: WorkerSettings,
        parts: Sequence[Parts] = (),
        pass_on: Callable[[bytes, str, bytes, int], bool] = lambda *_: False,
    ) -> None:
        """`bundles`: the first that fits a request answers it, as of `parts` the first that a tensor is of.

        `answer`: sends a payload with its correlation. `pass_on`: sends one to the next service, with where to answer,
        the correlation, and the seconds after which it is worth nothing, 0 where nobody knows. They are called from
        both threads, must not block, and say whether they could.
        """
        self._served = [_Served(model, manifest) for model, manifest in bundles]
        self._parts = [_Part(each) for each in parts]
        self._answer = answer
        self._pass_on = pass_on
        self._clock = clock
        self._settings = settings
        self._ids = ", ".join(model.id for model, _ in bundles) or "none"
        self._lock = threading.Lock()
        self._waiting: deque[_Asked] = deque()  # under _lock, the newest last
        self._bytes = 0  # under _lock, of what waits
        self._most_bytes = settings.max_waiting * MAX_REQUEST
        self._came = threading.Event()
        self._failures = 0
        self.problem: str | None = None
        """Why the last call of a model failed, for people."""
        self.requests = 0
        """Requests that came, of any kind."""
        self.answered = 0
        self.passed_on = 0
        """Tensors that went to the next worker."""
        # All of them from the start: one thread counts while another one goes through them.
        untold = (UNANSWERABLE, LONG_CORRELATION, EXPIRED)
        self.refused = Counter(dict.fromkeys((*(refusal.name.lower() for refusal in Refusal), *untold), 0))
        """Requests without an answer, by reason; whoever asked is told, but for those that have no `Refusal`."""
        self.unsent = 0
        """Answers, refusals in a turn, and tensors to be passed on, that could not be sent."""
        self.clear()

    def clear(self) -> None:
        """Begin a new interval of `wait`, `infer`, `total`, `calls`, `scored` and `largest`."""
        self.wait, self.infer, self.total = Histogram(), Histogram(), Histogram()
        """From receipt until it is taken; a call of a model; from receipt to the answer."""
        self.calls = self.scored = self.largest = 0
        """Calls of a model, the requests in them, and those in the largest."""

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return len(self._waiting)

    def receive(self, payload: bytes, answer_to: str, correlation: bytes, t_rx_ns: int, expiry_s: int = 0) -> None:
        """Take a request; never blocks. Where there is no room, the one that has waited longest is refused for it.

        What is too long to be one does not wait, so that what waits has a size. `expiry_s`: after which nobody waits
        for the answer, 0 if that is not known.
        """
        self.requests += 1
        if not _is_boards(answer_to):
            self.refused[UNANSWERABLE] += 1
            return
        if len(correlation) > _LONGEST_CORRELATION:
            self.refused[LONG_CORRELATION] += 1
            return
        most = MAX_TENSORS if is_tensor_request(payload) else MAX_REQUEST
        if len(payload) > most:
            self.refused[Refusal.TOO_LARGE.name.lower()] += 1
            sentence = f"{len(payload)} bytes are more than the {most} of a request"
            self._answer(answer_to, encode_refusal(Refusal.TOO_LARGE, sentence), correlation)
            return
        expires_ns = t_rx_ns + expiry_s * 1_000_000_000 if expiry_s else None
        oldest = []
        with self._lock:
            self._waiting.append(_Asked(payload, answer_to, correlation, t_rx_ns, expires_ns))
            self._bytes += len(payload)
            while len(self._waiting) > self._settings.max_waiting or (
                self._bytes > self._most_bytes and len(self._waiting) > 1
            ):
                oldest.append(self._waiting.popleft())
                self._bytes -= len(oldest[-1].payload)
        if not self._came.is_set():
            self._came.set()
        for asked in oldest:
            self.refused[Refusal.OVERLOADED.name.lower()] += 1
            sentence = "more requests wait than this worker keeps: ask later"
            self._answer(asked.answer_to, encode_refusal(Refusal.OVERLOADED, sentence), asked.correlation)

    def turn(self, timeout_s: float) -> bool:
        """Answer the newest of what waits, waiting at most `timeout_s` for any; False if none came.

        Requests are taken until they have `max_batch` windows to be read, or are as many themselves.

        Raises:
            InferenceError: a model has failed in `MAX_FAILURES` calls in a row.
        """
        if not self._came.wait(timeout_s):
            return False
        max_batch = self._settings.max_batch
        if self._settings.linger_ms and len(self._waiting) < max_batch:
            self._clock.sleep(self._settings.linger_ms / 1000)
        self._came.clear()
        questions: defaultdict[tuple[_Served, Kind], list[tuple[_Asked, Request]]] = defaultdict(list)
        tensors: defaultdict[_Stretch, list[tuple[_Asked, tuple[TensorRequest, NDArray[Any]]]]] = defaultdict(list)
        windows = 0
        for _ in range(max_batch):
            if windows >= max_batch or (asked := self._newest()) is None:
                break
            now_ns = self._clock.monotonic_ns()
            if asked.expires_ns is not None and now_ns > asked.expires_ns:
                self.refused[EXPIRED] += 1
                continue
            self.wait.add(now_ns - asked.t_rx_ns)
            try:
                if is_tensor_request(asked.payload):
                    sent = decode_tensor_request(asked.payload)
                    part = self._find_part(sent)
                    stretch, values = part.stretch(sent), part.values(sent)
                    if stretch.until and not self._settings.next:
                        raise RequestError(Refusal.NOWHERE_NEXT, _nowhere(stretch))
                    tensors[stretch].append((asked, (sent, values)))
                    windows += sent.windows
                else:
                    request = decode_request(asked.payload)
                    served = self._find(request)
                    questions[served, request.kind].append((asked, request))
                    windows += served.seen(request)
            except RequestError as error:
                self._refuse(asked, error.refusal, str(error))
        if self._waiting:
            self._came.set()
        # The newest were taken first: the oldest of them are answered first.
        calls = [
            _Call(
                stretch.part.id, [asked for asked, _ in batch[::-1]], partial(stretch.run, [t for _, t in batch[::-1]])
            )
            for stretch, batch in tensors.items()
        ]
        calls += [
            _Call(s.model.id, [asked for asked, _ in batch[::-1]], partial(s.score, kind, [r for _, r in batch[::-1]]))
            for (s, kind), batch in questions.items()
        ]
        while calls:
            try:
                self._run(calls.pop())
            except InferenceError as error:
                for asked in itertools.chain.from_iterable(call.asked for call in calls):
                    self._refuse(asked, Refusal.FAILED, str(error))
                raise
        return True

    def _newest(self) -> _Asked | None:
        with self._lock:
            if not self._waiting:
                return None
            asked = self._waiting.pop()
            self._bytes -= len(asked.payload)
            return asked

    def _find(self, request: Request) -> _Served:
        """Return the bundle that a request is for.

        Raises:
            RequestError: none here can answer it.
        """
        if request.codes is None:
            size = request.window
            for served in self._served:
                if served.manifest.input.window == size and served.fits_rate(request.rate_hz):
                    return served
            raise RequestError(
                Refusal.OTHER_WINDOW,
                f"windows of {size} samples at {request.rate_hz:g} Hz are for no bundle here ({self._ids})",
            )
        found = next((s for s in self._served if s.takes_codes and s.space == request.space), None)
        if found is None:
            raise RequestError(
                Refusal.OTHER_CODE,
                f"codes of encoder {request.space.hex()} are for no bundle here ({self._ids}): start a worker with the "
                'board\'s own, or set payload = "window" in its [cloud]',
            )
        if not found.fits_rate(request.rate_hz):
            wanted = found.manifest.input.rate_hz
            raise RequestError(Refusal.OTHER_WINDOW, f"{found.model.id} is for {wanted:g} Hz, not {request.rate_hz:g}")
        if request.codes.shape[1] != found.manifest.code.bytes:
            raise RequestError(
                Refusal.BAD_REQUEST,
                f"a code of {found.model.id} has {found.manifest.code.bytes} bytes, not {request.codes.shape[1]}",
            )
        return found

    def _find_part(self, request: TensorRequest) -> _Part:
        """Return the part that goes on from the tensor of a request.

        Raises:
            RequestError: there is none here.
        """
        held = [part for part in self._parts if part.parts.network == request.network]
        found = [part for part in held if request.at in part.begins]
        if found:
            # Of several, the one that goes on to where it is to go.
            return max(found, key=lambda part: part.reaches(request))
        if held:
            begins = ", ".join(name for part in held for name in part.begins)
            raise RequestError(
                Refusal.OTHER_PART,
                f"nothing of {held[0].parts.id} goes on from {request.at!r} here: set cut to one of {begins}",
            )
        ids = ", ".join(part.parts.id for part in self._parts) or "none that can be split"
        raise RequestError(
            Refusal.OTHER_PART,
            f"network {request.network.hex()} is not here ({ids}): start a worker with the board's own bundle, or with "
            "a segment of it",
        )

    def _run(self, call: _Call) -> None:
        began_ns = self._clock.monotonic_ns()
        try:
            results = call.run()
        except InferenceError as error:
            self._failures += 1
            self.problem = str(error)
            for asked in call.asked:
                self._refuse(asked, Refusal.FAILED, str(error))
            if self._failures >= MAX_FAILURES:
                raise
            return
        self._failures, self.problem = 0, None
        self.infer.add(self._clock.monotonic_ns() - began_ns)
        self.calls += 1
        self.scored += len(call.asked)
        self.largest = max(self.largest, len(call.asked))
        for asked, made in zip(call.asked, results, strict=True):
            if made is None:
                self._refuse(asked, Refusal.FAILED, f"{call.model} gives scores that are no numbers")
            else:
                self._reply(asked, made)

    def _reply(self, asked: _Asked, made: CloudAnswer | TensorAnswer | TensorRequest) -> None:
        """Answer a request, or pass it on."""
        if isinstance(made, CloudAnswer):
            self._send(asked, encode_answer(made))
            self.answered += 1
        else:
            now_ns = self._clock.monotonic_ns()
            elapsed_us = made.elapsed_us + (now_ns - asked.t_rx_ns) // 1000
            try:
                if isinstance(made, TensorAnswer):
                    self._send(asked, encode_tensor_answer(made._replace(elapsed_us=elapsed_us)))
                    self.answered += 1
                else:
                    payload = encode_tensor_request(made._replace(elapsed_us=elapsed_us))
                    left_s = 0 if asked.expires_ns is None else max(1, math.ceil((asked.expires_ns - now_ns) / 1e9))
                    self.unsent += not self._pass_on(payload, asked.answer_to, asked.correlation, left_s)
                    self.passed_on += 1
            except ValueError as error:  # what comes out may have more bytes than what came in
                self._refuse(asked, Refusal.TOO_LARGE, f"{error}: send fewer windows at once")
                return
        self.total.add(self._clock.monotonic_ns() - asked.t_rx_ns)

    def _refuse(self, asked: _Asked, refusal: Refusal, sentence: str) -> None:
        self.refused[refusal.name.lower()] += 1
        self._send(asked, encode_refusal(refusal, sentence))

    def _send(self, asked: _Asked, payload: bytes) -> None:
        if not self._answer(asked.answer_to, payload, asked.correlation):
            self.unsent += 1


def _nowhere(stretch: _Stretch) -> str:
    """Say of a stretch whose end nobody is named to go on from what is to be done."""
    part, at, until, _ = stretch
    return (
        f"{part.id} goes from {at!r} to {until!r} here, and nobody is named to go on: set next in the worker's "
        "[worker] to the service of the one that does"
    )


def _is_boards(topic: str) -> bool:
    """Whether a topic is one of a board's for answers.

    Brokers end the session of who publishes to one with a wildcard, a control character, or too many levels.
    """
    level = topic.removesuffix("/answer").rpartition("/")[0]
    if not topic.endswith(ANSWERS_END) or level.startswith("$") or not level.isprintable() or set("+#") & set(level):
        return False
    return len(level) <= _LONGEST_TOPIC and level.count("/") < _MOST_LEVELS
