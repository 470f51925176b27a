"""The live agent against the bare libraries that it is made of, in one run, with a real broker on loopback.

    .venv/bin/python tools/bench/run.py --json docs/results/run.json

One serial stream: CPU, memory and the time to the broker's acknowledgement of `har-agent run` on a pty at 50 Hz. The
gateway: devices that send 64 samples a message, and the CPU a window beside the sum of what paho needs to receive that
message, ONNX Runtime for that window in a batch of 256, and paho to publish a prediction at QoS 1, each measured alone
at the same pace. CPU times, because what else runs counts little there. Takes about six minutes; `--quick` one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import psutil
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

BATCH = 64
HOP_S = BATCH / 50.0
CURVE = (1, 10, 100, 250, 500, 1000, 1500, 2000)
GATEWAY = 1500


def main() -> None:
    """Run the whole comparison, or, as a child of it, one role."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--quick", action="store_true", help="short and coarse")
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--graphs", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        print(json.dumps(ROLES[given.role](given)))  # noqa: T201  data for the parent
        return
    from agent.app.profile import machine

    result = {"v": 1, "machine": {"cpu": machine()["cpu"], "cores": os.cpu_count()}, **measure(quick=given.quick)}
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    report(result)


def measure(*, quick: bool) -> dict[str, Any]:
    """Run everything."""
    from mosquitto import Mosquitto

    seconds, warm = (8.0, 4.0) if quick else (25.0, 6.0)
    with tempfile.TemporaryDirectory() as name, Mosquitto(Path(name)) as broker:
        folder = Path(name)
        say("one serial stream at 50 Hz")
        serial = serial_stream(folder, broker.port, 20.0 if quick else 90.0)
        say("bare ONNX Runtime in batches, bare paho receiving and publishing")
        floor = bare(broker.port, seconds)
        curve = []
        for devices in (1, 100, GATEWAY) if quick else CURVE:
            say(f"gateway, {devices} devices")
            curve.append(gateway(folder, broker.port, devices, warm, seconds))
    at = next(row for row in curve if row["devices"] == GATEWAY)
    total = sum(floor[k] for k in ("receive_us", "infer_us", "publish_us"))
    return {
        "serial": serial,
        "bare": {**floor, "total_us": total},
        "curve": curve,
        "gateway": {**at, "ratio": at["cpu_us_per_window"] / total},
    }


def serial_stream(folder: Path, port: int, seconds: float) -> dict[str, Any]:
    """One sensor on a pty; the floor is a process with the same libraries loaded, connected and idle."""
    from live import Agent, Listener, Sensor, wait_until

    with _closing(Sensor(folder)) as sensor, _closing(Listener(port, "bench-serial")) as listener:
        agent = Agent(folder, _broker(port) + f'[serial.imu]\nport = "{sensor.path}"\ntime = "ms"\n')
        agent.start()
        try:
            wait_until(lambda: listener.count() >= 4, 30, "predictions")
            process = psutil.Process(agent.process.pid)
            cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
            time.sleep(seconds)
            cpu = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
            rss = process.memory_info().rss
        finally:
            agent.stop()
        telemetry = agent.status()["telemetry"]
        idle = json.loads(_role("idle", port=port, graphs=_graphs(folder)))
        return {
            "seconds": seconds,
            "cpu_pct": 100 * cpu,
            "rss_mib": rss / 2**20,
            "floor_rss_mib": idle["rss_mib"],
            "over_floor_mib": rss / 2**20 - idle["rss_mib"],
            "puback_ms": telemetry["latency_ms"]["delivered"],
            "windows": telemetry["windows"],
            "holes": len(listener.holes()),
        }


