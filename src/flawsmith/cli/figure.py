"""``flawsmith figure``: one command a figure of the papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawsmith.cli.app import (
    DATA,
    RESEARCH,
    AsJson,
    Layout,
    Quiet,
    SeveralValues,
    Tier,
    error_boundary,
    print_err,
    print_json,
    print_out,
    progress,
)
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.figures.style import PaperFigure


figure = typer.Typer(
    name="figure", help="Draw publication figures from finished runs.", no_args_is_help=True, add_completion=False
)


class FigureCommand(SeveralValues):
    """Lists are written as ``--metric image_auroc aupro``."""

    words = frozenset({"--metric", "--pick", "--data", "--sets", "--planes", "--maps"})


Sources = Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Folders that hold what is to be drawn.")]
Benchmarks = Annotated[list[Path], typer.Argument(metavar="BENCHMARK", help="Folders of `flawsmith benchmark`.")]
Models = Annotated[
    list[Path],
    typer.Argument(metavar="MODEL", help="Model files, run folders, or a benchmark's folder with kept models."),
]
Out = Annotated[Path, typer.Option(help="The figure; its suffix says the format: .pdf, .svg or .png.")]
Numbers = Annotated[bool, typer.Option("--csv", help="Write the numbers behind the figure beside it.")]
Seed = Annotated[
    int | None, typer.Option(rich_help_panel=DATA, help="Seed of a benchmark's runs; the lowest by default.")
]
PartOption = Annotated[
    str | None, typer.Option("--part", rich_help_panel=DATA, help="Part of the test split: whole, A or B.")
]
Metrics = Annotated[
    list[str] | None, typer.Option("--metric", help="Figures such as image_auroc, pixel_auroc, aupro; a panel each.")
]
ByCategory = Annotated[bool, typer.Option("--by-category", help="Panels by category in place of their mean.")]


@figure.command("scores", cls=FigureCommand)
def scores(
    sources: Sources,
    out: Out = Path("scores.pdf"),
    seed: Seed = None,
    csv: Numbers = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Histograms of image scores, good against flawed, with the limits: of run, evaluation or benchmark folders.

    Example: flawsmith figure scores runs/bolt --out scores.pdf
    """

    def draw() -> PaperFigure:
        from flawsmith.figures.scores import score_histograms
        from flawsmith.figures.sources import scored

        return score_histograms(scored(sources, seed=seed))

    _make(draw, out, csv=csv, json_=json_, quiet=quiet)


