"""Flawsmith's side of a run of anomalib: the same images, split and weights for it; its maps under the same rules.

What passes between the two processes is described in the docstring of ``runner.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file

from flawsmith.benchmark.experiment import TIMED_IMAGES, WARM_UP_IMAGES, Experiment, Latency, ModelUnderTest, Task
from flawsmith.data.groups import with_groups
from flawsmith.data.layouts import load
from flawsmith.data.samples import Sample
from flawsmith.data.seeding import derived_seed
from flawsmith.data.splits import HoldOut, calibration_split, refuse_leaks
from flawsmith.features.backbones import PACKAGED, Backbone, load_backbone
from flawsmith.pipeline.provenance import versions
from flawsmith.runtime.decision import Decision, choose_limits
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.image import decode
from flawsmith.runtime.inspector import Inspection
from models import AnomalibConfig, BackboneConfig, model_config, model_name

CONTRACT, REFUSED = 1, 3
RUNNER = Path(__file__).with_name("runner.py")
PROBE_SECONDS = 600
"""From a cold disk, torch and anomalib take a minute to import."""
_STDERR_BYTES = 8000


class Probe(BaseModel):
    """What a runner says of its environment."""

    model_config = ConfigDict(extra="forbid")

    contract: int
    models: tuple[str, ...]
    versions: dict[str, str]


def check_environment(experiments: Iterable[Experiment], python: Path) -> None:
    """See to it that the models of some experiments can be run.

    Raises:
        FlawsmithError: it is no interpreter, or anomalib or a model is missing there.
    """
    environment = probe(python)
    for experiment in experiments:
        if model_name(experiment) not in environment.models:
            raise FlawsmithError(
                f"{experiment.method} is not in anomalib {environment.versions.get('anomalib', '')} of {python}: run "
                f"`{python} -m pip install --upgrade anomalib`"
            )


def probe(python: Path) -> Probe:
    """What an environment can run.

    Raises:
        FlawsmithError: the interpreter does not run the script, or the script says why it cannot go on.
    """
    lines = run_script(python, RUNNER, ["probe"], seconds=PROBE_SECONDS).splitlines()
    try:
        answer = Probe.model_validate_json(lines[-1] if lines else "")
    except ValidationError:
        raise FlawsmithError(f"--peer-python {python}: does not run Python scripts; give an interpreter") from None
    if answer.contract != CONTRACT:
        raise FlawsmithError(f"{RUNNER}: speaks contract {answer.contract}, and {CONTRACT} is needed")
    return answer


def run_script(python: Path, script: Path, arguments: Sequence[str], *, seconds: float | None = None) -> str:
    """Run a script with an interpreter, isolated from this environment's PYTHONPATH and user packages.

    Args:
        python: the interpreter.
        script: what it runs.
        arguments: of the script.
        seconds: to wait at most; None: for ever.

    Returns:
        What it wrote to stdout.

    Raises:
        FlawsmithError: it cannot be started, takes too long, or ends with another exit code than 0; the last line of
            its stderr is the reason, in the script's own words where it refuses.
    """
    command = [str(python), "-I", str(script), *arguments]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            ended = subprocess.run(
                command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, timeout=seconds, check=False
            )
        except OSError as error:
            reason = error.strerror or error
            raise FlawsmithError(f"--peer-python {python}: cannot be run ({reason}); give an interpreter") from None
        except subprocess.TimeoutExpired:
            raise FlawsmithError(
                f"--peer-python {python}: said nothing for {seconds:.0f} s; look what it does"
            ) from None
        if ended.returncode < 0:
            raise FlawsmithError(f"{python} was killed by signal {-ended.returncode}, perhaps for want of memory")
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
        if ended.returncode:
            last = lines[-1] if lines else "without a word"
            raise FlawsmithError(
                last if ended.returncode == REFUSED else f"{python} ended with {ended.returncode}: {last}"
            )
        stdout.seek(0)
        return stdout.read().decode(errors="replace")


Size = tuple[int, int]
_UNDECIDED = Decision(limit=0.0, map_limit=0.0, stated_false_reject_rate=1.0, n_good=0)


class Answer(BaseModel):
    """What a runner measured."""

    model_config = ConfigDict(extra="forbid")

    contract: int = Field(ge=CONTRACT, le=CONTRACT)
    versions: dict[str, str]
    train_seconds: float = Field(ge=0)
    calibration_seconds: float = Field(ge=0)
    test_seconds: float = Field(ge=0)
    latency_seconds: list[float] = Field(min_length=1)
    model_bytes: int = Field(ge=0)


class AnomalibInspector:
    """Gives out what anomalib said about images, under limits by the rule of Flawsmith's models.

    Args:
        geometry: the way from the network's maps to the images.
        decision: the limits.
        rows: position of each image among maps and scores.
        sizes: (height, width) of each image.
        maps: (images, height, width) in the network's pixels.
        scores: (images,).
    """

    def __init__(
        self,
        geometry: Geometry,
        decision: Decision,
        rows: Mapping[Path, int],
        sizes: Sequence[Size],
        maps: NDArray[np.float32],
        scores: NDArray[np.float64],
    ) -> None:
        self.geometry, self.decision = geometry, decision
        self._rows, self._sizes, self._maps, self._scores = rows, sizes, maps, scores

    def stream(self, source: Sequence[Path]) -> Iterator[Inspection]:
        """The inspections of some of the images, in order."""
        return (self.inspect(path) for path in source)

    def inspect(self, path: Path) -> Inspection:
        """Restore the map of one image to its pixels, and judge it."""
        row = self._rows[path]
        score, size = float(self._scores[row]), self._sizes[row]
        anomaly_map = self.geometry.invert(np.asarray(self._maps[row]), size)
        not_inspected = _not_inspected(self.geometry, size)
        verdict, regions = self.decision.decide(score, anomaly_map, not_inspected)
        return Inspection(
            image=str(path),
            score=score,
            verdict=verdict,
            map_source=anomaly_map,
            regions=regions,
            not_inspected=not_inspected,
            timing={},
            decision=self.decision,
        )


def train_anomalib(task: Task, samples: Sequence[Sample], scratch: Path, *, python: Path) -> ModelUnderTest:
    """Let anomalib learn from the images that Flawsmith's methods learn from, and score the same test images.

    Args:
        task: the run and where its data is.
        samples: the test images.
        scratch: the folder of the result; what passes between the processes lies in its folder ``anomalib``.
        python: interpreter of the environment with anomalib.

    Raises:
        FlawsmithError: data or settings that cannot be used, or anomalib fails.
    """
    folder = scratch / "anomalib"  # its maps are read until the run has ended
    folder.mkdir()
    experiment, dataset = task.run.experiment, with_groups(load(task.data, task.layout))
    config = model_config(experiment)
    split = calibration_split(dataset, task.run.seed).learning_from(experiment.fraction)
    refuse_leaks((*split.train, *split.calibration), dataset.test)
    start = time.perf_counter()
    backbone = _backbone(task, config)
    geometry = _geometry(config, backbone)
    if backbone is not None:
        save_file(_state(backbone), folder / "backbone.safetensors")
    images = [sample.image for sample in samples]
    write_images(folder / "train.npy", [sample.image for sample in split.train], geometry)
    calibration_sizes = write_images(
        folder / "calibration.npy", [sample.image for sample in split.calibration], geometry
    )
    prepared = time.perf_counter()
    sizes = write_images(folder / "test.npy", images, geometry)
    read = time.perf_counter()
    timed = [number % len(images) for number in range(TIMED_IMAGES)]
    write_request(folder, task, config, geometry, backbone, timed)
    run_script(python, RUNNER, ["run", str(folder)])
    answer = read_answer(folder, len(timed), experiment.method)
    answered = time.perf_counter()
    decision = _calibrated(folder, calibration_sizes, geometry, split, experiment.method)
    judged = time.perf_counter()
    maps, scores = read_scores(folder, "test", len(images), geometry.size, experiment.method)
    inspector = AnomalibInspector(geometry, decision, {path: n for n, path in enumerate(images)}, sizes, maps, scores)
    return ModelUnderTest(
        inspector=inspector,
        latency=lambda: _latency(inspector, [images[row] for row in timed], answer.latency_seconds),
        n_train=len(split.train),
        n_calibration=len(split.calibration),
        train_seconds=prepared - start + answer.train_seconds + answer.calibration_seconds + judged - answered,
        inspect_seconds=read - prepared + answer.test_seconds,
        model_bytes=answer.model_bytes,
        versions={**versions(), **_named(answer.versions)},
    )


def write_images(path: Path, images: Sequence[Path], geometry: Geometry) -> list[Size]:
    """Write images as the network sees them into one .npy file, float32 (images, 3, height, width).

    Returns:
        (height, width) of each image in its file.

    Raises:
        FlawsmithError: an image cannot be read, or the disk is full.
    """
    sizes: list[Size] = []
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), 3, *geometry.size)}
    try:
        with path.open("wb") as file:  # not memory-mapped: a full disk would then end the process
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                pixels = decode(image)
                sizes.append((pixels.shape[0], pixels.shape[1]))
                file.write(np.ascontiguousarray(geometry.apply(pixels), "<f4").tobytes())
    except OSError as error:
        raise FlawsmithError(f"{path}: cannot be written ({error.strerror}); free some space, or set TMPDIR") from None
    return sizes


def write_request(
    folder: Path,
    task: Task,
    config: AnomalibConfig,
    geometry: Geometry,
    backbone: Backbone | None,
    timed: Sequence[int],
) -> None:
    """Write ``request.json``."""
    request = {
        "contract": CONTRACT,
        "model": model_name(task.run.experiment),
        "seed": task.run.seed,
        "image_size": geometry.size,
        "mean": geometry.mean,
        "std": geometry.std,
        "settings": config.arguments,
        "batch_size": config.batch_size,
        "max_epochs": config.max_epochs,
        "max_steps": config.max_steps,
        "textures": None if task.textures is None else str(Path(task.textures).absolute()),
        "warm_up": WARM_UP_IMAGES,
        "timed": list(timed),
        "backbone": None if backbone is None else _described(backbone),
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")


def read_answer(folder: Path, timed: int, method: str) -> Answer:
    """Read ``answer.json``.

    Raises:
        FlawsmithError: it is missing or not what was agreed on.
    """
    try:
        answer = Answer.model_validate_json((folder / "answer.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise _broken(method, f"answer.json: {str(error).splitlines()[0]}") from None
    if len(answer.latency_seconds) != timed:
        raise _broken(method, f"{len(answer.latency_seconds)} latencies for {timed} images")
    return answer


def read_scores(
    folder: Path, part: str, count: int, size: Size, method: str
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Memory-mapped maps and the scores of a part of the images.

    Raises:
        FlawsmithError: a file is missing, of another shape or kind, or holds numbers that are not finite.
    """
    arrays = []
    for name, shape, kind in (("maps", (count, *size), np.float32), ("scores", (count,), np.float64)):
        path = folder / f"{part}_{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _broken(method, f"{path.name}: {error}") from None
        if array.shape != shape or array.dtype != kind:
            raise _broken(method, f"{path.name} is {array.dtype} {array.shape}, not {np.dtype(kind)} {shape}")
        if not all(np.isfinite(row).all() for row in array):
            raise FlawsmithError(f"{method} gives numbers that are not finite; try other settings")
        arrays.append(array)
    return arrays[0], arrays[1]


