"""What a model file says of itself, and whether it works here; without torch."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flawsmith.data.doctor import SEVERITIES, Finding, Findings, Severity, check
from flawsmith.data.layouts import load
from flawsmith.data.layouts.base import count
from flawsmith.data.samples import Dataset
from flawsmith.metrics.what_if import LimitStep, aligned, limit_steps, promise_of, telling
from flawsmith.pipeline.held_out import in_words, odd_scores
from flawsmith.pipeline.parity import GATE_SHARE, allowed_in_float32, room_for, spread, vector_images
from flawsmith.pipeline.provenance import versions
from flawsmith.report.contact_sheet import contact_sheet
from flawsmith.runtime.bundle import SELF_TEST, Bundle, BundleSpec, Variant, preset_in_words
from flawsmith.runtime.decision import FEW_GOOD_IMAGES, Decision, parts_of_1000
from flawsmith.runtime.devices import DeviceName, choose_device
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import is_folder, printable, replacing
from flawsmith.runtime.image import as_8_bit, decode
from flawsmith.runtime.inspector import Inspector, Unreadable
from flawsmith.runtime.tiles import Tiling

_RUNTIME_PACKAGES = ("python", "flawsmith", "numpy", "pillow", "onnxruntime", "openvino")


def describe_model(path: Path) -> dict[str, Any]:
    """Facts of a model file, ready for JSON; reading it has verified the SHA-256 of every part.

    Raises:
        FlawsmithError: no intact model file.
    """
    bundle = Bundle.load(path)
    spec = bundle.spec
    return {
        "file": str(path),
        "verified": True,
        "bytes": path.stat().st_size,
        "package_version": spec.package_version,
        "schema_version": spec.schema_version,
        "method": spec.method,
        "preset": spec.preset,
        "deviations": list(spec.training.deviations),
        "seed": spec.seed,
        "config": spec.config,
        "backbone": spec.backbone.model_dump(mode="json"),
        "geometry": spec.geometry.model_dump(mode="json"),
        "tiling": None if spec.tiling is None else spec.tiling.model_dump(mode="json"),
        "engine": spec.engine,
        "precision": spec.precision,
        "device": spec.device,
        "engine_in_words": engine_in_words(spec),
        "training": spec.training.model_dump(mode="json"),
        "stamps": spec.training.stamps,
        "decision": spec.decision.model_dump(mode="json"),
        "identity": spec.decision.identity,
        "earlier_limits": {decision.identity: decision.model_dump(mode="json") for decision in spec.earlier_decisions},
        **({"zone_limits": spec.decision.zone_limits} if spec.decision.zones else {}),
        "worst_false_reject_rate": spec.decision.worst_false_reject_rate,
        "limit_statement": spec.decision.describe(),
        "network": spec.network,
        "parity": spec.parity,
        "variants": [
            f"{engine_in_words(variant)}, reject limit {variant.decision.deciding_limit:.6g}"
            for variant in spec.variants
        ],
        "calibration": {
            name: len(array) for name, array in bundle.calibration.items() if not name.startswith(f"{SELF_TEST}_")
        },
        "held_out_scores": sorted((float(score) for score in bundle.calibration.get("good", ())), reverse=True),
    }


def engine_in_words(spec: BundleSpec | Variant) -> str:
    """What computes a model, such as ``onnxruntime, float32``."""
    return f"{spec.engine}, {spec.precision}{'' if spec.device == 'cpu' else f' on {spec.device}'}"


def model_in_words(facts: dict[str, Any]) -> str:
    """The facts of :func:`describe_model` as lines for people, in two columns, and the limit's worth as a sentence."""
    training, decision, geometry, backbone = (facts[k] for k in ("training", "decision", "geometry", "backbone"))
    height, width = geometry["size"]
    review, earlier = decision["review_limit"], facts["earlier_limits"]
    limits = Decision.model_validate(decision)
    looked_at = where_to_look(limits)
    rows = [
        ("file", f"{facts['file']}, {facts['bytes'] / 2**20:.1f} MiB, SHA-256 of every part verified"),
        ("made by", f"flawsmith {facts['package_version']}, schema {facts['schema_version']}"),
        ("method", f"{facts['method']}, preset {facts['preset']}, seed {facts['seed']}"),
        *([("preset", preset_in_words(facts["preset"], facts["deviations"]))] if facts["deviations"] else []),
        ("backbone", f"{backbone['name']}, {backbone['weights']} weights, SHA-256 {backbone['sha256'][:16]}"),
        *([("network", network_in_words(facts["network"]))] if facts["network"] else []),
        ("input", f"{width} × {height} pixels, {geometry['policy']}"),
        *([("tiles", Tiling.model_validate(facts["tiling"]).describe())] if facts["tiling"] else []),
        ("engine", facts["engine_in_words"]),
        ("learned from", f"{training['n_train']} good images of {training['category']} ({training['layout']} layout)"),
        *([("findings", _briefly(training["findings"]))] if training["findings"] else []),
        *([("textures", training["textures"])] if training["textures"] else []),
        *([("foreground", training["foreground"])] if training["foreground"] else []),
        ("checkpoint", training["selection"]),
        *([("their scores", in_words(facts["held_out_scores"]))] if facts["held_out_scores"] else []),
        ("reject limit", f"{decision['limit']:.6g} on the score, {decision['map_limit']:.6g} on the map"),
        *((f"limit in {name}", words) for name, words in zones_in_words(limits)),
        ("review limit", "none" if review is None else f"{review:.6g}"),
        *([("where to look", looked_at)] if looked_at else []),
        *([("limits", f"{facts['identity']}; before: {', '.join(earlier)}")] if earlier else []),
        ("parity", parity_in_words(facts["parity"])),
        *(("also for", words) for words in facts["variants"]),
    ]
    if limits.groups is not None and (words := limits.groups.describe()):
        rows.append(("groups", words))
    lines = [f"{name:<14} {value}" for name, value in rows]
    return "\n".join([*facts["stamps"], *lines, "", facts["limit_statement"]])


