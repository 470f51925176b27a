"""A bundle's encoder and classifier in ONNX Runtime and in LiteRT, int8 and float32, in one process and one run.

LiteRT is no part of the project: it comes into an environment of its own.

    python3 -m venv /tmp/litert && /tmp/litert/bin/pip install -e . ai-edge-litert onnx
    /tmp/litert/bin/python tools/bench/litert.py --json docs/results/litert.json

ONNX Runtime runs the bundle's two int8 graphs as one session with the agent's settings. The LiteRT model is written
from the same files, with LiteRT's own schema: the same int8 weights, biases and steps, laid out for its kernels, so
that no converter stands between. The float32 pair has those weights, dequantised, and no step between the layers; both
views of the input and the code stay int8, as the network defines them. LiteRT runs with XNNPACK, its default, and with
its built-in kernels; the quicker one when hot is what ratios are against. A graph of one node shows what of ONNX
Runtime's time is the call itself.

Every runtime has one thread and takes one window, from NumPy to NumPy. Calls are measured in turn, round by round. Hot:
CPU time of a call right after another of the same. At cadence: wall time of a call after a pause, as in `har-agent
bench`. That all compute the same network is shown on the golden windows and on the windows of HAPT, where HAR_DATA or
../shared/data has its recordings. Takes about two minutes; `--rounds 30` a quarter of one.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray
from onnx import TensorProto, compose, helper, numpy_helper

from agent.adapters.bundle import find_bundle, load_bundle, read_golden
from agent.adapters.onnx_model import LOGIT_TOLERANCE, session_options
from agent.app.profile import machine
from agent.core.manifest import Bundle
from agent.records import Float32Array, Int8Array

ROOT = Path(__file__).resolve().parent.parent.parent
PAUSE_S = 0.05
HOT_ROUNDS = 10
"""Hot rounds for each round at cadence."""

ONE_NODE = "one node"

Call = Callable[[Float32Array], Sequence[Any]]
"""A normalised window (1, window, channels) -> code (1, code) and logits (1, labels), but for `ONE_NODE`."""


def main() -> None:
    """Build the models, show that they are the same network, measure them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="har-base", help="a bundle's folder, or the name of one that ships")
    parser.add_argument("--rounds", type=int, default=300, help="calls at cadence of each; ten times as many hot ones")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    given = parser.parse_args()
    result = measure(load_bundle(find_bundle(given.model)), given.rounds)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    report(result)


def measure(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """Compare the runtimes on one bundle."""
    load = os.getloadavg()[0]
    network = read(bundle)
    contenders = [
        onnx_runtime("int8", onnx_int8(bundle)),
        onnx_runtime("float32", onnx_float(network)),
        *(
            litert(numbers, setting, model)
            for numbers, model in (("int8", flatbuffer(network, True)), ("float32", flatbuffer(network, False)))
            for setting in RESOLVERS
        ),
    ]
    windows = {"golden": read_golden(bundle).window, "HAPT": recorded(bundle)}
    windows = {name: bundle.manifest.normalisation.apply(x) for name, x in windows.items() if len(x)}
    same = agreement(contenders, windows)
    contenders.append(onnx_runtime(ONE_NODE, onnx_one_node()))
    say("measuring")
    times = in_turn([c.call for c in contenders], windows["golden"], rounds)
    rows = [
        {"runtime": c.runtime, "setting": c.setting, "numbers": c.numbers, "bytes": c.size, **t}
        for c, t in zip(contenders, times, strict=True)
    ]
    return {
        "v": 1,
        "model": bundle.id,
        "command": shlex.join(["python", "tools/bench/litert.py", *sys.argv[1:]]),
        "machine": {"cpu": machine()["cpu"], "machine": platform.machine(), "cores": os.cpu_count(), "load": load},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("onnxruntime", "ai-edge-litert", "numpy")},
        },
        "pause_ms": 1e3 * PAUSE_S,
        "rounds": {"cadence": rounds, "hot": HOT_ROUNDS * rounds},
        "bundle_bytes": {name: len(bundle.contents[name]) for name in ("encoder.onnx", "classifier.onnx")},
        "rows": rows,
        "ratios": [ratios(rows, numbers) for numbers in ("int8", "float32")],
        "float32_over_int8": {
            runtime: quotient(best(rows, runtime, "float32"), best(rows, runtime, "int8"))
            for runtime in ("ONNX Runtime", "LiteRT")
        },
        "agreement": same,
    }