def gateway(folder: Path, port: int, devices: int, warm_s: float, seconds: float) -> dict[str, Any]:
    """`devices` that send 64 samples a message each, staggered."""
    from live import Agent, wait_until

    agent = Agent(
        folder,
        _broker(port)
        + '[mqtt_in]\nfilter = "imu/{device}/samples"\nmax_devices = 5000\n'
        + f"[telemetry]\ninterval_s = {seconds:g}\n",
        name=f"gateway-{devices}",
    )
    agent.start()
    load = ears = None
    try:
        wait_until(lambda: agent.status().get("health"), 30, "a status")
        ears = _spawn("ears", port=port, devices=devices, seconds=warm_s + 2 * HOP_S + seconds)
        load = _spawn("load", port=port, devices=devices, seconds=warm_s + 2 * HOP_S + seconds + 2)
        time.sleep(warm_s + 2 * HOP_S)
        process = psutil.Process(agent.process.pid)
        before, cpu, began = agent.status(), sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(seconds)
        cpu = sum(process.cpu_times()[:2]) - cpu
        elapsed = time.monotonic() - began
        heard, sent = (json.loads(child.communicate(timeout=60)[0]) for child in (ears, load))
    finally:
        for child in (ears, load):
            if child and child.poll() is None:
                child.kill()
        agent.stop()
    del before
    telemetry = agent.status()["telemetry"]
    windows = devices * elapsed / HOP_S
    return {
        "devices": devices,
        "cpu_pct": 100 * cpu / elapsed,
        "cpu_us_per_window": 1e6 * cpu / windows,
        "rss_mib": telemetry["rss_bytes"] / 2**20,
        "puback_ms": telemetry["latency_ms"]["delivered"],
        "sensor_to_subscriber_ms": heard["latency_ms"],
        "messages_sent": sent["messages"],
        "predictions": telemetry["windows"],
        "expected": sum(max(0, n - 1) for n in sent["by_device"]),
        "samples_dropped": telemetry["drops"]["input"],
        "ids_missing": heard["missing"],
    }


def bare(port: int, seconds: float) -> dict[str, float]:
    """CPU microseconds a message, or a window, of each library alone, at the gateway's pace."""
    receiver = _spawn("receive", port=port, devices=GATEWAY, seconds=seconds)
    load = _spawn("load", port=port, devices=GATEWAY, seconds=seconds + 3)
    received = json.loads(receiver.communicate(timeout=120)[0])
    load.communicate(timeout=60)
    published = json.loads(_role("publish", port=port, devices=GATEWAY, seconds=seconds))
    inferred = json.loads(_role("infer", seconds=min(seconds, 10)))
    return {"receive_us": received["us"], "infer_us": inferred["us"], "publish_us": published["us"]}


def role_load(given: argparse.Namespace) -> dict[str, Any]:
    """Send har1 messages of 64 samples, each device at its own moment of every 1.28 s; device time is this clock."""
    from agent.core.decoders.har1 import encode_har1

    signal = _signal()
    client = _client(given.port, f"load-{os.getpid()}")
    by_device = [0] * given.devices
    began = time.monotonic()
    scale = (1 / 4096, 1 / 1024)
    counts = np.rint(signal * np.repeat([4096, 1024], 3)).astype(np.int16)
    turn = 0
    while time.monotonic() - began < given.seconds:
        for device in range(given.devices):
            due = began + (turn + device / given.devices) * HOP_S
            wait = due - time.monotonic()
            if wait > 0.002:
                time.sleep(wait)
            at = (turn * BATCH + device * 997) % (len(counts) - BATCH)
            # Its last sample is taken now.
            t_us = round((due - (BATCH - 1) * 0.02) * 1e6)
            frame = encode_har1(turn * BATCH, t_us, 20_000_000, counts[at : at + BATCH], *scale)
            client.publish(f"imu/d{device}/samples", frame, 0)
            by_device[device] += 1
        turn += 1
    _leave(client)
    return {"messages": sum(by_device), "by_device": by_device}


