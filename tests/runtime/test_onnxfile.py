"""The check of a model's graph: stricter than any engine, bounded in memory and time."""

from __future__ import annotations

import contextlib
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import onnx
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from flawsmith.runtime import onnxfile
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.onnxfile import check_graph

FLOAT = TensorProto.FLOAT


def varint(number: int, padding: int = 0) -> bytes:
    """An unsigned number; padding makes it longer than need be."""
    groups = []
    while True:
        groups.append(number & 0x7F)
        number >>= 7
        if not number:
            break
    groups += [0] * padding
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def field(
    number: int, content: bytes | int, *, key: int | None = None, key_padding: int = 0, padding: int = 0
) -> bytes:
    """A field as protocol buffers write it; the options write it otherwise."""
    wire = 0 if isinstance(content, int) else 2
    head = varint(key if key is not None else number << 3 | wire, key_padding)
    if isinstance(content, int):
        return head + varint(content, padding)
    return head + varint(len(content), padding) + content


def detector(initializers: tuple[bytes, ...] = (), nodes: tuple[bytes, ...] = ()) -> bytes:
    """A graph that gives its input back, with other parts of a graph in it."""
    node = helper.make_node("Identity", ["x"], ["y"]).SerializeToString()
    value = [helper.make_tensor_value_info(name, FLOAT, [1, 3]).SerializeToString() for name in "xy"]
    graph = b"".join(field(1, part) for part in (node, *nodes)) + field(2, b"g")
    graph += b"".join(field(5, tensor) for tensor in initializers) + field(11, value[0]) + field(12, value[1])
    return field(1, 9) + field(7, graph) + field(8, field(2, 18))


PLAIN = field(1, 3) + field(2, FLOAT) + field(8, b"w") + field(9, bytes(12))
OUTSIDE = field(1, b"location") + field(2, b"/etc/hostname")


def test_plain_graph_passes_and_so_does_what_onnx_writes_of_it() -> None:
    model = detector((PLAIN,))

    check_graph(model)
    check_graph(onnx.load_model_from_string(model).SerializeToString())


# Ways to write field 13 of a tensor (external data) and 14 (where its data are) that some reader takes for such.
SMUGGLED = {
    "as it is": field(13, OUTSIDE),
    "location alone": field(14, 1),
    "location of 33 bits": field(14, 2**32 + 1),
    "key of 33 bits": field(13, OUTSIDE, key=(13 << 3 | 2) + 2**32),
    "key of 40 bits": field(13, OUTSIDE, key=(13 << 3 | 2) + 2**39),
    "key of 64 bits": field(13, OUTSIDE, key=(13 << 3 | 2) + 2**63),
    "key of 70 bits": b"\xea" + b"\x80" * 8 + b"\x02" + field(13, OUTSIDE)[1:],
    "key padded": field(13, OUTSIDE, key_padding=1),
    "key padded much": field(13, OUTSIDE, key_padding=5),
    "length padded": field(13, OUTSIDE, padding=2),
    "in a group": b"\xfb\x7f" + field(13, OUTSIDE) + b"\xfc\x7f",
    "field unknown": field(99, field(13, OUTSIDE)),
    "field of the largest number": field(2**29 - 1, OUTSIDE),
    "field zero": field(0, OUTSIDE),
    "wrong wire type": field(13, 5),
    "plain field padded": field(2, FLOAT, padding=3),
    "known key with high bits": field(12, b"doc", key=(12 << 3 | 2) + 2**35),
    "field that comes twice": field(9, bytes(12)),
}


@pytest.mark.parametrize("way", SMUGGLED)
@pytest.mark.parametrize("place", ["initializer", "attribute", "tensors", "type", "metadata", "model"])
def test_nothing_is_smuggled_past_the_check_at_any_depth(way: str, place: str) -> None:
    hidden = SMUGGLED[way]
    tensor = PLAIN + hidden
    inside = {
        "initializer": detector((tensor,)),
        "attribute": detector(nodes=(field(4, b"Constant") + field(2, b"w") + field(5, field(5, tensor)),)),
        "tensors": detector(nodes=(field(4, b"Constant") + field(2, b"w") + field(5, field(10, tensor)),)),
        "type": detector() + field(7, field(11, field(2, hidden))),
        "metadata": detector() + field(14, hidden),
        "model": detector() + hidden,
    }

    with pytest.raises(FlawsmithError):
        check_graph(inside[place])