def model_card(spec: BundleSpec) -> str:
    """What the model is, what it learned from and what its limit is worth, as Markdown."""
    height, width = spec.geometry.size
    training, backbone = spec.training, spec.backbone
    stamps = "".join(f"**{stamp}.**\n\n" for stamp in spec.training.stamps)
    return f"""# {spec.training.category}: a Flawsmith model

{stamps}- method: {spec.method}, preset {spec.preset}, seed {spec.seed}
{_deviations(spec)}- backbone: {backbone.name} ({backbone.weights} weights, SHA-256 {backbone.sha256[:16]}…)
- input: {width}×{height} pixels, {spec.geometry.policy}
{_network(spec)}{_tiles(spec)}- engine: {engine_in_words(spec)}
{_synthesis(spec)}- learned from {training.n_train} good images of {training.category} ({training.layout} layout)
- limit on the image score: {spec.decision.limit:.6g}; on the map: {spec.decision.map_limit:.6g}
{_setting(spec)}- exported against trained: {parity_in_words(spec.parity)}; what is allowed is part of the limits

{spec.decision.describe()}

Scores are comparable within this model only. The model has learned from no flawed part; what it calls a flaw is what it
did not find among the good ones.
"""


def _deviations(spec: BundleSpec) -> str:
    """A line on what is not as the preset has it, where something is."""
    return f"- preset: {spec.preset_in_words}\n" if spec.training.deviations else ""


def _tiles(spec: BundleSpec) -> str:
    """A line on the tiles into which images are cut, where they are."""
    if spec.tiling is None:
        return ""
    return f"- images are cut into tiles of {spec.tiling.describe()}; the ONNX graph is that of one tile\n"


def _network(spec: BundleSpec) -> str:
    """A line on the size of the network, where it is known."""
    return f"- network: {network_in_words(spec.network)}\n" if spec.network else ""


def _setting(spec: BundleSpec) -> str:
    """Lines on reviews, on zones, and on where the map decides in place of the score, as far as there are any."""
    decision = spec.decision
    where = where_to_look(decision)
    review = "" if decision.review_limit is None else f"- review limit: {decision.review_limit:.6g}\n"
    return review + (f"- the map decides: {where}\n" if where else "") + _zones(spec)


def _zones(spec: BundleSpec) -> str:
    """A line on the limit of each zone, where there are some."""
    return "".join(f"- limit in {name}: {words}\n" for name, words in zones_in_words(spec.decision))


def _synthesis(spec: BundleSpec) -> str:
    """A line on what flaws were synthesized from, where they were."""
    training = spec.training
    line = f"- flaws synthesized from textures: {training.textures}; foreground: {training.foreground}\n"
    return line if training.textures else ""


