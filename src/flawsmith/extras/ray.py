"""Connections to a Ray cluster, with every way to fail in one line."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawsmith import __version__
from flawsmith.pipeline.predict import MAPS, OVERLAYS, OverlayChoice, Prediction, given_images, record_of, write_records
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import make_folder, printable
from flawsmith.runtime.inspector import Inspector

if TYPE_CHECKING:
    import pyarrow

import functools

from flawsmith.benchmark.cell import RESULT, WORD_TEXTURES, CellFiles, Task
from flawsmith.benchmark.executors import compute, failed, with_share
from flawsmith.data.layouts import load
from flawsmith.data.splits import dataset_fingerprint

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 5.0
_STDERR = 2
LOCAL_STORE_BYTES = 512 * 2**20
"""Object store of a cluster started here: what passes through it are lines of text and small files."""
_PLACE = re.compile(r"(?:ray://)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_CLIENT = "ray://"
# What a client of HTTP/2, and so of gRPC, says first: the preface and an empty SETTINGS frame (RFC 9113, 3.4).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_TYPE_AT, _SETTINGS_FRAME, _FRAME_HEADER_BYTES = 3, 4, 9


def check_address(address: str) -> None:
    """Find out in seconds whether a cluster can be there; Ray itself tries for minutes.

    Args:
        address: ``local``, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises:
        FlawsmithError: Ray is not installed, this is no address, or no cluster answers.
    """
    ray = _ray()
    address = _meant(address)
    if ray.is_initialized() or address in (LOCAL, AUTO):
        return
    place = _PLACE.fullmatch(address)
    if place is None:
        raise FlawsmithError(f"--ray {address} is no address: give local, auto, HOST:PORT or ray://HOST:PORT")
    host, port = place["host"].strip("[]"), int(place["port"])
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") != "1":
                _greet(connection)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FlawsmithError(
            f"no Ray cluster answers at {address} ({reason}): give the address that `ray start --head` printed, "
            "or --ray local"
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
        FlawsmithError: Ray is not installed, no cluster answers, or it cannot be used, for example because its version
            is another.
    """
    check_address(address)
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    address = _meant(address)
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word leaves this machine unasked
        options |= {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    try:
        with _quiet_start():
            ray.init(address=address, **options)
    except ImportError as error:
        needed = "pip install 'ray[client]'"
        raise FlawsmithError(f"{address}: cannot be used ({in_one_line(error)}): run `{needed}`") from None
    except Exception as error:  # Ray's own share no public base, and some are plain RuntimeErrors
        raise FlawsmithError(f"cannot use the Ray cluster at {address}: {in_one_line(error)}") from None
    try:
        with redirect_stdout(_WithoutRay(sys.stdout)):
            yield ray
    finally:
        ray.shutdown()


def cpus_of_nodes(ray: Any) -> list[int]:
    """How many CPUs each node of the cluster offers, those that offer none left out.

    Raises:
        FlawsmithError: none does.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    offered = [cpus for cpus in nodes if cpus > 0]
    if not offered:
        raise FlawsmithError("no node of the Ray cluster offers CPUs: start one with `ray start --address ...`")
    return offered


def cpus_of_this_node(ray: Any) -> int:
    """How many CPUs the node offers that this Ray task runs on."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return int(node["Resources"].get("CPU", 1))


def node_name() -> str:
    """What messages call the machine that this runs on."""
    return socket.gethostname()


def in_one_line(error: BaseException) -> str:
    """What an exception of Ray says, without the remote traceback that it carries along."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return in_one_line(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in str(error) else " ".join(lines)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Let Ray's core tell of what ends it alone, and not of being told so.

    It writes to the file descriptor, past every logger, what the user can do nothing about and what exceptions say too.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a device, not a file)
        os.dup2(nowhere.fileno(), _STDERR)
    try:
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        del os.environ["RAY_BACKEND_LOG_LEVEL"]


class _WithoutRay(io.TextIOBase):
    """Standard output without what Ray's own threads print, such as that a worker died: that goes to stderr.

    Args:
        stream: the standard output.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        by_ray = threading.current_thread().name.startswith("ray_")
        return (sys.stderr if by_ray else self._stream).write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return self._stream.encoding


def _meant(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address


def _greet(connection: socket.socket) -> None:
    """Find out whether a gRPC server is at the other end.

    Raises:
        OSError: something else is, such as a dashboard, or it says nothing.
    """
    connection.sendall(_GREETING)
    answer = b""
    while len(answer) < _FRAME_HEADER_BYTES:
        part = connection.recv(_FRAME_HEADER_BYTES - len(answer))
        if not part:
            break
        answer += part
    if len(answer) < _FRAME_HEADER_BYTES or answer[_FRAME_TYPE_AT] != _SETTINGS_FRAME:
        raise OSError("another program listens there")


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise FlawsmithError("--ray needs Ray, which is not installed: run `pip install flawsmith[ray]`") from error
    return ray


TRIES = 3
"""How often a batch of images is begun, should its worker die every time."""
IMAGES_A_BATCH = (16, 256)
"""Images that a worker takes at a time: few at first, so that a short list occupies all, and more as a list goes on."""
WAITING_BYTES = 32 * 2**20
"""Paths and records that may wait between the parts of the pipeline, however many images there are."""


@dataclass(frozen=True)
class _Job:
    """What every worker has to know.

    Attributes:
        folder: where relative paths begin.
        paths: files and folders as they were given.
        out: the output folder as it was given.
        mark: a folder in the output folder, by which a worker knows that it sees the same one; batches that have
            begun have a file there, a byte a try.
        overlays, maps, decoders, engine: as `predict` takes them.
        version: the package's version where the job was started.
    """

    folder: str
    paths: tuple[str, ...]
    out: str
    mark: str
    overlays: OverlayChoice
    maps: bool
    decoders: int
    engine: str | None
    version: str = __version__

    def enter(self) -> None:
        """Make this process see the job's paths as the one that started it does.

        Raises:
            FlawsmithError: the node has another version of the package, or does not see the same folders.
        """
        if self.version != __version__:
            raise FlawsmithError(f"it has Flawsmith {__version__}, not {self.version}: install the same on all nodes")
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise FlawsmithError(f"it has no folder {self.folder} ({error.strerror}); {_SHARED}") from None
        for path in (*self.paths, self.mark):
            if not os.path.lexists(path):
                raise FlawsmithError(f"it does not see {printable(path)}; {_SHARED}")


_SHARED = "nodes must see images and results under the same paths (a shared folder)"


def predict_on_cluster(
    bundle: Bundle,
    paths: Sequence[Path],
    out: Path,
    *,
    address: str,
    overlays: OverlayChoice = "suspect",
    maps: bool = False,
    decoders: int = 2,
    engine: str | None = None,
    seen: Callable[[dict[str, Any]], object] = lambda record: None,
) -> Prediction:
    """Inspect images as `predict` does, on a Ray cluster.

    One task walks the folders and passes paths on; workers of one CPU each load the model once and inspect a batch of
    images at a time; the verdicts are written here, in input order. All of it streams: neither the images nor their
    list need fit in memory. Workers read images and write overlays and maps themselves, so every node must see the
    paths given and the output folder; the model is sent to them. Images whose worker dies are inspected again.

    Args:
        bundle: the model.
        paths, out, overlays, maps, seen: as `predict` takes them.
        address: the cluster, as `flawsmith.extras.ray.connected` takes it.
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
    given_images(paths, out)  # says whether there is anything at all
    make_folder(out)
    present = tuple(str(path) for path in paths if os.path.lexists(path))
    with _marked(out) as mark, connected(address) as ray:
        job = _Job(str(Path.cwd()), present, str(out), mark, overlays, maps, decoders, engine)
        with closing(_records(ray, job, tuple(map(str, paths)), bundle)) as records:
            return write_records(records, paths, out, seen=seen)


@contextmanager
def _marked(out: Path) -> Iterator[str]:
    """A folder in the output folder for the time of a block, its path; after that, nothing half-written is left."""
    mark = out / f".flawsmith-{secrets.token_hex(6)}.tmp"
    try:
        mark.mkdir()
    except OSError as error:
        raise FlawsmithError(f"{out} cannot be written ({error.strerror}): give another folder with --out") from None
    try:
        yield str(mark)
    finally:
        shutil.rmtree(mark, ignore_errors=True)
        for folder in (out / OVERLAYS, out / MAPS):
            # A worker that was killed could not clear away the picture that it was writing.
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                        Path(entry.path).unlink(missing_ok=True)


def _records(ray: Any, job: _Job, paths: tuple[str, ...], bundle: Bundle) -> Generator[dict[str, Any], None, None]:
    """The records of all images in input order, as they come.

    Raises:
        FlawsmithError: in place of the first record that could not be made.
    """
    batches = _pipeline(ray, job, paths, ray.put(bundle))
    expected = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                assert row["index"] == expected, f"record {row['index']} came where {expected} was due"
                expected += len(row["records"])
                yield from map(json.loads, row["records"])
                if row["refusal"]:
                    raise FlawsmithError(row["refusal"])
    except ray.exceptions.RayError as error:
        raise FlawsmithError(f"the Ray cluster gave up: {in_one_line(error)}") from None


def _pipeline(ray: Any, job: _Job, paths: tuple[str, ...], bundle: Any) -> Iterable[Any]:
    """Batches of records from Ray Data, in order and within bounded memory."""
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources, from_items

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=WAITING_BYTES)
    context.target_max_block_size = 1  # a block a row, and a row is a batch of images
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    walk: Any = _walk
    records = (
        from_items([{"start": 0}])
        # No CPU, so that it never waits for one, and Ray Data does not melt it into the workers' own step.
        .map_batches(walk, fn_args=(job, paths), batch_size=None, batch_format="pyarrow", num_cpus=0)
        .map_batches(
            _Worker,
            fn_constructor_args=(job, bundle),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=sum(cpus_of_nodes(ray))),
            num_cpus=1,
        )
    )
    return records.iter_batches(batch_size=None, batch_format="pyarrow")


def _walk(_: Any, job: _Job, paths: tuple[str, ...]) -> Iterator[pyarrow.Table]:
    """The images of files and folders, a row a batch; an error that ends them stands in the last row."""
    before = os.getcwd()  # noqa: PTH109
    index, waiting, refusal = 0, list[bytes](), ""
    try:
        job.enter()
        for path in given_images([Path(one) for one in paths], Path(job.out)):
            waiting.append(os.fsencode(path))
            if len(waiting) >= batch_size(index):
                yield _row(index, "paths", waiting)
                index, waiting = index + len(waiting), []
    except FlawsmithError as error:
        refusal = f"on {node_name()}: {error}"
    finally:
        os.chdir(before)
    yield _row(index, "paths", waiting, refusal)


def batch_size(index: int) -> int:
    """Images in the batch that begins at a position of the input."""
    least, most = IMAGES_A_BATCH
    return min(most, max(least, index // most))


def _row(index: int, name: str, values: list[bytes], refusal: str = "") -> pyarrow.Table:
    """A batch: the position of its first image, something of every image, and what ended the work after these."""
    import pyarrow as pa

    schema = pa.schema([("index", pa.int64()), (name, pa.list_(pa.binary())), ("refusal", pa.string())])
    return pa.Table.from_pylist([{"index": index, name: values, "refusal": refusal}], schema=schema)


class _Worker:
    """Inspects batches of images in a process of its own.

    Args:
        job: what is asked for.
        bundle: Ray's reference to the model.
    """

    def __init__(self, job: _Job, bundle: Any) -> None:
        import ray

        self._job, self._inspector, self._refusal = job, None, ""
        try:
            job.enter()
            self._inspector = Inspector.load(ray.get(bundle), engine=job.engine, threads=1)
        except FlawsmithError as error:
            self._refusal = str(error)

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        (row,) = batch.to_pylist()
        records: list[bytes] = []
        refusal = row["refusal"]
        try:
            for record in self._records(row["index"], [Path(os.fsdecode(path)) for path in row["paths"]]):
                records.append(json.dumps(record, allow_nan=False).encode())
        except FlawsmithError as error:
            refusal = f"on {node_name()}: {error}"
        return _row(row["index"], "records", records, refusal)

    def _records(self, first: int, images: list[Path]) -> Iterator[dict[str, Any]]:
        """The records of images.

        Raises:
            FlawsmithError: this node cannot do the work, a picture cannot be written, or these images have ended
                workers before.
        """
        job = self._job
        if self._inspector is None:
            raise FlawsmithError(self._refusal)
        if not images:
            return
        with _begun(Path(job.mark) / str(first)) as tries:
            if tries > TRIES:
                names = f"{printable(images[0])} to {printable(images[-1])}"
                raise FlawsmithError(f"the worker died {TRIES} times at one of {names}: find it by `flawsmith predict`")
            for index, result in enumerate(self._inspector.stream(images, decoders=job.decoders), first):
                yield record_of(result, index, Path(job.out), job.overlays, job.maps)


@contextmanager
def _begun(file: Path) -> Iterator[int]:
    """A file for the time of a block, which is left only by who dies in it; how often it has been begun.

    Ray repeats what a dead worker was doing for ever, and its option for an end goes away with Ray 2.64.
    """
    try:
        with file.open("ab") as tries:
            tries.write(b".")
    except OSError as error:
        raise FlawsmithError(f"{file}: cannot be written ({error.strerror})") from None
    yield file.stat().st_size
    file.unlink(missing_ok=True)


RETRIES = 3
Compute = Callable[..., CellFiles]
"""Computes one cell: called with the task, and by keyword with ``jobs``, the cells at a time on the machine."""


class RayExecutor:
    """Cells as tasks of a Ray cluster, in a measured process on the node that each is given to.

    A cell whose Ray worker or node dies is computed again, elsewhere if need be. What it gives is taken over once,
    here; nodes write nothing that lasts.

    Args:
        address: the cluster, as `flawsmith.extras.ray.connected` takes it.
        jobs: cells at a time on a node, which share its cores. A cell asks for the cores of the smallest node divided
            by it, unless its task says how many threads it takes.
        retries: how often a cell is computed again after its worker or node died.
        compute: computes a cell on the node.

    Raises:
        FlawsmithError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, address: str, jobs: int = 1, *, retries: int = RETRIES, compute: Compute = compute) -> None:
        check_address(address)
        self.address, self.jobs, self.retries, self.compute = address, jobs, retries, compute

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, CellFiles], None, None]:
        """Compute cells on the cluster; leaving the iterator early cancels what runs.

        Raises:
            FlawsmithError: the cluster cannot be used, or no node has as many CPUs as a cell asks for.
        """
        if not tasks:
            return
        with connected(self.address) as ray:
            yield from self._spread(ray, tasks)

    def _spread(self, ray: Any, tasks: Sequence[Task]) -> Iterator[tuple[Task, CellFiles]]:
        nodes = cpus_of_nodes(ray)
        remote = ray.remote(max_retries=self.retries, retry_exceptions=False)(on_node)
        pending: dict[Any, Task] = {}
        try:
            for task in tasks:
                cpus = task.threads or max(1, min(nodes) // self.jobs)
                if cpus > max(nodes):
                    raise FlawsmithError(f"a cell asks for {cpus} CPUs, and no node of the Ray cluster has so many")
                sent, needs = portable(task.model_copy(update={"threads": cpus}))
                given = (sent.model_dump_json(), needs, __version__, self.compute)
                pending[remote.options(num_cpus=cpus, name=task.cell.label).remote(*given)] = task
            while pending:
                (reference,), _ = ray.wait(list(pending), num_returns=1)
                task = pending.pop(reference)
                files = _files(ray, reference, task)
                del reference  # Ray lets go of the files
                yield task, files
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def portable(task: Task) -> tuple[Task, list[str]]:
    """A task whose paths do not depend on the folder that this process works in, and all of these paths."""
    from flawsmith.features.backbones import users_file  # imports torch, which a Ray worker has no need of

    changes: dict[str, Any] = {"data": task.data.absolute()}
    needs = [changes["data"]]
    if task.textures not in WORD_TEXTURES:
        needs.append(Path(str(task.textures)).absolute())
        changes["textures"] = str(needs[-1])
    file = None if task.backbone is None or task.cell.arm.peer is not None else users_file(task.backbone)
    if file is not None:
        needs.append(file.absolute())
        name, at, _ = str(task.backbone).partition("@")
        changes["backbone"] = f"{name}@{needs[-1]}" if at else str(needs[-1])
    if task.peer_python is not None:
        needs.append(task.peer_python.absolute())
        changes["peer_python"] = needs[-1]
    return task.model_copy(update=changes), [str(path) for path in needs]


def on_node(given: str, needs: Sequence[str], version: str, compute: Compute) -> CellFiles:
    """What Ray runs on a node: compute a cell there, if the node has what it takes.

    Args:
        given: the task as JSON.
        needs: paths that must be there.
        version: the package's version where the benchmark was started.
        compute: computes the cell.

    Raises:
        FlawsmithError: the node has another version of the package, does not see the files, or sees other images.
    """
    import ray

    if version != __version__:
        raise FlawsmithError(f"{node_name()} has Flawsmith {__version__}, not {version}: install the same on all nodes")
    for path in needs:
        if not Path(path).exists():
            raise FlawsmithError(f"{node_name()} has no {path}: nodes must see it under that path (a shared folder)")
    task = Task.model_validate_json(given)
    if _fingerprint(task.data, task.layout) != task.cell.images_sha256:
        raise FlawsmithError(f"{task.data} on {node_name()} holds other images than where the benchmark was started")
    cpus = cpus_of_this_node(ray)
    jobs = max(1, cpus // (task.threads or 1))
    return dict(compute(with_share(task, jobs), jobs=jobs))


@functools.lru_cache(maxsize=64)
def _fingerprint(data: Path, layout: str | None) -> str:
    """Read a category's images once a worker and not once a cell."""
    return dataset_fingerprint(load(data, layout).samples)


def _files(ray: Any, reference: Any, task: Task) -> CellFiles:
    """The files of a cell that has ended; where Ray could not have it computed, a failure that says why."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return {RESULT: failed(task, in_one_line(error)).model_dump_json(indent=1).encode()}
