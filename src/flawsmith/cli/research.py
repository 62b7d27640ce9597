"""Commands of research: ``benchmark``, ``reproduce``, ``download`` and ``convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawsmith.cli.app import (
    DATA,
    RESEARCH,
    SPEED,
    AsJson,
    Layout,
    Quiet,
    Ray,
    SeveralValues,
    error_boundary,
    parse_settings,
    print_err,
    print_json,
    print_out,
    progress,
    shows_progress,
)
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.benchmark.executors import Executor
    from flawsmith.benchmark.experiment import RunResult
    from flawsmith.benchmark.plan import Plan
    from flawsmith.benchmark.run import BenchmarkResult


SOMETHING_FAILED = 1


class BenchmarkCommand(SeveralValues):
    """Lists are written as ``--methods pbas glass``."""

    numbers = frozenset({"--fractions", "--seeds"})
    words = frozenset({"--methods", "--presets", "--backbones", "--categories", "--parts"})


def benchmark(
    data: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DATA]...", help="Category folders, or folders of categories, with labelled tests."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A YAML file with the fields of these options; options replace its fields.")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option(help="Methods to compare.")] = None,
    presets: Annotated[list[str] | None, typer.Option(help="Presets; fast by default.")] = None,
    backbones: Annotated[list[str] | None, typer.Option(help="Backbones; by default what the preset takes.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Seeds; 0 by default.")] = None,
    out: Annotated[Path, typer.Option(help="The benchmark's folder; what is finished there is not computed again.")] = (
        Path("benchmark")
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute finished runs again.")] = False,
    categories: Annotated[list[str] | None, typer.Option(rich_help_panel=DATA, help="Only these categories.")] = None,
    fractions: Annotated[
        list[float] | None, typer.Option(rich_help_panel=DATA, help="Shares of the training images.")
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=DATA, help="Parts of the test split to report: whole (the default), A, B."),
    ] = None,
    textures: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA, help="Textures of the methods that synthesize: a folder, self, or procedural."
        ),
    ] = None,
    layout: Layout = None,
    jobs: Annotated[
        int,
        typer.Option(
            rich_help_panel=SPEED, min=1, help="Runs at a time, which share the cores; with --ray, runs on each node."
        ),
    ] = 1,
    memory: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=SPEED,
            min=0.1,
            help="Stop a run that takes more than these GB of memory; by default an even share of the memory there is.",
        ),
    ] = None,
    ray: Ray = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESEARCH, help="clean (the default), or papers: as each method's released code measures."
        ),
    ] = None,
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle", rich_help_panel=RESEARCH, help="Choose checkpoints on test data, and say so on every table."
        ),
    ] = False,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=RESEARCH,
            metavar="KEY=[VALUES]",
            help="Compare values of a method's setting, such as patch_size=[1,3,5].",
        ),
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", rich_help_panel=RESEARCH, help="Keep the model file of every run.")
    ] = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods on labelled data; can be interrupted and continued.

    Example: flawsmith benchmark parts --methods patchcore pbas glass --seeds 0 1 2 --out results
    """
    options: dict[str, Any] = {
        "data": data,
        "methods": methods,
        "presets": presets,
        "backbones": backbones,
        "categories": categories,
        "fractions": fractions,
        "seeds": seeds,
        "parts": parts,
        "protocol": protocol,
        "select": "oracle" if oracle else None,
        "textures": textures,
        "layout": layout,
    }
    with error_boundary(
        tier="benchmark", interrupted=f"interrupted: the same command goes on; finished runs are in {out}"
    ):
        from flawsmith.benchmark.run import run_benchmark

        executor: Executor | None = None
        if ray is not None:
            from flawsmith.extras.ray import RayExecutor

            executor = RayExecutor(ray, jobs)
        chosen_plan = _plan(plan, {**options, "vary": _lists(vary or [])})
        with RunProgress(show=shows_progress(quiet=quiet or json_), quiet=quiet or json_) as bar:
            result = run_benchmark(
                chosen_plan,
                out,
                executor=executor,
                jobs=jobs,
                memory_bytes=None if memory is None else int(memory * 1e9),
                keep_models=keep_models,
                fresh=fresh,
                on_start=bar.start,
                on_result=bar.add,
            )
    conclude(result, json_=json_, quiet=quiet)


