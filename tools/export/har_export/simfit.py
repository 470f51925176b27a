"""Fit the coefficients of the simulated IMU on the HAPT recordings.

A gait is fitted in the phase of the stride: the vertical acceleration, band-passed around the step rate,
gives the phase by its analytic signal, and the harmonics follow by least squares. Which foot a stride begins
with is found by turning every segment's harmonics to where they agree best. A change of posture is fitted as
its deviation from gravity turning on a great circle, in time stretched to its length. Spread between people:
the principal directions of gravity, stride rate and vigour, taken together, so that a phone which is worn
askew is askew in every activity.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.core.gait import TRANSITION, Span, rotate
from agent.core.gait_coefficients import ACTIVITIES, CHANGES, FIT_RATE_HZ, FORMAT, GAITS, POSTURES
from agent.errors import InputError
from har_export.datasets import load
from har_export.datasets.records import Recording
from har_export.datasets.smartphone import LABELS

Array = npt.NDArray[np.float64]

SOURCE = (
    "Smartphone-Based Recognition of Human Activities and Postural Transitions, UCI Machine Learning "
    "Repository, id 341: the recordings of 21 subjects"
)
CITATION = (
    "J.-L. Reyes-Ortiz, L. Oneto, A. Sama, X. Parra, D. Anguita: Transition-Aware Human Activity Recognition "
    "Using Smartphones. Neurocomputing 171 (2016) 754-767"
)

HARMONICS = 12
"""Harmonics of the stride rate that are kept: up to about 11 Hz."""
PATTERN_KNOTS = 13
AR_ORDER = 4
DIRECTIONS = 6
STEP_BAND_HZ = (1.2, 2.6)
_STILL = 2 * FIT_RATE_HZ
TRIM = FIT_RATE_HZ
"""Samples left out at each end of a segment: people begin and stop."""


def segments(recording: Recording, label: str, shortest: int) -> list[tuple[int, int]]:
    """Find where `label` lasts at least `shortest` samples: first of them, one past the last."""
    inside = np.concatenate([[0], (recording.label == LABELS.index(label)).astype(np.int8), [0]])
    edges = np.diff(inside)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if b - a >= shortest]


def changes(recording: Recording) -> list[tuple[str, int, int]]:
    """Find the changes of posture in `recording`: name, first sample, one past the last.

    The readers make one class of them; which one it is follows from the activities on either side.
    """
    found = []
    activity = np.flatnonzero((recording.label >= 0) & (recording.label < len(ACTIVITIES)))
    for a, b in segments(recording, TRANSITION, FIT_RATE_HZ):
        i = int(np.searchsorted(activity, a))
        if 0 < i < len(activity):
            before, after = (LABELS[recording.label[activity[k]]] for k in (i - 1, i))
            name = Span(0, 1, before, after).change
            if name is not None:
                found.append((name, a, b))
    return found


def fit(recordings: Sequence[Recording]) -> dict[str, Any]:
    """Return the coefficients as the JSON object that `agent.core.gait.parse` reads."""
    gaits = {name: _fit_gait(recordings, name) for name in GAITS}
    users = sorted({r.subject for r in recordings}, key=int)
    return {
        "format": FORMAT,
        "source": SOURCE,
        "citation": CITATION,
        "fitted": f"har-export fit-simulator, {len(users)} subjects, medians over subjects",
        "people": _fit_people(recordings, users, gaits),
        "gaits": {name: _strip(gait) for name, gait in gaits.items()},
        "postures": {name: _fit_posture(recordings, name) for name in POSTURES},
        "changes": {name: _fit_change(recordings, name) for name in CHANGES},
    }


def _strip(gait: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in gait.items() if key != "subjects"}


def _rows(x: Array, digits: int = 4) -> Any:
    return np.round(np.asarray(x, dtype=np.float64), digits).tolist()


def step_phase(vertical: Array) -> tuple[Array, float]:
    """Phase (n,) of the steps in a vertical acceleration (n,), in steps, and the step rate in Hz.

    Also valid for a segment with a wandering rate: the band is wide.
    """
    n = len(vertical)
    x = vertical - vertical.mean()
    spectrum = np.fft.fft(x)
    f = np.fft.fftfreq(n, 1 / FIT_RATE_HZ)
    band = (f >= STEP_BAND_HZ[0]) & (f <= STEP_BAND_HZ[1])
    smooth = np.convolve(np.abs(spectrum) ** 2, np.ones(3) / 3, mode="same")
    peak = float(f[band][np.argmax(smooth[band])])
    keep = (f > 0.65 * peak) & (f < 1.35 * peak)
    analytic = np.fft.ifft(np.where(keep, 2 * spectrum, 0))
    return np.unwrap(np.angle(analytic)) / (2 * np.pi), peak


def _basis(phase: Array) -> Array:
    turns = 2 * np.pi * np.outer(phase, 1 + np.arange(HARMONICS))
    return np.concatenate([np.ones((len(phase), 1)), np.cos(turns), np.sin(turns)], axis=1)


def _turn(harmonics: npt.NDArray[np.complex128], strides: float) -> npt.NDArray[np.complex128]:
    return np.asarray(harmonics * np.exp(-2j * np.pi * strides * (1 + np.arange(HARMONICS)))[:, None])


def _align(harmonics: npt.NDArray[np.complex128], reference: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    """Turn `harmonics` (h, 6) to the phase where they agree best with `reference`."""
    weight = np.array([1, 1, 1, 0.3, 0.3, 0.3])
    turned = [_turn(harmonics, k / 64) for k in range(64)]
    return max(turned, key=lambda c: float((np.real(c * reference.conj()) * weight).sum()))


def _fit_gait(recordings: Sequence[Recording], name: str) -> dict[str, Any]:
    """Fit one gait; under `subjects`, what each person's vector needs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for r in recordings:
        for a, b in segments(r, name, 6 * FIT_RATE_HZ):
            found.setdefault(r.subject, []).append(
                _fit_strides(np.asarray(r.values[a:b][TRIM:-TRIM], dtype=np.float64))
            )
    everything = [s for segs in found.values() for s in segs]
    reference = max((s["harmonics"] for s in everything), key=lambda c: float(np.abs(c[:4, :3]).sum()))
    for _ in range(4):
        for s in everything:
            s["harmonics"] = _align(s["harmonics"], reference)
        reference = np.mean([s["harmonics"] for s in everything], axis=0)
    by_subject = {u: np.mean([s["harmonics"] for s in segs], axis=0) for u, segs in found.items()}
    size = np.median([np.median([np.abs(s["harmonics"]) for s in segs], axis=0) for segs in found.values()], axis=0)
    phase = np.angle(np.sum([c / np.linalg.norm(c) for c in by_subject.values()], axis=0))
    harmonics = size * np.exp(1j * phase)
    power = np.sqrt((np.abs(harmonics) ** 2).sum(axis=0) / 2)
    wanted = np.median([np.median([s["rms"] for s in segs], axis=0) for segs in found.values()], axis=0)
    harmonics = harmonics * (wanted / power)
    subjects = {
        u: {
            "stride_hz": float(np.median([s["stride_hz"] for s in segs])),
            "rms": np.median([s["rms"] for s in segs], axis=0),
        }
        for u, segs in found.items()
    }
    return {
        "cos": _rows(harmonics.real),
        "sin": _rows(-harmonics.imag),
        "turn": _rows(np.median([np.median([s["mean"][3:] for s in g], axis=0) for g in found.values()], axis=0)),
        "rate_jitter": round(float(np.median([s["rate_jitter"] for s in everything])), 4),
        "gain_jitter": round(float(np.median([s["gain_jitter"] for s in everything])), 4),
        "residual": _fit_residual([[s["residual"] for s in segs] for segs in found.values()]),
        "subjects": subjects,
    }


