"""Records to the text that subscribers and files get, as `docs/reference` describes it."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Final

from agent.core.decoders.recording import FORMAT
from agent.records import CHANNELS, ActivityChange, Prediction, SampleBatch, Timings

if TYPE_CHECKING:
    from agent.core.messages import ActivityMessage, PredictionMessage

VERSION: Final = 1
"""Version of every message: `v`."""

_DIGITS = 4
"""Digits of a probability: finer than what another CPU's exp() may round differently."""

LIVE, HISTORICAL = b'"historical":false', b'"historical":true'
"""How a prediction says that it is live, once and so spelled, and what stands there when it is sent later.

Neither can be part of a string inside a message: there a quotation mark has a backslash before it.
"""

_LATENCY = ',"latency_ms":{"wait":%.3f,"infer":%.3f,"total":%.3f%s}'

_LONGEST_LEVEL = 200
"""Bytes of a level of a topic: a topic has 65,535, and a device's name comes from outside."""


def prediction_message(prediction: Prediction, labels: Sequence[str]) -> "PredictionMessage":
    """Return `prediction` as the object of CONTRACTS, less what only a live agent knows.

    `labels`: the model's, in the order of `prediction.scores`. Times in seconds of the device's clock.
    """
    p = prediction
    return {
        "v": VERSION,
        "device": p.stream,
        "seq": p.seq,
        "t0": p.t0_ns / 1e9,
        "t1": p.t1_ns / 1e9,
        "label": p.label,
        "confidence": round(p.confidence, _DIGITS),
        "scores": {name: round(score, _DIGITS) for name, score in zip(labels, p.scores, strict=True)},
        "novelty": _significant(p.novelty),
        "known": p.known,
        "activity": p.activity,
        "origin": p.origin.value,
        "model": p.model,
    }


class LivePredictions:
    """Predictions as a live agent publishes them: `prediction_message` and what only it knows, ready to send.

    A gateway makes more than a thousand a second, so the text is filled in, not built: 6 µs each, where a dictionary
    and json.dumps take 27.
    """

    def __init__(self, labels: Sequence[str], boot: str) -> None:
        """`labels`: the model's, in the order of `scores`. `boot`: random name of this run of the agent."""
        scores = ",".join(f"{encode_basestring(label).replace('%', '%%')}:%.{_DIGITS}f" for label in labels)
        self._format = (
            f'{{"v":{VERSION},"id":%s,"device":%s,"seq":%d,"t0":%s,"t1":%s,"time":"%s","clock_synced":%s,'
            f'"label":%s,"confidence":%.{_DIGITS}f,"scores":{{{scores}}},"novelty":%s,"known":%s,'
            '"activity":%s,"origin":"%s","model":%s,"historical":false%s}'
        )
        self._boot = boot
        self._second = ""
        self._second_s: int | None = None

    def encode(
        self, prediction: Prediction, wall_ns: int, timings: Timings | None = None, *, clock_synced: bool
    ) -> bytes:
        """Return one message as JSON, UTF-8. `wall_ns`: the window's end, nanoseconds since the Unix epoch.

        Raises:
            ValueError: the scores are not numbers.
        """
        p, text = prediction, encode_basestring
        if not (math.isfinite(p.confidence) and math.isfinite(p.novelty)):
            raise ValueError(
                f"window {p.seq} of {p.stream} has scores that are no numbers: {p.confidence}, {p.novelty}"
            )
        latency = ""
        if timings is not None:
            cloud = "" if timings.cloud_ns is None else f',"cloud":{timings.cloud_ns / 1e6:.3f}'
            latency = _LATENCY % (timings.wait_ns / 1e6, timings.infer_ns / 1e6, timings.total_ns / 1e6, cloud)
        message = self._format % (
            text(f"{self._boot}:{p.stream}:{p.seq}"),
            text(p.stream),
            p.seq,
            p.t0_ns / 1e9,
            p.t1_ns / 1e9,
            self._time(wall_ns),
            "true" if clock_synced else "false",
            text(p.label),
            p.confidence,
            *p.scores,
            _significant(p.novelty),
            "true" if p.known else "false",
            text(p.activity),
            p.origin.value,
            text(p.model),
            latency,
        )
        return message.encode("utf-8", "backslashreplace")

    def _time(self, wall_ns: int) -> str:
        """`iso_time`, which takes as long as the rest; predictions of one second share all but its end."""
        second_s, ns = divmod(wall_ns, 1_000_000_000)
        if second_s != self._second_s:
            self._second_s, self._second = second_s, iso_time(wall_ns)[:-4]
        return f"{self._second}{ns // 1_000_000:03d}Z"


