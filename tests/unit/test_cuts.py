import numpy as np
import pytest
from graphs import classifier, encoder, model, node, value
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.bundle import find_bundle, load_bundle, read_golden
from agent.adapters.onnx_model import open_session
from agent.core.cuts import bridges, cut, described, flow, surviving
from agent.core.onnx_wire import Value, constants, extract, fuse, nodes, signature
from agent.errors import ModelContractError

X, Y = value("x", np.float32, "batch", 4), value("y", np.float32, "batch", 4)
ONES = np.ones(4, np.float32)


def graph(*steps, inputs=(X,), outputs=(Y,), **constant):
    """A graph of steps such as "Relu x > y"."""
    made = []
    for step in steps:
        takes, gives = step.split(" > ")
        kind, takes = takes.split(" ", 1)
        made.append(node(kind, takes, gives))
    return model(made, list(inputs), list(outputs), constant)


def run(whole, window):
    session = open_session("test", whole)
    return session.run(None, {session.get_inputs()[0].name: window})[-1]


@pytest.mark.parametrize(
    ("whole", "found"),
    [
        (graph("Relu x > a", "Tanh a > b", "Relu b > y"), ["a", "b"]),
        (graph("Relu x > y"), []),
        (graph("Relu x > a", "Tanh a > b", "Sigmoid a > c", "Add b c > d", "Relu d > y"), ["a", "d"]),
        (graph("Relu x > a", "Tanh a > b", "Add b a > c", "Relu c > y"), ["a", "c"]),
        (graph("Relu x > a", "Add a x > b", "Relu b > y"), ["b"]),
        (graph("Relu x > a", "Tanh a > b", "Add b x > y"), []),
        (graph("Relu x > a", "Relu k > w", "Mul a w > b", "Tanh b > y", k=ONES), ["a", "b"]),
        (graph("Relu k > w", "Mul x w > a", "Add a w > y", k=ONES), ["a"]),
        (graph("Relu x > a", "Tanh x > unused", "Relu a > y"), ["a"]),
        (graph("Relu x > a", "Tanh a > y", "Relu y > z", outputs=(Y, value("z", np.float32, "batch", 4))), ["a"]),
        (
            graph("Relu x > a", "Tanh z > b", "Add a b > c", "Relu c > y", inputs=(X, value("z", np.float32, 4))),
            ["c"],
        ),
    ],
    ids=[
        "chain", "one node", "branches that meet", "skip", "skip from the input", "skip to the end", "constant branch",
        "constant on both sides", "dead end", "an output on the way", "two inputs",
    ],
)  # fmt: skip
def test_everything_passes_through_a_bridge(whole, found):
    assert bridges(whole) == found


def test_bridges_are_the_same_in_another_order_of_the_nodes():
    steps = ("Relu x > a", "Relu k > w", "Tanh a > b", "Sigmoid a > c", "Mul b w > d", "Add d c > e", "Relu e > y")
    one, other = graph(*steps, k=ONES), graph(*(steps[i] for i in (0, 3, 2, 1, 4, 5, 6)), k=ONES)

    assert bridges(one) == bridges(other) == ["a", "e"]


@st.composite
def wirings(draw):
    """Which two earlier tensors each node adds; 0 is the input, -1 a constant."""
    n = draw(st.integers(1, 9))
    return [tuple(draw(st.integers(max(-1, i - 3), i)) for _ in "ab") for i in range(n)]


@given(wirings())
def test_without_a_bridge_nothing_arrives_and_without_another_tensor_something_does(wiring):
    names = ["x", *(f"t{i}" for i in range(1, len(wiring))), "y", "k"]
    whole = graph(*(f"Add {names[a]} {names[b]} > {names[i]}" for i, (a, b) in enumerate(wiring, 1)), k=ONES)

    def arrives(without):
        there = {0} - {without}
        for i, takes in enumerate(wiring, 1):
            if i != without and there.intersection(takes):
                there.add(i)
        return len(wiring) in there

    wanted = [names[i] for i in range(1, len(wiring)) if arrives(None) and not arrives(i)]
    assert bridges(whole) == wanted


def test_tensors_flow_from_the_inputs_and_constants_do_not():
    assert flow(graph("Relu x > a", "Relu k > w", "Mul a w > y", k=ONES)) == ["x", "a", "y"]


