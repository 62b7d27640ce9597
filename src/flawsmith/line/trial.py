"""A model file of a stranger is read, opened and run in a process of its own, before the service opens it.

It stands alone so that this process loads little.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

from flawsmith.line.versions import ModelFacts
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.engine import run_apart
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector, self_test
from flawsmith.runtime.system import give_way

TRIAL_SECONDS = 30.0
"""For a file to be read, opened, and to work on its images, while the lines are at work too."""
_NICE = 10


def try_model(path: Path, *, engine: str | None, device: str | None, threads: int | None) -> ModelFacts:
    """Verify a model file, open it and run it.

    Args:
        path: of the file.
        engine, device: that the line asks for; None: those of the file.
        threads: for the network; None: one a core.

    Returns:
        What the file says of itself.

    Raises:
        FlawsmithError: it is no intact model, takes too long or too much memory, or gives other numbers than on the
            machine that made it.
    """
    facts = run_apart(
        partial(_tried, path, engine, device, threads),
        seconds=TRIAL_SECONDS,
        too_long=f"the model takes more than {TRIAL_SECONDS:g} s to be opened and run; use another one",
        is_memory_bounded=device in (None, "cpu"),  # drivers of GPUs map more than any machine has
    )
    return ModelFacts.model_validate(facts)


def _tried(path: Path, engine: str | None, device: str | None, threads: int | None) -> dict[str, Any]:
    give_way(_NICE)  # parts come first
    try:
        bundle = Bundle.load(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another engine than that of the limits: stderr is for refusals
            inspector = Inspector.load(bundle, engine=engine, device=device, threads=threads, max_seconds=TRIAL_SECONDS)
        tests = self_test(inspector, bundle)
    except FlawsmithError as error:
        raise FlawsmithError(str(error).replace(f"{path}: ", "").replace(str(path), "the file")) from None
    return ModelFacts.of(bundle, tests).model_dump(mode="json")
