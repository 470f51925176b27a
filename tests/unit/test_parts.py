"""Any part of a network gives, bit by bit, what the whole gives; what cannot be cut is refused or left out."""

from itertools import combinations

import numpy as np
import pytest
from graphs import classifier, exit_head, model, node, value, write_bundle, write_segment

from agent.adapters.bundle import find_bundle, load_bundle, read_golden, read_segment_golden
from agent.adapters.onnx_model import OrtModel
from agent.adapters.onnx_parts import MOST_SESSIONS, Parts
from agent.app.compose import open_parts
from agent.core.manifest import Exit
from agent.errors import InferenceError, ModelContractError
from agent.records import Scores

EXIT = Exit("early", "eb", 0.9, 0.8)


def bits(result):
    """A part's result as something that is only equal if every bit of it is."""
    arrays = result[:3] if isinstance(result, Scores) else (result,)
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays]


def windows_of(bundle):
    return bundle.manifest.normalisation.apply(read_golden(bundle).window)


@pytest.fixture
def tiny(tmp_path):
    """A bundle with an exit."""
    return load_bundle(
        write_bundle(tmp_path / "tiny", novel=True, graphs={"exit-early.onnx": exit_head()}, exits=(EXIT,))
    )


@pytest.mark.parametrize("name", ["har-base", "har-base-float"])
def test_a_shipped_network_run_between_any_two_cuts_gives_the_same_bits(name):
    bundle = load_bundle(find_bundle(name))
    windows = windows_of(bundle)
    whole = OrtModel(bundle).infer(windows)
    parts = open_parts(bundle)
    names = [cut.name for cut in parts.cuts]
    at = {name: windows if name == "window" else parts.run("window", name, windows) for name in names}

    assert (names[0], names[-1]) == ("window", "code")
    assert len(names) * (len(names) - 1) / 2 > MOST_SESSIONS  # so that some are closed again
    assert bits(at["code"]) == bits(whole.code)
    for name in names:
        assert bits(parts.run(name, "", at[name]))[::2] == bits(whole)[::2]
        assert name == "code" or bits(parts.run(name, "", at[name])) == bits(whole)
    for one, other in combinations(names, 2):
        assert bits(parts.run(one, other, at[one])) == bits(at[other]), (one, other)


@pytest.mark.parametrize("name", ["har-base", "har-base-float"])
def test_a_part_gives_the_same_of_a_window_alone_and_in_a_batch(name):
    bundle = load_bundle(find_bundle(name))
    windows = windows_of(bundle)
    parts = Parts(bundle)
    for cut in parts.cuts[1::4]:
        many = parts.run("window", cut.name, windows)
        scores = parts.run(cut.name, "", many)
        for i in (0, 1, 7, 31):
            assert bits(parts.run("window", cut.name, windows[i : i + 1])) == bits(many[i : i + 1])
            alone = parts.run(cut.name, "", many[i : i + 1])
            assert [bits(a) for a in alone[:3]] == [bits(b[i : i + 1]) for b in scores[:3]]


def test_cuts_say_what_is_sent_there():
    parts = open_parts(load_bundle(find_bundle("har-base")))
    cuts = {cut.name: cut[1:] for cut in parts.cuts}

    assert cuts["window"] == (3072, "float32", (128, 6))
    assert cuts["ea"] == (2048, "uint8", (32, 64))
    assert cuts["code"] == (64, "int8", (64,))
    assert parts.until == ""


def test_a_network_is_known_by_its_manifest(tiny, tmp_path):
    parts = Parts(tiny)
    segment = Parts(load_bundle(write_segment(tmp_path / "part", tiny, "ea", "eb")))

    assert parts.id == segment.id == tiny.id
    assert parts.network == segment.network == bytes.fromhex(tiny.digest)[:8]


