"""A simulated person with an IMU at the waist: pure functions and a generator, deterministic from a seed.

Theory of operation. A person is drawn from the fitted coefficients: a gravity vector in the device frame for
each activity, a stride rate and a vigour for each gait. A script of activities becomes a plan, a list of
spans that join without holes: activities, and between them the changes. What the sensor reads is then

    gravity  +  motion  +  residual  +  sensor drift, clipped to the sensor's range

- gait: harmonics of the stride rate, an amplitude and a phase for each channel; rate and vigour wander stride
  by stride. Even harmonics are those of the step.
- posture: gravity that sways slowly.
- change of posture: gravity rotates on a great circle, and a fitted pattern of push and turn, stretched to
  the duration, lies on top of it.
- residual: what the harmonics do not explain in the recordings, as noise of the same spectrum
  (autoregressive).

Everything random that happens in one second is drawn in one go, in a fixed order, so that reading the samples
one at a time, in lumps or all at once gives the same bytes. Knots stand at whole seconds and are joined by
straight lines.

The coefficients come from `har-export fit-simulator`; `gait_coefficients.parse` reads its JSON.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agent.core.gait_coefficients import (
    ACTIVITIES,
    FIT_RATE_HZ,
    GAITS,
    RESPONSE,
    Change,
    Coefficients,
    People,
    Residual,
)
from agent.core.timeline import MAX_RATE_HZ, MIN_RATE_HZ
from agent.records import CHANNELS, Float32Array, Float64Array, Int8Array, Int64Array, LabelChange

TRANSITION = "transition"
"""The label of a change of posture. A change between upright activities is unlabelled, as it is in the
recordings."""

LABELS = (*ACTIVITIES, TRANSITION)

ACC_RANGE_G = 2.0
"""Where the recorded accelerometers clip."""

SCRIPTS = {"demo": "walking:5,walking_upstairs:5,standing:4,sitting:4,laying:4"}
"""Ready-made scripts. `demo`: gait, stairs, postures and both kinds of change in half a minute."""

_SECOND = 1_000_000_000
_UPRIGHT_CHANGE_S = 1.2
"""How long one gait takes to become another: about one stride."""
_MIN_STEP_S = 0.5
"""Shorter activities are none, and a script of them would make a plan without end."""
_WANDER = 0.5
"""How much of this second's rate and vigour the next second keeps."""
_PERSON_RANGE = 1.5
"""People are drawn within this many standard deviations along each direction."""
_BIAS = np.repeat([0.002, 0.001], 3)
"""Sensor offset, standard deviation: g, rad/s; in addition to that which the fitted gravity already
contains."""
_DRIFT_PER_ROOT_S = np.repeat([1e-4, 5e-5], 3)
"""Random walk of the offset: g and rad/s over the square root of a second."""


@dataclass(frozen=True)
class Person:
    """One wearer: gravity (3,) g per activity, stride rate and gains (acceleration, rotation) per gait."""

    gravity: Mapping[str, Float64Array]
    stride_hz: Mapping[str, float]
    gain: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Step:
    """One line of a script: do `activity` for `seconds`."""

    activity: str
    seconds: float


@dataclass(frozen=True)
class Span:
    """A stretch [`t0`, `t1`) of the plan, seconds. `before` is `after` while an activity lasts."""

    t0: float
    t1: float
    before: str
    after: str

    @property
    def change(self) -> str | None:
        """Name of the change of posture; None during an activity, and between upright activities."""
        a, b = _posture(self.before), _posture(self.after)
        return None if a == b else f"{a}_to_{b}"

    @property
    def label(self) -> str | None:
        """The true label; None where the recordings have none."""
        if self.before == self.after:
            return self.after
        return TRANSITION if self.change else None


@dataclass(frozen=True)
class Imperfections:
    """What the device does to the signal.

    `noise` scales residual, offset and drift (0: none, 1: as recorded). `jitter_s`: standard deviation of the
    time stamps, which stay increasing. `drop_rate`: share of the samples that never arrive.
    """

    noise: float = 1.0
    jitter_s: float = 0.0
    drop_rate: float = 0.0


