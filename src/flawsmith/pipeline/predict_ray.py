"""Inspecting folders of any size on a Ray cluster: the files that `predict` writes, made by many workers."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawsmith import __version__
from flawsmith.pipeline.names import make_folder, printable
from flawsmith.pipeline.predict import (
    MAPS,
    OVERLAYS,
    OverlayChoice,
    Prediction,
    given_images,
    record_of,
    write_records,
)
from flawsmith.pipeline.ray_cluster import check_address, connected, cpus_of_nodes, in_one_line, node_name
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

if TYPE_CHECKING:
    import pyarrow

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
        address: the cluster, as `flawsmith.pipeline.ray_cluster.connected` takes it.
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
