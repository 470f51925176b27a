"""What the parts of a network cost on this machine, between the points where it can be cut, and what others would.

The network is encoder, classifier and novelty as one graph, from the window to logits and novelty. A part takes tens of
microseconds: too little for ONNX Runtime's own profiler, so that each part is a graph of its own, which is run and
timed. All parts, the heads of early exits and the whole are timed in turn, with a hop of the pipeline before each, as
where a part is what comes after that; and once more back to back.
"""

import json
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.adapters.bundle import find_bundle, load_bundle, read_golden
from agent.adapters.clock import SystemClock
from agent.adapters.onnx_model import OrtModel, open_session, optimised
from agent.adapters.power import open_power_meter
from agent.app.bench import even_samples
from agent.app.compose import build_pipeline, open_model
from agent.config import Config
from agent.core.cuts import Arrays, cut, described, flow, surviving
from agent.core.layers import Layer, Run, describe, fit, predict, unknown
from agent.core.manifest import NOVELTY, Bundle, Manifest
from agent.core.manifest import Exit as EarlyExit
from agent.core.onnx_wire import TYPES, Value, extract, fuse, signature
from agent.core.planner import SCHEMA, Exit
from agent.errors import InferenceError, ModelContractError, OutputError, UsageError
from agent.ports import Clock, PowerMeter
from agent.records import Float32Array, Float64Array, Int64Array, PowerReading

FEWEST_ROUNDS = 20
"""A median of fewer is not worth printing."""

PASSES = 5
"""Over all bundles: the speed of a machine drifts, and their times are held against each other."""

READINGS, READ_S = 4, 0.25
"""Readings of the power meter, idle and busy, and the time between them."""


@dataclass(frozen=True)
class Cut:
    """A tensor that all else passes through: what would be sent there for one window."""

    name: str
    bytes: int
    dtype: str
    shape: list[int]


@dataclass(frozen=True)
class Segment:
    """What lies between two cuts. `us`: median in place; `hot_us`: back to back. What was not measured is None."""

    us: float
    us_p95: float | None
    hot_us: float | None
    joules: float | None
    layers: list[Layer]


@dataclass(frozen=True)
class Watts:
    """What the machine draws while the network runs on one core, and while it does not; the rest as in telemetry."""

    busy: float
    idle: float
    source: str
    error_pct: float | None


@dataclass(frozen=True)
class Profile:
    """One network on one machine, measured, or predicted by what was measured of others.

    `exits`: the end is the last one. `ends`: what is computed, logits and, where that is a graph, novelty;
    `output_bytes` are theirs, `code_bytes` are of the code.
    """

    bundle: str
    measured: bool
    machine: dict[str, str]
    exits: list[Exit]
    ends: list[str]
    input_bytes: int
    output_bytes: int
    code_bytes: int
    cuts: list[Cut]
    segments: list[Segment]
    fixed_us: float
    whole_us: float
    whole_hot_us: float | None
    watts: Watts | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        segments = [{"from": i, "to": i + 1, **asdict(segment)} for i, segment in enumerate(self.segments)]
        exits = [way_out._asdict() for way_out in self.exits]
        return {"v": SCHEMA, **asdict(self), "exits": exits, "segments": segments}

    def runs(self) -> list[Run]:
        """Return what was timed: every part, and the whole, which counts as much as all of them."""
        layers = [layer for segment in self.segments for layer in segment.layers]
        parts = [Run(segment.layers, segment.us) for segment in self.segments]
        return [*parts, Run(layers, self.whole_us, len(parts))] if len(parts) > 1 else parts


@dataclass(frozen=True)
class LeftOut:
    """How far a bundle's times are from what the others predict, as shares of what was measured.

    `segments`: mean over its segments. None, and why: it has operators that none of the others has.
    """

    bundle: str
    segments: float | None
    whole: float | None
    unknown: list[str]


@dataclass(frozen=True)
class Report:
    """What one command found."""

    profiles: list[Profile]
    left_out: list[LeftOut]
    predicted: Profile | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "v": 1,
            "profiles": [profile.as_dict() for profile in self.profiles],
            "left_out": [asdict(error) for error in self.left_out],
            "predicted": self.predicted and self.predicted.as_dict(),
        }


