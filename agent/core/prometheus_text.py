"""Telemetry and health in Prometheus' text exposition format, version 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and, for names and units,
https://prometheus.io/docs/practices/naming/. docs/reference/power.md lists the metrics.
"""

from collections.abc import Iterable, Mapping

from agent.core.messages import HealthMessage, HealthState, RequestFigures, SplitFigures, TelemetryMessage

Labels = Mapping[str, str]
Sample = tuple[Labels, float | None]
_NONE: Labels = {}
_HEALTH: tuple[HealthState, ...] = ("ok", "degraded", "failing")
_BREAKER = ("closed", "open", "half-open")


def exposition(telemetry: TelemetryMessage, health: HealthMessage | None = None) -> str:
    """Return both messages as metrics. What is not known is not there, as Prometheus has it."""
    t, out = telemetry, _Page()
    out.gauge("info", "Always 1; says which agent, model and run this is.", _labelled(t))
    out.gauge("uptime_seconds", "Since this run of the agent began.", _one(t["uptime_s"]))
    out.gauge("clock_synced", "Whether something keeps the wall clock right.", _one(t["clock_synced"]))
    out.gauge("streams", "Streams that are read now.", _one(t["streams"]))
    out.counter("samples_total", "Samples received.", _one(t["samples"]))
    out.counter("windows_total", "Windows predicted.", _one(t["windows"]))
    out.counter("unscored_windows_total", "Windows on which the model failed.", _one(t["unscored"]))
    out.counter("gaps_total", "Interruptions of streams.", _by("reason", t["gaps"]))
    out.counter("lost_samples_total", "Samples that no window covers.", _by("reason", t["losses"]))
    out.counter("bad_frames_total", "What could not be read.", _by("reason", t["bad_frames"]))
    drops = {"input": t["drops"]["input"], "outbox": t["drops"]["outbox"], "unsent": t["drops"]["unsent"]}
    out.counter("dropped_total", "Let go by a full queue: samples by input, else messages.", _by("queue", drops))

    d = t["delivery"]
    out.counter("published_messages_total", "Made, each counted once.", _one(d["published"]))
    out.counter("acknowledged_messages_total", "Acknowledged by the broker.", _one(d["acknowledged"]))
    out.counter("historical_messages_total", "Published later than they were made.", _one(d["historical"]))
    out.counter("refused_messages_total", "Refused by the broker for good.", _one(d["refused"]))
    out.gauge("in_flight_messages", "Offered and not acknowledged.", _one(d["in_flight"]))
    out.gauge("outbox_messages", "Messages in the outbox.", _one(t["outbox"]["depth"]))
    out.gauge("outbox_bytes", "Bytes of the messages in the outbox.", _one(t["outbox"]["size_bytes"]))
    out.counter("disk_written_bytes_total", "Bytes written to disk.", _one(t["outbox"]["written_bytes"]))

    out.gauge("latency_seconds", "Of the last interval, by stage and statistic.", _latencies(t))
    out.counter("cpu_seconds_total", "CPU time of the agent, all threads.", _one(t["cpu_s"]))
    out.gauge("resident_memory_bytes", "Memory of the agent.", _one(t["rss_bytes"]))
    out.gauge("temperature_celsius", "Of the board's processor.", _one(t["temperature_c"]))

    read_by = {"source": t["throttling"]["source"]}
    out.gauge("throttled", "Whether the board holds itself back.", [(read_by, t["throttling"]["now"])])
    out.gauge("under_voltage", "Whether the supply is too weak.", [(read_by, t["throttling"]["under_voltage"])])
    p, measured_by = t["power"], {"source": t["power"]["source"]}
    error = None if p["error_pct"] is None else p["error_pct"] / 100
    out.gauge("power_watts", "Drawn by the board; source model is a guess.", [(measured_by, p["watts"])])
    out.gauge("power_error_ratio", "What the source may be off.", [(measured_by, error)])
    out.gauge("power_idle_watts", "Drawn with nothing to do.", [(measured_by, p["idle_watts"])])
    out.gauge("window_energy_joules", "Above idle, for each window.", [(measured_by, p["joules_per_window"])])

    if (cloud := t.get("cloud")) is not None:
        out.counter("cloud_requests_total", "Windows that the cloud was asked about.", _one(cloud["asked"]))
        _asked("cloud", cloud, out)
    if (split := t.get("split")) is not None:
        _split(split, out)
    if health is not None:
        out.gauge("health", "1 for the state that it is in.", [({"state": s}, s == health["state"]) for s in _HEALTH])
        wrong = dict.fromkeys((reason["code"] for reason in health["reasons"]), 1)
        out.gauge("health_reason", "1 for each thing that is wrong.", _by("code", wrong))
    return out.text()


