"""The simulated IMU: deterministic, however it is read, and like the recordings it was fitted on."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.adapters.simulated_imu import SimulatedImu, load_coefficients
from agent.core import gait, gait_coefficients
from agent.core.gait import SCRIPTS, Imperfections, Samples, Simulator, Span, Step
from agent.core.gait_coefficients import ACTIVITIES, FIT_RATE_HZ, FORMAT
from agent.records import SampleBatch

COEFFICIENTS = load_coefficients()
DEMO = gait.parse_script(SCRIPTS["demo"])
SHORT = (Step("walking", 2.3), Step("sitting", 1.7), Step("laying", 2.0))


def read_all(simulator: Simulator, sizes: list[int] | None = None) -> Samples:
    """Everything, in pieces of `sizes`, repeated; at once if not given."""
    parts: list[Samples] = []
    sizes = sizes or [simulator.total]
    while (part := simulator.take(sizes[len(parts) % len(sizes)])) is not None:
        parts.append(part)
    return Samples(
        np.concatenate([p.t_ns for p in parts]),
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.labels for p in parts]),
    )


def same(a: Samples, b: Samples) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in ((a.t_ns, b.t_ns), (a.values, b.values), (a.labels, b.labels)))


def label_at(spans, t_s):
    return next((span.label for span in spans if span.t0 <= t_s < span.t1), None)


def test_equal_seeds_give_equal_bytes_and_others_do_not():
    first, again, other = (read_all(Simulator(COEFFICIENTS, SHORT, seed=s)) for s in (4, 4, 5))

    assert same(first, again)
    assert not np.array_equal(first.values[:50], other.values[:50])


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=8),
    rate_hz=st.sampled_from([10.0, 12.5, 33.3, 50.0, 104.0, 400.0]),
    drop_rate=st.sampled_from([0.0, 0.4]),
)
def test_reading_in_pieces_gives_the_same_samples(sizes: list[int], rate_hz: float, drop_rate: float):
    flaws = Imperfections(jitter_s=0.002, drop_rate=drop_rate)

    def make() -> Simulator:
        return Simulator(COEFFICIENTS, SHORT, seed=1, rate_hz=rate_hz, imperfections=flaws)

    assert same(read_all(make(), sizes), read_all(make()))


@pytest.mark.parametrize("rate_hz", [10.0, 50.0, 59.94, 400.0])
def test_a_plan_gives_as_many_evenly_spaced_samples_as_it_lasts(rate_hz: float):
    simulator = Simulator(COEFFICIENTS, DEMO, seed=2, rate_hz=rate_hz, duration_s=12.5)
    samples = read_all(simulator)

    assert simulator.duration_s == 12.5
    assert len(samples.t_ns) == int(np.ceil(12.5 * rate_hz))
    assert samples.t_ns[0] == 0
    assert np.abs(np.diff(samples.t_ns) - 1e9 / rate_hz).max() <= 1


def test_labels_follow_the_plan_and_changes_of_posture_are_transitions():
    simulator = Simulator(COEFFICIENTS, DEMO, seed=3)
    samples = read_all(simulator)

    runs = [samples.labels[0], *(b for a, b in pairwise(samples.labels.tolist()) if a != b)]
    names = [gait.label_name(int(i)) for i in runs]
    assert names == [
        *("walking", None, "walking_upstairs", None, "standing"),
        *("transition", "sitting", "transition", "laying"),
    ]
    for i in range(0, len(samples.t_ns), 7):
        assert gait.label_name(int(samples.labels[i])) == label_at(simulator.plan, samples.t_ns[i] / 1e9)


def test_changes_of_posture_last_as_long_as_people_take():
    for seed in range(20):
        spans = Simulator(COEFFICIENTS, DEMO, seed=seed).plan
        lengths = [s.t1 - s.t0 for s in spans if s.label == gait.TRANSITION]
        assert len(lengths) == 2
        assert all(2 <= seconds <= 6 for seconds in lengths)


def test_a_script_repeats_to_fill_a_duration_without_holes():
    spans = Simulator(COEFFICIENTS, SHORT, seed=0, duration_s=60).plan

    assert spans[0].t0 == 0
    assert spans[-1].t1 == 60
    assert all(a.t1 == b.t0 and a.after == b.before for a, b in pairwise(spans))
    assert {s.change for s in spans} >= {"stand_to_sit", "sit_to_lie", "lie_to_stand"}


def test_values_are_g_and_radians_and_clip_where_the_sensor_does():
    for activity in ACTIVITIES:
        values = read_all(Simulator(COEFFICIENTS, [Step(activity, 10)], seed=1)).values
        assert values.dtype == np.float32
        assert np.linalg.norm(values[:, :3].mean(axis=0)) == pytest.approx(1, abs=0.08)
        assert np.abs(values[:, 3:]).max() < 5

    loud = read_all(Simulator(COEFFICIENTS, DEMO, seed=1, imperfections=Imperfections(noise=100))).values
    assert np.abs(loud[:, :3]).max() == 2.0


def test_without_noise_a_posture_only_sways():
    quiet = Simulator(COEFFICIENTS, [Step("sitting", 5)], seed=0, imperfections=Imperfections(noise=0))
    values = read_all(quiet).values

    assert np.abs(np.diff(values[:, :3], axis=0)).max() < 0.002
    assert not values[:, 3:].any()


def test_jitter_moves_time_stamps_but_never_backwards():
    flaws = Imperfections(jitter_s=0.5)
    samples = read_all(Simulator(COEFFICIENTS, SHORT, seed=0, imperfections=flaws))

    steps = np.diff(samples.t_ns)
    assert (steps > 0).all()
    assert steps.std() > 2e6


def test_drops_take_samples_away_and_change_no_other():
    whole = read_all(Simulator(COEFFICIENTS, SHORT, seed=0))
    holed = read_all(Simulator(COEFFICIENTS, SHORT, seed=0, imperfections=Imperfections(drop_rate=0.25)))

    kept = np.isin(whole.t_ns, holed.t_ns)
    assert 0.65 < kept.mean() < 0.85
    assert np.array_equal(whole.values[kept], holed.values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("running:20", "'running' is not an activity"),
        ("walking", "needs a duration"),
        ("walking:soon", "needs a duration"),
        ("walking:-1", "needs a duration"),
        ("walking:inf", "needs a duration"),
        ("", "is not an activity"),
    ],
)
def test_a_script_that_cannot_be_read_says_why(text: str, words: str):
    with pytest.raises(ValueError, match=words):
        gait.parse_script(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rate_hz": 9.9}, "10 to 400 Hz"),
        ({"rate_hz": float("nan")}, "10 to 400 Hz"),
        ({"seed": -1}, "seed"),
        ({"duration_s": 0}, "positive duration"),
        ({"duration_s": float("inf")}, "positive duration"),
        ({"imperfections": Imperfections(drop_rate=1)}, "drop rate"),
        ({"imperfections": Imperfections(jitter_s=-1)}, "jitter"),
        ({"imperfections": Imperfections(noise=float("nan"))}, "noise"),
    ],
)
def test_values_out_of_range_say_why(arguments: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        Simulator(COEFFICIENTS, SHORT, **{"seed": 0, **arguments})


def test_coefficients_of_another_format_or_with_a_part_missing_are_refused():
    with pytest.raises(ValueError, match="har-simulated-imu/9"):
        gait_coefficients.parse({"format": "har-simulated-imu/9"})
    with pytest.raises(ValueError, match="lack 'people'"):
        gait_coefficients.parse({"format": FORMAT})


def test_gravity_turns_on_a_great_circle():
    path = gait.rotate(np.array([1.0, 0, 0]), np.array([0, 0, 2.0]), np.array([0, 0.5, 1]))

    assert np.allclose(path, [[1, 0, 0], [1.5 / 2**0.5, 0, 1.5 / 2**0.5], [0, 0, 2]])


def test_the_source_counts_its_samples_and_tells_the_truth():
    imu = SimulatedImu("waist-07", SHORT, seed=6, rate_hz=100)
    batches = []
    while (decoded := imu.poll(0)) is not None:
        batches += decoded

    assert all(isinstance(b, SampleBatch) and b.stream == "waist-07" for b in batches)
    assert [b.seq0 for b in batches] == np.cumsum([0, *(len(b.t_ns) for b in batches[:-1])]).tolist()
    assert [c.label for b in batches for c in b.truth] == ["walking", "transition", "sitting", "transition", "laying"]
    plan = [s for s in imu.simulator.plan if isinstance(s, Span)]
    assert [c.t_ns / 1e9 for b in batches for c in b.truth] == pytest.approx([s.t0 for s in plan], abs=0.011)


# Like the recordings.

HAPT_IDS = dict(zip(ACTIVITIES, (1, 2, 3, 4, 5, 6), strict=True))
BANDS_HZ = ((0.3, 1.3), (1.3, 3), (3, 6), (6, 12), (12, 25))
Array = npt.NDArray[np.float64]


@pytest.fixture
def segments(recordings: Path) -> Callable[[str], list[list[Array]]]:
    """Return how to get an activity's uninterrupted segments (n, 6), without their ends, by subject."""
    with np.load(recordings / "hapt_train.npz") as raw:
        values = np.concatenate([raw["acc"] * raw["acc_scale"], raw["gyro"] * raw["gyro_scale"]], axis=1)
        start = dict(zip(raw["exp"].tolist(), raw["offset"].tolist(), strict=False))
        rows = [row for row in raw["labels"].tolist() if row[0] in start]

    def of(activity: str) -> list[list[Array]]:
        found: dict[int, list[Array]] = {}
        for experiment, user, number, first, last in rows:
            if number == HAPT_IDS[activity] and last - first >= 400:
                at = start[experiment]
                found.setdefault(user, []).append(values[at + first + 50 : at + last - 50])
        return list(found.values())

    return of


