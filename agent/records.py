"""The records that flow through the house: immutable named tuples.

Frozen dataclasses would say the same, but one takes three times as long to make, for every window of every stream, and
its class eight times as long to define, at every start (docs/decisions).

Units are fixed: acceleration in g, angular velocity in rad/s, time in integer nanoseconds. Sample times are on the
clock of the device that took them; receive times are on this board's monotonic clock.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
"""The six columns of every sample array, in order: acceleration (g), angular velocity (rad/s)."""

UNKNOWN = "unknown"
"""The activity that is decided when the model has not seen anything like the input."""

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Int8Array = npt.NDArray[np.int8]


class Loss(StrEnum):
    """Why something that arrived did not become part of a window. Each is counted; the value is what users read."""

    ENCODING = "bad_encoding"
    COLUMNS = "wrong_number_of_columns"
    NUMBER = "not_a_number"
    NON_FINITE = "nan_or_infinite"
    TIME_RANGE = "time_out_of_range"
    VALUE_RANGE = "value_out_of_range"
    TOO_LONG = "line_too_long"
    TORN = "torn_last_line"
    DUPLICATE_TIME = "duplicate_time"
    BACKWARD_TIME = "backward_time"
    RATE = "unusable_rate"
    INFERENCE = "model_failed"
    PARTIAL_WINDOW = "partial_window"
    QUEUE_FULL = "queue_full"
    CHECKSUM = "bad_checksum"
    FRAME = "bad_frame"
    VERSION = "unknown_version"
    GARBAGE = "bytes_outside_frames"
    MISSED = "missed_samples"
    JSON = "not_json"
    KEYS = "missing_keys"
    TOO_LARGE = "payload_too_large"
    TOPIC = "unexpected_topic"
    TOO_MANY_DEVICES = "too_many_devices"
    RETAINED = "retained_message"
    UNEXPECTED = "unexpected_error"


class GapReason(StrEnum):
    """Why a stream was interrupted."""

    MISSING = "missing_samples"
    TIME_RESET = "time_went_back"
    QUEUE_FULL = "queue_full"
    DISCONNECTED = "disconnected"


class Origin(StrEnum):
    """Who decided a prediction."""

    LOCAL = "local"
    CLOUD = "cloud"


class LabelChange(NamedTuple):
    """From sample `seq` on, taken at `t_ns` (device clock), the recording says `label`; None: not labelled."""

    seq: int
    t_ns: int
    label: str | None


class SampleBatch(NamedTuple):
    """Consecutive samples of one stream, as decoded.

    `t_ns`: int64 (n,), device clock. `values`: float32 (n, 6), `CHANNELS`. `seq0`: number of the first sample, counted
    from 0 by the decoder. `t_rx_ns`: when the last sample was received on this board's monotonic clock; None in a
    recording. `truth`: label changes inside this batch, if the source knows labels.
    """

    stream: str
    t_ns: Int64Array
    values: Float32Array
    seq0: int
    t_rx_ns: int | None = None
    truth: tuple[LabelChange, ...] = ()


class BadFrame(NamedTuple):
    """Something that a decoder could not read. `where`: line number (text) or byte offset (binary), from 1.

    `amount`: how many of them, for bytes outside frames and samples that a sequence number says are missing.
    """

    stream: str
    reason: Loss
    where: int
    amount: int = 1


class Dropped(NamedTuple):
    """The stream is interrupted here: what follows does not continue what came.

    `samples`: how many were let go, because a queue was full; 0 when a port was unplugged and nobody can know.
    """

    stream: str
    samples: int
    reason: GapReason = GapReason.QUEUE_FULL


class Gap(NamedTuple):
    """A stream was interrupted between two samples at `t0_ns` and `t1_ns`; no window spans it.

    `seq`: number of the first sample after it. `discarded`: grid points that were waiting for the rest of their window.
    """

    stream: str
    seq: int
    t0_ns: int
    t1_ns: int
    reason: GapReason
    discarded: int


class Scores(NamedTuple):
    """What the model says of B windows.

    `logits`: float32 (B, classes). `code`: int8 (B, code size), what would be sent instead of the window.
    `novelty`: float64 (B,), how unlike the codes of known activities each is, in the bundle's own unit.
    `by_exit`: bool (B,), which ones an early exit has scored, so that they have no code; None for none of them.
    """

    logits: Float32Array
    code: Int8Array
    novelty: Float64Array
    by_exit: BoolArray | None = None


class Prediction(NamedTuple):
    """The label of one window, and the activity decided after it.

    `t0_ns`, `t1_ns`: device clock, the window covers [t0, t1). `scores`: calibrated probability per label of the
    model, in the model's order. `novelty`: as in `Scores`; `known` is false above the threshold.
    `activity`: the decision after this window and those before it, which may be `UNKNOWN`.
    """

    stream: str
    seq: int
    t0_ns: int
    t1_ns: int
    label: str
    confidence: float
    scores: tuple[float, ...]
    novelty: float
    known: bool
    activity: str
    origin: Origin
    model: str


class Unscored(NamedTuple):
    """The model failed on a window: there is no prediction for it. `reason` is for people."""

    stream: str
    seq: int
    t0_ns: int
    t1_ns: int
    reason: str


class ActivityChange(NamedTuple):
    """The decided activity of a stream changed at `t_ns` (device clock, end of the deciding window)."""

    stream: str
    t_ns: int
    activity: str
    previous: str | None
    confidence: float


class Timings(NamedTuple):
    """Where the time of one prediction went, monotonic clock, nanoseconds.

    `received_ns`: when the window's last sample came. `wait`: from then to the start of the turn. `infer`: the turn's
    model calls. `total`: from then to the prediction. `cloud`: from a question to the cloud to its answer, or to the
    deadline; None where it was not asked.
    """

    stream: str
    seq: int
    received_ns: int
    wait_ns: int
    infer_ns: int
    total_ns: int
    cloud_ns: int | None = None


class Refused(NamedTuple):
    """A stream cannot be used at all; said once, and its samples are counted from then on. `reason` is for people."""

    stream: str
    reason: str


class Outgoing(NamedTuple):
    """A message to publish at QoS 1. `correlation`: data of the request that it answers, MQTT 5."""

    topic: str
    payload: bytes
    retain: bool = False
    correlation: bytes | None = None


class Stored(NamedTuple):
    """A message in the outbox. `key` grows with every message that was ever stored there."""

    key: int
    topic: str
    payload: bytes


class Ack(NamedTuple):
    """The broker's answer to the message that was offered under `token`, at `t_ns`; `refusal` is for people."""

    token: int
    t_ns: int
    refusal: str | None = None


