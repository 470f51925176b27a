import numpy as np
import onnxruntime as ort
import pytest

from agent.adapters.onnx_model import session_options
from agent.errors import InputError
from har_export import metrics, novelty
from har_export.datasets.records import UNLABELLED

RNG = np.random.default_rng(0)
CENTRES = RNG.integers(-60, 60, (3, 64))
SPREAD = np.r_[np.full(8, 20.0), np.full(56, 2.0)]


def drawn(centre: np.ndarray, n: int) -> np.ndarray:
    """Codes around a centre that vary much in eight directions and little in the others."""
    return np.clip(np.round(centre + RNG.normal(size=(n, 64)) * SPREAD), -128, 127).astype(np.int8)


Fitted = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def known() -> Fitted:
    """Codes, their labels, and codes of an idle sensor: a little aside of the first class."""
    code = np.concatenate([drawn(c, 300) for c in CENTRES])
    label = np.repeat(np.arange(3), 300)
    label[::50] = UNLABELLED
    return code, label, idle(200)


def idle(n: int) -> np.ndarray:
    return drawn(CENTRES[0] + np.r_[np.zeros(32), np.full(32, 3)], n)


def run(graph: bytes, code: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"code": code})[0])


def test_what_varies_little_counts_much(known: Fitted) -> None:
    graph = novelty.export(*known)
    ordinary = np.concatenate([drawn(c, 50) for c in CENTRES])
    along, across = ordinary.astype(int), ordinary.astype(int)
    along[:, :8] += 15
    across[:, 8:16] += 15

    usual, far, strange = (run(graph, np.clip(c, -128, 127).astype(np.int8)) for c in (ordinary, along, across))

    assert usual.dtype == np.float32
    assert np.median(usual) == pytest.approx(1, abs=0.3)
    assert usual.min() >= 0
    assert metrics.auroc(strange.astype(float), usual.astype(float)) > 0.99
    assert np.median(strange) > 3 * np.median(far)


def test_the_graph_computes_the_distance_whatever_the_batch(known: Fitted) -> None:
    code = known[0]
    graph = novelty.export(*known)

    together = run(graph, code)

    expected = novelty.distance(code, novelty.fit(*known))
    # What is least novel of all is cut off at 0.
    above = together > 0
    assert np.corrcoef(together[above], expected[above])[0, 1] > 0.999
    for size in (1, 7, 256):
        np.testing.assert_array_equal(run(graph, code[:size]), together[:size])


def test_the_worst_code_is_still_exact(known: Fitted) -> None:
    extreme = np.where(RNG.random((64, 64)) < 0.5, -128, 127).astype(np.int8)
    graph = novelty.export(*known)

    assert np.isfinite(run(graph, extreme)).all()
    np.testing.assert_array_equal(run(graph, extreme)[5], run(graph, extreme[5:6])[0])


def test_an_idle_sensor_stands_out_from_the_class_that_it_is_near_to(known: Fitted) -> None:
    graph = novelty.export(*known)
    fresh, lying = drawn(CENTRES[0], 200), idle(200)

    assert metrics.auroc(run(graph, lying).astype(float), run(graph, fresh).astype(float)) > 0.95
    from_all, from_idle = novelty.fit(*known)
    assert (from_idle.of(fresh) > 0).mean() < 0.1
    assert (from_idle.of(lying) > 0).mean() > 0.9
    assert from_all.of(fresh).mean() < from_all.of(np.zeros((1, 64), np.int8))[0]


def test_too_little_of_every_class_is_said() -> None:
    with pytest.raises(InputError, match="no class has 8 windows"):
        novelty.export(drawn(CENTRES[0], 12), np.arange(12), idle(50))