def expected_verdicts(bundle: Bundle) -> list[str]:
    """Lines: what a model that has seen no test image is expected to miss, what its limit is worth, other limits."""
    decision = bundle.spec.decision
    good, synthetic = (np.asarray(bundle.calibration.get(name, ())) for name in ("good", "forged"))
    lines = []
    steps = limit_steps(good, synthetic, decision.limit) if good.size and not decision.by_regions else []
    if synthetic.size and steps:
        missed = int((synthetic <= decision.limit).sum())
        lines.append(f"flaws missed: {missed} of {synthetic.size} synthetic ones; real ones may be harder to see")
    lines += decision.describe().splitlines()
    if decision.held_out and not decision.cross_fitted and len(steps) > 1:
        heads = ("limit", *(("synthetic missed",) if synthetic.size else ()), "rejected of 1,000", "at worst", "")
        lines += [
            "",
            *aligned([heads, *(_step_row(step, decision, synthetic.size) for step in telling(steps, good.size))]),
        ]
    return lines


def _step_row(step: LimitStep, decision: Decision, n_synthetic: int) -> tuple[str, ...]:
    expected, worst = promise_of(step, decision)
    missed = (f"{step.missed} of {n_synthetic}",) if n_synthetic else ()
    used = "in use" if step.in_use else ""
    return (f"{step.limit:.4g}", *missed, parts_of_1000(expected), parts_of_1000(worst, up=True), used)


def network_in_words(network: Mapping[str, int]) -> str:
    """How large a network is; empty where nothing is known.

    Example:
        >>> network_in_words({"parameters": 20_459_092, "flops": 46_000_000_000})
        '20.46 million parameters, 46.0 GFLOPs an image'
    """
    words = []
    if "parameters" in network:
        words.append(f"{network['parameters'] / 1e6:.2f} million parameters")
    if "flops" in network:
        words.append(f"{network['flops'] / 1e9:.1f} GFLOPs an image")
    return ", ".join(words)


def parity_in_words(parity: Mapping[str, float]) -> str:
    """How far exported and trained model are apart, beside what was allowed where the bundle says so.

    Example:
        >>> parity_in_words({"score": 2e-6, "score_allowed": 1e-4, "images": 8.0})
        'score 2e-06 (0.0001 allowed), images 8'
    """
    allowed = {name: f" ({parity[f'{name}_allowed']:.3g} allowed)" for name in parity if f"{name}_allowed" in parity}
    figures = [f"{name} {parity[name]:.3g}{allowed.get(name, '')}" for name in parity if not name.endswith("_allowed")]
    return ", ".join(figures) or "not recorded"


def zones_in_words(decision: Decision) -> list[tuple[str, str]]:
    """Each zone and its limit in words, what is elsewhere last; empty without zones.

    Example:
        >>> zones_in_words(Decision(limit=1, map_limit=1, stated_false_reject_rate=0.1, n_good=9))
        []
    """
    areas = {zone.name: zone.minimum_area or decision.minimum_area for zone in decision.zones}
    rows = []
    for name, limit in decision.zone_limits.items():
        area = areas.get(name, decision.minimum_area)
        spots = f", for spots of at least {_area(area, decision.pixel_size)}" if area > 1 else ""
        rows.append((f"zone {printable(name)}", f"{limit:.6g} on the map{spots}"))
    return rows


def _area(pixels: int, pixel_size: float | None) -> str:
    return f"{pixels} pixels{'' if pixel_size is None else f' ({pixels * pixel_size**2:.3g} mm²)'}"


def where_to_look(decision: Decision) -> str:
    """Region of interest, zones and smallest area in words; empty where the whole image counts.

    Example:
        >>> where_to_look(Decision(limit=1, map_limit=1, stated_false_reject_rate=0.1, n_good=9, minimum_area=80))
        'spots of at least 80 pixels'
    """
    words, region = [], decision.region_of_interest
    if region is not None:
        parts = [count(len(region.include), "polygon")] if region.include else []
        parts += ["a mask image"] if region.mask else []
        parts += [f"all but {count(len(region.exclude), 'polygon')}"] if region.exclude else []
        words.append(f"a region of interest of {', '.join(parts)}")
    if decision.zones:
        words.append(f"{count(len(decision.zones), 'zone')} with limits of their own")
    if decision.minimum_area > 1:
        words.append(f"spots of at least {_area(decision.minimum_area, decision.pixel_size)}")
    return "; ".join(words)


def _briefly(findings: dict[str, Any]) -> str:
    """What the method found out about the data in words; its figures are in the JSON and in the report."""
    return ", ".join(f"{name}: {value}" for name, value in findings.items() if ":" not in name)


