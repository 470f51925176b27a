"""Split computing, measured: what the planner picks against what is best, a mobile link, and boards in a chain.

    sudo .venv/bin/python tools/bench/split.py --json docs/results/split.json

The network is network.py's: random weights, several milliseconds of a core. The board is the agent's own executor in a
namespace and on a core of its own, of which it gets a share (shares.py); mosquitto and a `har-agent cloud-worker` are
in another one, on the other cores; between them is a link with a round trip and a rate (links.py).

Grid: every way to run the network that could be worth it is run, in turn, over each link and at each speed of the
board. The planner picks by what `har-agent profile` measured of the network on this machine, by how fast the board was
measured to be, and by what the estimator has learned of the link before that. Held against it is what was fastest.

Trace: windows come at a steady rate on a slow board, which is in time by itself with an early exit only, and whose
mobile link changes all the time and is gone now and then. `cut = auto` against plans that never change, each over the
same link. How right an exit is comes from the cross-validation of a network that was trained with two of them.

Slices: the network cut in two and in three by `har-export slice`, each part on a board of its own with the same share,
behind one another. How many windows get through, against one board with all of it.

Takes half an hour; `--quick` some minutes.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from links import PORT, Carrier, Condition, Line, configure, namespaced
from links import require as require_links
from network import write_network
from shares import PERIOD_US, Share, watch
from shares import require as require_shares

ROOT = Path(__file__).resolve().parent.parent.parent

MBIT = (0.1, 1.0, 10.0, 100.0)
RTT_MS = (1.0, 10.0, 50.0, 200.0)
SHARES = (0.05, 0.2, 0.5, 1.0)
ROUNDS, WARM_ROUNDS, AT_LEAST_S = 7, 3, 1.0
"""Of a cell: runs of each way, more of them where they take less than a second in all; and runs before those."""
PAUSE_S = 0.05
"""Between runs that tell how fast a board is: its caches get cold, as they do between windows."""
NEAR_ENOUGH = 1.05
"""Times as long as the best: what counts as that, within noise."""
LOCAL, ALL = "local", "window"
"""What runs all of it on the board, and what sends it to run elsewhere."""

TRACE_S, TRACE_SHARE, WINDOWS_PER_S = 120.0, 0.05, 2.0
RATES_MBIT = (0.3, 1.0, 3.0, 8.0, 20.0)
STAYS, DROPS = 0.7, 0.04
"""How likely a link is what it was a second ago, and gone."""
IN_TIME_PCT = 99.0
RETRY_S = 2.0
"""How long nobody is asked after failures: on a link that comes back within seconds."""

CHAIN_SHARE, CHAIN_S, BATCH, UNDER_WAY, CHAIN_PATIENCE_S = 0.2, 20.0, 8, 3, 10.0
"""Of a board; seconds; windows of a request; requests of each board, and how long they may take."""

EXITS = ROOT / "docs" / "results" / "lab" / "exits.json"
TRAINED = ("conv1", "conv2", "end")
"""The exits in the result of `har-export lab exits`, whose accuracies stand for those of the bench's network."""

LINE = Line(1)
SERVICE = "bench"
DEADLINE_MS = 10_000
"""Of the grid: no answer is given up."""
PATIENCE_S = 60.0


def main() -> None:
    """Measure and tell, or, as a child of it, be one end of the link."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the results here, too; with --only, beside those there")
    parser.add_argument("--quick", action="store_true", help="few cells, few runs")
    parser.add_argument("--only", choices=list(MEASURED), help="one of the three")
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        _say("here")
        sys.stdin.readline()
        ROLES[given.role](given.folder)
        return
    from agent.app.profile import machine

    require_links("bench-split")
    require_shares("bench-split")
    result: dict[str, Any] = {
        "v": 1,
        "machine": {"cpu": machine()["cpu"], "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "shares": {"period_ms": PERIOD_US / 1e3},
    }
    if given.only and given.json and given.json.exists():
        result = json.loads(given.json.read_text("utf-8")) | result
    with tempfile.TemporaryDirectory() as folder:
        for name in [given.only] if given.only else MEASURED:
            began = time.monotonic()
            result[name] = MEASURED[name](Path(folder), given)
            result[name]["took_s"] = round(time.monotonic() - began)
            if given.json:
                given.json.write_text(json.dumps(result, indent=1) + "\n")
    for name in MEASURED:
        if name in result:
            print(TOLD[name](result[name]))  # noqa: T201


# --- the two ends


class Bench:
    """A board and a worker, with a link between them, and profiles of the network."""

    def __init__(self, folder: Path, accuracy: Sequence[float | None], ending: ExitStack) -> None:
        """`folder`: exists, for what this makes. `accuracy`: of the network's exits and end."""
        others, core = cores()
        os.sched_setaffinity(0, others)
        ending.callback(os.sched_setaffinity, 0, [*others, core])
        self.bundle = write_network(folder / "bench", accuracy)
        self.profile = profiled(self.bundle, folder / "profile.json", core)
        ends = {}
        for role in ("far", "board"):
            ends[role] = end = namespaced([__file__, "--role", role, str(folder)])
            ending.callback(end.wait, 30)
            ending.callback(end.stdin.close)
        self.carrier = Carrier({LINE: Condition(1.0)}, ends["far"].pid, ends["board"].pid, ending, others)
        self._board = ends["board"]
        for role in ("far", "board"):
            ends[role].stdin.write("\n")
            ends[role].stdin.flush()
            self.about = _read(ends[role])
        watch(core, ending)
        self.share = Share("bench-board", core, self._board.pid, ending)

    def ask(self, what: str, **arguments: Any) -> Any:
        """Have the board do something, and return what it says."""
        self._board.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._board.stdin.flush()
        return _read(self._board)


