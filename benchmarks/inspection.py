"""What an inspection costs beyond its backbone: from a file to verdict and map, at batch 1.

The yardstick decodes the same file, resizes and normalises it and runs the bare backbone in the same engine. Models
are untrained, and their memories hold random features, as many as after training on 200 images, which changes no shape
and hence no time; their limits lie above every score, as for a good part. Pairs alternate within one run; a ratio is
the median of the paired ratios, with the tenth and ninetieth percentile beside it.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import numpy as np
import torch
from common import milliseconds, page, paired, parser, seconds, table
from numpy.typing import NDArray
from PIL import Image

import flawsmith
from flawsmith.export import export_model
from flawsmith.features.backbones import Backbone, load_backbone
from flawsmith.features.extract import backbone_to_onnx
from flawsmith.models.base import AnomalyModel, ModelConfig
from flawsmith.models.components.memory_bank import MemoryBank
from flawsmith.models.patchcore.model import PatchCore, rows_to_keep
from flawsmith.models.pbas import PBAS, PBASConfig
from flawsmith.models.registry import find_method
from flawsmith.runtime.bundle import BackboneSpec, Bundle, BundleSpec, TrainingSummary
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.engine import make_engine
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspector
from flawsmith.synthesis.demo_parts import render_part

Engine = tuple[Literal["onnxruntime", "openvino"], Literal["float32", "bfloat16"]]
ENGINES: tuple[Engine, ...] = (("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))
METHODS = ["fusion", "pbas", "aand", "rd4ad", "glass", "slsg", "patchcore", "padim"]
IMAGES = 200
ABOVE_ALL = 1e9
"""A limit that no score reaches."""
BACKBONES = {"fast": "efficientnet_lite0", "official": "wide_resnet50_2@random"}
"""By preset, whose own input is measured; methods without a preset of that name are passed over."""
STEPS = ("decode", "prepare", "infer", "restore", "decide")
PHOTO = (512, 512)
_IDLE = 0.5
"""Load up to which a machine counts as idle: this program is not yet in it."""
# Height and width of photographs from 0.25 to 12 megapixels.
SIZES = ((500, 500), (1000, 1000), (1200, 1667), (2000, 2000), (2448, 3264), (3000, 4000))


def untrained_bundle(method: str, backbone: Backbone, preset: str, config: ModelConfig, engine: Engine) -> Bundle:
    """A model with the preset's shapes and weights as initialised."""
    info = backbone.info
    geometry = Geometry(
        policy=config.policy, size=config.image_size, interpolation=config.interpolation, mean=info.mean, std=info.std
    )
    spec = BundleSpec(
        package_version=flawsmith.__version__,
        method=method,
        preset=preset,
        config=config.model_dump(mode="json"),
        backbone=BackboneSpec(name=info.architecture, weights=info.weights, sha256=info.sha256, levels=info.strides),
        geometry=geometry,
        engine=engine[0],
        precision=engine[1],
        decision=Decision(limit=ABOVE_ALL, map_limit=ABOVE_ALL, stated_false_reject_rate=1.0, n_good=0),
        training=TrainingSummary(
            layout="folder", category="benchmark", n_train=1, n_calibration=1, images_sha256="0" * 64, selection="last"
        ),
        seed=0,
    )
    model = filled(find_method(method)(config, backbone, seed=0)).eval()
    return Bundle(spec, export_model(model, config.image_size))


