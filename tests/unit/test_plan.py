import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent.app.plan import planned
from agent.core.planner import MAP_BITS_PER_S
from agent.errors import InputError, UsageError

PROFILES = Path(__file__).parents[1] / "profiles"
BOARD, SERVER = str(PROFILES / "board.json"), str(PROFILES / "server.json")


def ran(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", "plan", *args], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_table_has_every_candidate_and_one_pick():
    done = ran(BOARD, SERVER, "--rtt-ms", "2", "--mbit", "3", "--deadline-ms", "12")

    assert done.returncode == 0, done.stderr
    table, why, board, server = done.stdout.rstrip().split("\n\n")
    assert table.splitlines() == [
        "pick  device  server  sends   bytes  compute ms  link ms     ms     mJ  accuracy  in time",
        "      1-4     -       -           0       18.85        0  18.85  56.55      0.95  no",
        "*     1-3     4       code      136        7.47    2.363  9.833  21.15      0.95  yes",
        "      1-2     3-4     conv2    1112        5.26    4.965  10.23  14.25      0.95  yes",
        "      1       2-4     conv1    3160        1.55    10.43  11.98    2.7      0.95  yes",
        "      -       1-4     window   3160        0.68    10.43  11.11      0      0.95  yes",
    ]
    assert why == (
        "device runs segments 1 to 3, server runs segment 4: 9.833 ms is the fastest of 4 in time; device alone takes "
        "18.85 ms"
    )
    assert tomllib.loads(board) == {"split": {"cut": "code"}}
    assert tomllib.loads(server) == {"worker": {"service": "har-split", "bundles": "har-test"}}


FIRST, SECOND = {"service": "har-split", "bundles": "har-test"}, {"service": "har-split-cloud", "bundles": "har-test"}


@pytest.mark.parametrize(
    ("mbit", "speed", "borders", "split", "workers"),
    [
        ([0.0, 1], [1, 1, 1], (4, 4), {"cut": "off"}, {}),
        ([1, 0.0], [1, 1, 1], (3, 4), {"cut": "code"}, {"edge": FIRST}),
        ([99, 99], [0.01, 1, 1], (0, 4), {"cut": "window", "privacy": "window"}, {"edge": FIRST}),
        (
            [0.2, 99],
            [1, 0.001, 1],
            (3, 3),
            {"cut": "code", "service": "har-split-cloud"},
            {"cloud": SECOND},
        ),
        (
            [99, 2],
            [0.01, 0.05, 99],
            (0, 3),
            {"cut": "window", "until": "code", "privacy": "window"},
            {"edge": FIRST | {"next": "har-split-cloud"}, "cloud": SECOND},
        ),
    ],
)
def test_what_it_picked_is_told_as_configuration(mbit, speed, borders, split, workers):
    found = planned([BOARD, SERVER, SERVER], [2, 2], mbit, speed=speed)

    assert found.plan.pick.borders == borders
    assert found.config() == {"device": {"split": split}} | {name: {"worker": w} for name, w in workers.items()}
    assert found.as_dict()["config"] == found.config()


@pytest.fixture
def with_exit(tmp_path: Path) -> list[str]:
    """Profiles of a network with an exit that reads conv2."""
    paths = []
    for path in (BOARD, SERVER):
        raw = json.loads(Path(path).read_text())
        after = [c["name"] for c in raw["cuts"]].index("conv2") + 1
        raw["exits"].insert(0, {"name": "early", "accuracy": 0.9, "after": after, "us": 100.0})
        paths.append(tmp_path / Path(path).name)
        paths[-1].write_text(json.dumps(raw))
    return [str(path) for path in paths]


def test_an_early_exit_is_part_of_the_configuration(with_exit: list[str]):
    found = planned(with_exit, [2], [10], objective="accuracy", deadline_ms=5, speed=[0.01, 1])

    assert found.plan.in_time
    assert found.config()["device"] == {"split": {"cut": "window", "exit": "early", "privacy": "window"}}
    # The code is made nowhere, so none comes back.
    assert found.plan.pick.bytes == (3072 + 40,)
    alone = planned(with_exit, [2], [0], objective="accuracy", deadline_ms=6)
    assert alone.config() == {"device": {"split": {"cut": "off", "exit": "early"}}}


def test_a_later_deadline_is_more_accurate(with_exit: list[str]):
    found = planned(with_exit, [2], [1], objective="accuracy", with_curve=True)
    shown = ran(*with_exit, "--rtt-ms", "2", "--mbit", "1", "--curve").stdout.rstrip().split("\n\n")[-1]

    assert [(c.exit.name, c.exit.accuracy) for c in found.curve] == [("early", 0.9), ("end", 0.95)]
    early, end = (c.latency_ns for c in found.curve)
    for deadline_ns in (early, end - 1, end):
        sooner = planned(with_exit, [2], [1], objective="accuracy", deadline_ms=deadline_ns / 1e6)
        assert sooner.plan.pick == found.curve[deadline_ns >= end]
    assert [c["latency_ms"] for c in found.as_dict()["curve"]] == [early / 1e6, end / 1e6]
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [
        [f"{early / 1e6:.4g}", "early"],
        [f"{end / 1e6:.4g}", "end"],
    ]


def test_profiles_that_do_not_go_together_are_told_by_place_and_file(tmp_path: Path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(Path(BOARD).read_text()) | {"bundle": "har-other@1"}))

    with pytest.raises(UsageError, match=re.escape(f"of device ({BOARD}) and edge ({other}) are of different")):
        planned([BOARD, str(other), SERVER], [2, 2], [3, 3])


