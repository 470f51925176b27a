"""Edge against cloud over links of 20, 40 and 80 ms: the table of Sharma & Khasgiwale, and what travels for a window.

    sudo .venv/bin/python tools/bench/cloud_link.py --json docs/results/cloud_link.json

Two network namespaces, which end with this process. In the far one are mosquitto and a `har-agent cloud-worker` for
each row; in the near one ask the agent's own requesters, and the edge's row is the agent's own pipeline. Between them
is a link of each length, without loss or a limit of its rate (links.py). That it is as long as it should be is measured
through the whole run, by TCP handshakes while nothing else is on it.

Every row and link has a window at the cadence of real ones, and one after another, so that caches are as cold as they
are on a board, and no request meets another. Everything shares the cores of one machine. Takes two minutes; `--quick`
a quarter of one.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from links import PORT, Carrier, Condition, Line, configure, namespaced, require

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

LINKS_MS = (20, 40, 80)
EDGE = "har-base"
BUNDLES = {"har-base-float": "uncompressed", EDGE: "compressed", "har-cloud": "bigger"}
ROUNDS, QUICK_ROUNDS = 60, 10
HOP_S = 1.28
SLOT_S = 0.12
"""For each request: the longest link, a model, and time to spare."""
PATIENCE_S = 30.0
LIFETIME_S = 300
"""After which everything is ended, whatever became of it."""
PUBLISHED = [
    {"where": "edge", "model": "compressed LSTM", "inference_ms": 5.01, "invoke_ms": 4.45, "round_trip_ms": 0.56},
    {
        "where": "cloud",
        "model": "uncompressed LSTM",
        "inference_ms": 124.12,
        "invoke_ms": 43.37,
        "round_trip_ms": 80.75,
    },
    {"where": "cloud", "model": "compressed LSTM", "inference_ms": 40.26, "invoke_ms": 4.04, "round_trip_ms": 36.22},
]
"""Sharma & Khasgiwale, "Performing Classification on Edge Nodes using Edge-Centric Distributed Deep Learning and Data
Reduction": an i5 in Docker, and a c2-standard-8."""
PUBLISHED_TRAFFIC = [
    {"system": "Ghosh & Grolinger, published", "data": "MHEALTH", "sent": "autoencoder's code", "less_pct": 80.0},
    {"system": "edge learning, published", "data": "MNIST", "sent": "PCA", "less_pct": 80.0, "accuracy_pct": 90.0},
]
"""Ghosh & Grolinger, "Edge-Cloud Computing for IoT Data Analytics", where no significant accuracy is lost; "When Deep
Learning Meets Edge Computing", with 60,000 examples."""
EQUAL_POINTS = 0.5
"""Accuracies that are no further apart count as equal, as in the lab's own comparison."""


class Question(NamedTuple):
    """A row of the table that is asked of a worker: a bundle, and what goes up to it, `code` or `window`."""

    bundle: str
    payload: str

    @property
    def service(self) -> str:
        """Which worker."""
        return f"{Path(self.bundle).name}-{self.payload}"


