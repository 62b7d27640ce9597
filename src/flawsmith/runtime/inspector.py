"""Inspecting images with a trained model, and whether it gives the numbers here that it gave where it was made."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.runtime.bundle import SELF_TEST, Bundle, BundleSpec, EngineName, Precision
from flawsmith.runtime.decision import LARGEST_SCORE, Decision, Verdict
from flawsmith.runtime.devices import DeviceName, choose_device
from flawsmith.runtime.engine import MAX_SECONDS, Engine, check_detector, make_engine, try_engine
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder, iter_images, printable, without_controls
from flawsmith.runtime.formats import read_pillow
from flawsmith.runtime.geometry import InvertedMap
from flawsmith.runtime.image import (
    MAX_PIXELS,
    ImageArray,
    KindWatch,
    decode,
    has_further_pictures,
    image_size,
    validate_array,
)
from flawsmith.runtime.overlay import VERDICT_COLOURS, HeatScale, draw_overlay, heat_scale, panel, with_scale
from flawsmith.runtime.regions import STRANGEST_PLACE, Region
from flawsmith.runtime.tiles import inspect_by_tiles

ImageSource = str | Path | bytes | NDArray[Any] | Image.Image
"""A path, a file's content, an image of Pillow's, or an array (height, width, 3) RGB or (height, width) grey, uint8 or
uint16."""

__all__ = [
    "ImageSource",
    "Inspection",
    "Inspector",
    "PreparedImage",
    "ScoreAndMap",
    "Unreadable",
    "self_test",
    "self_test_arrays",
]


@dataclass(frozen=True)
class Inspection:
    """What a model says about one image.

    Attributes:
        image: path as it was given; None for bytes, arrays and images of Pillow's.
        score: image score; larger is more anomalous.
        verdict: ``pass``, ``review`` or ``reject``.
        map_source: the anomaly map, or the same on its way to the pixels of the original image; see `map`.
        regions: the flaws that the map shows, the strongest first; a pass has none, anything else has one at least.
            Where the score alone decided it is marked as the strangest place. See `Decision.decide`.
        not_inspected: (height, width), True where the geometry's crop cut away; None where all was inspected.
        timing: milliseconds by step: decode, prepare, infer, restore, decide. What `map` takes comes on top where it is
            asked for.
        decision: the limits that held.
        value_range: values of images deeper than 8 bits that are black and white; None: 0 and 65535.
        network_map: (h, w) float32, the map as the network gave it, in its own input pixels; None where several tiles
            make the map.
        pixels: (height, width, 3) RGB, the image as decoded, where a stream was asked to keep it, or where it came from
            no file and was not cut into tiles; else None.
        further_pictures: whether the file holds further pictures, as an animation does, which were not inspected.
        device: where the network was computed.
    """

    image: str | None
    score: float
    verdict: Verdict
    map_source: NDArray[np.float32] | InvertedMap
    regions: list[Region]
    not_inspected: NDArray[np.bool_] | None
    timing: dict[str, float]
    decision: Decision
    value_range: tuple[float, float] | None = None
    network_map: NDArray[np.float32] | None = None
    pixels: ImageArray | None = None
    further_pictures: bool = False
    device: DeviceName = "cpu"

    def __repr__(self) -> str:
        name = "" if self.image is None else f"{printable(self.image)!r}: "
        return f"Inspection({name}{self.verdict}, {self._score_in_words()}, {self._regions_in_words()})"

    def _repr_html_(self) -> str:
        """Verdict, score and a small overlay, for notebooks."""
        lines = [self._score_in_words(), self._regions_in_words()]
        if self.image is not None:
            lines.append(printable(self.image))
        picture = None
        if self.image is not None or self.pixels is not None:
            try:
                picture = self.overlay()
            except FlawsmithError as error:
                lines.append(f"no picture: {error}")
        else:
            lines.append("overlay(image) draws the picture: an image that is cut into tiles is not kept")
        return panel(self.verdict, lines, colour=VERDICT_COLOURS[self.verdict], picture=picture)

    def _score_in_words(self) -> str:
        times, decision = self.times_limit, self.decision
        limit = f"map limit {decision.map_limit:.4g}" if decision.by_regions else f"limit {decision.limit:.4g}"
        multiple = "" if times is None else f"{times:.2f} times the limit, "
        return f"{multiple}score {self.score:.4g}, {limit}"

    def _regions_in_words(self) -> str:
        if not self.regions:
            return "no region"
        box = self.regions[0].box
        if self.regions[0].strangest_place:
            return f"map below its limit, strangest place in the box {box}"
        number = "1 region" if len(self.regions) == 1 else f"{len(self.regions)} regions"
        return f"{number}, the strongest in the box {box}"

    @cached_property
    def map(self) -> NDArray[np.float32]:
        """(height, width) float32 anomaly map in pixels of the original image, computed when it is first asked for."""
        return self.map_source.whole() if isinstance(self.map_source, InvertedMap) else self.map_source

    @property
    def times_limit(self) -> float | None:
        """The score as a multiple of its limit, or where regions decide the strongest region's peak as one of its own.

        None where a limit is not positive, or where regions decide and there is none.
        """
        limits = self.decision
        if not limits.by_regions:
            return limits.times_limit(self.score)
        above = [
            peak / limit
            for peak, limit in ((r.peak, limits.zone_limits.get(r.zone or "", limits.map_limit)) for r in self.regions)
            if limit > 0
        ]
        return max(above, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the pixels, ready for strict JSON; ``inspected`` is the share of pixels seen, and
        ``further_pictures`` is there where it is true, ``zone_limits`` where there are zones, ``device`` where it is
        not the CPU."""
        unseen = 0.0 if self.not_inspected is None else float(self.not_inspected.mean())
        return {
            "image": self.image,
            "score": self.score,
            "times_limit": self.times_limit,
            "verdict": self.verdict,
            "limit": self.decision.limit,
            "review_limit": self.decision.review_limit,
            "map_limit": self.decision.map_limit,
            **({"zone_limits": self.decision.zone_limits} if self.decision.zones else {}),
            "regions": [region.model_dump(mode="json") for region in self.regions],
            "inspected": 1.0 - unseen,
            "timing": dict(self.timing),
            **({"further_pictures": True} if self.further_pictures else {}),
            **({"device": self.device} if self.device != "cpu" else {}),
        }

    def overlay(self, image: ImageSource | None = None, *, stretched: bool = False, scale: bool = False) -> Image.Image:
        """Draws the map's heat and the regions' outlines over the image.

        The colours go from the map's limit, in zones from their own limit, to the map's peak: an image that passes
        stays as it is where nothing exceeds the limit. Where the score alone decided, the strangest place has a dashed
        outline.

        Args:
            image: the image; None takes `pixels` where they were kept, and else reads the inspected file again.
                Arrays must be RGB.
            stretched: let the colours begin half-way from the map's median to its peak: what the map shows of a flaw
                that was missed.
            scale: add a strip beneath that says what the colours mean.

        Returns:
            An RGB picture of the image's size; the strip is beyond that.

        Raises:
            FlawsmithError: no image was given and none is known, or it has another size than the map.
        """
        known = self.image if self.pixels is None else self.pixels
        source = known if image is None else image
        if source is None:
            raise FlawsmithError("overlay: the image came from no file and was not kept; give it")
        pixels = _read(source)
        if pixels.shape[:2] != self.map.shape:
            raise FlawsmithError(
                f"overlay: the image is {pixels.shape[1]} x {pixels.shape[0]}, the inspected one was "
                f"{self.map.shape[1]} x {self.map.shape[0]}; give the same image"
            )
        drawn = draw_overlay(
            pixels, self.map, self.regions, value_range=self.value_range, **self._heat_settings(stretched)
        )
        if not scale:
            return drawn
        remark = STRANGEST_PLACE if any(region.strangest_place for region in self.regions) else ""
        return with_scale(drawn, self.heat_scale(stretched=stretched), self.decision.map_limit, remark)

    def heat_scale(self, *, stretched: bool = False) -> HeatScale:
        """Map values at which the overlay's colours begin and end; in zones, values less the zone's offset.

        Args:
            stretched: as in `overlay`.
        """
        return heat_scale(self.map, self.regions, **self._heat_settings(stretched))

    def _heat_settings(self, stretched: bool) -> dict[str, Any]:
        limits, zones = self.decision, None
        if limits.zones:
            size = (self.map.shape[0], self.map.shape[1])
            zones = limits.zone_numbers(size), tuple(zone.offset for zone in limits.zones)
        return {"map_limit": limits.map_limit, "zones": zones, "stretched": stretched}


