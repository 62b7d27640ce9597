"""What all tests share: real images, an isolated cache, seeds, few threads, and a way to train in seconds."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import os
import pickle
import random
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import onnxruntime
import pytest
from filelock import FileLock
from PIL import Image

PROJECT = Path(__file__).parents[1]
THREADS = 2
LONG = ("tests/training", "tests/extras", "tests/contract", "tests/benchmark")
"""Folders whose tests come first: processes that train, so that none is left to the end, when all others have ended."""
LEFT_OUT = pytest.StashKey[int]()
SEED = pytest.StashKey[int]()

# Machines differ in speed, results do not: every run draws the same examples, `make fuzz` new ones.
EXPLORE = "explore"
hypothesis.settings.register_profile("flawsmith", deadline=None, derandomize=True)
hypothesis.settings.register_profile(EXPLORE, deadline=None, print_blob=True)
hypothesis.settings.load_profile("flawsmith")


def tiny_of(method: str) -> dict[str, Any]:
    """Settings that train a method in a second or two, as its contract test names them."""
    return dict(import_module(f"tests.contract.test_{method}").TINY)


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


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that draw, and leave out those on real images where there are none, except in CI, where they fail."""
    for item in items:
        if draws(item):
            item.add_marker("draws")
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    if "exhaustive" not in config.getoption("markexpr"):
        exhaustive = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=exhaustive)
        items[:] = [item for item in items if item not in exhaustive]
    config.stash[LEFT_OUT] = 0
    if "CI" in os.environ or real_data_folder().is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("real_data")]
    if left_out:
        config.stash[LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("real_data")]


def draws(item: pytest.Item) -> bool:
    """Whether a test takes the fixture ``seed``, not a parameter of that name, or examples of hypothesis."""
    if hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
        return True
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return "seed" in getattr(item, "fixturenames", ()) and "seed" not in parameters


def seed_of(item: pytest.Item) -> int:
    """A number of the test's own, the same in every run; a new one in ``make fuzz``."""
    if "FLAWSMITH_TEST_SEED" in os.environ:
        return int(os.environ["FLAWSMITH_TEST_SEED"])
    if item.config.getoption("--hypothesis-profile") == EXPLORE:
        return secrets.randbelow(2**31)
    return int.from_bytes(hashlib.sha256(item.nodeid.encode()).digest()[:4], "big") >> 1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    import torch

    number = item.stash[SEED] = seed_of(item)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    if item.get_closest_marker("real_data") and not real_data_folder().is_dir():
        pytest.fail(f"CI is set and there are no real images at {real_data_folder()}: set FLAWSMITH_DATA")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share what takes long go to one process: those of a file, of a method's contract, of a Ray cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if re.search(r"_ray[_.]", file):
                return "ray"
            method = re.search(r"\[(\w+)", test)
            return f"{file} {method[1]}" if "/contract/" in file and method else file

    return ByWhatIsShared(config, log)


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


@pytest.fixture(scope="session", autouse=True)
def sleeping_threads() -> Iterator[None]:
    """ONNX Runtime's threads sleep while they wait, here: those of test processes beside each other share the cores.

    By default they ask again and again whether there is work, which makes short runs of tiny networks take twice the
    processor's time. What they compute is the same.
    """

    class Options(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.add_session_config_entry("session.intra_op.allow_spinning", "0")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", Options)
        yield


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """See :func:`seed_of`; printed with a failure, FLAWSMITH_TEST_SEED repeats it."""
    number = request.node.stash[SEED]
    print(f"FLAWSMITH_TEST_SEED={number}")
    return number


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
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the test processes of this session share: what takes long is made by the first that needs it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def parts(shared_folder: Path, draw_parts: Callable[..., Path]) -> Path:
    """A category of 20 good images of 80×112 pixels, which tests only read."""
    folder = shared_folder / "data" / "bolt"
    with FileLock(shared_folder / "parts.lock"):
        return folder if folder.exists() else draw_parts(folder, good=20)


@pytest.fixture(scope="session")
def tiny_settings() -> Callable[[str], dict[str, Any]]:
    """Settings that train a method in a second or two, by its name."""
    return tiny_of


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


class Fingerprint(pickle.Pickler):
    """Writes all that a module's graph follows from: its classes, their attributes and the bytes of its tensors.

    Of some tensors type and shape alone, by their ``id``; then without what a model notes of its training for reports.
    """

    NOTES = ("_findings", "_reconstructions", "_turns")
    by_shape: frozenset[int] = frozenset()

    def reducer_override(self, value: Any) -> Any:
        import torch

        if not (self.by_shape and isinstance(value, torch.nn.Module)):
            return NotImplemented
        state = {name: each for name, each in vars(value).items() if name not in self.NOTES}
        return type, (type(value),), state

    def persistent_id(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.nn.modules.module._WrappedHook):
            return "hook"  # it holds the module that it belongs to
        if isinstance(value, OrderedDict) and value and all(isinstance(key, int) for key in value):
            return "hooks", list(value.values())  # their numbers count all hooks of the process
        if isinstance(value, (set, frozenset)):
            return "set", sorted(map(repr, value))  # in an order that is the same in every process
        if not isinstance(value, torch.Tensor):
            return None
        kind = str(value.dtype), tuple(value.shape)
        if id(value) in self.by_shape:
            return kind
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return *kind, hashlib.sha256(content).hexdigest()

    @classmethod
    def of(cls, *parts: Any, by_shape: Iterable[Any] = ()) -> str:
        """A name for equal parts, other names for all else."""
        stream = io.BytesIO()
        pickler = cls(stream)
        pickler.fast = True  # equal values are written equally, whether or not they are one object
        pickler.by_shape = frozenset(map(id, by_shape))
        pickler.dump(parts)
        return hashlib.sha256(stream.getvalue()).hexdigest()


def shapes_of(inputs: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(shape)) for name, shape in inputs.items()]


