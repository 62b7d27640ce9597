"""Torch modules as ONNX graphs that say nothing of where they were made."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import torch
from torch import nn

OPSET = 18


def to_onnx(module: nn.Module, image_size: tuple[int, int], outputs: Sequence[str]) -> bytes:
    """A module of images (batch, 3, height, width) as a serialised ONNX model with a free batch size.

    The same module gives the same bytes from any folder: the exporter's stack traces, node metadata and tool names are
    removed.

    Args:
        module: in evaluation mode; takes one tensor and returns one tensor or a sequence.
        image_size: (height, width) of the input, fixed in the graph.
        outputs: names of the outputs, in order.
    """
    example = torch.zeros(2, 3, *image_size)
    batch = torch.export.Dim("batch", min=1)
    with _quiet(), _out_of_place(module), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["image"],
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    anonymise(model)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def anonymise(model: onnx.ModelProto) -> None:
    """Remove all that tells of the machine, the folder or the exporter from a graph, in place."""
    model.producer_name, model.producer_version, model.domain, model.doc_string = "flawsmith", "", "", ""
    del model.metadata_props[:]
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in graph.value_info:
            value.doc_string = ""
            del value.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output]:
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    del model.graph.value_info[:]


@contextlib.contextmanager
def _out_of_place(module: nn.Module) -> Iterator[None]:
    """Activations give new tensors: the exporter rewrites those in place one by one, a third of its time."""
    changed = [part for part in module.modules() if getattr(part, "inplace", False) is True]
    try:
        for part in changed:
            part.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for part in changed:
            part.inplace = True  # type: ignore[assignment]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own workings on every channel; its failures still raise."""
    levels = {name: logging.getLogger(name).level for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