@dataclass(frozen=True)
class Samples:
    """Times int64 (n,), values float32 (n, 6) in g and rad/s, labels (n,) in `LABELS` or -1 for none."""

    t_ns: Int64Array
    values: Float32Array
    labels: Int8Array = field(repr=False)


def _posture(activity: str) -> str:
    return {"sitting": "sit", "laying": "lie"}.get(activity, "stand")


def parse_script(text: str) -> tuple[Step, ...]:
    """Read activities and their seconds, such as `walking:20,sitting:15`.

    Raises:
        ValueError: with a sentence for the user.
    """
    steps = []
    for item in text.split(","):
        name, colon, seconds = item.strip().partition(":")
        if name not in ACTIVITIES:
            raise ValueError(f"{name!r} is not an activity: choose from {', '.join(ACTIVITIES)}")
        try:
            duration = float(seconds)
        except ValueError:
            duration = float("nan")
        if not colon or not _MIN_STEP_S <= duration < float("inf"):
            raise ValueError(f"{item.strip()!r} needs a duration of {_MIN_STEP_S:g} seconds or more, such as {name}:20")
        steps.append(Step(name, duration))
    return tuple(steps)


def draw_person(people: People, rng: np.random.Generator) -> Person:
    """Draw a wearer. Gravity keeps the length of the median's, whatever the direction."""
    z = np.clip(rng.standard_normal(len(people.directions)), -_PERSON_RANGE, _PERSON_RANGE)
    return make_person(people, z)


def make_person(people: People, z: Float64Array) -> Person:
    """Return the wearer at `z` (k,), in standard deviations; zeros are the median."""
    x = people.median + z @ people.directions
    n = 3 * len(ACTIVITIES)
    gravity = {}
    for i, name in enumerate(ACTIVITIES):
        mine, median = x[3 * i : 3 * i + 3], people.median[3 * i : 3 * i + 3]
        gravity[name] = mine * (np.linalg.norm(median) / np.linalg.norm(mine))
    rates, gains = x[n : n + len(GAITS)], np.exp(x[n + len(GAITS) :]).reshape(2, len(GAITS))
    return Person(
        gravity,
        {name: float(rates[i]) for i, name in enumerate(GAITS)},
        {name: (float(gains[0, i]), float(gains[1, i])) for i, name in enumerate(GAITS)},
    )


def plan(
    script: Sequence[Step],
    changes: Mapping[str, Change],
    rng: np.random.Generator,
    duration_s: float | None = None,
) -> tuple[Span, ...]:
    """Lay a script out in time, with a change between each two activities that differ.

    With `duration_s` the script repeats, or ends early, so that the plan lasts exactly that long.

    Raises:
        ValueError: the script is empty, or `duration_s` is not positive.
    """
    if not script or (duration_s is not None and not 0 < duration_s < float("inf")):
        raise ValueError("there is nothing to simulate: give at least one activity and a positive duration")
    spans: list[Span] = []
    t, before = 0.0, script[0].activity
    while True:
        for step in script:
            if step.activity != before:
                change = Span(t, t, before, step.activity).change
                seconds = _UPRIGHT_CHANGE_S
                if change:
                    low, _, high = changes[change].seconds
                    seconds = float(rng.uniform(low, high))
                spans.append(Span(t, t + seconds, before, step.activity))
                t += seconds
            spans.append(Span(t, t + step.seconds, step.activity, step.activity))
            t, before = t + step.seconds, step.activity
        if duration_s is None:
            return tuple(spans)
        if t >= duration_s:
            return tuple(Span(s.t0, min(s.t1, duration_s), s.before, s.after) for s in spans if s.t0 < duration_s)


