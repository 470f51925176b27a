"""`har-agent status`: what the agent wrote, and whether it still means it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FakeClock

from agent.app.status import REMEDIES, AgentStatus, codes, read_status, wait_healthy
from agent.cli.status import _view
from agent.config import Config
from agent.core.health import HealthCode
from agent.core.settings import AgentSettings, TelemetrySettings
from agent.core.wire import iso_time
from agent.errors import UsageError


@pytest.fixture
def clock() -> FakeClock:
    clock = FakeClock()
    clock.sleep(1000)
    clock.slept.clear()
    return clock


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(agent=AgentSettings(runtime_dir=str(tmp_path)), telemetry=TelemetrySettings(interval_s=60))


def wrote(tmp_path: Path, clock: FakeClock, state: str | None = "ok", **more) -> None:
    health = None if state is None else {"state": state, "reasons": []}
    said = {"v": 1, "pid": os.getpid(), "agent": "board-7", "updated": iso_time(clock.wall_ns()), "health": health}
    said["windows"] = 3
    (tmp_path / "status.json").write_text(json.dumps(said | more))


@pytest.mark.parametrize(("state", "up"), [("ok", True), ("degraded", True), ("failing", False)])
def test_it_is_as_it_says(tmp_path: Path, config: Config, clock: FakeClock, state: str, up: bool):
    wrote(tmp_path, clock, state)
    clock.sleep(59)
    found = read_status(config, clock)

    assert (found.state, found.is_up, found.problem) == (state, up, None)
    assert found.age_s == pytest.approx(59, abs=0.01)


def test_a_process_that_has_gone_is_told(tmp_path: Path, config: Config, clock: FakeClock):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    wrote(tmp_path, clock, pid=gone.pid)

    assert read_status(config, clock).state == "stopped"


@pytest.mark.parametrize("pid", [None, -1, 0, "1", True, 2**70])
def test_a_process_that_cannot_be_is_gone(tmp_path: Path, config: Config, clock: FakeClock, pid: object):
    wrote(tmp_path, clock, pid=pid)

    assert read_status(config, clock).state == "stopped"


def test_what_is_too_old_is_stale(tmp_path: Path, config: Config, clock: FakeClock):
    wrote(tmp_path, clock)
    clock.sleep(131)
    found = read_status(config, clock)

    assert (found.state, found.is_up) == ("stale", False)
    assert "131 s" in (found.problem or "")


def test_the_monotonic_clock_decides_where_it_is_told(tmp_path: Path, config: Config, clock: FakeClock):
    wrote(tmp_path, clock, updated="2001-01-01T00:00:00Z", updated_ns=clock.now_ns)
    assert read_status(config, clock).state == "ok"

    wrote(tmp_path, clock, updated_ns=clock.now_ns + 1)
    assert read_status(config, clock).state == "stale"


@pytest.mark.parametrize("updated", ["2999-01-01T00:00:00Z", "yesterday", None, 7])
def test_a_wall_clock_that_cannot_be_right_makes_nothing_stale(
    tmp_path: Path, config: Config, clock: FakeClock, updated: object
):
    wrote(tmp_path, clock, updated=updated)
    found = read_status(config, clock)

    assert (found.state, found.age_s) == ("ok", None)


def test_before_its_first_look_at_itself_it_is_starting(tmp_path: Path, config: Config, clock: FakeClock):
    wrote(tmp_path, clock, state=None)

    assert read_status(config, clock).state == "starting"


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"pid":1', "\xff"])
def test_a_damaged_file_is_told(tmp_path: Path, config: Config, clock: FakeClock, content: str):
    (tmp_path / "status.json").write_bytes(content.encode("latin-1"))

    assert read_status(config, clock).state == "absent"


def test_no_file_says_where_it_looked(tmp_path: Path, config: Config, clock: FakeClock):
    assert str(tmp_path / "status.json") in (read_status(config, clock).problem or "")


def waited(config: Config, seconds: float, clock: FakeClock, *tolerated: str) -> AgentStatus:
    return wait_healthy(lambda: read_status(config, clock), seconds, codes(tolerated), clock)


def reasons(*named: str) -> dict[str, object]:
    return {"state": "failing", "reasons": [{"code": code, "text": "so it is", "since_s": 1} for code in named]}


def test_waiting_ends_once_it_is_ok_or_the_time_is_over(tmp_path: Path, config: Config, clock: FakeClock):
    wrote(tmp_path, clock, "degraded")
    assert waited(config, 5, clock).state == "degraded"
    assert sum(clock.slept) == pytest.approx(5)

    wrote(tmp_path, clock, "ok")
    clock.slept.clear()
    assert waited(config, 5, clock).state == "ok"
    assert clock.slept == []


@pytest.mark.parametrize(
    ("part", "lacking", "code"),
    [
        ({"sources": [{"name": "serial a", "problem": "no sample yet"}]}, "serial a: no sample yet", "source_away"),
        ({"link": {"connected": False}}, "broker: not connected yet", "broker_away"),
        ({"link": {"connected": True, "problem": "first away"}}, "broker: first away", "broker_unsteady"),
        ({"windows": 0}, "no window was predicted in this run yet", "no_source"),
        ({"windows": None}, "it does not say whether it has predicted a window", "no_source"),
    ],
)
def test_what_has_not_been_away_for_long_is_not_healthy_yet(
    tmp_path: Path, config: Config, clock: FakeClock, part: dict, lacking: str, code: str
):
    wrote(tmp_path, clock, **part)
    found = waited(config, 1, clock)

    assert (found.state, found.is_up, found.lacks()) == ("ok", True, [lacking])
    assert (found.as_dict()["healthy"], found.as_dict()["lacks"]) == (False, [lacking])
    assert f"\nwaits for   {lacking}" in _view(found, found.lacks())
    assert found.lacks(codes([code])) == []
    assert found.as_dict(codes([code]))["healthy"] is True
    wrote(tmp_path, clock, sources=[{"name": "serial a", "problem": None}], link={"connected": True, "problem": None})
    assert waited(config, 1, clock).lacks() == []


def test_only_what_is_tolerated_does_not_count(tmp_path: Path, config: Config, clock: FakeClock):
    wrote(tmp_path, clock, health=reasons("no_source", "clock_unsynced"))

    assert waited(config, 1, clock, "clock_unsynced").lacks(codes(["clock_unsynced"])) == ["no_source: so it is"]
    clock.slept.clear()
    assert waited(config, 1, clock, "clock_unsynced", "no_source").state == "failing"
    assert clock.slept == []


@pytest.mark.parametrize("given", [[], [7], None, "x"])
def test_a_state_without_a_reason_is_not_forgiven(tmp_path: Path, config: Config, clock: FakeClock, given: object):
    wrote(tmp_path, clock, health={"state": "degraded", "reasons": given})

    assert read_status(config, clock).lacks(codes([c.value for c in HealthCode])) != []


def test_a_source_that_is_away_is_not_forgiven_for_one_that_is_unusable(
    tmp_path: Path, config: Config, clock: FakeClock
):
    away = [{"name": "serial a", "problem": "unplugged"}]
    wrote(tmp_path, clock, sources=away)
    assert read_status(config, clock).lacks(codes(["source_unusable"])) == ["serial a: unplugged"]

    wrote(tmp_path, clock, sources=away, health=reasons("source_unusable"))
    assert read_status(config, clock).lacks(codes(["source_unusable"])) == []


@pytest.mark.parametrize(
    ("named", "said"), [("no_sorce", "did you mean no_source?"), ("zzz", "there are model_failing")]
)
def test_an_unknown_code_is_refused_with_a_suggestion(named: str, said: str):
    with pytest.raises(UsageError, match=re.escape(said)):
        codes(["no_source", named])


def test_another_release_is_not_the_one_that_is_waited_for(tmp_path: Path, config: Config, clock: FakeClock):
    wrote(tmp_path, clock, release="1.0+aa")
    found = read_status(config, clock)

    assert found.of_release(None) is found
    assert found.of_release("1.0+aa") is found
    other = found.of_release("1.0+bb")
    assert (other.state, other.is_up) == ("other_release", False)
    assert other.lacks() == ["it runs 1.0+aa, and not 1.0+bb"]
    wrote(tmp_path, clock)
    assert read_status(config, clock).of_release("1.0+bb").problem == "it runs no release, and not 1.0+bb"
    wrote(tmp_path, clock, pid=None)
    assert read_status(config, clock).of_release("1.0+bb").state == "stopped"


def test_every_reason_has_something_to_do():
    assert set(REMEDIES) == set(HealthCode)


def test_reasons_are_shown_with_what_to_do(tmp_path: Path, config: Config, clock: FakeClock):
    reasons = [{"code": "broker_away", "text": "no broker", "since_s": 130}, {"code": "x\x1b[2J", "text": "a\nb"}, 5]
    wrote(
        tmp_path,
        clock,
        health={"state": "degraded", "reasons": reasons},
        sources=[{"name": "serial waist", "problem": "unplugged"}, "mqtt x"],
        link={"connected": False, "broker": "local", "problem": "refused"},
        telemetry={"streams": 2, "windows": 10, "latency_ms": {"total": {"p50": 1.0}}, "rss_bytes": 2**26},
    )
    found = read_status(config, clock)
    text = _view(found)

    assert text.splitlines()[0] == "board-7     degraded"
    assert "broker_away, since 2 min: no broker\n  do: har-agent check --connect" in text
    assert "source      serial waist: unplugged\nsource      mqtt x\nbroker      local, away: refused" in text
    assert "64 MiB resident" in text
    assert text.replace("\n", "").isprintable()
    assert found.as_dict()["reasons"][0]["since_s"] == 130


def test_a_gap_before_this_run_is_shown(tmp_path: Path, config: Config, clock: FakeClock):
    gap = {"seconds": 3.2, "windows": 1.25, "devices": 1, "absent": 0, "previous": "0.1.0", "orderly": True}
    for more, shown in (
        ({}, "3.20 s without a window since 0.1.0, 1.2 windows long"),
        ({"orderly": False}, "at most 3.20 s without"),
        ({"devices": 7, "absent": 2}, "1.2 windows long, the longest of 7 devices, 2 are not back"),
    ):
        wrote(tmp_path, clock, health={"state": "ok", "reasons": [], "coverage_gap": gap | more})
        assert shown in _view(read_status(config, clock))

    for wrong in (7, [], {"seconds": "x"}, {"previous": 7, "devices": None}):
        wrote(tmp_path, clock, health={"state": "ok", "reasons": [], "coverage_gap": wrong})
        assert _view(read_status(config, clock))


def test_what_became_of_windows_in_doubt_is_shown(tmp_path: Path, config: Config, clock: FakeClock):
    cloud = {"asked": 12, "answered": 10, "timed_out": 2, "rtt_ms": {"p50": 41.2, "p95": 80.0}, "breaker": "closed"}
    shown = "cloud       asked 12, answered 10, timed out 2, p50 41 ms, p95 80 ms, breaker closed\n"
    for telemetry, there in (({"cloud": cloud, "rss_bytes": 1}, True), ({"cloud": 7}, False), ({}, False)):
        wrote(tmp_path, clock, telemetry=telemetry)
        assert (shown in _view(read_status(config, clock))) is there


@pytest.mark.parametrize("value", [None, 5, "x", [], [[]], {"a": {}}, {"health": 3}])
def test_whatever_stands_there_is_shown(tmp_path: Path, config: Config, clock: FakeClock, value: object):
    keys = ("health", "telemetry", "link", "sources", "started", "version", "model", "agent")
    for key in keys:
        wrote(tmp_path, clock, **{key: value})
        assert _view(read_status(config, clock))
        json.dumps(read_status(config, clock).as_dict())


def test_the_command_ends_with_the_answer(tmp_path: Path):
    def ran(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "agent", "status", *args],
            env=os.environ | {"HAR_AGENT__AGENT__RUNTIME_DIR": str(tmp_path), "HAR_AGENT_CONFIG": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert ran().returncode == 1
    (tmp_path / "status.json").write_text(json.dumps({"pid": os.getpid(), "health": {"state": "degraded"}}))
    shown = ran("--json")
    assert (shown.returncode, json.loads(shown.stdout)["state"]) == (0, "degraded")
    assert ran("--wait-healthy", "0.1").returncode == 1
    assert ran("--release", "1.0+aa").returncode == 1
    for wrong in (["--agent", "x"], ["--tolerate", "no_source"], ["--wait-healthy", "1", "--tolerate", "x"]):
        assert ran(*wrong).returncode == 2
    (tmp_path / "status.json").write_text(
        json.dumps({"pid": os.getpid(), "health": {"state": "ok"}, "windows": 1, "release": "1.0+aa"})
    )
    shown = ran("--wait-healthy", "0.1", "--release", "1.0+aa", "--json")
    assert (shown.returncode, json.loads(shown.stdout)["healthy"]) == (0, True)


@pytest.mark.parametrize("command", ["status", "record", "watch"])
def test_the_commands_carry_nothing_that_they_do_not_need(command: str):
    code = (
        f"import sys, agent.cli.{command}, agent.app.{command}\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    needed = {"paho"} if command == "watch" else set()
    assert set(done.stdout.split()) & {"onnxruntime", "serial", "paho", "rich", "psutil", "structlog"} == needed
