"""The steps of one training run, in order: features, stages, export, calibration, parity, and a baseline beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import flawsmith
from flawsmith.calibration.groups import group_figures
from flawsmith.data.doctor import glance
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.seeding import derived_seed, generator
from flawsmith.data.splits import HoldOut, content_hashes, hold_out
from flawsmith.export import Tolerance, check_parity, count_flops, count_parameters, export_model, non_square_copies
from flawsmith.features.backbones import Backbone, load_backbone, pixels_of
from flawsmith.features.cache import FeatureCache, GraphCache
from flawsmith.features.extract import CPU, extractor_key, graph_key, make_extractor
from flawsmith.metrics.collect import network_mask, resize_mask
from flawsmith.metrics.protocol import Protocol as EvaluationProtocol
from flawsmith.metrics.protocol import papers
from flawsmith.models.base import (
    LARGEST_FILE,
    AnomalyModel,
    AnomalyOutput,
    FeatureSource,
    ModelConfig,
    Stage,
    TrainingStage,
)
from flawsmith.models.components.level_table import Rows
from flawsmith.models.diagnostics import Diagnostic, MetricChart
from flawsmith.models.registry import find_method
from flawsmith.pipeline import held_out
from flawsmith.pipeline.calibrate import levels_behind
from flawsmith.pipeline.describe import model_card
from flawsmith.pipeline.masks import read_mask
from flawsmith.pipeline.presets import changed_conditions, changed_numbers
from flawsmith.pipeline.preview import IMAGES, LearningPreview
from flawsmith.pipeline.progress import COMPARING, EXPORTING, LEARNING, LIMIT, REPORTING, TRIMMING, Show, Steps
from flawsmith.pipeline.provenance import made_of, versions
from flawsmith.pipeline.settings import TrainSettings, baseline_settings
from flawsmith.report.data import Diagnostic as ReportDiagnostic
from flawsmith.report.plots import chart_of_metrics
from flawsmith.runtime.bundle import BackboneSpec, Bundle, BundleSpec, TrainingSummary
from flawsmith.runtime.decision import Decision, choose_limits
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import BASELINE_FOLDER, BASELINES, printable
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import ImageArray, as_8_bit, decode, image_size
from flawsmith.runtime.inspector import Inspector, self_test_arrays
from flawsmith.runtime.roi import RegionOfInterest, Zone
from flawsmith.runtime.tiles import Tile, Tiling, fit_tile, tiles_to_see
from flawsmith.synthesis.foreground import FOLDER as MASK_FOLDER
from flawsmith.synthesis.held_out import held_out_flaw, held_out_flaws
from flawsmith.synthesis.synthesizer import AnomalySample
from flawsmith.training.data import TrainingSet
from flawsmith.training.distributed import (
    broadcast_from_rank_zero,
    is_distributed,
    is_rank_zero,
    local_rank_zero_first,
)
from flawsmith.training.run import MODEL, REPORT, TRIM, RunFolder
from flawsmith.training.selection import HeldOutSelection, TestImage, TestSetSelection

LARGEST_STORE = 2**28
"""Bytes of decoded images that are in memory at a time; where there are more, the others are decoded for each use."""


class DecodedImages:
    """Decodes files, and keeps the images for whoever asks next, as far as there is room.

    A held-out image is scored, gets a synthetic flaw, proves the export and stands in the report, and a baseline does
    the same again. The first images stay: as all are asked for in turn, the last ones would be gone when they are.

    Args:
        most: bytes that are kept.
    """

    def __init__(self, most: int = LARGEST_STORE) -> None:
        self._images: dict[Path, ImageArray] = {}
        self._room = most

    def read(self, path: Path) -> ImageArray:
        """An image as :func:`flawsmith.runtime.image.decode` gives it, not to be written to.

        Raises:
            FlawsmithError: the file cannot be read.
        """
        if path in self._images:
            return self._images[path]
        image = decode(path)
        image.flags.writeable = False
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._images[path] = image
        return image


def synthetic_flaws(
    samples: Sequence[Sample],
    geometry: Geometry,
    seed: int,
    tiling: Tiling | None = None,
    read: Callable[[Path], ImageArray] = decode,
) -> Iterator[AnomalySample]:
    """One synthetic flaw on every image, of mixed recipes and strengths: a function of the images and the seed.

    Args:
        samples: held-out good images, in the order that numbers their flaws.
        geometry: declares the range of sources deeper than 8 bits.
        tiling: put the flaw on a tile, as large as those on training tiles; None: on the image.

    Returns:
        (height, width, 3) uint8 images, in the size of the file, and masks of that size.
    """
    good = (as_8_bit(read(sample.image), geometry.value_range) for sample in samples)
    return held_out_flaws(good, seed) if tiling is None else _flawed_on_a_tile(good, geometry, seed, tiling)


def _flawed_on_a_tile(
    images: Iterable[NDArray[np.uint8]], geometry: Geometry, seed: int, tiling: Tiling
) -> Iterator[AnomalySample]:
    previous = None
    for index, image in enumerate(images):
        tile = drawn_tile(image, geometry, tiling, seed, index)
        good = np.ascontiguousarray(tile.of(image))
        flaw = held_out_flaw(good, seed=seed, index=index, other=previous)
        flawed, mask = image.copy(), np.zeros(image.shape[:2], bool)
        tile.of(flawed)[:], tile.of(mask)[:] = flaw.image, flaw.mask
        previous = good
        yield dataclasses.replace(flaw, image=flawed, mask=mask, normal=image)


def drawn_tile(image: ImageArray, geometry: Geometry, tiling: Tiling, seed: int, index: int) -> Tile:
    """A tile that shows some of the region of interest: of a numbered image the same for the same seed."""
    size = (image.shape[0], image.shape[1])
    tiles = tiles_to_see(tiling, geometry, size) or tiling.tiles(size)
    return tiles[int(generator(seed, "tile of a flaw", index).integers(len(tiles)))]


def of_files(geometry: Geometry, settings: TrainSettings, region: RegionOfInterest | None) -> Geometry:
    """A method's geometry for the files of a run: with the range of their values, and what is to be seen of them."""
    return Geometry(**{**dict(geometry), "value_range": settings.source_range, "region": region})


def refuse_without_labels(dataset: Dataset) -> None:
    """An oracle needs good and flawed test images.

    Raises:
        FlawsmithError: it has none.
    """
    missing = [name for name, samples in (("good", dataset.test_good), ("flawed", dataset.test_flawed)) if not samples]
    if missing:
        raise FlawsmithError(
            f"--oracle needs labelled test images, and {dataset.root} has no {' and no '.join(missing)} ones: leave "
            "--oracle out, or put them into test/good and test/<defect>"
        )


def _test_images(dataset: Dataset, geometry: Geometry, protocol: EvaluationProtocol) -> list[TestImage]:
    """What an oracle has to know of the test images: labels and masks as the released code of a method has them."""
    known = []
    for sample in dataset.test:
        height, width = image_size(sample.image) or decode(sample.image).shape[:2]
        content = partial(geometry.valid_region, original_size=(height, width))
        mask, flawed = read_mask(sample) if sample.is_flawed else None, sample.is_flawed
        if mask is not None:
            fitting = mask if mask.shape == (height, width) else resize_mask(mask, (height, width))
            mask = network_mask(fitting, geometry, protocol.mask) >= 1
            flawed = bool(mask.any()) if protocol.image_label == "mask" else True
        known.append(TestImage(flawed, mask, content))
    return known


def remarks_on(bundle: Bundle, dataset: Dataset, split: HoldOut) -> tuple[str, ...]:
    """What to look at among the images behind the limit, in sentences; nothing where the model learned from them."""
    if split.calibrated_on_training:
        return ()
    names = [dataset.name_of(sample.image) for sample in split.calibration]
    return held_out.remarks(names, bundle.calibration["good"])


PARITY_FILES = 6
MOST_ODD = 12
"""Images least like the others that are named and shown."""
SYNTHETIC_FOR_CALIBRATION = 64
SYNTHETIC_FOR_SELECTION = 24
ODDNESS_FOLDS = 3
_BATCH = 8


@dataclass(frozen=True)
class Job:
    """What a run has to do, checked.

    Attributes:
        split: which images are learned from and which are held out.
        fingerprint: over the content of both.
        baseline: method of the baseline beside the model; None: no baseline.
        images: the kind that the images are of, such as ``grey, 8 bits``; empty where they differ.
        skipped: by name of each good image that was left out, what is wrong with it.
        region: what of the images is learned from and inspected; None: all of it.
        zones: parts of that which get limits of their own.
        tiling: how images are cut into tiles; None: each is seen as a whole.
        minimum_area: smallest region that counts, pixels.
        pixel_size: side of a pixel in millimetres; None: unknown.
        decoded: images that are not learned from, decoded once for the run, its folds and its baseline.
        device: where the loops run, and with the engine torch the backbone.
        reported: whether a report is written.
        dated: whether the report says when and of what it was made, so that its bytes differ from run to run.
        show: is given what the model sees as it learns.
    """

    dataset: Dataset
    split: HoldOut
    fingerprint: str
    settings: TrainSettings
    preset: str
    config: ModelConfig
    run: RunFolder
    workers: int | None
    baseline: str | None = None
    images: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    region: RegionOfInterest | None = None
    zones: tuple[Zone, ...] = ()
    tiling: Tiling | None = None
    minimum_area: int = 1
    pixel_size: float | None = None
    decoded: DecodedImages = field(default_factory=DecodedImages)
    device: torch.device = CPU
    reported: bool = True
    dated: bool = False
    show: Show | None = None
    progress: Steps = field(default_factory=lambda: Steps({LEARNING: 1.0}))


FEATURES_SHARE = 0.2
"""Of the time that learning takes, what features take before a loop, roughly."""
LOOPS_SHARE = 0.7
"""The same of the loops; memories and statistics follow."""
PASS = "computing what to compare images with"
"""What a single pass does, whatever it is called: a memory, statistics, a centre."""


class TrainingSteps:
    """The steps of one run, in order."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dataset, self.split, self.fingerprint = job.dataset, job.split, job.fingerprint
        self.settings, self.preset, self.config, self.run = job.settings, job.preset, job.config, job.run
        self.progress = job.progress
        self.timings: dict[str, float] = {}
        self.oddest: list[tuple[Sample, float]] = []
        self.trimmed: list[Sample] = []
        self.scored_with_flaws: tuple[Sample, ...] = ()
        self.scored: FileScores | None = None
        self.exported_as_logits = False

    def finish(self) -> Bundle:
        """Train, export, calibrate and prove; leave model file, report and record in the run folder."""
        if self.settings.trim is not None:
            self.split, self.trimmed = self._trimmed(self.settings.trim)
        model, geometry, data = self._trained()
        return broadcast_from_rank_zero(lambda: self._conclude(model, geometry, data))

    def _trimmed(self, share: float) -> tuple[HoldOut, list[Sample]]:
        """The split without the images to learn from that look least like the others, and those images."""
        self.progress.begin(TRIMMING)
        beside = self._beside(BASELINES[0], TRIM, self.progress.within({LEARNING: 1.0}))
        beside.run.path.mkdir(exist_ok=True)
        with self._timed("trim"):
            ranked = _by_unlikeness(*beside._trained()[::2])
        odd = [sample for sample, _ in ranked[: math.ceil(share * len(ranked))]]
        if len(odd) == len(ranked):
            raise FlawsmithError(f"--trim {share:g} leaves nothing to learn from: give more images")
        train = tuple(sample for sample in self.split.train if sample not in set(odd))
        words = f"{self.split.description}; {len(odd)} images least like the others not learned from"
        return dataclasses.replace(self.split, train=train, description=words), odd

    def _trained(self) -> tuple[AnomalyModel, Geometry, TrainingSet]:
        self.progress.begin(LEARNING)
        with self._timed("backbone"):
            backbone = local_rank_zero_first(self._backbone)
        model = find_method(self.settings.method)(self.config, backbone, self.settings.seed)
        geometry = of_files(model.geometry, self.settings, self.job.region)
        self._rehearse(model, geometry)
        return model, geometry, self._learn(model, backbone, geometry)

    def _rehearse(self, model: AnomalyModel, geometry: Geometry) -> None:
        """What a model file could never hold is known before the long work, not after it.

        Raises:
            FlawsmithError: weights beyond the size of a graph, or facts that cannot be written.
        """
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        if size > LARGEST_FILE:
            raise FlawsmithError(
                f"{model.name} on {model.backbone.info.architecture} makes a model file of {size / 1e9:.1f} GB, and "
                "1.9 GB are possible: choose a smaller --backbone, or smaller settings"
            )
        spec = self._spec(geometry, model, n_train=len(self.split.train))
        Bundle(spec, b"", {}, model_card(spec)).to_bytes()

    def _conclude(self, model: AnomalyModel, geometry: Geometry, data: TrainingSet) -> Bundle:
        from flawsmith.pipeline.reporting import held_out_images, training_report

        bundle = self._exported(model, geometry, data)
        bundle.save(self.run.path / MODEL)
        if self.scored is not None and self.scored.maps is not None:
            held_out.save_maps(self.run.path, bundle.model, self.scored.scores, self.scored.maps, self.scored.sizes)
        self.progress.begin(COMPARING)
        with self._timed("baseline"):
            baseline = self._baseline()
        self.progress.begin(REPORTING)
        with self._timed("report"):
            checks = [finding.in_a_line for finding in glance(self.dataset)]
            if self.settings.method in BASELINES:
                self.oddest = _by_unlikeness(model, data)
            remarks = (
                *remarks_on(bundle, self.dataset, self.split),
                *self._remarks_on_learned(),
                *self._remarks_on_scale(),
            )
            if self.job.reported:
                metrics = self.run.metrics()
                training_report(
                    self.run.path / REPORT,
                    bundle,
                    self.dataset,
                    self.split,
                    metrics,
                    drawn(model.diagnostics(data), metrics),
                    baseline,
                    (*remarks, *checks),
                    [(sample.image, score) for sample, score in self.oddest[:MOST_ODD]],
                    self._calibration_flaws(bundle.spec),
                    made_of(bundle, self.dataset) if self.job.dated else (),
                    read=self.job.decoded.read,
                )
        self.run.record(
            {
                "versions": versions(),
                "seed": self.settings.seed,
                "backbone": model.backbone.info.model_dump(mode="json"),
                "images_sha256": self.fingerprint,
                "hold_out": self.split.description,
                "skipped": [{"image": name, "fault": fault} for name, fault in self.job.skipped.items()],
                "held_out": [
                    {"image": self.dataset.name_of(path), "score": score}
                    for path, score in held_out_images(bundle, self.split)
                ],
                "least_like_others": [
                    {"image": self.dataset.name_of(sample.image), "score": score}
                    for sample, score in self.oddest[:MOST_ODD]
                ],
                "trimmed": [self.dataset.name_of(sample.image) for sample in self.trimmed],
                "remarks": list(remarks),
                "checks": checks,
                "stamps": bundle.spec.training.stamps,
                "model_sha256": hashlib.sha256(bundle.to_bytes()).hexdigest(),
                "seconds": self.timings,
            }
        )
        return bundle

    def _exported(self, model: AnomalyModel, geometry: Geometry, data: TrainingSet) -> Bundle:
        split, trimmed = self.split, list(self.trimmed)
        bundle = self._export_and_calibrate(model, geometry, n_train=len(data.samples))
        if bundle.spec.decision.rejects_nothing:
            # A good image has the probability 1 already; logits rank alike, and a limit on them has room above it.
            self.split, self.trimmed = split, trimmed
            self.config = model.config = self.config.model_copy(update={"scale": "logit"})
            self.job = dataclasses.replace(self.job, config=self.config)
            self.exported_as_logits = True
            bundle = self._export_and_calibrate(model, geometry, n_train=len(data.samples))
        return bundle

    def _export_and_calibrate(self, model: AnomalyModel, geometry: Geometry, *, n_train: int) -> Bundle:
        self.progress.begin(EXPORTING)
        with self._timed("export"):
            graph = export_model(model, self.config.image_size, self._graphs(model.backbone))
        self.progress.begin(LIMIT)
        with self._timed("calibration"):
            return self._calibrated(self._spec(geometry, model, n_train=n_train), graph, model)

    def _remarks_on_learned(self) -> tuple[str, ...]:
        """Which of the images learned from stand apart from the others."""
        number = held_out.odd_scores([score for _, score in self.oddest])
        if not number:
            return ()
        names = ", ".join(printable(self.dataset.name_of(sample.image)) for sample, _ in self.oddest[:number])
        return (
            f"least like the other images learned from: {names}; look at the pictures in the report, and remove what "
            "is flawed, or train with --trim 0.05",
        )

    def _remarks_on_scale(self) -> tuple[str, ...]:
        """Whether scores mean something else than the settings say."""
        if not self.exported_as_logits:
            return ()
        return (
            "scores are logits instead of probabilities: a good image has the probability 1 already, so that no limit "
            "could reject anything; both rank images alike",
        )

    def _baseline(self) -> Bundle | str | None:
        """A model of the same images that needs no training, in a folder inside the run's; or why there is none.

        It must not cost anyone a trained model: where it cannot be had, the report says so.
        """
        if self.job.baseline is None:
            return None
        try:
            return self._trained_baseline(self.job.baseline)
        except FlawsmithError as error:
            return f"the baseline {self.job.baseline} could not be trained: {error}"

    def _beside(self, name: str, folder: str, progress: Steps, **changes: Any) -> TrainingSteps:
        """The steps of a baseline on the same images, in a folder inside the run's."""
        settings, preset, config = baseline_settings(name, self.settings, self.config)
        run = RunFolder(self.run.path / folder, self.run.options)
        changes |= {"settings": settings, "preset": preset, "config": config, "run": run, "baseline": None}
        return TrainingSteps(dataclasses.replace(self.job, progress=progress, **changes))

    def _trained_baseline(self, name: str) -> Bundle:
        split = dataclasses.replace(self.job.split, train=self.split.train)
        within = self.progress.within({LEARNING: 5.0, EXPORTING: 3.0, LIMIT: 5.0})
        steps = self._beside(name, BASELINE_FOLDER, within, split=split)
        trained = steps._trained()
        bundle = steps._exported(*trained)
        steps.run.path.mkdir(exist_ok=True)
        bundle.save(steps.run.path / MODEL)
        self.oddest = _by_unlikeness(trained[0], trained[2])
        return bundle

    def _backbone(self) -> Backbone:
        assert self.settings.backbone is not None
        seed = derived_seed(0, "random backbone")
        return load_backbone(self.settings.backbone, strides=self.config.strides, seed=seed)

    def _graphs(self, backbone: Backbone, in_use: set[Path] | None = None) -> GraphCache:
        return GraphCache(graph_key(backbone, self.config.image_size), in_use=in_use)

    def _learn(self, model: AnomalyModel, backbone: Backbone, geometry: Geometry) -> TrainingSet:
        samples: tuple[Sample, ...] = self.split.train
        if self.settings.select == "best":
            second = hold_out(samples, derived_seed(self.settings.seed, "selection"))
            samples = second.train
            self.run.selection = self._selection(second.calibration, geometry, model)
        chosen = self.settings.engine, self.settings.precision, self.job.device
        cache = FeatureCache(extractor_key(backbone, geometry, *chosen))
        graphs = self._graphs(backbone, cache.in_use)
        extractor = make_extractor(backbone, self.config.image_size, *chosen, graphs=graphs)
        foregrounds = self.settings.foregrounds
        data = TrainingSet(
            samples,
            geometry,
            extractor,
            cache,
            seed=self.settings.seed,
            textures=self.settings.textures,
            foregrounds=None if foregrounds is None else Path(foregrounds),
            workers=self.job.workers,
            tiling=self.job.tiling,
            watch=lambda share: self.progress.at(FEATURES_SHARE * share, "extracting features"),
        )
        if self.settings.select == "oracle":
            tested = TrainingSet(self.dataset.test, geometry, extractor, cache, seed=self.settings.seed)
            if not self.config.frozen_backbone:
                tested = tested.with_backbone(pixels_of(backbone))
            rules = papers(self.settings.method, self.dataset.layout)
            labelled = _test_images(self.dataset, geometry, rules)
            self.run.selection = TestSetSelection(labelled, tested.features, lambda: model)
        if is_distributed() and self.config.frozen_backbone:  # once a machine instead of in every process
            with self._timed("features"):
                local_rank_zero_first(data.features)
        stages = model.stages(data)
        loops = sum(name.endswith("epochs") for name in type(self.config).model_fields)
        loop, preview = 0, self._preview(geometry, model)
        while stage := self._next(stages):
            done, loop = loop, loop + isinstance(stage, TrainingStage)
            inspects = isinstance(stage, TrainingStage) and stage.completes

            def watch(share: float, epoch: str, done: int = done, inspects: bool = inspects) -> None:
                self.progress.at(FEATURES_SHARE + LOOPS_SHARE * (done + share) / loops, epoch)
                if preview is not None and inspects:
                    preview.look(share, epoch)

            if not isinstance(stage, TrainingStage):
                self.progress.at(0.0, PASS)  # as long as several epochs with many images
            with self._timed(f"stage {stage.name}"):
                self.run.complete(model, stage, watch)
        self.run.save(model.eval())
        return data

    def _next(self, stages: Iterator[Stage]) -> Stage | None:
        """The next stage; what it takes to ask for it is the features that the method wants for it."""
        with self._timed("features"):
            return next(stages, None)

    def _selection(self, samples: tuple[Sample, ...], geometry: Geometry, model: AnomalyModel) -> HeldOutSelection:
        seed = derived_seed(self.settings.seed, "selection flaws") % 2**31
        good, synthetic = self._seen_by_network(samples[:SYNTHETIC_FOR_SELECTION], geometry, seed)
        return HeldOutSelection(good, synthetic, lambda: model)

    def _preview(self, geometry: Geometry, model: AnomalyModel) -> LearningPreview | None:
        """What shows the model as it learns; None: nobody looks, or there is no loop."""
        show, samples = self.job.show, self.split.calibration[:IMAGES]
        if show is None or not is_rank_zero() or not type(model).trains():
            return None
        seed = derived_seed(self.settings.seed, "calibration flaws") % 2**31
        good, synthetic = self._seen_by_network(samples, geometry, seed)
        names = [self.dataset.name_of(sample.image) for sample in samples]
        return LearningPreview(good, synthetic, names, lambda: model, geometry, show)

    def _seen_by_network(
        self, samples: tuple[Sample, ...], geometry: Geometry, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, 3, height, width) of good images, and of the same with synthetic flaws, as the network sees them."""
        tiling = self.job.tiling

        def seen(images: Iterable[ImageArray]) -> NDArray[np.float32]:
            """What the network sees of them, or of the tiles with the flaws."""
            if tiling is None:
                return np.stack([geometry.apply(image) for image in images])
            tiles = ((image, drawn_tile(image, geometry, tiling, seed, index)) for index, image in enumerate(images))
            return np.stack([geometry.normalise(fit_tile(image, tile, geometry)) for image, tile in tiles])

        read = self.job.decoded.read
        good = seen(read(sample.image) for sample in samples)
        return good, seen(flaw.image for flaw in synthetic_flaws(samples, geometry, seed, tiling, read))

    def _spec(self, geometry: Geometry, model: AnomalyModel, *, n_train: int) -> BundleSpec:
        info = model.backbone.info
        return BundleSpec(
            package_version=flawsmith.__version__,
            method=self.settings.method,
            preset=self.preset,
            config=self.config.model_dump(mode="json"),
            backbone=BackboneSpec(name=info.architecture, weights=info.origin, sha256=info.sha256, levels=info.strides),
            geometry=geometry,
            tiling=self.job.tiling,
            engine=self.settings.graph_engine,
            precision=self.settings.precision,
            decision=Decision(
                limit=0.0,
                map_limit=0.0,
                stated_false_reject_rate=1.0,
                n_good=0,
                region_of_interest=self.job.region,
                minimum_area=self.job.minimum_area,
                zones=self.job.zones,
                pixel_size=self.job.pixel_size,
            ),
            training=TrainingSummary(
                layout=self.dataset.layout,
                category=printable(self.dataset.category),
                n_train=n_train,
                n_calibration=len(self.split.calibration),
                images_sha256=self.fingerprint,
                selection=self.settings.select,
                textures=self._textures(),
                foreground=self._foreground(),
                findings=self._findings(model),
                deviations=(*self._changed_conditions, *self._changed_numbers()),
            ),
            seed=self.settings.seed,
        )

    @cached_property
    def _changed_conditions(self) -> tuple[str, ...]:
        return changed_conditions(self.settings, self.config, self.split, region=self.job.region is not None)

    def _changed_numbers(self) -> tuple[str, ...]:
        names = self.settings.method, self.preset
        return changed_numbers(*names, self.config, self.dataset.dataset, self.dataset.category)

    def _findings(self, model: AnomalyModel) -> dict[str, str | float]:
        findings: dict[str, str | float] = {"images": self.job.images} if self.job.images else {}
        if self.exported_as_logits:
            findings["scale"] = "logit, because a good image has the probability 1"
        return {**findings, **model.findings()}

    def _textures(self) -> str:
        """What flaws are synthesized from; a folder by its name alone, as a model holds no paths."""
        textures = self.settings.textures or "procedural"
        return "" if not self.config.synthesizes else Path(textures).absolute().name

    def _foreground(self) -> str:
        """Where flaws are synthesized; mask files by the name of their folder."""
        if not self.config.synthesizes:
            return ""
        if self.config.foreground_files:
            return f"files in {Path(self.settings.foregrounds or MASK_FOLDER).absolute().name}"
        foreground = getattr(self.config, "foreground", "none")
        return str(getattr(foreground, "mode", foreground))

    def _calibrated(self, spec: BundleSpec, graph: bytes, model: AnomalyModel) -> Bundle:
        """Limits from held-out files scored by the exported model itself, then the parity gate."""
        inspector, setting = Inspector.load(Bundle(spec, graph)), spec.decision
        files = [sample.image for sample in self.split.calibration]
        if self.split.folds:
            scored, synthetic = self._cross_fitted_scores()
        else:
            scored = score_files(inspector, files, self.job.decoded.read, lambda share: self.progress.at(share / 2))
            synthetic = self._synthetic_scores(inspector)
        left_out = 0
        if self.settings.trim is not None:
            left_out = min(math.ceil(self.settings.trim * len(files)), len(files) - 1)
            # Levels of different zones do not compare before their limits are known.
            by_level = setting.by_regions and not setting.zones
            order = np.argsort(scored.levels[:, 0] if by_level else scored.scores, kind="stable")
            kept = np.sort(order[: len(files) - left_out])
            calibration = tuple(self.split.calibration[place] for place in kept)
            self.trimmed += [sample for sample in self.split.calibration if sample not in set(calibration)]
            self.split = dataclasses.replace(self.split, calibration=calibration)
            files, scored = [files[place] for place in kept], scored.of(kept)
        self.scored = scored
        scores, levels = scored.scores, scored.levels
        maxima = levels.max(axis=1)
        exact = self.settings.precision == "float32" and model.continuous
        tolerance = (Tolerance.of_float32 if exact else Tolerance.relative)(scores, maxima, synthetic)
        decision = choose_limits(
            scores,
            levels,
            alpha=self.settings.alpha,
            review_alpha=self.settings.review_alpha,
            region_of_interest=setting.region_of_interest,
            minimum_area=setting.minimum_area,
            zones=setting.zones,
            pixel_size=setting.pixel_size,
            tolerance=tolerance.score,
            map_tolerance=tolerance.map,
            held_out=not self.split.calibrated_on_training,
            cross_fitted=len(self.split.folds) or None,
            trimmed=left_out,
            highest_score=model.highest_score,
        )
        groups, by = [sample.group for sample in self.split.calibration], self.dataset.grouped_by
        deciding = decision.level_of(levels) if decision.by_regions else scores
        figures = group_figures(deciding, groups, alpha=self.settings.alpha, by=by)
        used = {"engine": self.settings.graph_engine, "precision": self.settings.precision}
        decision = decision.model_copy(update={**used, "groups": figures})
        inspector.spec = spec.model_copy(update={"decision": decision})
        arrays = {**levels_behind(decision, scores, levels), "forged": synthetic, **self._images()}
        return proven(model, inspector, graph, files, tolerance, arrays, self.job.decoded.read)

    def _images(self) -> dict[str, NDArray[Any]]:
        """Hashes of the images that new limits must not rest on, and of those that these rest on; and their groups."""
        held_out = () if self.split.folds else self.split.calibration
        images = {"learned": self.split.train, "held_out": held_out, "test": self.dataset.test}
        arrays = {f"{name}_sha256": hash_table(samples) for name, samples in images.items() if samples}
        groups = [sample.group for sample in self.split.calibration]
        if any(groups):
            arrays["good_groups"] = np.unique(groups, return_inverse=True)[1].astype(np.int32)
        return arrays

    def _cross_fitted_scores(self) -> tuple[FileScores, NDArray[np.float64]]:
        """Scores of the images and of synthetic flaws, by models that did not learn from the images."""
        scored = []
        for number, fold in enumerate(self.split.folds, 1):
            run = RunFolder(self.run.path / "cross-fit" / str(number), self.run.options)
            run.path.mkdir(parents=True, exist_ok=True)
            of_all = len(self.split.folds)
            within = self.progress.within({LEARNING: 1.0}, (number - 1) / of_all, number / of_all)
            steps = TrainingSteps(
                dataclasses.replace(self.job, split=fold, run=run, baseline=None, show=None, progress=within)
            )
            model, geometry, _ = steps._trained()
            graph = export_model(model, self.config.image_size, self._graphs(model.backbone))
            inspector = Inspector.load(Bundle(steps._spec(geometry, model, n_train=len(fold.train)), graph))
            files = [sample.image for sample in fold.calibration]
            good = score_files(inspector, files, self.job.decoded.read)
            synthetic = steps._synthetic_scores(inspector, math.ceil(SYNTHETIC_FOR_CALIBRATION / len(self.split.folds)))
            scored.append((good, synthetic))
        return joined([good for good, _ in scored]), np.concatenate([synthetic for _, synthetic in scored])

    def _synthetic_scores(self, inspector: Inspector, most: int = SYNTHETIC_FOR_CALIBRATION) -> NDArray[np.float64]:
        self.scored_with_flaws = self.split.calibration[:most]
        flaws = self._calibration_flaws(inspector.spec)
        return np.array([inspector.measure(flaw.image).score for flaw in flaws], dtype=np.float64)

    def _calibration_flaws(self, spec: BundleSpec) -> Iterator[AnomalySample]:
        """The synthetic flaws whose scores the model file holds, drawn anew."""
        seed = derived_seed(self.settings.seed, "calibration flaws") % 2**31
        return synthetic_flaws(self.scored_with_flaws, spec.geometry, seed, spec.tiling, self.job.decoded.read)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[name] = round(self.timings.get(name, 0.0) + time.perf_counter() - start, 3)


def proven(
    model: AnomalyModel,
    inspector: Inspector,
    graph: bytes,
    files: Sequence[Path],
    tolerance: Tolerance,
    arrays: Mapping[str, NDArray[Any]],
    read: Callable[[Path], ImageArray] = decode,
) -> Bundle:
    """The bundle of a model whose exported graph gives what the model does, on files from disk.

    Args:
        inspector: of the graph, with the limits in its spec.
        files: good images behind the limits.
        arrays: of the calibration.

    Raises:
        FlawsmithError: they differ by more than the tolerance.
    """
    spec = inspector.spec
    with tempfile.TemporaryDirectory() as folder:
        proofs = [*files[:PARITY_FILES], *non_square_copies(files[0], Path(folder), spec.tiling, read)]
        parity = check_parity(model, inspector, proofs, tolerance, read)
    network = {"parameters": count_parameters(model), "flops": count_flops(model, model.config.image_size)}
    final = spec.model_copy(update={"parity": parity, "network": network})
    return Bundle(final, graph, {**arrays, **self_test_arrays(inspector, map(read, files))}, model_card(final))


@runtime_checkable
class Baseline(Protocol):
    """A model that is fitted to features in one pass: PatchCore or PaDiM."""

    def fit_features(self, features: FeatureSource) -> object: ...

    def from_levels(self, levels: Sequence[Tensor]) -> AnomalyOutput: ...


@torch.no_grad()
def unlikeness(baseline: Baseline, features: FeatureSource, groups: Sequence[str]) -> NDArray[np.float64]:
    """How unlike the others each image is: its score by the baseline, fitted to images of other folds.

    Args:
        baseline: fitted anew for each fold; it is left fitted to the last.
        features: of all images, in an order that says nothing of them.
        groups: of the images; those of one group stand in one fold, or its twins would hide an odd image. Images
            without one stand alone.

    Returns:
        (n,) image scores; all 0 where there are fewer images or groups than folds.
    """
    names = [name or f"image {number}" for number, name in enumerate(groups)]
    numbers = np.unique(names, return_inverse=True)[1].ravel()
    order = {number: place for place, number in enumerate(dict.fromkeys(numbers.tolist()))}
    scores = np.zeros(len(names))
    if len(order) < ODDNESS_FOLDS:
        return scores
    folds = np.array([order[number] % ODDNESS_FOLDS for number in numbers.tolist()])
    for fold in range(ODDNESS_FOLDS):
        inside = np.flatnonzero(folds == fold)
        baseline.fit_features(Rows(features, np.flatnonzero(folds != fold)))
        for start in range(0, len(inside), _BATCH):
            rows = inside[start : start + _BATCH]
            scores[rows] = baseline.from_levels(features.batch(rows)).score.double().numpy()
    return scores


def _by_unlikeness(model: AnomalyModel, data: TrainingSet) -> list[tuple[Sample, float]]:
    """The images learned from, those least like the others first, with their scores; the model is fitted anew."""
    assert isinstance(model, Baseline)
    samples = {sample.image: sample for sample in data.samples}
    of_rows = [samples[row.path] for row in data.rows]
    scores = unlikeness(model, data.features(), [sample.group or str(sample.image) for sample in of_rows])
    highest: dict[Sample, float] = {}  # of the tiles of an image
    for sample, score in zip(of_rows, scores.tolist(), strict=True):
        highest[sample] = max(score, highest.get(sample, score))
    return sorted(highest.items(), key=lambda pair: -pair[1])


def hash_table(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    """(k, 32) SHA-256 of the samples' image files, each content once, in sorted order."""
    digests = sorted(set(content_hashes([sample.image for sample in samples])))
    return np.array([list(bytes.fromhex(digest)) for digest in digests], np.uint8).reshape(-1, 32)


class FileScores(NamedTuple):
    """What an inspector says of good image files.

    Attributes:
        scores: (n,) image scores.
        levels: (n, zones + 1) levels of their maps under the inspector's setting, the last elsewhere.
        maps: (n, h, w) float32, as the network gave them; None where they are not kept.
        sizes: (n, 2) height and width of the images.
    """

    scores: NDArray[np.float64]
    levels: NDArray[np.float64]
    maps: NDArray[np.float32] | None
    sizes: NDArray[np.int64]

    def of(self, rows: NDArray[np.intp]) -> FileScores:
        """Those of some files."""
        maps = None if self.maps is None else self.maps[rows]
        return FileScores(self.scores[rows], self.levels[rows], maps, self.sizes[rows])


def score_files(
    inspector: Inspector,
    files: Sequence[Path],
    read: Callable[[Path], ImageArray] = decode,
    watch: Callable[[float], object] = lambda share: None,
) -> FileScores:
    """Image score and largest map values by zone, in original pixels, of every file; and the maps, if not too many."""
    height, width = inspector.spec.geometry.size
    keeps = 4 * height * width * len(files) <= held_out.LARGEST_MAPS
    scores, levels, maps, sizes = [], [], [], []
    for file in files:
        measured = inspector.measure(read(file))
        scores.append(measured.score)
        levels.append(inspector.spec.decision.zone_levels(measured.map, measured.not_inspected))
        sizes.append(measured.map.shape)
        if keeps and measured.network_map is not None:
            maps.append(measured.network_map)
        watch(len(scores) / len(files))
    return FileScores(
        np.array(scores, np.float64),
        np.array(levels, np.float64),
        np.stack(maps) if len(maps) == len(files) else None,
        np.array(sizes, np.int64),
    )


def joined(parts: Sequence[FileScores]) -> FileScores:
    """Those of several sets of files, one after the other."""
    maps = [part.maps for part in parts if part.maps is not None]
    whole = np.concatenate(maps) if len(maps) == len(parts) else None
    scores, levels, sizes = (
        np.concatenate([getattr(part, n) for part in parts]) for n in ("scores", "levels", "sizes")
    )
    return FileScores(scores, levels, whole, sizes)


def drawn(diagnostics: Iterable[Diagnostic], metrics: Sequence[Mapping[str, Any]]) -> list[ReportDiagnostic]:
    """The diagnostics of a method, its charts with the figures that they ask for, from rows of ``metrics.jsonl``."""
    return [
        chart_of_metrics(metrics, shown.metrics, title=shown.title, caption=shown.caption, y_label=shown.y_label)
        if isinstance(shown, MetricChart)
        else shown
        for shown in diagnostics
    ]
