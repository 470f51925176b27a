"""What an ONNX file declares, read from its protobuf bytes without the onnx package.

The agent must know a graph's operators, and whether it points at data outside the file, before it hands the bytes to
ONNX Runtime. The onnx package costs a board about 70 MB for that; the few fields needed are read here, and copied
where several graphs become one. Field numbers are those of `onnx.proto` (ONNX IR version 3 and later); wire types are
those of the protobuf encoding.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agent.errors import ModelContractError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 8
"""Subgraphs may nest; nothing that this agent runs nests deeper than this."""

_EXTERNAL = 1
"""TensorProto.DataLocation.EXTERNAL."""

FLOAT, INT8 = 1, 3
"""TensorProto.DataType."""

TYPES = {
    FLOAT: "float32", 2: "uint8", INT8: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""TensorProto.DataType by what numpy calls it: those that numpy has."""

_NODE, _NAME, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 2, 5, 11, 12, 15
"""Fields of GraphProto that say what it computes, with the name that it must have."""


class Value(NamedTuple):
    """An input or output of a graph, as the graph declares it.

    `dtype`: a TensorProto.DataType, 0 where it is no tensor. `shape`: None for what is no number, such as the batch.
    """

    name: str
    dtype: int
    shape: tuple[int | None, ...]


class Node(NamedTuple):
    """A node of a graph: its operator, whatever its domain, and what it takes and gives. A name left out is empty."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxSummary:
    """Operators as (domain, op type), imported opsets by domain, and whether any tensor lies outside the file."""

    def __init__(self) -> None:
        self.operators: set[tuple[str, str]] = set()
        self.opsets: dict[str, int] = {}
        self.external_data = False
        self.functions = False


def summarise(model: bytes) -> OnnxSummary:
    """Read a ModelProto.

    Raises:
        ModelContractError: the bytes are not a protobuf message, or graphs nest too deep.
    """
    summary = OnnxSummary()
    for number, value in _fields(memoryview(model)):
        if number == 7:
            _graph(_message(value), summary, 0)
        elif number == 8:
            _opset(_message(value), summary)
        elif number == 25:
            summary.functions = True
    return summary


def signature(model: bytes) -> tuple[list[Value], list[Value]]:
    """Return the inputs and the outputs that a ModelProto declares, initializers left out.

    Raises:
        ModelContractError: the bytes are not a protobuf message.
    """
    parts = _Parts(model)
    inputs = [_value(data) for name, data in parts.inputs.items() if name not in parts.constants]
    return inputs, [_value(data) for data in parts.outputs.values()]


def nodes(model: bytes) -> list[Node]:
    """Return the nodes of a ModelProto in their order: what a node takes, one before it gives.

    Raises:
        ModelContractError: the bytes are not a protobuf message.
    """
    return [_node_in(data) for number, data in _Parts(model).body if number == _NODE]


def constants(model: bytes) -> list[Value]:
    """Return the initializers of a ModelProto, those that are sparse left out.

    Raises:
        ModelContractError: the bytes are not a protobuf message.
    """
    return [_constant(data) for number, data in _Parts(model).body if number == _INITIALIZER]


def extract(model: bytes, inputs: Sequence[Value], outputs: Sequence[Value]) -> bytes:
    """Return the part of a model that computes `outputs` of `inputs`, tensors anywhere in it.

    Nodes and initializers are copied as they are, those that are not needed left out. A value whose `dtype` is 0 is
    declared by its name alone. Subgraphs are not looked into: no operator that a bundle may use has one.

    Raises:
        ModelContractError: the bytes are not a protobuf message, or something is needed that `inputs` do not give.
    """
    parts = _Parts(model)
    given = {value.name for value in inputs}
    needed = {value.name for value in outputs}
    kept: list[memoryview] = []
    for number, data in reversed(parts.body):
        if number == _NODE:
            node = _node_in(data)
            if needed.intersection(node.outputs) - given:
                kept.append(data)
                needed.update(node.inputs)
    missing = needed - given - parts.defined - {""}
    if missing:
        raise ModelContractError(f"a part of it needs {', '.join(sorted(missing))} as well")
    graph = [_field(_NODE, data) for data in reversed(kept)]
    graph.append(_field(_NAME, b"part"))
    for number, data in parts.body:
        if number != _NODE and needed & _named(number, data):
            graph.append(_field(number, data))
    graph += [_field(_INPUT, _declared(value)) for value in inputs]
    graph += [_field(_OUTPUT, _declared(value)) for value in outputs]
    return parts.head + _field(7, b"".join(graph))


def fuse(models: Sequence[bytes]) -> bytes | None:
    """Return several models as one, which takes what the first takes and gives what all of them give, in order.

    What a model takes, one before it must give; it is still given. Nodes and initializers are copied as they are. None
    where the whole would not mean what its parts do: opsets differ, a name is defined twice, a model takes something
    that none before it gives, or uses what it does not define.

    Raises:
        ModelContractError: the bytes are not protobuf messages.
    """
    first, *others = parts = [_Parts(model) for model in models]
    given = set(first.outputs)
    defined = first.defined | first.inputs.keys()
    for part in others:
        names = part.defined | part.outputs.keys()
        if part.opsets != first.opsets or not part.inputs.keys() <= given or defined & names:
            return None
        given |= part.outputs.keys()
        defined |= names
    if not all(part.used <= part.defined | part.inputs.keys() | {""} for part in parts):
        return None
    graph = [_field(_NAME, b"fused"), *(_field(_INPUT, data) for data in first.inputs.values())]
    graph += [_field(number, data) for part in parts for number, data in part.body]
    graph += [_field(_OUTPUT, data) for part in parts for data in part.outputs.values()]
    return first.head + _field(7, b"".join(graph))


class _Parts:
    """What of a ModelProto goes on in a fused one, and the names in it.

    `head`: IR version and opsets, as they are. `body`: nodes and initializers, each with the number of its field.
    """

    def __init__(self, model: bytes) -> None:
        self.head = b""
        self.body: list[tuple[int, memoryview]] = []
        self.inputs: dict[str, memoryview] = {}
        self.outputs: dict[str, memoryview] = {}
        self.constants: set[str] = set()
        self.computed: set[str] = set()
        self.used: set[str] = set()
        summary = OnnxSummary()
        for number, value in _fields(memoryview(model)):
            if number == 1 and isinstance(value, int):
                self.head += _number(1 << 3 | _VARINT) + _number(value)
            elif number == 8:
                _opset(_message(value), summary)
                self.head += _field(8, _message(value))
            elif number == 7:
                # A message that comes in several parts is one: protobuf merges them in order.
                self._graph(_message(value))
        self.opsets = summary.opsets

    @property
    def defined(self) -> set[str]:
        """Names that the graph gives a meaning to, beside its inputs."""
        return self.constants | self.computed

    def _graph(self, data: memoryview) -> None:
        for number, value in _fields(data):
            if number == _INPUT:
                self.inputs[_text_in(value, 1)] = _message(value)
            elif number == _OUTPUT:
                self.outputs[_text_in(value, 1)] = _message(value)
            elif number in (_NODE, _INITIALIZER, _SPARSE):
                self.body.append((number, _message(value)))
            if number == _NODE:
                node = _node_in(_message(value))
                self.used.update(node.inputs)
                # An output that is optional, and not wanted, has no name.
                self.computed.update(name for name in node.outputs if name)
            elif number in (_INITIALIZER, _SPARSE):
                self.constants |= _named(number, _message(value))


def _node_in(data: memoryview) -> Node:
    """Read a NodeProto."""
    operator, inputs, outputs = "", list[str](), list[str]()
    for number, value in _fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            operator = _text(value)
    return Node(operator, tuple(inputs), tuple(outputs))


def _named(number: int, data: memoryview) -> set[str]:
    """The name of an initializer; of one that is sparse, it is that of its values."""
    return {_text_in(tensor, 8) for tensor in ([data] if number == _INITIALIZER else _inside(data, 1))}


def _constant(data: memoryview) -> Value:
    """Read what a TensorProto says of itself."""
    dtype, shape = 0, list[int | None]()
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else _numbers(value)
        elif number == 2 and isinstance(value, int):
            dtype = value
    return Value(_text_in(data, 8), dtype, tuple(shape))


def _numbers(data: memoryview) -> Iterator[int]:
    """Yield numbers that are packed into one field."""
    at = 0
    while at < len(data):
        number, at = _varint(data, at)
        yield number


def _declared(value: Value) -> bytes:
    """Write a ValueInfoProto."""
    name = _field(1, value.name.encode())
    if not value.dtype:
        return name
    dimensions = (b"" if n is None else _number(1 << 3 | _VARINT) + _number(n) for n in value.shape)
    shape = _field(2, b"".join(_field(1, dimension) for dimension in dimensions))
    return name + _field(2, _field(1, _number(1 << 3 | _VARINT) + _number(value.dtype) + shape))


def _value(data: memoryview) -> Value:
    """Read a ValueInfoProto."""
    dtype, shape = 0, list[int | None]()
    for tensor in _inside(data, 2, 1):
        dtype = next((value for number, value in _fields(tensor) if number == 1 and isinstance(value, int)), 0)
        shape += [
            next((value for number, value in _fields(dimension) if number == 1 and isinstance(value, int)), None)
            for dimension in _inside(tensor, 2, 1)
        ]
    return Value(_text_in(data, 1), dtype, tuple(shape))


def _inside(data: memoryview, *path: int) -> Iterator[memoryview]:
    """Yield the messages at the end of a path of field numbers."""
    if not path:
        yield data
        return
    for number, value in _fields(data):
        if number == path[0]:
            yield from _inside(_message(value), *path[1:])


def _text_in(message: int | memoryview, number: int) -> str:
    """The text in a field of a message, empty where it is not there; of several the last one counts, as in protobuf."""
    texts = [_text(value) for found, value in _fields(_message(message)) if found == number]
    return texts[-1] if texts else ""


def _opset(data: memoryview, summary: OnnxSummary) -> None:
    domain, version = "", 0
    for number, value in _fields(data):
        if number == 1:
            domain = _text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    summary.opsets[domain] = version


def _graph(data: memoryview, summary: OnnxSummary, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ModelContractError("its graphs nest too deep")
    for number, value in _fields(data):
        if number == 1:
            _node(_message(value), summary, depth)
        elif number == 5:
            _tensor(_message(value), summary)
        elif number == 15:
            # A SparseTensorProto holds two TensorProtos: its values and its indices.
            for part, tensor in _fields(_message(value)):
                if part in (1, 2):
                    _tensor(_message(tensor), summary)


def _node(data: memoryview, summary: OnnxSummary, depth: int) -> None:
    domain, op_type = "", ""
    for number, value in _fields(data):
        if number == 4:
            op_type = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for part, attribute in _fields(_message(value)):
                if part in (5, 10):
                    _tensor(_message(attribute), summary)
                elif part in (6, 11):
                    _graph(_message(attribute), summary, depth + 1)
    summary.operators.add((domain, op_type))


def _tensor(data: memoryview, summary: OnnxSummary) -> None:
    for number, value in _fields(data):
        if number == 13 or (number == 14 and value == _EXTERNAL):
            summary.external_data = True


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ModelContractError("it is not an ONNX file")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8", "replace")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message: an int for numbers, a view for everything of a length."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ModelContractError("it is not an ONNX file")
        if at + size > len(data):
            raise ModelContractError("it is not a whole ONNX file")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ModelContractError("it is not a whole ONNX file")


def _field(number: int, data: bytes | memoryview) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(data)) + data


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
