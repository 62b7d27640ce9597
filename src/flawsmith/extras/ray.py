"""Ray: predictions through Ray Data, and the runs of a benchmark as Ray tasks.

All nodes of a cluster need the same version of Flawsmith, and see data and results under the same paths. Predictions
need nothing of the train tier; what benchmarks need is imported where they run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawsmith.pipeline.predict import (
    MAPS,
    OVERLAYS,
    MapFormat,
    OverlayChoice,
    Prediction,
    facts_of,
    given_images,
    map_tree,
    record_of,
    write_records,
)
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import make_folder
from flawsmith.runtime.inspector import Inspector

if TYPE_CHECKING:
    import pyarrow

    from flawsmith.benchmark.experiment import RunFiles, Task

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 5.0
LOCAL_STORE_BYTES = 512 * 2**20
"""Object store of a cluster started here: what passes through it are lines of text and small files."""
RETRIES = 3
"""How often work is begun again after its worker or node died."""
IMAGES_A_BATCH = 32
_ADDRESS = re.compile(r"(?:ray://)?\[?(?P<host>[\w.:-]+?)\]?:(?P<port>\d{1,5})")


def check_address(address: str) -> None:
    """Find out in seconds whether a cluster can be there; Ray itself tries for minutes.

    Args:
        address: ``local``, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises:
        FlawsmithError: Ray is not installed, this is no address, or nothing answers there.
    """
    ray = _ray()
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", AUTO)
    if ray.is_initialized() or address in (LOCAL, AUTO):
        return
    place = _ADDRESS.fullmatch(address)
    if place is None:
        raise FlawsmithError(f"--ray {address} is no address: give local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((place["host"], int(place["port"])), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise FlawsmithError(
            f"no Ray cluster answers at {address} ({error}): give the address that `ray start --head` printed, or "
            "--ray local"
        ) from None


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster for the time of a block; where this process is connected already, that is used.

    Args:
        address: ``local`` starts a cluster on this machine and ends it afterwards; ``auto`` finds the one that runs
            here or that ``RAY_ADDRESS`` names; ``HOST:PORT`` or ``ray://HOST:PORT`` name one.

    Yields:
        The module ``ray``.

    Raises:
        FlawsmithError: Ray is not installed, or there is no cluster that can be used.
    """
    check_address(address)
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    surroundings: AbstractContextManager[object] = nullcontext()
    if address == LOCAL:
        surroundings = _no_word_leaves()
        options |= {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    try:
        with surroundings:
            ray.init(address=address, **options)
    except Exception as error:  # Ray's own share no public base, and some are plain RuntimeErrors
        raise FlawsmithError(f"cannot use the Ray cluster at {address}: {in_one_line(error)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _no_word_leaves() -> Iterator[None]:
    """What Ray starts in this block reports nothing, and does not ask which cloud it runs in.

    Its process of usage reports asks that even where they are off: it looks up a host of Google's and asks two clouds'
    addresses over plain HTTP. Ray has no switch for it, so these requests are sent to a proxy that there is not.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = {name: os.environ.get(name) for name in ("http_proxy", "no_proxy", "NO_PROXY")}
    os.environ["http_proxy"] = "http://127.0.0.1:9"  # the port of "discard"
    for name in ("no_proxy", "NO_PROXY"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def cpus_of_nodes(ray: Any) -> list[int]:
    """How many CPUs each node of the cluster offers, those that offer none left out.

    Raises:
        FlawsmithError: none does.
    """
    offers = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if not any(offers):
        raise FlawsmithError("no node of the Ray cluster offers CPUs: start one with `ray start --address ...`")
    return [cpus for cpus in offers if cpus]


def in_one_line(error: BaseException) -> str:
    """What an exception of Ray says, without the remote traceback that it carries along."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return in_one_line(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in str(error) else " ".join(lines)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise FlawsmithError("--ray needs Ray, which is not installed: run `pip install 'flawsmith[ray]'`") from error
    return ray


def predict_on_cluster(
    bundle: Bundle,
    paths: Sequence[Path],
    out: Path,
    *,
    address: str,
    overlays: OverlayChoice = "suspect",
    maps: MapFormat | None = None,
    decoders: int = 2,
    engine: str | None = None,
    model_sha256: str = "",
    seen: Callable[[dict[str, Any]], object] = lambda record: None,
) -> Prediction:
    """Inspect images as `predict` does, on a Ray cluster: the same files, in the same order.

    Workers of one CPU each load the model once and inspect a batch of images at a time; they write overlays and maps
    themselves, so every node must see the images and the output folder. Images whose worker dies are inspected again.

    Args:
        bundle: the model; it is sent to the workers.
        paths, out, overlays, maps, model_sha256, seen: as `predict` takes them.
        address: the cluster, as :func:`connected` takes it.
        decoders: threads of every worker that decode, at least 1.
        engine: as `Inspector.load` takes it.

    Returns:
        Where the results are, and counts.

    Raises:
        FlawsmithError: as `predict`; or the cluster cannot be used, or a node does not see the files.
    """
    check_address(address)
    if decoders < 1:
        raise FlawsmithError(f"decoders must be at least 1, not {decoders}")
    tree = map_tree(paths, out, maps)
    images = [{"index": index, "path": os.fsencode(path)} for index, path in enumerate(given_images(paths, out))]
    make_folder(out)
    settings = {"out": out, "overlays": overlays, "maps": maps, "tree": tree, "decoders": decoders, "engine": engine}
    try:
        with connected(address) as ray, closing(_records(ray, images, bundle, settings)) as records:
            return write_records(records, paths, out, facts=facts_of(bundle.spec.decision, model_sha256), seen=seen)
    finally:
        # A worker that was killed could not clear away the picture that it was writing.
        for folder in (out / OVERLAYS, out / MAPS):
            for unfinished in folder.rglob(".*.tmp"):
                unfinished.unlink(missing_ok=True)


def _records(
    ray: Any, images: list[dict[str, Any]], bundle: Bundle, settings: dict[str, Any]
) -> Generator[dict[str, Any], None, None]:
    """The records of all images in input order, as they come."""
    if not images:
        return
    from ray.data import ActorPoolStrategy, DataContext, from_items

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    batches = -(-len(images) // IMAGES_A_BATCH)
    records = from_items(images, override_num_blocks=batches).map_batches(
        _ImageWorker,
        fn_constructor_args=(str(Path.cwd()), ray.put(bundle), settings),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=1, max_size=min(sum(cpus_of_nodes(ray)), batches)),
        num_cpus=1,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    batches_of_records: Any = records.iter_batches(batch_size=None, batch_format="pyarrow")
    try:
        for batch in batches_of_records:
            yield from map(json.loads, batch.column("record").to_pylist())
    except ray.exceptions.RayError as error:
        raise FlawsmithError(f"the Ray cluster gave up: {in_one_line(error)}") from None


class _ImageWorker:
    """Inspects batches of images in a process of its own.

    Args:
        folder: where relative paths begin.
        bundle: Ray's reference to the model.
        settings: what `predict_on_cluster` was asked for.

    Raises:
        FlawsmithError: this node does not see the folders.
    """

    def __init__(self, folder: str, bundle: Any, settings: dict[str, Any]) -> None:
        import ray

        _enter(folder, settings["out"])
        self._settings = settings
        self._inspector = Inspector.load(ray.get(bundle), engine=settings["engine"], threads=1)

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        import pyarrow as pa

        asked = self._settings
        paths = [Path(os.fsdecode(path)) for path in batch.column("path").to_pylist()]
        results = self._inspector.stream(paths, decoders=asked["decoders"])
        records = [
            record_of(result, index, asked["out"], asked["overlays"], asked["maps"], asked["tree"])
            for index, result in zip(batch.column("index").to_pylist(), results, strict=True)
        ]
        return pa.table({"record": [json.dumps(record, allow_nan=False).encode() for record in records]})


def _enter(folder: str, *needs: Path) -> None:
    """Work in the folder that the command works in.

    Raises:
        FlawsmithError: this node does not see it, or something that is needed.
    """
    with suppress(OSError):
        os.chdir(folder)
        if all(path.exists() for path in needs):
            return
    names = ", ".join(map(str, (folder, *needs)))
    raise FlawsmithError(
        f"{socket.gethostname()} does not see {names}: nodes must see the same paths (a shared folder)"
    )


class RayExecutor:
    """Runs as tasks of a Ray cluster, in a measured process on the node that each is given to.

    A run whose Ray worker or node dies is computed again, elsewhere if need be. What it gives is taken over once,
    here; nodes write nothing that lasts.

    Args:
        address: the cluster, as :func:`connected` takes it.
        jobs: runs at a time on a node, which share its cores: a run asks for the cores of the smallest node divided by
            it.
        compute: computes a run on the node, by default :func:`flawsmith.benchmark.executors.compute`.

    Raises:
        FlawsmithError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, address: str, jobs: int = 1, *, compute: Callable[..., RunFiles] | None = None) -> None:
        from flawsmith.benchmark import executors

        check_address(address)
        self.address, self.jobs, self.compute = address, jobs, compute or executors.compute

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, RunFiles], None, None]:
        """Compute runs on the cluster; leaving the iterator early cancels what runs.

        Raises:
            FlawsmithError: the cluster cannot be used.
        """
        from flawsmith.benchmark.executors import failed
        from flawsmith.benchmark.experiment import RESULT

        if not tasks:
            return
        with connected(self.address) as ray:
            cpus = max(1, min(cpus_of_nodes(ray)) // self.jobs)
            remote = ray.remote(num_cpus=cpus, max_retries=RETRIES, retry_exceptions=False)(_on_node)
            shared = {"threads": cpus}
            pending = {
                remote.remote(task.model_copy(update=shared), str(Path.cwd()), self.compute): task for task in tasks
            }
            try:
                while pending:
                    (reference,), _ = ray.wait(list(pending), num_returns=1)
                    task = pending.pop(reference)
                    try:
                        files = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        files = {RESULT: failed(task, in_one_line(error)).model_dump_json(indent=1).encode()}
                    del reference  # Ray lets go of the files
                    yield task, files
            finally:
                for reference in pending:
                    ray.cancel(reference, force=True)


def _on_node(task: Task, folder: str, compute: Callable[..., RunFiles]) -> RunFiles:
    """Compute a run on a node."""
    from flawsmith.benchmark.executors import with_share

    ray = _ray()
    _enter(folder, task.data)
    here = ray.get_runtime_context().get_node_id()
    (cpus,) = (int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["NodeID"] == here)
    jobs = max(1, cpus // (task.threads or 1))
    return dict(compute(with_share(task, jobs), jobs=jobs))
