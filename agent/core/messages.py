"""The messages that the agent publishes, version 1: every field, its type, and what it means, said once.

`docs/reference/messages.md` and the JSON Schemas beside it are written from these types by tools/docs.py. Names carry
their unit; a field that is `NotRequired` is absent where it cannot be known, one that may be null is always there.

Modules that a board runs import this for the type checker alone: making the types takes milliseconds at every start.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

Version = Annotated[Literal[1], "version of the message"]
Device = Annotated[str, "the stream, as its source names it"]
Agent = Annotated[str, "the board, as it calls itself"]
Time = Annotated[str, "this board's wall clock, UTC, ISO 8601 with milliseconds"]
Synced = Annotated[bool, "whether something keeps this board's wall clock right"]

AvailabilityState = Literal["online", "offline", "degraded"]
HealthState = Literal["ok", "degraded", "failing"]


class StageLatency(TypedDict):
    """Where the time of one prediction went."""

    wait: Annotated[float, "from the receipt of the window's last sample to the start of the turn"]
    infer: Annotated[float, "model calls of that turn"]
    total: Annotated[float, "from the receipt of the window's last sample to the prediction"]
    cloud: NotRequired[
        Annotated[float, "from the question to the cloud to its answer, or to the deadline; absent if it was not asked"]
    ]


class PredictionMessage(TypedDict):
    """`<root>/<device>/prediction`, for every window; and a line of `har-agent replay`.

    Delivery is at least once: drop repeats by `id`. Probabilities are rounded to four decimals, novelty to four
    significant digits. As CSV: `recording`, then `device` to `model` without `scores`.
    """

    v: Version
    recording: NotRequired[Annotated[str, "replay only: the file, as it was named"]]
    id: NotRequired[Annotated[str, "live only: `<boot>:<device>:<seq>`, the same however often it is delivered"]]
    device: Device
    seq: Annotated[int, "number of the window in its stream, from 0; it goes on across gaps"]
    t0: Annotated[float, "start of the window, seconds of the device's clock"]
    t1: Annotated[float, "end of the window, which covers t0 ≤ t < t1"]
    time: NotRequired[Annotated[str, "live only: the window's end on this board's wall clock, UTC, ISO 8601"]]
    clock_synced: NotRequired[Annotated[bool, "live only: whether something kept that clock right"]]
    label: Annotated[str, "the most probable class of this window"]
    confidence: Annotated[float, "its calibrated probability"]
    scores: Annotated[dict[str, float], "calibrated probability of every class"]
    novelty: Annotated[float, "how unlike the codes of known activities the window's is, in the bundle's own unit"]
    known: Annotated[bool, "false where `novelty` is above the bundle's threshold; of the cloud, what it says"]
    activity: Annotated[str, "the decision after this window and those before it, or `unknown`"]
    origin: Annotated[Literal["local", "cloud"], "whose `label`, `scores`, `known` and `model` are; `novelty` is local"]
    model: Annotated[str, "name and digest of the bundle"]
    historical: NotRequired[Annotated[bool, "live only: true where it was stored and is sent later"]]
    latency_ms: NotRequired[Annotated[StageLatency, "live only, milliseconds"]]


class RevisionMessage(PredictionMessage):
    """`<root>/<device>/revision`, if `cloud.revise` is set: an answer of the cloud that came after the deadline.

    As the prediction with the same `id`, which was published without it: `label`, `confidence`, `scores`, `known`,
    `origin` and `model` are of the answer. `activity` is what was decided then, and stands.
    """


class ActivityMessage(TypedDict):
    """`<root>/<device>/activity`, retained, when the decided activity changes."""

    v: Version
    device: Device
    t: Annotated[float, "end of the deciding window, seconds of the device's clock"]
    activity: Annotated[str, "what was decided, which may be `unknown`"]
    previous: Annotated[str | None, "what it was before; null at first"]
    confidence: Annotated[float, "the probability of `activity` after this window and those before it"]
    time: NotRequired[Annotated[str, "that end on this board's wall clock, UTC, ISO 8601"]]
    clock_synced: NotRequired[Annotated[bool, "whether something kept that clock right"]]


class AvailabilityMessage(TypedDict):
    """`<root>/<device>/availability`, retained."""

    v: Version
    device: Device
    agent: Annotated[str, "the board that reads it"]
    state: Annotated[AvailabilityState, "`degraded`: samples come, but cannot be used as they should"]
    reason: NotRequired[Annotated[str, "why, for people, unless `online`"]]


class StatusMessage(TypedDict):
    """`<root>/<agent>/status`, retained. The last will has `v` and `state` alone."""

    v: Version
    state: Annotated[Literal["online", "offline"], "whether the agent is connected to this broker"]
    agent: NotRequired[Agent]
    version: NotRequired[Annotated[str, "of har-edge-agent"]]
    release: NotRequired[Annotated[str, "id of the release that is installed, `0.2.0+1a2b3c4d`; absent without one"]]
    model: NotRequired[Annotated[str, "name and digest of the bundle that runs"]]
    labels: NotRequired[Annotated[list[str], "its classes"]]
    boot: NotRequired[Annotated[str, "random name of this run of the agent, the first part of every `id`"]]
    boot_id: NotRequired[Annotated[str | None, "the kernel's name of this boot of the board"]]
    started: NotRequired[Annotated[str, "when this run began, by this board's wall clock then, UTC, ISO 8601"]]
    board: NotRequired[Annotated[str, "what the board calls its model"]]
    sources: NotRequired[Annotated[list[str], "what is read, such as `serial waist-07`, `mqtt imu/{device}/samples`"]]


class LatencySummary(TypedDict):
    """`p50`, `p95`, `p99` and `max`, milliseconds, at most 1.1 % off; none where nothing was measured."""

    p50: NotRequired[float]
    p95: NotRequired[float]
    p99: NotRequired[float]
    max: NotRequired[float]


class LatencyByStage(TypedDict):
    """Where time went between a sample and the broker: `p50`, `p95`, `p99` and `max`, at most 1.1 % off."""

    wait: Annotated[LatencySummary, "from the receipt of the window's last sample to the start of the turn"]
    infer: Annotated[LatencySummary, "model calls of that turn"]
    total: Annotated[LatencySummary, "from the receipt of the window's last sample to the prediction"]
    delivered: Annotated[LatencySummary, "from that receipt to the broker's acknowledgement, of live messages"]


class DropCounts(TypedDict):
    """What was let go, by the queue that was full."""

    input: Annotated[int, "samples that waited for the pipeline"]
    outbox: Annotated[int, "messages that waited for the broker, oldest first, beyond `outbox.max_mb`"]
    unsent: Annotated[int, "telemetry and replies to commands while the broker was away, which are not stored"]


class DeliveryCounts(TypedDict):
    """What became of the messages that may not be lost."""

    published: Annotated[int, "messages that were to be delivered"]
    acknowledged: Annotated[int, "of those: acknowledged by the broker"]
    historical: Annotated[int, "times one was sent from the outbox, later than it was made"]
    refused: Annotated[int, "times the broker refused one, of any kind"]
    in_flight: Annotated[int, "messages of any kind that wait for an acknowledgement now"]
    possible_repeats: Annotated[int, "messages sent again because nobody knows whether they had arrived"]


class OutboxFigures(TypedDict):
    """The store of messages that wait for the broker."""

    depth: Annotated[int, "messages held now"]
    size_bytes: Annotated[int, "their bytes"]
    written_bytes: Annotated[int | None, "bytes that this process had written to disk since it began; null: not known"]
    written_bytes_per_day: Annotated[
        int | None, "the same, of the interval, projected; null: not known, or the first of a run"
    ]
    problem: NotRequired[Annotated[str, "what is wrong with the storage, for people"]]


class Throttling(TypedDict):
    """Whether the board holds itself back."""

    now: Annotated[bool | None, "for heat or for its supply; null: not known"]
    under_voltage: Annotated[bool | None, "the supply is too weak now; null: not known"]
    source: Annotated[str, "where it was read: `hwmon`, `vcgencmd`, `thermal`, or `none`"]


class Power(TypedDict):
    """What the board draws. What is modelled is never shown as measured: see `source`."""

    watts: Annotated[float | None, "mean of the interval; null: not known"]
    source: Annotated[str, "what measured it: `ina219`, `ina3221`, `hwmon`, `pmic`, `battery`, `rapl`; `model`, `none`"]
    error_pct: Annotated[float | None, "what the source may be off; null: it does not say"]
    joules: Annotated[float | None, "energy of the interval; null: it was not measured all through"]
    idle_watts: Annotated[float | None, "configured, or the least that was measured while nothing was predicted"]
    joules_per_window: Annotated[float | None, "energy above idle, divided by the interval's windows; null: not known"]


class RequestFigures(TypedDict):
    """What became of requests, and of windows that were not asked about.

    `asked` is the sum of what follows it, to `abandoned`, and of what waits now. The deadline of `[cloud]` begins once
    a window is scored; that of `[split]` ends when the rest of the network has to be run here.
    """

    asked: Annotated[int, "requests: `[cloud]` asks about one window in each, `[split]` about as many as fit into one"]
    answered: Annotated[int, "within the deadline: the answer was used"]
    timed_out: Annotated[int, "not answered within the deadline"]
    refused: Annotated[dict[str, int], "by the worker, by reason"]
    garbled: Annotated[int, "answered by what is no answer, or is one for something else"]
    not_sent: Annotated[int, "not taken by the connection"]
    abandoned: Annotated[
        int, "not waited for: the model, the device or the agent went, or a part of the network failed"
    ]
    not_asked: Annotated[dict[str, int], "windows that were meant to be asked about, and were not, by reason"]
    late: Annotated[int, "answers that came after the deadline"]
    unexpected: Annotated[int, "answers to nothing that was asked, or was answered already"]
    dropped: Annotated[int, "answers, of any kind, that were thrown away because too many waited to be looked at"]
    bytes_up: Annotated[int, "of requests, without what MQTT adds"]
    bytes_down: Annotated[int, "of answers of any kind, without what MQTT adds"]
    rtt_ms: Annotated[
        LatencySummary, "from a request, or the first one sent with it, to its answer or refusal, late ones included"
    ]
    breaker: Annotated[
        Literal["closed", "open", "half-open"],
        "`open`: nothing is asked for a while; `half-open`: one request tries, or the next one will",
    ]


class SplitFigures(RequestFigures):
    """What became of windows of whose network others may run the rest, and of the requests for it."""

    cut: Annotated[str | None, "the tensor that is sent now; null while all of the network is to run here"]
    windows: Annotated[dict[str, int], "windows, by the exit that answered: `end` is the network's end"]
    away: Annotated[int, "of those: windows whose rest others ran"]
    link_rtt_ms: Annotated[float | None, "round trip of no bytes, as it is known now, without the workers' time"]
    link_mbit: Annotated[float | None, "bandwidth, as it is known now; null: it was not noticed yet"]


class WorstStream(TypedDict):
    """A stream that lost much in the interval."""

    device: Device
    windows: Annotated[int, "that were predicted in the interval"]
    gaps: Annotated[int, "interruptions in the interval"]
    lost: Annotated[int, "samples and frames that were lost in the interval, for any reason"]


class TelemetryMessage(TypedDict):
    """`<root>/<agent>/telemetry`, every `telemetry.interval_s`.

    Counters are totals since this run of the agent began. `windows_per_s`, `worst_streams`, `latency_ms`, `power`,
    `cloud.rtt_ms`, `split.rtt_ms` and what is a day's are of the interval since the message before.
    """

    v: Version
    agent: Agent
    boot: Annotated[str, "random name of this run of the agent"]
    time: Time
    clock_synced: Synced
    uptime_s: Annotated[float, "since this run began"]
    interval_s: Annotated[float, "since the message before; of the first one, since this run began"]
    model: Annotated[str, "name and digest of the bundle"]
    streams: Annotated[int, "that are read now"]
    samples: int
    windows: Annotated[int, "that were predicted"]
    windows_per_s: Annotated[float, "of the interval"]
    unscored: Annotated[int, "windows on which the model failed"]
    gaps: Annotated[dict[str, int], "interruptions of streams, by reason"]
    losses: Annotated[dict[str, int], "samples that no window covers, by reason"]
    bad_frames: Annotated[dict[str, int], "what could not be read, by reason"]
    worst_streams: Annotated[list[WorstStream], "up to five of those that lost most in the interval"]
    drops: DropCounts
    delivery: DeliveryCounts
    outbox: OutboxFigures
    latency_ms: LatencyByStage
    cpu_s: Annotated[float, "of this process since it began, all threads"]
    rss_bytes: Annotated[int, "of this process now"]
    temperature_c: Annotated[float | None, "of the board's processor; null: not known"]
    throttling: Throttling
    power: Power
    cloud: NotRequired[Annotated[RequestFigures, "where anything may be asked of the cloud"]]
    split: NotRequired[Annotated[SplitFigures, "where the network is run in parts"]]


class HealthReason(TypedDict):
    """One thing that is wrong."""

    code: Annotated[str, "one of the codes below"]
    text: Annotated[str, "for people"]
    since_s: Annotated[float, "how long, at the time of the message"]


class CoverageGap(TypedDict):
    """What no window covers between an earlier run of the agent and this one, of the stream that lost most.

    From the end of the last window to the beginning of the first one, each by the receipt of its last sample, on this
    board's monotonic clock. Streams count that were not silent when the earlier run last wrote its status, and came
    back within a minute of the start; they say nothing of a start of the board.
    """

    seconds: Annotated[float, "of that stream without a window"]
    windows: Annotated[float, "the same, divided by the length of a window"]
    devices: Annotated[int, "streams that were covered in both runs"]
    absent: Annotated[int, "streams that the earlier run covered, and that are not back yet"]
    previous: Annotated[str, "release of the earlier run, or its version if it was no release"]
    orderly: Annotated[
        bool, "false where that run was killed: the gap is then an upper bound, by up to `interval_s` of its status"
    ]


class HealthMessage(TypedDict):
    """`<root>/<agent>/health`, retained, on change and with telemetry."""

    v: Version
    agent: Agent
    state: Annotated[
        HealthState, "`degraded`: it works, less than it should; `failing`: predictions are not made or lost"
    ]
    reasons: Annotated[list[HealthReason], "worst first; empty while all is well"]
    time: Time
    clock_synced: Synced
    boot: NotRequired[Annotated[str, "random name of the run that says it: that of `status`, unless this is older"]]
    windows: NotRequired[Annotated[int, "predicted in that run so far; told anew once there is a first one"]]
    coverage_gap: NotRequired[Annotated[CoverageGap, "since the run before; absent where nothing is known of one"]]


class BatchFigures(TypedDict):
    """Requests in one call of a model."""

    mean: Annotated[float, "over the interval's calls; 0 where there was none"]
    max: int


class WorkerLatency(TypedDict):
    """Where time went between a request and its answer: `p50`, `p95`, `p99` and `max`, at most 1.1 % off."""

    wait: Annotated[LatencySummary, "from a request's receipt to its turn"]
    infer: Annotated[LatencySummary, "calls of models, each for a batch"]
    total: Annotated[LatencySummary, "from a request's receipt to its answer, or to passing it on"]


class WorkerMessage(TypedDict):
    """`<root>/<worker>/worker`, every `telemetry.interval_s`, by `har-agent cloud-worker`.

    Counters are totals since this run began. `requests_per_s`, `batch` and `latency_ms` are of the interval since the
    message before.
    """

    v: Version
    agent: Annotated[str, "the worker, as it calls itself"]
    boot: Annotated[str, "random name of this run of the worker"]
    time: Time
    clock_synced: Synced
    uptime_s: Annotated[float, "since this run began"]
    interval_s: Annotated[float, "since the message before; of the first one, since this run began"]
    service: Annotated[str, "under which boards ask"]
    models: Annotated[list[str], "names and digests of the bundles"]
    requests: Annotated[int, "that came"]
    requests_per_s: Annotated[float, "of the interval"]
    answered: int
    passed_on: Annotated[int, "tensors that went on to the workers of `worker.next`"]
    refused: Annotated[
        dict[str, int],
        "by reason, told to the board: `bad_request`, `unknown_version`, `too_large`, `other_code`, `other_window`, "
        "`overloaded`, `failed`, `other_part`, `nowhere_next`; and `no_answer_topic`, `long_correlation` (over 64 "
        "bytes) and `expired`, which nobody is told",
    ]
    unsent: Annotated[int, "answers, and tensors to pass on, that could not be sent, because the broker was away"]
    waiting: Annotated[int, "requests that wait now"]
    batch: BatchFigures
    latency_ms: WorkerLatency
    cpu_s: Annotated[float, "of this process since it began, all threads"]
    rss_bytes: Annotated[int, "of this process now"]


class CommandReply(TypedDict):
    """The answer to `<root>/<agent>/command/<name>`, to its response topic, with its correlation data."""

    v: Version
    ok: bool
    error: NotRequired[Annotated[str, "why not, for people"]]
    result: NotRequired[Annotated[dict[str, Any], "what the command gives"]]


MESSAGES: tuple[tuple[str, Any], ...] = (
    ("prediction", PredictionMessage),
    ("revision", RevisionMessage),
    ("activity", ActivityMessage),
    ("availability", AvailabilityMessage),
    ("status", StatusMessage),
    ("telemetry", TelemetryMessage),
    ("health", HealthMessage),
    ("worker", WorkerMessage),
    ("reply", CommandReply),
)
"""Every message by the name of its schema."""