@dataclass(frozen=True)
class Layer:
    """A quantised convolution or linear layer as the bundle stores it.

    `weight` int8 (out, in, kernel) or (out, in) and `bias` int32 (out,), with a step for each output channel. Its
    output is int8 in units of `step`; with `relu` it has the whole range for numbers from zero on.
    """

    weight: Int8Array
    weight_step: Float32Array
    bias: npt.NDArray[np.int32]
    bias_step: Float32Array
    step: float
    relu: bool
    stride: int = 1
    padding: int = 0

    def floats(self) -> tuple[Float32Array, Float32Array]:
        """Return weight and bias as float32."""
        step = self.weight_step.reshape(-1, *[1] * (self.weight.ndim - 1))
        return self.weight * step, (self.bias * self.bias_step).astype(np.float32)


@dataclass(frozen=True)
class Network:
    """What a bundle's encoder and classifier compute: see `har_export.network`.

    `coarse`, `fine`: steps of the two views, whose difference is over `lag` samples. The first layer takes the integers
    of both as if they were coarse ones.
    """

    window: int
    channels: int
    lag: int
    coarse: float
    fine: float
    convolutions: list[Layer]
    reduce: Layer
    code: Layer
    heads: list[Layer]


def read(bundle: Bundle) -> Network:
    """Read the layers from a bundle's graphs.

    Raises:
        SystemExit: they are another architecture than this comparison knows.
    """
    encoder, classifier = (_Graph(bundle.contents[name]) for name in ("encoder.onnx", "classifier.onnx"))
    count = encoder.operators.count("Conv") - 2
    wanted = ["Gather", "Sub", "Concat", "Transpose", *["Conv"] * (count + 1), "Reshape", "Conv", "MaxPool"]
    wanted += ["Concat", "Flatten", "Gemm"]
    if encoder.operators != wanted or classifier.operators != ["Gemm", "Gemm"]:
        raise SystemExit(f"{bundle.id} does not have the layers of har-base; this comparison knows no others")
    *convolutions, reduce, _mean, code = encoder.layers()
    views_step, (coarse, fine) = encoder.first_step(), encoder.view_steps()
    first = convolutions[0]
    convolutions[0] = replace(first, weight_step=first.weight_step * np.float32(views_step / coarse))
    spec, lag = bundle.manifest.input, encoder.lag()
    return Network(
        spec.window, len(spec.channels), lag, coarse, fine, convolutions, reduce, code, classifier.layers()
    )  # fmt: skip


class _Graph:
    """An ONNX graph in QDQ form, to be read."""

    def __init__(self, model: bytes) -> None:
        graph = onnx.load_model_from_string(model).graph
        self._nodes = list(graph.node)
        self._constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._maker = {name: node for node in self._nodes for name in node.output}
        self._user = {name: node for node in reversed(self._nodes) for name in node.input}
        self.operators = [n.op_type for n in self._nodes if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]

    def layers(self) -> list[Layer]:
        """Return convolutions and linear layers in order."""
        return [self._layer(node) for node in self._nodes if node.op_type in ("Conv", "Gemm")]

    def view_steps(self) -> list[float]:
        """Return the steps of the window and of its difference."""
        return [self._step(node) for node in self._nodes if node.op_type == "QuantizeLinear"][:2]

    def first_step(self) -> float:
        """Return the step that the first layer takes its input in."""
        return self._step(self._maker[next(n for n in self._nodes if n.op_type == "Conv").input[0]])

    def lag(self) -> int:
        """Return the samples between the two ends of a difference."""
        gather = next(n for n in self._nodes if n.op_type == "Gather")
        return int(self._constants[gather.input[1]][0])

    def _step(self, node: onnx.NodeProto) -> float:
        return float(self._constants[node.input[1]])

    def _layer(self, node: onnx.NodeProto) -> Layer:
        (weight, weight_step, *_), (bias, bias_step, *_) = (
            [self._constants[x] for x in self._maker[name].input] for name in node.input[1:]
        )
        after = self._user[node.output[0]]
        relu = int(self._constants[after.input[2]]) == 0
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        stride, padding = (attributes.get(name, [default])[0] for name, default in (("strides", 1), ("pads", 0)))
        return Layer(weight, weight_step, bias, bias_step, self._step(after), relu, stride, padding)


