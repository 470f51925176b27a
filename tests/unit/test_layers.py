import numpy as np
import pytest
from graphs import model, node, value

from agent.core.layers import Layer, Run, _non_negative, describe, fit, predict, unknown

RELU = Layer("Relu", 0, 400, 400, 0)


def conv(macs, weights=100):
    return Layer("Conv", macs, 400, 400, weights)


def test_a_layer_says_what_it_computes_and_what_it_moves():
    weight, bias = np.zeros((8, 3, 5), np.float32), np.zeros(8, np.float32)
    dense = np.zeros((8, 2), np.float32)
    graph = model(
        [
            node("Conv", "x w b", "a", kernel_shape=[5]),
            node("Relu", "a", "c"),
            node("GlobalMaxPool", "c", "d"),
            node("Flatten", "d", "e"),
            node("MatMul", "e m", "y"),
        ],
        [value("x", np.float32, "batch", 3, 20)],
        [value("y", np.float32, "batch", 2)],
        {"w": weight, "b": bias, "m": dense},
    )
    shapes = {"x": (1, 3, 20), "a": (1, 8, 16), "c": (1, 8, 16), "d": (1, 8, 1), "e": (1, 8), "y": (1, 2)}
    layers = describe(graph, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})

    assert layers == [
        Layer("Conv", 8 * 16 * 3 * 5, 240, 512, 512),
        Layer("Relu", 0, 512, 512, 0),
        Layer("GlobalMaxPool", 0, 512, 32, 0),
        Layer("Flatten", 0, 32, 32, 0),
        Layer("MatMul", 16, 32, 8, 64),
    ]


@pytest.mark.parametrize(
    ("operator", "weight", "takes", "gives", "macs"),
    [
        ("Conv", (8, 1, 5), (1, 8, 20), (1, 8, 16), 8 * 16 * 5),
        ("ConvTranspose", (3, 8, 5), (1, 3, 20), (1, 8, 24), 3 * 20 * 8 * 5),
        ("Gemm", (2, 8), (1, 8), (1, 2), 16),
    ],
    ids=["one convolution a channel", "transposed", "dense"],
)
def test_multiply_accumulates(operator, weight, takes, gives, macs):
    graph = model([node(operator, "x w", "y")], [value("x", np.float32)], [value("y", np.float32)], {
        "w": np.zeros(weight, np.float32)
    })  # fmt: skip

    (layer,) = describe(graph, {"x": np.zeros(takes), "y": np.zeros(gives)})
    assert layer.macs == macs


def test_what_depends_on_constants_alone_is_no_layer():
    graph = model(
        [node("Relu", "w", "v"), node("Mul", "x v", "y")],
        [value("x", np.float32)],
        [value("y", np.float32)],
        {"w": np.ones(4, np.float32)},
    )

    assert [layer.op for layer in describe(graph, {"x": np.zeros(4), "y": np.zeros(4)})] == ["Mul"]


def test_times_that_are_sums_of_costs_are_learnt_and_predicted():
    def us(layers):
        return 6 + sum(0.2 + (1 + 3e-5 * l.macs + 1e-3 * l.weight_bytes if l.macs else 1e-3 * 800) for l in layers)  # noqa: E741

    shapes = [[conv(n)] for n in (20_000, 80_000, 300_000)] + [[conv(50_000, w)] for w in (10, 5_000)]
    seen = [*shapes, [RELU], [RELU, RELU], [conv(100_000), RELU]]
    costs = fit([Run(layers, us(layers)) for layers in seen])

    for layers in ([conv(150_000, 900), RELU], [conv(40_000), conv(60_000), RELU]):
        assert predict(costs, layers) == pytest.approx(us(layers), rel=0.02)


def test_nothing_costs_less_than_nothing():
    costs = fit([Run([conv(10**5)], 30.0), Run([conv(2 * 10**5)], 20.0), Run([RELU], 25.0)])

    assert min(costs.values()) >= 0


def test_a_run_that_counts_more_is_met_better():
    runs = [Run([RELU], 10.0), Run([RELU], 20.0)]

    assert predict(fit([runs[0]._replace(weight=50.0), runs[1]]), [RELU]) < predict(fit(runs), [RELU])


def test_an_operator_that_was_never_seen_is_unknown_if_it_computes():
    costs = fit([Run([conv(1000)], 10.0)])

    assert unknown(costs, [conv(5), RELU, Layer("QGemm", 7, 1, 1, 1)]) == ["QGemm"]


def test_least_squares_are_not_negative_and_are_the_least():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.normal(size=(12, 5)), rng.normal(size=12)
        x = _non_negative(a, b)
        pull = a.T @ (b - a @ x)
        # Karush, Kuhn and Tucker: no variable can grow for the better, and those that are not zero are at rest.
        assert x.min() >= 0
        assert pull.max() < 1e-6
        assert np.abs(pull[x > 0]).max(initial=0) < 1e-6
