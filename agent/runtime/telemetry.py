"""What the agent tells about itself: counted turn by turn, put together once an interval."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from agent.core.histogram import Histogram
from agent.core.wire import VERSION, iso_time
from agent.pipeline import StreamCounts
from agent.ports import Clock, Outbox
from agent.records import Gap, GapReason, Loss, PowerReading, Prediction, Turn, Unscored

if TYPE_CHECKING:
    from agent.core.messages import LatencySummary, Power, RequestFigures, SplitFigures, TelemetryMessage, WorstStream

_WORST = 5
_DAY_S = 86_400
_COVERED = 0.9
"""Share of an interval that must have been measured for its energy to be known."""
_IDLE_READINGS = 5
"""Readings without a prediction that make a mean."""


class Delivery(Protocol):
    """What became of the messages, in totals since the start."""

    @property
    def published(self) -> int:
        """Messages that were to be delivered."""

    @property
    def acknowledged(self) -> int:
        """Of those: acknowledged by the broker."""

    @property
    def historical(self) -> int:
        """Times one was sent from the outbox, later than it was made."""

    @property
    def refused(self) -> int:
        """Times the broker refused one, of any kind."""

    @property
    def unsent(self) -> int:
        """Messages that are not stored and found no broker."""

    @property
    def possible_repeats(self) -> int:
        """Messages that were lost sight of with their connection, and sent again."""

    @property
    def in_flight(self) -> int:
        """Messages that wait for an acknowledgement now."""

    def take_delivered(self) -> Histogram:
        """Return the times from receipt to acknowledgement since the last call."""


class HostFigures(NamedTuple):
    """What the process costs, and how the board is. None: not known; `throttling_source` says where that was read.

    `cpu_s`, `written_bytes`: since the process began.
    """

    cpu_s: float
    rss_bytes: int
    written_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    under_voltage: bool | None = None
    throttling_source: str = "none"


class Telemetry:
    """See the module's text. Used from one thread."""

    def __init__(self, clock: Clock, agent: str, boot: str, idle_watts: float | None = None) -> None:
        """`agent`, `boot`: names of the board and of this run. `idle_watts`: as configured, measured if None."""
        self._clock = clock
        self._agent = agent
        self._boot = boot
        self._started_ns = self._since_ns = clock.monotonic_ns()
        self._samples = self._windows = self._unscored = 0
        self._windows_before = 0
        self._written_before: int | None = None
        self._gaps: Counter[GapReason] = Counter()
        self._bad: Counter[Loss] = Counter()
        self._retired: Counter[Loss] = Counter()
        self._bad_now: Counter[str] = Counter()
        self._before: dict[str, tuple[int, int, int]] = {}
        self._latency = _stages()
        self._energy = _Energy(self._started_ns, idle_watts)

    @property
    def windows(self) -> int:
        """Windows that were predicted in this run."""
        return self._windows

    def take(self, turn: Turn) -> None:
        """Count what a turn brought. Cheap: called for every turn."""
        for batch in turn.batches:
            self._samples += len(batch.t_ns)
        for frame in turn.bad:
            self._bad[frame.reason] += frame.amount
            self._bad_now[frame.stream] += frame.amount
        for event in turn.events:
            if isinstance(event, Prediction):
                self._windows += 1
            elif isinstance(event, Gap):
                self._gaps[event.reason] += 1
            elif isinstance(event, Unscored):
                self._unscored += 1
        wait, infer, total = self._latency.values()
        for timing in turn.timings.values():
            wait.add(timing.wait_ns)
            infer.add(timing.infer_ns)
            total.add(timing.total_ns)

    def take_power(self, reading: PowerReading) -> None:
        """Count what the board draws. A reading stands for the time since the one before it.

        Called every few seconds, and right before `snapshot`.
        """
        self._energy.take(reading, self._clock.monotonic_ns(), self._windows)

    def retire(self, stream: str, counts: StreamCounts) -> None:
        """Keep the losses of a stream that the pipeline forgets. `counts`: what `Pipeline.retire` returned."""
        self._retired += counts.losses
        self._before.pop(stream, None)

    def snapshot(
        self,
        streams: Mapping[str, StreamCounts],
        model: str,
        input_dropped: int,
        refused: Mapping[Loss, int],
        delivery: Delivery,
        outbox: Outbox,
        host: HostFigures,
        cloud: "RequestFigures | None" = None,
        split: "SplitFigures | None" = None,
    ) -> "TelemetryMessage":
        """Return the message of the interval that ends now, and begin the next.

        `streams`: what `Pipeline.counts` says. `model`: the bundle's id. `input_dropped`: samples that the queue to
        the pipeline let go, ever. `refused`: messages that were not even decoded, ever. `cloud`: what became of
        questions to it, where any may be asked. `split`: what became of windows where the network is run in parts.
        """
        now_ns = self._clock.monotonic_ns()
        interval_s = max(now_ns - self._since_ns, 1) / 1e9
        windows = self._windows - self._windows_before
        losses = self._retired.copy()
        for counts in streams.values():
            losses += counts.losses
        written = host.written_bytes
        per_day = None
        if written is not None:
            # What a start writes is not what a day does.
            if self._written_before is not None:
                per_day = round((written - self._written_before) / interval_s * _DAY_S)
            self._written_before = written
        latency = {stage: latencies(histogram) for stage, histogram in self._latency.items()}
        message: TelemetryMessage = {
            "v": VERSION,
            "agent": self._agent,
            "boot": self._boot,
            "time": iso_time(self._clock.wall_ns()),
            "clock_synced": self._clock.synced(),
            "uptime_s": round((now_ns - self._started_ns) / 1e9, 3),
            "interval_s": round(interval_s, 3),
            "model": model,
            "streams": len(streams),
            "samples": self._samples,
            "windows": self._windows,
            "windows_per_s": round(windows / interval_s, 3),
            "unscored": self._unscored,
            "gaps": _named(self._gaps),
            "losses": _named(losses),
            "bad_frames": _named(self._bad + Counter(refused)),
            "worst_streams": self._worst(streams),
            "drops": {"input": input_dropped, "outbox": outbox.dropped, "unsent": delivery.unsent},
            "delivery": {
                "published": delivery.published,
                "acknowledged": delivery.acknowledged,
                "historical": delivery.historical,
                "refused": delivery.refused,
                "in_flight": delivery.in_flight,
                "possible_repeats": delivery.possible_repeats,
            },
            "outbox": {
                "depth": outbox.depth,
                "size_bytes": outbox.size_bytes,
                "written_bytes": written,
                "written_bytes_per_day": per_day,
            },
            "latency_ms": {
                "wait": latency["wait"],
                "infer": latency["infer"],
                "total": latency["total"],
                "delivered": latencies(delivery.take_delivered()),
            },
            "cpu_s": round(host.cpu_s, 3),
            "rss_bytes": host.rss_bytes,
            "temperature_c": host.temperature_c,
            "throttling": {
                "now": host.throttled,
                "under_voltage": host.under_voltage,
                "source": host.throttling_source,
            },
            "power": self._energy.finish(interval_s, windows),
        }
        if outbox.problem is not None:
            message["outbox"]["problem"] = outbox.problem
        if cloud is not None:
            message["cloud"] = cloud
        if split is not None:
            message["split"] = split
        self._since_ns, self._windows_before, self._latency = now_ns, self._windows, _stages()
        return message

    def _worst(self, streams: Mapping[str, StreamCounts]) -> "list[WorstStream]":
        """Return the streams that lost most since the last call. A stream that could never be decoded is one too."""
        found: list[WorstStream] = []
        for device in streams.keys() | self._bad_now.keys():
            windows = gaps = lost = 0
            counts = streams.get(device)
            if counts is not None:
                total = counts.windows, counts.gaps, counts.losses.total()
                before = self._before.get(device, (0, 0, 0))
                self._before[device] = total
                windows, gaps, lost = (max(0, now - then) for now, then in zip(total, before, strict=True))
            lost += self._bad_now[device]
            if lost or gaps:
                found.append({"device": device, "windows": windows, "gaps": gaps, "lost": lost})
        self._bad_now = Counter()
        return sorted(found, key=lambda s: (-s["lost"], -s["gaps"], s["device"]))[:_WORST]


