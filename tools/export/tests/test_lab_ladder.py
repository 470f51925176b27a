from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from test_lab_zoo import outputs

from har_export.datasets.records import Data
from har_export.lab import coding, compress, ladder
from har_export.lab.zoo import config, training
from har_export.lab.zoo.modules import Autoencoder, Classifier, Cnn, Lstm, to_onnx
from har_export.quantise import WEIGHT_LIMIT, quantise, quantise_weight
from har_export.train import fit_normalisation

CLASSES = 7


@pytest.fixture
def lstm() -> Lstm:
    torch.manual_seed(0)
    return Lstm(CLASSES, hidden=24, frame=8).eval()


@pytest.fixture
def ours(tiny: Data) -> Autoencoder:
    torch.manual_seed(0)
    network = Autoencoder(CLASSES)
    tune(network, tiny, epochs=2)
    return network


def tune(network: Classifier, tiny: Data, constrain: compress.Constrain = lambda: None, epochs: int = 1) -> None:
    settings = replace(config.named("cnn").training, epochs=epochs, batch=16)
    data = Data((), tiny.windows, tiny.labels)
    training.fit(network, data, fit_normalisation(tiny), 0, settings, constrain=constrain)


def normalised(tiny: Data) -> np.ndarray:
    return fit_normalisation(tiny).apply(tiny.windows.values)


def logits(network: Classifier, windows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(windows)).numpy()


def test_pruned_weights_are_zero_and_stay_so_in_training(lstm: Lstm, tiny: Data) -> None:
    constrain = compress.prune_weights(lstm, 0.8)
    zero = [w == 0 for w in compress.weights(lstm)]

    tune(lstm, tiny, constrain)

    assert len(zero) == 2
    for weight, mask in zip(compress.weights(lstm), zero, strict=True):
        assert mask.float().mean() == pytest.approx(0.8, abs=0.01)
        assert torch.equal(weight == 0, mask)


@pytest.mark.parametrize("bits", [3, 5])
def test_shared_weights_have_few_values_also_after_training(lstm: Lstm, tiny: Data, bits: int) -> None:
    compress.prune_weights(lstm, 0.5)
    before = [w.detach().clone() for w in compress.weights(lstm)]

    constrain = compress.share_weights(lstm, bits)
    tune(lstm, tiny, constrain)

    for weight, old in zip(compress.weights(lstm), before, strict=True):
        assert 2 < len(weight.unique()) <= 2**bits
        assert torch.equal(weight == 0, old == 0)
        assert not torch.equal(weight, old)


def test_five_bits_follow_the_weights(lstm: Lstm) -> None:
    before = lstm.lstm.weight_hh_l0.detach().clone()

    compress.share_weights(lstm, 5)

    spread = float(before.max() - before.min())
    assert float((lstm.lstm.weight_hh_l0.detach() - before).square().mean().sqrt()) < spread / 31 / 2


@pytest.mark.parametrize("kind", ["recurrent", "convolutions"])
def test_a_file_with_shared_weights_is_smaller_and_computes_the_same(lstm: Lstm, tiny: Data, kind: str) -> None:
    network = lstm if kind == "recurrent" else Cnn(CLASSES, (32, 32), (5, 5), (2, 2)).eval()
    compress.share_weights(network, 5)
    plain = to_onnx(network, CLASSES)

    stored = compress.stored_shared(plain)

    np.testing.assert_allclose(outputs(stored, normalised(tiny)), outputs(plain, normalised(tiny)), atol=1e-5)
    assert len(stored) < 0.5 * len(plain)
    codebooks = [t for t in onnx.load_from_string(stored).graph.initializer if t.name.endswith("b")]
    assert len(codebooks) == len(compress.weights(network))
    assert all(len(numpy_helper.to_array(t)) <= 32 for t in codebooks)


def test_an_lstm_keeps_its_strongest_units(lstm: Lstm, tiny: Data) -> None:
    windows = normalised(tiny)
    with torch.no_grad():
        for parameter in (lstm.lstm.weight_hh_l0, lstm.out.weight):
            parameter[:, 5:] = 0  # what those units say is not heard

    everything = compress.fewer_lstm_units(lstm, CLASSES, 24)
    few = compress.fewer_lstm_units(lstm, CLASSES, 12)

    np.testing.assert_allclose(logits(everything.eval(), windows), logits(lstm, windows), atol=1e-5)
    assert few.lstm.weight_hh_l0.shape == (48, 12)
    assert len(to_onnx(few.eval(), CLASSES)) < 0.6 * len(to_onnx(lstm, CLASSES))