def _plan(file: Path | None, options: dict[str, Any]) -> Plan:
    from flawsmith.benchmark.plan import Plan

    changes = {name: value for name, value in options.items() if value not in (None, [], {})}
    if file is not None:
        return Plan.from_file(file, changes)
    if "data" not in changes or "methods" not in changes:
        raise FlawsmithError("give the data and --methods, or a file with both by --plan")
    return Plan.checked(changes, source="benchmark")


def _lists(pairs: list[str]) -> dict[str, list[Any]]:
    settings = parse_settings(pairs, option="--vary")
    return {name: value if isinstance(value, list) else [value] for name, value in settings.items()}


class RunProgress:
    """A bar over runs with an estimate, and a line a run."""

    def __init__(self, *, show: bool, quiet: bool) -> None:
        self._show, self._quiet = show, quiet
        self._bar: Any = None

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def start(self, total: int, pending: int) -> None:
        if not self._quiet:
            print_err(f"{total} runs, {total - pending} finished before")
        self._bar = progress("runs", pending, show=self._show)
        self._advance = self._bar.__enter__()

    def add(self, result: RunResult) -> None:
        self._advance()
        if self._quiet:
            return
        seconds = result.costs.train_seconds
        first = next(iter(result.evaluations.values()), None)
        auroc = None if first is None else first.image_auroc
        score = "" if auroc is None else f"image AUROC {auroc:.4f}, "
        words = f"{score}{seconds or 0:.0f} s" if result.finished else f"failed: {result.error}"
        print_err(f"{result.run.label}: {words}")


def conclude(result: BenchmarkResult, *, json_: bool, quiet: bool) -> None:
    """Print the tables of a benchmark, or what it came to, and end with an exit code where runs failed."""
    if json_:
        print_json(
            {
                "runs": len(result.results),
                "computed": result.computed,
                "failed": [failed.run.label for failed in result.failed],
                "files": {name: str(path) for name, path in result.files.items()},
            }
        )
    else:
        print_out(*result.files["md"].read_text(encoding="utf-8").split("\n"))
    if not quiet:
        print_err(f"tables: {', '.join(str(path) for path in result.files.values())}")
    if result.failed:
        print_err(f"{len(result.failed)} of {len(result.results)} runs failed; the same command tries them again")
        raise typer.Exit(SOMETHING_FAILED)


