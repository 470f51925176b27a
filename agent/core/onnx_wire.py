"""What an ONNX file declares, read from its protobuf bytes without the onnx package.

The agent must know a graph's operators, and whether it points at data outside the file, before it hands the bytes to
ONNX Runtime. The onnx package costs a board about 70 MB for that; the few fields needed are read here. Field numbers
are those of `onnx.proto` (ONNX IR version 3 and later); wire types are those of the protobuf encoding.
"""

from collections.abc import Iterator

from agent.errors import ModelContractError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 8
"""Subgraphs may nest; nothing that this agent runs nests deeper than this."""

_EXTERNAL = 1
"""TensorProto.DataLocation.EXTERNAL."""


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