GRAPH_OF_ITS_OWN = helper.make_graph([], "g", [], []).SerializeToString()
NEG_A, NEG_X = (helper.make_node("Neg", [a], [b]).SerializeToString() for a, b in (("a", "b"), ("x", "y")))
UNFIT: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no graph"),
    "two graphs": (detector() + field(7, GRAPH_OF_ITS_OWN), "comes twice"),
    "ONNX Runtime's own format": (field(1, 9) + field(2, b"ORTM" + bytes(40)) + detector()[2:], "own format"),
    "cut off": (detector()[:-1], "longer than its message"),
    "loop": (detector(nodes=(field(4, b"Loop") + field(5, field(6, GRAPH_OF_ITS_OWN)),)), "loops"),
    "function": (detector() + field(25, b""), "loops"),
    "training": (detector() + field(20, b""), "loops"),
    "operator of another domain": (detector(nodes=(field(4, b"EPContext") + field(7, b"com.microsoft"),)), "outside"),
    "operator of a near domain": (detector(nodes=(field(4, b"Scaler") + field(7, b"ai.onnx.ml"),)), "outside"),
    "circle": (
        detector(
            nodes=tuple(helper.make_node("Neg", [a], [b]).SerializeToString() for a, b in (("a", "b"), ("b", "a")))
        ),
        "out of order",
    ),
    "input from nowhere": (detector(nodes=(NEG_A,)), "out of order"),
    "two values of one name": (detector(nodes=(NEG_X,)), "one name"),
    "two constants of one name": (detector((PLAIN, PLAIN)), "one name"),
    "output from nowhere": (detector().replace(b"\x0a\x01x\x12\x01y", b"\x0a\x01x\x12\x01z"), "no node"),
    "tensor longer than its data": (detector((field(1, 10**12) + PLAIN[2:],)), "fit its shape"),
    "tensor without data": (detector((field(1, 10**15) + field(2, FLOAT) + field(8, b"w"),)), "fit its shape"),
    "tensor of a negative length": (detector((field(1, 2**64 - 1) + PLAIN[2:],)), "negative length"),
    "tensor of one negative length among others": (
        detector((field(1, varint(2**63) + varint(0)) + field(2, FLOAT) + field(8, b"w") + field(9, b""),)),
        "negative length",
    ),
    "tensor of no lengths, packed": (detector((field(1, b"") + PLAIN[2:],)), "fit its shape"),
    "node that takes from nothing": (detector(nodes=(field(2, b"r") + field(4, b"Gather"), NEG_A)), "out of order"),
    "tensor of many axes": (detector((field(1, 1) * 17 + PLAIN[2:],)), "too many axes"),
    "tensor of many packed axes": (detector((field(1, b"\x01" * 10**6) + PLAIN[2:],)), "too many axes"),
    "tensor of an unknown type": (detector((field(1, 3) + field(2, 99) + PLAIN[4:],)), "unknown type 99"),
    "tensor of text": (detector((field(1, 1) + field(2, 8) + field(8, b"w") + field(6, b"a"),)), "not known"),
    "numbers of another type": (detector((field(1, 3) + field(2, FLOAT) + field(7, b"\1\2\3"),)), "fit its shape"),
    "name that is no text": (detector((PLAIN + field(12, b"\xff"),)), "not UTF-8"),
    "operator set of a giant number": (detector() + field(8, field(2, 10**12)), "operator set"),
    "random numbers": (detector(nodes=(field(2, b"r") + field(4, b"RandomNormal"),)), "at random"),
    "random numbers like others": (
        detector(nodes=(field(1, b"x") + field(2, b"r") + field(4, b"RandomUniformLike"),)), "at random",
    ),
    "image repeated a million times": (
        detector(
            (numpy_helper.from_array(np.array([1, 1_000_000]), "times").SerializeToString(),),
            nodes=(helper.make_node("Tile", ["x", "times"], ["t"]).SerializeToString(),),
        ),
        "too often",
    ),
    "numbers cut off": (detector((field(1, 1) + field(2, FLOAT) + field(4, b"\1\2\3"),)), "fit its shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_graph_that_no_detector_has_is_refused_with_a_clause(name: str) -> None:
    model, words = UNFIT[name]

    with pytest.raises(FlawsmithError, match=words) as caught:
        check_graph(model)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    [
        numpy_helper.from_array(np.arange(6).astype(kind).reshape(2, 3), "w")
        for kind in (np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, np.uint64, bool)
    ]
    + [
        helper.make_tensor("w", kind, [2], [1, 200])
        for kind in (FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.UINT64)
    ]
    + [helper.make_tensor("w", TensorProto.INT64, [3], [-1, 0, 2**40]), helper.make_tensor("w", FLOAT, [0], [])],
)
def test_numbers_of_any_type_and_form_pass(tensor: TensorProto) -> None:
    check_graph(detector((tensor.SerializeToString(),)))


