"""What an ONNX file may hold, decided before an engine sees it: one graph that keeps to itself and comes to an end.

A model file may come from a stranger. Engines read more than a detector needs: weights from any file of the machine,
other formats, loops, constants of any size; and a graph that contradicts itself can end their process. So a file is
read here by the letter of ``onnx.proto``, stricter than by any engine, and what is not known is refused, not skipped.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from flawsmith.runtime.errors import FlawsmithError

MAX_FIELDS = 1_000_000
MAX_NODES = 10_000
MAX_RANK = 16
MAX_OPSET = 1000  # OpenVINO counts up to whatever number stands here
MAX_NAMES = 100_000
"""Inputs and outputs of all nodes together."""
CONSTANT_VALUES = 2**28
"""Values that may be computed from constants alone while a model is loaded, besides four for each byte of the file."""

# How a field is written: numbers (one, or several, packed or not), text or bytes, or a message by its name.
_INT, _ENUM, _INTS, _FLOAT, _FLOATS, _DOUBLES = "int", "enum", "ints", "float", "floats", "doubles"
_TEXT, _TEXTS, _DATA, _DATAS = "text", "texts", "data", "several data"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIRES: Mapping[str, tuple[int, ...]] = {
    _INT: (_VARINT,),
    _ENUM: (_VARINT,),
    _INTS: (_VARINT, _BYTES),
    _FLOAT: (_FIXED32,),
    _FLOATS: (_FIXED32, _BYTES),
    _DOUBLES: (_FIXED64, _BYTES),
}
_REPEATED = (_INTS, _FLOATS, _DOUBLES, _TEXTS, _DATAS)

# Field numbers of onnx.proto that a detector's graph may have; a star marks what may come several times.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "Model": {
        1: _INT, 2: _TEXT, 3: _TEXT, 4: _TEXT, 5: _INT, 6: _TEXT, 7: "Graph", 8: "OperatorSetId*",
        14: "StringStringEntry*",
    },
    "Graph": {
        1: "Node*", 2: _TEXT, 5: "Tensor*", 10: _TEXT, 11: "ValueInfo*", 12: "ValueInfo*", 13: "ValueInfo*",
        14: "TensorAnnotation*", 16: "StringStringEntry*",
    },
    "Node": {
        1: _TEXTS, 2: _TEXTS, 3: _TEXT, 4: _TEXT, 5: "Attribute*", 6: _TEXT, 7: _TEXT, 8: _TEXT,
        9: "StringStringEntry*",
    },
    "Attribute": {
        1: _TEXT, 2: _FLOAT, 3: _INT, 4: _DATA, 5: "Tensor", 7: _FLOATS, 8: _INTS, 9: _DATAS, 10: "Tensor*", 13: _TEXT,
        20: _ENUM,
    },
    "Tensor": {
        1: _INTS, 2: _ENUM, 4: _FLOATS, 5: _INTS, 7: _INTS, 8: _TEXT, 9: _DATA, 10: _DOUBLES, 11: _INTS, 12: _TEXT,
        14: _ENUM, 16: "StringStringEntry*",
    },
    "ValueInfo": {1: _TEXT, 2: "Type", 3: _TEXT, 4: "StringStringEntry*"},
    "Type": {1: "TensorType", 6: _TEXT},
    "TensorType": {1: _ENUM, 2: "TensorShape"},
    "TensorShape": {1: "Dimension*"},
    "Dimension": {1: _INT, 2: _TEXT, 3: _TEXT},
    "OperatorSetId": {1: _TEXT, 2: _INT},
    "StringStringEntry": {1: _TEXT, 2: _TEXT},
    "TensorAnnotation": {1: _TEXT, 2: "StringStringEntry*"},
}  # fmt: skip

_ORT_FORMAT = b"ORTM"

_OUTSIDE = "it keeps weights in other files: make it self-contained"
_BRANCHES = "it has loops, branches or functions, whose time and memory have no bound"
_REASONS: Mapping[tuple[str, int], str] = {
    ("Model", 20): _BRANCHES,
    ("Model", 25): _BRANCHES,
    ("Attribute", 6): _BRANCHES,
    ("Attribute", 11): _BRANCHES,
    ("Attribute", 21): _BRANCHES,
    ("Tensor", 13): _OUTSIDE,
}

# Bytes of a value in raw data, by the number of its type, and the field that holds such values otherwise.
_VALUE_BYTES: Mapping[int, int] = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_TYPED: Mapping[int, int] = {1: 4, 7: 7, 11: 10, 12: 11, 13: 11}
_TYPED_OTHERWISE = 5
_INT64 = 7

# What engines compute while they load. These give no more values than their inputs have together ...
_KEEPING = {
    "Abs", "ArgMax", "ArgMin", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant", "Erf", "Exp",
    "Flatten", "Floor", "Identity", "LayerNormalization", "Log", "Neg", "Not", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round",
    "Shape", "Sigmoid", "Sign", "Size", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Tanh", "Transpose",
    "Unsqueeze",
}  # fmt: skip
# ... and these no more values, and no more steps, than the product of their inputs' numbers of values.
_MULTIPLYING = {
    "Add", "And", "DequantizeLinear", "Div", "Equal", "Gather", "GatherElements", "GatherND", "Gemm", "Greater", "Less",
    "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "QuantizeLinear", "Sub", "Sum", "Where", "Xor",
}  # fmt: skip
# Of these the result has at most the shape that their inputs broadcast to.
_BROADCASTING = {
    "Add", "And", "Div", "Equal", "Expand", "Greater", "Less", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub",
    "Sum", "Where", "Xor",
}  # fmt: skip
# These keep the shape of their first input, or make axes of it 1.
_SHAPED = {
    "Abs", "Cast", "Ceil", "Clip", "DequantizeLinear", "Erf", "Exp", "Floor", "Identity", "Log", "Neg", "Not",
    "QuantizeLinear", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Relu", "Round", "Sigmoid", "Sign", "Softmax", "Sqrt", "Tanh",
}  # fmt: skip
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_MOST_COPIES = {"Expand": 2**26, "Tile": 2**12}
"""Values that a shape may ask for, and copies of an image's values."""
_FEW_VALUES = 16
"""Constants of so few integers may be shapes: they are kept."""
# Of others, such as Tile, the size of a constant follows from values: how many there may be, and of how many bytes.
_MAX_OTHERS, FOLDED_BYTES = 16, 64 * 2**20


