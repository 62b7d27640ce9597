"""One interface to a frozen backbone's level maps, three engines behind it."""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import io
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnx
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawsmith.features.backbones import PIXELS, Backbone, errors_alone
from flawsmith.features.cache import GraphCache
from flawsmith.runtime.bundle import EngineName as GraphEngine
from flawsmith.runtime.bundle import TrainingEngine as EngineName
from flawsmith.runtime.engine import Engine, make_engine
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry, Pixels
from flawsmith.runtime.image import ImageArray, decode
from flawsmith.runtime.tiles import Tile, fit_tile

OPSET = 18


Shapes = Mapping[str, Sequence[int]]
"""Inputs of a graph: their names, and their shapes but for the batch."""


def to_onnx(module: nn.Module, inputs: Shapes, outputs: Sequence[str], *, listed: bool = False) -> bytes:
    """A module of batches as a serialised ONNX model with a free batch size.

    The same module gives the same bytes from any folder: the exporter's stack traces, node metadata and tool names are
    removed.

    Args:
        module: in evaluation mode; takes a tensor for each input and returns one tensor or a sequence.
        inputs: names and shapes, fixed in the graph but for the batch, in the order in which the module takes them.
        outputs: names of the outputs, in order.
        listed: whether the module takes its inputs as a list, instead of an argument each.
    """
    return simplified(traced(module, inputs, outputs, listed=listed))


def traced(
    module: nn.Module, inputs: Shapes, outputs: Sequence[str], *, listed: bool = False
) -> torch.onnx.ONNXProgram:
    """A module as the exporter writes it down, node by node; what it has learned are initializers of the same names."""
    examples = [torch.zeros(2, *shape) for shape in inputs.values()]
    sizes = [{0: torch.export.Dim("batch", min=1)}] * len(examples)
    with _quiet(), _out_of_place(module), _keeping_garbage(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (examples,) if listed else tuple(examples),
            dynamo=True,
            dynamic_shapes=(sizes,) if listed else tuple(sizes),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
            optimize=False,
        )
    assert program is not None
    return program