def _fit_strides(x: Array) -> dict[str, Any]:
    """One segment (n, 6) of gait: harmonics (h, 6) complex, and what they leave."""
    steps, step_hz = step_phase(x[:, 0])
    phase = steps / 2
    basis = _basis(phase)
    solution, *_ = np.linalg.lstsq(basis, x, rcond=None)
    periodic = basis[:, 1:] @ solution[1:]
    cos, sin = solution[1 : 1 + HARMONICS], solution[1 + HARMONICS :]
    strides = np.interp(np.arange(np.ceil(phase[0]), np.floor(phase[-1])), phase, np.arange(len(phase)))
    durations = np.diff(strides)
    sizes = [float((x[int(a) : int(b), :3] - solution[0, :3]).std()) for a, b in pairwise(strides)]
    return {
        "mean": solution[0],
        "harmonics": cos - 1j * sin,
        "rms": periodic.std(axis=0),
        "stride_hz": step_hz / 2,
        "rate_jitter": _relative_spread(durations),
        "gain_jitter": _relative_spread(np.asarray(sizes)),
        "residual": x - solution[0] - periodic,
    }


def _relative_spread(x: Array) -> float:
    return float(x.std() / x.mean()) if len(x) > 2 else 0.0


def _fit_residual(by_subject: Iterable[Sequence[Array]]) -> dict[str, Any]:
    """Median standard deviation and mean autocorrelation over subjects, the latter as an autoregression."""
    sds, correlations = [], []
    for pieces in by_subject:
        sds.append(np.median([p.std(axis=0) for p in pieces], axis=0))
        for p in pieces:
            centred = p - p.mean(axis=0)
            lags = [(centred[: len(p) - k] * centred[k:]).sum(axis=0) for k in range(AR_ORDER + 1)]
            correlations.append(np.asarray(lags) / lags[0])
    rho = np.mean(correlations, axis=0)
    ar = []
    for channel in range(rho.shape[1]):
        r = rho[:, channel]
        toeplitz = r[np.abs(np.subtract.outer(np.arange(AR_ORDER), np.arange(AR_ORDER)))]
        ar.append(np.linalg.solve(toeplitz, r[1:]))
    return {"sd": _rows(np.median(sds, axis=0), 5), "ar": _rows(np.asarray(ar))}


