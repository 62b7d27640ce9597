"""One model for every engine and precision: time, size, and what it costs in accuracy.

Models are trained with ``fast`` on a shared set, and exported into the model file with the good images that set the
limits. Accuracy is that of the test images: the loss is the image AUROC of ONNX Runtime in float32 less that of the
form, with the interval of 2,000 paired resamplings of the images. Devices that are not here are named as such.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import category_folder, milliseconds, page, parser, table, trained_model
from numpy.typing import NDArray

from flawsmith.data.layouts import load
from flawsmith.data.samples import Sample
from flawsmith.metrics.ranking import auroc
from flawsmith.pipeline.export import TARGETS, Target, export_bundle
from flawsmith.runtime.bundle import GRAPHS, Bundle
from flawsmith.runtime.devices import DEVICES
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspection, Inspector

METHODS = ("patchcore", "pbas")
CATEGORIES = ("screw",)
ON_DEVICES: tuple[Target, ...] = ("onnx", "onnx-fp16")
"""Forms that are tried on each device that is here."""
_REPLICATES = 2000
_HEADS = (
    "method",
    "form",
    "device",
    "inspection p50, ms",
    "network p50, ms",
    "images a second",
    "graph, MB",
    "score differs, of the good spread",
    "image AUROC",
    "loss (95 %)",
    "rejected: good, flawed",
)


GRAPHS_NOTE = (
    f"Graphs in the model file: `model.onnx` for float32, {' and '.join(f'`{part}`' for part in GRAPHS.values())} "
    "beside it. What is 8 bits wide are the features; memories, students and heads stay in float32."
)


def judged(inspector: Inspector, samples: Sequence[Sample]) -> tuple[list[Inspection], float]:
    """Inspections of images, and how many there were a second, decoding included."""
    start = time.perf_counter()
    results = list(inspector.stream([sample.image for sample in samples], decoders=1))
    rate = len(results) / (time.perf_counter() - start)
    return [result for result in results if isinstance(result, Inspection)], rate


def loss_interval(
    before: NDArray[np.float64], after: NDArray[np.float64], flawed: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """The loss of AUROC, and 95 % of paired resamplings of the good and of the flawed images."""
    rng = np.random.default_rng(0)

    def wins(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        difference = scores[flawed][None] - scores[~flawed][:, None]
        return (np.sign(difference) + 1) / 2

    losses = wins(before) - wins(after)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=_REPLICATES) / n for n in losses.shape)
    low, high = np.quantile(np.einsum("ri,ij,rj->r", rows, losses, columns), [0.025, 0.975])
    return float(losses.mean()), float(low), float(high)


def rows_of(work: Path, category: str, method: str, most: int, settings: dict[str, object]) -> list[Sequence[object]]:
    """A row for each form of one model, and one for each device beside the CPU."""
    data = category_folder(category)
    trained = Bundle.load(trained_model(data, f"{data.name}-{method}", work, method, settings=settings))
    test = load(data).test
    samples = [sample for flawed in (False, True) for sample in [s for s in test if s.is_flawed == flawed][:most]]
    flawed = np.array([sample.is_flawed for sample in samples])
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.flaw"
        trained.save(file)
        refused: dict[Target, str] = {}
        for target in list(TARGETS)[1:]:
            try:
                export_bundle(file, target, into=True, images=data)
            except FlawsmithError as error:
                refused[target] = str(error)
        bundle = Bundle.load(file)
    good = np.asarray(bundle.calibration["good"], np.float64)
    spread = float(np.ptp(np.quantile(good, [0.05, 0.95])))
    rows: list[Sequence[object]] = []
    reference = np.zeros(0)
    others = [device for device in DEVICES if device != "cpu"]
    for target, device in [*product(TARGETS, ["cpu"]), *product(ON_DEVICES, others)]:
        engine, precision = TARGETS[target]
        if target in refused:
            rows.append((method, target, device, *["–"] * 6, "refused", "–"))
            print(f"{method} {target}: {refused[target]}", flush=True)
            continue
        try:
            inspector = Inspector.load(bundle, engine=engine, precision=precision, device=device, threads=1)
        except FlawsmithError:
            rows.append((method, target, device, "not run here", *["–"] * 7))
            continue
        inspector.inspect(samples[0].image)
        results, rate = judged(inspector, samples)
        scores = np.array([result.score for result in results])
        reference = scores if not rows else reference
        area, (loss, low, high) = auroc(scores, flawed), loss_interval(reference, scores, flawed)
        whole, network = (
            statistics.median(values) / 1000
            for values in (
                [sum(result.timing.values()) for result in results],
                [result.timing["infer"] for result in results],
            )
        )
        rejected = [
            sum(r.verdict == "reject" for r, is_flawed in zip(results, flawed, strict=True) if is_flawed == kind)
            for kind in (False, True)
        ]
        graph = bundle.graphs.get(precision, bundle.model)
        rows.append(
            (
                method,
                target,
                device,
                milliseconds(whole),
                milliseconds(network),
                f"{rate:.1f}",
                f"{len(graph) / 1e6:.1f}",
                f"{np.abs(scores - reference).max() / spread:.2g}",
                f"{area:.4f}",
                "–" if not loss and not low and not high else f"{loss:.4f} ({low:.4f} to {high:.4f})",
                f"{rejected[0]} of {(~flawed).sum()}, {rejected[1]} of {flawed.sum()}",
            )
        )
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    arguments.add_argument("--most", type=int, default=60, help="test images of each kind")
    arguments.add_argument("--work", type=Path, default=Path("runs/engines"), help="folder of the models")
    arguments.add_argument("--epochs", type=int, default=None, help="of methods that train; by default the preset's")
    args = arguments.parse_args()
    most = 5 if args.quick else args.most
    sections = []
    for category in args.categories:
        rows: list[Sequence[object]] = []
        for method in args.methods:
            trains = args.epochs is not None and method not in ("patchcore", "padim")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows += rows_of(args.work, category, method, most, {"epochs": args.epochs} if trains else {})
        sections.append(f"## {category}\n\n{table(_HEADS, rows)}")
    note = (
        "One thread, one image at a time, files decoded before. A form is `export --to`; fp16 and int8 have limits of "
        "their own. “Score differs” is the largest difference to the first row, by the spread of good scores (5th to "
        "95th percentile); a form whose score moves for all images alike keeps its order. OpenVINO's int8 graph is the "
        f"one of ONNX Runtime.\n\n{GRAPHS_NOTE}"
    )
    page("engines", "One model, every engine and precision", [note, *sections], write=args.write)


if __name__ == "__main__":
    main()