def profiled(bundle: Path, path: Path, core: int) -> Any:
    """Have `har-agent profile` measure a bundle on a core, and return the profile, which `path` has then."""
    from agent.app.plan import read_file

    tell("profiling the network")
    command = [sys.executable, "-m", "agent", "profile", str(bundle), "--out", str(path), "--seconds", "5"]
    subprocess.run(command, check=True, capture_output=True, preexec_fn=lambda: os.sched_setaffinity(0, [core]))
    return read_file(str(path))


def cores() -> tuple[list[int], int]:
    """Return the cores of everything else, and that of the board."""
    *others, last = sorted(os.sched_getaffinity(0))
    return others, last


def far_end(folder: Path) -> None:
    """A broker and a worker, until the parent has had enough."""
    from mosquitto import Mosquitto

    configure([LINE], "far")
    with ExitStack() as ending:
        broker = ending.enter_context(Mosquitto(folder, f"allow_anonymous true\nlistener {PORT}"))
        worker(folder, SERVICE, folder / "bench", broker.url, ending)
        _say({})
        sys.stdin.read()


def worker(
    folder: Path, service: str, bundle: Path, url: str, ending: ExitStack, after: str = "", batch: int = 256
) -> int:
    """Start a worker; return its process. `after`: the service that goes on. `batch`: windows of a run."""
    config = folder / f"{service}.toml"
    config.write_text(
        f'[agent]\nname = "{service}"\n[broker.far]\nurl = "{url}"\n[telemetry]\ninterval_s = 3600\n'
        f'[worker]\nservice = "{service}"\nbundles = "{bundle}"\nnext = "{after}"\n'
        f"max_batch = {batch}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", "cloud-worker", "--config", str(config)], stdout=subprocess.DEVNULL
    )
    ending.callback(process.wait, 20)
    ending.callback(process.terminate)
    return process.pid


def board_end(folder: Path) -> None:
    """The board: does what it is asked to, and says what came of it."""
    from agent.adapters.bundle import find_bundle, load_bundle

    configure([LINE], "near")
    with ExitStack() as ending:
        board = Board(load_bundle(find_bundle(str(folder / "bench"))), f"mqtt://{LINE.address('far')}:{PORT}", ending)
        _say({})
        for line in sys.stdin:
            asked = json.loads(line)
            _say(getattr(board, asked.pop("what"))(**asked))


