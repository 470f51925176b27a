"""`har-agent simulate`: recordings that the agent reads back as they were made."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeClock
from typer.testing import CliRunner

from agent.adapters.recording import RecordingSource
from agent.adapters.simulated_imu import SimulatedImu
from agent.app.simulate import SimulateSettings, simulate
from agent.cli import build
from agent.cli._exit import exit_status
from agent.core.gait import parse_script
from agent.errors import AgentError, OutputError
from agent.records import BadFrame, SampleBatch

SCRIPT = "walking:3,sitting:2"


def run(*arguments: str):
    """Call the command as `main` does: an error of ours becomes its sentence and its status."""
    result = CliRunner().invoke(build(), ["simulate", *arguments])
    if isinstance(result.exception, AgentError):
        result.stderr_bytes = f"har-agent: {result.exception}".encode()
        result.exit_code = exit_status(result.exception)
    return result


def read(path: Path) -> list[SampleBatch]:
    source = RecordingSource(str(path))
    batches = []
    while (decoded := source.poll(0)) is not None:
        assert not any(isinstance(d, BadFrame) for d in decoded)
        batches += [d for d in decoded if isinstance(d, SampleBatch)]
    source.close()
    return batches


@pytest.mark.parametrize("name", ["walk.csv", "walk.csv.gz"])
def test_a_simulated_recording_reads_back_as_it_was_made(name: str, tmp_path: Path):
    path = tmp_path / name
    samples = simulate(SimulateSettings(parse_script(SCRIPT), str(path), seed=3, device="waist-07"))
    batches = read(path)
    made = SimulatedImu("waist-07", parse_script(SCRIPT), seed=3).simulator.take(samples)

    assert made is not None
    assert {b.stream for b in batches} == {"waist-07"}
    assert np.array_equal(np.concatenate([b.t_ns for b in batches]), made.t_ns)
    assert np.abs(np.concatenate([b.values for b in batches]) - made.values).max() <= 1e-5
    assert [c.label for b in batches for c in b.truth] == ["walking", "transition", "sitting"]


def test_equal_seeds_make_equal_files(tmp_path: Path):
    for name in ("a.csv.gz", "b.csv.gz"):
        assert run("--activities", SCRIPT, "--seed", "9", "--out", str(tmp_path / name)).exit_code == 0

    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).startswith(b"# format: har-recording/1\n")


def test_the_header_says_device_rate_and_units():
    result = run("--activities", SCRIPT, "--duration", "0.02", "--rate-hz", "100", "--device", "wrist")

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:6] == [
        "# format: har-recording/1",
        "# device: wrist",
        "# rate_hz: 100",
        "# acc_unit: g",
        "# gyro_unit: rad/s",
        "t,ax,ay,az,gx,gy,gz,label",
    ]
    assert [line.split(",")[0] for line in lines[6:]] == ["0.000000", "0.010000"]


def test_real_time_writes_no_sample_before_it_is_due(tmp_path: Path):
    clock = FakeClock()
    settings = SimulateSettings(parse_script("walking:4"), str(tmp_path / "a.csv"), realtime=True)

    assert simulate(settings, clock) == 200
    assert clock.now_ns == pytest.approx(3.9e9, abs=0.1e9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--activities", "running:3"), "'running' is not an activity"),
        (("--activities", "walking"), "needs a duration"),
        (("--activities", SCRIPT, "--script", "demo"), "not both"),
        (("--script", "opera"), "not one of demo"),
        (("--rate-hz", "5"), "10 to 400 Hz"),
        (("--duration", "0"), "positive duration"),
        (("--duration", "inf"), "positive duration"),
        (("--seed", "-1"), "seed"),
        (("--drop-rate", "1"), "drop rate"),
        (("--jitter-ms", "-3"), "jitter"),
        (("--noise", "nan"), "noise"),
        (("--device", "a\nb"), "one line"),
    ],
)
def test_bad_values_are_wrong_usage_and_say_why(arguments: tuple[str, ...], words: str):
    result = run(*arguments)

    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize("out", ["no/such/folder.csv", ".", "/dev/full"])
def test_a_file_that_cannot_be_written_is_said(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(OutputError, match="cannot be written"):
        simulate(SimulateSettings(parse_script(SCRIPT), out))
