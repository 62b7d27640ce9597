"""A model for other engines and precisions, and for programs that are not Python's: what ``flawsmith export`` does."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flawsmith.data.samples import Dataset
from flawsmith.data.seeding import generator
from flawsmith.metrics.what_if import aligned
from flawsmith.pipeline.calibrate import images_for_limits, limits_of
from flawsmith.pipeline.parity import allowed_in_float32, allowed_in_other_precision, room_for, vector_images
from flawsmith.pipeline.quantize import to_float16, to_int8, write_openvino
from flawsmith.runtime.bundle import GRAPHS, Bundle, EngineName, Precision, Variant
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import make_folder
from flawsmith.runtime.image import ImageArray, as_8_bit, decode
from flawsmith.runtime.inspector import Inspector

if TYPE_CHECKING:
    from flawsmith.synthesis.synthesizer import AnomalySample

Target = Literal["onnx", "openvino", "onnx-fp16", "onnx-int8", "openvino-int8"]

TARGETS: Mapping[Target, tuple[EngineName, Precision]] = {
    "onnx": ("onnxruntime", "float32"),
    "openvino": ("openvino", "float32"),
    "onnx-fp16": ("onnxruntime", "float16"),
    "onnx-int8": ("onnxruntime", "int8"),
    "openvino-int8": ("openvino", "int8"),
}
"""Engine and precision of each form."""

MAX_LOSS = 0.01
"""The largest loss of separation that passes where nothing else is said."""

DECISION, VECTORS, GUIDE = "decision.json", "test_vectors", "README.md"
FORMAT = "flawsmith decision"
FORMAT_VERSION = 1
"""Of ``decision.json``; a program refuses a larger one."""

_GATED = 64
"""Good images, and as many flaws, whose scores the gate compares."""
_FADINGS = 5
"""How often a flaw is faded by half, at most."""
_FAINT = 0.75
"""Share of the good images above whose scores a faded flaw still has to be: where those of real, small flaws lie, and
where a little noise changes the order."""
_VECTOR_FLAWS = 2
_RANGES = 64
"""Good images that set the ranges of 8 bits."""
_REPLICATES = 2000


@dataclass(frozen=True)
class Separation:
    """How well flaws and good images are told apart, before and after.

    Attributes:
        good: good images, and as many with a synthetic flaw.
        before: area under the ROC curve of the model as it was, of good images against flaws that are faded until it
            nearly takes them for good.
        after: of the exported one.
        interval: 95 % of the loss, by paired resampling of the images.
        caught_before: flaws, as they were before they were faded, above the limit in use.
        caught_after: the same above the new limit.
        milliseconds_before: median time of the network for one image, on this machine with one thread.
        milliseconds_after: of the exported one.
    """

    good: int
    before: float
    after: float
    interval: tuple[float, float]
    caught_before: int
    caught_after: int
    milliseconds_before: float
    milliseconds_after: float

    @property
    def loss(self) -> float:
        """How much smaller the area has become."""
        return self.before - self.after

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"AUROC of good images against faint synthetic flaws {self.after:.4f}, before {self.before:.4f}: a loss of "
            f"{self.loss:.4f} (95 %: {low:.4f} to {high:.4f})"
        )


@dataclass(frozen=True)
class ExportResult:
    """A model that was exported.

    Attributes:
        target: the form.
        engine: that computes it.
        precision: that it is computed in.
        path: the folder, or the model file that it went into.
        before: the limits in use.
        after: those of the exported model.
        parity: largest differences to the model as it was, and what is allowed on other machines.
        separation: what the gate measured; None where float32 is computed, which differs in the last digits alone.
        graph_bytes: of the graph.
        notes: what the user should know, one line each.
    """

    target: Target
    engine: EngineName
    precision: Precision
    path: Path
    before: Decision
    after: Decision
    parity: Mapping[str, float]
    separation: Separation | None
    graph_bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "target": self.target,
            "engine": self.engine,
            "precision": self.precision,
            "path": str(self.path),
            "before": self.before.model_dump(mode="json"),
            "after": {**self.after.model_dump(mode="json"), "limit_statement": self.after.describe()},
            "parity": dict(self.parity),
            "separation": None
            if self.separation is None
            else {**dataclasses.asdict(self.separation), "loss": self.separation.loss},
            "graph_bytes": self.graph_bytes,
            "notes": list(self.notes),
        }

    def as_table(self) -> str:
        """The model before and after, side by side."""
        rows: list[tuple[str, ...]] = [
            ("", "before", self.target),
            ("limit on the score", f"{self.before.limit:.6g}", f"{self.after.limit:.6g}"),
            ("limit on the map", f"{self.before.map_limit:.6g}", f"{self.after.map_limit:.6g}"),
        ]
        if self.separation is not None:
            gate = self.separation
            rows += [
                ("AUROC, faint synthetic flaws", f"{gate.before:.4f}", f"{gate.after:.4f}"),
                ("plain ones rejected", *(f"{n} of {gate.good}" for n in (gate.caught_before, gate.caught_after))),
                ("network here, one thread, ms", f"{gate.milliseconds_before:.1f}", f"{gate.milliseconds_after:.1f}"),
            ]
        return "\n".join(aligned(rows))


def export_bundle(
    model: str | Path | Bundle,
    to: str,
    *,
    out: str | Path | None = None,
    into: bool = False,
    images: str | Path | None = None,
    max_loss: float = MAX_LOSS,
    on_step: Callable[[], object] = lambda: None,
) -> ExportResult:
    """Make a model ready for another engine, another precision, or a program that is not Python's.

    ``onnx-fp16``, ``onnx-int8`` and ``openvino-int8`` compute the features in half precision or 8 bits, the rest in
    float32. They have to tell faint synthetic flaws from good images as well as before, up to ``max_loss``, and get
    limits of their own. The other forms compute what the model does, up to the last digits, and keep its limits.

    Args:
        model: a model file or a loaded bundle.
        to: the form, one of `TARGETS`.
        out: a folder for the graph, ``decision.json``, test vectors and a README; by default ``<model>-<form>`` beside
            the model file. A former export there is replaced.
        into: add the form to the model file itself, in place of a folder.
        images: good images that the model did not learn from; in the folder of the training those are taken that set
            its limits. Another precision needs them.
        max_loss: largest loss of separation, in area under the ROC curve.
        on_step: called after each image.

    Raises:
        FlawsmithError: for a model, images or a folder that cannot be used, a package that is missing, and a loss that
            is too large, with the figures.
    """
    target = _target(to)
    bundle = model if isinstance(model, Bundle) else Bundle.load(model)
    engine, precision = TARGETS[target]
    place = _check_places(bundle, target, out, into=into)
    if not 0 <= max_loss < 1:
        raise FlawsmithError(f"--max-loss {max_loss:g} is not possible: write a number from 0 to 1, such as 0.01")
    changed = precision != bundle.spec.precision
    if changed and images is None:
        raise FlawsmithError(
            f"--to {target} needs good images that the model did not learn from, for its limits: give their folder, or "
            "that of the training, with --images"
        )
    if bundle.spec.device != "cpu":
        raise FlawsmithError(
            f"the limits of this model are those of the device {bundle.spec.device}: export one with limits of a CPU"
        )
    dataset = None if images is None else images_for_limits(bundle, Path(images))
    files = [] if dataset is None else [sample.image for sample in dataset.samples]
    graph = _graph(bundle, precision, files)
    update = {"engine": engine, "precision": precision, "variants": ()}
    variant = dataclasses.replace(bundle, model=graph, spec=bundle.spec.model_copy(update=update), graphs={})
    separation: Separation | None = None
    flaws: list[ImageArray] = []
    if changed and dataset is not None:
        variant, separation, flaws = _with_own_limits(bundle, variant, dataset, on_step)
        if separation.loss > max_loss:
            raise FlawsmithError(
                f"--to {target} tells flaws from good images worse: {separation}, {max_loss:g} is allowed; use another "
                "form, or allow more with --max-loss"
            )
    else:
        limits = bundle.spec.decision.model_copy(update={"engine": engine, "precision": precision})
        variant = _with_limits(variant, limits, allowed_in_float32(bundle))
        if files:
            with contextlib.suppress(FlawsmithError):  # without the packages that synthesize, good images have to do
                made = _flaws(files[:_VECTOR_FLAWS], bundle.spec.geometry.value_range)
                flaws = [flaw.image for flaw in made]
    inspector, vectors = _inspector(variant), vector_images(bundle, files, flaws)
    differences = _differences(_inspector(bundle), inspector, vectors, variant.spec.parity, gated=not changed)
    parity = {**variant.spec.parity, **differences}
    if into:
        assert bundle.path is not None, "checked before"
        if Bundle.load(place).to_bytes() != bundle.to_bytes():
            raise FlawsmithError(f"{place} was changed since it was loaded: give the same command again")
        record = Variant(engine=engine, precision=precision, decision=variant.spec.decision, parity=parity)
        bundle.with_variant(record, graph if precision in GRAPHS else None).save(place)
    else:
        _write_folder(place, target, variant, inspector, vectors, parity)
    slower = separation is not None and separation.milliseconds_after >= separation.milliseconds_before
    return ExportResult(
        target=target,
        engine=engine,
        precision=precision,
        path=place,
        before=bundle.spec.decision,
        after=variant.spec.decision,
        parity=parity,
        separation=separation,
        graph_bytes=len(graph),
        notes=(f"{target} is not faster on this machine; measure it on the one that inspects",) if slower else (),
    )


def _with_own_limits(
    bundle: Bundle, variant: Bundle, dataset: Dataset, on_step: Callable[[], object]
) -> tuple[Bundle, Separation, list[ImageArray]]:
    """A model in another precision with limits from good images, how well it separates, and some flaws that it saw."""
    decision, scores = limits_of(variant, dataset, on_step)
    decision, parity = _with_tolerance(decision, allowed_in_float32(bundle), allowed_in_other_precision(scores))
    variant = _with_limits(variant, decision, parity)
    files = [sample.image for sample in dataset.samples[:_GATED]]
    shown: list[ImageArray] = []

    def flaws() -> Iterator[AnomalySample]:
        for flaw in _flaws(files, bundle.spec.geometry.value_range):
            if len(shown) < _VECTOR_FLAWS:
                shown.append(flaw.image)
            yield flaw

    return variant, _separation(_inspector(bundle), _inspector(variant), files, flaws(), on_step), shown


def _with_limits(bundle: Bundle, decision: Decision, parity: Mapping[str, float]) -> Bundle:
    spec = bundle.spec.model_copy(update={"decision": decision, "parity": dict(parity)})
    return dataclasses.replace(bundle, spec=spec)


def _target(name: str) -> Target:
    for target in TARGETS:
        if target == name:
            return target
    raise FlawsmithError(f"--to {name} is not possible: give {', '.join(get_args(Target))}")


def _check_places(bundle: Bundle, target: Target, out: str | Path | None, *, into: bool) -> Path:
    """The folder to write.

    Raises:
        FlawsmithError: it holds something else than a former export, or there is no file to write into.
    """
    if into:
        if out is not None:
            raise FlawsmithError(f"--into writes into the model file, --out {out} beside it: give one of them")
        if bundle.path is None:
            raise FlawsmithError("a bundle that is no file takes no engine more: save it, and give its path")
        if TARGETS[target] == (bundle.spec.engine, bundle.spec.precision):
            raise FlawsmithError(f"{bundle.path}: its limits are those of {target} already; leave --into out")
        return bundle.path
    if out is None and bundle.path is None:
        raise FlawsmithError("a bundle that is no file has no folder beside it: give out")
    folder = (
        Path(out)
        if out is not None
        else (bundle.path or Path()).with_suffix("").with_name(f"{(bundle.path or Path()).stem}-{target}")
    )
    if folder.is_file():
        raise FlawsmithError(f"{folder} is a file: give another folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not _is_export(folder):
        raise FlawsmithError(f"{folder} holds other files: give another folder with --out")
    return folder


def _is_export(folder: Path) -> bool:
    """Whether a folder holds a former export and nothing else."""
    try:
        former = json.loads((folder / DECISION).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False
    names = {DECISION, GUIDE, VECTORS, "model.onnx", "model.xml", "model.bin"}
    return former and {entry.name for entry in folder.iterdir()} <= names


def _graph(bundle: Bundle, precision: Precision, files: Sequence[Path]) -> bytes:
    if precision == "float16":
        return to_float16(bundle.model)
    if precision == "int8":
        geometry, tiling = bundle.spec.geometry, bundle.spec.tiling
        inputs = []
        for file in files[:_RANGES]:
            image = decode(file)
            inputs.append(geometry.apply(image if tiling is None else tiling.middle(image))[None])
        return to_int8(bundle.model, inputs)
    return bundle.model


def _inspector(bundle: Bundle) -> Inspector:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Inspector.load(bundle, threads=1)  # two of them take turns, and would wait for each other's threads


def _with_tolerance(decision: Decision, parity: Mapping[str, float], room: float) -> tuple[Decision, dict[str, float]]:
    """Limits with room for what other machines may differ by in another precision, and that room.

    `limits_of` has allowed for what float32 may differ by.
    """
    allowed = {name: value if name == "size" else max(value, room) for name, value in parity.items()}
    more_score, more_map = (allowed[name] - parity[name] for name in ("score_allowed", "map_allowed"))
    deciding = more_map if decision.by_regions else more_score
    review = None if decision.review_limit is None else decision.review_limit + deciding
    update = {"limit": decision.limit + more_score, "map_limit": decision.map_limit + more_map, "review_limit": review}
    return decision.model_copy(update=update), allowed


def _flaws(files: Sequence[Path], value_range: tuple[float, float] | None) -> Iterator[AnomalySample]:
    """The images with a synthetic flaw each, always the same, one after the other: they may be large."""
    try:
        from flawsmith.synthesis.held_out import held_out_flaws
    except ModuleNotFoundError as error:
        raise FlawsmithError(
            f"flaws to test another precision with need {error.name}, which is not installed; pip install "
            "'flawsmith[int8]'"
        ) from None
    images = (as_8_bit(decode(file), value_range) for file in files)
    yield from held_out_flaws(images, 0)


def _faded(flaw: AnomalySample, model: Inspector, level: float) -> ImageArray:
    """The faintest form of a flaw, of those of half the strength each, that a model still scores above a level."""
    normal, difference = flaw.normal.astype(np.float32), flaw.image.astype(np.float32) - flaw.normal
    faintest: ImageArray = flaw.image
    for halvings in range(1, _FADINGS + 1):
        fainter = np.rint(normal + difference / 2**halvings).astype(np.uint8)
        if not model.measure(fainter).score > level:
            break
        faintest = fainter
    return faintest


def _separation(
    before: Inspector,
    after: Inspector,
    files: Sequence[Path],
    flaws: Iterable[AnomalySample],
    on_step: Callable[[], object],
) -> Separation:
    value_range = before.spec.geometry.value_range
    scores: dict[str, list[float]] = {"before": [], "after": []}
    caught: Counter[str] = Counter()
    times: dict[str, list[float]] = {"before": [], "after": []}

    def measure(pixels: ImageArray) -> None:
        for name, inspector in (("before", before), ("after", after)):
            inspection = inspector.inspect(pixels)
            times[name].append(inspection.timing["infer"])
            scores[name].append(inspection.score)
        on_step()

    for file in files:
        measure(as_8_bit(decode(file), value_range))
    level = float(np.quantile(scores["before"], _FAINT))
    for flaw in flaws:
        measure(_faded(flaw, before, level))
        for name, inspector in (("before", before), ("after", after)):
            caught[name] += inspector.inspect(flaw.image).verdict == "reject"
    wins = [_wins(np.array(values[: len(files)]), np.array(values[len(files) :])) for values in scores.values()]
    low, high = _interval(wins[0] - wins[1])
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    return Separation(
        good=len(files),
        before=float(wins[0].mean()),
        after=float(wins[1].mean()),
        interval=(low, high),
        caught_before=caught["before"],
        caught_after=caught["after"],
        milliseconds_before=medians["before"],
        milliseconds_after=medians["after"],
    )


def _wins(good: NDArray[np.float64], flawed: NDArray[np.float64]) -> NDArray[np.float64]:
    """(good, flawed): 1 where the flaw has the higher score, a half where the scores are equal; the mean is AUROC."""
    higher = (flawed[None] > good[:, None]).astype(np.float64)
    return higher + 0.5 * (flawed[None] == good[:, None])


def _interval(losses: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the mean of a table of pairs whose rows and columns are drawn anew, an image as often in both models."""
    rng = generator(0, "separation of an export")
    rows, columns = (rng.multinomial(size, np.full(size, 1 / size), size=_REPLICATES) / size for size in losses.shape)
    low, high = np.quantile(np.einsum("ri,ij,rj->r", rows, losses, columns), [0.025, 0.975])
    return float(low), float(high)


