import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from agent.adapters.onnx_model import OrtModel, session_options
from agent.core import onnx_wire
from har_export import bundle as bundles
from har_export.datasets.records import Data
from har_export.ensemble import Ensemble, join
from har_export.quantise import quantise
from har_export.train import Settings, streaming_windows, train

QUICK = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)


def run(graph: bytes, into: str, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {into: x})[0])


@pytest.fixture(scope="module")
def members(tiny: Data) -> tuple[list[dict[str, bytes]], np.ndarray, Ensemble]:
    trained = [train(tiny, seed, QUICK) for seed in (0, 1, 2)]
    windows = trained[0][1].apply(streaming_windows(tiny.recordings[0], 128)[0])
    return [quantise(n, windows) for n, _ in trained], windows, Ensemble([n for n, _ in trained])


def test_codes_stand_side_by_side_and_logits_are_averaged(
    members: tuple[list[dict[str, bytes]], np.ndarray, Ensemble],
) -> None:
    graphs, windows, network = members
    joined = join(graphs, 64)

    code = run(joined["encoder.onnx"], "window", windows)
    logits = run(joined["classifier.onnx"], "code", code)

    codes = [run(g["encoder.onnx"], "window", windows) for g in graphs]
    np.testing.assert_array_equal(code, np.concatenate(codes, axis=1))
    each = [run(g["classifier.onnx"], "code", c) for g, c in zip(graphs, codes, strict=True)]
    np.testing.assert_allclose(logits, np.mean(each, axis=0), atol=1e-5)
    np.testing.assert_array_equal(
        run(joined["decoder.onnx"], "code", code), run(graphs[0]["decoder.onnx"], "code", codes[0])
    )
    with torch.no_grad():
        ours = network(torch.from_numpy(windows)).numpy()
    assert (ours.argmax(1) == logits.argmax(1)).mean() > 0.9
    # The agent can run them as one.
    assert onnx_wire.fuse([joined["encoder.onnx"], joined["classifier.onnx"]]) is not None


def test_an_ensemble_is_a_bundle_like_any_other(tiny: Data) -> None:
    built, networks = bundles.build(tiny, 0, QUICK, "har-two", {}, members=2)

    assert len(networks) == 2
    assert built.manifest.code.bytes == 128
    model = OrtModel(built)
    scores = model.infer(built.manifest.normalisation.apply(streaming_windows(tiny.recordings[0], 128)[0]))
    # All of it is one graph.
    assert len(model.scoring) == 1
    assert scores.code.shape[1] == 128
    assert np.isfinite(scores.novelty).all()


def test_what_reads_its_codes_is_the_mean_of_what_reads_its_members(tiny: Data) -> None:
    parts = bundles.fit(tiny, 0, QUICK, members=2)
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (5, 16, 128), np.int8)

    def each(kind: str, into: str, x: np.ndarray) -> list[np.ndarray]:
        graph = onnx.load_from_string(parts.graphs[kind])
        own = graph.graph.output[0].name
        outs = [f"{own}{i}/{own}" for i in range(2)]
        for name in outs:
            graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        session = ort.InferenceSession(graph.SerializeToString(), session_options())
        return session.run([graph.graph.output[0].name, *outs], {into: x})

    for kind, into, x in (("context.onnx", "codes", codes), ("novelty.onnx", "code", codes[:, 0])):
        mean, first, second = each(kind, into, x)
        np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-5)
        assert not np.array_equal(first, second)
    # Each reads its own member's codes, and nothing else.
    changed = codes.copy()
    changed[..., 64:] = 0
    _, first, second = each("context.onnx", "codes", codes)
    _, same, other = each("context.onnx", "codes", changed)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(second, other)
