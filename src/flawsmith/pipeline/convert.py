"""Model files from the weights that authors have released, without training: limits from good images, parity proven."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flawsmith
from flawsmith.data.layouts import load
from flawsmith.data.public_sets import known_dataset
from flawsmith.data.samples import Dataset, Sample
from flawsmith.data.seeding import derived_seed
from flawsmith.data.splits import dataset_fingerprint
from flawsmith.export import Tolerance, check_parity, count_flops, count_parameters, export_model, non_square_copies
from flawsmith.models.glass.model import GLASS
from flawsmith.models.glass.released import load_released
from flawsmith.pipeline.calibrate import levels_behind
from flawsmith.pipeline.describe import model_card
from flawsmith.pipeline.steps import hash_table, score_files, synthetic_images
from flawsmith.runtime.bundle import BackboneSpec, Bundle, BundleSpec, TrainingSummary
from flawsmith.runtime.decision import Decision, choose_limits
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import make_folder, printable
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.outputs import refuse_irreplaceable
from flawsmith.runtime.selftest import self_test_arrays

_SCORED = 64
"""Good images behind the limits; the authors' weights say nothing of limits."""
_PROOFS = 6
_ENLARGED = ("wood", "toothbrush")
_ENLARGED_TO = 329


def convert_glass(
    checkpoint: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    backbone: str | None = None,
    layout: str | None = None,
    set: dict[str, Any] | None = None,  # noqa: A002, the name it has for train and on the command line
) -> Bundle:
    """A model file from a released checkpoint of GLASS: the table of the paper without training.

    Adaptor and discriminator are copied one to one. Settings are those of the released scripts, with their crop for
    wood and toothbrush of MVTec AD. The released checkpoints are those that were best on the test data, which the model
    file says beside every figure.

    Args:
        checkpoint: the authors' ``ckpt_best_NUMBER.pth`` of a category.
        data: the category's folder; its good images set the limits. They are those that the authors learned from,
            unless there is a folder of validation images.
        out: the model file.
        backbone: a name or file; by default the authors', whose weights come from the hub.
        layout: name of the data's layout; detected by default.
        set: fields of the configuration that differ from preset ``official``.

    Raises:
        FlawsmithError: the checkpoint or the data cannot be used, the exported model differs from the checkpoint's, or
            the file cannot be written.
    """
    file = Path(out)
    make_folder(file.absolute().parent)
    refuse_irreplaceable((file,))
    dataset = load(Path(data), layout)
    good = (dataset.good_val or dataset.good_train)[:_SCORED]
    if not good:
        raise FlawsmithError(
            f"{dataset.root} has no good images, from which the limits are set: put them into train/good"
        )
    changes = {**_crop(dataset), **(set or {})}
    for scale in ("probability", "logit"):
        model = load_released(checkpoint, backbone=backbone, **{"scale": scale, **changes})
        bundle = _bundle(model, dataset, good, Path(checkpoint))
        # A good image has the probability 1 already where its logit is high: logits rank alike and leave room.
        if not bundle.spec.decision.rejects_nothing:
            break
    bundle.save(file)
    return bundle


def _crop(dataset: Dataset) -> dict[str, Any]:
    """How the released code enlarges two categories of MVTec AD before it cuts the middle out."""
    enlarged = known_dataset(dataset.dataset) == "mvtec" and dataset.category in _ENLARGED
    return {"resize": _ENLARGED_TO} if enlarged else {}


def _bundle(model: GLASS, dataset: Dataset, good: Sequence[Sample], checkpoint: Path) -> Bundle:
    spec = _spec(model, dataset, good, checkpoint)
    graph = export_model(model, model.config.image_size)
    inspector = Inspector.load(Bundle(spec, graph))
    files = [sample.image for sample in good]
    scored = score_files(inspector, files)
    flaws = synthetic_images(good, spec.geometry, derived_seed(0, "calibration flaws") % 2**31)
    synthetic = np.array([inspector.measure(image).score for image in flaws], np.float64)
    tolerance = Tolerance.of_float32(scored.scores, scored.levels.max(axis=1), synthetic)
    decision = choose_limits(
        scored.scores,
        scored.levels,
        tolerance=tolerance.score,
        map_tolerance=tolerance.map,
        held_out=bool(dataset.good_val),
        highest_score=model.highest_score,
    ).model_copy(update={"engine": spec.engine, "precision": spec.precision})
    inspector.spec = spec.model_copy(update={"decision": decision})
    with tempfile.TemporaryDirectory() as folder:
        proofs = [*files[:_PROOFS], *non_square_copies(files[0], Path(folder))]
        parity = check_parity(model, inspector, proofs, tolerance)
    network = {"parameters": count_parameters(model), "flops": count_flops(model, model.config.image_size)}
    final = inspector.spec.model_copy(update={"parity": parity, "network": network})
    hashes = {"learned": dataset.good_train, "held_out": dataset.good_val, "test": dataset.test}
    arrays = {
        **levels_behind(decision, scored.scores, scored.levels),
        "forged": synthetic,
        **{f"{name}_sha256": hash_table(samples) for name, samples in hashes.items() if samples},
        **self_test_arrays(inspector, map(decode, files)),
    }
    return Bundle(final, graph, arrays, model_card(final))


def _spec(model: GLASS, dataset: Dataset, good: Sequence[Sample], checkpoint: Path) -> BundleSpec:
    info = model.backbone.info
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return BundleSpec(
        package_version=flawsmith.__version__,
        method=model.name,
        preset="official",
        config=model.config.model_dump(mode="json"),
        backbone=BackboneSpec(name=info.architecture, weights=info.origin, sha256=info.sha256, levels=info.strides),
        geometry=model.geometry,
        decision=Decision(limit=0.0, map_limit=0.0, stated_false_reject_rate=1.0, n_good=0),
        training=TrainingSummary(
            layout=dataset.layout,
            category=printable(dataset.category),
            n_train=len(dataset.good_train),
            n_calibration=len(good),
            images_sha256=dataset_fingerprint(dataset.samples),
            selection="oracle",
            textures="dtd",
            foreground="files",
            findings={"weights": f"released by the authors, SHA-256 {digest[:16]}"},
        ),
        seed=0,
    )