class Board:
    """All ways to run the network from here."""

    def __init__(self, bundle: Any, url: str, ending: ExitStack) -> None:
        from agent.adapters.bundle import read_golden
        from agent.adapters.clock import SystemClock
        from agent.adapters.onnx_model import OrtModel
        from agent.app.split import LONGEST_ANSWER, PURPOSE, Requester, open_parts
        from agent.core.settings import BrokerSettings, MqttSettings, SplitSettings

        self._clock = SystemClock()
        self._whole = OrtModel(bundle)
        self._parts = open_parts(self._whole)
        golden = read_golden(bundle)
        self._windows = bundle.manifest.normalisation.apply(golden.window)
        self._expected = {
            way_out: [self._parts.run(ALL, "", self._windows[i : i + 1], way_out) for i in range(len(self._windows))]
            for way_out in ("", *(one.name for one in self._parts.exits))
        }
        settings = SplitSettings(deadline_ms=DEADLINE_MS, service=SERVICE)
        requester = Requester(
            "board", BrokerSettings(url=url), MqttSettings(), settings, self._clock, purpose=PURPOSE,
            longest=LONGEST_ANSWER, complain=tell,
        )  # fmt: skip
        ending.callback(requester.close)
        requester.start()
        self._cloud = Overheard(requester, self._clock)
        self._ways: dict[str, Any] = {LOCAL: self._whole}
        self._turn = 0

    def speed(self, seconds: float, pause_s: float = 0.0) -> list[float]:
        """Return what runs of all of it took, milliseconds, each after a pause."""
        ends, took = time.monotonic() + seconds, []
        while time.monotonic() < ends or len(took) < 3:
            time.sleep(pause_s)
            took.append(self._run(LOCAL))
        return took

    def open(self, ways: Sequence[str]) -> dict[str, Any]:
        """Prepare to send these tensors; return once the worker answers."""
        from agent.core.settings import SplitSettings
        from agent.runtime.split import SplitModel

        for cut in ways:
            if cut not in self._ways:
                settings = SplitSettings(
                    cut=cut, deadline_ms=DEADLINE_MS, service=SERVICE, privacy="window", failures=1000, mb_per_day=1e6
                )
                split = SplitModel(
                    settings, self._clock, lambda _: self._parts, self._cloud, lambda: os.urandom(16)
                ).around(self._whole)
                if split.trouble:
                    raise RuntimeError(split.trouble)
                self._ways[cut] = split
            ends = time.monotonic() + PATIENCE_S
            while self._run(cut) and not self._away(cut):
                if time.monotonic() > ends:
                    raise RuntimeError(f"nobody goes on from {cut}: {self._ways[cut].problem}")
                time.sleep(0.1)
        return {}

    def cell(self, ways: Sequence[str], warm: int, rounds: int) -> dict[str, Any]:
        """Run in these ways, in turn, over a link that is new; return what each took, and what was learned before.

        `rounds`: how often at least.
        """
        self._cloud.forget()
        remote = [way for way in ways if way != LOCAL]
        for _ in range(warm):
            for way in remote:
                self._run(way)
        link = self._cloud.link
        learned = {"rtt_ms": link.rtt_ns and link.rtt_ns / 1e6, "mbit": link.bits_per_s and link.bits_per_s / 1e6}
        before = {way: self._away(way) for way in remote}
        took: dict[str, list[float]] = {way: [] for way in ways}
        ends = time.monotonic() + AT_LEAST_S
        while len(took[LOCAL]) < rounds or time.monotonic() < ends:
            for way in ways:
                took[way].append(self._run(way))
        return {"link": learned, "ms": took, "away": {way: self._away(way) - before[way] for way in remote}}

    def play(
        self, cut: str, way_out: str, seconds: float, deadline_ms: float, speed: float, profile: str
    ) -> dict[str, Any]:
        """Score windows at a steady rate by one plan, `auto` or a cut and an exit; return what became of each.

        `speed`: how many times as fast as in its `profile` the board is.
        """
        score, ways_out = self._player(cut, way_out, deadline_ms, speed, profile)
        took, answered, cuts = [], [], []
        begins = time.monotonic() + 1 / WINDOWS_PER_S
        for n in range(round(seconds * WINDOWS_PER_S)):
            due = begins + n / WINDOWS_PER_S
            time.sleep(max(0.0, due - time.monotonic()))
            scores = score(self._windows[n % len(self._windows)][np.newaxis])
            took.append(1e3 * (time.monotonic() - due))
            by, where = ways_out()
            answered.append(by)
            cuts.append(where)
            self._check(scores, by, n)
        return {"ms": took, "exits": answered, "cuts": cuts}

    def _player(
        self, cut: str, way_out: str, deadline_ms: float, speed: float, profile: str
    ) -> tuple[Callable[[Any], Any], Callable[[], tuple[str, str]]]:
        """Return what scores windows by a plan, and what says which exit answered the last one, and the cut."""
        from agent.app.plan import read_file
        from agent.core.settings import SplitSettings
        from agent.runtime.split import END, SplitModel

        if cut == LOCAL:
            return lambda windows: self._parts.run(ALL, "", windows, way_out), lambda: (way_out, LOCAL)
        settings = SplitSettings(
            cut=cut, exit=way_out, deadline_ms=deadline_ms, service=SERVICE, privacy="window", objective="accuracy",
            retry_s=RETRY_S, mb_per_day=1e6,
        )  # fmt: skip
        worker = read_file(profile)
        profiles = [slower(worker, speed), worker]
        split = SplitModel(
            settings, self._clock, lambda _: self._parts, self._cloud, lambda: os.urandom(16), profiles
        ).around(self._whole)
        if split.trouble:
            raise RuntimeError(split.trouble)
        before: dict[str, int] = {}

        def ways_out() -> tuple[str, str]:
            nonlocal before
            figures = split.figures()
            now: dict[str, int] = dict(figures["windows"])
            (by,) = [name for name, n in now.items() if n > before.get(name, 0)]
            before = now
            return "" if by == END else by, figures["cut"] or LOCAL

        return split.infer, ways_out

    def _check(self, scores: Any, way_out: str, n: int) -> None:
        """Hold scores of a window against what an exit gives."""
        expected = self._expected[way_out][n % len(self._windows)]
        if not all(np.array_equal(*pair) for pair in zip(scores[:3], expected[:3], strict=True)):
            raise RuntimeError(f"an answer is not what exit {way_out or 'end'} gives")

    def _run(self, way: str) -> float:
        """Score a window in one way; return what it took, milliseconds."""
        self._turn = (self._turn + 1) % len(self._windows)
        window = self._windows[self._turn : self._turn + 1]
        began = time.perf_counter()
        scores = self._ways[way].infer(window)
        took = 1e3 * (time.perf_counter() - began)
        self._cloud.learn()
        self._check(scores, "", self._turn)
        return took

    def _away(self, way: str) -> int:
        """Return how many windows others have finished in all."""
        return int(self._ways[way].figures()["away"])


