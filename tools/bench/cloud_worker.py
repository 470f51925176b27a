"""What cloud workers answer: requests with codes of har-base a second, of one worker and of two.

    .venv/bin/python tools/bench/cloud_worker.py --json docs/results/cloud_worker.json

Each worker is `har-agent cloud-worker`, pinned to a core of its own; the broker is mosquitto on loopback. A client in
this process keeps so many requests under way that no worker ever waits for one. What else the machine does takes from
the clock's rate, so what counts is answers per second of a worker's own CPU time: what it gives with a core for itself.

Broker and client need a core, too. On a machine of two, two workers share theirs with them, which costs a worker a
fifth of its speed, by its caches. So they are compared with one worker that shares its core with both: all of it on one
core against all of it on two. Ends by itself after two minutes; `--quick` a quarter of it.
"""

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

BUNDLE = "har-base"
REQUESTS = "har/cloud/har-cloud/request"
ANSWERS = "har/bench/cloud/answer"
UNDER_WAY = 512
"""Requests of a worker that are not answered: two full batches."""
AT_ONCE = 64
PACED_HZ = 500
LIFETIME_S = 300
"""After which a worker is ended, whatever became of this process."""
PUBLISH = 0x30


def main() -> None:
    """Measure, and tell."""
    from agent.app.profile import machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--quick", action="store_true", help="short and coarse")
    given = parser.parse_args()
    result = {"v": 1, "machine": {"cpu": machine()["cpu"], "cores": os.cpu_count()}, **measure(quick=given.quick)}
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    report(result)


