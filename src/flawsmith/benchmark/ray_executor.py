"""Cells on a Ray cluster: each is a task of its own, given to whichever node has the CPUs for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from flawsmith import __version__
from flawsmith.benchmark.cell import WORD_TEXTURES, Task
from flawsmith.benchmark.executors import compute, failed, with_share
from flawsmith.benchmark.store import RESULT, CellFiles
from flawsmith.data.layouts import load
from flawsmith.data.splits import dataset_fingerprint
from flawsmith.pipeline.ray_cluster import (
    check_address,
    connected,
    cpus_of_nodes,
    cpus_of_this_node,
    in_one_line,
    node_name,
)
from flawsmith.runtime.errors import FlawsmithError

RETRIES = 3
Compute = Callable[..., CellFiles]
"""Computes one cell: called with the task, and by keyword with ``jobs``, the cells at a time on the machine."""


class RayExecutor:
    """Cells as tasks of a Ray cluster, in a measured process on the node that each is given to.

    A cell whose Ray worker or node dies is computed again, elsewhere if need be. What it gives is taken over once,
    here; nodes write nothing that lasts.

    Args:
        address: the cluster, as `flawsmith.pipeline.ray_cluster.connected` takes it.
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