def doctor(
    subject: str | Path,
    *,
    layout: str | None = None,
    model: str | Path | None = None,
    sheet: str | Path | None = None,
    device: str | None = None,
) -> Findings:
    """Check a folder of images, or a model file, for problems.

    Args:
        subject: a folder of images, a CSV table, or a model file, which ends in ``.flaw``.
        layout: name of the folder's layout; detected by default.
        model: a model that scores the good images of the folder: which look least like the others?
        sheet: a PNG file for pictures of those.
        device: of a model file: does this device give the score, map and verdict that the CPU does?

    Returns:
        What was found, the gravest first; ``sound`` says whether nothing must be fixed.

    Raises:
        FlawsmithError: there is nothing that could be checked, ``model`` is given beside a model, ``sheet`` without
            one, or ``device`` without a model file or where it is not here.
    """
    path = Path(subject)
    is_model = path.suffix == ".flaw" and not is_folder(path)
    if is_model and model is not None:
        raise FlawsmithError(f"--model scores the images of a folder, and {path} is a model: give the folder")
    if sheet is not None and model is None:
        raise FlawsmithError(f"--sheet {sheet} shows images that a model has scored: add --model")
    if is_model:
        return check_model(path, device)
    if device is not None:
        raise FlawsmithError(f"--device {device} compares the device with the CPU by a model: give a model file")
    findings = check(dataset := load(path, layout))
    if model is None:
        return findings
    items = (*findings.items, least_like_others(Path(model), dataset, None if sheet is None else Path(sheet)))
    ordered = tuple(sorted(items, key=lambda item: SEVERITIES.index(item.severity)))
    return dataclasses.replace(findings, items=ordered)


def check_model(path: Path, device: str | None = None) -> Findings:
    """Verify a model file, load its engine, and inspect one synthetic image with it.

    Args:
        path: the model file.
        device: compare what it computes with the CPU; None: do not.

    Returns:
        What was found: an error where the model does not run here, warnings on its limits, and the versions here.

    Raises:
        FlawsmithError: no intact model file.
    """
    bundle = Bundle.load(path)
    compared = [] if device is None else [compare_devices(bundle, choose_device(device), path)]
    items = [_trial(bundle, path), *compared, *_oracle(bundle, path), *_limits(bundle, path), _versions(path)]
    spec = bundle.spec
    summary = f"{path}: {spec.method} model of {spec.training.category}, every part verified by SHA-256"
    return Findings(summary, tuple(sorted(items, key=lambda item: SEVERITIES.index(item.severity))))


MOST_ODD = 12
"""Images that are named and shown."""


def least_like_others(model: Path, dataset: Dataset, sheet: Path | None = None) -> Finding:
    """The good images that look least like what a model learned from.

    Args:
        model: a model file.
        dataset: whose good images are inspected, those of the test split left out.
        sheet: a PNG file for pictures of them; None: none is written.

    Returns:
        A note, or a warning where some stand apart; a note too where there is none to inspect. Images that cannot be
        inspected are left out, and counted.

    Raises:
        FlawsmithError: the model cannot be read, or the sheet cannot be written.
    """
    inspector = Inspector.load(model)
    paths = [sample.image for sample in dataset.samples if sample.label == "good" and sample.split != "test"]
    scored = [
        (result.score, path)
        for result, path in zip(inspector.stream(paths), paths, strict=True)
        if not isinstance(result, Unreadable)
    ]
    if not scored:
        lack = "that can be inspected" if paths else "but those of a test"
        message = (
            f"no good images {lack}: the model has scored none{'' if sheet is None else ', and no sheet is written'}"
        )
        return Finding("note", "least-like", message, (dataset.root,), "give a folder of good images")
    scores = [score for score, _ in scored]
    ranked = sorted(scored, key=lambda pair: (-pair[0], pair[1]))[:MOST_ODD]
    odd = odd_scores(scores)
    if sheet is not None:
        value_range = inspector.spec.geometry.value_range
        rows = [
            ([as_8_bit(decode(path), value_range)], f"{score:.4g} {printable(path.name)}") for score, path in ranked
        ]
        with replacing(sheet) as temporary:
            Image.fromarray(contact_sheet([""], rows)).save(temporary, format="PNG")
    listed = ", ".join(f"{printable(dataset.name_of(path))} ({score:.4g})" for score, path in ranked[:3])
    apart = f"{odd} of them stand apart from the others: flawed?" if odd else "none stands apart"
    shown = "" if sheet is None else f"; pictures in {sheet}"
    left_out = len(paths) - len(scored)
    without = f" ({left_out} more cannot be inspected)" if left_out else ""
    message = f"least like what the model learned from, of {len(scored)} good images{without}: {listed}; {apart}{shown}"
    fix = "look at them; what is learned from as good is not found" if odd else "nothing"
    return Finding("warning" if odd else "note", "least-like", message, tuple(path for _, path in ranked), fix)