def figures(x: Array) -> Array:
    """Mean, standard deviation and amplitude per band, (7, 6): the median over windows of 5.12 s."""
    n = 256
    taper = np.hanning(n)[:, None]
    f = np.fft.rfftfreq(n, 1 / FIT_RATE_HZ)
    out = []
    for start in range(0, len(x) - n + 1, n // 2):
        piece = x[start : start + n]
        power = np.abs(np.fft.rfft((piece - piece.mean(axis=0)) * taper, axis=0)) ** 2 * 2 / (taper**2).sum() / n
        bands = [np.sqrt(power[(f >= low) & (f < high)].sum(axis=0)) for low, high in BANDS_HZ]
        out.append([piece.mean(axis=0), piece.std(axis=0), *bands])
    return np.median(out, axis=0) if out else np.empty((0, 6))


@pytest.mark.data
@pytest.mark.parametrize("activity", ACTIVITIES)
def test_simulated_people_are_like_the_recorded_ones(activity: str, segments: Callable[[str], list[list[Array]]]):
    """Medians over 21 people each.

    Means within 0.1 g and 0.1 rad/s. Standard deviation and the amplitude in each band from 0.3 to 25 Hz: a gait's
    within 15 % and 35 %, a posture's within 45 % and 60 %, for postures are quiet and what is left is fidgeting.
    """
    people = [[f for f in map(figures, person) if len(f)] for person in segments(activity)]
    recorded = np.median([np.median(p, axis=0) for p in people if p], axis=0)
    simulated = np.median(
        [figures(read_all(Simulator(COEFFICIENTS, [Step(activity, 25)], seed=s)).values) for s in range(21)], axis=0
    )

    mean, spread, band = (0.1, 0.15, 0.35) if activity in gait.GAITS else (0.1, 0.45, 0.6)
    assert np.abs(simulated[0] - recorded[0]).max() < mean
    assert np.abs(np.log(simulated[1] / recorded[1])).max() < -np.log(1 - spread)
    assert np.abs(np.log(simulated[2:] / recorded[2:])).max() < -np.log(1 - band)