def test_ours_keeps_its_strongest_channels(ours: Autoencoder, tiny: Data) -> None:
    windows, shape = normalised(tiny), ours.network.shape
    norm = ours.network.encoder.convolutions()[1].norm
    with torch.no_grad():
        norm.weight[20:] = 0
        norm.bias[20:] = 0

    same = compress.fewer_channels(ours, shape.channels, shape.hidden).eval()
    few = compress.fewer_channels(ours, (shape.channels[0], 20, shape.channels[2]), shape.hidden).eval()

    for network in (same, few):
        np.testing.assert_allclose(logits(network, windows), logits(ours, windows), atol=0.02)
    assert few.network.encoder.convolutions()[1].conv.out_channels == 20
    assert len(compress.static_int8(few, windows)) < len(compress.static_int8(same, windows))


def test_the_int8_file_is_encoder_and_classifier_of_the_bundle(ours: Autoencoder, tiny: Data) -> None:
    windows = normalised(tiny)
    graphs = quantise(ours.network, windows)

    code = np.asarray(
        onnx_run(graphs["encoder.onnx"], "code", {"window": windows}),
    )
    expected = onnx_run(graphs["classifier.onnx"], "logits", {"code": code})

    np.testing.assert_array_equal(outputs(compress.static_int8(ours, windows), windows), expected)


def onnx_run(file: bytes, out: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    return np.asarray(ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run([out], inputs)[0])


def test_quantisation_aware_training_ends_on_the_grid(ours: Autoencoder, tiny: Data) -> None:
    windows = normalised(tiny)
    before = logits(ours, windows)

    with compress.quantisation_aware(ours, windows):
        inside = logits(ours, windows)
        tune(ours, tiny)
        trained = logits(ours, windows)

    assert 0 < np.abs(inside - before).max() < 1
    weight = ours.network.encoder.code.weight.detach().numpy()
    integers, step = quantise_weight(weight)
    np.testing.assert_allclose(integers * step[:, None], weight, atol=1e-6)
    assert np.abs(integers).max() == WEIGHT_LIMIT
    assert not hasattr(ours.network.encoder.code, "parametrizations")
    assert np.abs(outputs(compress.static_int8(ours, windows), windows) - trained).mean() < 0.1


def test_dynamic_int8_computes_in_integers_and_follows_the_float_file(lstm: Lstm, tiny: Data) -> None:
    windows = normalised(tiny)
    plain = to_onnx(lstm, CLASSES)

    small = compress.dynamic_int8(plain)

    assert "DynamicQuantizeLSTM" in {node.op_type for node in onnx.load_from_string(small).graph.node}
    one_by_one = np.concatenate([outputs(small, windows[i : i + 1]) for i in range(len(windows))])
    assert np.abs(one_by_one - outputs(plain, windows)).max() < 0.05
    assert len(small) < len(plain)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=4096) | st.binary(min_size=1, max_size=8).map(lambda b: b * 500))
def test_coding_gives_back_what_was_coded(data: bytes) -> None:
    assert coding.decode(coding.encode(data)) == data


def test_a_huffman_code_is_as_long_as_it_must_be() -> None:
    assert coding.huffman_bytes(b"a" * 16) == 2
    assert coding.huffman_bytes(bytes(range(256)) * 4) == 1024
    assert coding.huffman_bytes(b"a" * 32 + b"b" * 16 + b"c" * 16) == (32 + 2 * 32) // 8


@pytest.mark.parametrize(
    ("family", "first", "last"),
    [("lstm", "float", "fewer units, 5-bit clusters"), ("ours", "float", "fewer channels, static int8")],
)
def test_a_ladder_counts_the_bytes_of_its_files(tiny: Data, tmp_path: Path, family: str, first: str, last: str) -> None:
    rows = ladder.climb(tiny, family, 0, tmp_path, lambda _: None)

    assert [rows[0]["step"], rows[-1]["step"]] == [first, last]
    for i, row in enumerate(rows):
        file = (tmp_path / f"ladder-{family}-seed0-{i}.onnx").read_bytes()
        assert row["bytes"] == len(file)
        coded = coding.encode(file)
        assert coding.decode(coded) == file
        assert row["coded_bytes"] == len(coded) < row["bytes"]
    said: list[str] = []
    assert ladder.climb(tiny, family, 0, tmp_path, said.append) == rows
    assert said == []


def test_the_compressed_lstm_is_within_the_papers_size() -> None:
    network = Lstm(CLASSES, ladder.UNITS, frame=8).eval()

    assert len(compress.dynamic_int8(to_onnx(network, CLASSES))) <= 69_000
