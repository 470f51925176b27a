"""`har-agent replay` as a user meets it: real processes, real files, good and bad."""

import gzip
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent.adapters.recording import RecordingSource
from agent.cli._exit import exit_status
from agent.errors import SourceUnavailable

HEADER = "# format: har-recording/1\n# device: waist-07\n# rate_hz: 50\n# acc_unit: g\n# gyro_unit: rad/s\n"
CASES = Path(__file__).parent.parent / "replay" / "cases"
COLUMNS = "t,ax,ay,az,gx,gy,gz,label\n"


def rows(n, rate_hz=50.0, t0=0.0, label="standing"):
    return "".join(f"{t0 + i / rate_hz:.4f},0.01,{0.001 * (i % 7):.3f},1.0,0,0.01,0,{label}\n" for i in range(n))


GOOD = HEADER + COLUMNS + rows(400)


def har_agent(*args, stdin=None, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "agent", *map(str, args)],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        **kwargs,
    )


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.csv"
    path.write_text(GOOD)
    return path


def check_refused(done, status, *says):
    """It ended with this status and one sentence, and without a traceback."""
    err = done.stderr.decode()
    assert done.returncode == status, err
    assert "Traceback" not in err
    last = [line for line in err.splitlines() if line.startswith("har-agent: ")]
    assert len(last) == 1, err
    for part in says:
        assert part in last[0]


