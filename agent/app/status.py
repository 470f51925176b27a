"""Status: what the agent on this board says of itself, and whether it still says it."""

import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from agent.adapters.clock import SystemClock
from agent.app.compose import runtime_dirs
from agent.config import Config, suggest
from agent.core.fleet import number, text
from agent.core.health import HealthCode
from agent.errors import UsageError
from agent.ports import Clock

FILE = "status.json"
_POLL_S = 0.25
_MAX_BYTES = 1 << 20
_LONGEST = 200

REMEDIES: dict[str, str] = {
    HealthCode.MODEL_FAILING: "har-agent models verify; then install another bundle, or roll back",
    HealthCode.NO_SOURCE: "har-agent check --connect tells which source is wrong, and how",
    HealthCode.OUTBOX_DROPPING: "bring a broker back, or raise outbox.max_mb: the oldest predictions are being lost",
    HealthCode.OUTBOX_DEGRADED: "free some space in the state directory, and see that the agent may write there",
    HealthCode.BROKER_REFUSES: "compare this agent's topics with the access rules of the broker",
    HealthCode.BROKER_AWAY: "har-agent check --connect; predictions wait in the outbox until the broker is back",
    HealthCode.BROKER_UNSTEADY: "look at the network, and whether another client uses this agent's name",
    HealthCode.QUEUE_DROPPING: "fewer devices or a lower rate: this board cannot keep up",
    HealthCode.SOURCE_AWAY: "look at cable and port name, or at the broker that devices send to; it is tried for ever",
    HealthCode.SOURCE_SILENT: "is the sensor on? compare baud and format: har-agent check --connect suggests them",
    HealthCode.SOURCE_UNUSABLE: "compare format, units and rate_hz with what the sensor sends",
    HealthCode.OUTBOX_FILLING: "bring a broker back before the outbox is full",
    HealthCode.OUTBOX_QUARANTINED: "nothing: the damaged file lies beside the outbox, for a look at it",
    HealthCode.TOO_MANY_DEVICES: "raise mqtt_in.max_devices, or see who sends under so many names",
    HealthCode.MODEL_ROLLED_BACK: "har-agent models verify the bundle that failed before it is installed again",
    HealthCode.UNDER_VOLTAGE: "use a stronger supply, and a shorter cable to it",
    HealthCode.THROTTLED: "cool the board, or give it a stronger supply",
    HealthCode.CLOCK_UNSYNCED: "set up NTP; with another service than systemd-timesyncd, add drop-ins/clock.conf",
    HealthCode.CLOUD_AWAY: "look at har-agent cloud-worker and its broker; nothing is lost, the board decides alone",
    HealthCode.SPLIT_AWAY: "look at its text; har-agent check --connect. Nothing is lost, all of the network runs here",
    HealthCode.RECORDER_FAILED: "free some space where recordings are kept",
    HealthCode.PROMETHEUS_AWAY: "choose a free telemetry.prometheus_port",
}
"""What a person can do, by the code of the reason."""