class _Node(NamedTuple):
    operator: str
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    values: int
    integers: Mapping[bytes, int]


def check_graph(model: bytes) -> None:
    """Checks that an ONNX file is one self-contained graph without loops, every operator of which runs once.

    Refused are: what is not written in protocol buffers' shortest form; fields that `onnx.proto` has not, or that no
    detector needs; references to other files; loops, branches and functions; tensors whose data do not fit their
    shape; operators outside the standard; nodes out of order, and names that come from nowhere; too many fields, nodes
    or values computed from constants. Memory is bounded by names and nodes, time by the number of fields.

    Args:
        model: an ONNX file.

    Raises:
        FlawsmithError: says why.

    Example:
        >>> try:
        ...     check_graph(b"no graph")
        ... except FlawsmithError as error:
        ...     print(error)
        cannot load the model: it is not ONNX (field 13 of Model is not known); export it anew
    """
    _Graph(model).check()


class _Graph:
    """What is kept of a file while it is checked: names and numbers of values, no contents."""

    def __init__(self, model: bytes) -> None:
        if model[4:8] == _ORT_FORMAT:
            raise _refusal("it is not ONNX (ONNX Runtime would take it for its own format)")
        self._length = len(model)
        self._fields_left = MAX_FIELDS
        self._names_left = MAX_NAMES
        self._nodes: list[_Node] = []
        self._constants: dict[bytes, int] = {}
        self._shapes: dict[bytes, tuple[int, ...]] = {}
        self._integers: dict[bytes, tuple[int, ...]] = {}
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        graphs = 0
        for number, value in self._read("Model", memoryview(model)):
            if number == 7:
                graphs += 1
                self._read_graph(value)
            elif number == 8:
                self._check_opset(value)
            elif number == 14:
                self._skim("StringStringEntry", value)
        if graphs != 1:
            raise _refusal("it is not ONNX (it has no graph)")

    def check(self) -> None:
        """Checks order, names, and what is computed from constants alone."""
        known = {b"", *self._inputs, *self._constants}
        constants = dict(self._constants)
        budget = CONSTANT_VALUES + 4 * self._length
        others = 0
        for node in self._nodes:
            if node.operator in _RANDOM:
                raise _refusal("it draws at random, so that no verdict would be repeatable")
            if not known.issuperset(node.inputs):
                raise _refusal("its nodes are out of order, run in a circle or lack an input")
            for name in node.outputs:
                if name in known and name:
                    raise _refusal("it has two values of one name")
                known.add(name)
            if any(name and name not in constants for name in node.inputs):
                self._check_growth(node)
                continue
            counts = [constants[name] for name in node.inputs if name]
            shape = self._largest_shape(node)
            if shape is not None:
                self._shapes.update((name, shape) for name in node.outputs)
                count = math.prod(shape)
            elif node.operator in _KEEPING:
                count = sum(counts) + node.values
            elif node.operator == "Gather" and len(counts) == 2 and node.inputs[0] in self._shapes:
                count = self._gathered(node, counts[1])
            elif node.operator in _MULTIPLYING:
                count = math.prod(max(1, number) for number in counts)
            else:
                others += 1
                count = FOLDED_BYTES // 4
            budget -= count
            if budget < 0 or others > _MAX_OTHERS:
                raise _refusal("it computes too much from constants alone")
            constants.update((name, count) for name in node.outputs)
        if not known.issuperset(self._outputs):
            raise _refusal("an output of it comes from no node")

    def _check_growth(self, node: _Node) -> None:
        """Refuses what makes a value of an image so large as no detector needs."""
        if node.operator in ("Expand", "Tile") and len(node.inputs) == 2:
            lengths = self._integers.get(node.inputs[1], ())
            if math.prod(max(1, length) for length in lengths) > _MOST_COPIES[node.operator]:
                raise _refusal("it repeats values too often")

    def _gathered(self, node: _Node, indices: int) -> int:
        """Values that rows of a stored tensor give, as many times as there are indices: far fewer than the product."""
        shape, along = self._shapes[node.inputs[0]], node.integers.get(b"axis", 0)
        if not -len(shape) <= along < len(shape):
            raise _refusal("a node takes values along an axis that there is not")
        others = [length for axis, length in enumerate(shape) if axis != along % len(shape)]
        return math.prod(others) * max(1, indices)

    def _largest_shape(self, node: _Node) -> tuple[int, ...] | None:
        """The shape that a node of constants gives at most; None: not known."""
        shapes = [self._shapes.get(name) for name in node.inputs if name]
        if node.operator == "Expand" and len(shapes) == 2:
            shapes[1] = self._integers.get(node.inputs[1])
        elif node.operator in ("ConstantOfShape", "Tile") and node.inputs:
            factors = self._integers.get(node.inputs[-1])
            if node.operator == "Tile":
                first = shapes[0] if shapes else None
            else:
                first = None if factors is None else (1,) * len(factors)
            if factors is None or first is None or len(first) != len(factors):
                return None
            if min(factors, default=0) < 0:
                raise _refusal("a tensor has too many axes or one of a negative length")
            return tuple(length * factor for length, factor in zip(first, factors, strict=True))
        elif node.operator in _SHAPED:
            return shapes[0] if shapes and node.integers.get(b"keepdims", 1) else None
        if node.operator not in _BROADCASTING or None in shapes:
            return None
        reversed_shapes = [shape[::-1] for shape in shapes if shape is not None]
        return tuple(max(lengths) for lengths in zip_longest(*reversed_shapes, fillvalue=1))[::-1]

    def _check_opset(self, content: memoryview) -> None:
        for number, value in self._read("OperatorSetId", content):
            if number == 2 and not 1 <= value <= MAX_OPSET:
                raise _refusal(f"it names the operator set {value}, which there is not")

    def _read_graph(self, content: memoryview) -> None:
        for number, value in self._read("Graph", content):
            if number == 1:
                if len(self._nodes) == MAX_NODES:
                    raise _refusal(f"it has more than {MAX_NODES} nodes")
                self._nodes.append(self._read_node(value))
            elif number == 5:
                name, shape, integers = self._read_tensor(value)
                if name in self._constants:
                    raise _refusal("it has two values of one name")
                self._constants[name], self._shapes[name] = math.prod(shape), shape
                if integers is not None:
                    self._integers[name] = integers
            elif number in (11, 12, 13):
                name = self._read_value_info(value)
                if number != 13:
                    (self._inputs if number == 11 else self._outputs).append(name)
            elif number == 14:
                self._skim("TensorAnnotation", value)
            elif number == 16:
                self._skim("StringStringEntry", value)

    def _read_node(self, content: memoryview) -> _Node:
        operator, values = b"", 0
        integers: dict[bytes, int] = {}
        names: dict[int, list[bytes]] = {1: [], 2: []}
        for number, value in self._read("Node", content):
            if number in names:
                self._names_left -= 1
                if self._names_left < 0:
                    raise _refusal(f"its nodes have more than {MAX_NAMES} inputs and outputs")
                names[number].append(bytes(value))
            elif number == 4:
                operator = bytes(value[:64])
            elif number == 5:
                name, count, integer = self._read_attribute(value)
                if name and name in integers:
                    raise _refusal("a node of it has two attributes of one name")
                integers[name] = integer
                values += count
            elif number == 7:
                _check_domain(value)
            elif number == 9:
                self._skim("StringStringEntry", value)
        return _Node(operator.decode(errors="replace"), tuple(names[1]), tuple(names[2]), values, integers)

    def _read_attribute(self, content: memoryview) -> tuple[bytes, int, int]:
        """Its name, the number of values in it, and its integer, 0 where it has none."""
        name, values, integer = b"", 0, 0
        for number, value in self._read("Attribute", content):
            if number == 1:
                name = bytes(value[:64])
            elif number == 3:
                integer = value - (1 << 64) if value >= 1 << 63 else value
            elif number in (5, 10):
                values += math.prod(self._read_tensor(value)[1])
            elif number in (7, 8):
                values += len(value) if isinstance(value, memoryview) else 1
        return name, values, integer

    def _read_tensor(self, content: memoryview) -> tuple[bytes, tuple[int, ...], tuple[int, ...] | None]:
        """Its name and shape, and its values where they are a few integers in raw data."""
        name, kind = b"", 0
        shape: list[int] = []
        counts: dict[int, int] = {}
        raw: int | None = None
        data = memoryview(b"")
        for number, value in self._read("Tensor", content):
            if number == 1:
                shape += _packed(value) if isinstance(value, memoryview) else [value]
                if len(shape) > MAX_RANK or max(shape, default=0) >= 1 << 63:
                    raise _refusal("a tensor has too many axes or one of a negative length")
            elif number == 2:
                kind = value
            elif number == 8:
                name = bytes(value)
            elif number == 9:
                raw, data = len(value), value
            elif number == 14 and value != 0:
                raise _refusal(_OUTSIDE)
            elif number == 16:
                self._skim("StringStringEntry", value)
            elif number in (4, 5, 7, 10, 11):
                counts[number] = counts.get(number, 0) + _count(number, value)
        if kind not in _VALUE_BYTES:
            raise _refusal(f"a tensor holds values of the unknown type {kind}")
        count = math.prod(shape)
        typed = counts.pop(_TYPED.get(kind, _TYPED_OTHERWISE), 0)
        fits = typed == 0 and raw == count * _VALUE_BYTES[kind] if raw is not None else typed == count
        if counts or not fits:
            raise _refusal("a tensor's data do not fit its shape and type")
        few = kind == _INT64 and len(shape) == 1 and raw is not None and count <= _FEW_VALUES
        return name, tuple(shape), struct.unpack(f"<{count}q", data) if few else None

    def _read_value_info(self, content: memoryview) -> bytes:
        name = b""
        for number, value in self._read("ValueInfo", content):
            if number == 1:
                name = bytes(value)
            elif number == 2:
                self._skim("Type", value)
            elif number == 4:
                self._skim("StringStringEntry", value)
        return name

    def _skim(self, kind: str, content: memoryview) -> None:
        """Reads a message, and those in it, for its form alone. They cannot hold each other, so this ends."""
        for number, value in self._read(kind, content):
            child = _FIELDS[kind][number].rstrip("*")
            if child in _FIELDS:
                self._skim(child, value)

    def _read(self, kind: str, content: memoryview) -> Iterator[tuple[int, Any]]:
        """Number and value of each field: an int, or the bytes of what has a length; of fixed numbers their bytes."""
        fields = _FIELDS[kind]
        seen = 0
        position, end = 0, len(content)
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _refusal(f"it has more than {MAX_FIELDS} fields")
            key, position = _varint(content, position)
            number, wire = key >> 3, key & 7
            field = fields.get(number)
            if field is None:
                raise _refusal(
                    _REASONS.get((kind, number)) or f"it is not ONNX (field {number} of {kind} is not known)"
                )
            if wire not in _WIRES.get(field, (_BYTES,)):
                raise _refusal(f"it is not ONNX (field {number} of {kind} is not written as ONNX writes it)")
            if not (field in _REPEATED or field.endswith("*")):
                if seen >> number & 1:
                    raise _refusal(f"it is not ONNX (field {number} of {kind} comes twice)")
                seen |= 1 << number
            if wire == _VARINT:
                number_value, position = _varint(content, position)
                if field == _ENUM and number_value >= 1 << 31:
                    raise _refusal(f"it is not ONNX (field {number} of {kind} is out of range)")
                yield number, number_value
                continue
            if wire == _BYTES:
                length, position = _varint(content, position)
            else:
                length = 8 if wire == _FIXED64 else 4
            if length > end - position:
                raise _refusal(f"it is not ONNX (field {number} of {kind} is longer than its message)")
            value = content[position : position + length]
            if field in (_TEXT, _TEXTS):
                _check_text(value)
            yield number, value
            position += length