def test_labels_go_to_stdout_and_everything_else_to_stderr(good):
    done = har_agent("replay", good)

    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [m["seq"] for m in messages] == [0, 1, 2, 3, 4]
    assert messages[0] | {"t0": 0.0, "t1": 2.56, "device": "waist-07", "origin": "local", "v": 1} == messages[0]
    assert sum(messages[0]["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert b"400 samples, 5 windows" in done.stderr


def test_csv_has_a_line_of_names_and_one_line_a_window(good):
    lines = har_agent("replay", good, "--format", "csv", "--quiet").stdout.decode().splitlines()

    assert lines[0] == "recording,device,seq,t0,t1,label,confidence,novelty,known,activity,origin,model"
    assert len(lines) == 6


def test_every_way_in_gives_the_same_labels(good, tmp_path):
    packed = tmp_path / "good.csv.gz"
    packed.write_bytes(gzip.compress(GOOD.encode()))
    plain = har_agent("replay", good, "-q").stdout.replace(str(good).encode(), b"X")

    assert har_agent("replay", packed, "-q").stdout.replace(str(packed).encode(), b"X") == plain
    assert har_agent("replay", "-", "-q", stdin=GOOD.encode()).stdout.replace(b'"-"', b'"X"') == plain
    assert har_agent("replay", "-", "-q", stdin=gzip.compress(GOOD.encode())).stdout.replace(b'"-"', b'"X"') == plain
    assert har_agent("replay", good, "-q", "--speed", "100").stdout.replace(str(good).encode(), b"X") == plain


def test_zstd_is_read(good, tmp_path):
    zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    packed = tmp_path / "good.csv.zst"
    packed.write_bytes(zstd.compress(GOOD.encode()))

    done = har_agent("replay", packed, "-q")
    assert len(done.stdout.splitlines()) == 5

    packed.write_bytes(zstd.compress(GOOD.encode() * 40)[:-30])
    check_refused(har_agent("replay", packed), 65, "cut short")


def test_a_pattern_takes_all_that_match_in_order_each_from_a_fresh_state(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.csv").write_text(GOOD)
    done = har_agent("replay", tmp_path / "*.csv", "-q")

    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [m["recording"][-5:] for m in messages] == ["a.csv"] * 5 + ["b.csv"] * 5
    assert [m["seq"] for m in messages] == [0, 1, 2, 3, 4] * 2


def test_the_summary_says_how_right_the_labels_were_and_how_soon(tmp_path):
    day, report = CASES / "an-ordinary-day" / "recording.csv.gz", tmp_path / "r.json"
    said = har_agent("replay", day, "--report", report).stderr.decode()
    got = json.loads(report.read_text())

    onsets = got["onsets"]
    assert f"{got['accuracy']:.1%} right, {got['activity_accuracy']:.1%} of decided activities" in said
    assert onsets["count"] == 5
    assert f"5 changes of label: {onsets['missed']} missed, the others decided within" in said
    assert f"{onsets['delay_median_s']:.2f} s (median), {onsets['delay_p90_s']:.2f} s (p90)" in said


def test_the_summary_of_a_recording_with_one_label_tells_of_no_changes(good):
    said = har_agent("replay", good).stderr.decode()

    assert "labelled windows" in said
    assert "changes of label" not in said


def test_the_report_counts_everything(tmp_path):
    path, report = tmp_path / "r.csv", tmp_path / "r.json"
    path.write_text(
        HEADER + COLUMNS + rows(300) + "1,2\n" + "6.02,x,0,0,0,0,0,\n" + rows(300, t0=60, label="flying") + "66.00,0"
    )
    har_agent("replay", path, "--report", report)

    got = json.loads(report.read_text())
    (recording,) = got["recordings"]
    assert recording["losses"] == {
        "not_a_number": 1,
        "partial_window": 44 + 44,
        "torn_last_line": 1,
        "wrong_number_of_columns": 1,
    }
    assert recording["bad_rows"] == 2
    assert recording["bad_lines"] == [
        {"line": 307, "reason": "wrong_number_of_columns"},
        {"line": 308, "reason": "not_a_number"},
    ]
    assert (recording["samples"], recording["windows"], recording["gaps"]) == (600, 6, 1)
    assert got["labels_not_in_model"] == {"flying": 3}
    assert got["labelled_windows"] == 6
    assert sum(n for row in got["confusion"].values() for n in row.values()) == 6
    assert got["accuracy"] <= 0.5


@pytest.mark.parametrize(("least", "status"), [(0.0, 0), (1.0, 1)])
def test_min_accuracy_is_a_yes_or_a_no(tmp_path, least, status):
    path = tmp_path / "r.csv"
    path.write_text(HEADER + COLUMNS + rows(300, label="flying"))

    done = har_agent("replay", path, "--min-accuracy", least)
    assert done.returncode == status
    assert (b"below --min-accuracy 1.0" in done.stderr) == bool(status)


def test_min_accuracy_of_no_labels_is_a_no(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(HEADER + COLUMNS + rows(300, label=""))

    check_refused(har_agent("replay", path, "--min-accuracy", "0.5"), 1, "no window is labelled")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        ((HEADER + COLUMNS).encode(), "no samples, only a header"),
        ((HEADER + "time,x,y,z\n1,2,3,4\n").encode(), "lacks ax"),
        ((COLUMNS + rows(10)).encode(), "--acc-unit"),
        ((HEADER.replace("acc_unit: g", "acc_unit: ft/s2") + COLUMNS + rows(10)).encode(), "one of g, m/s2"),
        ((HEADER.replace("acc_unit: g", "acc_unit: m/s2") + COLUMNS + rows(200)).encode(), "its size is that of g"),
        ((HEADER + COLUMNS + "nan,inf,a,b,c,d,e,f\n" * 200).encode(), "more than 100 rows cannot be read"),
        ((HEADER + COLUMNS + rows(200, t0=1.7e12)).encode(), "is t in seconds?"),
        (gzip.compress(GOOD.encode())[:5], "cut short"),
        ((HEADER + COLUMNS + rows(300, 1)).encode(), "samples come at 1 Hz"),
        ((HEADER + COLUMNS + rows(30_000, 10_000)).encode(), "samples come at 1e+04 Hz"),
        (gzip.compress((GOOD * 50).encode())[:-200], "cut short"),
        (bytes(range(256)) * 300, "recording"),
        (b"\x89PNG\r\n\x1a\n" + bytes(5000), "not text"),
        (b"\x00" * 100_000, "no lines"),
    ],
)
def test_input_that_cannot_be_used_is_65_with_what_to_do(tmp_path, content, says):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)

    check_refused(har_agent("replay", path), 65, str(path), says)


def test_what_came_before_a_cut_is_replayed_and_counted(tmp_path):
    path, report = tmp_path / "cut.csv.gz", tmp_path / "report.json"
    path.write_bytes(gzip.compress((HEADER + COLUMNS + rows(5000)).encode())[:-500])
    done = har_agent("replay", path, "--report", report)

    check_refused(done, 65, "cut short")
    (recording,) = json.loads(report.read_text())["recordings"]
    assert recording["windows"] == len(done.stdout.splitlines()) > 10
    assert recording["losses"]["torn_last_line"] == 1


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        "".join(line + ("\r\n" if i % 2 else "\n") for i, line in enumerate(GOOD.splitlines())),
        HEADER + COLUMNS + rows(400).replace("0.01,", " 0.01 ,"),
    ],
)
def test_text_of_any_habit_gives_the_same_labels(tmp_path, good, content):
    path = tmp_path / "other.csv"
    path.write_bytes(content.encode())

    labels = [json.loads(line)["label"] for line in har_agent("replay", path, "-q").stdout.splitlines()]
    assert labels == [json.loads(line)["label"] for line in har_agent("replay", good, "-q").stdout.splitlines()]