def _differences(
    before: Inspector, after: Inspector, images: Sequence[ImageArray], allowed: Mapping[str, float], *, gated: bool
) -> dict[str, float]:
    """Largest differences of score and map.

    Raises:
        FlawsmithError: ``gated``, and they exceed what is allowed.
    """
    worst_score = worst_map = 0.0
    for image in images:
        first, second = before.measure(image), after.measure(image)
        by_score, by_map = abs(first.score - second.score), float(np.abs(first.map - second.map).max())
        score_allowed, map_allowed = room_for(allowed, first.score, first.map)
        if gated and not (by_score <= score_allowed and by_map <= map_allowed):
            raise FlawsmithError(
                f"{after.engine.name} differs from {before.engine.name}: score by {by_score:.2g} (allowed "
                f"{score_allowed:.2g}), map by {by_map:.2g} (allowed {map_allowed:.2g}); nothing was exported"
            )
        worst_score, worst_map = max(worst_score, by_score), max(worst_map, by_map)
    return {"score": worst_score, "map": worst_map, "images": float(len(images))}


def _write_folder(
    folder: Path,
    target: Target,
    variant: Bundle,
    inspector: Inspector,
    images: Sequence[ImageArray],
    parity: Mapping[str, float],
) -> None:
    """Write the export beside its place, then put it there: a folder is whole or as it was."""
    make_folder(folder.absolute().parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as place:
            made = Path(place) / "export"
            made.mkdir()
            if TARGETS[target][0] == "openvino":
                write_openvino(variant.model, made)
                graph, weights = "model.xml", "model.bin"
            else:
                (made / "model.onnx").write_bytes(variant.model)
                graph, weights = "model.onnx", ""
            facts = decision_facts(variant, graph, weights, parity)
            facts["graph"]["sha256"] = {
                name: hashlib.sha256((made / name).read_bytes()).hexdigest() for name in filter(None, (graph, weights))
            }
            facts["test_vectors"] = _write_vectors(made / VECTORS, inspector, images)
            text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            (made / DECISION).write_text(text, encoding="utf-8")
            (made / GUIDE).write_text(_guide(target, facts), encoding="utf-8")
            if folder.is_dir():
                folder.rename(Path(place) / "former")
            made.rename(folder)
    except OSError as error:
        raise FlawsmithError(f"{folder} cannot be written ({error.strerror}): give another folder with --out") from None


def _write_vectors(folder: Path, inspector: Inspector, images: Sequence[ImageArray]) -> list[dict[str, Any]]:
    """Write images, what the network gets of them and what it says; say what has to come out."""
    folder.mkdir()
    vectors = []
    for number, image in enumerate(images):
        inspection = inspector.inspect(image)
        assert inspection.network_map is not None, "an image of one tile"
        Image.fromarray(image).save(folder / f"{number}.png")
        tensors = {"input": inspector.spec.geometry.apply(image), "map": inspection.network_map}
        for name, tensor in tensors.items():
            (folder / f"{number}.{name}.f32").write_bytes(np.ascontiguousarray(tensor, "<f4").tobytes())
        vectors.append(
            {
                "image": f"{VECTORS}/{number}.png",
                "input": f"{VECTORS}/{number}.input.f32",
                "map": f"{VECTORS}/{number}.map.f32",
                "score": inspection.score,
                "verdict": inspection.verdict,
            }
        )
    return vectors


_FILTERS = {"bilinear": "triangle, support 1", "bicubic": "cubic with a = -0.5, support 2", "lanczos": "support 3"}
_RESIZE = (
    "Per axis, columns first, then rows of the rounded result. scale = original / resized; s = max(scale, 1). Output "
    "pixel i has its centre at c = (i + 0.5) * scale. Input pixels from int(c - support * s + 0.5), at least 0, to "
    "int(c + support * s + 0.5), at most the original length and not included, have the weights f((x + 0.5 - c) / s), "
    "divided by their sum. For 8-bit images each weight w becomes the integer int(w * 2^22 + 0.5), or "
    "int(w * 2^22 - 0.5) where w < 0; a pixel is (sum of weight * value + 2^21) >> 22, cut to 0..255. This is what "
    "Pillow does, bit for bit."
)
_POLICY = {
    "squash": "Both sides are resized to size.",
    "crop": "The shorter side is resized to `resize` (or to the longer side of size where that is null), the other one "
    "to int(resize * length / shorter); then size is cut out, beginning at round((resized - size) / 2), half to even.",
    "letterbox": "scale = min(size / original); each side is resized to round(original * scale), half to even, at "
    "least 1 and at most its size; it is centred, (size - resized) / 2 rounded down before it; the rest of the input "
    "is 0 after normalising.",
}


def decision_facts(variant: Bundle, graph: str, weights: str, parity: Mapping[str, float]) -> dict[str, Any]:
    """What a program in any language needs to know to decide as Flawsmith does: the content of ``decision.json``."""
    spec = variant.spec
    geometry, decision = spec.geometry, spec.decision
    height, width = geometry.size
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "product": spec.training.category,
        "method": spec.method,
        "stamps": spec.training.stamps,
        "graph": {
            "file": graph,
            **({"weights": weights} if weights else {}),
            "engine": spec.engine,
            "precision": spec.precision,
            "input": {"name": "image", "type": "float32", "shape": ["batch", 3, height, width], "channels": "RGB"},
            "outputs": {
                "map": {"type": "float32", "shape": ["batch", height, width]},
                "score": {"type": "float32", "shape": ["batch"]},
            },
        },
        "geometry": {
            **geometry.model_dump(mode="json", exclude={"region"}),
            "policy_in_words": _POLICY[geometry.policy],
            "resize_in_words": f"{geometry.interpolation}: {_FILTERS[geometry.interpolation]}. {_RESIZE}",
            "values_in_words": "8 bits: value / 255. Deeper: (value - low) / (high - low) of value_range, or of 0 and "
            "65535 where it is null, cut to 0..1 and before resizing, which is done in float32. Then (value - mean) / "
            "std for each channel.",
            "region": None if geometry.region is None else geometry.region.model_dump(mode="json"),
            "region_in_words": "What lies outside is painted grey, half way of the value range, before resizing; null: "
            "nothing is. Corners are shares of width and height.",
        },
        "tiling": None if spec.tiling is None else spec.tiling.model_dump(mode="json"),
        "decision": {
            "decides": "map" if decision.by_regions else "score",
            "limit": decision.limit,
            "review_limit": decision.review_limit,
            "map_limit": decision.map_limit,
            "minimum_area": decision.minimum_area,
            "region_of_interest": None
            if decision.region_of_interest is None
            else decision.region_of_interest.model_dump(mode="json"),
            "zones": [zone.model_dump(mode="json") for zone in decision.zones],
            "zone_limits": decision.zone_limits,
            "in_words": "score: above limit is a reject, above review_limit (where not null) a review, else a pass. "
            "map: the map is brought to the pixels of the image, bilinearly; a connected region (8 neighbours) above "
            "map_limit, or the limit of its zone, inside the region of interest and of minimum_area pixels or more is "
            "a reject; likewise above review_limit a review.",
            "n_good": decision.n_good,
            "false_reject_rate": decision.stated_false_reject_rate,
            "worst_false_reject_rate": decision.worst_false_reject_rate,
            "promise": decision.describe(),
        },
        "tolerance": {
            "score": parity["score_allowed"],
            "map": parity["map_allowed"],
            "in_words": "By how much another machine may differ, at most; it is part of the limits. A score or map "
            "that exceeds reference_size k times may differ k times as much.",
            "reference_size": parity["size"],
        },
    }


def _guide(target: Target, facts: Mapping[str, Any]) -> str:
    graph, decision = facts["graph"], facts["decision"]
    height, width = facts["geometry"]["size"]
    review = "" if decision["review_limit"] is None else f", above {decision['review_limit']:.6g} a review"
    rule = (
        f"a score above {decision['limit']:.6g} is a reject{review}"
        if decision["decides"] == "score"
        else "the regions of the map decide: `decision.in_words` says how"
    )
    return f"""# {facts["product"]}: {target}

1. Decode an image to RGB, 8 bits, as it stands in the file: no colour management, orientation applied.
2. Resize it to {width} × {height} and normalise it, as `geometry` of `{DECISION}` says in words. The resize is
   antialiased; another one gives other scores.
3. Run `{graph["file"]}` with {graph["engine"]}, {graph["precision"]}: the input is `image` (1, 3, {height}, {width}),
   the outputs are `map` and `score`.
4. Decide: {rule}.

`{VECTORS}/` has images, and as raw little-endian float32 the input of the network and its map; `{DECISION}` has the
score and the verdict that have to come out, up to `tolerance`. A program that reproduces them decides as Flawsmith
does. `examples/` of Flawsmith has one in C++, one in C# and one for the browser.

{decision["promise"]}
"""
