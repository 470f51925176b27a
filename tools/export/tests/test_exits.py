from pathlib import Path

import numpy as np
import pytest

from agent.adapters.bundle import load_bundle, read_golden
from agent.adapters.onnx_model import OrtModel, open_session
from agent.adapters.onnx_parts import Parts
from agent.core.manifest import Bundle, Calibration, Exit
from agent.core.onnx_wire import extract, fuse
from agent.errors import InputError
from har_export import bundle as bundles
from har_export import exits
from har_export.calibrate import all_windows
from har_export.datasets.records import Data, no_windows
from har_export.exits import MARGIN, Leaving, confidence
from har_export.golden import golden_windows
from har_export.lab import exits as lab
from har_export.lab.timing import Timing
from har_export.network import Shape
from har_export.train import Settings

QUICK = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)
SMALL = Shape(channels=(8, 12, 16), exits=(1, 2))
END = Calibration(temperature=0.5, novelty_threshold=6.0)


@pytest.fixture(scope="module")
def parts(tiny: Data) -> bundles.Parts:
    return bundles.fit(tiny, 0, QUICK, shape=SMALL)


@pytest.fixture(scope="module")
def built(tiny: Data) -> Bundle:
    return bundles.build(tiny, 0, QUICK, "har-tiny", {}, shape=SMALL)[0]


def run(graph: bytes, into: str, x: np.ndarray) -> list[np.ndarray]:
    return open_session("a test's", graph).run(None, {into: x})


@pytest.mark.parametrize("after", [1, 2])
def test_a_head_goes_on_from_the_whole_encoder(parts: bundles.Parts, after: int) -> None:
    own = parts.exits[after - 1].graphs
    at = exits.trunk_end(own["encoder.onnx"])
    windows = parts.normalisation.apply(golden_windows(128, 50.0))
    alone = fuse([own["encoder.onnx"], own["classifier.onnx"], own["novelty.onnx"]])
    assert alone is not None
    _, logits, novelty = run(alone, "window", windows)
    leaving = Leaving(Exit(f"conv{after}", at, None, 1.0), Calibration(temperature=0.25, novelty_threshold=3.0))

    head = exits.head(own, leaving, END)

    takes = exits.declared(parts.graphs["encoder.onnx"], at)
    (trunk,) = run(
        extract(parts.graphs["encoder.onnx"], [exits.declared(parts.graphs["encoder.onnx"], "window")], [takes]),
        "window",
        windows,
    )
    assert trunk.dtype == np.uint8
    assert trunk.shape == (32, SMALL.channels[after - 1], 128 >> after)
    scaled_logits, scaled_novelty = run(head, at, trunk)
    np.testing.assert_allclose(scaled_logits, 2 * logits, rtol=1e-6)
    np.testing.assert_allclose(scaled_novelty, 2 * novelty, rtol=1e-6)


def test_the_agent_runs_what_is_written(built: Bundle, tmp_path: Path) -> None:
    bundles.write(built, tmp_path / "har-tiny")

    read = load_bundle(tmp_path / "har-tiny")

    OrtModel(read).verify(read_golden(read))
    assert [one.name for one in read.manifest.exits] == ["conv1", "conv2"]
    assert read.manifest.context is None
    assert "exemplars.npz" not in read.contents
    assert read.manifest.training["shape"]["exits"] == [1, 2]
    agent = Parts(read)
    agent.verify(read_golden(read))
    assert agent.exits == read.manifest.exits
    assert "Heads inside of the encoder" in " ".join(read.contents["CARD.md"].decode().split())


def test_only_a_network_by_itself_has_exits(tiny: Data) -> None:
    with pytest.raises(InputError, match="train one member"):
        bundles.build(tiny, 0, QUICK, "har-tiny", {}, members=2, shape=SMALL)


