"""What all tests share: real images, an isolated cache, seeds, few threads, and a way to train in seconds."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).parents[1]
THREADS = 2
LEFT_OUT = pytest.StashKey[int]()

# Machines differ in speed, results do not: every run draws the same examples, `make fuzz` new ones.
hypothesis.settings.register_profile("flawsmith", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile("flawsmith")

_TINY_PATCHES = {
    "image_size": [64, 96],
    "precision": "32-true",
    "level_width": 32,
    "width": 32,
    "hidden": 16,
    "epochs": 2,
    "steps_per_epoch": 4,
    "patches_per_step": 64,
    "batch_size": 4,
    "bank_size": 16,
}
_TINY_STUDENT = {
    "image_size": [64, 96],
    "precision": "32-true",
    "memories": 4,
    "bank_size": 16,
    "amplification_epochs": 2,
    "amplification_steps": 4,
    "student_widths": [8, 8, 16],
    "student_blocks": [1, 1, 1],
    "epochs": 2,
    "steps_per_epoch": 4,
    "batch_size": 4,
}
_TINY_SEGMENTATION = {
    "image_size": [64, 96],
    "precision": "32-true",
    "pretraining": True,
    "pretraining_epochs": 2,
    "pretraining_steps": 4,
    "pretraining_batch_size": 4,
    "large_mask_sides": [8, 24],
    "discriminator_width": 4,
    "decoder_widths": [8, 8, 8],
    "epochs": 2,
    "steps_per_epoch": 4,
    "batch_size": 2,
}
_TINY_MEMORY = {"image_size": [64, 96], "coreset_ratio": 0.1, "least_rows": 32}
_TINY_GAUSSIANS = {"image_size": [64, 96], "channels": 16}
# Settings that train a method in a second or two; every registered method needs its line.
TINY: dict[str, dict[str, Any]] = {
    "aand": _TINY_STUDENT,
    "glass": _TINY_PATCHES,
    "padim": _TINY_GAUSSIANS,
    "patchcore": _TINY_MEMORY,
    "pbas": _TINY_PATCHES,
    "rd4ad": _TINY_STUDENT,
    "slsg": _TINY_SEGMENTATION,
}


RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}  # no word over the network


def real_data_folder() -> Path:
    """Where the shared real images are, whether or not they are there."""
    given = os.environ.get("FLAWSMITH_DATA")
    return Path(given) if given else PROJECT.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Few threads, here and in processes that tests start; test processes beside each other share the cores."""
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = max(1, min(THREADS, (os.cpu_count() or 1) // beside))
    if beside > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests on real images where there are none, except in CI, where they fail."""
    config.stash[LEFT_OUT] = 0
    if "CI" in os.environ or real_data_folder().is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("real_data")]
    if left_out:
        config.stash[LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("real_data")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("real_data") and not real_data_folder().is_dir():
        pytest.fail(f"CI is set and there are no real images at {real_data_folder()}: set FLAWSMITH_DATA")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process beside others tells the one that reports how many tests it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every process leaves out the same tests, so one of them counts."""
    if hasattr(node, "workeroutput"):
        node.config.stash[LEFT_OUT] = node.workeroutput.get("left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    count = config.stash.get(LEFT_OUT, 0)
    if count:
        terminalreporter.write_line(
            f"{count} tests on real images left out: no folder at {real_data_folder()}, set FLAWSMITH_DATA",
            yellow=True,
        )


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of shared real images; a test that uses it carries the mark ``real_data``."""
    return real_data_folder()


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's feature cache, subprocesses included."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAWSMITH_CACHE", str(folder))
        yield folder


@pytest.fixture
def seed() -> int:
    """A fresh seed, printed with a failure; FLAWSMITH_TEST_SEED repeats one."""
    value = int(os.environ.get("FLAWSMITH_TEST_SEED", secrets.randbelow(2**31)))
    print(f"FLAWSMITH_TEST_SEED={value}")
    return value


def load_helpers(name: str, path: str) -> ModuleType:
    """Import a file of helpers below tests/, which is no package, whatever pytest's import mode."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Builders of tiny models: ``tiny.make_bundle(**changes)`` is one whose score and map are the brightness."""
    return load_helpers("runtime_tools", "runtime/conftest.py")


@pytest.fixture(scope="session")
def trees() -> ModuleType:
    """Builders of small image trees: ``trees.mvtec(root)``, ``trees.mvtec_loco(root)``, ``trees.picture(path)``."""
    return load_helpers("data_trees", "data/trees.py")


def draw_part(path: Path, seed: int, *, size: tuple[int, int] = (80, 112), flawed: bool = False) -> Path:
    """Write a small non-square photograph of a part: waves of random phase and sensor noise; a scratch if flawed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.sin(x / 7 + rng.uniform(0, 0.5)) * np.cos(y / 9 + rng.uniform(0, 0.5))
    pixels = 120 + 60 * waves[..., None] * np.array([1.0, 0.8, 0.6]) + rng.normal(0, 8, (*size, 3))
    if flawed:
        pixels[size[0] // 3 : size[0] // 3 + 6, size[1] // 4 : -size[1] // 4] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def draw_parts() -> Callable[..., Path]:
    """Draws a category: ``draw_parts(root, good=12)`` in MVTec layout with two good and two flawed test images."""

    def draw(root: Path, *, good: int = 12, test: int = 2) -> Path:
        for number in range(good):
            draw_part(root / "train" / "good" / f"{number:03d}.png", number)
        for number in range(test):
            draw_part(root / "test" / "good" / f"{number:03d}.png", 1000 + number)
            draw_part(root / "test" / "crack" / f"{number:03d}.png", 2000 + number, flawed=True)
        return root

    return draw


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory, draw_parts: Callable[..., Path]) -> Path:
    """A category of 20 good images of 80×112 pixels."""
    return draw_parts(tmp_path_factory.mktemp("data") / "bolt", good=20)


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, dict[str, Any]]:
    """Settings of every method that train it in a second or two."""
    return TINY


@pytest.fixture(scope="session")
def ray_cluster(isolated_cache: Path) -> Iterator[str]:
    """The address of a Ray cluster on this machine: one node, two CPUs, so two workers at a time."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_SETTINGS.items():
            patch.setenv(name, value)
        head = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def on_ray(ray_cluster: str) -> Iterator[Any]:
    """The module ``ray``, connected for all tests of a file: connecting takes seconds, and so do new workers."""
    import ray

    ray.init(address=ray_cluster, logging_level="ERROR", log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def one_compilation() -> Iterator[None]:
    """The same backbone at the same size is compiled once for all training runs of the tests: it takes seconds."""
    from flawsmith.features import extract
    from flawsmith.features.backbones import Backbone

    compiled: dict[tuple[Any, ...], bytes] = {}
    compile_backbone = extract.to_onnx

    def once(module: Any, image_size: Any, outputs: Any) -> bytes:
        if not isinstance(module, Backbone):
            return compile_backbone(module, image_size, outputs)
        key = (module.info, tuple(image_size), tuple(outputs))
        if key not in compiled:
            compiled[key] = compile_backbone(module, image_size, outputs)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "to_onnx", once)
        yield


@pytest.fixture(scope="session")
def train_tiny(one_compilation: None) -> Callable[..., Any]:
    """``train_tiny(method, data, out, **settings)``: a training run that takes seconds; ``set`` changes TINY."""
    import flawsmith

    def run(method: str, data: Path, out: Path, **settings: Any) -> Any:
        changed = {**TINY[method], **settings.pop("set", {})}
        # Synthesis in this process: starting workers takes longer than such a run, and changes nothing
        # (test_forging.py).
        options = {"workers": 0, "quiet": True, "baseline": "none", **settings}
        return flawsmith.train(data, out=out, method=method, preset="fast", set=changed, **options)

    return run


@pytest.fixture(scope="session")
def trained(
    train_tiny: Callable[..., Any], parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """``trained(method)``: the result of one uninterrupted run on ``parts``, shared by all tests."""
    results: dict[str, Any] = {}

    def of(method: str) -> Any:
        if method not in results:
            results[method] = train_tiny(method, parts, tmp_path_factory.mktemp("run") / method)
        return results[method]

    return of