def label_changes(samples: Samples, seq0: int, previous: int | None) -> tuple[LabelChange, ...]:
    """Return where the label changes.

    `seq0`: number of the first of `samples`. `previous`: the label index before them, None at the start.
    """
    if not len(samples.labels):
        return ()
    first = [0] if previous is None or samples.labels[0] != previous else []
    at = [*first, *(np.flatnonzero(np.diff(samples.labels)) + 1).tolist()]
    return tuple(LabelChange(seq0 + i, int(samples.t_ns[i]), label_name(int(samples.labels[i]))) for i in at)


def label_name(index: int) -> str | None:
    """Return the label of an index in `Samples.labels`."""
    return LABELS[index] if index >= 0 else None


def rotate(start: Float64Array, end: Float64Array, u: Float64Array) -> Float64Array:
    """Gravity on the great circle from `start` (3,) to `end` (3,) at `u` (n,) in 0..1, eased: (n, 3)."""
    a, b = float(np.linalg.norm(start)), float(np.linalg.norm(end))
    w = u * u * (3 - 2 * u)
    angle = float(np.arccos(np.clip(start @ end / (a * b), -1.0, 1.0)))
    if angle < 1e-6:
        return start + w[:, None] * (end - start)
    length = a + w * (b - a)
    path = np.outer(np.sin((1 - w) * angle), start / a) + np.outer(np.sin(w * angle), end / b)
    turned: Float64Array = path * (length / np.sin(angle))[:, None]
    return turned


@dataclass(frozen=True)
class _Knot:
    """The state at a whole second: stride rate and gain, sway of each posture (3,), sensor offset (6,)."""

    rate: float
    gain: float
    sway: Mapping[str, Float64Array]
    offset: Float64Array


@dataclass(frozen=True)
class _Second:
    """One second of state. `phase`: strides at its start. `white`: 2 s before it and itself, (150, 6)."""

    start: int
    begin: _Knot
    end: _Knot
    phase: Mapping[str, float]
    white: Float64Array


@dataclass(frozen=True)
class _Block:
    """The samples that the device takes in one second; `arrives` is false where one is dropped."""

    first: int
    t_ns: Int64Array
    values: Float32Array
    labels: Int8Array
    arrives: npt.NDArray[np.bool_]