def iso_time(wall_ns: int) -> str:
    """Return nanoseconds since the Unix epoch as UTC, ISO 8601, with whole milliseconds: `2026-05-04T10:21:07.310Z`."""
    second_s, ns = divmod(wall_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(second_s, UTC):%Y-%m-%dT%H:%M:%S}.{ns // 1_000_000:03d}Z"


def topic_level(name: str) -> str:
    """Return `name` as one level of a topic.

    What MQTT gives a meaning to, or brokers refuse, becomes an underscore; a level that is not the name ends with a
    hash of it, so that two names never share one. Control characters, which mosquitto disconnects for, are among them.
    """
    level = "".join("_" if c in "+#/" or not c.isprintable() else c for c in name)
    level = level.encode()[:_LONGEST_LEVEL].decode(errors="ignore")
    if level == name and name:
        return name
    return f"{level}-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def activity_message(
    change: ActivityChange, wall_ns: int | None = None, *, clock_synced: bool = False
) -> "ActivityMessage":
    """Return the retained message of a changed activity. `wall_ns`: of `change.t_ns`, if a live agent knows it."""
    message: ActivityMessage = {
        "v": VERSION,
        "device": change.stream,
        "t": change.t_ns / 1e9,
        "activity": change.activity,
        "previous": change.previous,
        "confidence": round(change.confidence, _DIGITS),
    }
    if wall_ns is not None:
        message["time"], message["clock_synced"] = iso_time(wall_ns), clock_synced
    return message


def encode(message: Mapping[str, Any]) -> bytes:
    """Compact JSON, UTF-8, without a line end.

    What is no Unicode, such as bytes of a file name, becomes an escape that JSON knows.
    """
    text = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


CSV_COLUMNS = (
    "device",
    "seq",
    "t0",
    "t1",
    "label",
    "confidence",
    "novelty",
    "known",
    "activity",
    "origin",
    "model",
)
"""Columns of predictions as CSV: those of `prediction_message` without the scores of the other labels."""


def csv_row(prediction: Prediction) -> tuple[str | int | float | bool, ...]:
    """Return one prediction as values for `CSV_COLUMNS`."""
    p = prediction
    confidence, novelty = round(p.confidence, _DIGITS), _significant(p.novelty)
    times = p.t0_ns / 1e9, p.t1_ns / 1e9
    return (p.stream, p.seq, *times, p.label, confidence, novelty, p.known, p.activity, p.origin.value, p.model)


def _significant(x: float) -> float:
    return float(f"{x:.{_DIGITS}g}")


def recording_header(device: str, rate_hz: float | None) -> str:
    """Return the comment header and the column line of a recording in g and rad/s, with labels.

    `rate_hz`: None where it is not known; times are in every row.
    """
    rate = {} if rate_hz is None else {"rate_hz": f"{rate_hz:g}"}
    facts = {"format": FORMAT, "device": device, **rate, "acc_unit": "g", "gyro_unit": "rad/s"}
    lines = [f"# {name}: {value}\n" for name, value in facts.items()]
    return "".join(lines) + ",".join(("t", *CHANNELS, "label")) + "\n"


def recording_rows(batch: SampleBatch, label: str | None) -> tuple[str, str | None]:
    """Return a batch as lines of a recording, and the label after it. `label`: the one before it.

    Times to the microsecond, values to 1e-5 g or rad/s: finer than any sensor that is read here.
    """
    changes = {change.seq: change.label for change in batch.truth}
    lines = []
    samples = zip(batch.t_ns.tolist(), batch.values.tolist(), strict=True)
    for seq, (t_ns, (a, b, c, d, e, f)) in enumerate(samples, batch.seq0):
        label = changes.get(seq, label)
        lines.append(f"{t_ns / 1e9:.6f},{a:.5f},{b:.5f},{c:.5f},{d:.5f},{e:.5f},{f:.5f},{label or ''}\n")
    return "".join(lines), label
