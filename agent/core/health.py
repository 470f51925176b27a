"""How the agent is: a state with reasons, steady enough to be told.

Theory of operation. Whoever watches something sets its code, with a text for people, for as long as it is wrong, and
clears it with None. A code may be set for several things at once, such as sources, each under a name of its own. A
reason is told once it has held for its code's `hold_s`, so that what passes by itself is not told; it goes once it has
been clear for `_CLEAR_S`, so that what comes and goes is one reason that holds.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from agent.core.wire import VERSION, iso_time

if TYPE_CHECKING:
    from agent.core.messages import HealthMessage, HealthState

_CLEAR_S = 10.0
_GROWN_S = 60.0
_SUMMARY_REASONS = 2
_LONGEST_TEXT = 300
_MOST_NAMES = 3
"""Things of one code that are named in a text."""


class HealthCode(StrEnum):
    """What can be wrong; the value is what users read. The worst first."""

    MODEL_FAILING = "model_failing"
    NO_SOURCE = "no_source"
    OUTBOX_DROPPING = "outbox_dropping"
    OUTBOX_DEGRADED = "outbox_degraded"
    BROKER_REFUSES = "broker_refuses"
    BROKER_AWAY = "broker_away"
    BROKER_UNSTEADY = "broker_unsteady"
    QUEUE_DROPPING = "queue_dropping"
    SOURCE_AWAY = "source_away"
    SOURCE_SILENT = "source_silent"
    SOURCE_UNUSABLE = "source_unusable"
    OUTBOX_FILLING = "outbox_filling"
    OUTBOX_QUARANTINED = "outbox_quarantined"
    TOO_MANY_DEVICES = "too_many_devices"
    MODEL_ROLLED_BACK = "model_rolled_back"
    UNDER_VOLTAGE = "under_voltage"
    THROTTLED = "throttled"
    CLOCK_UNSYNCED = "clock_unsynced"
    CLOUD_AWAY = "cloud_away"
    SPLIT_AWAY = "split_away"
    RECORDER_FAILED = "recorder_failed"
    PROMETHEUS_AWAY = "prometheus_away"


class _Rule(NamedTuple):
    """What a code means. `hold_s`: how long it must hold before it is told."""

    meaning: str
    hold_s: float = 0.0
    failing: bool = False


RULES: dict[HealthCode, _Rule] = {
    HealthCode.MODEL_FAILING: _Rule("the model fails: there are no predictions", failing=True),
    HealthCode.NO_SOURCE: _Rule("no source delivers samples: there are no predictions", 10, failing=True),
    HealthCode.OUTBOX_DROPPING: _Rule("the outbox is full and lets its oldest messages go", failing=True),
    HealthCode.OUTBOX_DEGRADED: _Rule("the outbox cannot be written to disk and is kept in memory"),
    HealthCode.BROKER_REFUSES: _Rule("the broker refuses messages", 2),
    HealthCode.BROKER_AWAY: _Rule("no broker is connected; predictions are kept in the outbox", 15),
    HealthCode.BROKER_UNSTEADY: _Rule("the first broker is away and a later one in use, or connections do not hold", 2),
    HealthCode.QUEUE_DROPPING: _Rule(
        "more samples, or requests to a cloud worker, come than can be processed, and some are let go"
    ),
    HealthCode.SOURCE_AWAY: _Rule("a source cannot be opened, or went away", 5),
    HealthCode.SOURCE_SILENT: _Rule("a source is open and delivers nothing"),
    HealthCode.SOURCE_UNUSABLE: _Rule("what a source delivers cannot be used"),
    HealthCode.OUTBOX_FILLING: _Rule("the outbox is more than half full", 30),
    HealthCode.OUTBOX_QUARANTINED: _Rule("a damaged outbox was put aside within the last minute"),
    HealthCode.TOO_MANY_DEVICES: _Rule("devices are refused, because there are more than configured"),
    HealthCode.MODEL_ROLLED_BACK: _Rule("a model was given up, or could not take over"),
    HealthCode.UNDER_VOLTAGE: _Rule("the board's supply is too weak", 2),
    HealthCode.THROTTLED: _Rule("the board slows itself down", 10),
    HealthCode.CLOCK_UNSYNCED: _Rule("nothing keeps the wall clock right", 120),
    HealthCode.CLOUD_AWAY: _Rule("nobody answers who is asked about windows in doubt; they are decided here", 15),
    HealthCode.SPLIT_AWAY: _Rule("what others are to run of the network runs here instead", 15),
    HealthCode.RECORDER_FAILED: _Rule("a recording cannot be written"),
    HealthCode.PROMETHEUS_AWAY: _Rule("the Prometheus endpoint cannot be opened"),
}
"""What each code means, said once."""


class _Reason:
    """A code that is set, or was until a moment ago."""

    def __init__(self, now_ns: int) -> None:
        self.since_ns = now_ns
        self.texts: dict[str, str] = {}
        """What is wrong, by name; empty once it is not."""
        self.told = False
        self.clear_ns = 0
        """Since when nothing is."""
        self.last = ""

    @property
    def text(self) -> str:
        """What is wrong now, or was last."""
        some = list(self.texts.values())[:_MOST_NAMES] or [self.last]
        more = len(self.texts) - len(some)
        return ("; ".join(some) + (f"; and {more} more" if more > 0 else ""))[:_LONGEST_TEXT]


class Told(NamedTuple):
    """A reason that is told: `text` for people, `since_ns` on the monotonic clock."""

    code: HealthCode
    text: str
    since_ns: int


class Health:
    """See the module's text. Times are nanoseconds of the monotonic clock."""

    def __init__(self) -> None:
        self._reasons: dict[HealthCode, _Reason] = {}
        self._totals: dict[HealthCode, tuple[int, int]] = {}
        self._published: list[tuple[HealthCode, str]] | None = None

    def set(self, code: HealthCode, text: str | None, now_ns: int, name: str = "") -> None:
        """Say that `code` is wrong as `text` says, or with None that it is not. Cheap: may be called every turn.

        A text says nothing that changes all the time, such as an age: each change is published. `name`: of which of
        several things this is said.
        """
        reason = self._reasons.get(code)
        if text is not None:
            if reason is None:
                reason = self._reasons[code] = _Reason(now_ns)
            reason.texts[name] = text
        elif reason is not None and name in reason.texts:
            reason.last, reason.clear_ns = reason.texts.pop(name), now_ns
        self._settle(now_ns)

    def count(self, code: HealthCode, total: int, text: str, now_ns: int) -> None:
        """Say that `code` is wrong while `total`, which begins at 0 and never falls, has grown within a minute."""
        last, grew_ns = self._totals.get(code, (0, 0))
        if total > last:
            self._totals[code] = total, now_ns
            self.set(code, text, now_ns)
        elif last and now_ns - grew_ns >= _GROWN_S * 1e9:
            self.set(code, None, now_ns)

    def reasons(self, now_ns: int) -> Sequence[Told]:
        """Return what is told, the worst first."""
        self._settle(now_ns)
        told = ((code, self._reasons[code]) for code in HealthCode if code in self._reasons)
        return [Told(code, reason.text, reason.since_ns) for code, reason in told if reason.told]

    def state(self, now_ns: int) -> "HealthState":
        """Return ok, degraded or failing."""
        told = self.reasons(now_ns)
        if not told:
            return "ok"
        return "failing" if any(RULES[reason.code].failing for reason in told) else "degraded"

    def changed(self, now_ns: int) -> bool:
        """Whether something else would be told now than in the last `message`."""
        return self._published != [(reason.code, reason.text) for reason in self.reasons(now_ns)]

    def message(self, agent: str, now_ns: int, wall_ns: int, *, clock_synced: bool) -> "HealthMessage":
        """Return the message to retain, and count it as told."""
        self._published = [(reason.code, reason.text) for reason in self.reasons(now_ns)]
        return self.view(agent, now_ns, wall_ns, clock_synced=clock_synced)

    def view(self, agent: str, now_ns: int, wall_ns: int, *, clock_synced: bool) -> "HealthMessage":
        """Return what the message would say now."""
        told = self.reasons(now_ns)
        return {
            "v": VERSION,
            "agent": agent,
            "state": self.state(now_ns),
            "reasons": [
                {"code": code.value, "text": text, "since_s": round((now_ns - since_ns) / 1e9, 3)}
                for code, text, since_ns in told
            ],
            "time": iso_time(wall_ns),
            "clock_synced": clock_synced,
        }

    def summary(self, now_ns: int, facts: str = "") -> str:
        """Return one line for systemd, such as `degraded: broker away since 2 min; 3 sources, 12.3 windows/s`.

        `facts`: what to say beside the reasons.
        """
        told = self.reasons(now_ns)
        named = [f"{code.value.replace('_', ' ')} since {_for_people(now_ns - since)}" for code, _, since in told]
        more = len(named) - _SUMMARY_REASONS
        line = ", ".join(named[:_SUMMARY_REASONS]) + (f" and {more} more" if more > 0 else "")
        state = self.state(now_ns)
        return "; ".join(part for part in (f"{state}: {line}" if line else state, facts) if part)

    def _settle(self, now_ns: int) -> None:
        """Let what has held long enough be told, and what has been clear long enough go."""
        for code, reason in list(self._reasons.items()):
            if reason.texts:
                reason.told = reason.told or now_ns - reason.since_ns >= RULES[code].hold_s * 1e9
            elif now_ns - reason.clear_ns >= _CLEAR_S * 1e9:
                del self._reasons[code]


def _for_people(elapsed_ns: int) -> str:
    seconds = elapsed_ns // 1_000_000_000
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