class Overheard:
    """`ports.Cloud` that another one is, and what its answers tell of the link."""

    def __init__(self, cloud: Any, clock: Any) -> None:
        self._cloud, self._clock = cloud, clock
        self._asked: dict[bytes, tuple[int, int]] = {}
        self._heard: list[tuple[int, int, bytes]] = []
        self.forget()

    def forget(self) -> None:
        """Know nothing of the link."""
        from agent.core.link import LinkEstimator

        self.link = LinkEstimator()
        self._asked.clear()

    def __getattr__(self, name: str) -> Any:
        """All else as the other."""
        return getattr(self._cloud, name)

    def ask(self, correlation: bytes, payload: bytes) -> bool:
        """As the other."""
        self._asked[correlation] = self._clock.monotonic_ns(), len(payload)
        return bool(self._cloud.ask(correlation, payload))

    def answers(self) -> list[Any]:
        """As the other."""
        replies: list[Any] = self._cloud.answers()
        self._heard += [(*self._asked.pop(reply.correlation, (0, 0)), reply.payload) for reply in replies]
        return replies

    def learn(self) -> None:
        """Learn from what has been answered, now that its scores are there: what that takes is part of asking."""
        from agent.core.split_wire import TensorAnswer, decode_tensor_answer

        now_ns = self._clock.monotonic_ns()
        for asked_ns, n_bytes, payload in self._heard:
            said = decode_tensor_answer(payload)
            if asked_ns and isinstance(said, TensorAnswer):
                self.link.observe(now_ns, n_bytes + len(payload), now_ns - asked_ns - 1000 * said.elapsed_us)
        self._heard.clear()


# --- the grid


class Ways(NamedTuple):
    """What is run: ways that could be the fastest on some link. `left_out`: cuts that never could."""

    worth: list[str]
    left_out: list[str]


def ways(profile: Any) -> Ways:
    """Return what is worth running: a cut with no fewer bytes than an earlier one is never faster than that."""
    worth, least = [], math.inf
    for name, n_bytes in zip(profile.tensors, profile.border_bytes, strict=True):
        if n_bytes < least:
            worth.append(name)
            least = n_bytes
    return Ways([LOCAL, *worth], [name for name in profile.tensors if name not in worth])