def test_what_was_sent_is_read_and_nothing_else(tiny):
    parts = Parts(tiny)
    sent = parts.run("window", "eb", windows_of(tiny))

    assert bits(parts.values("eb", sent.tobytes(), len(sent))) == bits(sent)
    for at, data, count in (("eb", bytes(15), 1), ("eb", bytes(16), 2), ("logits", bytes(12), 1), ("", b"", 0)):
        with pytest.raises(ValueError, match=r"are not \d times|no part here that begins"):
            parts.values(at, data, count)


@pytest.mark.parametrize(
    ("at", "until", "way", "says"),
    [
        ("nowhere", "", "", "no part here that begins at nowhere"),
        ("logits", "", "", "no part here that begins at logits"),
        ("eb", "ea", "", "no part from eb to ea"),
        ("eb", "eb", "", "no part from eb to eb"),
        ("eb", "logits", "", "no part from eb to logits"),
        ("code", "", "early", "no part from code to eb"),
        ("eb", "", "late", "no exit 'late'"),
        ("ea", "eb", "early", "an exit ends the network"),
        ("ea", "eb", "late", "no exit 'late'"),
    ],
)
def test_a_part_that_is_none_is_refused(tiny, at, until, way, says):
    parts = Parts(tiny)
    shapes = {"ea": (1, 768), "code": (1, 4)}
    values = np.zeros(shapes.get(at, (1, 4)), np.int8 if at == "code" else np.float32)

    with pytest.raises(ValueError, match=says):
        parts.run(at, until, values, way)


@pytest.mark.parametrize("values", [np.zeros((2, 5), np.float32), np.zeros((2, 4), np.float64), np.zeros(4, "f4")])
def test_values_of_another_shape_or_type_are_refused(tiny, values):
    with pytest.raises(ValueError, match="eb is float32"):
        Parts(tiny).run("eb", "code", values)


def test_a_call_that_the_runtime_refuses_is_an_inference_error(tmp_path):
    for_one = model(
        [node("Cast", "code", "ca", to=1), node("Reshape", "ca c1", "cb"), node("MatMul", "cb c0", "logits")],
        [value("code", np.int8, "batch", 4)],
        [value("logits", np.float32, "batch", 3)],
        {"c0": np.ones((4, 3), np.float32), "c1": np.array([1, 4])},
    )
    parts = Parts(load_bundle(write_bundle(tmp_path, novel=True, graphs={"classifier.onnx": for_one})))

    parts.run("code", "", np.zeros((1, 4), np.int8))
    with pytest.raises(InferenceError, match="failed from code to the end on 2"):
        parts.run("code", "", np.zeros((2, 4), np.int8))


@pytest.mark.parametrize(
    ("bundle", "says"),
    [
        ({}, r"cannot be split: it has no novelty\.onnx"),
        ({"novel": True, "graphs": {"classifier.onnx": classifier("e")}}, "names collide or their opsets differ"),
        ({"novel": True, "graphs": {"classifier.onnx": classifier(opset=18)}}, "names collide or their opsets differ"),
        ({"novel": True, "graphs": {"classifier.onnx": classifier(declared=4)}}, "where the manifest means one"),
    ],
)
def test_a_network_that_is_not_one_graph_cannot_be_split(tmp_path, bundle, says):
    loaded = load_bundle(write_bundle(tmp_path, **bundle))

    with pytest.raises(ModelContractError, match=says):
        Parts(loaded)


def test_a_part_of_a_bundle_that_is_broken_is_refused(tmp_path):
    loaded = load_bundle(write_bundle(tmp_path, novel=True, graphs={"classifier.onnx": classifier(labels=4)}))

    with pytest.raises(ModelContractError, match="do not give the shapes"):
        open_parts(loaded)