def _trial(bundle: Bundle, path: Path) -> Finding:
    """Inspect a grey ramp of another shape than the network's input."""
    height, width = bundle.spec.geometry.size
    ramp = np.linspace(0, 255, height * 2 * (width + 7)).reshape(height * 2, width + 7).astype(np.uint8)
    engine = f"{bundle.spec.engine} in {bundle.spec.precision}"
    try:
        inspection = Inspector.load(bundle).inspect(ramp)
    except FlawsmithError as error:
        message, _, fix = str(error).partition("; ")
        return Finding("error", "does-not-run", message, (path,), fix or "export the model anew")
    milliseconds = sum(inspection.timing.values())
    message = f"runs on {engine}: a synthetic image was inspected in {milliseconds:.0f} ms"
    return Finding("note", "runs", message, (path,), "nothing")


def compare_devices(bundle: Bundle, device: DeviceName, path: Path) -> Finding:
    """Score, map and verdict of test images on a device beside those of the CPU.

    Returns:
        A note where they differ by no more than the limits allow for; a warning where the limits of the device have to
        be set anew; an error where they differ by more than a quarter of what good images do, or the device fails.
    """
    images = vector_images(bundle)
    most = GATE_SHARE * spread(bundle.calibration.get("good", ()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = [Inspector.load(bundle, precision="float32", device=place) for place in ("cpu", device)]
        # One pair of limits for both: it is the network that is compared.
        pairs = [[inspector.with_limits(bundle.spec.decision).inspect(image) for image in images] for inspector in both]
    except FlawsmithError as error:
        message, _, fix = str(error).partition("; ")
        return Finding("error", "device-fails", message, (path,), fix or "use another device")
    score = max(abs(here.score - there.score) for here, there in zip(*pairs, strict=True))
    level = max(float(np.abs(here.map - there.map).max()) for here, there in zip(*pairs, strict=True))
    others = sum(here.verdict != there.verdict for here, there in zip(*pairs, strict=True))
    allowed = allowed_in_float32(bundle)
    rooms = [room_for(allowed, here.score, here.map) for here in pairs[0]]
    score_room, map_room = max(room[0] for room in rooms), max(room[1] for room in rooms)
    message = (
        f"{device} against cpu on {count(len(images), 'drawn image')}: score by {score:.2g}, map by {level:.2g} "
        f"(allowed {score_room:.2g} and {map_room:.2g}), {others or 'no'} other verdicts"
    )
    if score <= score_room and level <= map_room:
        return Finding("note", "device-agrees", message, (path,), "nothing")
    if max(score, level) <= most * score_room / allowed["score_allowed"]:
        fix = f"flawsmith calibrate {path} GOOD --device {device}"
        return Finding("warning", "device-differs", message, (path,), f"set its limits: {fix}")
    return Finding(
        "error", "device-differs", message, (path,), f"inspect on another device than {device}, or report it"
    )


def _oracle(bundle: Bundle, path: Path) -> list[Finding]:
    fix = "train without --oracle"
    return [Finding("warning", "oracle", stamp, (path,), fix) for stamp in bundle.spec.training.stamps]


def _limits(bundle: Bundle, path: Path) -> list[Finding]:
    decision = bundle.spec.decision
    if decision.stated_false_reject_rate <= decision.target_false_reject_rate:
        return []
    severity: Severity = "warning" if decision.n_good < FEW_GOOD_IMAGES else "note"
    message = (
        f"good parts rejected: {decision.promise}; {decision.n_good} good images set the limit, which was to reject "
        f"{1000 * decision.target_false_reject_rate:g}"
    )
    fix = "set the limit with more good images: flawsmith calibrate MODEL GOOD"
    return [Finding(severity, "few-to-calibrate", message, (path,), fix)]


def _versions(path: Path) -> Finding:
    here = ", ".join(f"{name} {number}" for name, number in versions().items() if name in _RUNTIME_PACKAGES)
    return Finding("note", "versions", f"here are {here}", (path,), "nothing")
