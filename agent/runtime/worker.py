"""What a cloud worker does with requests: all that wait go through a model at once, and each is answered by itself.

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
from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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
from agent.errors import InferenceError
from agent.ports import Clock, Model
from agent.records import Float32Array, Int8Array, Scores

ANSWERS_END = "/cloud/answer"
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

    def score(self, kind: Kind, requests: Sequence[Request]) -> list[bytes | None]:
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
            encode_answer(CloudAnswer(tuple(row), is_known, self._labels_crc, self.model.id)) if are_numbers else None
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


class Worker:
    """See the module. `receive` is for one other thread, everything else for one."""

    def __init__(
        self,
        bundles: Sequence[tuple[CodeModel, Manifest]],
        answer: Callable[[str, bytes, bytes], bool],
        clock: Clock,
        settings: WorkerSettings,
    ) -> None:
        """`bundles`: the first that fits a request answers it. `answer`: sends a payload with its correlation.

        It is called from both threads, must not block, and says whether it could.
        """
        self._served = [_Served(model, manifest) for model, manifest in bundles]
        self._answer = answer
        self._clock = clock
        self._settings = settings
        self._ids = ", ".join(model.id for model, _ in bundles)
        self._lock = threading.Lock()
        self._waiting: deque[_Asked] = deque()  # under _lock, the newest last
        self._came = threading.Event()
        self._failures = 0
        self.problem: str | None = None
        """Why the last call of a model failed, for people."""
        self.requests = 0
        """Requests that came, of any kind."""
        self.answered = 0
        # All of them from the start: one thread counts while another one goes through them.
        untold = (UNANSWERABLE, LONG_CORRELATION, EXPIRED)
        self.refused = Counter(dict.fromkeys((*(refusal.name.lower() for refusal in Refusal), *untold), 0))
        """Requests without an answer, by reason; whoever asked is told, but for those that have no `Refusal`."""
        self.unsent = 0
        """Answers, and refusals in a turn, that could not be sent."""
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
        if len(payload) > MAX_REQUEST:
            self.refused[Refusal.TOO_LARGE.name.lower()] += 1
            sentence = f"{len(payload)} bytes are more than the {MAX_REQUEST} of a request"
            self._answer(answer_to, encode_refusal(Refusal.TOO_LARGE, sentence), correlation)
            return
        expires_ns = t_rx_ns + expiry_s * 1_000_000_000 if expiry_s else None
        oldest = None
        with self._lock:
            self._waiting.append(_Asked(payload, answer_to, correlation, t_rx_ns, expires_ns))
            if len(self._waiting) > self._settings.max_waiting:
                oldest = self._waiting.popleft()
        if not self._came.is_set():
            self._came.set()
        if oldest is not None:
            self.refused[Refusal.OVERLOADED.name.lower()] += 1
            sentence = f"more than {self._settings.max_waiting} requests wait: ask later"
            self._answer(oldest.answer_to, encode_refusal(Refusal.OVERLOADED, sentence), oldest.correlation)

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
        batches: defaultdict[tuple[_Served, Kind], list[tuple[_Asked, Request]]] = defaultdict(list)
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
                request = decode_request(asked.payload)
                served = self._find(request)
            except RequestError as error:
                self._refuse(asked, error.refusal, str(error))
                continue
            windows += served.seen(request)
            batches[served, request.kind].append((asked, request))
        if self._waiting:
            self._came.set()
        while batches:
            (served, kind), batch = batches.popitem()
            try:
                self._score(served, kind, batch[::-1])
            except InferenceError as error:
                for asked, _ in itertools.chain.from_iterable(batches.values()):
                    self._refuse(asked, Refusal.FAILED, str(error))
                raise
        return True

    def _newest(self) -> _Asked | None:
        with self._lock:
            return self._waiting.pop() if self._waiting else None

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

    def _score(self, served: _Served, kind: Kind, batch: Sequence[tuple[_Asked, Request]]) -> None:
        began_ns = self._clock.monotonic_ns()
        try:
            answers = served.score(kind, [request for _, request in batch])
        except InferenceError as error:
            self._failures += 1
            self.problem = str(error)
            for asked, _ in batch:
                self._refuse(asked, Refusal.FAILED, str(error))
            if self._failures >= MAX_FAILURES:
                raise
            return
        self._failures, self.problem = 0, None
        self.infer.add(self._clock.monotonic_ns() - began_ns)
        self.calls += 1
        self.scored += len(batch)
        self.largest = max(self.largest, len(batch))
        for (asked, _), answer in zip(batch, answers, strict=True):
            if answer is None:
                self._refuse(asked, Refusal.FAILED, f"{served.model.id} gives scores that are no numbers")
            else:
                self._send(asked, answer)
                self.answered += 1
                self.total.add(self._clock.monotonic_ns() - asked.t_rx_ns)

    def _refuse(self, asked: _Asked, refusal: Refusal, sentence: str) -> None:
        self.refused[refusal.name.lower()] += 1
        self._send(asked, encode_refusal(refusal, sentence))

    def _send(self, asked: _Asked, payload: bytes) -> None:
        if not self._answer(asked.answer_to, payload, asked.correlation):
            self.unsent += 1


def _is_boards(topic: str) -> bool:
    """Whether a topic is one of a board's for answers.

    Brokers end the session of who publishes to one with a wildcard, a control character, or too many levels.
    """
    level = topic.removesuffix(ANSWERS_END)
    if level == topic or level.startswith("$") or not level.isprintable() or set("+#") & set(level):
        return False
    return len(level) <= _LONGEST_TOPIC and level.count("/") < _MOST_LEVELS