def test_an_exit_answers_from_every_cut_before_it(tiny):
    parts = open_parts(tiny)
    windows = windows_of(tiny)
    scores = parts.run("window", "", windows, "early")

    assert parts.exits == (EXIT,)
    assert not scores.code.any()
    assert scores.code.shape == (8, 4)
    assert scores.novelty.dtype == np.float64
    assert np.array_equal(scores.novelty, scores.logits.max(axis=1))
    for cut in ("ea", "eb"):
        assert bits(parts.run(cut, "", parts.run("window", cut, windows), "early")) == bits(scores)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (exit_head(p="e"), "names collide"),
        (exit_head(opset=18), "opsets differ"),
        (
            model(
                [
                    node("Cast", "eb", "xa", to=1),
                    node("MatMul", "xa xw", "logits"),
                    node("ReduceMax", "logits", "novelty", axes=[1], keepdims=0),
                ],
                [value("eb", np.int8, "batch", 4)],
                [value("logits", np.float32, "batch", 3), value("novelty", np.float32, "batch")],
                {"xw": np.ones((4, 3), np.float32)},
            ),
            "declares eb otherwise than the network computes it",
        ),
    ],
)  # fmt: skip
def test_an_exit_that_does_not_go_with_the_network_is_refused(tmp_path, head, says):
    loaded = load_bundle(write_bundle(tmp_path, novel=True, graphs={"exit-early.onnx": head}, exits=(EXIT,)))

    with pytest.raises(ModelContractError, match=says):
        Parts(loaded)


@pytest.mark.parametrize("cuts", [c for n in range(4) for c in combinations(("ea", "eb", "code"), n)])
def test_segments_in_a_chain_give_what_the_whole_gives(tiny, tmp_path, cuts):
    windows = windows_of(tiny)
    result, at = windows, "window"
    for i, until in enumerate((*cuts, "")):
        parts = open_parts(load_bundle(write_segment(tmp_path / str(i), tiny, at, until)))
        assert (parts.cuts[0].name, parts.until) == (at, until)
        result = parts.run(at, until, parts.values(at, result.tobytes(), len(result)))
        at = until

    assert bits(result) == bits(OrtModel(tiny).infer(windows))


def test_a_segment_is_entered_at_each_of_its_cuts(tiny, tmp_path):
    parts = open_parts(load_bundle(write_segment(tmp_path / "part", tiny, "ea", "code", exits=(EXIT,))))
    whole, windows = Parts(tiny), windows_of(tiny)
    value = whole.run("window", "eb", windows)

    assert [cut.name for cut in parts.cuts] == ["ea", "eb"]
    assert bits(parts.run("eb", "code", value)) == bits(whole.run("window", "code", windows))
    assert bits(parts.run("eb", "", value, "early")) == bits(whole.run("window", "", windows, "early"))
    with pytest.raises(ValueError, match="reaches code, not the end"):
        parts.run("eb", "", value)


def test_an_exit_at_the_very_end_of_a_segment_answers_there(tiny, tmp_path):
    parts = open_parts(load_bundle(write_segment(tmp_path / "part", tiny, "window", "eb", exits=(EXIT,))))
    windows = windows_of(tiny)

    assert parts.exits == (EXIT,)
    assert bits(parts.run("window", "", windows, "early")) == bits(Parts(tiny).run("window", "", windows, "early"))


def test_a_segment_is_no_model_of_an_agent(tiny, tmp_path):
    loaded = load_bundle(write_segment(tmp_path / "part", tiny, "ea"))

    with pytest.raises(ModelContractError, match=f"holds a part of {tiny.id}, which labels nothing by itself"):
        OrtModel(loaded)


@pytest.mark.parametrize(("until", "off"), [("eb", 0.01), ("code", 2), ("", 1)])
def test_a_segment_that_computes_something_else_here_is_refused(tiny, tmp_path, until, off):
    loaded = load_bundle(write_segment(tmp_path / "part", tiny, "ea", until))
    golden = read_segment_golden(loaded)
    gives = golden.gives
    wrong = gives + np.array(off * np.abs(gives).max() if until == "eb" else off, gives.dtype) if until else (
        gives._replace(logits=gives.logits + off)
    )  # fmt: skip

    Parts(loaded).verify(golden)
    with pytest.raises(ModelContractError, match="fails its golden vectors"):
        Parts(loaded).verify(golden._replace(gives=wrong))
