import numpy as np
import onnxruntime as ort
import pytest
from graphs import classifier, decoder, encoder, field, model, node, novelty, number, value

from agent.adapters.onnx_model import session_options
from agent.core.onnx_wire import FLOAT, INT8, Node, Value, constants, extract, fuse, nodes, signature, summarise
from agent.errors import ModelContractError

CODE = value("code", np.int8, "batch", 4)
LOGITS = value("logits", np.float32, "batch", 4)
WINDOWS = np.rint(np.random.default_rng(0).normal(0, 64, (33, 128, 6))).astype(np.float32) / 64


def run(graph, **inputs):
    session = ort.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
    return dict(zip([x.name for x in session.get_outputs()], session.run(None, inputs), strict=True))


def test_a_signature_is_what_the_graph_declares():
    assert signature(encoder()) == (
        [Value("window", FLOAT, (None, 128, 6))],
        [Value("code", INT8, (None, 4))],
    )
    assert signature(novelty())[1] == [Value("novelty", FLOAT, (None,))]


def test_an_input_with_a_value_of_its_own_is_no_input():
    graph = model([], [CODE, value("w", np.float32, 2)], [], {"w": np.zeros(2, np.float32)}, ir_version=3)

    assert [x.name for x in signature(graph)[0]] == ["code"]


def test_of_two_names_the_last_counts():
    twice = model([node("Relu", "code", "y")], [CODE + field(1, "x")], [LOGITS])

    assert signature(twice)[0] == [Value("x", INT8, (None, 4))]
    assert fuse([encoder(), twice]) is None


def test_what_is_no_tensor_has_no_type_and_no_shape():
    sequence = field(1, "x") + field(2, field(4, field(1, field(1, number(1, FLOAT)))))

    assert signature(model([], [sequence], []))[0] == [Value("x", 0, ())]


@pytest.mark.parametrize("last", [decoder, novelty])
def test_graphs_run_as_one_give_what_they_give_one_by_one(last):
    together = run(fuse([encoder(), classifier(), last()]), window=WINDOWS)
    code = run(encoder(), window=WINDOWS)

    apart = {**code, **run(classifier(), **code), **run(last(), **code)}
    assert list(together) == list(apart)
    assert all(np.array_equal(together[name], apart[name]) for name in apart)


def test_graphs_run_as_one_score_a_window_the_same_alone_and_in_a_batch():
    graph = fuse([encoder(), classifier(), decoder()])
    many = run(graph, window=WINDOWS)

    for i in (0, 7, 32):
        alone = run(graph, window=WINDOWS[i : i + 1])
        assert all(np.array_equal(alone[name][0], many[name][i]) for name in many)


def test_a_fused_graph_declares_the_inputs_of_the_first_and_all_outputs():
    fused = fuse([encoder(), classifier(), novelty()])

    inputs, outputs = signature(fused)
    assert (inputs, [x.name for x in outputs]) == (signature(encoder())[0], ["code", "logits", "novelty"])
    parts = [summarise(graph) for graph in (encoder(), classifier(), novelty())]
    assert summarise(fused).operators == set.union(*(part.operators for part in parts))
    assert summarise(fused).opsets == {"": 17}


def test_one_graph_alone_is_itself():
    assert signature(fuse([encoder()])) == signature(encoder())


def test_a_graph_that_comes_in_two_parts_is_fused_whole():
    extra = field(7, field(1, node("Relu", "logits", "more")) + field(12, value("more", np.float32, "batch", 3)))
    got = run(fuse([encoder(), classifier() + extra]), window=WINDOWS)

    assert np.array_equal(got["more"], np.maximum(got["logits"], 0))


def test_outputs_that_are_not_wanted_share_their_empty_name():
    graphs = [
        model([node("MaxPool", "code", x) + field(2, "")], [CODE], [value(x, np.int8, "batch", 4)]) for x in ("x", "y")
    ]

    assert fuse([encoder(), *graphs]) is not None


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ([classifier("e")], "a node's output and a constant have the name of one of the first"),
        ([classifier(), decoder("c")], "the same among those that come later"),
        ([classifier(), classifier("x")], "both give `logits`"),
        ([classifier(opset=18)], "another opset"),
        ([encoder("x")], "takes `window`, which none gives"),
        ([model([node("Identity", "code", "window")], [CODE], [LOGITS])], "defines what the first takes"),
        ([model([node("Identity", "code", "x")], [CODE], [CODE])], "gives `code` once more"),
        ([model([node("Add", "code ea", "logits")], [CODE], [LOGITS])], "uses what is another's own"),
        (
            [model([node("Add", "code w", "x")], [CODE, value("w", np.int8, 4)], [], {"w": np.zeros(4, np.int8)})],
            "lists its constants among its inputs",
        ),
    ],
)
def test_what_would_mean_something_else_is_not_fused(others, why):
    assert fuse([encoder(), *others]) is None


@pytest.mark.parametrize("data", [b"\xff" * 20, b"not a model", field(7, field(11, b"\x0a\x7f"))])
def test_what_is_no_onnx_file_is_refused(data):
    with pytest.raises(ModelContractError, match="ONNX file"):
        fuse([encoder(), data])
    with pytest.raises(ModelContractError, match="ONNX file"):
        signature(data)


def test_nodes_and_constants_are_read_as_they_stand():
    graph = model(
        [node("Mul", "x w", "a"), node("Relu", "a", "y")],
        [value("x", np.float32, 2)],
        [value("y", np.float32, 2)],
        {"w": np.zeros((1, 2), np.float32), "n": np.zeros((), np.int8)},
    )

    assert nodes(graph) == [Node("Mul", ("x", "w"), ("a",)), Node("Relu", ("a",), ("y",))]
    assert constants(graph) == [Value("w", FLOAT, (1, 2)), Value("n", INT8, ())]


def test_dimensions_of_a_constant_may_be_packed():
    packed = field(7, field(5, field(1, b"\x03\x80\x01") + number(2, FLOAT) + field(8, "w")))

    assert constants(packed) == [Value("w", FLOAT, (3, 128))]


def test_what_is_extracted_declares_what_it_was_told_to():
    whole = fuse([encoder(), classifier()])
    part = extract(whole, [Value("code", INT8, (None, 4))], [Value("ca", 0, ()), Value("logits", FLOAT, (None, 3))])

    assert signature(part) == (
        [Value("code", INT8, (None, 4))],
        [Value("ca", 0, ()), Value("logits", FLOAT, (None, 3))],
    )
    codes = np.arange(8, dtype=np.int8).reshape(2, 4)
    assert np.array_equal(run(part, code=codes)["logits"], run(classifier(), code=codes)["logits"])
    assert summarise(part).opsets == {"": 17}


def test_a_sparse_constant_goes_along_where_it_is_used():
    values = field(8, "w") + number(1, 1) + number(2, FLOAT)
    graph = model([node("Relu", "w", "a"), node("Add", "x a", "b"), node("Relu", "b", "y")], [CODE], [LOGITS])
    graph += field(7, field(15, field(1, values)))

    with_it = extract(graph, [Value("x", FLOAT, ())], [Value("b", FLOAT, ())])
    without = extract(graph, [Value("b", FLOAT, ())], [Value("y", FLOAT, ())])
    assert values in with_it
    assert values not in without