def main() -> None:
    """Measure and tell, or, as a child of it, be one end of the links."""
    from agent.errors import ModelContractError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundles", nargs="*", help="what the cloud runs; by default har-base, its float, and har-cloud")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--quick", action="store_true", help="short and coarse")
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    bundles = given.bundles or [name for name in BUNDLES if (ROOT / "models" / name).is_dir()]
    rounds = QUICK_ROUNDS if given.quick else ROUNDS
    if given.role:
        print("here", flush=True)  # noqa: T201  data for the parent, as below
        sys.stdin.readline()
        print(json.dumps(ROLES[given.role](questions(bundles), rounds)), flush=True)  # noqa: T201
        return
    from agent.app.profile import machine

    require("bench-cloud")
    try:
        questions(bundles)
    except ModelContractError as error:
        sys.exit(str(error))
    result = {
        "v": 1,
        "machine": {"cpu": machine()["cpu"], "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        **measure(bundles, quick=given.quick),
    }
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    report(result)


def questions(bundles: Sequence[str]) -> list[Question]:
    """A raw window for every bundle, and codes for those that read the edge's."""
    from agent.core.manifest import NOVELTY

    encoder = _manifest(EDGE).files["encoder.onnx"].sha256
    asked = []
    for name in bundles:
        files = _manifest(name).files
        asked.append(Question(name, "window"))
        if files["encoder.onnx"].sha256 == encoder and NOVELTY in files:
            asked.append(Question(name, "code"))
    return asked


# --- the links


def measure(bundles: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Set up both ends, carry packets between them while the near one asks, and put together what both tell."""
    from agent.runtime.fallback import POLL_S

    with ExitStack() as ending:
        ends = {role: _end(role, bundles, quick, ending) for role in ("far", "near")}
        links = {Line(rtt_ms): Condition(rtt_ms) for rtt_ms in LINKS_MS}
        Carrier(links, ends["far"].pid, ends["near"].pid, ending)
        for end in ends.values():
            end.stdin.write("go\n")
            end.stdin.flush()
        near = _told(ends["near"], "near")
        ends["far"].stdin.close()
        far = _told(ends["far"], "far")
    for row in near["rows"]:
        row["worker_ms"] = worker = far[row.pop("service")]
        row["round_trip_ms"] = {q: ms - worker["p50"] for q, ms in row["round_trip_ms"].items()}
    return {
        "rounds": near["rounds"],
        "poll_ms": 1e3 * POLL_S,
        "cadence_s": near["cadence_s"],
        "links": near["links"],
        "rows": [near["edge"], *near["rows"]],
        "published": PUBLISHED,
        "traffic": traffic(near["rows"]),
    }


def _end(role: str, bundles: Sequence[str], quick: bool, ending: ExitStack) -> "subprocess.Popen[str]":
    """Start one end, in a namespace of its own."""
    end = namespaced([__file__, "--role", role, *(["--quick"] if quick else []), *bundles])
    ending.callback(end.wait, 60)
    # The far one ends its own processes when nobody speaks to it any more.
    ending.callback(end.stdin.close if role == "far" else end.terminate)
    return end


def _told(end: "subprocess.Popen[str]", role: str) -> dict[str, Any]:
    line = end.stdout.readline()
    if not line:
        raise RuntimeError(f"the {role} end failed, and said why above")
    told: dict[str, Any] = json.loads(line)
    return told


# --- the far end


def far_end(asked: Sequence[Question], _rounds: int) -> dict[str, dict[str, float]]:
    """A broker and a worker for each question, until the parent has had enough; return what model calls took there."""
    import paho.mqtt.client as paho
    from mosquitto import Mosquitto, until
    from paho.mqtt.enums import CallbackAPIVersion

    configure(map(Line, LINKS_MS), "far")
    told: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

    def heard(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        said = json.loads(message.payload)
        told[said["service"]].append(said)

    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        broker = ending.enter_context(Mosquitto(folder, f"allow_anonymous true\nlistener {PORT}"))
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.on_message = heard
        client.on_connect = lambda *_: client.subscribe("har/+/worker", 1)
        client.connect(broker.host, broker.port)
        client.loop_start()
        ending.callback(client.loop_stop)
        ending.callback(client.disconnect)
        with ExitStack() as working:
            for question in asked:
                worker = _worker(question, broker.url, folder)
                working.callback(worker.wait, 20)
                working.callback(worker.terminate)
            sys.stdin.read()
        # A first one soon after the start, and the last words, which are of all since then.
        until(lambda: all(len(told[question.service]) > 1 for question in asked))
    return {service: said[-1]["latency_ms"]["infer"] for service, said in told.items()}


def _worker(question: Question, url: str, folder: Path) -> "subprocess.Popen[bytes]":
    config = folder / f"{question.service}.toml"
    config.write_text(
        f'[agent]\nname = "{question.service}"\n[broker.far]\nurl = "{url}"\n[telemetry]\ninterval_s = 3600\n'
        f'[worker]\nservice = "{question.service}"\nbundles = "{question.bundle}"\n'
    )
    arguments = [sys.executable, "-m", "agent", "cloud-worker", "--config", str(config)]
    # In the background it passes a signal on twice, and a second one does not wait for the worker's last words.
    limit = ["timeout", "--foreground", str(LIFETIME_S)]
    return subprocess.Popen([*limit, *arguments], stdout=subprocess.DEVNULL)


# --- the near end


def near_end(asked: Sequence[Question], rounds: int) -> dict[str, Any]:
    """Ask every question over every link, classify here, and look how long the links are, in turn."""
    configure(map(Line, LINKS_MS), "near")
    with ExitStack() as ending:
        lines = [Distance(rtt_ms) for rtt_ms in LINKS_MS]
        askers = [Asker(question, line, ending) for question in asked for line in lines]
        edge = Edge()
        for asker in askers:
            asker.warm_up()
        # Neighbours use different links: what is still on one after an answer has come is of that answer.
        acts: list[Callable[[], None]] = [edge.act, *(x.act for x in askers), *(x.act for x in lines)]
        slot_s = max(SLOT_S, HOP_S / len(acts))
        say(f"{rounds} rounds of {len(acts) * slot_s:.2f} s")
        due = time.monotonic()
        for _ in range(rounds):
            for act in acts:
                time.sleep(max(0.0, due - time.monotonic()))
                act()
                due = max(due + slot_s, time.monotonic())
        return {
            "rounds": rounds,
            "cadence_s": len(acts) * slot_s,
            "links": [x.row() for x in lines],
            "edge": edge.row(),
            "rows": [x.row() for x in askers],
        }


class Distance:
    """A link, seen from here: how long it is, and how many bytes of IP packets each use of it takes."""

    def __init__(self, rtt_ms: int) -> None:
        self.rtt_ms = rtt_ms
        self._line = Line(rtt_ms)
        self.far = self._line.address("far")
        self._took_ms: list[float] = []
        self._user: list[tuple[int, int]] | None = None
        self._seen = self._carried()

    def use(self, bytes_each: list[tuple[int, int]] | None) -> None:
        """Count what is carried from now on, up and down, for the list's owner, up to the next call."""
        now = self._carried()
        if self._user is not None:
            self._user.append((now[0] - self._seen[0], now[1] - self._seen[1]))
        self._user, self._seen = bytes_each, now

    def act(self) -> None:
        """Shake hands with the broker: once there and back, and nobody but the kernels takes part."""
        self.use(None)
        began = time.monotonic()
        socket.create_connection((self.far, PORT), 5).close()
        self._took_ms.append(1e3 * (time.monotonic() - began))

    def row(self) -> dict[str, Any]:
        """What it should be, and what it is."""
        return {"rtt_ms": self.rtt_ms, "measured_ms": _quantiles(self._took_ms)}

    def _carried(self) -> tuple[int, int]:
        counters = psutil.net_io_counters(pernic=True)[self._line.device]
        return counters.bytes_sent, counters.bytes_recv


class Asker:
    """Asks one question over one link, as a board does."""

    def __init__(self, question: Question, line: Distance, ending: ExitStack) -> None:
        from agent.adapters.clock import SystemClock
        from agent.adapters.mqtt.requester import Requester
        from agent.core.settings import BrokerSettings, CloudSettings, MqttSettings

        self._question, self._line = question, line
        self._request = requests(question)
        self._clock = SystemClock()
        self._requester = Requester(
            f"{question.service}-{line.rtt_ms}",
            BrokerSettings(url=f"mqtt://{line.far}:{PORT}"),
            MqttSettings(),
            CloudSettings(service=question.service, deadline_ms=2000),
            self._clock,
            complain=say,
        )
        ending.callback(self._requester.close)
        self._requester.start()
        self._numbers = count()
        self._bytes_each: list[tuple[int, int]] = []
        self._inference_ms: list[float] = []
        self._edge_ms: list[float] = []
        self._request_bytes = self._answer_bytes = 0

    def warm_up(self) -> None:
        """Wait until the worker is there, and connections and caches are as they stay."""
        ends = time.monotonic() + PATIENCE_S
        while self._ask(within_s=1.0) is None:
            if time.monotonic() > ends:
                raise RuntimeError(f"{self._question.service} does not answer: {self._requester.problem or 'silence'}")
            time.sleep(0.1)
        for _ in range(5):
            self._ask()

    def act(self) -> None:
        """Ask once, and write down what it took; a request that stays without an answer is missing from the row."""
        self._line.use(self._bytes_each)
        took = self._ask()
        if took:
            self._inference_ms.append(took[0])
            self._edge_ms.append(took[1])

    def row(self) -> dict[str, Any]:
        """Times and bytes; `round_trip_ms` still holds what the worker's model takes."""
        up, down = np.median(np.asarray(self._bytes_each), axis=0).tolist()
        elsewhere = np.asarray(self._inference_ms) - np.asarray(self._edge_ms)
        return {
            "where": "cloud",
            "model": _named(self._question.bundle),
            "payload": self._question.payload,
            "service": self._question.service,
            "rtt_ms": self._line.rtt_ms,
            "n": len(self._inference_ms),
            "inference_ms": _quantiles(self._inference_ms),
            "edge_ms": _quantiles(self._edge_ms) if any(self._edge_ms) else None,
            "round_trip_ms": _quantiles(elsewhere.tolist()),
            "bytes_up": round(up),
            "bytes_down": round(down),
            "request_bytes": self._request_bytes,
            "answer_bytes": self._answer_bytes,
        }

    def _ask(self, within_s: float = 2.0) -> tuple[float, float] | None:
        """Return what it took from the window to its answer, and what of that a model here took, milliseconds."""
        from agent.core.cloud_wire import CloudRefusal, decode_answer

        correlation = b"%d" % next(self._numbers)
        began_ns = self._clock.monotonic_ns()
        request, edge_ns = next(self._request)
        if not self._requester.ask(correlation, request):
            return None
        while self._clock.monotonic_ns() - began_ns < within_s * 1e9:
            for reply in self._requester.answers():
                if reply.correlation != correlation:
                    continue
                answer = decode_answer(reply.payload)
                if isinstance(answer, CloudRefusal):
                    raise RuntimeError(f"{self._question.service} refuses: {answer.sentence}")
                self._request_bytes, self._answer_bytes = len(request), len(reply.payload)
                return (reply.t_ns - began_ns) / 1e6, edge_ns / 1e6
            time.sleep(0.0005)
        return None


def requests(question: Question) -> Iterator[tuple[bytes, int]]:
    """Requests with golden windows, or their codes as many as the context looks at; and what the encoder here took."""
    from agent.adapters.bundle import find_bundle, load_bundle, read_golden
    from agent.app.compose import open_model
    from agent.core.cloud_wire import NO_SPACE, Kind, Request, code_space, encode_request

    bundle = load_bundle(find_bundle(question.bundle))
    manifest, windows = bundle.manifest, read_golden(bundle).window
    rate_hz = manifest.input.rate_hz
    if question.payload == "window":
        for i in count():
            yield encode_request(Request(Kind.WINDOW, NO_SPACE, rate_hz, samples=windows[i % len(windows)])), 0
    model = open_model(EDGE)
    encoder, space = model.encoder, code_space(manifest.files["encoder.onnx"].sha256)
    n = manifest.context.windows if manifest.context else 1
    codes: deque[Any] = deque(np.zeros((n, manifest.code.bytes), np.int8), maxlen=n)
    for i in count():
        window = manifest.normalisation.apply(windows[i % len(windows)][np.newaxis])
        began_ns = time.monotonic_ns()
        (code,) = encoder.run(None, {"window": window})
        took_ns = time.monotonic_ns() - began_ns
        codes.append(code.reshape(-1))
        yield encode_request(Request(Kind.CODE, space, rate_hz, codes=np.stack(codes))), took_ns


class Edge:
    """The edge's row: a hop of samples into the agent's pipeline, its label out."""

    def __init__(self) -> None:
        from agent.adapters.bundle import read_golden
        from agent.app.compose import open_model
        from agent.pipeline import Pipeline

        opened = open_model(EDGE)
        self._model = TimedModel(opened)
        self._pipeline = Pipeline(self._model, opened.bundle.manifest)
        self._hop, self._rate_hz = opened.bundle.manifest.input.hop, opened.bundle.manifest.input.rate_hz
        self._signal = read_golden(opened.bundle).window.reshape(-1, 6)
        self._numbers = count()
        self._inference_ms: list[float] = []
        self._invoke_ms: list[float] = []
        while not self._feed():
            pass

    def act(self) -> None:
        """Classify once."""
        self._model.took_ns = 0
        began_ns = time.monotonic_ns()
        if not self._feed():
            raise RuntimeError("a hop of samples gives no label here")
        self._inference_ms.append((time.monotonic_ns() - began_ns) / 1e6)
        self._invoke_ms.append(self._model.took_ns / 1e6)

    def row(self) -> dict[str, Any]:
        """As those of askers."""
        rest = np.asarray(self._inference_ms) - np.asarray(self._invoke_ms)
        return {
            "where": "edge",
            "model": _named(EDGE),
            "n": len(self._inference_ms),
            "inference_ms": _quantiles(self._inference_ms),
            "edge_ms": _quantiles(self._invoke_ms),
            "round_trip_ms": _quantiles(rest.tolist()),
            "bytes_up": 0,
            "bytes_down": 0,
        }

    def _feed(self) -> bool:
        from agent.records import Prediction, SampleBatch

        at = next(self._numbers) * self._hop
        t_ns = (np.arange(at, at + self._hop) * (1e9 / self._rate_hz)).astype(np.int64)
        values = np.take(self._signal, np.arange(at, at + self._hop), axis=0, mode="wrap")
        return any(
            isinstance(event, Prediction) for event in self._pipeline.feed([SampleBatch("edge", t_ns, values, at)])
        )


class TimedModel:
    """A model that adds up what its calls take."""

    def __init__(self, model: Any) -> None:
        self.id, self.labels, self.context_windows = model.id, model.labels, model.context_windows
        self._model = model
        self.took_ns = 0

    def infer(self, windows: Any) -> Any:
        """As the model's own."""
        return self._timed(self._model.infer, windows)

    def contextualise(self, codes: Any) -> Any:
        """As the model's own."""
        return self._timed(self._model.contextualise, codes)

    def _timed(self, call: Callable[[Any], Any], argument: Any) -> Any:
        began_ns = time.monotonic_ns()
        try:
            return call(argument)
        finally:
            self.took_ns += time.monotonic_ns() - began_ns


ROLES: dict[str, Callable[[Sequence[Question], int], dict[str, Any]]] = {"far": far_end, "near": near_end}


# --- traffic


def traffic(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bytes for a window, and how right what reads them is: the lab's results beside requests as they were sent.

    `less_pct`: than what is raw there; of the coded bytes where there are any.
    """
    from agent.core.cloud_wire import Kind, request_bytes

    data, code_bytes = "UCI HAR", _manifest(EDGE).code.bytes
    raw = _lab("reduction", data, "raw int16 samples of a hop", family="int16 samples")
    code = _lab("reduction", data, f"{EDGE}'s code", family="the agent's code", bytes=code_bytes)
    enough = code["accuracy_pct"] - EQUAL_POINTS
    steps = {row["detail"] for row in _results("reduction") if row["family"] == "int8 differences"}
    all_differences = [
        _lab("reduction", data, f"int8 differences, {step}", family="int8 differences", detail=step) for step in steps
    ]
    differences = min((x for x in all_differences if x["accuracy_pct"] >= enough), key=lambda x: x["coded"])
    most = max(row["n"] for row in _results("edge_learning"))
    images, pca = (
        _lab("edge_learning", f"MNIST, {most:,} images", sent, method=method, n=most)
        for sent, method in (("raw images", "cloud-only"), ("PCA", "PCA"))
    )
    n_codes = context.windows if (context := _manifest(EDGE).context) else 1
    one = {"data": data, "sent": "a request with one code", "bytes": request_bytes(Kind.CODE, 1, code_bytes)}
    what = {"code": f"{n_codes} codes, for the context", "window": "a raw window"}
    first = {row["payload"]: row for row in reversed(rows)}
    requested = [
        {"data": data, "sent": f"a request with {what[payload]}", "bytes": row["request_bytes"], "up": row["bytes_up"]}
        for payload, row in sorted(first.items())
    ]
    here = [
        *({**row, "less_pct": _less(row, images)} for row in (images, pca)),
        *({**row, "less_pct": _less(row, raw)} for row in (raw, differences, code, one, *requested)),
    ]
    return [*PUBLISHED_TRAFFIC, *({"system": "here", **row} for row in here)]


def _less(row: dict[str, Any], raw: dict[str, Any]) -> float:
    return 100 * (1 - row.get("coded", row["bytes"]) / raw["bytes"])


def _lab(result: str, data: str, sent: str, **which: object) -> dict[str, Any]:
    """One line of a result of the lab, over its seeds."""
    rows = [row for row in _results(result) if all(row[key] == value for key, value in which.items())]
    accuracy = [100 * row["accuracy"] for row in rows]
    first = rows[0]
    return {
        "data": data,
        "sent": sent,
        "bytes": first["bytes"] if "bytes" in first else first["traffic_bytes"] / first["n"],
        **({"coded": statistics.mean(row["coded"] for row in rows)} if "coded" in first else {}),
        "accuracy_pct": statistics.mean(accuracy),
        "accuracy_sd": statistics.stdev(accuracy),
    }


def _results(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / "docs" / "results" / "lab" / f"{name}.json").read_text())["data"]
    return rows


def _named(bundle: str) -> str:
    name = Path(bundle).name
    return f"{BUNDLES[name]}, {name}" if name in BUNDLES else name


def _manifest(bundle: str) -> Any:
    from agent.adapters.bundle import find_bundle, load_bundle

    return load_bundle(find_bundle(bundle)).manifest


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        raise RuntimeError("nothing was answered, so there is nothing to tell")
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95)}


def say(text: str) -> None:
    """Tell how it goes."""
    print(f"bench: {text}", file=sys.stderr, flush=True)  # noqa: T201


def report(r: dict[str, Any]) -> None:
    """Print what was measured."""

    def ms(value: dict[str, float] | None) -> str:
        return f"{value['p50']:.2f} / {value['p95']:.2f}" if value else ""

    lines = [f"link of {x['rtt_ms']} ms: {ms(x['measured_ms'])} measured, median / p95" for x in r["links"]]
    lines += ["", "inference, model here, model there, rest (ms, median / p95), bytes up / down"]
    for row in r["rows"]:
        name = f"{row['where']} {row.get('rtt_ms', '')} {row['model']} {row.get('payload', '')} (n {row['n']})"
        times = [ms(row.get(key)) for key in ("inference_ms", "edge_ms", "worker_ms", "round_trip_ms")]
        bytes_each = f"{row['bytes_up']:>6} / {row['bytes_down']}"
        lines.append(f"{name:52}" + "".join(f"{x:>17}" for x in times) + bytes_each)
    lines.append("")
    for x in r["traffic"]:
        size = f"{x['bytes']:.0f} bytes" if "bytes" in x else ""
        coded = f", {x['coded']:.0f} coded" if "coded" in x else ""
        right = f", {x['accuracy_pct']:.1f} % right" if "accuracy_pct" in x else ""
        lines.append(f"{x['system']}: {x['data']}, {x['sent']}: {size}{coded}, {x['less_pct']:.1f} % less{right}")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