SURE = np.array([0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize(
    ("whose", "right", "right_at_end", "expected"),
    [
        ("aaaa", [1, 1, 1, 1], [1, 1, 1, 1], 0.6),
        ("aaaa", [1, 1, 1, 0], [1, 1, 1, 1], 0.7),
        # What the end has wrong as well costs nothing.
        ("aaaa", [1, 1, 0, 0], [1, 1, 0, 1], 0.7),
        # One that only the exit has right makes up for one that only the end has.
        ("aaaa", [1, 1, 0, 1], [1, 0, 1, 1], 0.6),
        # But not another person's.
        ("aaba", [1, 1, 0, 1], [1, 0, 1, 1], 1.0),
        ("abab", [1, 1, 1, 0], [1, 1, 1, 1], 0.8),
        ("aaaa", [0, 0, 0, 0], [1, 1, 1, 1], 1.0),
    ],
)
def test_windows_stop_where_nothing_is_lost(
    whose: str, right: list[int], right_at_end: list[int], expected: float
) -> None:
    found = confidence(np.array(list(whose)), SURE, np.array(right, bool), np.array(right_at_end, bool))

    assert found == pytest.approx(1 - (1 - expected) / MARGIN, abs=1e-6)


def test_equally_sure_windows_stop_together() -> None:
    sure = np.array([0.9, 0.7, 0.7])

    found = confidence(np.array(["a"] * 3), sure, np.array([True, True, False]), np.ones(3, bool))

    assert found == pytest.approx(1 - 0.1 / MARGIN, abs=1e-6)


def test_few_windows_may_be_lost() -> None:
    sure = np.linspace(1, 0.5, 1000)
    right = np.ones(1000, bool)
    right[[500, 900]] = False

    found = confidence(np.array(["a"] * 1000), sure, right, np.ones(1000, bool))

    assert found == pytest.approx(1 - 0.5 / MARGIN, abs=1e-6)


def test_the_lab_scores_and_times_exits(tiny: Data, built: Bundle) -> None:
    result = lab.run([[(OrtModel(built), tiny)]], "har-export lab exits", lambda _: None, rounds=1)

    _, label = all_windows(Data(tiny.recordings, no_windows(), tiny.labels), 128)
    branches = lab.branches(built, tiny)
    assert list(branches) == ["conv1", "conv2", "end"]
    assert all(len(b.right) == tiny.is_activity(label).sum() for b in branches.values())
    assert [b.confidence for b in branches.values()] == [*(e.confidence for e in built.manifest.exits), 0.0]
    assert result.data["accuracy"]["end"] == [branches["end"].right.mean()]
    for (shares,) in result.data["stopping"].values():
        assert sum(s["share"] for s in shares.values()) == pytest.approx(1)
        assert shares["end"]["right"] == shares["end"]["right_at_end"]
    everything = result.data["stopping"][lab.OWN][0]
    stops = branches["conv1"].sure >= built.manifest.exits[0].confidence
    assert everything["conv1"]["share"] == pytest.approx(stops.mean())
    assert everything["conv1"]["right"] == pytest.approx((stops & branches["conv1"].right).mean())
    for table in result.tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [t.rows[0][0] for t in result.tables] == ["conv1", lab.OWN, lab.OWN, "0.5"]


def test_the_last_exit_in_time_is_taken() -> None:
    timed = {"conv1": Timing(40, 300), "conv2": Timing(60, 500), "end": Timing(100, 400)}
    accuracy = {"conv1": [0.9], "conv2": [0.95], "end": [0.97]}

    rows = [lab.deadline(share, accuracy, timed) for share in (0.3, 0.5, 0.6, 1.0)]

    assert rows == [
        ["0.3", "30", "none", "-", "120", "none", "-"],
        ["0.5", "50", "conv1", "90.0 ± 0.0", "200", "none", "-"],
        ["0.6", "60", "conv2", "95.0 ± 0.0", "240", "none", "-"],
        ["1", "100", "end", "97.0 ± 0.0", "400", "end", "97.0 ± 0.0"],
    ]