def _fit_posture(recordings: Sequence[Recording], name: str) -> dict[str, Any]:
    """Slow sway of gravity and the residual on top of it."""
    residuals: dict[str, list[Array]] = {}
    sways: list[Array] = []
    times: list[float] = []
    for r in recordings:
        for a, b in segments(r, name, 8 * FIT_RATE_HZ):
            x = np.asarray(r.values[a:b][TRIM:-TRIM], dtype=np.float64)
            slow = _smooth(x)
            rest = x - slow
            # In short pieces: someone who sits still and fidgets twice is still, in the median.
            pieces = [rest[i : i + _STILL] for i in range(0, len(rest) - _STILL + 1, _STILL)]
            residuals.setdefault(r.subject, []).extend(pieces)
            sways.append(slow[:, :3].std(axis=0))
            centred = slow[:, :3] - slow[:, :3].mean(axis=0)
            lag = 2 * FIT_RATE_HZ
            rho = float((centred[:-lag] * centred[lag:]).sum() / (centred**2).sum())
            times.append(-2 / np.log(np.clip(rho, 0.05, 0.95)))
    return {
        "sway": _rows(np.median(sways, axis=0), 5),
        "sway_s": round(float(np.median(times)), 2),
        "residual": _fit_residual(residuals.values()),
    }


def _smooth(x: Array) -> Array:
    """Centred moving average over one second, shorter at the ends."""
    width = FIT_RATE_HZ
    total = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0)])
    at = np.arange(len(x))
    low, high = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, len(x))
    return np.asarray((total[high] - total[low]) / (high - low)[:, None])