def test_a_device_whose_power_is_not_known_is_told_what_to_give(tmp_path: Path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(Path(BOARD).read_text()) | {"watts": None}))

    with pytest.raises(UsageError, match=re.escape(f"{other} has no watts: give --watts, or profile the device")):
        planned([str(other), SERVER], [2], [3], objective="energy")
    assert planned([str(other), SERVER], [2], [3], objective="energy", watts=1).plan.pick.joules == 0.0


def test_nothing_in_time_is_a_no():
    done = ran(BOARD, SERVER, "--rtt-ms", "2", "--mbit", "3", "--deadline-ms", "1")

    assert done.returncode == 1
    assert "none of 5 is in time" in done.stdout


def test_json_says_the_same():
    found = planned([BOARD, SERVER, SERVER], [2, 20], [3, 0], deadline_ms=12, speed=[1, 1, 8], with_map=True)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))

    assert [p["name"] for p in plain["places"]] == ["device", "edge", "cloud"]
    assert plain["links"] == [{"rtt_ms": 2.0, "mbit": 3.0}, {"rtt_ms": 20.0, "mbit": 0.0}]
    assert len(plain["candidates"]) == 15
    pick = plain["candidates"][plain["pick"]]
    assert (pick["segments"], pick["cuts"]) == ([[0, 3], [3, 4], [4, 4]], ["code", None])
    assert pick["latency_ms"] == pytest.approx(sum(pick["compute_ms"]) + pick["link_ms"], abs=1e-6)
    assert (pick["bytes"], pick["in_time"], plain["in_time"]) == ([136, 0], True, True)
    gone = [c for c in plain["candidates"] if c["cuts"][1]]
    assert {(c["latency_ms"], c["in_time"]) for c in gone} == {(None, False)}
    assert [1e6 * m["mbit"] for m in plain["map"]] == list(MAP_BITS_PER_S)
    latencies = [m["latency_ms"] for m in plain["map"]]
    assert latencies == sorted(latencies, reverse=True)


def test_one_profile_stands_for_all():
    found = planned([BOARD], [2], [1000], speed=[1, 20], load=[0, 0.5])

    assert found.places[0].profile == found.places[1].profile
    assert len(found.plan.candidates) == 6
    assert found.plan.pick.compute_ns == (0.0, 1_885_000.0)


def test_the_map_is_shown_on_demand():
    done = ran(BOARD, SERVER, "--rtt-ms", "2", "--mbit", "0", "--map")

    assert done.returncode == 0, done.stderr
    _, why, config, shown = done.stdout.rstrip().split("\n\n")
    assert why == "device runs all of it: 18.85 ms is the fastest of 1 that can be had"
    assert config == '[split]  # device\ncut = "off"'
    assert len(shown.splitlines()) == 1 + len(MAP_BITS_PER_S)


@pytest.mark.parametrize(
    ("rtt_ms", "mbit", "more", "said"),
    [
        ([], [], {}, "give --rtt-ms once"),
        ([1] * 3, [1] * 3, {}, "give --rtt-ms once"),
        ([1], [1, 1], {}, "give --mbit as often"),
        ([1, 1], [1, 1], {}, "need a profile each"),
        ([1], [1], {"speed": [1]}, "give --speed once for each of device, server"),
        ([1], [1], {"load": [0, 0, 0]}, "give --load once"),
        ([1], [1], {"load": [0, 1]}, "--load is below 1"),
        ([1], [1], {"speed": [1, 0]}, "--speed is above 0"),
        ([math.nan], [1], {}, "are 0 or more"),
        ([1], [math.inf], {}, "are 0 or more"),
        ([1], [1], {"watts": -1}, "are 0 or more"),
        ([1], [1], {"objective": "speed"}, "--objective is one of latency, energy, accuracy, not speed"),
    ],
)
def test_figures_that_nothing_can_have_are_refused(rtt_ms, mbit, more, said):
    with pytest.raises(UsageError) as refused:
        planned([BOARD, SERVER], rtt_ms, mbit, **more)
    assert said in str(refused.value)


def test_a_file_that_is_no_profile_is_told(tmp_path: Path):
    path = tmp_path / "x.json"
    for content, said in ((b'{"v": 1}', "lacks 'cuts'"), (b"{}", "not a profile"), (b" " * (5 << 20), "larger")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said) as refused:
            planned([str(path)], [1], [1])
        assert str(path) in str(refused.value)
    with pytest.raises(InputError, match="No such file"):
        planned([str(tmp_path / "y")], [1], [1])


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ([BOARD, str(PROFILES / "missing.json"), "--rtt-ms", "1", "--mbit", "1"], 65),
        ([__file__, "--rtt-ms", "1", "--mbit", "1"], 65),
        ([BOARD, "--rtt-ms", "1"], 2),
        ([BOARD, "--rtt-ms", "1", "--mbit", "1", "--objective", "x"], 2),
    ],
)
def test_the_exit_status_says_whose_fault_it_is(args: list[str], status: int):
    done = ran(*args)

    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_carries_nothing_that_it_does_not_need():
    code = "import sys, agent.cli.plan, agent.app.plan\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert set(done.stdout.split()) & {"numpy", "onnxruntime", "paho", "psutil", "structlog"} == set()