def test_a_gap_of_ten_hours_and_time_running_backwards_are_told(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text(HEADER + COLUMNS + rows(200) + rows(200, t0=36_000) + rows(200, t0=100))
    done = har_agent("replay", path)

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 6
    assert b"2 gaps" in done.stderr


def test_a_folder_is_65_and_a_missing_file_69(tmp_path):
    check_refused(har_agent("replay", tmp_path), 65, "is a directory", "*.csv")
    check_refused(har_agent("replay", tmp_path / "none.csv"), 69, "no such file")
    check_refused(har_agent("replay", tmp_path / "*.csv"), 69, "no file matches")


def test_a_file_that_may_not_be_read_is_unavailable():
    # Not tmp_path: only its owner may enter that, and root, who may read everything, has to become nobody.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "private.csv"
        path.write_text(GOOD)
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(SourceUnavailable, match="Permission denied") as caught:
                RecordingSource(str(path))
        finally:
            os.seteuid(user)

    assert exit_status(caught.value) == 69


def test_one_bad_recording_does_not_keep_the_others_from_being_replayed(tmp_path, good):
    bad = tmp_path / "bad.csv"
    bad.write_text("nonsense\n")
    done = har_agent("replay", bad, good, "-q")

    check_refused(done, 65, str(bad))
    assert len(done.stdout.splitlines()) == 5


def test_a_closed_stdout_is_74_and_one_sentence(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(HEADER + COLUMNS + rows(60_000))
    agent = subprocess.Popen(
        [sys.executable, "-m", "agent", "replay", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert agent.stdout is not None
    assert agent.stderr is not None
    agent.stdout.readline()
    agent.stdout.close()
    err = agent.stderr.read().decode()
    agent.stderr.close()

    assert agent.wait(60) == 74
    assert err.splitlines() == ["har-agent: the reader of standard output closed it before all was written"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_74_and_names_the_file(good):
    check_refused(har_agent("replay", good, "--report", "/dev/full"), 74, "/dev/full", "No space left")
    check_refused(har_agent("replay", good, "--out", "/dev/full"), 74, "/dev/full", "free some space")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "agent", "replay", str(good)], stdout=full, stderr=subprocess.PIPE, check=False
        )
    check_refused(done, 74, "standard output", "No space left")


def test_a_report_into_a_folder_that_is_not_there_is_74(good, tmp_path):
    check_refused(har_agent("replay", good, "--report", tmp_path / "no" / "r.json"), 74, "cannot be written")


def test_no_recording_is_ever_overwritten(good, tmp_path):
    link = tmp_path / "link.csv"
    link.symlink_to(good)

    for args in (["--out", good], ["--out", link], ["--report", good], ["--out", "x", "--report", "./x"]):
        check_refused(har_agent("replay", good, *args, cwd=tmp_path), 2, "would be overwritten")
    assert good.read_text() == GOOD


def test_a_mistake_leaves_what_was_written_before(good, tmp_path):
    out = tmp_path / "labels.jsonl"
    out.write_text("yesterday\n")

    assert har_agent("replay", tmp_path / "none.csv", "--out", out).returncode == 69
    assert har_agent("replay", good, "--hop", "300", "--out", out).returncode == 78
    assert out.read_text() == "yesterday\n"


def test_standard_input_is_read_from_where_it_stands(good):
    with good.open("rb") as f:
        os.lseek(f.fileno(), len(HEADER), os.SEEK_SET)
        done = subprocess.run(
            [sys.executable, "-m", "agent", "replay", "-"], stdin=f, capture_output=True, check=False, timeout=60
        )

    check_refused(done, 65, "does not say its acc_unit")


def test_a_recording_on_standard_input_is_not_overwritten(good):
    with good.open("rb") as f:
        done = subprocess.run(
            [sys.executable, "-m", "agent", "replay", "-", "--out", str(good)],
            stdin=f,
            capture_output=True,
            check=False,
            timeout=60,
        )

    check_refused(done, 2, "would be overwritten")
    assert good.read_text() == GOOD


@pytest.mark.parametrize("packed", [False, True])
def test_a_named_pipe_is_read_even_if_it_begins_with_a_single_byte(good, tmp_path, packed):
    pipe, data = tmp_path / "pipe", gzip.compress(GOOD.encode()) if packed else GOOD.encode()
    os.mkfifo(pipe)
    agent = subprocess.Popen([sys.executable, "-m", "agent", "replay", "-q", str(pipe)], stdout=subprocess.PIPE)
    # Opening waits for the reader; each write() is one that the reader may see alone.
    with pipe.open("wb", buffering=0) as f:
        f.write(data[:1])
        f.write(data[1:])
    out = agent.communicate(timeout=60)[0]

    assert agent.returncode == 0
    assert out.replace(str(pipe).encode(), b"X") == har_agent("replay", good, "-q").stdout.replace(
        str(good).encode(), b"X"
    )


def test_a_name_that_ends_with_csv_gets_csv(good, tmp_path):
    har_agent("replay", good, "--out", tmp_path / "labels.csv")

    assert (tmp_path / "labels.csv").read_text().startswith("recording,device,seq,")


def test_names_of_any_bytes_and_any_locale_are_written(good, tmp_path):
    odd = os.fsencode(tmp_path) + b"/w\xe9.csv"
    with open(odd, "wb") as f:  # noqa: PTH123  a name that is no text
        f.write(GOOD.replace("waist-07", "wäist").encode())
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-m", "agent", "replay", odd], capture_output=True, env=env, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["device"] == "wäist"


def test_a_closed_standard_stream_is_a_sentence(good):
    def shell(line):
        command = f"{sys.executable} -m agent {line}"
        return subprocess.run(command, shell=True, capture_output=True, check=False, timeout=60)

    check_refused(shell(f"replay {good} >&-"), 74, "closed")
    check_refused(shell("replay - <&-"), 69, "standard input is closed")
    check_refused(shell("models list >/dev/full"), 74, "No space left")
    assert shell(f"replay {good} 2>/dev/full").returncode == 0
    assert len(shell(f"replay {good} 2>&-").stdout.splitlines()) == 5


def test_a_name_that_no_file_can_have_is_unavailable(good):
    check_refused(har_agent("replay", "x" * 300), 69, "too long")
    check_refused(har_agent("replay", good, "--model", "x" * 300), 78, "no model bundle")


def test_a_report_adds_up_when_a_recording_is_given_up(tmp_path):
    path, report = tmp_path / "bad.csv", tmp_path / "report.json"
    lines = rows(6000).splitlines(keepends=True)
    path.write_text(HEADER + COLUMNS + "".join("x\n" + line if i % 40 == 39 else line for i, line in enumerate(lines)))
    done = har_agent("replay", path, "--report", report)

    check_refused(done, 65, "more than 100 rows")
    got = json.loads(report.read_text())
    (recording,) = got["recordings"]
    assert got["windows"] == recording["windows"] == len(done.stdout.splitlines())
    assert recording["bad_rows"] == recording["losses"]["wrong_number_of_columns"] > 100


@pytest.mark.parametrize(
    "args",
    [
        ["--format", "xml"],
        ["--speed", "fast"],
        ["--speed", "-1"],
        ["--min-accuracy", "2"],
        ["--max-bad-rows", "-1"],
        ["--nonsense"],
        ["--hop", "many"],
        ["--hop", "0"],
        ["--smoothing-s", "-1"],
        ["--rate-hz", "nan"],
        ["--min-accuracy", "nan"],
        ["--report", "-"],
        ["--rate-hz", "-50"],
        ["--acc-unit", "furlong"],
        ["--device", "a\nb"],
    ],
)
def test_wrong_usage_is_2(good, args):
    done = har_agent("replay", good, *args)

    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stderr


def test_configuration_that_cannot_be_used_is_78(good, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("[windows]\nhop = 1\n")

    check_refused(har_agent("replay", good, "--hop", "300"), 78, "hop must be between 1 and the window's 128")
    check_refused(har_agent("replay", good, "--model", "none"), 78, "no model bundle at 'none'", "har-base")
    done = har_agent("replay", good, "--config", config)
    assert (done.returncode, b"did you mean window?" in done.stderr) == (78, True)


def test_help_has_an_example_for_every_command():
    names = ["replay", "simulate", "demo", "bench", "version"]
    for command in [[n] for n in names] + [["models", "list"], ["models", "verify"]]:
        done = har_agent(*command, "--help")
        assert done.returncode == 0
        assert b"Example: har-agent " in done.stdout, command


def test_version_says_what_runs():
    facts = json.loads(har_agent("version", "--json").stdout)

    assert {"har-edge-agent", "python", "onnxruntime", "machine"} < set(facts)