def simplified(program: torch.onnx.ONNXProgram) -> bytes:
    """The same program in fewer nodes, serialised without a trace of who made it; it is changed in place."""
    with _quiet(), _keeping_garbage():
        program.optimize()
        model = program.model_proto
    anonymise(model)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def anonymise(model: onnx.ModelProto) -> None:
    """Remove all that tells of the machine, the folder or the exporter from a graph, in place."""
    model.producer_name, model.producer_version, model.domain, model.doc_string = "flawsmith", "", "", ""
    del model.metadata_props[:]
    graphs = [model.graph, *model.functions]
    parts = [part for graph in graphs for part in (graph, *graph.node, *graph.value_info)]
    for part in [*parts, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        part.doc_string = ""
        del part.metadata_props[:]
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
def _keeping_garbage() -> Iterator[None]:
    """The exporter makes millions of objects that live until it ends; looking for garbage among them takes a tenth."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own workings on every channel; its failures still raise."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        errors_alone("onnxscript", "onnx_ir", "torch.onnx", "torch.export"),
    ):
        warnings.simplefilter("ignore")
        yield


Precision = Literal["float32", "bfloat16"]
# Largest difference to torch in float32, relative to the largest value of the level, that an engine may show.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 5e-2}
LOOK_AHEAD = 8
# Counts the changes of decoding and resizing that change pixels; features cached before are then left alone.
PREPARATION = 1


CPU = torch.device("cpu")


class Extractor(Protocol):
    """A compiled backbone; equal to the torch module within ``TOLERANCE[precision]``.

    Attributes:
        device: where it computes.
        batch: images that it is given at a time.
    """

    engine: EngineName
    precision: Precision
    device: torch.device
    batch: int

    def __call__(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Level maps (batch, channels, height, width), finest first, of normalised images (batch, 3, height, width)."""
        ...

    def levels(self, images: Tensor) -> list[Tensor]:
        """The same of tensors; the maps stay on the device."""
        ...


@contextlib.contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """Convolutions of float32 in float32 on a GPU, where shorter products are the default.

    These differ from what the exported model computes by more than ``TOLERANCE``.
    """
    if device.type != "cuda":
        yield
        return
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


class TorchExtractor:
    """A copy of the backbone as it is, on a GPU or on any other device; whole batches, whose maps can stay there."""

    engine: EngineName = "torch"
    batch = 16

    def __init__(
        self, backbone: Backbone, precision: Precision = "float32", device: str | torch.device = "cpu"
    ) -> None:
        self.precision, self.device = precision, torch.device(device)
        # A copy: the model that is trained takes its backbone along from device to device.
        self._backbone = copy.deepcopy(backbone).to(self.device).to(memory_format=torch.channels_last)

    def __call__(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [level.cpu().numpy() for level in self.levels(torch.from_numpy(images))]

    def levels(self, images: Tensor) -> list[Tensor]:
        """Level maps of normalised images (batch, 3, height, width), finest first, on this extractor's device."""
        batch = images.to(self.device).contiguous(memory_format=torch.channels_last)
        lower = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        with torch.no_grad(), lower, exact_convolutions(self.device):
            return [level.float() for level in self._backbone(batch)]


class PixelExtractor:
    """Images as they are, for a method that trains its own encoder; there is nothing to compute or to round."""

    batch = 1

    def __init__(self, engine: EngineName, precision: Precision, device: torch.device = CPU) -> None:
        self.engine, self.precision, self.device = engine, precision, device

    def __call__(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [images]

    def levels(self, images: Tensor) -> list[Tensor]:
        """The images on this extractor's device."""
        return [images.to(self.device)]


class GraphExtractor:
    """The backbone as an ONNX graph, made once where there is a cache, run by ONNX Runtime or OpenVINO on the CPU."""

    device = CPU
    batch = 1  # compiled backbones on a CPU are faster so, and a feature has no neighbours

    def __init__(
        self,
        backbone: Backbone,
        image_size: tuple[int, int],
        engine: GraphEngine = "onnxruntime",
        precision: Precision = "float32",
        threads: int | None = None,
        graphs: GraphCache | None = None,
    ) -> None:
        if engine == "onnxruntime" and precision != "float32":
            raise FlawsmithError(f"the engine onnxruntime computes in float32, not in {precision}; use openvino")
        self.engine: EngineName = engine
        self.precision = precision
        self._name, self._backbone, self._image_size, self._threads = engine, backbone, image_size, threads
        self._graphs = graphs

    @cached_property
    def _compiled(self) -> Engine:
        """Compiled on first use: a run whose features are all cached never needs it."""
        graph = self._exported() if self._graphs is None else self._graphs.graph(self._exported)
        return make_engine(self._name, graph, precision=self.precision, threads=self._threads)

    def _exported(self) -> bytes:
        return backbone_to_onnx(self._backbone, self._image_size)

    def __call__(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return self._compiled.run(images)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Level maps of normalised images (batch, 3, height, width), finest first, computed one at a time."""
        levels = zip(*(self(image[None].numpy()) for image in images), strict=True)
        return [torch.from_numpy(np.concatenate(level)) for level in levels]


def make_extractor(
    backbone: Backbone,
    image_size: tuple[int, int],
    engine: EngineName = "onnxruntime",
    precision: Precision = "float32",
    device: torch.device = CPU,
    *,
    graphs: GraphCache | None = None,
) -> Extractor:
    """The extractor of an engine for images of one size.

    ONNX Runtime computes in float32; bfloat16 needs torch or OpenVINO.

    Args:
        device: where torch computes; the others compute on the CPU.
        graphs: where the backbone's graph is kept, under its :func:`graph_key`; None: it is made anew.
    """
    if backbone.info.architecture == PIXELS:
        return PixelExtractor(engine, precision, device if engine == "torch" else CPU)
    if engine == "torch":
        return TorchExtractor(backbone, precision, device)
    return GraphExtractor(backbone, image_size, engine, precision, graphs=graphs)


def backbone_to_onnx(backbone: Backbone, image_size: tuple[int, int]) -> bytes:
    """A backbone as an ONNX model from ``image`` to ``level_0``, ``level_1`` and so on, finest first."""
    levels = [f"level_{number}" for number in range(len(backbone.channels))]
    return to_onnx(backbone, {"image": (3, *image_size)}, levels)


def graph_key(backbone: Backbone, image_size: tuple[int, int]) -> str:
    """Identity of a backbone's graph: its weights, what computes with them, and what writes graphs."""
    info = backbone.info
    packages = [f"{name} {version(name)}" for name in ("torch", "timm", "onnx", "onnxscript", "onnx-ir")]
    parts = ["graph", info.sha256, info.architecture, str(info.strides), str(image_size), f"opset {OPSET}", *packages]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def extractor_key(
    backbone: Backbone, geometry: Geometry, engine: EngineName, precision: Precision, device: torch.device = CPU
) -> str:
    """Identity of cached features: two runs share them when weights, levels, geometry, engine and precision agree.

    So must the version of the engine, the kind of device, and all that turns a file into network input.
    """
    info = backbone.info
    parts = [info.sha256, str(info.strides), engine, import_module(engine).__version__, precision, info.architecture]
    if engine == "torch" and device.type != CPU.type:
        parts.append(device.type)
    return hashlib.sha256("\n".join([*parts, preparation(geometry)]).encode()).hexdigest()[:32]


def preparation(geometry: Geometry) -> str:
    """Identity of network input: the geometry, and the versions of what decodes and resizes."""
    return "\n".join([geometry.model_dump_json(), f"preparation {PREPARATION}", f"pillow {PIL.__version__}"])


THUMBNAIL_KEY = hashlib.sha256(f"thumbnail 1\npillow {PIL.__version__}".encode()).hexdigest()[:32]
"""Identity of cached thumbnails."""


def image_key(geometry: Geometry) -> str:
    """Identity of cached images at a network's size: all of the geometry but what normalises them."""
    plain = geometry.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    return hashlib.sha256(f"pixels\n{preparation(plain)}".encode()).hexdigest()[:32]


Form = Geometry | Callable[[ImageArray], Pixels]
"""What an image is brought to: the input of a network, or what else is made of its pixels."""


def read_files(
    paths: Sequence[Path],
    forms: Sequence[Sequence[Form]],
    tiles: Sequence[Tile | None] | None = None,
    *,
    see: Callable[[Path, ImageArray], None] = lambda path, image: None,
    decoders: int = 2,
) -> Iterator[list[Pixels]]:
    """The pixels of every file or tile, in order; a file is decoded once, ahead of its turn in a thread.

    Args:
        paths: the files; one that comes several times in a row is decoded for all of these.
        forms: of each of them those that it is brought to.
        tiles: what of each is wanted; None: the whole image.
        see: is shown every file and its image, in a thread.
        decoders: threads.

    Returns:
        For each its pixels in each of its forms: of a geometry (h, w, 3), before it is normalised.

    Raises:
        FlawsmithError: a file cannot be read, or is smaller than a tile of it.
    """
    cuts = [None] * len(paths) if tiles is None else tiles
    files = [[row for row, _ in rows] for _, rows in groupby(enumerate(paths), key=itemgetter(1))]
    ahead = LOOK_AHEAD if len(files) == len(paths) else decoders  # all tiles of a file wait together

    def read(rows: Sequence[int]) -> list[list[Pixels]]:
        image = decode(paths[rows[0]])
        see(paths[rows[0]], image)
        return [[_fitted(image, cuts[row], form, paths[row]) for form in forms[row]] for row in rows]

    pending: deque[Future[list[list[Pixels]]]] = deque()
    with ThreadPoolExecutor(decoders) as pool:
        for rows in files:
            pending.append(pool.submit(read, rows))
            if len(pending) > ahead:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _fitted(image: ImageArray, tile: Tile | None, form: Form, path: Path) -> Pixels:
    if not isinstance(form, Geometry):
        return form(image)
    if tile is None:
        return form.fit(image)
    if tile.bottom > image.shape[0] or tile.right > image.shape[1]:
        raise FlawsmithError(
            f"{path}: is turned by an orientation that stands behind its pixels; save it upright to cut it into tiles"
        )
    return fit_tile(image, tile, form)


def extract(extractor: Extractor, images: Iterable[NDArray[np.float32]]) -> Iterator[list[NDArray[np.float32]]]:
    """Level maps (channels, height, width) of every normalised image (3, height, width), in order.

    As many images at a time as the extractor takes: one on a CPU, so that a feature never depends on its neighbours,
    not in its last digit either.
    """
    pending = iter(images)
    while chunk := list(islice(pending, extractor.batch)):
        yield from map(list, zip(*extractor(np.stack(chunk)), strict=True))