def test_parts_have_what_they_need_and_nothing_else():
    whole = graph("Relu x > a", "Relu k > w", "Mul a w > b", "Mul b k > c", "Add c j > y", k=ONES, j=2 * ONES)
    b, c = (Value(name, 1, (None, 4)) for name in "bc")
    parts = cut(whole, [b, c])

    assert [[n.operator for n in nodes(part)] for part in parts] == [["Relu", "Relu", "Mul"], ["Mul"], ["Add"]]
    assert [[v.name for v in constants(part)] for part in parts] == [["k"], ["k"], ["j"]]
    assert [signature(part)[0] for part in parts[1:]] == [[b], [c]]
    x = np.array([[-1, 2, 3, 4]], np.float32)
    value_ = x
    for part in parts:
        value_ = run(part, value_)
    assert np.array_equal(value_, run(whole, x))


def test_what_is_no_bridge_cannot_be_cut_at():
    whole = graph("Relu x > a", "Tanh a > b", "Add b a > y")

    with pytest.raises(ModelContractError, match="needs x as well"):
        cut(whole, [Value("b", 1, (None, 4))])


def test_a_part_of_what_is_not_there_is_refused():
    with pytest.raises(ModelContractError, match="needs nothing as well"):
        extract(graph("Relu x > y"), [Value("x", 1, (None, 4))], [Value("nothing", 0, ())])


@pytest.mark.parametrize(
    ("name", "now", "kept"),
    [
        ("a", np.arange(6).reshape(1, 2, 3), "a"),
        ("moved", np.arange(6).reshape(1, 2, 3).transpose(0, 2, 1), "a"),
        ("moved", np.arange(6).reshape(1, 2, 3).transpose(0, 2, 1) + 1, "a"),
        ("moved", np.arange(6).reshape(1, 3, 2), None),
        ("moved", np.arange(6).reshape(1, 2, 3).astype(np.int16), None),
        ("moved", np.arange(6.0).reshape(1, 2, 3), None),
    ],
    ids=["its name", "other axes", "a tie rounded up", "other numbers", "another type", "floats in another place"],
)
def test_a_bridge_survives_by_its_name_or_by_its_integers(name, now, kept):
    before = graph("Relu x > a", "Relu a > y")
    after = graph(f"Relu x > {name}", f"Relu {name} > y")
    was = np.arange(6).reshape(1, 2, 3).astype(now.dtype if now.dtype.kind == "f" else np.int64)

    found = surviving(before, {"a": was}, after, {name: now})
    assert found == ([(kept, name)] if kept else [])


def test_of_tensors_that_became_one_the_first_is_a_cut():
    before = graph("Relu x > a", "Transpose a > b", "Relu b > y")
    after = graph("Relu x > a", "Relu a > y")
    values = {"a": np.eye(2, dtype=int)[None], "b": np.eye(2, dtype=int)[None]}

    assert surviving(before, values, after, values) == [("a", "a")]


def test_a_cut_declares_the_batch_as_open():
    one = np.zeros((1, 3, 8), np.uint8)

    assert described("a", one, np.repeat(one, 2, axis=0)) == Value("a", 2, (None, 3, 8))


def test_a_type_that_graphs_cannot_exchange_is_refused():
    with pytest.raises(ModelContractError, match="complex64"):
        described("a", np.zeros(1, np.complex64), np.zeros(2, np.complex64))


def test_a_fused_graph_is_cut_at_its_code():
    whole = fuse([encoder(), classifier()])
    takes, gives = signature(whole)

    assert "code" in bridges(extract(whole, takes, gives[-1:]))


@pytest.mark.parametrize("name", ["har-base", "har-base-float"])
def test_a_shipped_network_cut_anywhere_gives_the_same_bits(name):
    bundle = load_bundle(find_bundle(name))
    windows = bundle.manifest.normalisation.apply(read_golden(bundle).window)
    takes, gives = signature(fuse([bundle.contents["encoder.onnx"], bundle.contents["classifier.onnx"]]))
    whole = extract(fuse([bundle.contents["encoder.onnx"], bundle.contents["classifier.onnx"]]), takes, gives[-1:])
    code = next(v for v in gives if v.name == "code")
    first, second = cut(whole, [code])

    assert np.array_equal(run(first, windows), read_golden(bundle).code)
    assert np.array_equal(run(second, run(first, windows)), run(whole, windows))