def _fit_change(recordings: Sequence[Recording], name: str) -> dict[str, Any]:
    """Median pattern over everyone, at the median size, and the residual on top of it."""
    patterns, pieces, seconds = [], [], []
    grid = np.linspace(0, 1, PATTERN_KNOTS)
    for r in recordings:
        for found, a, b in changes(r):
            if found != name:
                continue
            x = np.asarray(r.values[a:b], dtype=np.float64)
            u = np.linspace(0, 1, len(x))
            before, after = (np.asarray(r.values[max(0, k - 25) : k + 25, :3], np.float64).mean(axis=0) for k in (a, b))
            x[:, :3] -= rotate(before, after, u)
            smooth = np.linalg.lstsq(_hats(u, grid), x, rcond=None)[0]
            patterns.append(smooth)
            pieces.append(x - _hats(u, grid) @ smooth)
            seconds.append(len(x) / FIT_RATE_HZ)
    pattern = np.median(patterns, axis=0)
    size = np.median([np.sqrt((p**2).mean(axis=0)) for p in patterns], axis=0)
    pattern = pattern * np.clip(size / np.sqrt((pattern**2).mean(axis=0)), 1, 3)
    return {
        "seconds": _rows(np.quantile(seconds, [0.25, 0.5, 0.75]), 2),
        "pattern": _rows(pattern, 3),
        "residual": _fit_residual([[p] for p in pieces]),
    }


def _hats(u: Array, grid: Array) -> Array:
    """Linear interpolation from knots at `grid` (k,) to `u` (n,), as a matrix (n, k)."""
    return np.asarray(np.clip(1 - np.abs(u[:, None] - grid) * (len(grid) - 1), 0, 1))


def _mean_gravity(recordings: Sequence[Recording], name: str) -> Array:
    """Mean acceleration (3,) over all samples with the label `name`."""
    at = LABELS.index(name)
    samples = np.concatenate([r.values[r.label == at, :3] for r in recordings])
    gravity: Array = samples.mean(axis=0, dtype=np.float64)
    return gravity


def _fit_people(recordings: Sequence[Recording], users: Sequence[str], gaits: dict[str, Any]) -> dict[str, Any]:
    """Median and principal directions, over people, of the vector that `agent.core.gait.People` describes."""
    rms = {name: np.median([s["rms"] for s in gaits[name]["subjects"].values()], axis=0) for name in GAITS}
    rows = []
    for user in users:
        mine = [r for r in recordings if r.subject == user]
        gravity = [_mean_gravity(mine, name) for name in ACTIVITIES]
        subject = {name: gaits[name]["subjects"][user] for name in GAITS}
        ratio = {name: subject[name]["rms"] / rms[name] for name in GAITS}
        rows.append(
            np.concatenate(
                [
                    *gravity,
                    [subject[name]["stride_hz"] for name in GAITS],
                    [np.log(ratio[name][:3].mean()) for name in GAITS],
                    [np.log(ratio[name][3:].mean()) for name in GAITS],
                ]
            )
        )
    x = np.asarray(rows)
    median = np.median(x, axis=0)
    for i in range(len(ACTIVITIES)):
        part = slice(3 * i, 3 * i + 3)
        median[part] *= np.median(np.linalg.norm(x[:, part], axis=1)) / np.linalg.norm(median[part])
    low, high = np.quantile(x, [0.1, 0.9], axis=0)
    _, singular, directions = np.linalg.svd(np.clip(x, low, high) - median, full_matrices=False)
    scaled = directions[:DIRECTIONS] * (singular[:DIRECTIONS] / np.sqrt(len(x)))[:, None]
    return {"median": _rows(median), "directions": _rows(scaled)}


def dump(coefficients: dict[str, Any]) -> str:
    """Return the JSON text, one list of numbers a line."""
    return json.dumps(coefficients, separators=(",", ":")).replace("],[", "],\n[").replace(',"', ',\n"') + "\n"


def fit_simulator(data: Path, out: Path) -> None:
    """Fit on the HAPT recordings in `data`, packed or as published, and write the coefficients to `out`.

    Raises:
        InputError: there are none in `data`.
    """
    recordings = load(data).recordings
    if not recordings:
        raise InputError(f"{data} has no HAPT recordings, only windows")
    out.write_text(dump(fit(recordings)), encoding="utf-8")