class _Energy:
    """Power readings to the energy of an interval, and what of it is the agent's work.

    What a board draws with nothing to predict is the least mean, of any interval's readings between which nothing was
    predicted. A gateway that is never without work never shows it: then the energy a window is not known, unless idle
    power is configured. A model's figure for idle power is no measurement, so it is not learned from.
    """

    def __init__(self, now_ns: int, idle_watts: float | None) -> None:
        self._configured = idle_watts
        self._measured: float | None = None
        self._last_ns = now_ns
        self._source = "none"
        self._error_pct: float | None = None
        self._windows = 0
        self._clear()

    def _clear(self) -> None:
        self._joules = self._covered_s = 0.0
        self._idle: list[float] = []

    def take(self, reading: PowerReading, now_ns: int, windows: int) -> None:
        """Count a reading that stands for the time since the one before; `windows`: predicted so far, ever."""
        elapsed_s, self._last_ns = (now_ns - self._last_ns) / 1e9, now_ns
        idle, self._windows = windows == self._windows, windows
        if reading.source != self._source:
            self._clear()
            self._measured = None
        self._source, self._error_pct = reading.source, reading.error_pct
        if reading.watts is None:
            return
        self._joules += reading.watts * elapsed_s
        self._covered_s += elapsed_s
        if idle and reading.source != "model":
            self._idle.append(reading.watts)

    def finish(self, interval_s: float, windows: int) -> "Power":
        """Return the figures of the interval that ends now, and begin the next."""
        watts = self._joules / self._covered_s if self._covered_s else None
        joules = None if watts is None or self._covered_s < _COVERED * interval_s else watts * interval_s
        if len(self._idle) >= _IDLE_READINGS:
            idle = sum(self._idle) / len(self._idle)
            self._measured = idle if self._measured is None else min(idle, self._measured)
        idle_watts = self._measured if self._configured is None else self._configured
        per_window = None
        if joules is not None and idle_watts is not None and windows:
            per_window = max(0.0, joules - idle_watts * interval_s) / windows
        self._clear()
        return {
            "watts": _round(watts, 4),
            "source": self._source,
            "error_pct": self._error_pct,
            "joules": _round(joules, 3),
            "idle_watts": _round(idle_watts, 4),
            "joules_per_window": _round(per_window, 6),
        }


def _stages() -> dict[str, Histogram]:
    return {"wait": Histogram(), "infer": Histogram(), "total": Histogram()}


def latencies(histogram: Histogram) -> "LatencySummary":
    """Return p50, p95, p99 and max in milliseconds, as they are told; none of an empty one."""
    return cast("LatencySummary", {name: round(ms, 3) for name, ms in histogram.summary_ms().items()})


def _round(x: float | None, digits: int) -> float | None:
    return None if x is None else round(x, digits)


def _named(counts: Mapping[Loss, int] | Mapping[GapReason, int]) -> dict[str, int]:
    return {reason.value: n for reason, n in sorted(counts.items()) if n}