class ReproduceCommand(SeveralValues):
    """Lists are written as ``--categories bottle screw``."""

    numbers = frozenset({"--seeds"})
    words = frozenset({"--categories"})


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Table or figure of a paper, such as glass-table-2.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List what can be made, and end.")] = False,
    data: Annotated[Path | None, typer.Option(help="The folder that holds the public data sets.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; what is finished there is not computed again.")] = (
        Path("reproduced")
    ),
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say how long it will take and how much disk, and end.")
    ] = False,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Run through on drawn data, in seconds a run; its figures mean nothing.")
    ] = False,
    categories: Annotated[list[str] | None, typer.Option(rich_help_panel=DATA, help="Only these categories.")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(rich_help_panel=RESEARCH, help="Seeds in place of the plan's.")
    ] = None,
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle", rich_help_panel=RESEARCH, help="Choose checkpoints on test data, as the released codes do."
        ),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SPEED,
            help="What computes features: onnxruntime, openvino or torch; by default torch where it has a GPU.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(rich_help_panel=SPEED, min=1, help="Runs at a time, which share the cores.")] = 1,
    memory: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=SPEED, min=0.1, help="GB of memory at which a run is stopped; by default an even share."
        ),
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", rich_help_panel=RESEARCH, help="Keep the model file of every run.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute finished runs again.")] = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a table or a sweep of the papers, and set it beside the printed one.

    Example: flawsmith reproduce glass-table-1 --data datasets --out reproduced
    """
    with error_boundary(
        tier="benchmark", interrupted=f"interrupted: the same command goes on; finished runs are in {out}"
    ):
        from flawsmith.benchmark import reproduce as tables

        if list_:
            titles = {each: tables.paper_plan(each).title for each in tables.plan_names()}
            if json_:
                print_json(titles)
            else:
                width = max(map(len, titles))
                print_out(*(f"{each:<{width}}  {title}" for each, title in titles.items()))
            return
        if name is None:
            raise FlawsmithError("say what to make, such as glass-table-1; `flawsmith reproduce --list` shows all")
        chosen: dict[str, Any] = {
            "categories": categories or (),
            "seeds": seeds or (),
            "oracle": oracle,
            "engine": engine,
            "stand_in": stand_in,
        }
        if estimate:
            silent = quiet or json_
            told = (lambda title: None) if silent else (lambda title: print_err(f"trying {title}"))
            result = tables.estimate_plan(name, data, out, on_probe=told, **chosen)
            if json_:
                print_json({**vars(result), "by_experiment": dict(result.by_experiment)})
            else:
                print_out(*result.in_words().split("\n"))
            return
        with RunProgress(show=shows_progress(quiet=quiet or json_), quiet=quiet or json_) as bar:
            made = tables.reproduce(
                name,
                data,
                out,
                jobs=jobs,
                memory_bytes=None if memory is None else int(memory * 1e9),
                keep_models=keep_models,
                fresh=fresh,
                on_start=bar.start,
                on_result=bar.add,
                **chosen,
            )
    conclude(made, json_=json_, quiet=quiet)


def download(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A public data set, such as visa.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the data sets with licence and page, and end.")] = False,
    to: Annotated[Path, typer.Option(help="The folder that holds data sets.")] = Path("datasets"),
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="You have read the licence, and accept it.")
    ] = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a public data set from its authors, after its licence was accepted.

    Example: flawsmith download visa --to datasets --accept-licence
    """
    with error_boundary(tier="benchmark", interrupted=f"interrupted: the same command goes on; what came is in {to}"):
        from flawsmith.data import downloads

        if list_:
            sets = downloads.DOWNLOADS
            if json_:
                print_json({key: vars(each) for key, each in sets.items()})
            else:
                for key, each in sets.items():
                    print_out(key, *(f"  {line}" for line in (*each.terms(), *filter(None, [each.why]))))
            return
        if name is None:
            raise FlawsmithError("say what to fetch, such as visa; `flawsmith download --list` shows all")
        chosen = downloads.find_download(name)
        if not quiet:
            print_err(*chosen.terms())
        with progress(chosen.archive, None, show=shows_progress(quiet=quiet or json_)) as advance:
            folder = downloads.download(name, to, accept_licence=accept_licence, on_bytes=lambda done, total: advance())
    if json_:
        print_json({"folder": str(folder), "archive": str(to / chosen.archive)})
    else:
        print_out(f"{chosen.name}: unpacked into {folder}")


convert = typer.Typer(
    name="convert", help="Make a model file of released weights.", no_args_is_help=True, add_completion=False
)


@convert.callback()
def _convert() -> None:
    """Make a model file of released weights."""


@convert.command("glass")
def glass(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The authors' ckpt_best_NUMBER.pth of a category.")
    ],
    data: Annotated[Path, typer.Option(help="The category's folder, whose good images set the limits.")],
    out: Annotated[Path, typer.Option(help="The model file.")] = Path("model.flaw"),
    backbone: Annotated[
        str | None, typer.Option(help="Name or file of the backbone; by default the authors', from the hub.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting that differs from preset official; repeatable."),
    ] = None,
    layout: Layout = None,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model file of the authors' weights of GLASS, to evaluate or to inspect with.

    Example: flawsmith convert glass ckpt_best_639.pth --data datasets/mvtec/bottle --out bottle.flaw
    """
    with error_boundary(tier="train"):
        from flawsmith.pipeline.convert import convert_glass

        bundle = convert_glass(checkpoint, data, out, backbone=backbone, layout=layout, set=parse_settings(set_ or []))
    if not quiet:
        print_err(*bundle.spec.training.stamps)
    if json_:
        print_json({"model": str(out), "parity": bundle.spec.parity})
    else:
        print_out(f"model: {out}", f"now:   flawsmith evaluate {out} {data} --protocol papers")