def measure(*, quick: bool) -> dict[str, Any]:
    """One worker and two, in turn, so that what else the machine does meets all."""
    payloads = requests()
    seconds, rounds = (2.0, 1) if quick else (6.0, 5)
    shared = (os.cpu_count() or 1) <= 2
    cases = {"one": (1, False), "one_like_two": (1, shared), "two": (2, shared)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (workers, beside) in cases.items():
            say(name.replace("_", " "))
            found[name].append(saturated(workers, payloads, seconds, shared=beside))
    say(f"{PACED_HZ} requests a second")
    middle = {name: _middle(rows) for name, rows in found.items()}
    return {
        "bundle": BUNDLE,
        "request_bytes": len(payloads[0]),
        "seconds": seconds,
        "rounds": rounds,
        "shared": shared,
        **middle,
        "scaling": middle["two"]["answers_per_cpu_s"] / middle["one_like_two"]["answers_per_cpu_s"],
        "paced": paced(payloads, seconds),
    }


def requests() -> list[bytes]:
    """Requests with the codes of golden windows, as many as the context looks at."""
    from agent.adapters.bundle import read_golden
    from agent.app.compose import open_model
    from agent.core.cloud_wire import Kind, Request, code_space, encode_request

    model = open_model(BUNDLE)
    codes = read_golden(model.bundle).code
    codes = codes.reshape(len(codes), -1)
    space = code_space(model.bundle.manifest.files["encoder.onnx"].sha256)
    seen = [np.roll(codes, -i, axis=0)[np.arange(model.context_windows) % len(codes)] for i in range(AT_ONCE)]
    return [encode_request(Request(Kind.CODE, space, 50.0, codes=each)) for each in seen]


def saturated(workers: int, payloads: Sequence[bytes], seconds: float, *, shared: bool) -> dict[str, Any]:
    """Keep `workers` as busy as they can be. `shared`: broker and client run on their cores."""
    with _Bench(workers, shared=shared) as bench:
        burst = b"".join(bench.request(payload, b"bench") for payload in payloads)
        under_way = workers * UNDER_WAY
        sent = answered = 0

        def go_on(for_s: float) -> None:
            nonlocal sent, answered
            ends = time.monotonic() + for_s
            while time.monotonic() < ends:
                while sent - answered <= under_way - len(payloads):
                    bench.wire.sendall(burst)
                    sent += len(payloads)
                answered += len(bench.answers())

        go_on(1.0)
        before, began, counted = bench.cpu_s(), time.monotonic(), answered
        go_on(seconds)
        elapsed, counted = time.monotonic() - began, answered - counted
        spent = {name: after - before[name] for name, after in bench.cpu_s().items()}
    busy = sum(spent[f"worker {i}"] for i in range(workers))
    return {
        "answers": counted,
        "answers_per_s": counted / elapsed,
        "worker_us": 1e6 * busy / counted,
        "broker_us": 1e6 * spent["broker"] / counted,
        "client_us": 1e6 * spent["client"] / counted,
        # Of all workers together.
        "answers_per_cpu_s": workers * counted / busy,
        "cpu_pct": {name: 100 * s / elapsed for name, s in spent.items()},
    }


def paced(payloads: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """What one request takes there and back while a worker has time."""
    with _Bench(1, shared=False) as bench:
        n = round(PACED_HZ * seconds)
        sent, took = {}, []
        began = time.monotonic()
        while len(took) < n and time.monotonic() - began < seconds + 5:
            due = min(n, round((time.monotonic() - began) * PACED_HZ))
            for i in range(len(sent), due):
                sent[b"%05d" % i] = time.monotonic()
                bench.wire.sendall(bench.request(payloads[i % len(payloads)], b"%05d" % i))
            took += [time.monotonic() - sent[correlation] for correlation in bench.answers(0.001)]
    ms = np.asarray(took) * 1e3
    return {
        "requests_per_s": PACED_HZ,
        "sent": n,
        "answered": len(took),
        "round_trip_ms": {f"p{q}": float(np.percentile(ms, q)) for q in (50, 95, 99)},
    }


class _Bench:
    """A broker, workers on cores of their own, and a client of MQTT 5 that is cheaper than any library."""

    def __init__(self, workers: int, *, shared: bool) -> None:
        self._workers, self._shared = workers, shared
        self._ending = ExitStack()
        self._rest = b""
        self._processes: dict[str, psutil.Process] = {"client": psutil.Process()}

    def __enter__(self) -> Self:
        from mosquitto import Mosquitto

        with ExitStack() as ending:
            folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))
            broker = ending.enter_context(Mosquitto(folder))
            cores = sorted(os.sched_getaffinity(0))
            others = set(cores[: self._workers] if self._shared else cores[self._workers :] or cores)
            ending.callback(os.sched_setaffinity, 0, set(cores))
            os.sched_setaffinity(0, others)
            self._processes["broker"] = process = psutil.Process(_pid_at(broker.port))
            process.cpu_affinity(sorted(others))
            self.wire = ending.enter_context(socket.create_connection((broker.host, broker.port)))
            self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.wire.sendall(_packet(0x10, _text(b"MQTT") + b"\x05\x02\x00\x00\x00" + _text(b"bench")))
            self.wire.recv(1024)
            self.wire.sendall(_packet(0x82, b"\x00\x01\x00" + _text(ANSWERS.encode()) + b"\x00"))
            self.wire.recv(1024)
            for i in range(self._workers):
                self._processes[f"worker {i}"] = self._start(i, folder, broker.url, cores[i % len(cores)], ending)
            self._ending = ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each process so far."""
        return {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}

    def request(self, payload: bytes, correlation: bytes) -> bytes:
        """A PUBLISH at QoS 0 that wants an answer."""
        properties = b"\x02\x00\x00\x00\x0a\x08" + _text(ANSWERS.encode()) + b"\x09" + _text(correlation)
        return _packet(PUBLISH, _text(REQUESTS.encode()) + _length(len(properties)) + properties + payload)

    def answers(self, timeout_s: float = 5.0) -> list[bytes]:
        """Correlations of what has come; waits for some."""
        self.wire.settimeout(timeout_s)
        try:
            self._rest += self.wire.recv(1 << 18)
        except TimeoutError:
            return []
        data, at, found = self._rest, 0, []
        while len(data) - at > 2:
            size, head = data[at + 1], 2
            if size & 0x80:
                size, head = (size & 0x7F) | data[at + 2] << 7, 3
            if len(data) - at < head + size:
                break
            if data[at] & 0xF0 == PUBLISH:
                properties = at + head + 2 + len(ANSWERS)
                payload = properties + 1 + data[properties]
                if data[payload : payload + 4] != b"HA\x01\x00":
                    raise RuntimeError(f"a worker refuses: {data[payload + 4 : at + head + size]!r}")
                found.append(data[properties + 4 : payload])
            at += head + size
        self._rest = data[at:]
        return found

    def _start(self, i: int, folder: Path, url: str, core: int, ending: ExitStack) -> psutil.Process:
        config = folder / f"worker-{i}.toml"
        config.write_text(f'[agent]\nname = "worker-{i}"\n[broker.a]\nurl = "{url}"\n[worker]\nbundles = "{BUNDLE}"\n')
        arguments = [sys.executable, "-m", "agent", "cloud-worker", "--config", str(config)]
        with (folder / f"worker-{i}.log").open("ab") as log:
            outer = subprocess.Popen(["timeout", str(LIFETIME_S), *arguments], stdout=log, stderr=log)
        ending.callback(outer.wait, 20)
        ending.callback(outer.terminate)
        # The only worker that has not answered yet: requests are shared, and each gets some.
        request = self.request(requests()[0], b"start")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            inner = psutil.Process(outer.pid).children()
            self.wire.sendall(request)
            if len(inner) == 1 and self.answers(0.2) and _connections(inner[0]):
                inner[0].cpu_affinity([core])
                return inner[0]
        raise RuntimeError((folder / f"worker-{i}.log").read_text())


def _connections(process: psutil.Process) -> bool:
    return any(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp"))


def _pid_at(port: int) -> int:
    """The process that listens on a port of the loopback."""
    return next(
        c.pid
        for c in psutil.net_connections("tcp")
        if c.pid and c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port
    )


def _packet(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _length(len(body)) + body


def _length(n: int) -> bytes:
    out = b""
    while True:
        n, digit = n >> 7, n & 0x7F
        out += bytes([digit | 0x80 if n else digit])
        if not n:
            return out


def _text(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _middle(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round with the middle rate by CPU time."""
    middle = statistics.median_low([row["answers_per_cpu_s"] for row in rows])
    return next(row for row in rows if row["answers_per_cpu_s"] == middle)


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr)  # noqa: T201


def report(result: dict[str, Any]) -> None:
    """Tell what was found."""
    for name in ("one", "one_like_two", "two"):
        row = result[name]
        shares = ", ".join(f"{who} {pct:.0f} %" for who, pct in row["cpu_pct"].items())
        say(
            f"{name.replace('_', ' ')}: {row['answers_per_cpu_s']:.0f} answers per second of worker CPU, "
            f"{row['answers_per_s']:.0f} by the clock; µs a request: worker {row['worker_us']:.0f}, "
            f"broker {row['broker_us']:.0f}, client {row['client_us']:.0f}; CPU: {shares}"
        )
    trip = result["paced"]["round_trip_ms"]
    say(f"two against one: {result['scaling']:.2f}")
    say(f"at {PACED_HZ} a second: {trip['p50']:.2f} ms there and back, p95 {trip['p95']:.2f}, p99 {trip['p99']:.2f}")


if __name__ == "__main__":
    main()