def filled(model: AnomalyModel) -> AnomalyModel:
    """A model whose memories hold as many features as after training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, MemoryBank):
            module.fit(torch.randn_like(module.features))
    if isinstance(model, PatchCore):
        height, width = model.backbone.grids(model.config.image_size)[0]
        candidates = min(IMAGES * height * width, model.config.most_candidates)
        model.fit_memory(torch.randn(rows_to_keep(candidates, model.config), len(model.center)))
    return model


@cache
def bare_graph(backbone: str, strides: tuple[int, ...], image_size: tuple[int, int]) -> bytes:
    """The backbone alone, for all methods that take it alike."""
    return backbone_to_onnx(load_backbone(backbone, strides=strides), image_size)


class Model:
    """One method, backbone and preset: the exported detector and the exported bare backbone."""

    def __init__(self, method: str, backbone: str, preset: str) -> None:
        self.method, self.preset, self.config = method, preset, find_method(method).presets[preset]
        sizes = "×".join(map(str, self.config.image_size))
        self.title = f"{method}, {backbone.partition('@')[0]}, {sizes}, `{preset}`"
        self.backbone = load_backbone(backbone, strides=self.config.strides)
        self.bare = bare_graph(backbone, self.config.strides, self.config.image_size)
        self.bundle = untrained_bundle(method, self.backbone, preset, self.config, ENGINES[0])

    def inspector(self, engine: Engine, threads: int | None) -> Inspector:
        spec = self.bundle.spec.model_copy(update={"engine": engine[0], "precision": engine[1]})
        return Inspector.load(Bundle(spec, self.bundle.model), threads=threads)


def compare(model: Model, engine: Engine, photo: Path, pairs: int, threads: int | None) -> tuple[list[str], list[str]]:
    """One row of ratios and one of steps, the latter in milliseconds."""
    inspector = model.inspector(engine, threads)
    bare = make_engine(engine[0], model.bare, precision=engine[1], batch=1, threads=threads)
    geometry = model.bundle.spec.geometry
    batch = geometry.apply(decode(photo))[None]

    def yardstick() -> object:
        return bare.run(geometry.apply(decode(photo))[None])

    timings: dict[str, list[float]] = defaultdict(list)

    def inspect() -> None:
        for step, spent in inspector.inspect(photo).timing.items():
            timings[step].append(spent)

    whole = paired(yardstick, inspect, pairs=pairs, warm_up=3)
    networks = paired(lambda: bare.run(batch), lambda: inspector.engine.run(batch), pairs=pairs, warm_up=1)
    labels = [f"{engine[0]}, {engine[1]}"]
    ratios = [*map(milliseconds, whole.medians), whole.ratio_text(), *map(milliseconds, networks.medians)]
    steps = [f"{statistics.median(timings[step]):.2f}" for step in STEPS]
    return [*labels, *ratios, networks.ratio_text()], [*labels, *steps]


def compare_all(
    methods: Sequence[str], presets: Sequence[str], photo: Path, pairs: int, threads: int | None
) -> Iterable[str]:
    """A section a method and model."""
    heads = ("engine", "yardstick, ms", "inspection, ms", "**ratio**", "bare network, ms", "detector, ms", "ratio")
    for method, preset in product(methods, presets):
        if preset not in find_method(method).presets:
            continue
        model, ratios, steps, missing = Model(method, BACKBONES[preset], preset), [], [], ""
        for engine in ENGINES:
            try:
                one, two = compare(model, engine, photo, pairs, threads)
            except FlawsmithError as error:
                missing += f"\n\n{engine[0]} in {engine[1]} was not measured: {error}."
                continue
            ratios.append(one)
            steps.append(two)
        yield (
            f"## {model.title}\n\n{table(heads, ratios)}\n\nSteps of the inspection, milliseconds:\n\n"
            f"{table(('engine', *STEPS), steps)}{missing}"
        )


def other_work() -> str:
    """A sentence on what else the machine did when the measurement began, where it was not idle."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < _IDLE:
        return ""
    return (
        f" Other work ran meanwhile (load {load:.1f} on {cores} cores): alone an inspection takes less time; ratios "
        "are of pairs that met the same load."
    )


