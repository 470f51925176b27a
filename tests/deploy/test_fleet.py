"""Six boards and a broker: rolled out to, updated, broken, cut off and put back. One story, told in order.

Each test goes on where the one before left the boards. Throughout, a subscriber counts every prediction by its id, and
the sensors' own clocks tell what no window covers.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live import Listener
from mosquitto import Authority
from rollouts import (
    Operator,
    at_work,
    boots,
    flip_a_byte,
    live_release,
    release_id,
    sign_again,
    tampered,
    tampered_wheel,
)

pytestmark = pytest.mark.fleet

MB = 1_000_000
FRESH_ROLLOUT_S = 90
INSTALLED_MB = 160
RSS_MB = 100
GAP_WINDOWS = 2
"""What the project promises."""


def uncovered(listener: Listener, device: str) -> list[float]:
    """Return what no window covers between the runs of an agent, in seconds of the sensor's clock."""
    with listener._lock:
        spans = sorted((p["t0"], p["t1"]) for p in listener.predictions.values() if p["device"] == device)
    return [b[0] - a[1] for a, b in itertools.pairwise(spans) if b[0] > a[1]]


def test_a_fresh_rollout(desk: Operator, listener: Listener, fact: Callable[[str], None]):
    good = desk.releases["good"]

    ran = desk.play("rollout", har_agent_release_dir=str(good))

    assert ran.rc == 0, ran.said
    assert set(ran.outcomes().values()) == {"done"}, ran.said
    at_work(listener, desk.boards)
    fact(f"fresh rollout of {len(desk.boards)} boards: {ran.seconds:.0f} s (at most {FRESH_ROLLOUT_S})")
    assert ran.seconds < FRESH_ROLLOUT_S
    assert {live_release(board) for board in desk.boards} == {release_id(good)}
    told = {board.name: listener.state(f"har/{board.name}/status") for board in desk.boards}
    assert {status["release"] for status in told.values()} == {release_id(good)}


def test_a_second_run_changes_nothing(desk: Operator, listener: Listener, fact: Callable[[str], None]):
    before = boots(listener, desk.boards)

    ran = desk.play("rollout", har_agent_release_dir=str(desk.releases["good"]))

    assert ran.rc == 0, ran.said
    assert set(ran.outcomes().values()) == {"unchanged"}, ran.said
    assert set(ran.changed().values()) == {0}, ran.said
    assert boots(listener, desk.boards) == before
    fact(f"second run, nothing changed: {ran.seconds:.0f} s")


def test_a_dry_run_says_what_would_change_and_changes_nothing(desk: Operator, listener: Listener):
    before = boots(listener, desk.boards)
    one = desk.boards[0]
    config = one.read("/etc/har-agent/config.toml")
    other = {**desk.settings["har_agent_config"], "telemetry": {"interval_s": 12.5}}

    same = desk.play("site", "--check", "--diff", only=[one], har_agent_release_dir=str(desk.releases["good"]))
    ran = desk.play(
        "site", "--check", "--diff", only=[one], har_agent_release_dir=str(desk.releases["good"]),
        har_agent_config=other,
    )  # fmt: skip

    assert same.rc == ran.rc == 0, ran.said
    assert set(same.changed().values()) == {0}, same.said
    assert ran.changed()["board1"] > 0, ran.said
    assert "+interval_s = 12.5" in ran.said
    assert one.read("/etc/har-agent/config.toml") == config
    assert one.run("ls /opt/har-agent/deployments/next", check=False).returncode != 0
    assert boots(listener, desk.boards) == before


def test_size_and_memory_on_a_board(desk: Operator, fact: Callable[[str], None]):
    one = desk.boards[0]
    du = one.run("du -sxb /opt/har-agent/releases/* | cut -f1; du -sx -B1 /opt/har-agent | cut -f1").stdout.split()
    used = int(du[-1])
    pid = one.run("systemctl show -P MainPID har-agent").stdout.strip()
    rss = 1024 * int(one.run(f"sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/{pid}/status").stdout)

    fact(
        f"on a board: {used / MB:.0f} MB installed (at most {INSTALLED_MB}), "
        f"{rss / MB:.0f} MB resident (below {RSS_MB})"
    )
    assert used <= INSTALLED_MB * MB
    assert rss < RSS_MB * MB