def grid(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run everything over each link and at each speed."""
    mbit, rtt_ms, shares = (MBIT[::3], RTT_MS[::2], SHARES[::2]) if given.quick else (MBIT, RTT_MS, SHARES)
    from agent.core.planner import aligned

    rounds = 5 if given.quick else ROUNDS
    cells = []
    with ExitStack() as ending:
        bench = Bench(folder, (None, None, None), ending)
        found = ways(bench.profile)
        # The planner picks among those that are measured, as the agent does.
        profile, _ = aligned([bench.profile] * 2, ("the board", "the worker"), found.worth)
        bench.ask("open", ways=found.worth[1:])
        speeds = []
        for share in shares:
            bench.share.limit(share)
            took = bench.ask("speed", seconds=2.0 if given.quick else 8.0, pause_s=PAUSE_S)
            speed = bench.profile.whole_us / 1e3 / statistics.median(took)
            speeds.append({"share": share, "speed": speed, "whole_ms": _quantiles(took)})
            tell(f"a share of {share:g}: {statistics.median(took):.1f} ms a window, {speed:.3f} times the profile")
            for rtt in rtt_ms:
                for rate in mbit:
                    bench.carrier.change(LINE, Condition(rtt, rate))
                    said = bench.ask("cell", ways=found.worth, warm=WARM_ROUNDS, rounds=rounds)
                    cells.append({"share": share, "rtt_ms": rtt, "mbit": rate, **judged(profile, speed, said)})
                    tell(_cell_line(cells[-1]))
    return {
        "rounds": rounds, "warm_rounds": WARM_ROUNDS, "ways": found.worth, "left_out": found.left_out, "speeds": speeds,
        "cells": cells, "profile": bench.profile._asdict(), **summary(cells),
    }  # fmt: skip


def judged(profile: Any, speed: float, said: dict[str, Any]) -> dict[str, Any]:
    """Hold what the planner picks against what was measured."""
    from agent.core.planner import Demand, Link, Place, crossings, plan

    learned = said["link"]
    rate = math.inf if learned["mbit"] is None else 1e6 * learned["mbit"]
    places = [Place("board", profile, speed), Place("worker", profile)]
    demand = Demand(min_accuracy=None)
    planned = plan(places, [Link(1e6 * learned["rtt_ms"], rate)], demand)
    end = profile.exits[-1]
    predicted = {crossings(c, profile)[0] or LOCAL: c.latency_ns / 1e6 for c in planned.candidates if c.exit == end}
    ms = {way: statistics.median(took) for way, took in said["ms"].items()}
    pick = crossings(planned.pick, profile)[0] or LOCAL
    best = min(ms, key=lambda way: ms[way])
    return {
        "link": learned,
        "ms": ms,
        "p95_ms": {way: float(np.percentile(took, 95)) for way, took in said["ms"].items()},
        "predicted_ms": {way: predicted[way] for way in ms},
        "pick": pick,
        "best": best,
        "ratio": ms[pick] / ms[best],
        "against_one_place": ms[pick] / min(ms[LOCAL], ms[ALL]),
        "away": said["away"],
    }


def summary(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return over all cells how often the pick was as good as the best, and how bad it was."""
    best = [cell["best"] for cell in cells]
    return {
        "best": {way: best.count(way) for way in sorted(set(best), key=lambda way: -best.count(way))},
        "near_pct": 100 * statistics.mean(cell["ratio"] <= NEAR_ENOUGH for cell in cells),
        "worst_ratio": max(cell["ratio"] for cell in cells),
        "worst_against_one_place": max(cell["against_one_place"] for cell in cells),
        "prediction_off_pct": 100 * statistics.median(
            abs(cell["predicted_ms"][way] / ms - 1) for cell in cells for way, ms in cell["ms"].items()
        ),
    }  # fmt: skip


def _cell_line(c: dict[str, Any]) -> str:
    times = ", ".join(f"{way} {ms:.1f} ({c['predicted_ms'][way]:.1f})" for way, ms in c["ms"].items())
    learned = "?" if c["link"]["mbit"] is None else f"{c['link']['mbit']:.2f}"
    return (
        f"{c['share']:4.0%} {c['rtt_ms']:5g} ms ({c['link']['rtt_ms']:.1f}) {c['mbit']:5g} Mbit/s ({learned}): "
        f"{times}; pick {c['pick']}, best {c['best']}, {c['ratio']:.3f}"
    )


def told_grid(r: dict[str, Any]) -> str:
    """Return what the grid says, for people."""
    lines = ["", "the time of the pick over that of the best, by round trip (down) and Mbit/s (across)"]
    rates = sorted({c["mbit"] for c in r["cells"]})
    for s in r["speeds"]:
        lines.append(f"\n{s['share']:.0%} of a core, {s['speed']:.3f} as fast: {s['whole_ms']['p50']:.1f} ms a window")
        lines.append(" " * 10 + "".join(f"{rate:>22g}" for rate in rates))
        for rtt in sorted({c["rtt_ms"] for c in r["cells"]}):
            row = {c["mbit"]: c for c in r["cells"] if (c["share"], c["rtt_ms"]) == (s["share"], rtt)}
            cells = "".join(f"{row[m]['pick'] + ' ' + format(row[m]['ratio'], '.2f'):>22}" for m in rates)
            lines.append(f"{rtt:>7g} ms{cells}")
    lines.append(
        f"\nwithin 5 % of the best: {r['near_pct']:.1f} % of {len(r['cells'])}; at the worst {r['worst_ratio']:.2f} "
        f"times the best, {r['worst_against_one_place']:.2f} times the better of board and worker alone; predictions "
        f"are off by {r['prediction_off_pct']:.1f} % in the median"
    )
    return "\n".join(lines)


# --- the trace


def mobile(seconds: float, seed: int = 0) -> list[tuple[float, Condition]]:
    """Return what a mobile link is from each second on: a Markov chain over rates, and drops of some seconds."""
    rng = np.random.default_rng(seed)
    at, gone_s, rtt_ms, trace = len(RATES_MBIT) // 2, 0, 60.0, []
    for second in range(math.ceil(seconds)):
        if rng.random() > STAYS:
            at = int(np.clip(at + rng.choice([-1, 1]), 0, len(RATES_MBIT) - 1))
        gone_s = max(gone_s - 1, int(rng.integers(2, 6)) if rng.random() < DROPS else 0)
        rtt_ms = float(np.clip(0.8 * rtt_ms + 0.2 * rng.uniform(30, 150) + rng.normal(0, 10), 30, 150))
        rate = 0.0 if gone_s else RATES_MBIT[at] * rng.uniform(0.7, 1.0)
        trace.append((float(second), Condition(round(rtt_ms, 1), round(rate, 3))))
    return trace


def slower(profile: Any, speed: float) -> Any:
    """Return the profile of a machine that is so many times as fast."""
    return profile._replace(
        segments_us=tuple(us / speed for us in profile.segments_us),
        exits=tuple(e._replace(us=e.us / speed) for e in profile.exits),
        fixed_us=profile.fixed_us / speed,
        whole_us=profile.whole_us / speed,
    )


def trace(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Play the same link to every plan that could be the best, and to auto."""
    accuracy, source = accuracies(EXITS)
    seconds = 30.0 if given.quick else TRACE_S
    link = mobile(seconds)
    with ExitStack() as ending:
        bench = Bench(folder, accuracy, ending)
        bench.ask("open", ways=[ALL])
        bench.share.limit(TRACE_SHARE)
        # At the pace of the windows.
        took = bench.ask("speed", seconds=4.0 if given.quick else 10.0, pause_s=2 / WINDOWS_PER_S)
        speed = bench.profile.whole_us / 1e3 / statistics.median(took)
        board = slower(bench.profile, speed)
        third, two_thirds, end = (board.run_us(0, e.after) / 1e3 for e in board.exits)
        # By itself the board is in time with an exit, and not with the end.
        deadline_ms = 0.9 * end
        tell(f"the board takes {third:.0f}, {two_thirds:.0f} and {end:.0f} ms, the deadline is {deadline_ms:.0f} ms")
        right = dict(zip(("third", "two-thirds", ""), accuracy, strict=True))
        plans = [(LOCAL, name) for name in right]
        soonest_ms = min(condition.rtt_ms for _, condition in link) + bench.profile.whole_us / 1e3
        cuts = ways(bench.profile).worth[1:]
        plans += [(cut, "") for cut in cuts if head_ms(board, cut) + soonest_ms < deadline_ms]
        rows = []
        for cut, way_out in [*plans, ("auto", "")]:
            long = seconds if cut != LOCAL else min(seconds, 20.0)
            bench.carrier.play(LINE, link)
            said = bench.ask(
                "play", cut=cut, way_out=way_out, seconds=long, deadline_ms=deadline_ms, speed=speed,
                profile=str(folder / "profile.json"),
            )  # fmt: skip
            rows.append({"cut": cut, "exit": way_out or "end", **became(said, deadline_ms, right)})
            tell(_plan_line(rows[-1]))
            bench.carrier.change(LINE, Condition(1.0))
    *static, auto = rows
    # What is late is worth nothing.
    best = max(static, key=lambda row: row["useful"])
    return {
        "seconds": seconds, "windows_per_s": WINDOWS_PER_S, "share": TRACE_SHARE, "speed": speed,
        "board_ms": [third, two_thirds, end], "deadline_ms": deadline_ms, "accuracies": accuracy, "of": source,
        "link": [(at, *condition) for at, condition in link], "plans": static, "auto": auto, "best": best["cut"],
        "best_exit": best["exit"],
    }  # fmt: skip


def head_ms(board: Any, cut: str) -> float:
    """Return how long the board takes to a cut."""
    segments = board.tensors.index(cut)
    return float(board.run_us(0, segments) / 1e3) if segments else 0.0


def accuracies(path: Path) -> tuple[list[float], str]:
    """Return how right the two exits of a network are, and its end, on people unknown to it; and by what command."""
    found = json.loads(path.read_text("utf-8"))
    return [statistics.fmean(found["data"]["accuracy"][name]) for name in TRAINED], found["command"]


def became(said: dict[str, Any], deadline_ms: float, right: dict[str, float]) -> dict[str, Any]:
    """Sum up what became of windows. `useful`: the mean accuracy where what is late counts as wrong."""
    in_time = [ms <= deadline_ms for ms in said["ms"]]
    accuracy = [right[way_out] for way_out in said["exits"]]
    return {
        "windows": len(in_time),
        "in_time_pct": 100 * statistics.mean(in_time),
        "accuracy": statistics.mean(accuracy),
        "useful": statistics.mean(a if timely else 0.0 for a, timely in zip(accuracy, in_time, strict=True)),
        "ms": {**_quantiles(said["ms"]), "p99": float(np.percentile(said["ms"], 99)), "max": max(said["ms"])},
        "exits": {name or "end": said["exits"].count(name) for name in sorted(set(said["exits"]))},
        "cuts": {name: said["cuts"].count(name) for name in sorted(set(said["cuts"]))},
    }


def _plan_line(row: dict[str, Any]) -> str:
    answered = ", ".join(f"{name} {n}" for name, n in row["exits"].items())
    cuts = ", ".join(f"{name} {n}" for name, n in row["cuts"].items())
    return (
        f"{row['cut']:>8} {row['exit']:<11} {row['in_time_pct']:6.1f} % in time, accuracy {row['accuracy']:.4f}, "
        f"what is late as wrong {row['useful']:.4f}; p99 {row['ms']['p99']:.0f} ms; answered: {answered}; cuts: {cuts}"
    )


def told_trace(r: dict[str, Any]) -> str:
    """Return what the trace says, for people."""
    lines = ["", f"{r['seconds']:g} s of a mobile link, {r['windows_per_s']:g} windows a second, within "
             f"{r['deadline_ms']:.0f} ms; accuracies of {r['of']}"]  # fmt: skip
    lines += [_plan_line(row) for row in [*r["plans"], r["auto"]]]
    lines.append(f"the best plan that never changes: {r['best']} {r['best_exit']}")
    return "\n".join(lines)


# --- slices


def slices(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Send windows through chains of one, two and three boards, and count what comes back."""
    seconds = 6.0 if given.quick else CHAIN_S
    bundle = write_network(folder / "bench")
    profile = folder / "slices.json"
    profiled(bundle, profile, cores()[1])
    rows = []
    for n in (1, 2, 3):
        parts = [bundle] if n == 1 else sliced(bundle, n, profile, folder / f"slices-{n}")
        rows.append({"boards": n, **chain(folder, parts, bundle, seconds)})
        rows[-1]["times"] = rows[-1]["windows_per_s"] / rows[0]["windows_per_s"]
        tell(f"{n} boards: {rows[-1]['windows_per_s']:.1f} windows/s, {rows[-1]['times']:.2f} times one")
    return {"share": CHAIN_SHARE, "seconds": seconds, "batch": BATCH, "rows": rows}


def sliced(bundle: Path, n: int, profile: Path, folder: Path) -> list[Path]:
    """Cut a bundle in `n`; return the folders of its slices, in order."""
    tool = ROOT / "tools" / "export" / ".venv" / "bin" / "har-export"
    command = [tool, "slice", bundle, "--parts", n, "--out", folder, "--profile", profile, "--json"]
    made = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return [Path(one["folder"]) for one in json.loads(made.stdout)["slices"]]


def chain(folder: Path, parts: Sequence[Path], bundle: Path, seconds: float) -> dict[str, Any]:
    """Have a worker on a board of its own for each part, and as many requests under way as keep all of them busy."""
    from mosquitto import Mosquitto

    from agent.adapters.bundle import find_bundle, load_bundle, read_golden
    from agent.adapters.clock import SystemClock
    from agent.adapters.mqtt.requester import Requester
    from agent.adapters.onnx_parts import Parts
    from agent.app.split import LONGEST_ANSWER, PURPOSE
    from agent.core.settings import BrokerSettings, MqttSettings, SplitSettings
    from agent.core.split_wire import TensorAnswer, TensorRequest, decode_tensor_answer, encode_tensor_request

    whole = load_bundle(find_bundle(str(bundle)))
    network = Parts(whole)
    windows = whole.manifest.normalisation.apply(read_golden(whole).window)[:BATCH]
    expected = network.run(ALL, "", windows)
    request = encode_tensor_request(TensorRequest(network.network, ALL, "", "", len(windows), 0, windows.tobytes()))
    everywhere = sorted(os.sched_getaffinity(0))
    with ExitStack() as ending:
        place = Path(ending.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        broker = ending.enter_context(Mosquitto(place))
        names = [f"slice-{i}" for i in range(1, len(parts) + 1)]
        pids = [
            worker(place, name, part, broker.url, ending, after, BATCH)
            for name, part, after in zip(names, parts, [*names[1:], ""], strict=True)
        ]
        settings = SplitSettings(deadline_ms=1e3 * CHAIN_PATIENCE_S, service=names[0])
        requester = Requester(
            "driver", BrokerSettings(url=broker.url), MqttSettings(), settings, SystemClock(), purpose=PURPOSE,
            longest=LONGEST_ANSWER, complain=tell,
        )  # fmt: skip
        ending.callback(requester.close)
        requester.start()
        under_way: dict[bytes, float] = {}
        took: list[float] = []
        exact = True

        def turn(n: int, patience_s: float = CHAIN_PATIENCE_S) -> None:
            """Have `n` requests under way, and take what has come. What takes longer than `patience_s` is given up."""
            nonlocal exact
            while len(under_way) < n:
                correlation = os.urandom(8)
                under_way[correlation] = time.monotonic()
                if not requester.ask(correlation, request):
                    del under_way[correlation]
                    break
            requester.wait(0.1)
            for correlation, began in list(under_way.items()):
                if time.monotonic() - began > patience_s:  # a worker takes the newest first
                    del under_way[correlation]
            for reply in requester.answers():
                began = under_way.pop(reply.correlation, None)
                said = decode_tensor_answer(reply.payload)
                if not isinstance(said, TensorAnswer):
                    raise RuntimeError(f"refused: {said.sentence}")
                exact &= all(
                    np.array_equal(a, np.asarray(b, a.dtype).reshape(a.shape))
                    for a, b in zip(said[1:], (expected.code, expected.logits, expected.novelty), strict=True)
                )
                if began is not None:
                    took.append(1e3 * (time.monotonic() - began))

        ends = time.monotonic() + PATIENCE_S
        while not took:
            turn(1, 1.0)  # perhaps nobody had subscribed
            if time.monotonic() > ends:
                raise RuntimeError(f"nobody answers: {requester.problem or 'silence'}")
        for core in everywhere:
            watch(core, ending)
        for i, pid in enumerate(pids):
            Share(f"bench-slice{i}", everywhere[-1 - i % len(everywhere)], pid, ending).limit(CHAIN_SHARE)
        n = UNDER_WAY * len(parts)
        until = time.monotonic() + seconds / 2
        while time.monotonic() < until:
            turn(n)
        took.clear()
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            turn(n)
        rate = len(took) * len(windows) / (time.monotonic() - began)
    return {"windows_per_s": rate, "requests": len(took), "exact": exact, "ms": _quantiles(took)}


def told_slices(r: dict[str, Any]) -> str:
    """Return what the slices say, for people."""
    lines = ["", f"boards of {r['share']:.0%} of a core in a chain, requests of {r['batch']} windows"]
    lines += [
        f"{row['boards']} boards: {row['windows_per_s']:.1f} windows/s, {row['times']:.2f} times one; a request takes "
        f"{row['ms']['p50']:.0f} ms; bit for bit: {'yes' if row['exact'] else 'no'}"
        for row in r["rows"]
    ]
    return "\n".join(lines)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95)}


def _say(what: Any) -> None:
    """Speak to the parent."""
    print(what if isinstance(what, str) else json.dumps(what), flush=True)  # noqa: T201


def _read(end: "subprocess.Popen[str]") -> Any:
    line = end.stdout.readline()
    if not line:
        raise RuntimeError("one end failed, and said why above")
    return json.loads(line)


def tell(text: str) -> None:
    """Tell how it goes."""
    print(f"bench: {text}", file=sys.stderr, flush=True)  # noqa: T201


ROLES: dict[str, Callable[[Path], None]] = {"far": far_end, "board": board_end}
MEASURED: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "grid": grid, "trace": trace, "slices": slices
}  # fmt: skip
TOLD: dict[str, Callable[[dict[str, Any]], str]] = {"grid": told_grid, "trace": told_trace, "slices": told_slices}

if __name__ == "__main__":
    main()