def onnx_int8(bundle: Bundle) -> bytes:
    """Return a bundle's encoder and classifier as one graph, as the agent runs them."""
    encoder, classifier = (
        onnx.load_model_from_string(bundle.contents[name]) for name in ("encoder.onnx", "classifier.onnx")
    )
    classifier = compose.add_prefix(classifier, "classifier/", rename_inputs=False, rename_outputs=False)
    model = compose.merge_models(encoder, classifier, [("code", "code")], outputs=["code", "logits"])
    return bytes(model.SerializeToString())


def onnx_float(network: Network) -> bytes:
    """Return the network as an ONNX graph with float32 layers."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(value: npt.ArrayLike) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(constants)}"))
        return str(constants[-1].name)

    def op(kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [to or f"n{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def integers(kind: str, x: str, step: float, to: str = "") -> str:
        return op(kind, x, constant(np.float32(step)), constant(np.int8(0)), to=to)

    def convolution(x: str, layer: Layer) -> str:
        weight, bias = map(constant, layer.floats())
        y = op("Conv", x, weight, bias, strides=[layer.stride], pads=[layer.padding] * 2)
        return op("Relu", y)

    def linear(x: str, layer: Layer, to: str = "") -> str:
        weight, bias = map(constant, layer.floats())
        y = op("Gemm", x, weight, bias, transB=1, to=to)
        return op("Relu", y) if layer.relu else y

    later = op("Gather", "window", constant(_later(network)), axis=1)
    fine = integers("QuantizeLinear", op("Sub", later, "window"), network.fine)
    views = op("Concat", integers("QuantizeLinear", "window", network.coarse), fine, axis=2)
    x = integers("DequantizeLinear", op("Transpose", views, perm=[0, 2, 1]), network.coarse)
    for layer in network.convolutions:
        x = convolution(x, layer)
    pooled = [op("Flatten", convolution(x, network.reduce))]
    pooled += [op(kind, x, axes=[2], keepdims=0) for kind in ("ReduceMean", "ReduceMax")]
    code = integers("QuantizeLinear", linear(op("Concat", *pooled, axis=1), network.code), network.code.step, "code")
    first, second = network.heads
    linear(linear(integers("DequantizeLinear", code, network.code.step), first), second, "logits")
    ends = [
        helper.make_tensor_value_info(name, kind, ["batch", *shape])
        for name, kind, shape in (
            ("window", TensorProto.FLOAT, (network.window, network.channels)),
            ("code", TensorProto.INT8, (len(network.code.weight),)),
            ("logits", TensorProto.FLOAT, (len(second.weight),)),
        )
    ]
    graph = helper.make_graph(nodes, "har", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def onnx_one_node() -> bytes:
    """Return a graph that only negates the window: what a call costs before there is a network."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("window", "negative")]
    graph = helper.make_graph([helper.make_node("Neg", ["window"], ["negative"])], "floor", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def flatbuffer(network: Network, quantised: bool) -> bytes:
    """Return the network as a LiteRT model; time is the width of an image one pixel high."""
    g = _Flatbuffer(quantised)
    steps = network.window
    window = g.tensor((1, steps, network.channels), name="window")
    later = g.op("GATHER", "Gather", [window, g.constant(_later(network).astype(np.int32))], g.like(window), axis=1)
    difference = g.op("SUB", "Sub", [later, window], g.like(window))
    # LiteRT joins tensors of one step only: the difference is brought to the window's.
    gain = g.constant(np.array([network.coarse / network.fine], np.float32))
    difference = g.op("MUL", "Mul", [difference, gain], g.like(window))
    x = g.quantise(g.concatenate([window, difference], 2), network.coarse)
    if not quantised:
        x = g.dequantise(x)
    x = g.reshape(x, (1, 1, steps, 2 * network.channels))
    for layer in network.convolutions:
        x = g.convolution(x, layer)
    reduced = g.convolution(x, network.reduce)
    _, _, steps, kept = g.shape(reduced)
    pooled = [g.reshape(reduced, (1, steps * kept)), g.reduce("MEAN", x), g.reduce("REDUCE_MAX", x)]
    y = g.linear(g.concatenate(pooled, 1), _time_first(network.code, kept, steps))
    code = y if quantised else g.quantise(y, network.code.step)
    y = code if quantised else g.dequantise(code)
    for layer in network.heads:
        y = g.linear(y, layer)
    return g.serialise(window, [code, g.dequantise(y) if quantised else y])


def _later(network: Network) -> npt.NDArray[np.int64]:
    """Return, for each sample, the one that its difference is to."""
    return np.minimum(np.arange(network.window) + network.lag, network.window - 1)


def _time_first(layer: Layer, kept: int, steps: int) -> Layer:
    """Return the code's layer for reduced channels in LiteRT's order: time first, then channel."""
    reduced, rest = np.split(layer.weight, [kept * steps], axis=1)
    turned = reduced.reshape(-1, kept, steps).transpose(0, 2, 1).reshape(reduced.shape)
    return replace(layer, weight=np.concatenate([turned, rest], axis=1))


class _Flatbuffer:
    """A LiteRT model under construction. A tensor is its number. Layers are int8 with `quantised`, else float32."""

    def __init__(self, quantised: bool) -> None:
        self._quantised = quantised
        self._buffers = [schema.BufferT()]
        self._tensors: list[Any] = []
        self._codes: list[int] = []
        self._operators: list[Any] = []

    def tensor(
        self, shape: tuple[int, ...], kind: str = "FLOAT32", step: npt.ArrayLike | None = None, zero: int = 0,
        name: str = "",
    ) -> int:  # fmt: skip
        """Add a tensor; with `step` it holds integers: one step, or one for each index of the first axis."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name or f"t{len(self._tensors)}", list(shape)
        tensor.type = getattr(schema.TensorType, kind)
        if step is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.asarray(step, np.float32))
            tensor.quantization.zeroPoint = np.full(tensor.quantization.scale.shape, zero, np.int64)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(self, value: npt.NDArray[np.generic], step: npt.ArrayLike | None = None) -> int:
        """Add a tensor that holds `value`."""
        number = self.tensor(value.shape, value.dtype.name.upper(), step)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        self._buffers.append(buffer)
        self._tensors[number].buffer = len(self._buffers) - 1
        return number

    def like(self, x: int, shape: tuple[int, ...] | None = None) -> int:
        """Add a tensor of the same numbers as `x`, in another shape if one is given."""
        number = self.tensor(shape or self.shape(x))
        self._tensors[number].type = self._tensors[x].type
        self._tensors[number].quantization = self._tensors[x].quantization
        return number

    def shape(self, x: int) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._tensors[x].shape)

    def op(self, kind: str, options: str, inputs: list[int], output: int, **fields: Any) -> int:
        """Add an operator, with the fields of its options, and return its output."""
        operator = schema.OperatorT()
        code = getattr(schema.BuiltinOperator, kind)
        if code not in self._codes:
            self._codes.append(code)
        operator.opcodeIndex, operator.inputs, operator.outputs = self._codes.index(code), inputs, [output]
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
        operator.builtinOptions = getattr(schema, f"{options}OptionsT")()
        for name, value in fields.items():
            setattr(operator.builtinOptions, name, value)
        self._operators.append(operator)
        return output

    def quantise(self, x: int, step: float) -> int:
        """Float -> int8."""
        return self.op("QUANTIZE", "Quantize", [x], self.tensor(self.shape(x), "INT8", step))

    def dequantise(self, x: int) -> int:
        """Integers -> float."""
        return self.op("DEQUANTIZE", "Dequantize", [x], self.tensor(self.shape(x)))

    def reshape(self, x: int, shape: tuple[int, ...]) -> int:
        """The same numbers in another shape."""
        return self.op("RESHAPE", "Reshape", [x, self.constant(np.array(shape, np.int32))], self.like(x, shape))

    def concatenate(self, parts: list[int], axis: int) -> int:
        """Join along an axis."""
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        return self.op("CONCATENATION", "Concatenation", parts, self.like(parts[0], tuple(shape)), axis=axis)

    def reduce(self, kind: str, x: int) -> int:
        """(1, 1, time, channels) -> (1, channels)."""
        axes = self.constant(np.array([1, 2], np.int32))
        return self.op(kind, "Reducer", [x, axes], self.like(x, (1, self.shape(x)[-1])))

    def convolution(self, x: int, layer: Layer) -> int:
        """(1, 1, time, in) -> (1, 1, time / stride, out)."""
        weight = layer.weight.transpose(0, 2, 1)[:, None]
        kernel, time_in, before = weight.shape[2], self.shape(x)[2], layer.padding
        time_out = (time_in + 2 * before - kernel) // layer.stride + 1
        after = max((time_out - 1) * layer.stride + kernel - time_in - before, 0)
        if before or after:
            # LiteRT's own padding puts an odd sample at the other end.
            padding = self.constant(np.array([[0, 0], [0, 0], [before, after], [0, 0]], np.int32))
            padded = self.like(x, (1, 1, time_in + before + after, weight.shape[3]))
            x = self.op("PAD", "Pad", [x, padding], padded)
        inputs, output = self._linear(x, layer, weight, (1, 1, time_out, len(weight)))
        fields = {"padding": schema.Padding.VALID, "strideW": layer.stride, "strideH": 1}
        fields["fusedActivationFunction"] = _activation(layer)
        return self.op("CONV_2D", "Conv2D", inputs, output, **fields)

    def linear(self, x: int, layer: Layer) -> int:
        """(1, in) -> (1, out)."""
        inputs, output = self._linear(x, layer, layer.weight, (1, len(layer.weight)))
        fields = {"fusedActivationFunction": _activation(layer)}
        return self.op("FULLY_CONNECTED", "FullyConnected", inputs, output, **fields)

    def _linear(self, x: int, layer: Layer, weight: Int8Array, shape: tuple[int, ...]) -> tuple[list[int], int]:
        if self._quantised:
            constants = [self.constant(weight, layer.weight_step), self.constant(layer.bias, layer.bias_step)]
            return [x, *constants], self.tensor(shape, "INT8", layer.step, -128 if layer.relu else 0)
        constants = [self.constant(a) for a in replace(layer, weight=weight).floats()]
        return [x, *constants], self.tensor(shape)

    def serialise(self, window: int, outputs: list[int]) -> bytes:
        """Return the model's bytes."""
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self._tensors, self._operators, [window], outputs
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self._buffers, []
        for code in self._codes:
            entry = schema.OperatorCodeT()
            # Codes from 127 on do not fit the older of the two fields.
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), 1
            model.operatorCodes.append(entry)
        return bytes(convert_object_to_bytearray(model))


