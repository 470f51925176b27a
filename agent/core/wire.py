"""Records to the text that subscribers and files get, as `docs/reference` describes it."""

import json
from collections.abc import Sequence
from typing import Any

from agent.core.decoders.recording import FORMAT
from agent.records import CHANNELS, ActivityChange, Prediction, SampleBatch, Timings

VERSION = 1
"""Version of every message: `v`."""

_DIGITS = 4
"""Digits of a probability: finer than what another CPU's exp() may round differently."""


def prediction_message(prediction: Prediction, labels: Sequence[str]) -> dict[str, Any]:
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


def live_fields(prediction: Prediction, boot: str, timings: Timings | None = None) -> dict[str, Any]:
    """Return what a live agent adds to `prediction_message`: the id that is stable across redelivery, and latency."""
    added: dict[str, Any] = {"id": f"{boot}:{prediction.stream}:{prediction.seq}"}
    if timings is not None:
        added["latency_ms"] = {
            "wait": timings.wait_ns / 1e6,
            "infer": timings.infer_ns / 1e6,
            "total": timings.total_ns / 1e6,
        }
    return added


def activity_message(change: ActivityChange) -> dict[str, Any]:
    """Return the retained message of a changed activity."""
    return {
        "v": VERSION,
        "device": change.stream,
        "t": change.t_ns / 1e9,
        "activity": change.activity,
        "previous": change.previous,
        "confidence": round(change.confidence, _DIGITS),
    }


def encode(message: dict[str, Any]) -> bytes:
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


def recording_header(device: str, rate_hz: float) -> str:
    """Return the comment header and the column line of a recording in g and rad/s, with labels."""
    facts = {"format": FORMAT, "device": device, "rate_hz": f"{rate_hz:g}", "acc_unit": "g", "gyro_unit": "rad/s"}
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