def test_the_inventory_says_what_runs_where(desk: Operator, tmp_path: Path):
    ran = desk.play("inventory")

    assert ran.rc == 0, ran.said
    assert len(ran.boards) == len(desk.boards)
    for board in desk.boards:
        row = ran.boards[board.name]["row"]
        assert release_id(desk.releases["good"]) in json.dumps(row)
        assert "har-base@" in json.dumps(row)


CUTS = [
    ("Switch to the staged", 0.2),
    ("Install the archive", 0.5),
    ("Soak", 0.5),
    # The canary is done by then: this one is in a batch.
    ("Switch to the staged", 0.2),
]
"""Tasks in whose midst the controller loses its power, and seconds after they began."""


@pytest.mark.usefixtures("nothing_lost")
def test_a_controller_that_is_killed_can_be_run_again(
    desk: Operator, listener: Listener, fact: Callable[[str], None], long: bool
):
    better = desk.releases["better"]
    cuts = CUTS if long else CUTS[:1]
    for task, then_s in cuts:
        playing = desk.start("rollout", only=desk.boards[:3], har_agent_release_dir=str(better))
        playing.cut_after(f"TASK [har_agent : {task}", then_s)
        at_work(listener, desk.boards)

    ran = desk.play("rollout", har_agent_release_dir=str(better), har_agent_batches=["100%"])

    assert ran.rc == 0, ran.said
    assert set(ran.outcomes().values()) <= {"done", "unchanged"}, ran.said
    assert {live_release(board) for board in desk.boards} == {release_id(better)}
    fact(f"upgrade of {len(desk.boards)} boards, after {len(cuts)} controllers that were cut off: {ran.seconds:.0f} s")


def test_an_upgrade_states_its_gap_in_coverage(desk: Operator, listener: Listener, fact: Callable[[str], None]):
    seen = {}
    for board in desk.boards:
        stated: dict[str, Any] = listener.state(f"har/{board.name}/health")["coverage_gap"]
        measured = uncovered(listener, f"imu-{board.name}")[-1]
        seen[board.name] = (stated, measured)
        assert stated["orderly"]
        assert stated["seconds"] == pytest.approx(measured, abs=0.5)
    worst = max(stated["windows"] for stated, _ in seen.values())
    fact(
        f"upgrade: {listener.count()} predictions, none lost; no window covers at most "
        f"{max(s for _, s in seen.values()):.1f} s, stated as {worst:g} windows (at most {GAP_WINDOWS})"
    )
    assert worst <= GAP_WINDOWS


BAD = {
    "crashing": ("board1", "rolled back", "this release cannot start"),
    "sigill": ("board2", "failed", "SIGILL"),
    "mute": ("board3", "rolled back", "no window was predicted"),
    "degraded": ("board4", "rolled back", "this release cannot write to its disk"),
}
"""Where each bad release is tried, what becomes of the board, and which words the reason has."""


@pytest.mark.usefixtures("nothing_lost")
def test_bad_releases_do_not_stay(desk: Operator, listener: Listener, long: bool):
    better = release_id(desk.releases["better"])
    before = boots(listener, desk.boards)
    # Those that start take as long as the gate waits; a crash at the start is played on a canary, below.
    bad = BAD if long else {"sigill": BAD["sigill"]}

    ran = desk.play_each(
        "site", {board: {"har_agent_release_dir": str(desk.releases[name])} for name, (board, _, _) in bad.items()}
    )

    for board, outcome, words in bad.values():
        assert ran[board].rc != 0
        assert ran[board].outcomes() == {board: outcome}, ran[board].said
        assert words in ran[board].why(board), ran[board].why(board)
    assert {live_release(board) for board in desk.boards} == {better}
    at_work(listener, desk.boards)
    # Found before anything in service was touched.
    assert boots(listener, desk.boards)["board2"] == before["board2"]


