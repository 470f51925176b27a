"""The tables of `har-agent watch`: they fit the terminal, and nothing from outside reaches it but text."""

import io
import json
import re

import pytest
from rich.console import Console

from agent.cli._watch_view import frame, spark
from agent.core.fleet import Fleet

SECOND = 1_000_000_000


def drawn(fleet: Fleet, width: int = 120, height: int | None = None, *, terminal: bool = False, **more) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, markup=False, emoji=False, highlight=False)
    console.print(frame(fleet, 60 * SECOND, width, height, **more))
    return file.getvalue().splitlines()


def tell(fleet: Fleet, name: str, seq: int = 0, t_s: int = 50, **more) -> None:
    said = {"id": f"b:{name}:{seq}", "device": name, "seq": seq, "label": "walking", "activity": "walking"}
    said |= {"confidence": 0.5, "novelty": 0.25, "known": True, "latency_ms": {"total": 1.25}} | more
    fleet.feed(f"har/{name}/prediction", json.dumps(said).encode(), t_s * SECOND)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet("har")


def test_a_line_tells_what_a_device_does(fleet: Fleet):
    for k, confidence in enumerate((0.0, 0.5, 1.0)):
        tell(fleet, "waist-07", k, 50 + k, confidence=confidence, known=k != 1)
    fleet.feed("har/waist-07/availability", b'{"state":"degraded","reason":"too slow"}', 0)

    names, line, footer = drawn(fleet)
    assert names.split() == [
        "device",
        "state",
        "activity",
        "conf",
        "last",
        "windows",
        "win/s",
        "latency",
        "novelty",
        "age",
    ]
    assert line.split() == [
        "waist-07", "degraded", "walking", "100%", "▁·█", "0.20", "1.2", "ms", "0.25", "8", "s", "too", "slow",
    ]  # fmt: skip
    assert footer == "1 devices, 0 agents, 0.2 windows/s"


def test_an_agent_that_is_unwell_comes_first_and_says_why(fleet: Fleet):
    fleet.feed("har/a/health", b'{"state":"ok","reasons":[]}', 0)
    reasons = [{"code": "broker_away", "text": "gone"}, {"code": "throttled", "text": "hot"}]
    fleet.feed("har/b/health", json.dumps({"state": "degraded", "reasons": reasons}).encode(), 0)
    power = {"watts": 3.14159, "source": "model", "error_pct": 30}
    fleet.feed("har/b/telemetry", json.dumps({"power": power, "temperature_c": 60, "model": "m"}).encode(), 0)

    lines = drawn(fleet)
    assert lines[1].startswith("b")
    assert "3.14 W (model ±30%)" in lines[1]
    assert "60 °C" in lines[1]
    assert lines[2].split()[:2] == ["a", "ok"]
    assert lines[3:5] == ["  b: broker_away: gone", "  b: throttled: hot"]


@pytest.mark.parametrize("height", [1, 5, 10, 24, 60])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_it_fits_the_terminal_however_many_there_are(fleet: Fleet, width: int, height: int):
    for k in range(500):
        tell(fleet, f"d{k:03}", t_s=k // 10)
        fleet.feed(f"har/d{k:03}/availability", b'{"state":"online"}', 0)
    for k in range(40):
        fleet.feed(f"har/agent-{k}/health", b'{"state":"ok"}', 0)

    lines = drawn(fleet, width, height, problems=["the broker is away"])
    assert all(len(line) <= width for line in lines)
    if height >= 10:
        assert len(lines) <= height
        assert "more devices"[: max(width - 20, 3)] in "\n".join(lines)


def test_of_many_the_last_heard_are_shown_in_the_order_of_their_names(fleet: Fleet):
    for k in range(100):
        tell(fleet, f"d{k:03}")
    tell(fleet, "d005", 1)

    shown = [line.split()[0] for line in drawn(fleet, height=12)[1:-2]]
    assert "d005" in shown
    assert "d099" in shown
    assert "d050" not in shown
    assert shown == sorted(shown)
    assert f"and {100 - len(shown)} more devices" in drawn(fleet, height=12)[-2]


def test_nothing_from_outside_is_obeyed_by_the_terminal(fleet: Fleet):
    evil = "a\x1b]0;owned\x07\x1b[2J\r\n\x9b31m[bold red]:smile:[/]\u202e"
    tell(fleet, "x", activity=evil, label=evil, device=evil)
    tell(fleet, "\x1b[2J", activity=evil)
    fleet.feed("har/x/availability", json.dumps({"state": "offline", "reason": evil}).encode(), 0)
    said = {"state": "failing", "reasons": [{"code": evil, "text": evil}]}
    fleet.feed("har/\x1b[2J/health", json.dumps(said).encode(), 0)

    text = "\n".join(drawn(fleet, 400, terminal=True))
    colours = re.compile("\x1b\\[[0-9;]*m")
    assert colours.sub("", text).replace("\n", "").isprintable()
    assert "[bold red]:smile:[/]" in text


def test_before_anything_came_there_is_a_line(fleet: Fleet):
    assert drawn(fleet, height=24) == ["0 devices, 0 agents, 0.0 windows/s"]


def test_bars_show_the_last_windows_only(fleet: Fleet):
    for k in range(30):
        tell(fleet, "a", k, confidence=k / 30)

    assert len(spark(fleet.devices["a"], 10)) == 10
    assert spark(fleet.devices["a"], 10).endswith("█")