def _calibrated(folder: Path, sizes: Sequence[Size], geometry: Geometry, split: HoldOut, method: str) -> Decision:
    """Limits from the held-out good images, by the rule of Flawsmith's own models."""
    maps, scores = read_scores(folder, "calibration", len(sizes), geometry.size, method)
    levels = [
        _UNDECIDED.level(geometry.invert(np.asarray(one), size), _not_inspected(geometry, size))
        for one, size in zip(maps, sizes, strict=True)
    ]
    return choose_limits(scores, levels, held_out=not split.calibrated_on_training)


def _latency(inspector: AnomalibInspector, images: Iterable[Path], network_seconds: Sequence[float]) -> Latency:
    """anomalib's own time of each image, and Flawsmith's for reading it before and judging it after."""
    totals = []
    for image, seconds in zip(images, network_seconds, strict=True):
        start = time.perf_counter()
        inspector.geometry.apply(decode(image))
        inspector.inspect(image)
        totals.append(seconds + time.perf_counter() - start)
    p50, p95 = np.percentile(totals, [50, 95])
    return round(1000 * float(p50), 3), round(1000 * float(p95), 3)


def _backbone(task: Task, config: AnomalibConfig) -> Backbone | None:
    if not isinstance(config, BackboneConfig):
        return None
    return load_backbone(task.backbone or PACKAGED, strides=config.strides, seed=derived_seed(0, "random backbone"))


def _geometry(config: AnomalibConfig, backbone: Backbone | None) -> Geometry:
    form: dict[str, Any] = {} if backbone is None else {"mean": backbone.info.mean, "std": backbone.info.std}
    return Geometry(policy=config.policy, size=config.image_size, interpolation=config.interpolation, **form)


def _described(backbone: Backbone) -> dict[str, Any]:
    return {"architecture": backbone.info.architecture.split(".")[0], "strides": backbone.info.strides}


def _state(backbone: Backbone) -> dict[str, Any]:
    return {name: tensor.contiguous() for name, tensor in backbone.trunk.state_dict().items()}


def _not_inspected(geometry: Geometry, size: Size) -> NDArray[np.bool_] | None:
    inspected = geometry.valid_mask(size)
    return None if inspected is None else ~inspected


def _named(anomalib_versions: Mapping[str, str]) -> dict[str, str]:
    """Versions of the other environment under names that are kept apart from ours."""
    return {
        name if name == "anomalib" else f"{name} of anomalib": version for name, version in anomalib_versions.items()
    }


def _broken(method: str, words: str) -> FlawsmithError:
    return FlawsmithError(f"the runner of {method} does not keep to the contract: {words}")
