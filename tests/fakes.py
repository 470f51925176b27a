"""Stand-ins for what is outside: a model that is a formula, a clock that a test turns, sources and sinks in memory."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from agent.core.cloud_wire import CloudAnswer, encode_answer, labels_crc
from agent.core.manifest import Calibration, Code, Context, FileEntry, Input, Manifest
from agent.core.normalise import Normalisation
from agent.records import (
    Ack,
    CloudReply,
    Decoded,
    Event,
    Float32Array,
    Float64Array,
    Int8Array,
    LinkState,
    Outgoing,
    SampleBatch,
    Scores,
    Stored,
    Turn,
)

LABELS = ("still", "moving", "turning")


def manifest(hop: int = 64, threshold: float = 5.0, context: int = 0) -> Manifest:
    """A manifest for `FakeModel`: no scaling, three labels, a context of so many windows."""
    return Manifest(
        name="fake",
        version="1",
        created="2026-01-01",
        labels=LABELS,
        input=Input(hop=hop),
        normalisation=Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32)),
        code=Code((4,), "int8", 4),
        calibration=Calibration(1.0, threshold),
        files={"encoder.onnx": FileEntry("c0de" * 16, 1)},
        context=Context(context, 1.0) if context else None,
    )


class FakeModel:
    """Scores a window by a formula that depends on every sample and its place: an error in cutting shows.

    So does its context's, on every code and its place.
    """

    id = "fake@00000000"
    labels = LABELS
    context_windows = 0

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._weights = rng.integers(-8, 8, (128 * 6, len(LABELS))).astype(np.int64)
        self._to_code = rng.integers(-8, 8, (128 * 6, 4)).astype(np.int64)
        self.batches: list[int] = []
        self.contexts: list[Int8Array] = []
        """The codes of each call of `contextualise`."""

    def infer(self, windows: Float32Array) -> Scores:
        """Integer arithmetic, so that a window scores the same alone and in a batch."""
        self.batches.append(len(windows))
        whole = np.rint(windows.reshape(len(windows), -1) * 256).astype(np.int64)
        logits = ((whole @ self._weights) % 4096 / 512).astype(np.float32)
        novelty: Float64Array = np.abs(whole).max(axis=1) / 256
        code = (whole @ self._to_code % 255 - 127).astype(np.int8)
        return Scores(logits, code, novelty)

    def contextualise(self, codes: Int8Array) -> Float32Array:
        """A label's logit is the sum of its column of the codes, each times its place from 1, in 64ths."""
        self.contexts.append(codes.copy())
        places = np.arange(1, codes.shape[1] + 1)
        return (np.einsum("bkc,k->bc", codes.astype(np.int64), places)[:, : len(LABELS)] / 64).astype(np.float32)