def _refusal(reason: str) -> FlawsmithError:
    return FlawsmithError(f"cannot load the model: {reason}; export it anew")


def _check_text(content: memoryview) -> None:
    try:
        str(content, "utf-8")
    except UnicodeDecodeError:
        raise _refusal("it is not ONNX (a name in it is not UTF-8)") from None


def _check_domain(domain: memoryview) -> None:
    if bytes(domain[:8]) not in (b"", b"ai.onnx"):
        raise _refusal("it uses operators outside the ONNX standard")


def _count(number: int, value: int | memoryview) -> int:
    """How many numbers a field of a tensor holds."""
    if isinstance(value, int):
        return 1
    if number in (4, 10):
        width = 4 if number == 4 else 8
        if len(value) % width:
            raise _refusal("a tensor's data do not fit its shape and type")
        return len(value) // width
    # Each number ends with the one byte whose upper bit is clear.
    return int(np.count_nonzero(np.frombuffer(value, np.uint8) < 0x80))


def _packed(content: memoryview) -> list[int]:
    """Numbers of a packed field, one more than there can be axes at most."""
    numbers: list[int] = []
    position = 0
    while position < len(content) and len(numbers) <= MAX_RANK:
        number, position = _varint(content, position)
        numbers.append(number)
    return numbers


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits in its shortest form, and the position behind it."""
    value = 0
    for place in range(position, min(position + 10, len(content))):
        byte = content[place]
        value |= (byte & 0x7F) << 7 * (place - position)
        if byte < 0x80:
            if (byte == 0 and place > position) or value >= 1 << 64:
                break
            return value, place + 1
    raise _refusal("it is not ONNX (a number is cut off or not in its shortest form)")
