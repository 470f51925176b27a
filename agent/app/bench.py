"""Side-by-side measurements: the pipeline against bare ONNX Runtime, or bundles, in one process and one run.

Everything is a ratio of two things measured in turn, because the speed of a machine drifts: a round measures both, and
the median over rounds is quoted. Times are CPU times, so that what else runs on the machine counts little; only calls
at cadence and start-up are timed by the wall clock. Hot calls come back to back; at cadence there is a pause before
each, as on a board that labels a window every 1.28 s, so that caches and clocks have cooled down.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent.adapters.bundle import read_golden
from agent.adapters.clock import SystemClock
from agent.adapters.onnx_model import OrtModel, open_session, scoring_graphs
from agent.app.compose import build_pipeline, open_model
from agent.config import Config
from agent.core.manifest import CONTEXT
from agent.core.onnx_wire import fuse
from agent.errors import UsageError
from agent.pipeline import Pipeline
from agent.records import CHANNELS, Decoded, Float32Array, Int64Array, SampleBatch, Turn
from agent.runtime.engine import Engine, TimedModel
from agent.runtime.pacing import PacedSource

CADENCE_S = 0.05
STREAMS = 256
NOISE = 1.05
"""How much slower something may be measured that is as fast."""

FEWEST_CALLS = 40
"""Calls of a bundle at cadence that a choice rests on at least: the median of fewer is not good to 5 %."""


@dataclass(frozen=True)
class Figure:
    """One measured figure. `ratio` is against `of`, measured in the same rounds."""

    name: str
    value: float
    unit: str
    ratio: float | None = None
    of: str = ""


@dataclass
class Benchmark:
    """What one run measured, and on what."""

    model: str
    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"v": 1, "model": self.model, "machine": self.machine, "figures": [asdict(f) for f in self.figures]}


def bench(config: Config, seconds: float, on_progress: Callable[[str], None] = lambda _: None) -> Benchmark:
    """Measure everything, spending about `seconds` on each comparison.

    Raises:
        ModelContractError: the configured bundle breaks its contract.
    """
    model = open_model(config.model.bundle)
    run = _Run(model, config, seconds)
    result = Benchmark(model.id, _machine())
    for name, measure in (
        ("each graph", run.invoke),
        ("the graphs in one call", run.fused),
        ("the pipeline, one stream", run.one_stream),
        (f"the pipeline, {STREAMS} streams", run.many_streams),
        ("replay from memory", run.replay_memory),
        ("replay from CSV", run.replay_csv),
        ("a live 50 Hz stream", run.live),
        ("start-up and memory", run.floor),
    ):
        on_progress(name)
        result.figures += measure()
    return result


@dataclass(frozen=True)
class Contender:
    """What a window costs with one bundle, in microseconds. `ratio`: at cadence, against the fastest."""

    bundle: str
    model: str
    at_cadence_us: float
    hot_us: float
    ratio: float


@dataclass(frozen=True)
class Choice:
    """The bundle to use on a machine, as it was named, and what was measured there."""

    chosen: str
    machine: dict[str, Any]
    bundles: list[Contender]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"v": 1, **asdict(self)}


def choose(names: Sequence[str], seconds: float) -> Choice:
    """Measure what a window costs with each of several bundles, in turn, and choose by the time at cadence.

    See `preferred`. `seconds`: about how long to measure hot calls of each bundle, and again its calls at cadence, of
    which there are `FEWEST_CALLS` at least.

    Raises:
        UsageError: fewer than two, or their labels or inputs differ.
        ModelContractError: one breaks its contract.
    """
    if len(names) < 2:
        raise UsageError("--choose needs at least two bundles, such as har-base and har-base-float")
    models = [open_model(name) for name in names]
    first, *others = (model.bundle.manifest for model in models)
    for name, other in zip(names[1:], others, strict=True):
        if (other.labels, other.input) != (first.labels, first.input):
            what = "labels" if other.labels != first.labels else "input"
            raise UsageError(f"{names[0]} and {name} cannot stand for each other: their {what} differs")
    calls = [bare(model, 1, context=True) for model in models]
    hot = _in_turn(seconds * len(calls), *calls)
    cold = _at_cadence(max(seconds, FEWEST_CALLS * CADENCE_S) * len(calls), *calls)
    return Choice(
        names[preferred(cold)],
        _machine(),
        [
            Contender(name, model.id, 1e6 * cold_s, 1e6 * hot_s, cold_s / min(cold))
            for name, model, cold_s, hot_s in zip(names, models, cold, hot, strict=True)
        ],
    )


def preferred(spent: Sequence[float]) -> int:
    """Return which of several times is the shortest: of those that differ from it by noise alone, the first."""
    return next(i for i, time_s in enumerate(spent) if time_s <= NOISE * min(spent))


class _Run:
    """The measurements, on one model and one stretch of signal."""

    def __init__(self, model: OrtModel, config: Config, seconds: float) -> None:
        self._model = model
        self._config = config
        self._seconds = seconds
        self._manifest = model.bundle.manifest
        self._window, self._hop = self._manifest.input.window, config.window.hop or self._manifest.input.hop
        self._signal = np.concatenate(list(read_golden(model.bundle).window))
        self._clock = SystemClock()

    def invoke(self) -> Iterator[Figure]:
        """Each graph alone, batch 1, hot and at cadence; batch 256 beside it. What gives a label also as one graph."""
        contents = self._model.bundle.contents
        sessions = self._graph_by_graph() | ({"context": self._model.context} if self._model.context else {})
        labelling = fuse([contents["encoder.onnx"], contents["classifier.onnx"]])
        if labelling:
            sessions["encoder and classifier fused"] = open_session("the fused graph", labelling)
        one, many = _values(self._model, 1), _values(self._model, STREAMS)
        for name, session in sessions.items():
            call = _call(session, one)
            (hot,) = _in_turn(self._seconds, call)
            (batched,) = (t / STREAMS for t in _in_turn(self._seconds, _call(session, many)))
            (cold,) = _at_cadence(self._seconds, call)
            yield Figure(f"{name}, hot", hot * 1e6, "µs a window")
            yield Figure(f"{name}, at cadence", cold * 1e6, "µs a window", cold / hot, "hot")
            yield Figure(f"{name}, batch {STREAMS}", batched * 1e6, "µs a window", batched / hot, "hot")

    def fused(self) -> Iterator[Figure]:
        """The graphs that score a window in one call, as the agent makes it, against one by one."""
        if len(self._model.scoring) > 1:
            return

        def calls(n: int) -> tuple[Callable[[], None], Callable[[], None]]:
            values = _values(self._model, n)
            sides = self._graph_by_graph().values(), self._model.scoring
            apart, together = (partial(_all, [_call(session, values) for session in side]) for side in sides)
            return apart, together

        for when, n, (apart, together) in (
            ("hot", 1, _in_turn(self._seconds, *calls(1))),
            ("at cadence", 1, _at_cadence(self._seconds, *calls(1))),
            (f"batch {STREAMS}", STREAMS, _in_turn(self._seconds, *calls(STREAMS))),
        ):
            name = f"graph by graph, {when}"
            yield Figure(name, apart / n * 1e6, "µs a window")
            yield Figure(f"all fused, {when}", together / n * 1e6, "µs a window", together / apart, name)

    def one_stream(self) -> Iterator[Figure]:
        """One hop of samples in, one prediction out; and the same samples one at a time."""
        pipeline = self._pipeline()
        batches = self._batches("one", self._hop, 256)
        singles = self._batches("single", 1, 256 * self._hop)
        bare = self._bare(1)

        def by_sample() -> None:
            for _ in range(self._hop):
                pipeline.feed([next(singles)])

        for _ in range(3):
            pipeline.feed([next(batches)])
            by_sample()
        base, piped, single = _in_turn(self._seconds, bare, lambda: pipeline.feed([next(batches)]), by_sample)
        yield Figure("bare calls", base * 1e6, "µs a window")
        yield Figure("pipeline, a hop at a time", piped * 1e6, "µs a window", piped / base, "bare calls")
        yield Figure("pipeline, a sample at a time", single * 1e6, "µs a window", single / base, "bare calls")
        bare_cold, cold = _at_cadence(self._seconds, bare, lambda: pipeline.feed([next(batches)]))
        yield Figure("bare calls, at cadence", bare_cold * 1e6, "µs a window", bare_cold / base, "hot")
        yield Figure("pipeline, at cadence", cold * 1e6, "µs a window", cold / bare_cold, "bare calls, at cadence")

    def many_streams(self) -> Iterator[Figure]:
        """A hop of each of many streams in one feed, one batched model call."""
        pipeline = self._pipeline()
        sources = [self._batches(f"device-{i}", self._hop, 256) for i in range(STREAMS)]
        bare = self._bare(STREAMS)
        for _ in range(3):
            pipeline.feed([next(s) for s in sources])
        waiting = [[next(s) for s in sources] for _ in range(4)]

        def feed() -> None:
            # Making the batches is the source's work, not the pipeline's, so it is done outside of the clock.
            pipeline.feed(waiting.pop())

        def refill() -> None:
            if not waiting:
                waiting.extend([[next(s) for s in sources] for _ in range(4)][::-1])

        base, piped = _in_turn(self._seconds, bare, feed, before=refill)
        yield Figure(f"bare calls, batch {STREAMS}", base / STREAMS * 1e6, "µs a window")
        yield Figure(
            f"pipeline, {STREAMS} streams",
            piped / STREAMS * 1e6,
            "µs a window",
            piped / base,
            "bare calls, batched",
        )

    def replay_memory(self) -> Iterator[Figure]:
        """A stretch of one stream through engine and pipeline, without decoding and without output."""
        hops = 4 * STREAMS
        bare = self._bare(STREAMS)
        batches = self._batches("memory", hops * self._hop, 256)
        source = _Memory()
        engine = self._engine(source)

        def play() -> None:
            engine.turn()

        def refill() -> None:
            # A batch that was not taken must not be skipped: that would be a gap.
            source.waiting = source.waiting or [next(batches)]

        refill()
        play()
        base, piped = _in_turn(self._seconds, bare, play, before=refill)
        rate, bare_rate = hops / piped, STREAMS / base
        yield Figure("batched bare calls", bare_rate, "windows/s")
        yield Figure("replay from memory", rate, "windows/s", rate / bare_rate, "batched bare calls")

    def replay_csv(self) -> Iterator[Figure]:
        """`har-agent replay` of a CSV recording on one core, JSONL out, start-up left out."""
        from agent.app.replay import ReplaySettings, replay

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.csv"
            n = _write_csv(path, self._signal, 200_000)
            settings = ReplaySettings(config=self._config, out=os.devnull)
            rates = []
            for _ in range(max(3, round(self._seconds))):
                start = time.process_time()
                result = replay([str(path)], settings)
                rates.append(n / (time.process_time() - start))
                if result.recordings[0].samples != n:
                    raise AssertionError("the replay did not read every row that was written")
        yield Figure("replay from CSV", statistics.median(rates), "samples/s a core")

    def live(self) -> Iterator[Figure]:
        """CPU of engine and pipeline under one 50 Hz stream in real time, polled a tenth of a second at a time."""
        batches = self._batches("live", 64, 1 << 20)
        source = PacedSource(_Endless(batches), self._clock, 1.0)
        engine = self._engine(source)
        engine.turn()
        start, cpu = time.monotonic(), time.process_time()
        seconds = max(5.0, 2 * self._seconds)
        while time.monotonic() - start < seconds:
            engine.turn()
        share = (time.process_time() - cpu) / (time.monotonic() - start)
        yield Figure("one live 50 Hz stream", 100 * share, "% of a core")

    def floor(self) -> Iterator[Figure]:
        """Start-up and peak memory of a replay against a Python that imports the same and opens the same sessions."""
        bundle = self._model.bundle
        graphs = list(scoring_graphs(bundle).values())
        graphs += [bundle.contents[CONTEXT]] if self._model.context else []
        with tempfile.TemporaryDirectory() as folder:
            for i, graph in enumerate(graphs):
                (Path(folder) / f"{i}.onnx").write_bytes(graph)
            bare = [sys.executable, "-c", _FLOOR, *(f"{folder}/{i}.onnx" for i in range(len(graphs)))]
            path = Path(folder) / "short.csv"
            _write_csv(path, self._signal, 256)
            agent = [
                sys.executable,
                "-m",
                "agent",
                "replay",
                "--quiet",
                "--model",
                self._config.model.bundle,
                str(path),
            ]
            # Once without counting: a source checkout is compiled then, as a wheel is when it is installed.
            _spawn(bare), _spawn(agent)
            runs = [(_spawn(bare), _spawn(agent)) for _ in range(max(5, round(3 * self._seconds)))]
            _write_csv(path, self._signal, 400_000)
            long = _spawn(agent)
        for i, (name, unit) in enumerate((("start-up", "ms"), ("start-up, CPU", "ms"), ("peak RSS", "MiB"))):
            base, ours = (statistics.median(run[side][i] for run in runs) for side in (0, 1))
            yield Figure(f"floor {name}", base, unit)
            yield Figure(f"agent {name}, short replay", ours, unit, ours / base, f"floor {name}")
        yield Figure("agent peak RSS, 2.2 h replay", long[2], "MiB", long[2] / base, "floor peak RSS")

    def _engine(self, source: Any) -> Engine:
        timed = TimedModel(self._model, self._clock)
        pipeline = build_pipeline(timed, self._manifest, self._config)
        return Engine(source, pipeline, [_Nowhere()], self._clock, timed)

    def _pipeline(self) -> Pipeline:
        return build_pipeline(self._model, self._manifest, self._config)

    def _graph_by_graph(self) -> dict[str, Any]:
        """The sessions that a window would be scored with if none were fused."""
        model = self._model
        last = ("decoder", model.decoder) if model.novelty is None else ("novelty", model.novelty)
        return dict((("encoder", model.encoder), ("classifier", model.classifier), last))

    def _bare(self, n: int) -> Callable[[], None]:
        # At another distance of windows than its own, a context is not asked.
        return bare(self._model, n, context=self._hop == self._manifest.input.hop)

    def _batches(self, stream: str, size: int, count: int) -> Iterator[SampleBatch]:
        values = np.resize(self._signal, (max(size, min(count * size, 1 << 16)), len(CHANNELS))).astype(np.float32)
        return even_samples(stream, values, self._manifest.input.rate_hz, size)


def even_samples(stream: str, values: Float32Array, rate_hz: float, size: int) -> Iterator[SampleBatch]:
    """Endless even samples of one stream, `size` at a time, from `values` (n, 6) over and over, n at least `size`."""
    period_ns, at = round(1e9 / rate_hz), 0
    while True:
        t_ns: Int64Array = np.arange(at, at + size, dtype=np.int64) * period_ns
        first = at % (len(values) - size + 1)
        yield SampleBatch(stream, t_ns, values[first : first + size], at)
        at += size


def _values(model: OrtModel, n: int) -> dict[str, Any]:
    """What graphs take, by name, for `n` windows."""
    manifest = model.bundle.manifest
    windows = np.resize(read_golden(model.bundle).window, (n, manifest.input.window, len(CHANNELS)))
    windows = manifest.normalisation.apply(windows)
    code = model.infer(windows).code
    return {"window": windows, "code": code, "codes": np.repeat(code[:, None], model.context_windows, axis=1)}


def _call(session: Any, values: dict[str, Any]) -> Callable[[], Any]:
    return partial(session.run, None, {entry.name: values[entry.name] for entry in session.get_inputs()})


def _all(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def bare(model: OrtModel, n: int, *, context: bool) -> Callable[[], None]:
    """Return the calls that `n` windows cost, with nothing around them. `context`: with that of the bundle, if any."""
    values = _values(model, n)
    sessions = [*model.scoring, *([model.context] if context and model.context else [])]
    return partial(_all, [_call(session, values) for session in sessions])


def _at_cadence(seconds: float, *acts: Callable[[], Any]) -> list[float]:
    """Median wall seconds of a call of each, in turn, after a pause; about `seconds` in all."""
    spent: list[list[float]] = [[] for _ in acts]
    for _ in range(max(10, round(seconds / CADENCE_S / len(acts)))):
        for times, act in zip(spent, acts, strict=True):
            time.sleep(CADENCE_S)
            start = time.perf_counter()
            act()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in spent]


def _in_turn(seconds: float, *acts: Callable[[], Any], before: Callable[[], None] = lambda: None) -> list[float]:
    """Median CPU seconds of a call of each, measured in turn, call by call: what else runs here does not count."""
    spent: list[list[float]] = [[] for _ in acts]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(spent[0]) < 5:
        for times, act in zip(spent, acts, strict=True):
            before()
            start = time.process_time()
            act()
            times.append(time.process_time() - start)
    return [statistics.median(times) for times in spent]


class _Memory:
    """A source that has what it was given."""

    def __init__(self) -> None:
        self.waiting: list[Decoded] = []

    def poll(self, timeout_s: float) -> list[Decoded]:  # noqa: ARG002  memory does not wait
        waiting, self.waiting = self.waiting, []
        return waiting

    def close(self) -> None:
        pass


class _Endless:
    """A source that always has another batch."""

    def __init__(self, batches: Iterator[SampleBatch]) -> None:
        self._batches = batches

    def poll(self, timeout_s: float) -> list[Decoded]:  # noqa: ARG002  as above
        return [next(self._batches)]

    def close(self) -> None:
        pass


class _Nowhere:
    """A sink that drops what it gets."""

    def write(self, turn: Turn) -> None:
        pass

    def close(self) -> None:
        pass


_FLOOR = """
import sys, numpy, onnxruntime as ort
o = ort.SessionOptions(); o.intra_op_num_threads = o.inter_op_num_threads = 1
o.enable_cpu_mem_arena = False
sessions = [ort.InferenceSession(open(p, 'rb').read(), o, providers=['CPUExecutionProvider']) for p in sys.argv[1:]]
"""


def _spawn(command: list[str]) -> tuple[float, float, float]:
    """Run a command to its end; return its wall and CPU milliseconds, and its peak RSS in MiB.

    The kernel's peak is read while the process lives: the one that `wait4` gives starts at its parent's.
    """
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    peak_kib = ended = 0
    start = time.perf_counter()
    pid = os.posix_spawn(
        command[0], command, environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    while not ended:
        peak_kib = max(peak_kib, _peak_kib(pid))
        time.sleep(0.002)
        ended, status, usage = os.wait4(pid, os.WNOHANG)
    if status:
        raise AssertionError(f"{' '.join(command[:4])} … ended with {os.waitstatus_to_exitcode(status)}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return 1e3 * (time.perf_counter() - start), 1e3 * cpu_s, peak_kib / 1024


def _peak_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def _write_csv(path: Path, signal: Float32Array, n: int) -> int:
    rows = np.column_stack([np.arange(n) / 50.0, np.resize(signal, (n, len(CHANNELS)))])
    header = f"# format: har-recording/1\n# device: bench\n# acc_unit: g\n# gyro_unit: rad/s\nt,{','.join(CHANNELS)}"
    np.savetxt(path, rows, fmt=["%.2f"] + ["%.4f"] * 6, delimiter=",", header=header, comments="")
    return n


def _machine() -> dict[str, Any]:
    import platform

    import onnxruntime

    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }
