"""A training run from end to end: from a folder of good images to a model file that inspects."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import flawsmith
from flawsmith.data.layouts import load
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.seeding import derived_seed
from flawsmith.data.splits import HoldOut, calibration_split, content_hashes, hold_out, refuse_leaks
from flawsmith.export.onnx import export_detector
from flawsmith.export.parity import Tolerance, check_parity, non_square_copies
from flawsmith.features.backbones import Backbone, load_backbone
from flawsmith.features.cache import FeatureCache
from flawsmith.features.extract import extractor_key, make_extractor
from flawsmith.methods.base import Detector, Method, MethodConfig
from flawsmith.methods.registry import find_method
from flawsmith.pipeline.card import model_card
from flawsmith.pipeline.forged import forged_images
from flawsmith.pipeline.oracle import oracle, refuse_without_labels
from flawsmith.pipeline.provenance import versions
from flawsmith.pipeline.settings import TrainSettings, check_settings, method_config
from flawsmith.runtime.bundle import BackboneSpec, Bundle, BundleSpec, TrainingSummary
from flawsmith.runtime.decision import Decision, calibrate
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector
from flawsmith.synthesis.foreground import Foreground, provider
from flawsmith.synthesis.textures import texture_source
from flawsmith.training import processes
from flawsmith.training.data import ForgingOptions, GoodImages
from flawsmith.training.engine import LoopOptions, check_options
from flawsmith.training.run import MODEL, REPORT, RunFolder
from flawsmith.training.selection import Selection

PARITY_FILES = 6
FORGED_FOR_CALIBRATION = 64
FORGED_FOR_SELECTION = 24


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        folder: the run folder.
        model: the model file.
        report: the report.
        bundle: the model file's content.
    """

    folder: Path
    model: Path
    report: Path
    bundle: Bundle


def train(
    data: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    strategy: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
    **settings: Any,
) -> TrainResult:
    """Learn what a good part looks like, and write a model file.

    Args:
        data: a category folder of a known layout, or a folder of good images.
        out: the run folder; ``runs/<category>`` by default.
        resume: continue a run that was interrupted; it ends with the same bytes as an uninterrupted one.
        accelerator, devices, strategy: Lightning's own options. With several devices the program runs once more for
            each, and all its processes get the same result (docs/training.md).
        workers: processes that forge flaws; the result does not depend on it. By default two, or one a core.
        quiet: show no progress.
        **settings: fields of :class:`flawsmith.pipeline.settings.TrainSettings`, such as ``method``, ``preset``,
            ``backbone``, ``seed``, ``set`` (a dictionary of method settings) or ``alpha``.

    Raises:
        FlawsmithError: for data or settings that cannot be used, saying how to mend them.
    """
    checked = check_settings(settings)
    preset, config = method_config(checked)
    checked = checked.model_copy(update={"backbone": checked.backbone or config.default_backbone})
    dataset = load(data, checked.layout)
    split = calibration_split(dataset, checked.seed).learning_from(checked.fraction)
    _check_sources(checked, config)
    if checked.select == "oracle":
        refuse_without_labels(dataset)
    refuse_leaks((*split.train, *split.calibration), dataset.test)
    options = LoopOptions(
        precision=config.precision, accelerator=accelerator, devices=devices, strategy=strategy, quiet=quiet
    )
    trainer = check_options(options)
    run = RunFolder(Path(out) if out else Path("runs") / dataset.category, options)
    fingerprint = _images_sha256(split)
    if processes.first():
        run.claim(
            run.path,
            {
                "data": {"dataset": dataset.dataset, "category": dataset.category, "images_sha256": fingerprint},
                **checked.model_dump(mode="json"),
                "preset": preset,
                "config": config.model_dump(mode="json"),
            },
            resume=resume,
        )
    with processes.joined(trainer):
        return _Training(dataset, split, fingerprint, checked, preset, config, run, workers).finish()


def _check_sources(settings: TrainSettings, config: MethodConfig) -> None:
    """Textures and masks that are not there, or that nothing would use, are found before the run folder is claimed.

    Raises:
        FlawsmithError: naming the folder or the option.
    """
    for option, given in (("--textures", settings.textures), ("--foregrounds", settings.foregrounds)):
        if given is not None and not config.forges:
            raise FlawsmithError(
                f"{option} {given}: {settings.method} forges no flaws with these settings: leave the option out, or "
                "choose a method that does with --method glass, aand or slsg"
            )
    if settings.textures not in (None, "self"):
        texture_source(settings.textures)
    if settings.foregrounds is not None:
        if not config.foreground_files:
            raise FlawsmithError(
                f"--foregrounds {settings.foregrounds} would not be used: add --set foreground=files, or leave it out"
            )
        provider(Foreground(mode="files"), Path(settings.foregrounds))


class _Training:
    """The steps of one run, in order."""

    def __init__(
        self,
        dataset: Dataset,
        split: HoldOut,
        fingerprint: str,
        settings: TrainSettings,
        preset: str,
        config: MethodConfig,
        run: RunFolder,
        workers: int | None,
    ) -> None:
        self.dataset, self.split, self.fingerprint = dataset, split, fingerprint
        self.settings, self.preset, self.config, self.run = settings, preset, config, run
        self.forging = ForgingOptions(
            textures=settings.textures,
            foregrounds=None if settings.foregrounds is None else Path(settings.foregrounds),
            workers=workers,
        )
        self.timings: dict[str, float] = {}

    def finish(self) -> TrainResult:
        with self._timed("backbone"):
            backbone = processes.in_turn(self._backbone)
        geometry = self._geometry(backbone)
        method = find_method(self.settings.method)(self.config, backbone, self.settings.seed)
        data = self._learn(method, backbone, geometry)
        bundle = processes.once(lambda: self._conclude(method, backbone, geometry, data))
        return TrainResult(self.run.path, self.run.path / MODEL, self.run.path / REPORT, bundle)

    def _conclude(self, method: Method, backbone: Backbone, geometry: Geometry, data: GoodImages) -> Bundle:
        from flawsmith.pipeline.diagnostics import drawn
        from flawsmith.pipeline.reporting import training_report

        with self._timed("export"):
            detector = method.network()
            model = export_detector(detector, self.config.image_size)
        with self._timed("calibration"):
            bundle = self._calibrated(self._spec(backbone, geometry, method, n_train=len(data)), model, detector)
        bundle.save(self.run.path / MODEL)
        with self._timed("report"):
            metrics = self.run.metrics()
            shown = drawn(method.diagnostics(data), metrics)
            training_report(self.run.path / REPORT, bundle, self.dataset, self.split, metrics, shown)
        self.run.record(
            {
                "versions": versions(),
                "seed": self.settings.seed,
                "backbone": backbone.info.model_dump(mode="json"),
                "images_sha256": self.fingerprint,
                "hold_out": self.split.description,
                "stamps": bundle.spec.training.stamps,
                "model_sha256": hashlib.sha256(bundle.to_bytes()).hexdigest(),
                "seconds": self.timings,
            }
        )
        return bundle

    def _backbone(self) -> Backbone:
        assert self.settings.backbone is not None
        seed = derived_seed(0, "random backbone")
        return load_backbone(self.settings.backbone, strides=self.config.strides, seed=seed)

    def _geometry(self, backbone: Backbone) -> Geometry:
        return Geometry(
            policy=self.config.policy,
            size=self.config.image_size,
            resize=self.config.resize,
            interpolation=self.config.interpolation,
            mean=backbone.info.mean,
            std=backbone.info.std,
            value_range=None if self.settings.bits is None else Geometry.range_of_bits(self.settings.bits),
        )

    def _learn(self, method: Method, backbone: Backbone, geometry: Geometry) -> GoodImages:
        samples: tuple[Sample, ...] = self.split.train
        if self.settings.select == "best":
            second = hold_out(samples, derived_seed(self.settings.seed, "selection"))
            samples = second.train
            self.run.selection = self._selection(second.calibration, geometry, method)
        elif self.settings.select == "oracle":
            self.run.selection = oracle(self.dataset, geometry, method.network)
        engine, precision = self.settings.engine, self.settings.precision
        for sample in self.split.calibration:
            decode(sample.image)  # a damaged file is found before the long work, not after it
        extractor = make_extractor(backbone, self.config.image_size, engine, precision)
        cache = FeatureCache(extractor_key(backbone, geometry, engine, precision))
        data = GoodImages(samples, geometry, extractor, cache, seed=self.settings.seed, forging=self.forging)
        if self.config.frozen_backbone:
            with self._timed("features"):
                data.features()
        for stage in method.stages():
            with self._timed(f"stage {stage.name}"):
                stage.fit(data, self.run)
        return data

    def _selection(self, samples: tuple[Sample, ...], geometry: Geometry, method: Method) -> Selection:
        chosen = samples[:FORGED_FOR_SELECTION]
        good = np.stack([geometry.apply(decode(sample.image)) for sample in chosen])
        seed = derived_seed(self.settings.seed, "selection flaws") % 2**31
        forged = np.stack([geometry.apply(image) for image in forged_images(chosen, geometry, seed)])
        return Selection(good, forged, method.network)

    def _spec(self, backbone: Backbone, geometry: Geometry, method: Method, *, n_train: int) -> BundleSpec:
        info = backbone.info
        return BundleSpec(
            package_version=flawsmith.__version__,
            method=self.settings.method,
            preset=self.preset,
            config=self.config.model_dump(mode="json"),
            backbone=BackboneSpec(
                name=info.architecture, weights=info.weights, sha256=info.sha256, levels=info.strides
            ),
            geometry=geometry,
            engine=self.settings.engine,
            precision=self.settings.precision,
            decision=Decision(limit=0.0, map_limit=0.0, stated_false_reject_rate=1.0, n_good=0),
            training=TrainingSummary(
                layout=self.dataset.layout,
                category=self.dataset.category,
                n_train=n_train,
                n_calibration=len(self.split.calibration),
                images_sha256=self.fingerprint,
                selection=self.settings.select,
                findings=dict(method.findings()),
            ),
            seed=self.settings.seed,
        )

    def _calibrated(self, spec: BundleSpec, model: bytes, detector: Detector) -> Bundle:
        """Limits from held-out files scored by the exported model itself, then the parity gate."""
        inspector = Inspector.load(Bundle(spec, model))
        files = [sample.image for sample in self.split.calibration]
        scores, maxima = score_files(inspector, files)
        exact = self.settings.precision == "float32" and detector.continuous
        tolerance = Tolerance() if exact else Tolerance.relative(scores, maxima)
        decision = calibrate(
            scores,
            maxima,
            alpha=self.settings.alpha,
            review_alpha=self.settings.review_alpha,
            tolerance=tolerance.score,
            map_tolerance=tolerance.map,
            held_out=not self.split.calibrated_on_training,
            highest_score=detector.highest_score,
        )
        inspector.spec = spec.model_copy(update={"decision": decision})
        with tempfile.TemporaryDirectory() as folder:
            proofs = [*files[:PARITY_FILES], *non_square_copies(files[0], Path(folder))]
            parity = check_parity(detector, inspector, proofs, tolerance)
        final = inspector.spec.model_copy(update={"parity": parity})
        forged = self._forged_scores(inspector)
        return Bundle(final, model, {"good": scores, "forged": forged}, model_card(final))

    def _forged_scores(self, inspector: Inspector) -> NDArray[np.float64]:
        samples = self.split.calibration[:FORGED_FOR_CALIBRATION]
        seed = derived_seed(self.settings.seed, "calibration flaws") % 2**31
        images = forged_images(samples, inspector.spec.geometry, seed)
        return np.array([inspector.raw(image)[0] for image in images], dtype=np.float64)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[name] = round(time.perf_counter() - start, 3)


def score_files(inspector: Inspector, files: list[Path]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Image score and largest map value, in original pixels, of every file."""
    scores, maxima = [], []
    for file in files:
        image = decode(file)
        score, raw = inspector.raw(image)
        restored = inspector.spec.geometry.restore(raw, (image.shape[0], image.shape[1]))
        inspected = inspector.spec.geometry.inspected((image.shape[0], image.shape[1]))
        not_inspected = None if inspected is None else ~inspected
        scores.append(score)
        maxima.append(inspector.spec.decision.level(restored, not_inspected))
    return np.array(scores, dtype=np.float64), np.array(maxima, dtype=np.float64)


def _images_sha256(split: HoldOut) -> str:
    """SHA-256 over the content of the images learned from and calibrated on, in sorted order."""
    digest = hashlib.sha256()
    for part in (split.train, split.calibration):
        digest.update("".join(sorted(content_hashes([sample.image for sample in part]))).encode())
    return digest.hexdigest()
