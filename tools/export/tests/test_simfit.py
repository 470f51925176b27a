"""Fitting the simulated IMU: on recordings that were simulated, the fit finds what they were made with."""

import json

import numpy as np
import pytest

from agent.adapters.simulated_imu import load_coefficients
from agent.core import gait, gait_coefficients
from agent.core.gait import Simulator, Step
from agent.core.gait_coefficients import ACTIVITIES, CHANGES, GAITS
from har_export import simfit
from har_export.datasets.records import Recording

KNOWN = load_coefficients()
SCRIPT = [
    Step(name, 15)
    for name in (*GAITS, "standing", "sitting", "standing", "laying", "sitting", "laying", "standing")
    for _ in range(2)
]


@pytest.fixture(scope="module")
def people() -> list[Recording]:
    """Twelve simulated people with every activity and every change of posture."""
    found = []
    for seed in range(12):
        samples = Simulator(KNOWN, SCRIPT, seed=seed).take(10**9)
        assert samples is not None
        found.append(Recording(seed, seed, 50.0, samples.values, samples.labels.astype(np.int64)))
    return found


@pytest.fixture(scope="module")
def fitted(people: list[Recording]) -> gait_coefficients.Coefficients:
    return gait_coefficients.parse(json.loads(simfit.dump(simfit.fit(people))))


def test_changes_of_posture_are_told_apart_by_what_is_around_them(people: list[Recording]):
    for person in people:
        assert {name for name, _, _ in simfit.changes(person)} == set(CHANGES)


@pytest.mark.parametrize("name", GAITS)
def test_harmonics_and_residual_of_a_gait_are_found(name: str, fitted: gait_coefficients.Coefficients):
    known, found = KNOWN.gaits[name], fitted.gaits[name]

    for made, got in ((known.cos, found.cos), (known.sin, found.sin)):
        assert made.shape == got.shape
    size, got = (np.hypot(g.cos, g.sin) for g in (known, found))
    strong = size > 0.25 * size.max(axis=0)
    assert np.abs(got[strong] / size[strong] - 1).max() < 0.35
    # A residual takes what jitter blurs of the harmonics with it, never less than was put in.
    assert (found.residual.sd > 0.9 * known.residual.sd).all()
    assert (found.residual.sd < 1.6 * known.residual.sd).all()


def test_people_are_found_as_they_were_drawn(people: list[Recording], fitted: gait_coefficients.Coefficients):
    drawn = [Simulator(KNOWN, SCRIPT, seed=p.subject).person for p in people]
    median = gait.make_person(fitted.people, np.zeros(len(fitted.people.directions)))

    for name in ACTIVITIES:
        assert np.abs(median.gravity[name] - np.median([d.gravity[name] for d in drawn], axis=0)).max() < 0.08
    for name in GAITS:
        assert median.stride_hz[name] == pytest.approx(np.median([d.stride_hz[name] for d in drawn]), rel=0.03)


def test_coefficients_say_where_they_come_from(people: list[Recording]):
    raw = simfit.fit(people)

    assert "UCI" in raw["source"]
    assert "Neurocomputing" in raw["citation"]
    assert "12 subjects" in raw["fitted"]