def profile(
    names: Sequence[str],
    config: Config,
    seconds: float,
    predicted: str | None = None,
    to: Path | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure bundles; predict another one from them that is described, but not timed.

    `seconds`: how long each is measured, in place and once more back to back. `to`: a file for the profile that
    `har-agent plan` reads, the predicted one if there is one, else that of the only bundle.

    Raises:
        UsageError: the bundle to be predicted has operators that none of the measured ones has; or `to` for several.
        ModelContractError: a bundle breaks its contract, or its graphs cannot be one.
        InferenceError: what a bundle's parts give is not what the whole gives.
        ConfigError: the configured hop does not fit a bundle's window.
        OutputError: the file cannot be written.
    """
    if to is not None and len(names) > 1 and not predicted:
        raise UsageError("--out holds one profile: give it one bundle, or --predict")
    if to is not None and not to.parent.is_dir():
        raise OutputError(f"{to} cannot be written: there is no folder {to.parent}")
    other = Network.of(load_bundle(find_bundle(predicted))) if predicted else None
    clock = SystemClock()
    meter = open_power_meter(clock, config.telemetry)
    subjects = []
    for name in names:
        on_progress(name)
        model = open_model(name)
        subjects.append((Network.of(model.bundle), in_service(model, config)))
    profiles = measured(subjects, seconds, meter, clock)
    report = Report(profiles, left_out(profiles), prediction(other, profiles) if other else None)
    if to is not None:
        _write(report.predicted or profiles[0], to)
    return report


class Head(NamedTuple):
    """The head of an early exit, which takes what the part before it gives. `after`: how many parts come before it."""

    name: str
    accuracy: float | None
    after: int
    graph: bytes
    layers: list[Layer]


class Network:
    """A network from the window to its ends, where it can be cut, its parts, and the heads of early exits.

    ONNX Runtime decides what can be cut: only what it leaves a tensor of its own, because it computes over all else in
    one go. The parts are cut out of the graph as it came, so that they run on any machine.
    """

    def __init__(
        self, name: str, graph: bytes, windows: Float32Array, exits: Sequence[tuple[EarlyExit, bytes]] = ()
    ) -> None:
        """`graph`: gives the code, then the ends. `windows`: float32 (n, window, 6), normalised. `exits`: with heads.

        Raises:
            ModelContractError: ONNX Runtime refuses it, or an exit reads what is no cut.
        """
        self.name = name
        self.graph = graph
        self.windows = windows
        takes, gives = signature(graph)
        _, *ends = gives
        self.ends = [value.name for value in ends]
        path = extract(graph, takes, ends)
        # Outputs are tensors that must be kept, so the code and what exits read count when it is optimised; what leads
        # to them alone does not.
        read = [Value(at, 0, ()) for at in {way.at for way, _ in exits} - {value.name for value in gives}]
        quick = extract(optimised(name, extract(graph, takes, [*gives, *read])), takes, ends)
        one, two = (self._values(path, np.repeat(windows[:1], n, axis=0)) for n in (1, 2))
        quick_values = self._values(quick, windows[:1])
        kept = surviving(path, one, quick, quick_values)
        at = [described(old, one[old], two[old]) for old, _ in kept]
        self.cuts = [Cut(v.name, one[v.name].nbytes, TYPES[v.dtype], list(one[v.name].shape)) for v in at]
        self.parts = cut(path, at)
        self.layers = [describe(part, quick_values) for part in cut(quick, [Value(new, 0, ()) for _, new in kept])]
        self.heads = [self._head(way, head, one) for way, head in exits]
        self.input_bytes = one[takes[0].name].nbytes
        self.output_bytes = sum(one[end].nbytes for end in self.ends)
        self.code_bytes = one[gives[0].name].nbytes
        self.accuracy: float | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> "Network":
        """Return what scores a window by a bundle as one: encoder, classifier, and novelty where that can be.

        Raises:
            ModelContractError: they do not fit together, or are only a part of a network.
        """
        manifest = bundle.manifest
        if manifest.segment:
            raise ModelContractError(f"{bundle.id} holds a part of {manifest.segment.of}: name the bundle of the whole")
        first = [bundle.contents[name] for name in ("encoder.onnx", "classifier.onnx")]
        graph = (NOVELTY in bundle.contents and fuse([*first, bundle.contents[NOVELTY]])) or fuse(first)
        if graph is None:
            raise ModelContractError(
                f"{bundle.id} cannot be profiled: its encoder and classifier cannot be run as one graph. "
                "`har-export` makes bundles that can"
            )
        exits = [(way, bundle.contents[way.file]) for way in manifest.exits]
        network = cls(bundle.id, graph, manifest.normalisation.apply(read_golden(bundle).window), exits)
        network.accuracy = _accuracy(manifest)
        return network

    def exits(self, us: Sequence[float]) -> list[Exit]:
        """Return where answers can be had, the end last. `us`: what each head takes."""
        early = [Exit(h.name, h.accuracy, h.after, _rounded(t)) for h, t in zip(self.heads, us, strict=True)]
        return [*early, Exit("end", self.accuracy, len(self.parts))]

    def _head(self, way: EarlyExit, head: bytes, values: Arrays) -> Head:
        after = next((k for k, at in enumerate(self.cuts, 1) if at.name == way.at), None)
        if after is None:
            raise ModelContractError(f"{self.name}: exit {way.name} reads {way.at}, where the network cannot be cut")
        quick = optimised(f"exit {way.name} of {self.name}", head)
        layers = describe(quick, self._values(quick, values[way.at]))
        return Head(way.name, way.accuracy, after, head, layers)

    def _values(self, graph: bytes, given: npt.NDArray[Any]) -> Arrays:
        """All tensors of a graph that depend on what it is given."""
        takes, _ = signature(graph)
        names = flow(graph)[1:]
        session = open_session(self.name, extract(graph, takes, [Value(name, 0, ()) for name in names]))
        try:
            values = session.run(None, {takes[0].name: given})
        except Exception as e:  # ORT's exception classes share no base but Exception
            raise ModelContractError(f"{self.name}: ONNX Runtime failed on a batch of {len(given)}: {e}") from e
        return {takes[0].name: given, **dict(zip(names, values, strict=True))}


class Runs:
    """A network, its parts and its exits' heads, opened, to be run in turn."""

    def __init__(self, network: Network) -> None:
        """Open everything and run it once.

        Raises:
            InferenceError: the parts do not give what the whole gives, bit by bit.
        """
        self._windows = network.windows
        self._ends = network.ends
        self._whole = open_session(network.name, network.graph)
        self._takes_first = self._whole.get_inputs()[0].name
        graphs = [*network.parts, *(head.graph for head in network.heads)]
        opened = [open_session(f"a part of {network.name}", graph) for graph in graphs]
        # Each takes what one before it gives: a part that of the last one, a head that of the last one before its exit.
        after = [*range(len(network.parts)), *(head.after for head in network.heads)]
        self._steps = [(session, session.get_inputs()[0].name, k) for session, k in zip(opened, after, strict=True)]
        self._last = len(network.parts)
        given, _ = self._apart(self._windows)
        if not all(map(np.array_equal, given, self._together(self._windows))):
            raise InferenceError(
                f"{network.name} gives something else when it is run part by part: ONNX Runtime "
                "computes it in another way on this machine, so it cannot be cut here"
            )

    def timed(self, seconds: float, between: Callable[[], object] = lambda: None) -> Int64Array:
        """Return nanoseconds, int64 (rounds, 1 + parts + heads): the whole, every part, every head, a window a round.

        `between`: is done before each run, and not timed.
        """
        rows: list[list[int]] = []
        windows = cycle(self._windows[:, None])
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(rows) < FEWEST_ROUNDS:
            window = next(windows)
            between()
            start = time.perf_counter_ns()
            self._together(window)
            whole = time.perf_counter_ns() - start
            rows.append([whole, *self._apart(window, between)[1]])
        return np.array(rows, np.int64)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Run the whole over and over on a thread of its own meanwhile."""
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set():
                self._together(self._windows[:1])

        worker = threading.Thread(target=work, name="busy")
        worker.start()
        try:
            yield
        finally:
            ended.set()
            worker.join()

    def _together(self, windows: Float32Array) -> Sequence[Any]:
        given: Sequence[Any] = self._whole.run(self._ends, {self._takes_first: windows})
        return given

    def _apart(self, windows: Any, between: Callable[[], object] = lambda: None) -> tuple[Sequence[Any], list[int]]:
        """What the last part gives, and how long each part took, and then each head."""
        given, spent = [[windows]], []
        for session, takes, after in self._steps:
            value = given[after][0]
            between()
            start = time.perf_counter_ns()
            given.append(session.run(None, {takes: value}))
            spent.append(time.perf_counter_ns() - start)
        return given[self._last], spent


def in_service(model: OrtModel, config: Config) -> Callable[[], object]:
    """Return what gives the agent's pipeline one hop of samples more, and so one window to label.

    Raises:
        ConfigError: the configured hop does not fit the bundle's window.
    """
    manifest = model.bundle.manifest
    pipeline = build_pipeline(model, manifest, config)
    golden = np.concatenate(list(read_golden(model.bundle).window))
    hops = even_samples("profile", golden, manifest.input.rate_hz, config.window.hop or manifest.input.hop)
    return lambda: pipeline.feed([next(hops)])


def measured(
    subjects: Sequence[tuple[Network, Callable[[], object]]], seconds: float, meter: PowerMeter, clock: Clock
) -> list[Profile]:
    """Measure networks, each for `seconds` in place and once more back to back, in several passes over all of them.

    `subjects`: a network, and what the machine does before each of its runs that is timed in place.

    Raises:
        InferenceError: what the parts of one give is not what the whole gives.
    """
    opened = [(Runs(network), between) for network, between in subjects]
    passes = [
        [(runs.timed(seconds / PASSES), runs.timed(seconds / PASSES, between)) for runs, between in opened]
        for _ in range(PASSES)
    ]
    found = []
    for (network, _), (runs, _), spent in zip(subjects, opened, zip(*passes, strict=True), strict=True):
        hot, placed = (np.concatenate(side) / 1e3 for side in zip(*spent, strict=True))
        found.append(_profile(network, hot, placed, _watts(runs, meter, clock)))
    return found


def _profile(network: Network, hot: Float64Array, placed: Float64Array, watts: Watts | None) -> Profile:
    """Sum up microseconds (rounds, 1 + parts + heads)."""
    us, us_p95, hot_us = np.median(placed, axis=0), np.percentile(placed, 95, axis=0), np.median(hot, axis=0)
    heads = 1 + len(network.parts)
    return Profile(
        bundle=network.name,
        measured=True,
        machine=machine(),
        exits=network.exits(us[heads:].tolist()),
        ends=network.ends,
        input_bytes=network.input_bytes,
        output_bytes=network.output_bytes,
        code_bytes=network.code_bytes,
        cuts=network.cuts,
        segments=[
            Segment(_rounded(us[i]), _rounded(us_p95[i]), _rounded(hot_us[i]), _joules(watts, float(us[i])), layers)
            for i, layers in enumerate(network.layers, 1)
        ],
        fixed_us=_rounded(_fixed(placed[:, :heads])),
        whole_us=_rounded(us[0]),
        whole_hot_us=_rounded(hot_us[0]),
        watts=watts,
    )


def left_out(profiles: Sequence[Profile]) -> list[LeftOut]:
    """Predict every bundle from all others, and hold that against what was measured; nothing of a single one."""
    found = []
    for i, one in enumerate(profiles if len(profiles) > 1 else ()):
        costs = fit([run for other in (*profiles[:i], *profiles[i + 1 :]) for run in other.runs()])
        *parts, whole = one.runs() if len(one.segments) > 1 else one.runs() * 2
        missing = unknown(costs, whole.layers)
        off = [abs(predict(costs, run.layers) - run.us) / run.us for run in (*parts, whole)]
        parts_off, whole_off = (None, None) if missing else (statistics.fmean(off[:-1]), off[-1])
        found.append(LeftOut(one.bundle, parts_off, whole_off, missing))
    return found


def prediction(network: Network, profiles: Sequence[Profile]) -> Profile:
    """Return the profile of a network that was not timed, by those of others on this machine.

    Raises:
        UsageError: it has operators that none of the others has.
    """
    costs = fit([run for profile in profiles for run in profile.runs()])
    layers = [layer for part in network.layers for layer in part]
    missing = unknown(costs, [*layers, *(layer for head in network.heads for layer in head.layers)])
    if missing:
        raise UsageError(
            f"{network.name} cannot be predicted: no bundle that was measured has {', '.join(missing)}; measure one "
            "of the same kind beside, such as har-base for int8 and har-base-float for float"
        )
    us, whole = [predict(costs, part) for part in network.layers], predict(costs, layers)
    watts = profiles[0].watts
    return Profile(
        bundle=network.name,
        measured=False,
        machine=profiles[0].machine,
        exits=network.exits([predict(costs, head.layers) for head in network.heads]),
        ends=network.ends,
        input_bytes=network.input_bytes,
        output_bytes=network.output_bytes,
        code_bytes=network.code_bytes,
        cuts=network.cuts,
        segments=[
            Segment(_rounded(t), None, None, _joules(watts, t), part)
            for t, part in zip(us, network.layers, strict=True)
        ],
        fixed_us=_rounded(costs["run"]),
        whole_us=_rounded(whole),
        whole_hot_us=None,
        watts=watts,
    )


def _write(found: Profile, path: Path) -> None:
    try:
        path.write_text(json.dumps(found.as_dict(), indent=1) + "\n", "utf-8")
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {e.strerror or e}") from e


def machine() -> dict[str, str]:
    """Return what a profile says of where it was made."""
    import onnxruntime

    return {
        "name": platform.node(),
        "cpu": _cpu(),
        "arch": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
    }


def _cpu() -> str:
    """The processor, or else the board, as the kernel calls it."""
    for path, marker in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            lines = Path(path).read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        found = next((line for line in lines if line.startswith(marker)), "")
        if found:
            return found.rpartition(":")[2].strip("\0 \t")
    return "unknown"


def _fixed(us: Float64Array) -> float:
    """What being run once more costs: what all parts take more than the whole, a round; (rounds, 1 + parts)."""
    extra = us.shape[1] - 2
    return max(0.0, float(np.median(us[:, 1:].sum(axis=1) - us[:, 0]))) / extra if extra else 0.0


def _watts(runs: Runs, meter: PowerMeter, clock: Clock) -> Watts | None:
    """Read the meter while nothing runs, and then while the network does."""
    idle = _drawn(meter, clock)
    if idle is None:
        return None
    with runs.busy():
        busy = _drawn(meter, clock)
    return Watts(_mean(busy), _mean(idle), busy[-1].source, busy[-1].error_pct) if busy else None


def _drawn(meter: PowerMeter, clock: Clock) -> list[PowerReading] | None:
    """Some readings, None where the meter has none. The first one is of the time before, and left out."""
    found = [meter.read()]
    while len(found) <= READINGS and found[-1].watts is not None:
        clock.sleep(READ_S)
        found.append(meter.read())
    return found[1:] if found[-1].watts is not None else None


def _mean(readings: Sequence[PowerReading]) -> float:
    return statistics.fmean(reading.watts or 0.0 for reading in readings)


def _joules(watts: Watts | None, us: float) -> float | None:
    """What a run of `us` adds to what an idle machine draws."""
    return max(0.0, watts.busy - watts.idle) * us * 1e-6 if watts else None


def _accuracy(manifest: Manifest) -> float | None:
    """The share of single windows of people unknown to it that a bundle got right, if its builder says so."""
    held_out = manifest.metrics.get("held_out")
    found = held_out.get("accuracy") if isinstance(held_out, dict) else None
    return float(found) if isinstance(found, int | float) and 0 <= found <= 1 else None


def _rounded(us: float) -> float:
    """To nanoseconds, which is what was counted."""
    return round(float(us), 3)