def role_ears(given: argparse.Namespace) -> dict[str, Any]:
    """Subscribe to all predictions: the time from a window's last sample to here, and ids that are missing."""
    latency: list[float] = []
    numbers: dict[str, list[int]] = {}

    def heard(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        now = time.monotonic()
        # Parsing 1,200 messages a second would load the machine that is measured: two fields are cut out.
        stream, _, seq = _cut(message.payload, b'"id":"').rpartition(b":")
        numbers.setdefault(stream.decode(), []).append(int(seq))
        latency.append(now - float(_cut(message.payload, b'"t1":')) + 0.02)

    client = _client(given.port, f"ears-{os.getpid()}", heard, "har/+/prediction")
    time.sleep(given.seconds)
    _leave(client)
    missing = sum(max(n) + 1 - len(set(n)) for n in numbers.values())
    return {"latency_ms": _quantiles(latency[len(latency) // 4 :]), "missing": missing, "messages": len(latency)}


def role_receive(given: argparse.Namespace) -> dict[str, Any]:
    """Bare paho: count messages."""
    n = 0

    def heard(*_: Any) -> None:
        nonlocal n
        n += 1

    client = _client(given.port, f"receive-{os.getpid()}", heard, "imu/+/samples")
    while not n:
        time.sleep(0.05)
    n, cpu = 0, time.process_time()
    time.sleep(given.seconds)
    cpu, counted = time.process_time() - cpu, n
    _leave(client)
    return {"us": 1e6 * cpu / counted, "messages": counted}


def role_publish(given: argparse.Namespace) -> dict[str, Any]:
    """Bare paho: publish predictions at QoS 1 at the gateway's pace, in groups of 20 ms as the agent does."""
    payload = b"x" * 520
    client = _client(given.port, f"publish-{os.getpid()}")
    group = max(1, round(given.devices / HOP_S * 0.02))
    began, cpu, n = time.monotonic(), time.process_time(), 0
    while time.monotonic() - began < given.seconds:
        for device in range(group):
            client.publish(f"har/d{device}/bare", payload, 1)
        n += group
        time.sleep(max(0.0, began + n / (given.devices / HOP_S) - time.monotonic()))
    cpu = time.process_time() - cpu
    _leave(client)
    return {"us": 1e6 * cpu / n, "messages": n}


def role_infer(given: argparse.Namespace) -> dict[str, Any]:
    """Bare ONNX Runtime: what a window is scored with, and the context, on 256 windows."""
    from agent.app.bench import bare
    from agent.app.compose import open_model

    call = bare(open_model("har-base"), 256, context=True)
    times = []
    end = time.monotonic() + given.seconds
    while time.monotonic() < end:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return {"us": 1e6 * statistics.median(times) / 256}


def role_idle(given: argparse.Namespace) -> dict[str, Any]:
    """What the libraries alone weigh: imported, sessions open, connected, database and port libraries loaded.

    Of the agent, only what opens a session.
    """
    import sqlite3

    import serial

    from agent.adapters.onnx_model import open_session

    client = _client(given.port, f"idle-{os.getpid()}")
    sessions = [open_session(path.name, path.read_bytes()) for path in given.graphs.iterdir()]
    rss = psutil.Process().memory_info().rss / 2**20
    _leave(client)
    return {"rss_mib": rss, "loaded": [sqlite3.sqlite_version, serial.__version__, len(sessions)]}


ROLES = {
    "load": role_load,
    "ears": role_ears,
    "receive": role_receive,
    "publish": role_publish,
    "infer": role_infer,
    "idle": role_idle,
}


def report(r: dict[str, Any]) -> None:
    """Print what was measured."""
    s, g = r["serial"], r["gateway"]
    lines = [
        "",
        f"one serial stream at 50 Hz, {s['seconds']:g} s",
        f"  CPU                          {s['cpu_pct']:.2f} % of a core",
        f"  memory                       {s['rss_mib']:.1f} MiB, {s['over_floor_mib']:+.1f} over the libraries alone",
        f"  last sample to PUBACK        {_spoken(s['puback_ms'])}",
        "",
        f"gateway, {g['devices']} devices, 64 samples a message",
        f"  bare receive + infer + publish  {r['bare']['receive_us']:.1f} + {r['bare']['infer_us']:.1f} + "
        f"{r['bare']['publish_us']:.1f} = {r['bare']['total_us']:.1f} µs of CPU a window",
        f"  agent                        {g['cpu_us_per_window']:.1f} µs a window, {g['ratio']:.2f} times that",
        "",
        "devices  CPU %  µs a window  RSS MiB  PUBACK p50/p99 ms  to subscriber p99 ms  dropped  missing",
    ]
    lines += [
        f"{c['devices']:>7}  {c['cpu_pct']:>5.1f}  {c['cpu_us_per_window']:>11.1f}  {c['rss_mib']:>7.1f}  "
        f"{c['puback_ms'].get('p50', 0):>8.1f}/{c['puback_ms'].get('p99', 0):<8.1f}  "
        f"{c['sensor_to_subscriber_ms'].get('p99', 0):>20.1f}  {c['samples_dropped']:>7}  {c['ids_missing']:>7}"
        for c in r["curve"]
    ]
    print("\n".join(lines))  # noqa: T201


def say(text: str) -> None:
    """Tell how it goes."""
    print(f"bench: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _spoken(quantiles: dict[str, float]) -> str:
    return "  ".join(f"{name} {ms:.2f}" for name, ms in quantiles.items()) + " ms"


def _client(port: int, name: str, on_message: Any = None, topic: str = "") -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(1000)
    ready = threading.Event()
    client.on_subscribe = lambda *_: ready.set()
    client.on_connect = lambda c, *_: c.subscribe(topic, 0) if topic else ready.set()
    if on_message:
        client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert ready.wait(10)
    return client


def _leave(client: paho.Client) -> None:
    client.disconnect()
    client.loop_stop()


def _signal() -> np.ndarray:
    """Five minutes of a simulated person: activities change as seldom as people change them."""
    from live import samples

    return samples(300, "walking:40,standing:25,sitting:45,walking_upstairs:20,laying:30")[:, 1:]


def _cut(payload: bytes, after: bytes) -> bytes:
    start = payload.index(after) + len(after)
    ends = [i for i in (payload.find(b'"', start), payload.find(b",", start)) if i >= 0]
    return payload[start : min(ends)]


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ms = np.sort(np.asarray(seconds)) * 1e3
    return {f"p{q}": float(ms[min(len(ms) - 1, int(len(ms) * q / 100))]) for q in (50, 95, 99)} | {"max": float(ms[-1])}


def _graphs(folder: Path) -> Path:
    """Write what the agent opens sessions of, the context included, to files of their own; return their folder."""
    from agent.adapters.bundle import find_bundle, load_bundle
    from agent.adapters.onnx_model import scoring_graphs
    from agent.core.manifest import CONTEXT

    bundle = load_bundle(find_bundle("har-base"))
    graphs = [*scoring_graphs(bundle).values(), *([bundle.contents[CONTEXT]] if bundle.manifest.context else [])]
    where = folder / "graphs"
    where.mkdir()
    for i, graph in enumerate(graphs):
        (where / f"{i}.onnx").write_bytes(graph)
    return where


def _broker(port: int) -> str:
    return f'[broker.local]\nurl = "mqtt://127.0.0.1:{port}"\n'


def _spawn(role: str, **given: object) -> subprocess.Popen[str]:
    flags = [x for name, value in given.items() for x in (f"--{name}", str(value))]
    return subprocess.Popen([sys.executable, __file__, "--role", role, *flags], stdout=subprocess.PIPE, text=True)


def _role(role: str, **given: object) -> str:
    return _spawn(role, **given).communicate(timeout=300)[0]


def _closing(thing: Any) -> Any:
    from contextlib import closing

    return closing(thing)


if __name__ == "__main__":
    main()
