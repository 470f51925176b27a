from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from agent.adapters.onnx_model import session_options
from har_export.datasets.records import Data
from har_export.network import BASE, Network
from har_export.quantise import WEIGHT_LIMIT, float_graphs, quantise, quantise_weight
from har_export.train import Settings, streaming_windows, train

FLOAT_ARITHMETIC = {"Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"}
GRAPHS = ("encoder.onnx", "classifier.onnx", "decoder.onnx")

Built = tuple[Network, dict[str, bytes], np.ndarray]


@pytest.fixture
def built(tiny: Data) -> Built:
    network, normalisation = train(tiny, 0, Settings(epochs=3, batch=32))
    windows = np.concatenate([streaming_windows(r, 128)[0] for r in tiny.recordings])
    windows = normalisation.apply(windows)[:100]
    return network, quantise(network, windows), windows


def run(graph: bytes, into: str, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {into: x})[0])


def test_the_int8_graphs_follow_the_float_network(built: Built) -> None:
    network, graphs, windows = built
    with torch.no_grad():
        code = network.encoder(torch.from_numpy(windows)).numpy()
        logits, reconstruction = (t.numpy() for t in network(torch.from_numpy(windows)))

    ours = run(graphs["encoder.onnx"], "window", windows)

    assert ours.dtype == np.int8
    assert ours.shape == (len(windows), BASE.code)
    assert np.abs(ours - code).mean() < 1.5
    their_logits = run(graphs["classifier.onnx"], "code", ours)
    assert (their_logits.argmax(1) == logits.argmax(1)).mean() > 0.9
    assert np.corrcoef(their_logits.ravel(), logits.ravel())[0, 1] > 0.99
    rebuilt = run(graphs["decoder.onnx"], "code", ours)
    assert rebuilt.shape == windows.shape
    assert np.corrcoef(rebuilt.ravel(), reconstruction.ravel())[0, 1] > 0.98


def test_a_window_scores_the_same_alone_and_in_a_batch(built: Built) -> None:
    _, graphs, windows = built
    batch = np.resize(windows, (256, *windows.shape[1:]))
    code = run(graphs["encoder.onnx"], "window", batch)

    for graph, into, x in (
        (graphs["encoder.onnx"], "window", batch),
        (graphs["classifier.onnx"], "code", code),
        (graphs["decoder.onnx"], "code", code),
    ):
        together = run(graph, into, x)
        for i in (0, 17, 99):
            np.testing.assert_array_equal(run(graph, into, x[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_runtime_computes_in_integers(built: Built, tmp_path: Path, name: str) -> None:
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    # What is above this level is for one machine and may not be written to a file.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(built[1][name], options, providers=["CPUExecutionProvider"])

    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]

    assert FLOAT_ARITHMETIC.isdisjoint(kinds)
    assert {"QGemm", "QLinearConv"} & set(kinds)


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_cannot_saturate_16_bits(built: Built, name: str) -> None:
    model = onnx.load_from_string(built[1][name])
    weights = [
        numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims
    ]

    assert max(w.size for w in weights) > 100
    assert all(2 * 255 * int(np.abs(w.astype(int)).max()) < 2**15 for w in weights)


def test_the_files_are_small_enough(built: Built) -> None:
    assert len(built[1]["encoder.onnx"]) + len(built[1]["classifier.onnx"]) <= 69 * 1024


def test_weights_are_quantised_per_output_channel() -> None:
    weight = np.array([[0.5, -1.0], [0.002, 0.001], [0.0, 0.0]], np.float32)

    integers, step = quantise_weight(weight)

    assert integers.dtype == np.int8
    assert np.abs(integers[:2]).max(axis=1).tolist() == [WEIGHT_LIMIT, WEIGHT_LIMIT]
    np.testing.assert_allclose(integers * step[:, None], weight, atol=step.max() / 2)
    np.testing.assert_array_equal(integers[2], [0, 0])


def test_the_encoder_sees_sway_that_its_coarse_input_cannot() -> None:
    network = Network(128, 7).eval()
    t = np.arange(128) / 50
    still = np.zeros((1, 128, 6), np.float32)
    sway = still + np.float32(0.015) * np.sin(2 * np.pi * t).astype(np.float32)[None, :, None]

    with torch.no_grad():
        features = [network.encoder.features(torch.from_numpy(x)).numpy() for x in (still, sway)]

    np.testing.assert_array_equal(features[0][:, :6], features[1][:, :6])
    assert np.abs(features[1][:, 6:]).max() >= 5


def test_the_float_graphs_are_the_float_network(built: Built) -> None:
    network, _, windows = built
    graphs = float_graphs(network)
    with torch.no_grad():
        code = network.encoder(torch.from_numpy(windows)).numpy()

    ours = run(graphs["encoder.onnx"], "window", windows)

    assert ours.dtype == np.int8
    # The input is rounded in training, and not here.
    assert np.abs(ours - code).mean() < 1.5
    with torch.no_grad():
        logits = network.classifier(torch.from_numpy(ours) / 32).numpy()
    np.testing.assert_allclose(run(graphs["classifier.onnx"], "code", ours), logits, atol=1e-4)


def test_names_of_the_graphs_do_not_collide(built: Built) -> None:
    """The agent runs them as one."""
    names = [
        name
        for graph in built[1].values()
        for model in [onnx.load_from_string(graph)]
        for name in [*(o for n in model.graph.node for o in n.output), *(t.name for t in model.graph.initializer)]
    ]

    assert len(names) == len(set(names))