def _activation(layer: Layer) -> int:
    kind = schema.ActivationFunctionType
    return int(kind.RELU if layer.relu else kind.NONE)


class Contender(NamedTuple):
    """One model in one runtime. `size`: of its file, in bytes."""

    runtime: str
    setting: str
    numbers: str
    size: int
    call: Call


RESOLVERS = {
    "XNNPACK": OpResolverType.AUTO,
    "built-in kernels": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}


def onnx_runtime(numbers: str, model: bytes) -> Contender:
    """Open a graph as the agent does."""
    session = ort.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])

    def call(window: Float32Array) -> Sequence[Any]:
        return session.run(None, {"window": window})  # type: ignore[no-any-return]  # it has no types

    return Contender("ONNX Runtime", "the agent's session", numbers, len(model), call)


def litert(numbers: str, setting: str, model: bytes) -> Contender:
    """Open a LiteRT model with one thread."""
    interpreter = Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=RESOLVERS[setting])
    interpreter.allocate_tensors()
    (window_at,) = (d["index"] for d in interpreter.get_input_details())
    code_at, logits_at = (d["index"] for d in interpreter.get_output_details())

    def call(window: Float32Array) -> Sequence[Any]:
        interpreter.set_tensor(window_at, window)
        interpreter.invoke()
        return interpreter.get_tensor(code_at), interpreter.get_tensor(logits_at)

    return Contender("LiteRT", setting, numbers, len(model), call)