def _asked(prefix: str, c: RequestFigures, out: "_Page") -> None:
    """What became of requests, of either kind."""
    became = {
        "answered": c["answered"],
        "timed_out": c["timed_out"],
        "refused": sum(c["refused"].values()),
        "garbled": c["garbled"],
        "not_sent": c["not_sent"],
        "abandoned": c["abandoned"],
    }
    out.counter(f"{prefix}_outcomes_total", "What became of requests.", _by("outcome", became))
    out.counter(f"{prefix}_refusals_total", "Requests that a worker refused.", _by("reason", c["refused"]))
    out.counter(f"{prefix}_not_asked_total", "Windows that were not asked about.", _by("reason", c["not_asked"]))
    out.counter(f"{prefix}_late_answers_total", "Answers after the deadline.", _one(c["late"]))
    out.counter(f"{prefix}_unexpected_answers_total", "Answers to nothing that was asked.", _one(c["unexpected"]))
    out.counter(f"{prefix}_dropped_answers_total", "Answers thrown away unseen.", _one(c["dropped"]))
    carried = {"up": c["bytes_up"], "down": c["bytes_down"]}
    out.counter(f"{prefix}_bytes_total", "Of requests and answers.", _by("direction", carried))
    rtt = [({"statistic": name}, ms / 1e3) for name, ms in _floats(c["rtt_ms"]).items()]
    out.gauge(f"{prefix}_rtt_seconds", "From request to answer, of the last interval.", rtt)
    state = [({"state": s}, s == c["breaker"]) for s in _BREAKER]
    out.gauge(f"{prefix}_breaker", "1 for the state that it is in.", state)


def _split(s: SplitFigures, out: "_Page") -> None:
    out.counter("split_windows_total", "Windows, by the exit that answered.", _by("exit", s["windows"]))
    out.counter("split_away_windows_total", "Windows whose rest others ran.", _one(s["away"]))
    out.counter("split_requests_total", "Requests to run the rest of the network.", _one(s["asked"]))
    _asked("split", s, out)
    rtt, mbit = s["link_rtt_ms"], s["link_mbit"]
    out.gauge("split_link_rtt_seconds", "Of no bytes, without workers' time.", _one(None if rtt is None else rtt / 1e3))
    out.gauge("split_link_bits_per_second", "As it is known now.", _one(None if mbit is None else mbit * 1e6))


class _Page:
    """Families of metrics, one after the other; one without samples is left out."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def gauge(self, name: str, about: str, samples: Iterable[Sample]) -> None:
        self._family("gauge", name, about, samples)

    def counter(self, name: str, about: str, samples: Iterable[Sample]) -> None:
        self._family("counter", name, about, samples)

    def text(self) -> str:
        return "".join(line + "\n" for line in self._lines)

    def _family(self, kind: str, name: str, about: str, samples: Iterable[Sample]) -> None:
        lines = [f"har_{name}{_braces(labels)} {_value(value)}" for labels, value in samples if value is not None]
        if lines:
            self._lines += [f"# HELP har_{name} {about}", f"# TYPE har_{name} {kind}", *lines]


def _one(value: float | None) -> list[Sample]:
    return [(_NONE, value)]


def _by(label: str, values: Mapping[str, int]) -> list[Sample]:
    return [({label: name}, value) for name, value in values.items()]


def _labelled(t: TelemetryMessage) -> list[Sample]:
    return [({"agent": t["agent"], "model": t["model"], "boot": t["boot"]}, 1)]


def _latencies(t: TelemetryMessage) -> list[Sample]:
    """Milliseconds by stage and statistic, as seconds; a summary would need sum and count of all time."""
    stages: Mapping[str, Mapping[str, float]] = {
        "wait": _floats(t["latency_ms"]["wait"]),
        "infer": _floats(t["latency_ms"]["infer"]),
        "total": _floats(t["latency_ms"]["total"]),
        "delivered": _floats(t["latency_ms"]["delivered"]),
    }
    return [
        ({"stage": stage, "statistic": statistic}, ms / 1e3)
        for stage, figures in stages.items()
        for statistic, ms in figures.items()
    ]


def _floats(figures: Mapping[str, object]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def _value(value: float) -> str:
    return repr(int(value)) if isinstance(value, int) else repr(value)


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(value: str) -> str:
    """A label's value; what is no Unicode, such as bytes of a file name, becomes a question mark."""
    value = value.encode("utf-8", "replace").decode("utf-8")
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