@dataclass(frozen=True)
class Unreadable:
    """An image of a stream that could not be inspected.

    Attributes:
        image: its path as it was given.
        error: one line that says why, and what to do.
    """

    image: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Returns ``image`` and ``error``, ready for JSON."""
        return {"image": self.image, "error": self.error}


def _in_words(engine: str, precision: str, device: DeviceName) -> str:
    """What computes a network, such as ``onnxruntime in float32``."""
    return f"{engine} in {precision}{'' if device == 'cpu' else f' on {device}'}"


def _read(source: ImageSource, *, bgr: bool = False, max_pixels: int = MAX_PIXELS) -> ImageArray:
    """(height, width, 3) RGB of an image, however it was given."""
    if isinstance(source, (str, Path, bytes)):
        return decode(source, max_pixels=max_pixels)
    if isinstance(source, Image.Image):
        return read_pillow(source, max_pixels)
    return validate_array(source, bgr=bgr)


_PREFETCH_PER_DECODER = 2
_LEAST_ALLOWED = 1e-4
"""Share of a limit by which a batch may round a score differently, where the model file does not say more."""
PIXELS_AHEAD = 2**26
"""Pixels of images to be cut into tiles that are in memory at a time, the one in work included; a larger image is there
alone."""


class ScoreAndMap(NamedTuple):
    """What a model measures on an image, before anything is decided.

    Attributes:
        score: image score.
        map: (height, width) float32 in pixels of the original image.
        not_inspected: (height, width), True where the network saw nothing; None: it saw all.
        network_map: (h, w) in the network's own pixels; None where several tiles make the map.
    """

    score: float
    map: NDArray[np.float32]
    not_inspected: NDArray[np.bool_] | None
    network_map: NDArray[np.float32] | None


@dataclass
class PreparedImage:
    """An image made ready for the network; the image itself is let go unless it is to be kept, or cut into tiles.

    `Inspector.prepare` makes it and `Inspector.inspect_prepared` takes it, once.

    Attributes:
        image: path as it was given; None for bytes, arrays and images of Pillow's.
        batch: (1, 3, h, w), the network's input; None where the image is to be cut into tiles.
        original_size: (height, width) in pixels.
        timing: milliseconds by step so far.
        pixels: the decoded image where it is to be kept.
        further_pictures: whether the file holds further pictures.
        uncut: the decoded image where it is to be cut into tiles.
    """

    image: str | None
    batch: NDArray[np.float32] | None
    original_size: tuple[int, int]
    timing: dict[str, float]
    pixels: ImageArray | None = None
    further_pictures: bool = False
    uncut: ImageArray | None = None


class Inspector:
    """A loaded model. No verdict depends on another image: images go through it one at a time, or, where `stream` is
    asked for batches, once more alone where a limit is near.

    Inspecting is safe from several threads. An inspector can be pickled and so go to another process, which compiles
    the graph anew; for that the graph's bytes stay in memory.

    Args:
        spec: the bundle's settings.
        engine: its compiled graph.
        max_pixels: refuse larger image files.

    Attributes:
        spec: the bundle's settings.
        engine: the compiled graph.
        device: where the engine computes.
        calibrated: whether engine, precision and device are those the limits were calibrated with.

    Raises:
        FlawsmithError: the graph is not a detector for the spec's geometry.

    Example:
        A model file is opened with ``Inspector.load("model.flaw")``. Here an engine of one's own stands for its graph.

        >>> from flawsmith.runtime.decision import Decision
        >>> from flawsmith.runtime.engine import Port
        >>> from flawsmith.runtime.geometry import Geometry
        >>> class Brightness:
        ...     name, precision = "onnxruntime", "float32"
        ...     inputs = (Port("image", (None, 3, 32, 48)),)
        ...     outputs = (Port("map", (None, 32, 48)), Port("score", (None,)))
        ...     def run(self, batch):
        ...         return [batch.mean(axis=1), batch.max(axis=(1, 2, 3))]
        >>> decision = Decision(limit=1.0, map_limit=1.0, stated_false_reject_rate=0.01, n_good=99)
        >>> spec = BundleSpec.model_construct(geometry=Geometry(size=(32, 48)), decision=decision)
        >>> image = np.zeros((64, 96, 3), np.uint8)
        >>> image[10:20, 30:50] = 255
        >>> inspection = Inspector(spec, Brightness()).inspect(image)
        >>> inspection.verdict, inspection.map.shape, inspection.regions[0].box
        ('reject', (64, 96), (31, 11, 49, 19))
    """

    def __init__(self, spec: BundleSpec, engine: Engine, *, max_pixels: int = MAX_PIXELS) -> None:
        self.spec = spec
        self.engine = engine
        self.device: DeviceName = getattr(engine, "device", "cpu")
        used = (engine.name, engine.precision, self.device)
        self.calibrated = used == (spec.engine, spec.precision, spec.device)
        self._max_pixels = max_pixels
        training = getattr(spec, "training", None)
        learned = "" if training is None else str(training.findings.get("images", ""))
        self._kinds = KindWatch(learned, spec.geometry.value_range)
        self._map_index, self._score_index = check_detector(engine, spec.geometry.size)

    def __repr__(self) -> str:
        return f"Inspector({self._name()}, {self._limit_in_words()}, {self._promise_in_words()})"

    def _repr_html_(self) -> str:
        """Model, limit and promise, for notebooks."""
        stamps = getattr(getattr(self.spec, "training", None), "stamps", ())
        engine = _in_words(self.engine.name, self.engine.precision, self.device)
        worked = engine if self.calibrated else f"{engine}, another one than the limits were made with"
        return panel(self._name(), [*stamps, self._limit_in_words(), self._promise_in_words(), worked])

    def _name(self) -> str:
        training = getattr(self.spec, "training", None)
        part = "" if training is None else f" of {training.category}"
        return without_controls(f"{getattr(self.spec, 'method', 'model')}{part}")

    def _limit_in_words(self) -> str:
        limits = self.spec.decision
        if limits.zones:
            return "limits " + ", ".join(f"{zone} {limit:.4g}" for zone, limit in limits.zone_limits.items())
        return f"map limit {limits.map_limit:.4g}" if limits.by_regions else f"limit {limits.limit:.4g}"

    def _promise_in_words(self) -> str:
        return f"good parts rejected: {self.spec.decision.promise}"

    @classmethod
    def load(
        cls,
        source: str | Path | Bundle,
        *,
        engine: str | None = None,
        precision: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_seconds: float | None = MAX_SECONDS,
        trial_seconds: float | None = None,
    ) -> Inspector:
        """Opens a model.

        Limits are those of the engine, precision and device, where the file has some. Where it has not, those in use
        hold, a warning says so and ``calibrated`` is False.

        Args:
            source: a ``.flaw`` file or a loaded bundle.
            engine: ``onnxruntime`` or ``openvino``; None: the one the limits were calibrated with.
            precision: ``float32``, ``bfloat16``, or ``float16`` and ``int8`` where the file holds such a graph; None:
                that of the limits for their engine, ``float32`` for another one.
            device: where ONNX Runtime computes: ``cpu``, ``cuda``, ``tensorrt``, ``directml``, ``coreml``, ``openvino``
                (an Intel GPU), or ``auto``, the first that is here; None: that of the limits. What computed stands in
                ``inspector.device`` and in every result; nothing falls back to another one.
            threads: threads for the network; None: one a core.
            max_pixels: refuse larger image files.
            max_seconds: stop the network where it works longer on one image, or on one tile of it; whole seconds, None:
                never. What is wrong with the model is then wrong with each image, so a service should ask for less.
            trial_seconds: for models from strangers: load it first in a process of its own, which ends after so many
                seconds, has it work on a black image there, and refuse it where that fails. 10 will do, 2 of which
                Python takes to start. None: no trial.

        Raises:
            FlawsmithError: the file is no intact bundle or holds no such graph, or the engine or the device is unknown,
                missing or cannot compute the graph.
        """
        bundle = source if isinstance(source, Bundle) else Bundle.load(source)
        spec = bundle.spec
        place = choose_device(device or spec.device)
        name = engine or ("onnxruntime" if place != "cpu" else spec.engine)
        if name not in get_args(EngineName):
            raise FlawsmithError(f"unknown engine {name!r}; known are {' and '.join(get_args(EngineName))}")
        chosen = cast(EngineName, name)
        usual = spec.precision if (chosen, place) == (spec.engine, spec.device) else "float32"
        if precision is not None and precision not in get_args(Precision):
            raise FlawsmithError(f"unknown precision {precision!r}; known are {', '.join(get_args(Precision))}")
        number = cast(Precision, precision or usual)
        try:
            bundle = bundle.as_variant(chosen, number, place)
            settings: dict[str, Any] = {"precision": number, "device": place, "threads": threads}
            if trial_seconds is not None:
                try_engine(name, bundle.model, bundle.spec.geometry.size, seconds=trial_seconds, **settings)
            compiled = make_engine(name, bundle.model, batch=1, max_seconds=max_seconds, **settings)
            inspector = cls(bundle.spec, compiled, max_pixels=max_pixels)
        except FlawsmithError as error:
            raise FlawsmithError(f"{bundle.path}: {error}" if bundle.path else str(error)) from None
        if not inspector.calibrated:
            held = _in_words(bundle.spec.engine, bundle.spec.precision, bundle.spec.device)
            warnings.warn(
                f"the limits were calibrated with {held}, this is {_in_words(name, number, place)}: verdicts near a "
                "limit may differ; calibrate anew",
                stacklevel=2,
            )
        return inspector

    def with_limits(self, decision: Decision) -> Inspector:
        """The same model with other limits; both share the engine.

        Args:
            decision: such as `Decision.recalibrated` or ``inspector.spec.decision.model_copy(update=...)`` gives.
        """
        spec = self.spec.model_copy(update={"decision": decision})
        return Inspector(spec, self.engine, max_pixels=self._max_pixels)

    def inspect(self, image: ImageSource, *, bgr: bool = False) -> Inspection:
        """Inspects one image.

        Args:
            image: path, file content, image of Pillow's, or array (height, width, 3) RGB or (height, width) grey,
                uint8 or uint16.
            bgr: an array's channels are in OpenCV's order.

        Raises:
            FlawsmithError: the image cannot be read, the model cannot be computed, or it gives numbers that are not
                finite.
        """
        has_no_file = not isinstance(image, (str, Path))  # to be read again for an overlay
        return self.inspect_prepared(self.prepare(image, bgr=bgr, keep_pixels=has_no_file))

    def inspect_many(self, images: Iterable[ImageSource], *, bgr: bool = False) -> list[Inspection]:
        """Inspects images one after the other; the first unreadable one raises. Use `stream` for folders.

        Args:
            images: as in `inspect`.
            bgr: arrays' channels are in OpenCV's order.

        Raises:
            FlawsmithError: as in `inspect`.
        """
        return [self.inspect(image, bgr=bgr) for image in images]

    def stream(
        self,
        source: str | Path | Iterable[str | Path],
        *,
        decoders: int = 2,
        keep_pixels: bool = False,
        batch: int = 1,
    ) -> Iterator[Inspection | Unreadable]:
        """Inspects the images of a folder, or any sequence of paths, in order.

        Threads decode ahead, never more than two images each, and results are handed out as they come: memory
        does not grow with the number of images. Images that are cut into tiles are kept until all are seen: of them, no
        more than `PIXELS_AHEAD` pixels are in memory, or a single one. Closing or dropping the iterator ends the
        threads.

        Args:
            source: a folder (searched with its subfolders), one file, or paths.
            decoders: threads that decode, at least 1.
            keep_pixels: whether inspections hold the decoded image.
            batch: images that the network sees at a time, for throughput on a GPU. The last digits of scores may depend
                on it, verdicts do not: what is nearer to a limit than engines may differ is seen once more alone. Tiles
                are seen one by one. Results come as many at a time.

        Yields:
            An inspection for each image, or `Unreadable` for one that could not be inspected.

        Raises:
            FlawsmithError: ``decoders`` or ``batch`` is below 1; or the folder or one below it cannot be listed, which
                is raised after the results of the images before it. The same holds for errors of the sequence itself.
        """
        if decoders < 1:
            raise FlawsmithError(f"decoders must be at least 1, not {decoders}")
        if batch < 1:
            raise FlawsmithError(f"batch must be at least 1, not {batch}")
        if isinstance(source, (str, Path)):
            paths: Iterable[str | Path] = iter_images(source) if is_folder(source) else [source]
        else:
            paths = source
        return self._stream(_error_last(iter(paths)), decoders, keep_pixels, batch)

    def measure(self, image: ImageSource, *, bgr: bool = False) -> ScoreAndMap:
        """Returns score and map of an image without a verdict, such as for new limits.

        Args:
            image: as in `inspect`.
            bgr: an array's channels are in OpenCV's order.

        Raises:
            FlawsmithError: as in `inspect`.
        """
        score, anomaly_map, not_inspected, small_map = self._measured(
            self.prepare(image, bgr=bgr, watch=False), _Clock()
        )
        whole = anomaly_map.whole() if isinstance(anomaly_map, InvertedMap) else anomaly_map
        return ScoreAndMap(score, whole, not_inspected, small_map)

    def raw(self, image: ImageSource, *, bgr: bool = False) -> tuple[float, NDArray[np.float32]]:
        """Returns what the network itself says, before anything is inverted or decided.

        Args:
            image: as in `inspect`.
            bgr: an array's channels are in OpenCV's order.

        Returns:
            The image score, and the (h, w) map in the network's input size.

        Raises:
            FlawsmithError: as in `inspect`; or the image is seen in several tiles, of which each has a map.
        """
        prepared = self.prepare(image, bgr=bgr, watch=False)
        if prepared.batch is None:
            raise FlawsmithError("several tiles have no common map in the network's pixels; use inspect or measure")
        return self._infer(prepared.batch)

    def _stream(
        self, paths: Iterator[str | Path | Exception], decoders: int, keep_pixels: bool, batch: int
    ) -> Iterator[Inspection | Unreadable]:
        prepare = partial(self.prepare, keep_pixels=keep_pixels)
        pool = ThreadPoolExecutor(decoders, thread_name_prefix="flawsmith-decode")
        waiting: deque[_Waiting | Exception] = deque()
        held_back: _Waiting | None = None
        try:
            while True:
                while len(waiting) < batch - 1 + decoders * _PREFETCH_PER_DECODER:
                    item = held_back or self._next(paths)
                    held_back = None
                    if item is None:
                        break
                    if isinstance(item, _Waiting):
                        ahead = sum(other.pixels for other in waiting if isinstance(other, _Waiting))
                        if waiting and item.pixels + ahead > PIXELS_AHEAD:
                            held_back = item
                            break
                        item.prepared = pool.submit(prepare, item.path)
                    waiting.append(item)
                if not waiting:
                    return
                first = waiting.popleft()
                if isinstance(first, Exception):
                    raise first
                together = [first]
                while len(together) < batch and waiting and isinstance(waiting[0], _Waiting):
                    together.append(cast(_Waiting, waiting.popleft()))
                del first
                yield from self._inspect_together(together, batch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _inspect_together(self, together: list[_Waiting], batch: int) -> Iterator[Inspection | Unreadable]:
        """Inspections of images in order, which the network sees at once where there are several."""
        prepared: list[PreparedImage | Unreadable] = []
        for item in together:
            assert item.prepared is not None, "submitted before"
            try:
                prepared.append(item.prepared.result())
            except FlawsmithError as error:
                prepared.append(Unreadable(str(item.path), str(error)))
            item.prepared = None
        seen = self._infer_together([image for image in prepared if isinstance(image, PreparedImage)], batch)
        for item, image in zip(together, prepared, strict=True):
            if isinstance(image, Unreadable):
                yield image
                continue
            try:
                result: Inspection | Unreadable = self._inspect_prepared(image, seen.pop(id(image), None))
            except FlawsmithError as error:
                result = Unreadable(str(item.path), str(error))
            image.uncut = image.batch = None
            yield result
            del result  # before the next image is waited for

    def _infer_together(
        self, images: Sequence[PreparedImage], batch: int
    ) -> dict[int, tuple[float, NDArray[np.float32]]]:
        """Score and map by `id` of the images that the network has seen at once; the others are to be seen alone.

        The batch is filled up with its last image, so that an engine meets two sizes alone, and no score depends on how
        many images there are.
        """
        whole = [image for image in images if image.batch is not None]
        if batch == 1 or not whole:
            return {}
        clock = _Clock()
        inputs = [cast(NDArray[np.float32], image.batch) for image in whole]
        try:
            outputs = self.engine.run(np.concatenate([*inputs, *[inputs[-1]] * (batch - len(inputs))]))
            pairs = [self._checked(outputs, row) for row in range(len(whole))]
        except FlawsmithError:
            return {}  # such as for want of memory; what is wrong with one of them is found alone
        clock.lap("infer")
        for image in whole:
            image.timing["infer"] = clock.timing["infer"] / len(whole)
        return {
            id(image): pair for image, pair in zip(whole, pairs, strict=True) if not self._is_near_a_limit(image, *pair)
        }

    def _is_near_a_limit(self, image: PreparedImage, score: float, small_map: NDArray[np.float32]) -> bool:
        """Whether another rounding might give another verdict."""
        decision, geometry, parity = self.spec.decision, self.spec.geometry, self.spec.parity
        limits = [limit for limit in (decision.deciding_limit, decision.review_limit) if limit is not None]
        deciding, name = score, "score_allowed"
        if decision.by_regions:
            inside = geometry.valid_mask(image.original_size)
            not_inspected = None if inside is None else ~inside
            deciding = decision.level(geometry.invert(small_map, image.original_size), not_inspected)
            name = "map_allowed"
        allowed = max(parity.get(name, 0.0), _LEAST_ALLOWED * max(map(abs, limits)))
        return min(abs(deciding - limit) for limit in limits) <= allowed

    def _next(self, paths: Iterator[str | Path | Exception]) -> _Waiting | Exception | None:
        """The next image to wait for; None at the end. Its pixels count where they are kept to be cut into tiles."""
        path = next(paths, None)
        if path is None or isinstance(path, Exception):
            return path
        if self.spec.tiling is None:
            return _Waiting(path)
        size = image_size(path, max_pixels=self._max_pixels)
        return _Waiting(path, 0 if size is None or self.spec.tiling.holds(size) else size[0] * size[1])

    def prepare(
        self, image: ImageSource, *, bgr: bool = False, keep_pixels: bool = False, watch: bool = True
    ) -> PreparedImage:
        """Decodes an image and makes it ready: the first half of `inspect`, for programs that decode in other threads.

        Args:
            image: as in `inspect`.
            bgr: an array's channels are in OpenCV's order.
            keep_pixels: whether the inspection shall hold the decoded image.
            watch: warn where the image is of another kind than those learned from.

        Raises:
            FlawsmithError: the image cannot be read.
        """
        clock = _Clock()
        pixels = _read(image, bgr=bgr, max_pixels=self._max_pixels)
        further = isinstance(image, (str, Path, bytes)) and has_further_pictures(image)
        clock.lap("decode")
        if watch:
            self._kinds.look(pixels, str(image) if isinstance(image, (str, Path)) else "an image")
        size = (pixels.shape[0], pixels.shape[1])
        name = str(image) if isinstance(image, (str, Path)) else None
        if self.spec.tiling is not None and not self.spec.tiling.holds(size):
            return PreparedImage(name, None, size, clock.timing, pixels if keep_pixels else None, further, pixels)
        batch = self.spec.geometry.apply(pixels)[None]
        kept = pixels if keep_pixels else None
        if keep_pixels and isinstance(image, np.ndarray) and np.may_share_memory(image, pixels):
            kept = pixels.copy()  # a camera writes the next picture into the same array
        clock.lap("prepare")
        return PreparedImage(name, batch, size, clock.timing, kept, further)

    def _measured(
        self, prepared: PreparedImage, clock: _Clock, seen: tuple[float, NDArray[np.float32]] | None = None
    ) -> tuple[float, NDArray[np.float32] | InvertedMap, NDArray[np.bool_] | None, NDArray[np.float32] | None]:
        """As `ScoreAndMap`, but the map is not computed yet where one look made it."""
        geometry, tiling, size = self.spec.geometry, self.spec.tiling, prepared.original_size
        small_map: NDArray[np.float32] | None = None
        anomaly_map: NDArray[np.float32] | InvertedMap
        if prepared.batch is not None:
            score, small_map = seen or self._infer(prepared.batch)
            clock.lap("infer")
            anomaly_map = geometry.inverse(small_map, size)
        else:
            assert prepared.uncut is not None and tiling is not None, "kept to be cut"
            score, anomaly_map = inspect_by_tiles(prepared.uncut, geometry, tiling, self._infer, clock.lap)
            prepared.uncut = None  # a large image makes room before its map is judged
        if small_map is None:
            inside = None if geometry.region is None else geometry.region.to_mask(size)
        else:
            inside = geometry.valid_mask(size)
        not_inspected = None if inside is None else ~inside
        clock.lap("restore")
        return score, anomaly_map, not_inspected, small_map

    def _infer(self, batch: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        return self._checked(self.engine.run(batch), 0, number=1)

    def _checked(
        self, outputs: list[NDArray[np.float32]], row: int, *, number: int | None = None
    ) -> tuple[float, NDArray[np.float32]]:
        """Score and map of an image of a batch; ``number``: how many images there must be."""
        scores, maps = outputs[self._score_index], outputs[self._map_index]
        size = self.spec.geometry.size
        count = len(scores) if number is None and scores.ndim == 1 and len(scores) > row else number or 1
        if scores.shape != (count,) or maps.shape != (count, *size):
            raise FlawsmithError(
                f"the model gives a score of the shape {scores.shape} and a map of {maps.shape}, needed are "
                f"{(count,)} and {(count, *size)}; export it anew"
            )
        score, anomaly_map = float(scores[row]), maps[row]
        if not (abs(score) <= LARGEST_SCORE and np.abs(anomaly_map).max() <= LARGEST_SCORE):
            raise FlawsmithError("the model gives numbers that are not finite or too large; train or export it anew")
        return score, anomaly_map

    def inspect_prepared(self, prepared: PreparedImage) -> Inspection:
        """Inspects an image that `prepare` of this inspector has made ready: the second half of `inspect`.

        Args:
            prepared: the image; with limits of `with_limits` it may be that of the inspector they were given to.

        Raises:
            FlawsmithError: the model cannot be computed, or it gives numbers that are not finite.
        """
        return self._inspect_prepared(prepared, None)

    def _inspect_prepared(self, prepared: PreparedImage, seen: tuple[float, NDArray[np.float32]] | None) -> Inspection:
        clock = _Clock(prepared.timing)
        name = prepared.image or "image"
        geometry, decision = self.spec.geometry, self.spec.decision
        try:
            score, anomaly_map, not_inspected, small_map = self._measured(prepared, clock, seen)
            cell = self.spec.cell(prepared.original_size)
            verdict, regions = decision.decide(score, anomaly_map, not_inspected, cell=cell)
        except FlawsmithError as error:
            raise FlawsmithError(f"{name}: {error}") from None
        clock.lap("decide")
        return Inspection(
            image=prepared.image,
            score=score,
            verdict=verdict,
            map_source=anomaly_map,
            regions=regions,
            not_inspected=not_inspected,
            timing=clock.timing,
            decision=decision,
            value_range=geometry.value_range,
            network_map=small_map,
            pixels=prepared.pixels,
            further_pictures=prepared.further_pictures,
            device=self.device,
        )


@dataclass
class _Waiting:
    """An image of a stream, and the thread's promise to make it ready.

    Attributes:
        path: of the image.
        pixels: that it keeps in memory until it is inspected.
        prepared: the promise; None until there is room for it.
    """

    path: str | Path
    pixels: int = 0
    prepared: Future[PreparedImage] | None = None


def _error_last(paths: Iterable[str | Path]) -> Iterator[str | Path | Exception]:
    """The paths, and where an error ends them, that error as the last item: it waits for its turn as they do."""
    try:
        yield from paths
    except Exception as error:
        yield error


class _Clock:
    """Milliseconds between laps; laps of one name add up."""

    def __init__(self, timing: dict[str, float] | None = None) -> None:
        self.timing = dict(timing or {})
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.timing[name] = self.timing.get(name, 0.0) + 1000.0 * (now - self._last)
        self._last = now


SELF_TEST_IMAGES = 2
"""Images that a model file holds for the test: each takes as many bytes as the network sees pixels, times three."""
_BOTH_MACHINES = 2.0
"""Either machine may differ from the trained model by the tolerance that the file states."""
_ROUNDING = 1e-4


def self_test_arrays(inspector: Inspector, images: Iterable[ImageArray]) -> dict[str, NDArray[Any]]:
    """What a model file has to hold for `self_test`: images at the size of the network's input, and their numbers.

    Args:
        inspector: the model, with the engine that its limits are made with.
        images: (height, width, 3) RGB, uint8 or uint16; the first few are taken.

    Returns:
        Arrays for `Bundle.calibration`: ``self_test_1``, ... (h, w, 3) uint8, and ``self_test`` (k, 2): score and
        mean of the map of each.
    """
    spec = inspector.spec
    arrays: dict[str, NDArray[Any]] = {}
    numbers: list[tuple[float, float]] = []
    for number, image in zip(range(1, SELF_TEST_IMAGES + 1), images, strict=False):
        tile = image if spec.tiling is None else spec.tiling.middle(image)
        pixels = spec.geometry.fit(tile)
        small = np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255), np.uint8)
        arrays[f"{SELF_TEST}_{number}"] = small
        numbers.append(_numbers(inspector, small))
    return {**arrays, SELF_TEST: np.array(numbers, np.float64)} if arrays else {}


def self_test(inspector: Inspector, bundle: Bundle) -> int:
    """Inspect the images that a model file holds for it, or a black one where it holds none, as older files do.

    Args:
        inspector: the model as it is going to work.
        bundle: its file.

    Returns:
        Number of images whose numbers were compared.

    Raises:
        FlawsmithError: a number differs from that of the machine that made the file by more than the file allows.
    """
    expected = bundle.calibration.get(SELF_TEST, np.zeros((0, 2)))
    if not len(expected):
        inspector.measure(np.zeros((*bundle.spec.geometry.size, 3), np.uint8))
    decision, parity = bundle.spec.decision, bundle.spec.parity
    limits = (decision.limit, "score"), (decision.map_limit, "map")
    for number, row in enumerate(expected, 1):
        values = _numbers(inspector, bundle.calibration[f"{SELF_TEST}_{number}"])
        for value, told, (limit, name) in zip(values, row.tolist(), limits, strict=True):
            size = max(abs(limit), float(np.finfo(np.float32).tiny))
            allowed = parity.get(f"{name}_allowed", _ROUNDING * size) * max(1.0, abs(told) / size) * _BOTH_MACHINES
            if not abs(value - told) <= allowed:
                raise FlawsmithError(
                    f"the model gives another {name} here than where it was made: {value:.6g}, not {told:.6g} (allowed "
                    f"is a difference of {allowed:.2g}); use the engine {bundle.spec.engine}, or export it anew"
                )
    return len(expected)


def _numbers(inspector: Inspector, image: NDArray[np.uint8]) -> tuple[float, float]:
    measured = inspector.measure(image)
    return measured.score, float(measured.map.mean())