def recorded(bundle: Bundle) -> Float32Array:
    """Return the windows of HAPT's recordings, end to end, float32 (n, window, 6) in g and rad/s; none without them."""
    path = Path(os.environ.get("HAR_DATA", ROOT.parent / "shared" / "data")) / "hapt_train.npz"
    size = bundle.manifest.input.window
    if not path.is_file():
        return np.empty((0, size, 6), np.float32)
    with np.load(path) as packed:
        values = np.hstack([packed[name] * packed[f"{name}_scale"] for name in ("acc", "gyro")]).astype(np.float32)
        recordings = np.split(values, packed["offset"][1:-1])
    return np.concatenate([r[: len(r) // size * size].reshape(-1, size, 6) for r in recordings])


def agreement(contenders: list[Contender], windows: dict[str, Float32Array]) -> list[dict[str, Any]]:
    """Compare what all give with ONNX Runtime's results in the same numbers; and its float32 with its int8 results.

    Raises:
        SystemExit: two that should be the same network are not.
    """
    rows = []
    for name, batch in windows.items():
        say(f"{len(batch)} windows, {name}")
        results = [_scores(c.call, batch) for c in contenders]
        reference = dict(zip(("int8", "float32"), results, strict=False))
        for contender, (code, logits) in zip(contenders[1:], results[1:], strict=True):
            against = "int8" if contender.runtime == "ONNX Runtime" else contender.numbers
            code_there, logits_there = reference[against]
            steps = np.abs(code.astype(np.int16) - code_there)
            rows.append(
                {
                    "windows": name,
                    "n": len(batch),
                    **{key: getattr(contender, key) for key in ("runtime", "setting", "numbers")},
                    "against": f"ONNX Runtime, {against}",
                    "labels_equal": int((logits.argmax(1) == logits_there.argmax(1)).sum()),
                    "logits_off": float(np.abs(logits - logits_there).max()),
                    "code_off_steps": int(steps.max()),
                    "code_off_share": float((steps > 0).mean()),
                }
            )
            if against == contender.numbers and rows[-1]["logits_off"] > LOGIT_TOLERANCE:
                raise SystemExit(f"these are two networks: {rows[-1]}")
    return rows


def _scores(call: Call, windows: Float32Array) -> tuple[Int8Array, Float32Array]:
    code, logits = zip(*(call(window[None]) for window in windows), strict=True)
    return np.concatenate(code), np.concatenate(logits)


def in_turn(calls: list[Call], windows: Float32Array, rounds: int) -> list[dict[str, Any]]:
    """Return microseconds of a call of each, median and 90th percentile: hot in CPU time, at cadence by the clock."""
    hot: list[list[float]] = [[] for _ in calls]
    cadence: list[list[float]] = [[] for _ in calls]
    for i in range(HOT_ROUNDS * rounds):
        window = windows[i % len(windows)][None]
        for times, call in zip(hot, calls, strict=True):
            call(window)
            start = time.process_time()
            call(window)
            times.append(time.process_time() - start)
    for i in range(rounds):
        window = windows[i % len(windows)][None]
        for times, call in zip(cadence, calls, strict=True):
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            call(window)
            times.append(time.perf_counter() - start)
    return [{"hot_us": _quantiles(h), "cadence_us": _quantiles(c)} for h, c in zip(hot, cadence, strict=True)]


def _quantiles(seconds: list[float]) -> dict[str, float]:
    median, p90 = np.quantile(seconds, [0.5, 0.9])
    return {"median": round(1e6 * median, 2), "p90": round(1e6 * p90, 2)}


def best(rows: list[dict[str, Any]], runtime: str, numbers: str) -> dict[str, Any]:
    """Return the row of a runtime's quickest setting when hot."""
    return min(
        (r for r in rows if (r["runtime"], r["numbers"]) == (runtime, numbers)), key=lambda r: r["hot_us"]["median"]
    )


def ratios(rows: list[dict[str, Any]], numbers: str) -> dict[str, Any]:
    """ONNX Runtime's medians over those of LiteRT's best setting."""
    theirs = best(rows, "LiteRT", numbers)
    return {"numbers": numbers, "of": theirs["setting"], **quotient(best(rows, "ONNX Runtime", numbers), theirs)}


def quotient(row: dict[str, Any], of: dict[str, Any]) -> dict[str, float]:
    """Medians of one row over those of another."""
    return {key: row[f"{key}_us"]["median"] / of[f"{key}_us"]["median"] for key in ("hot", "cadence")}


def report(r: dict[str, Any]) -> None:
    """Print what was measured."""
    lines = [f"{r['model']}, {r['versions']}, {r['machine']}", ""]
    lines.append("runtime       setting              numbers     bytes   hot, µs    p90   at cadence, µs     p90")
    lines += [
        f"{c['runtime']:<13} {c['setting']:<20} {c['numbers']:<8} {c['bytes']:>8}  {c['hot_us']['median']:>8.1f} "
        f"{c['hot_us']['p90']:>6.1f}  {c['cadence_us']['median']:>15.1f} {c['cadence_us']['p90']:>7.1f}"
        for c in r["rows"]
    ]
    lines += [
        f"{c['numbers']}: ONNX Runtime over LiteRT with {c['of']}: hot {c['hot']:.2f}, at cadence {c['cadence']:.2f}"
        for c in r["ratios"]
    ]
    lines += [
        f"{name}: float32 over int8: hot {c['hot']:.2f}, at cadence {c['cadence']:.2f}"
        for name, c in r["float32_over_int8"].items()
    ]
    lines += [
        f"{c['windows']}: {c['runtime']}, {c['setting']}, {c['numbers']} against {c['against']}: "
        f"{c['labels_equal']} of {c['n']} labels equal, logits off by {c['logits_off']:.2g} at most, "
        f"code by {c['code_off_steps']} steps"
        for c in r["agreement"]
    ]
    print("\n".join(lines))  # noqa: T201


def say(text: str) -> None:
    """Tell how it goes."""
    print(f"litert: {text}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