def outer(constant: str, count: int = 1) -> bytes:
    """A graph that computes large constants while it is loaded."""
    wide = numpy_helper.from_array(np.zeros((1, 20_000), np.float32), "a")
    high = numpy_helper.from_array(np.zeros((20_000, 1), np.float32), "b")
    shape = numpy_helper.from_array(np.array([50_000, 50_000]), "s")
    inputs = {"Expand": ["a", "s"], "ConstantOfShape": ["s"], "Tile": ["a", "s"]}.get(constant, ["b", "a"])
    nodes = [helper.make_node(constant, inputs, [f"c{number}"]) for number in range(count)]
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    value = [helper.make_tensor_value_info(name, FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [wide, high, shape])
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize("operator", ["Add", "Expand", "MatMul", "Pow", "Mul", "ConstantOfShape", "Tile"])
def test_constants_that_grow_are_refused(operator: str) -> None:
    with pytest.raises(FlawsmithError, match="from constants alone"):
        check_graph(outer(operator))


@pytest.mark.parametrize("operator", ["OneHot", "Range"])
def test_constants_of_a_size_that_follows_from_values_are_few(operator: str) -> None:
    check_graph(outer(operator))

    with pytest.raises(FlawsmithError, match="from constants alone"):
        check_graph(outer(operator, 17))


def test_constants_of_trained_models_are_counted_by_their_shapes() -> None:
    """Packed factors that are unpacked, and rows brought to length 1: the products of their sizes say nothing."""
    rows = numpy_helper.from_array(np.ones((2000, 400), np.float32), "rows")
    packed = numpy_helper.from_array(np.ones((300, 5050), np.float16), "packed")
    indices = numpy_helper.from_array(np.zeros(10_000, np.int64), "indices")
    integers = {"axes": [1], "sizes": [2000, 400]}
    constants = [rows, packed, indices, *(numpy_helper.from_array(np.array(v), n) for n, v in integers.items())]
    nodes = [
        helper.make_node("ReduceL2", ["rows", "axes"], ["lengths"], keepdims=1),
        helper.make_node("Expand", ["lengths", "sizes"], ["expanded"]),
        helper.make_node("Div", ["rows", "expanded"], ["unit"]),
        helper.make_node("Gather", ["packed", "indices"], ["unpacked"], axis=-1),
        helper.make_node("Cast", ["unpacked"], ["whole"], to=FLOAT),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(name, FLOAT, [1, 3]) for name in "xy"]

    check_graph(helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], constants)).SerializeToString())


@pytest.mark.parametrize("axis", [2, -3])
def test_axis_that_there_is_not_is_refused(axis: int) -> None:
    arrays = {"a": np.ones((3, 4), np.float32), "i": np.array([0])}
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    value = [helper.make_tensor_value_info(name, FLOAT, [1, 3]) for name in "xy"]
    nodes = [helper.make_node("Gather", ["a", "i"], ["b"], axis=axis), helper.make_node("Identity", ["x"], ["y"])]

    with pytest.raises(FlawsmithError, match="axis"):
        check_graph(
            helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], constants)).SerializeToString()
        )


OPERATORS = sorted(
    onnxfile._KEEPING | onnxfile._MULTIPLYING | onnxfile._BROADCASTING | onnxfile._SHAPED | {"ConstantOfShape", "Tile"}
)