class FakeClock:
    """A clock that moves when it is told to, or slept on."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.is_synced = True
        self.slept: list[float] = []

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.now_ns

    def synced(self) -> bool:
        return self.is_synced

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += round(seconds * 1e9)


class ScriptedSource:
    """Gives what it was told to, one item a poll, then ends. An exception in the script is raised."""

    def __init__(self, script: Iterable[Sequence[Decoded] | Exception]) -> None:
        self._script = deque(script)
        self.closed = False

    def poll(self, timeout_s: float) -> Sequence[Decoded] | None:
        if not self._script:
            return None
        item = self._script.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed = True


class RecordingList:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.closed = False

    def write(self, turn: Turn) -> None:
        self.turns.append(turn)

    def close(self) -> None:
        self.closed = True


def signal(n: int, seed: int = 0) -> Float32Array:
    """Float32 (n, 6): noise around gravity."""
    values = np.random.default_rng(seed).normal(0, 0.3, (n, 6)).astype(np.float32)
    values[:, 2] += 1
    return values


def even_times(n: int, rate_hz: float = 50.0, t0_s: float = 0.0) -> np.ndarray:
    """Int64 (n,) nanoseconds of an even stream."""
    return np.rint((t0_s + np.arange(n) / rate_hz) * 1e9).astype(np.int64)


def cut(t_ns: np.ndarray, values: Float32Array, sizes: Iterable[int], stream: str = "s") -> list[SampleBatch]:
    """Cut samples into batches of the given sizes, over and over, to the end."""
    out, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(t_ns):
            return out
        out.append(SampleBatch(stream, t_ns[at : at + size], values[at : at + size], at))
        at += size
    return out


def fed(pipeline, batches: Iterable[SampleBatch]) -> list[Event]:
    """Feed batches one by one and return all events."""
    return [event for batch in batches for event in pipeline.feed([batch])]


class FakeLink:
    """A link to a broker that a test plays: it connects, answers and refuses when it is told to."""

    def __init__(self, inflight: int = 100) -> None:
        self.inflight = inflight
        self.connected = False
        self.session = 0
        self.problem: str | None = None
        self.offered: list[tuple[int, Outgoing]] = []
        """Everything that was ever taken, by token."""
        self.waiting: dict[int, Outgoing] = {}
        """Taken in this session and not answered yet, in order."""
        self.received: list[Outgoing] = []
        """What the broker has acknowledged."""
        self.disturbed: list[str] = []
        self.closed = False
        self._acks: list[Ack] = []
        self._tokens = itertools.count(1)

    def connect(self) -> None:
        """Begin a new session; what waited in the one before is void."""
        self.waiting.clear()
        self.connected = True
        self.session += 1

    def lose(self) -> None:
        """End the session."""
        self.connected = False
        self.waiting.clear()

    def ack(self, n: int | None = None, t_ns: int = 0) -> list[Outgoing]:
        """Let the broker take the `n` messages that have waited longest, all if not given, and return them."""
        tokens = list(self.waiting)[:n]
        taken = [self.waiting.pop(token) for token in tokens]
        self.received += taken
        self._acks += [Ack(token, t_ns) for token in tokens]
        return taken

    def refuse(self, n: int | None = None, why: str = "Not authorized") -> list[Outgoing]:
        """Let the broker refuse the `n` messages that have waited longest, all if not given, and return them."""
        tokens = list(self.waiting)[:n]
        self._acks += [Ack(token, 0, why) for token in tokens]
        return [self.waiting.pop(token) for token in tokens]

    def state(self) -> LinkState:
        return LinkState(self.connected, self.session, "fake", self.problem)

    def offer(self, message: Outgoing) -> int | None:
        if not self.connected or len(self.waiting) >= self.inflight:
            return None
        token = next(self._tokens)
        self.offered.append((token, message))
        self.waiting[token] = message
        return token

    def acknowledged(self) -> list[Ack]:
        acks, self._acks = self._acks, []
        return acks

    def disturb(self, problem: str) -> None:
        self.disturbed.append(problem)
        self.lose()

    def close(self) -> None:
        self.lose()
        self.closed = True


def numbered() -> Callable[[], bytes]:
    """Return what gives correlations that a test can tell apart."""
    numbers = itertools.count(1)
    return lambda: b"%d" % next(numbers)


class FakeCloud:
    """Workers that a test plays: they take what is asked, and say something when they are told to."""

    model = "fake-cloud@11111111"

    def __init__(self, clock: FakeClock) -> None:
        self.connected = True
        self.problem: str | None = None
        self.dropped = 0
        self.takes = True
        self.asked: dict[bytes, bytes] = {}
        """Every request that was taken, by correlation."""
        self.closed = False
        self._clock = clock
        self._said: list[CloudReply] = []

    def ask(self, correlation: bytes, payload: bytes) -> bool:
        assert correlation not in self.asked
        if self.connected and self.takes:
            self.asked[correlation] = payload
            return True
        return False

    def answer(
        self,
        correlation: bytes | None = None,
        probabilities: Sequence[float] = (0.0, 0.0, 1.0),
        known: bool = True,
        labels: Sequence[str] = LABELS,
        after_s: float = 0.0,
    ) -> None:
        """Answer a request, the one asked last if not given; it comes `after_s` from now, as its time says."""
        answer = encode_answer(CloudAnswer(tuple(probabilities), known, labels_crc(labels), self.model))
        self.say(answer, correlation, after_s)

    def say(self, payload: bytes, correlation: bytes | None = None, after_s: float = 0.0) -> None:
        """Send any bytes as an answer."""
        to = next(reversed(self.asked)) if correlation is None else correlation
        self._said.append(CloudReply(to, payload, self._clock.now_ns + round(after_s * 1e9)))

    def answers(self) -> list[CloudReply]:
        said, self._said = self._said, []
        return said

    def wait(self, timeout_s: float) -> bool:
        """Let the time pass until something has come."""
        until_ns = self._clock.now_ns + round(timeout_s * 1e9)
        due_ns = min((reply.t_ns for reply in self._said), default=until_ns + 1)
        self._clock.now_ns = max(self._clock.now_ns, min(due_ns, until_ns))
        return due_ns <= until_ns

    def close(self) -> None:
        self.connected, self.closed = False, True


class ListOutbox:
    """An outbox in a list, which outlives its user as a file would."""

    def __init__(self, max_bytes: int = 1 << 62) -> None:
        self.held: dict[int, Stored] = {}
        self.dropped = 0
        self.problem: str | None = None
        self.closed = False
        self._max_bytes = max_bytes
        self._next = 1

    def append(self, messages: Sequence[Outgoing]) -> list[int]:
        keys = []
        for message in messages:
            self.held[self._next] = Stored(self._next, message.topic, message.payload)
            keys.append(self._next)
            self._next += 1
        while self.size_bytes > self._max_bytes and len(self.held) > 1:
            del self.held[min(self.held)]
            self.dropped += 1
        return keys

    def remove(self, keys: Sequence[int]) -> None:
        for key in keys:
            self.held.pop(key, None)

    def oldest(self, n: int, after: int = 0) -> list[Stored]:
        return [stored for key, stored in self.held.items() if key > after][:n]

    @property
    def depth(self) -> int:
        return len(self.held)

    @property
    def size_bytes(self) -> int:
        return sum(len(stored.topic.encode()) + len(stored.payload) for stored in self.held.values())

    def tick(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class ListLog:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def info(self, event: str, **facts: object) -> None:
        self.lines.append(("info", event, facts))

    def warning(self, event: str, **facts: object) -> None:
        self.lines.append(("warning", event, facts))