class AgentStatus(NamedTuple):
    """What is known of an agent.

    `state`: `ok`, `degraded` or `failing` as it says itself, `starting` before it does; `other_release` if it is not
    the release that was asked for. Of the agent on this board: `stale` if it should have said more since, `stopped` if
    its process has gone, `absent` if it never said anything. Of one that a broker was asked for: `offline`, `absent` if
    the broker retains nothing of it, `unreachable` if the broker could not be asked.
    `problem`: why none of the first three, for people. `said`: what it wrote, as it stands there. `age_s`: since then;
    None where clocks do not tell.
    """

    state: str
    problem: str | None
    said: dict[str, Any]
    age_s: float | None

    @property
    def is_up(self) -> bool:
        """Whether it runs, and makes predictions."""
        return self.state in ("ok", "degraded")

    def lacks(self, tolerated: frozenset[str] = frozenset()) -> list[str]:
        """Return why it is not healthy, for people; nothing if it is.

        Healthy: it is ok, it has predicted a window in this run, and no source and no broker is away, not even for a
        time too short to be told. `tolerated`: codes of reasons that do not count; without a source (`no_source`),
        no window is expected either.
        """
        if self.state not in ("ok", "degraded", "failing"):
            return [self.problem or f"it is {self.state}"]
        told = {reason["code"] for reason in self.reasons}
        lacking = [f"{r['code']}: {r['text']}" for r in self.reasons if r["code"] not in tolerated]
        if self.state != "ok" and not told:
            lacking.append(f"it is {self.state}, and does not say why")
        # What has just begun is not told as a reason yet.
        link = self.said.get("link")
        if isinstance(link, dict):
            away = HealthCode.BROKER_AWAY if link.get("connected") is False else HealthCode.BROKER_UNSTEADY
            if (link.get("connected") is False or link.get("problem")) and away not in tolerated | told:
                lacking.append(f"broker: {text(link.get('problem'), _LONGEST) or 'not connected yet'}")
        forgiven = HealthCode.SOURCE_AWAY in tolerated or HealthCode.SOURCE_UNUSABLE in tolerated & told
        sources = self.said.get("sources")
        for source in sources if isinstance(sources, list) and not forgiven else ():
            if isinstance(source, dict) and source.get("problem"):
                name = text(source.get("name"), _LONGEST) or "a source"
                lacking.append(f"{name}: {text(source['problem'], _LONGEST) or 'it has a problem'}")
        windows = number(self.said.get("windows"))
        if not windows and HealthCode.NO_SOURCE not in tolerated:
            lacking.append(
                "it does not say whether it has predicted a window"
                if windows is None
                else "no window was predicted in this run yet"
            )
        return lacking

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """What it says is wrong: code, text, since_s, and what can be done about it."""
        health = self.said.get("health")
        given = health.get("reasons") if isinstance(health, dict) else None
        return [
            {
                "code": text(r.get("code"), _LONGEST) or "?",
                "text": text(r.get("text"), _LONGEST) or "",
                "since_s": number(r.get("since_s")),
                "remedy": REMEDIES.get(str(r.get("code"))),
            }
            for r in (given if isinstance(given, list) else ())
            if isinstance(r, dict)
        ]

    def of_release(self, release: str | None) -> "AgentStatus":
        """Return it, or where it runs another release than this one, a status that says so; None: any will do."""
        runs = text(self.said.get("release"), _LONGEST)
        if release is None or self.state not in ("ok", "degraded", "failing", "starting") or runs == release:
            return self
        return self._replace(state="other_release", problem=f"it runs {runs or 'no release'}, and not {release}")

    def as_dict(self, tolerated: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return plain values, for JSON: what it wrote, and beside it what is to be thought of that."""
        age_s = None if self.age_s is None else round(self.age_s, 3)
        lacking = self.lacks(tolerated)
        return {
            **self.said,
            "v": 1,
            "state": self.state,
            "problem": self.problem,
            "age_s": age_s,
            "reasons": self.reasons,
            "healthy": not lacking,
            "lacks": lacking,
        }


def codes(named: Sequence[str]) -> frozenset[str]:
    """Return codes of health as they were named on a command line.

    Raises:
        UsageError: there is no such code.
    """
    known_codes = [code.value for code in HealthCode]
    for name in named:
        if name not in known_codes:
            raise UsageError(f"--tolerate: health has no reason {name!r}{suggest(name, known_codes)}")
    return frozenset(named)


def read_status(config: Config, clock: Clock | None = None) -> AgentStatus:
    """Return what the agent on this board says now."""
    clock = clock or SystemClock()
    tried = _places(config)
    for path in tried:
        try:
            with path.open("rb") as file:
                said = json.loads(file.read(_MAX_BYTES))
        except FileNotFoundError:
            continue
        except OSError as e:
            return AgentStatus("absent", f"{path} cannot be read: {e.strerror or e}", {}, None)
        except (ValueError, RecursionError):
            return AgentStatus("absent", f"{path} is damaged", {}, None)
        if isinstance(said, dict):
            return _judged(said, path, config, clock)
        return AgentStatus("absent", f"{path} is damaged", {}, None)
    where = " or ".join(str(path) for path in tried)
    return AgentStatus(
        "absent", f"no agent has written {where}: it is not running, or may write none of its folders", {}, None
    )


def wait_healthy(
    look: Callable[[], AgentStatus], seconds: float, tolerated: frozenset[str] = frozenset(), clock: Clock | None = None
) -> AgentStatus:
    """Return what `look` gives once that is healthy, or as it is after `seconds`. See `AgentStatus.lacks`."""
    clock = clock or SystemClock()
    deadline_ns = clock.monotonic_ns() + round(seconds * 1e9)
    while (status := look()).lacks(tolerated):
        left_s = (deadline_ns - clock.monotonic_ns()) / 1e9
        if left_s <= 0:
            break
        clock.sleep(min(left_s, _POLL_S))
    return status


def _places(config: Config) -> list[Path]:
    return [folder / FILE for folder in runtime_dirs(config)]


def _judged(said: dict[str, Any], path: Path, config: Config, clock: Clock) -> AgentStatus:
    age_s = _age_s(said, clock)
    pid = said.get("pid")
    if not (isinstance(pid, int) and not isinstance(pid, bool) and _is_alive(pid)):
        since = text(said.get("updated"), _LONGEST) or "an unknown time"
        return AgentStatus("stopped", f"its process has gone; it said its last at {since}", said, age_s)
    interval_s = number(said.get("interval_s")) or config.telemetry.interval_s
    if age_s is not None and age_s > 2 * interval_s + 10:
        return AgentStatus(
            "stale", f"it runs (pid {pid}), and has not written {path} for {age_s:.0f} s: it hangs", said, age_s
        )
    health = said.get("health")
    if health is None:
        return AgentStatus("starting", "it runs, and has not looked at its health yet", said, age_s)
    state = health.get("state") if isinstance(health, dict) else None
    if state not in ("ok", "degraded", "failing"):
        return AgentStatus("absent", f"{path} does not say how it is", said, age_s)
    return AgentStatus(state, None, said, age_s)


def _age_s(said: dict[str, Any], clock: Clock) -> float | None:
    """Seconds since it was written: by the monotonic clock if that is told, which no step of the wall clock moves."""
    ns = said.get("updated_ns")
    if isinstance(ns, int) and not isinstance(ns, bool):
        age_ns = clock.monotonic_ns() - ns
        # Later than now: the board has been started since.
        return age_ns / 1e9 if age_ns >= 0 else float(10**9)
    return wall_age_s(said.get("updated"), clock)


def wall_age_s(time: Any, clock: Clock) -> float | None:
    """Return the seconds since a time as ISO 8601, by the wall clock; None where it is none, or is still to come."""
    try:
        then = datetime.fromisoformat(str(time))
        age_s = clock.wall_ns() / 1e9 - then.replace(tzinfo=then.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
    return age_s if age_s >= 0 else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0) if pid > 0 else None
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid > 0
