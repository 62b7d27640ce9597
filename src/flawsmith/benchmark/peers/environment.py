"""The peer's interpreter: whether it is one, what it can run, and running its script."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flawsmith.benchmark.cell import Task
from flawsmith.benchmark.peers.models import Peer, model_name, peer_of
from flawsmith.runtime.errors import FlawsmithError

CONTRACT, REFUSED = 1, 3
PROBE_SECONDS = 600
"""From a cold disk, torch and anomalib take a minute to import."""
_STDERR_BYTES = 8000


class Probe(BaseModel):
    """What a runner says of its environment."""

    model_config = ConfigDict(extra="forbid")

    contract: int
    models: tuple[str, ...]
    versions: dict[str, str]


def check_environment(tasks: Iterable[Task]) -> None:
    """See to it that the peers' models among some tasks can be run, asking each interpreter once.

    Raises:
        FlawsmithError: no interpreter is given, it is none, or the package or a model is missing there.
    """
    found: dict[tuple[str, Path], Probe] = {}
    for task in tasks:
        arm = task.cell.arm
        if arm.peer is None:
            continue
        python, peer = peer_python(task), peer_of(arm)
        if (arm.peer, python) not in found:
            found[arm.peer, python] = probe(python, peer)
        there = found[arm.peer, python]
        if model_name(arm) not in there.models:
            raise FlawsmithError(
                f"{arm.method} is not in {arm.peer} {there.versions.get(arm.peer, '')} of {python}: run "
                f"`{python} -m pip install --upgrade {peer.install}`"
            )


def peer_python(task: Task) -> Path:
    """The interpreter of a peer's task.

    Raises:
        FlawsmithError: none is given; the message says how to make one.
    """
    if task.peer_python is None:
        arm = task.cell.arm
        folder = f".venv-{arm.peer}"
        raise FlawsmithError(
            f"{arm.method} runs in an environment of its own: make it with `python3 -m venv {folder} && "
            f"{folder}/bin/pip install {peer_of(arm).install}` and add --peer-python {folder}/bin/python"
        )
    return task.peer_python


def probe(python: Path, peer: Peer) -> Probe:
    """What a peer's environment can run.

    Raises:
        FlawsmithError: the interpreter does not run the script, or the script says why it cannot go on.
    """
    said = run_script(python, peer.runner, ["probe"], seconds=PROBE_SECONDS).splitlines()
    try:
        found = Probe.model_validate_json(said[-1] if said else "")
    except ValidationError:
        raise FlawsmithError(f"--peer-python {python}: does not run Python scripts; give an interpreter") from None
    if found.contract != CONTRACT:
        raise FlawsmithError(f"{peer.runner}: speaks contract {found.contract}, and {CONTRACT} is needed; install anew")
    return found


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
            done = subprocess.run(
                command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, timeout=seconds, check=False
            )
        except OSError as error:
            reason = error.strerror or error
            raise FlawsmithError(f"--peer-python {python}: cannot be run ({reason}); give an interpreter") from None
        except subprocess.TimeoutExpired:
            raise FlawsmithError(
                f"--peer-python {python}: said nothing for {seconds:.0f} s; look what it does"
            ) from None
        if done.returncode < 0:
            raise FlawsmithError(f"{python} was killed by signal {-done.returncode}, perhaps for want of memory")
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
        if done.returncode:
            last = lines[-1] if lines else "without a word"
            raise FlawsmithError(
                last if done.returncode == REFUSED else f"{python} ended with {done.returncode}: {last}"
            )
        stdout.seek(0)
        return stdout.read().decode(errors="replace")