@figure.command("grid", cls=FigureCommand)
def grid(
    models: Models,
    data: Annotated[list[Path], typer.Option(help="Labelled data: category folders, or folders of categories.")],
    out: Out = Path("grid.pdf"),
    n: Annotated[int, typer.Option("--n", min=1, help="Images of every kind and category.")] = 2,
    pick: Annotated[
        list[str] | None, typer.Option(help="Kinds by the first model's score: worst, typical, best; all by default.")
    ] = None,
    seed: Seed = None,
    layout: Layout = None,
    csv: Numbers = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Images with ground truth and the maps of several models side by side: misses, typical finds and the surest.

    Example: flawsmith figure grid runs/pbas runs/glass --data parts/bolt --pick worst typical
    """

    def draw() -> PaperFigure:
        from flawsmith.figures import grid as figures
        from flawsmith.figures.sources import models as named

        picks: Any = _choices(pick, figures.PICKS, "--pick")
        datasets = figures.datasets(data, layout)
        total = sum(len(dataset.test_flawed) for dataset in datasets)
        with progress("inspecting", total, quiet=quiet or json_) as advance:
            rows = list(figures.grid_rows(named(models, seed=seed), datasets, n=n, picks=picks, on_step=advance))
        return figures.qualitative_grid(rows)

    _make(draw, out, csv=csv, json_=json_, quiet=quiet)


@figure.command("features", cls=FigureCommand)
def features(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of `flawsmith train`.")],
    data: Annotated[Path, typer.Option(help="A category folder with good and flawed test images.")],
    out: Out = Path("features.pdf"),
    planes: Annotated[list[str] | None, typer.Option(help="Projections: pca, tsne; both by default.")] = None,
    maps: Annotated[
        list[str] | None, typer.Option(help="Only feature maps whose names hold one of these words, such as adapted.")
    ] = None,
    layout: Layout = None,
    seed: Annotated[
        int,
        typer.Option(rich_help_panel=RESEARCH, min=0, help="Seed of the chosen positions and the synthetic flaws."),
    ] = 0,
    csv: Numbers = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Features of good parts, flaws and synthetic flaws as the trained method sees them, by PCA and t-SNE.

    Example: flawsmith figure features runs/bolt --data parts/bolt --planes tsne
    """

    def draw() -> PaperFigure:
        from flawsmith.data.layouts import load
        from flawsmith.figures.features import PLANES, feature_planes
        from flawsmith.pipeline.restore import check_run, feature_clouds

        chosen: Any = _choices(planes, PLANES, "--planes")
        folder, dataset = check_run(run), load(data, layout)
        with progress("looking", None, quiet=quiet or json_) as on_step:
            clouds = feature_clouds(folder, dataset, seed=seed, on_step=on_step)
        shown = [cloud for cloud in clouds if not maps or any(word in cloud.title for word in maps)]
        if not shown:
            names = ", ".join(cloud.title for cloud in clouds)
            raise FlawsmithError(f"--maps {' '.join(maps or [])}: no feature map is called so: there are {names}")
        return feature_planes(shown, planes=chosen)

    _make(draw, out, csv=csv, json_=json_, quiet=quiet, tier="train")


@figure.command("curve", cls=FigureCommand)
def curve(
    benchmarks: Benchmarks,
    out: Out = Path("curve.pdf"),
    x: Annotated[
        str | None,
        typer.Option(help="What was varied: fraction, or a setting such as patch_size; detected by default."),
    ] = None,
    metric: Metrics = None,
    by_category: ByCategory = False,
    part: PartOption = None,
    csv: Numbers = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy against a quantity that a benchmark varied, a line a method, with the spread over seeds.

    Example: flawsmith figure curve results --x patch_size --metric image_auroc aupro
    """

    def draw() -> PaperFigure:
        from flawsmith.figures.curve import check_metrics
        from flawsmith.figures.curve import curve as drawn
        from flawsmith.figures.sources import benchmark_results

        check_metrics(metric or [])
        results = benchmark_results(benchmarks)
        return drawn(results, x=x, metrics=metric or [], by_category=by_category, part=part)

    _make(draw, out, csv=csv, json_=json_, quiet=quiet)


@figure.command("weakness", cls=FigureCommand)
def weakness(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Models or run folders with --sets, or benchmarks over such sets."),
    ],
    sets: Annotated[
        list[Path] | None, typer.Option(help="Folders of `flawsmith synthesize --test-set`, one a category.")
    ] = None,
    out: Out = Path("weakness.pdf"),
    metric: Metrics = None,
    by_category: ByCategory = False,
    part: PartOption = None,
    csv: Numbers = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy against how weak synthetic flaws are: evaluates models on test sets, or reads a benchmark over them.

    Example: flawsmith figure weakness runs/pbas runs/glass --sets weak --metric image_auroc pixel_auroc
    """

    def draw() -> PaperFigure:
        from flawsmith.figures import curve as figures
        from flawsmith.figures.sources import benchmark_results, models

        figures.check_metrics(metric or [])
        if not sets:
            results = benchmark_results(sources)
            return figures.weakness_of_benchmark(results, metrics=metric or [], by_category=by_category, part=part)
        if part is not None:
            raise FlawsmithError("--part has no meaning with --sets: drop one of them")
        with progress("evaluating", None, quiet=quiet or json_) as advance:
            results_of_models = figures.measure(models(sources), figures.weak_sets(sets), on_step=advance)
        return figures.weakness(results_of_models, metrics=metric or [], by_category=by_category)

    _make(draw, out, csv=csv, json_=json_, quiet=quiet)


@figure.command("thresholds", cls=FigureCommand)
def thresholds(
    models: Models,
    data: Annotated[Path, typer.Option(help="A category folder with good and flawed test images and masks.")],
    out: Out = Path("thresholds.pdf"),
    seed: Seed = None,
    layout: Layout = None,
    csv: Numbers = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """False-positive rate and overlap (sPRO, or PRO) against the threshold on the map, a panel a model.

    Example: flawsmith figure thresholds runs/slsg runs/padim --data parts/juice_bottle
    """

    def draw() -> PaperFigure:
        from flawsmith.data.layouts import load
        from flawsmith.figures import scores as figures
        from flawsmith.figures.sources import models as named

        chosen, dataset = named(models, seed=seed), load(data, layout)
        total = len(chosen) * (len(dataset.test_good) + len(dataset.test_flawed))
        with progress("inspecting", total, quiet=quiet or json_) as advance:
            curves = figures.measure(chosen, dataset, on_step=advance)
        return figures.threshold_curves(curves)

    _make(draw, out, csv=csv, json_=json_, quiet=quiet)


@figure.command("latency", cls=FigureCommand)
def latency(
    benchmarks: Benchmarks,
    out: Out = Path("latency.pdf"),
    metric: Annotated[str, typer.Option(help="Figure such as image_auroc, pixel_auroc or aupro.")] = "image_auroc",
    part: PartOption = None,
    csv: Numbers = False,
    json_: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy against latency over the experiments of a benchmark: area by model size, with the Pareto front.

    Example: flawsmith figure latency results --metric aupro
    """

    def draw() -> PaperFigure:
        from flawsmith.figures.curve import check_metrics
        from flawsmith.figures.latency import latency as drawn
        from flawsmith.figures.sources import benchmark_results

        check_metrics([metric])
        return drawn(benchmark_results(benchmarks), metric=metric, part=part)

    _make(draw, out, csv=csv, json_=json_, quiet=quiet)


def _make(
    draw: Callable[[], PaperFigure], out: Path, *, csv: bool, json_: bool, quiet: bool, tier: Tier = "eval"
) -> None:
    with error_boundary(tier=tier, interrupted="interrupted: nothing was written"):
        from flawsmith.figures.style import check_name, write
        from flawsmith.runtime.outputs import refuse_irreplaceable

        check_name(out)
        refuse_irreplaceable([out, out.with_suffix(".csv")] if csv else [out])
        drawn = draw()
        files = write(drawn, out, numbers=csv)
    if json_:
        print_json({**{name: str(path) for name, path in files.items()}, "notes": list(drawn.notes)})
        return
    for path in files.values():
        print_out(str(path))
    for note in [] if quiet else drawn.notes:
        print_err(f"note: {note}")


def _choices(given: Sequence[str] | None, known: Sequence[str], option: str) -> list[str]:
    """What was chosen, in the usual order; all by default.

    Raises:
        FlawsmithError: an unknown choice.
    """
    for name in given or []:
        if name not in known:
            raise FlawsmithError(f"{option} {name}: choose from {', '.join(known)}")
    return [name for name in known if not given or name in given]
