"""Models of anomalib on labelled data, measured by the rules of `flawsmith benchmark` and into the same tables.

Takes a plan like `flawsmith benchmark --plan`, with `anomalib-padim`, `anomalib-patchcore`, `anomalib-glass` or
`anomalib-efficientad` as methods. Results lie in --out as those of `flawsmith benchmark`; where both have written into
one folder, the tables show both. What is finished is not computed again.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from driver import check_environment, train_anomalib

from flawsmith.benchmark.executors import LocalExecutor
from flawsmith.benchmark.experiment import ResultStore
from flawsmith.benchmark.plan import Plan, tasks
from flawsmith.benchmark.run import run_tasks
from flawsmith.benchmark.tables import write_tables
from flawsmith.benchmark.worker import serve
from flawsmith.runtime.errors import FlawsmithError
from models import MODELS, PREFIX, resolve


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path, help="category folders, or folders of categories")
    parser.add_argument("--plan", type=Path, help="a YAML file as of `flawsmith benchmark`; options replace its fields")
    parser.add_argument("--methods", nargs="+", help=f"of {', '.join(PREFIX + name for name in MODELS)}")
    parser.add_argument("--categories", nargs="+", help="only these categories")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds; 0 by default")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="the benchmark's folder")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter of an environment with anomalib")
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)  # the folder of one run, computed here
    return parser.parse_args(words)


def benchmark(options: argparse.Namespace) -> int:
    """Compute what is not finished, and write the tables of all that is in the folder."""
    fields = {name: value for name in ("data", "methods", "categories", "seeds") if (value := getattr(options, name))}
    if options.plan is not None:
        plan = Plan.from_file(options.plan, fields)
    else:
        plan = Plan.checked(fields, source="benchmark")
    planned = tasks(plan, resolve=resolve)
    check_environment([task.run.experiment for task in planned], options.peer_python)
    worker = (sys.executable, __file__, "--peer-python", str(options.peer_python), "--task")
    executor = LocalExecutor(options.jobs, worker=worker)
    result = run_tasks(planned, options.out, executor=executor, on_result=lambda result: print(result.run.label))
    files = write_tables(ResultStore(options.out).results(), options.out)
    print(files["md"].read_text(encoding="utf-8"))
    for failed in result.failed:
        print(f"{failed.run.label}: {failed.error}", file=sys.stderr)
    return 1 if result.failed else 0


def main(words: Sequence[str] | None = None) -> int:
    """The command line; those words, or the process's own."""
    options = arguments(words)
    # A virtual environment's interpreter is a link, and is itself only under that name: it must not be resolved.
    options.peer_python = options.peer_python.expanduser().absolute()
    if options.task is not None:
        return serve(options.task, train=functools.partial(train_anomalib, python=options.peer_python))
    try:
        return benchmark(options)
    except FlawsmithError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