class CloudReply(NamedTuple):
    """What a worker says of the request that was sent with `correlation`; it came at `t_ns`, monotonic clock."""

    correlation: bytes
    payload: bytes
    t_ns: int


class LinkState(NamedTuple):
    """Where a link stands. `session`: number of the connection, from 1; what was offered in another one is void.

    `broker`: name of the broker that is connected, or tried. `problem`: for people, None while all is well. `window`:
    messages that may be on their way to this broker and back; 0 where that is not known.
    """

    connected: bool
    session: int
    broker: str
    problem: str | None = None
    window: int = 0


class PowerReading(NamedTuple):
    """Power drawn now. `source` says what measured it; a modelled figure carries its error, never another source."""

    watts: float | None
    source: str
    error_pct: float | None


Event = Gap | Refused | Prediction | Unscored | ActivityChange
Decoded = SampleBatch | BadFrame | Dropped


class Turn(NamedTuple):
    """One turn of the engine: what came in, and what came out of it.

    `timings`: by (stream, seq), live sources only. `revisions`: what the cloud says, too late, of windows that were
    decided without it, only if that is asked for; their `activity` is what was decided then.
    """

    batches: Sequence[SampleBatch]
    bad: Sequence[BadFrame]
    events: Sequence[Event]
    timings: Mapping[tuple[str, int], Timings]
    revisions: Sequence[Prediction] = ()