@pytest.mark.parametrize("seed", range(8))
def test_odd_nodes_pass_or_are_refused_and_nothing_else(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(150):
        constants = [
            numpy_helper.from_array(
                np.array([draw.choice([-1, 0, 1, 3, 2**40]) for _ in range(draw.randrange(4))]), name
            )
            for name in "abc"[: draw.randrange(4)]
        ]
        known, nodes = ["", "x", "a", "b", "c"], []
        for number in range(draw.randrange(5)):
            inputs, output = draw.choices(known, k=draw.randrange(4)), f"n{number}"
            more = draw.choice([{}, {"axis": draw.choice([-3, 0, 1, 2**40])}, {"keepdims": draw.randrange(2)}])
            nodes.append(helper.make_node(draw.choice(OPERATORS), inputs, [output], **more))
            known.append(output)
        value = helper.make_tensor_value_info("x", FLOAT, [1, 3])
        model = helper.make_model(helper.make_graph(nodes, "g", [value], [value], constants))

        with contextlib.suppress(FlawsmithError):
            check_graph(model.SerializeToString())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (field(7, field(1, b"") * 2_000_000), "nodes"),
        (field(7, field(1, field(1, b"") * 2_000_000)), "inputs and outputs"),
        (field(7, field(1, field(5, b"") * 2_000_000)), "fields"),
        (field(7, field(13, b"") * 2_000_000), "fields"),
        (field(7, field(5, field(1, 1) * 2_000_000)), "axes"),
        (field(14, b"") * 2_000_000, "fields"),
        (field(7, field(1, field(5, field(8, 1) * 2_000_000))), "fields"),
    ],
    ids=["nodes", "names", "attributes", "values", "axes", "metadata", "numbers"],
)
def test_many_empty_parts_cost_neither_memory_nor_time(
    model: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxfile, "MAX_FIELDS", 20_000)  # the same course in a fiftieth of the time
    monkeypatch.setattr(onnxfile, "MAX_NAMES", 5_000)
    tracemalloc.start()
    start = time.process_time()

    with pytest.raises(FlawsmithError, match=words):
        check_graph(model)

    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert seconds < 3


def external(message: object) -> Iterator[str]:
    """What a reader of ONNX finds in a message that the check promises is not there."""
    if len(UnknownFieldSet(message)):
        yield "unknown field"
    if isinstance(message, TensorProto) and (message.external_data or message.data_location):
        yield "external data"
    for descriptor, value in message.ListFields():  # type: ignore[attr-defined]
        if descriptor.message_type is None:
            continue
        if descriptor.name in ("g", "graphs", "functions", "training_info", "sparse_initializer"):
            yield descriptor.name
        for child in value if hasattr(value, "__len__") and not hasattr(value, "ListFields") else [value]:
            yield from external(child)


BASE = [
    detector((PLAIN,)),
    detector((PLAIN + field(12, b"a text"),), (field(4, b"Constant") + field(2, b"v") + field(5, field(5, PLAIN)),)),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A small model with bytes changed, cut out, doubled and put in, often those that mean something."""
    model = bytearray(draw(st.sampled_from(BASE)))
    telling = st.sampled_from(
        [field(13, OUTSIDE), field(14, 1), b"\x80", b"\x00", b"\x6a", b"\x70\x01", *SMUGGLED.values()]
    )
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(model)))
        length = draw(st.integers(0, 8))
        match draw(st.sampled_from(["flip", "cut", "double", "insert"])):
            case "flip":
                for position in range(place, min(place + 1, len(model))):
                    model[position] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del model[place : place + length]
            case "double":
                model[place:place] = model[place : place + length]
            case "insert":
                model[place:place] = draw(telling)
    return bytes(model)


@hypothesis.given(mutated())
@hypothesis.settings(max_examples=400)
def test_what_passes_is_read_by_onnx_as_it_was_understood(model: bytes) -> None:
    try:
        check_graph(model)
    except FlawsmithError:
        return

    assert list(external(onnx.load_model_from_string(model))) == []


def test_fields_are_those_of_onnx_proto() -> None:
    names = {
        "TensorType": "TypeProto.Tensor",
        "Dimension": "TensorShapeProto.Dimension",
        "TensorAnnotation": "TensorAnnotation",
    }
    wires = {1: "doubles", 2: "float", 3: "int", 4: "int", 5: "enum", 9: "text", 12: "data", 14: "enum"}
    for kind, fields in onnxfile._FIELDS.items():
        descriptor: Callable[..., object] | object = onnx
        for part in names.get(kind, f"{kind}Proto").split("."):
            descriptor = getattr(descriptor, part)
        known = descriptor.DESCRIPTOR.fields_by_number  # type: ignore[union-attr]
        for number, written in fields.items():
            there = known[number]
            repeated = there.is_repeated if hasattr(there, "is_repeated") else there.label == there.LABEL_REPEATED
            if there.message_type is not None:
                assert written.rstrip("*") in (there.message_type.name.removesuffix("Proto"), "TensorType")
                assert written.endswith("*") == repeated
            else:
                expected = wires[there.type]
                expected = (
                    {"int": "ints", "enum": "ints", "float": "floats", "text": "texts", "data": "several data"}.get(
                        expected, expected
                    )
                    if repeated
                    else expected
                )
                assert written == expected, (kind, there.name)