class Graphs:
    """Writes the graphs of modules, and traces those once that differ in what they have learned alone.

    Tracing takes longer than training does in the tests. What has been learned cannot change a trace: the exporter sees
    types and shapes of parameters and buffers, whose values then stand in initializers of the same names.
    tests/export/test_export.py holds the graphs against those of the exporter; they differ in the names alone that it
    makes up for intermediate values.
    """

    def __init__(self, folder: Path) -> None:
        from flawsmith.features import extract

        self.folder, self.trace, self.simplify = folder, extract.traced, extract.simplified

    def __call__(self, module: Any, inputs: Any, outputs: Any, *, listed: bool = False) -> bytes:
        """As :func:`flawsmith.features.extract.to_onnx`."""
        try:
            name = Fingerprint.of(module.eval(), *shapes_of(inputs), tuple(outputs))
        except (pickle.PicklingError, AttributeError, TypeError, ValueError):  # a module that cannot be written down
            return self.simplify(self.trace(module, inputs, outputs, listed=listed))
        file = self.folder / f"{name}.onnx"
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                file.write_bytes(self.simplify(self.program_of(module, inputs, outputs, listed)))
        return file.read_bytes()

    def program_of(self, module: Any, inputs: Any, outputs: Any, listed: bool) -> Any:
        """What the exporter makes of a module, or has made of another one with its own numbers."""
        import onnx
        import onnx_ir
        import torch

        tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        learned = dict(tensors)
        name = Fingerprint.of(module, *shapes_of(inputs), tuple(outputs), by_shape=learned.values())
        file = self.folder / f"{name}.traced"
        with FileLock(f"{file}.lock"):  # not that of the graph, which has this name where nothing is learned
            if not file.exists():
                program = self.trace(module, inputs, outputs, listed=listed)
                file.write_bytes(program.model_proto.SerializeToString())
                return program
        model = onnx_ir.serde.deserialize_model(onnx.load_from_string(file.read_bytes()))
        program = torch.onnx.ONNXProgram(model, None)
        program.apply_weights({name: learned[name] for name in model.graph.initializers if name in learned})
        return program


@pytest.fixture(scope="session")
def graphs(shared_folder: Path) -> Graphs:
    return Graphs(shared_folder)


@pytest.fixture(scope="session")
def exported_once(graphs: Graphs) -> Iterator[None]:
    """Equal modules are exported once for all training runs of the tests, and traced once where their shapes agree.

    That equal modules give equal bytes is shown in tests/features/test_onnx_graph.py and tests/export/test_export.py.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    from flawsmith import export
    from flawsmith.features import extract

    with pytest.MonkeyPatch.context() as patch:
        # The exporter parses its translations of all operators anew for every graph, a third of a small one's time.
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        patch.setattr(extract, "to_onnx", graphs)
        patch.setattr(export, "to_onnx", graphs)
        yield


@pytest.fixture(scope="session")
def train_tiny(exported_once: None) -> Callable[..., Any]:
    """``train_tiny(method, data, out, **settings)`` trains in seconds; ``set`` changes the tiny settings."""
    import flawsmith

    def run(method: str, data: Path, out: Path, **settings: Any) -> Any:
        changed = {**tiny_of(method), **settings.pop("set", {})}
        # Synthesis in this process: starting workers takes longer than such a run, and changes nothing
        # (tests/training/test_synthesis.py). A report, which draws figures, takes as long as the rest.
        options = {"workers": 0, "quiet": True, "baseline": "none", "report": False, **settings}
        return flawsmith.train(data, out=out, method=method, preset="fast", set=changed, **options)

    return run


@pytest.fixture(scope="session")
def train_small(train_tiny: Callable[..., Any]) -> Callable[..., Any]:
    """As ``train_tiny``, on an untrained backbone of few layers, whose graphs are traced in half the time."""
    return functools.partial(train_tiny, backbone="test_efficientnet@random")


@pytest.fixture(scope="session")
def trained(
    train_tiny: Callable[..., Any], parts: Path, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """``trained(method)``: the result of one uninterrupted run on ``parts``, which all tests share and only read."""
    return shared_runs(train_tiny, parts, shared_folder / "trained", tmp_path_factory)


@pytest.fixture(scope="session")
def trained_small(
    train_small: Callable[..., Any], parts: Path, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """As ``trained``, by ``train_small``, for what does not depend on what the features are."""
    return shared_runs(train_small, parts, shared_folder / "trained-small", tmp_path_factory)


def shared_runs(
    train: Callable[..., Any], parts: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """Gives the run of a method on ``parts``; the first that asks for it makes it, in a folder of runs."""
    from flawsmith.pipeline.train import TrainResult
    from flawsmith.runtime.bundle import Bundle

    runs.mkdir(exist_ok=True)

    @functools.cache
    def of(method: str) -> TrainResult:
        folder = runs / method
        with FileLock(runs / f"{method}.lock"):
            if not folder.exists():
                train(method, parts, tmp_path_factory.mktemp("run") / method, report=True).folder.rename(folder)
        model = folder / "model.flaw"
        return TrainResult(folder, model, folder / "report.html", Bundle.load(model))

    return of
