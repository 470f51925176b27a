"""`har-agent record` as a user meets it: a sensor on a pty, files on disk, and their replay."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from live import wait_until

from agent.adapters.clock import SystemClock
from agent.adapters.recorder import RAW, Recorder
from agent.adapters.recording import RecordingSource
from agent.adapters.serial_port import SerialPort
from agent.adapters.simulated_imu import SimulatedImu
from agent.app.record import RecordSettings, RecordSummary, Tee, record
from agent.app.sources import Sources, open_sources
from agent.config import Config
from agent.core.decoders.formats import decoder
from agent.core.gait import parse_script
from agent.core.harraw import RawHeader
from agent.core.settings import SerialSettings
from agent.core.wire import recording_header
from agent.ports import Clock
from agent.records import Decoded, Dropped, SampleBatch

ENVIRONMENT = os.environ | {"HAR_AGENT_CONFIG": ""}
SECONDS = 12


@pytest.fixture
def line() -> Iterator["Line"]:
    """A serial line."""
    line = Line()
    yield line
    line.close()


@pytest.fixture(scope="module")
def rows() -> list[str]:
    """Lines of a sensor: milliseconds and six numbers."""
    imu = SimulatedImu("simulated", parse_script("walking:8,sitting:4"), seed=3, duration_s=SECONDS)
    lines = []
    while (decoded := imu.poll(0)) is not None:
        for batch in decoded:
            assert isinstance(batch, SampleBatch)
            for t_ns, values in zip(batch.t_ns.tolist(), batch.values.tolist(), strict=True):
                lines.append(f"{t_ns // 1_000_000}," + ",".join(f"{v:.5f}" for v in values) + "\n")
    return lines


class Line:
    """A pty: the sensor writes to `ours`, the agent opens `port`."""

    def __init__(self) -> None:
        self.ours, self._theirs = pty.openpty()
        tty.setraw(self._theirs)
        self.port = os.ttyname(self._theirs)

    def close(self) -> None:
        os.close(self.ours)
        os.close(self._theirs)


def har_agent(*args: object) -> list[str]:
    return [sys.executable, "-m", "agent", *map(str, args)]


def command(port: str, out: Path, *more: object) -> subprocess.Popen[str]:
    config = out.parent / "config.toml"
    config.write_text(f'[serial.waist-07]\nport = "{port}"\nformat = "csv"\ntime = "ms"\n')
    arguments = har_agent("record", "--out", out, "--config", config, "--json", *more)
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def recorded(line: Line, rows: list[str], settings: RecordSettings) -> RecordSummary:
    """Record what the sensor sends, whole, and return the summary."""
    config = Config(serial={"waist-07": SerialSettings(port=line.port, format="csv", time="ms")})
    taken = bytearray()
    summaries: list[RecordSummary] = []
    stop = threading.Event()

    def watched(config: Config, clock: Clock, tee: Tee) -> Sources:
        def seen(device: str, data: bytes | None, t_rx_ns: int) -> None:
            tee(device, data, t_rx_ns)
            taken.extend(data or b"")

        return open_sources(config, clock, seen)

    def run() -> None:
        summaries.append(record(config, settings, stopping=stop.is_set, open_sources=watched))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        # Opening a port throws away what waits in it: only what follows an answer is sure to arrive.
        send_until(line, lambda: bool(taken))
        os.write(line.ours, b"\n".join([b"", *(row.strip().encode() for row in rows), b""]))
        wait_until(lambda: taken.endswith(rows[-1].encode()), what="the last line")
    finally:
        stop.set()
        thread.join()
    return summaries[0]


def send_until(line: Line, condition: Callable[[], bool]) -> None:
    """Send empty lines, which are no data, until `condition` is true."""

    def tried() -> bool:
        os.write(line.ours, b"\n")
        return condition()

    wait_until(tried, what="somebody who reads")


def labels(path: Path) -> list[tuple[int, str, str]]:
    done = subprocess.run(
        har_agent("replay", path, "-q"), capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(text) for text in done.stdout.splitlines()]
    assert {m["device"] for m in messages} == {"waist-07"}
    return [(m["seq"], m["label"], m["activity"]) for m in messages]


@pytest.mark.parametrize("kind", [{"raw": True}, {"gzip": True}, {"label": "walking"}], ids=str)
def test_a_replay_of_what_was_recorded_gives_what_the_sensor_gave(
    kind: dict, line: Line, rows: list[str], tmp_path: Path
):
    status = recorded(line, rows, RecordSettings(tmp_path / "rec", **kind)).status
    given = tmp_path / "given.csv"
    seconds = (f"{int(ms) / 1000:.3f},{rest.strip()},\n" for ms, _, rest in (row.partition(",") for row in rows))
    given.write_text(recording_header("waist-07", 50) + "".join(seconds))

    (path,) = (tmp_path / "rec").iterdir()
    assert (status.samples, status.devices, status.files, status.ended) == (len(rows), 1, 1, "stopped")
    assert status.names == (path.name,)
    assert labels(path) == labels(given)
    assert len(labels(path)) == 1 + (len(rows) - 128) // 64


def test_a_raw_recording_keeps_that_the_cable_was_pulled_inside_a_line(rows: list[str], tmp_path: Path):
    settings, clock = SerialSettings(port=str(tmp_path / "tty"), time="ms"), SystemClock()
    decoding = decoder("csv", "waist-07", settings)
    recorder = Recorder(tmp_path, RAW, clock, lambda device: RawHeader(device, "csv", settings))
    recorder.start(joins=False)
    came: list[Decoded] = []
    for part in ("".join(rows[:40])[:-9], "".join(rows[40:80])[7:], "".join(rows[80:120])):
        line = Line()
        (tmp_path / "tty").symlink_to(line.port)
        port = SerialPort(settings, decoding, clock, partial(recorder.raw, "waist-07"))
        os.write(line.ours, part.encode())
        samples = 0
        while samples < 39:
            decoded = port.poll(5) or []
            samples += sum(len(d.t_ns) for d in decoded if isinstance(d, SampleBatch))
            came += decoded
        line.close()
        came += port.poll(5) or []
        port.close()
        (tmp_path / "tty").unlink()
    recorder.close()

    (path,) = tmp_path.glob("*.harraw")
    source = RecordingSource(str(path))
    got: list[Decoded] = []
    while (block := source.poll(0)) is not None:
        got += block
    source.close()
    assert [plain(d) for d in got] == [plain(d) for d in came]
    assert sum(isinstance(d, Dropped) for d in got) == 3


def plain(item: Decoded) -> object:
    return (item.t_ns.tolist(), item.values.tolist(), item.seq0) if isinstance(item, SampleBatch) else item


def test_ctrl_c_ends_it_with_a_summary(line: Line, tmp_path: Path):
    with command(line.port, tmp_path / "rec", "--raw") as process:
        try:
            send_until(line, lambda: any((tmp_path / "rec").glob("*.harraw")))
            process.send_signal(signal.SIGINT)
            text, err = process.communicate(timeout=30)
        finally:
            process.kill()

    assert process.returncode == 0, err
    assert "recording to" in err
    assert {"ended": "stopped", "files": 1, "samples": 0, "v": 1}.items() <= json.loads(text).items()


def test_it_ends_by_itself_and_says_if_nothing_came(line: Line, tmp_path: Path):
    with command(line.port, tmp_path / "rec", "--duration", "0.5") as process:
        _, err = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "nothing came" in err
    assert list((tmp_path / "rec").iterdir()) == []


@pytest.mark.parametrize("wrong", [("--raw", "--gzip"), ("--raw", "--label=a"), ("--label=a,b",), ("--baud=9600",)])
def test_flags_that_do_not_go_together_are_refused(wrong: tuple[str, ...], tmp_path: Path):
    done = subprocess.run(
        har_agent("record", "--out", tmp_path / "rec", *wrong),
        capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT,
    )  # fmt: skip

    assert done.returncode == 2
    assert not (tmp_path / "rec").exists()


def test_a_spent_budget_is_refused_before_anything_is_opened(line: Line, tmp_path: Path):
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "old.csv").write_bytes(bytes(2000))
    with command(line.port, tmp_path / "rec", "--budget-mb", "0.001") as process:
        _, err = process.communicate(timeout=30)

    assert process.returncode == 74
    assert "budget" in err