def restoring(repeats: int) -> str:
    """The cost of the verdict in the image's pixels, and of the whole map there for those who ask for it."""
    config = PBAS.presets["fast"]
    geometry = Geometry(policy="squash", size=config.image_size)
    decision = Decision(limit=1.0, map_limit=1.0, stated_false_reject_rate=1.0, n_good=0)
    small = np.random.default_rng(0).random(config.image_size, dtype=np.float32)
    flawed = small.copy()
    flawed[100:110, 200:212] = 2.0
    rows = []
    for size in SIZES:

        def decided(score: float, anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> None:
            decision.decide(score, geometry.inverse(anomaly_map, size))

        steps = (
            partial(decided, 0.5, small, size),
            partial(decided, 2.0, flawed, size),
            partial(geometry.invert, small, size),
        )
        spent = [statistics.median(seconds(step) for _ in range(repeats)) for step in steps]
        rows.append((f"{size[1]}×{size[0]}", f"{size[0] * size[1] / 1e6:.2f}", *map(milliseconds, spent)))
    return table(("image", "megapixels", "a pass, ms", "a reject with one flaw, ms", "the whole map, ms"), rows)


def node_costs(model: Model, runs: int) -> str:
    """What ONNX Runtime spends on the nodes that follow the backbone, by its own profile."""
    batch = np.zeros((1, 3, *model.config.image_size), np.float32)
    with TemporaryDirectory() as folder:
        import onnxruntime  # after flawsmith, which keeps it from reporting home

        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model.bundle.model, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {"image": batch})
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: dict[str, list[float]] = defaultdict(list)
    shapes: dict[str, tuple[str, str]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            spent[name].append(event["dur"] / 1000)
            shape = "×".join(map(str, next(iter(event["args"]["output_type_shape"][0].values()))))
            shapes[name] = event["args"]["op_name"], shape
    medians = {name: statistics.median(values) for name, values in spent.items()}
    total, order = sum(medians.values()), list(medians)
    # The embedding's grouped convolutions are the first nodes that give its channels and belong to no backbone.
    widths = {
        level.kernel.shape[0] for level in PBAS(cast(PBASConfig, model.config), model.backbone, seed=0).embedding.levels
    }
    first = next(at for at in range(len(order) - 40, len(order)) if _channels(shapes[order[at]][1]) in widths)
    rows = [
        (name, *shapes[name], f"{medians[name]:.3f}", f"{100 * medians[name] / total:.1f}") for name in order[first:]
    ]
    head = sum(medians[name] for name in order[first:])
    rows.append(("**all of these**", "", "", f"{head:.3f}", f"{100 * head / total:.1f}"))
    return table(("node", "operator", "output", "ms", "% of the detector"), rows)


def _channels(shape: str) -> int:
    parts = shape.split("×")
    return int(parts[1]) if len(parts) == 4 else 0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=60)
    arguments.add_argument("--methods", nargs="+", default=METHODS)
    arguments.add_argument("--threads", type=int, help="of the network; by default one a core")
    arguments.add_argument("--presets", nargs="+", default=["fast"], choices=list(BACKBONES))
    arguments.add_argument(
        "--profile", action="store_true", help="add what each node after the backbone costs, for PBAS"
    )
    args = arguments.parse_args()
    pairs, repeats = (3, 3) if args.quick else (args.pairs, 9)
    with TemporaryDirectory() as folder:
        photo = Path(folder) / "part.png"
        Image.fromarray(render_part("bracket", size=PHOTO)[0]).save(photo)
        sections = [
            f"From a {PHOTO[1]}×{PHOTO[0]} PNG file, {pairs} alternating pairs. The yardstick decodes, resizes, "
            "normalises and "
            "runs the bare backbone; the inspection gives verdict, score and map in the file's own pixels. “Bare "
            "network” and "
            "“detector” are the two graphs alone, without files."
            + ("" if args.threads is None else f" The network has {args.threads} thread{'s' * (args.threads > 1)}.")
            + other_work(),
            *compare_all(args.methods, args.presets, photo, pairs, args.threads),
        ]
    sections.append(
        "## In the pixels of the image\n\nWhat a verdict takes beyond the network, regions in the image's own pixels "
        "included: a map of the input's size in `fast`, one thread. Part of every inspection above. The whole map is "
        f"computed for those alone who ask for it, such as for an overlay.\n\n{restoring(repeats)}"
    )
    if args.profile:
        sections += [
            f"## Nodes after the backbone: {model.title}\n\nONNX Runtime's own profile, float32.\n\n"
            + node_costs(model, 3 if args.quick else 20)
            for model in (Model("pbas", BACKBONES[preset], preset) for preset in args.presets)
        ]
    parts = args.methods if args.methods != METHODS else [preset for preset in args.presets if preset != "fast"]
    name = "_".join(["inspection", *parts])
    page(name, "What an inspection costs", sections, write=args.write)


if __name__ == "__main__":
    main()