def test_a_bad_canary_stops_a_rollout(desk: Operator, listener: Listener, fact: Callable[[str], None]):
    before = boots(listener, desk.boards)

    ran = desk.play("rollout", har_agent_release_dir=str(desk.releases["crashing"]))

    assert ran.rc != 0
    outcomes = ran.outcomes()
    assert outcomes.pop("board1") == "rolled back", ran.said
    assert set(outcomes.values()) == {"untouched"}, ran.said
    at_work(listener, desk.boards)
    after = boots(listener, desk.boards)
    assert {name for name in after if after[name] != before[name]} == {"board1"}
    for board in desk.boards[1:]:
        assert release_id(desk.releases["crashing"]) not in board.run("ls /opt/har-agent/releases").stdout
    fact(f"a bad canary is rolled back and stops the rollout: {ran.seconds:.0f} s")


def test_a_board_that_cannot_be_reached(desk: Operator, listener: Listener, long: bool):
    if not long:
        pytest.skip("three rollouts take a minute: test_playbooks plays them with boards that do less; with --long")
    two, away = desk.boards[4:], desk.boards[5]
    config = {**desk.settings["har_agent_config"], "telemetry": {"interval_s": 11.0}}
    given: dict[str, Any] = {"har_agent_release_dir": str(desk.releases["better"]), "har_agent_config": config}
    before = boots(listener, two)
    away.unplug_network()
    try:
        stopped = desk.play("rollout", only=two, **given)
        with_it_stopped = boots(listener, two[:1])
        allowed = desk.play("rollout", only=two, har_agent_allow_unreachable=True, **given)
    finally:
        away.plug_network()
    healed = desk.play("rollout", only=two, **given)

    assert stopped.rc != 0
    assert "board6 cannot be reached" in stopped.said
    assert stopped.outcomes() == {"board5": "untouched", "board6": "unreachable"}, stopped.said
    assert with_it_stopped == {"board5": before["board5"]}
    assert allowed.outcomes() == {"board5": "done", "board6": "unreachable"}, allowed.said
    assert healed.rc == 0, healed.said
    assert healed.outcomes() == {"board5": "unchanged", "board6": "done"}, healed.said
    at_work(listener, desk.boards)
    assert listener.holes() == []


@pytest.mark.usefixtures("nothing_lost")
def test_what_must_be_refused_is_refused_and_the_old_version_serves(desk: Operator, listener: Listener, tmp_path: Path):
    """Six boards, six reasons, at the same time."""
    better, newer = desk.releases["better"], desk.releases["crashing"]
    expired, key = Authority(tmp_path).issue("expired", "board5", (-3, -1))
    credentials = {**desk.settings["har_agent_credentials"], "client.crt": {"src": str(expired)},
                   "client.key": {"src": str(key)}}  # fmt: skip
    refused: dict[str, tuple[Path, dict[str, Any], str]] = {
        "board1": (tampered(newer, tmp_path / "archive", lambda f: flip_a_byte(next(f.glob("*.tar")))), {}, "changed"),
        "board2": (
            tampered(newer, tmp_path / "wheel", lambda f: tampered_wheel(f, desk.key)),
            {},
            "not the one that was locked",
        ),
        "board3": (
            tampered(newer, tmp_path / "key", lambda f: sign_again(f, desk.other_key)),
            {},
            "is not signed with",
        ),
        "board4": (desk.releases["good"], {}, "is older"),
        "board5": (better, {"har_agent_credentials": credentials}, "expired"),
        "board6": (better, {}, "its clock is"),
    }
    before = boots(listener, desk.boards)
    desk.fleet["board6"].shift_clock(-3 * 86_400)
    try:
        ran = desk.play_each(
            "site", {name: {"har_agent_release_dir": str(d), **given} for name, (d, given, _) in refused.items()}
        )
    finally:
        desk.fleet["board6"].shift_clock(0)

    for board, (_, _, words) in refused.items():
        assert ran[board].rc != 0
        assert ran[board].outcomes() == {board: "failed"}, ran[board].said
        assert words in ran[board].why(board), ran[board].why(board)
    assert boots(listener, desk.boards) == before
    assert {live_release(board) for board in desk.boards} == {release_id(better)}