class Simulator:
    """The samples of one simulated device, in order, until its plan ends.

    Deterministic: equal arguments give equal samples, however they are read.
    """

    def __init__(
        self,
        coefficients: Coefficients,
        script: Sequence[Step],
        *,
        seed: int,
        rate_hz: float = 50.0,
        duration_s: float | None = None,
        imperfections: Imperfections | None = None,
    ) -> None:
        """Draw the person and lay out the plan; no sample is generated yet.

        Raises:
            ValueError: a value outside its range, with a sentence for the user.
        """
        self._imperfections = imperfections or Imperfections()
        _check(rate_hz, seed, self._imperfections)
        person, motion, device = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
        self.person = draw_person(coefficients.people, person)
        self.plan = plan(script, coefficients.changes, person, duration_s)
        self.total = max(1, int(np.ceil(self.plan[-1].t1 * rate_hz - 1e-9)))
        self._coefficients = coefficients
        self._rate = rate_hz
        self._motion_rng, self._device_rng = motion, device
        self._responses: dict[str, Float64Array] = {}
        self._blocks = self._generate()
        self._block: _Block | None = None
        self._taken = 0

    @property
    def duration_s(self) -> float:
        """Seconds from the first sample to the end of the plan."""
        return self.plan[-1].t1

    def take(self, n: int) -> Samples | None:
        """Return the next `n` samples, less those that are dropped; None once the plan has ended."""
        if self._taken >= self.total:
            return None
        until = min(self._taken + n, self.total)
        parts: list[Samples] = []
        while self._taken < until:
            block = self._block or next(self._blocks)
            low = self._taken - block.first
            high = min(until - block.first, len(block.t_ns))
            keep = np.flatnonzero(block.arrives[low:high]) + low
            parts.append(Samples(block.t_ns[keep], block.values[keep], block.labels[keep]))
            self._taken = block.first + high
            self._block = block if high < len(block.t_ns) else None
        if len(parts) == 1:
            return parts[0]
        return Samples(
            np.concatenate([part.t_ns for part in parts] or [np.zeros(0, np.int64)]),
            np.concatenate([part.values for part in parts] or [np.zeros((0, len(CHANNELS)), np.float32)]),
            np.concatenate([part.labels for part in parts] or [np.zeros(0, np.int8)]),
        )

    def _generate(self) -> Iterator[_Block]:
        """Yield second after second of what the device takes."""
        first, span = 0, 0
        for second in self._seconds():
            last = min(int(np.ceil((second.start + 1) * self._rate - 1e-9)), self.total)
            while self.plan[span].t1 <= second.start:
                span += 1
            t = np.arange(first, last) / self._rate
            values, labels = self._evaluate(t, second, span)
            spread = np.clip(self._device_rng.standard_normal(len(t)) * self._imperfections.jitter_s, *self._slack)
            arrives = self._device_rng.random(len(t)) >= self._imperfections.drop_rate
            if first == 0:
                spread[0] = max(spread[0], 0.0)
            t_ns = np.rint((t + spread) * _SECOND).astype(np.int64)
            yield _Block(first, t_ns, values, labels, arrives)
            first = last
            if first >= self.total:
                return

    @property
    def _slack(self) -> tuple[float, float]:
        """How far a time stamp may move without passing its neighbour, seconds."""
        return -0.45 / self._rate, 0.45 / self._rate

    def _seconds(self) -> Iterator[_Second]:
        """Yield the random state of each second, for ever: the only place that draws motion."""
        rng, postures = self._motion_rng, self._coefficients.postures
        phase = {name: float(rng.random()) for name in GAITS}
        knot = _Knot(
            float(rng.standard_normal()),
            float(rng.standard_normal()),
            {name: rng.standard_normal(3) for name in postures},
            rng.standard_normal(len(CHANNELS)) * _BIAS,
        )
        white = rng.standard_normal((RESPONSE, len(CHANNELS)))
        start = 0
        while True:
            after = self._next_knot(knot)
            white = np.concatenate([white[-RESPONSE:], rng.standard_normal((FIT_RATE_HZ, len(CHANNELS)))])
            now = _Second(start, knot, after, phase, white)
            yield now
            phase = {name: float(self._phase(name, now, np.ones(1))[0]) % 1.0 for name in GAITS}
            knot, start = after, start + 1

    def _next_knot(self, knot: _Knot) -> _Knot:
        rng = self._motion_rng
        keep, add = _WANDER, float(np.sqrt(1 - _WANDER**2))
        sway = {}
        for name, posture in self._coefficients.postures.items():
            rho = float(np.exp(-1 / posture.sway_s))
            sway[name] = rho * knot.sway[name] + np.sqrt(1 - rho**2) * rng.standard_normal(3)
        return _Knot(
            keep * knot.rate + add * float(rng.standard_normal()),
            keep * knot.gain + add * float(rng.standard_normal()),
            sway,
            knot.offset + rng.standard_normal(len(CHANNELS)) * _DRIFT_PER_ROOT_S,
        )

    def _phase(self, name: str, second: _Second, u: Float64Array) -> Float64Array:
        """Strides taken at `u` (n,), 0..1 through the second: the integral of the stride rate."""
        jitter = self._coefficients.gaits[name].rate_jitter
        begin, end = (1 + jitter * knot.rate for knot in (second.begin, second.end))
        return second.phase[name] + self.person.stride_hz[name] * (begin * u + (end - begin) * u * u / 2)

    def _evaluate(self, t: Float64Array, second: _Second, span: int) -> tuple[Float32Array, Int8Array]:
        """Return values (n, 6) and label indices (n,) at `t` (n,), which lies within the second."""
        values = np.zeros((len(t), len(CHANNELS)))
        labels = np.full(len(t), -1, np.int8)
        for s in self.plan[span:]:
            if s.t0 > second.start + 1:
                break
            at = np.flatnonzero((s.t0 <= t) & (t < s.t1))
            if len(at):
                values[at] = self._span(s, t[at], second)
                labels[at] = LABELS.index(s.label) if s.label else -1
        u = (t - second.start)[:, None]
        values += self._imperfections.noise * (second.begin.offset * (1 - u) + second.end.offset * u)
        np.clip(values[:, :3], -ACC_RANGE_G, ACC_RANGE_G, out=values[:, :3])
        return values.astype(np.float32), labels

    def _span(self, span: Span, t: Float64Array, second: _Second) -> Float64Array:
        """Everything but the sensor's own faults, at `t` (n,) in `span`: (n, 6)."""
        if span.before == span.after:
            motion = self._motion(span.after, t, second)
            motion[:, :3] += self.person.gravity[span.after]
            return motion
        u = (t - span.t0) / (span.t1 - span.t0)
        overlap = 1.0 if span.change is None else 0.35
        leave = np.clip(1 - u / overlap, 0, 1)[:, None]
        arrive = np.clip((u - 1) / overlap + 1, 0, 1)[:, None]
        motion = leave * self._motion(span.before, t, second) + arrive * self._motion(span.after, t, second)
        motion[:, :3] += rotate(self.person.gravity[span.before], self.person.gravity[span.after], u)
        if span.change:
            change = self._coefficients.changes[span.change]
            knots = np.linspace(0, 1, len(change.pattern))
            for channel in range(len(CHANNELS)):
                motion[:, channel] += np.interp(u, knots, change.pattern[:, channel])
            motion += self._residual(span.change, change.residual, t, second)
        return motion

    def _motion(self, name: str, t: Float64Array, second: _Second) -> Float64Array:
        """Return what an activity adds to gravity, at `t` (n,): (n, 6)."""
        u = t - second.start
        if name in GAITS:
            gait = self._coefficients.gaits[name]
            turns = 2 * np.pi * np.outer(self._phase(name, second, u), 1 + np.arange(len(gait.cos)))
            motion = np.cos(turns) @ gait.cos + np.sin(turns) @ gait.sin
            wander = 1 + gait.gain_jitter * (second.begin.gain * (1 - u) + second.end.gain * u)
            motion *= wander[:, None] * np.repeat(self.person.gain[name], 3)
            motion[:, 3:] += gait.turn
            return motion + self._residual(name, gait.residual, t, second)
        posture = self._coefficients.postures[name]
        motion = self._residual(name, posture.residual, t, second)
        begin, end = second.begin.sway[name], second.end.sway[name]
        motion[:, :3] += posture.sway * (np.outer(1 - u, begin) + np.outer(u, end))
        return motion

    def _residual(self, name: str, residual: Residual, t: Float64Array, second: _Second) -> Float64Array:
        """Return coloured noise (n, 6) at `t` (n,), one fitted sample late: it never needs the future."""
        if name not in self._responses:
            self._responses[name] = residual.response()[:, ::-1] * self._imperfections.noise
        windows = np.lib.stride_tricks.sliding_window_view(second.white, RESPONSE, axis=0)
        grid = np.einsum("tck,ck->tc", windows, self._responses[name])
        at = (t - second.start) * FIT_RATE_HZ
        below = np.minimum(at.astype(np.int64), FIT_RATE_HZ - 1)
        part = (at - below)[:, None]
        mixed: Float64Array = (1 - part) * grid[below] + part * grid[below + 1]
        return mixed


def _check(rate_hz: float, seed: int, imperfections: Imperfections) -> None:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise ValueError(f"the rate must be {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz, not {rate_hz:g}")
    if seed < 0:
        raise ValueError(f"the seed must be 0 or more, not {seed}")
    if not 0 <= imperfections.drop_rate < 1:
        raise ValueError(f"the drop rate must be at least 0 and below 1, not {imperfections.drop_rate:g}")
    if not 0 <= imperfections.jitter_s < 1:
        raise ValueError(f"the jitter must be 0 to 1000 ms, not {imperfections.jitter_s * 1000:g}")
    if not 0 <= imperfections.noise <= 100:
        raise ValueError(f"the noise must be 0 to 100 times as recorded, not {imperfections.noise:g}")
