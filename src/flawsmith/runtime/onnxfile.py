"""Looking into an ONNX file without the onnx package, for what no engine may be left to decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL_DATA = 13

# Where messages hold messages that may hold tensors: field numbers of onnx.proto (IR version 3 and later).
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}


def refers_to_files(model: bytes) -> bool:
    """Tells whether any tensor of a graph is to be read from another file.

    Such a reference may name any path of the machine, and engines differ in which they follow.

    Args:
        model: an ONNX file.

    Raises:
        ValueError: the bytes are not a protocol-buffer message.
    """
    waiting = [("Model", memoryview(model))]
    while waiting:
        kind, content = waiting.pop()
        for number, child in _messages(content):
            if kind == "Tensor":
                if number == _EXTERNAL_DATA:
                    return True
            elif number in _CHILDREN[kind]:
                waiting.append((_CHILDREN[kind][number], child))
    return False


def _messages(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and content of each length-delimited field; the others are skipped."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        wire = key & 7
        if wire == _VARINT:
            _, position = _varint(content, position)
        elif wire == _BYTES:
            length, position = _varint(content, position)
            if position + length > len(content):
                raise ValueError("a field is longer than its message")
            yield key >> 3, content[position : position + length]
            position += length
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("an unknown kind of field")


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is cut off or too long")
