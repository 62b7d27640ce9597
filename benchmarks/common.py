"""What all benchmarks share: the environment in words, paired timings, Markdown tables and result pages."""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
# Arguments that say where to work, not what to measure: a page does not repeat them.
_WHERE = ("--work", "--data", "--peer-python")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: ``--quick`` and ``--write``."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--quick", action="store_true", help="few and small repetitions: proves the script alone")
    made.add_argument("--write", action="store_true", help="write the page into docs/results")
    return made


def data_root() -> Path:
    """The shared real images: ``FLAWSMITH_DATA``, or ``../shared/data`` beside the project."""
    folder = os.environ.get("FLAWSMITH_DATA")
    return Path(folder) if folder else ROOT.parent / "shared" / "data"


def category_folder(category: str, root: Path | None = None) -> Path:
    """The folder ``<root>/<dataset>/<category>``.

    Raises:
        SystemExit: there is none, or more than one.
    """
    base = root or data_root()
    folders = sorted(path for path in base.glob(f"*/{category}") if path.is_dir())
    if len(folders) != 1:
        raise SystemExit(f"{base} holds {len(folders)} folders called {category}: set FLAWSMITH_DATA")
    return folders[0]


def environment() -> str:
    """CPU, cores and versions, as one paragraph of Markdown."""
    from flawsmith.pipeline.provenance import machine, versions

    installed = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"Measured on {machine()}, {_memory()}; {installed}."


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 2**30:.0f} GiB"


def command() -> str:
    """The command that makes this page again, without the machine's own folders."""
    options: list[str] = []
    skip = False
    for argument in sys.argv[1:]:
        name = argument.partition("=")[0]
        if not skip and name not in _WHERE:
            options.append(shlex.quote(argument))
        skip = name in _WHERE and "=" not in argument
    script = Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix()
    return " ".join(["python", script, *options])


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join([' --- ', *[' ---: '] * (len(heads) - 1)])}|"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def trained_model(
    data: Path, name: str, work: Path, method: str, *, seed: int = 0, settings: Mapping[str, object] | None = None
) -> Path:
    """The model file of a training that is made once: a second call with the same name takes it from ``work``."""
    import flawsmith

    run = work / name
    if not (run / "model.flaw").exists():
        flawsmith.train(data, out=run, method=method, seed=seed, baseline="none", quiet=True, set=dict(settings or {}))
    return run / "model.flaw"


def data_table(file: Path, rows: Iterable[tuple[Path, str, str]]) -> Path:
    """Write a table of images, labels and splits, as Flawsmith reads one; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "label", "split"), *rows])
    return file


def draw_parts(folder: Path, number: int, *, part: str = "bracket", size: tuple[int, int]) -> Path:
    """Render good parts of (height, width) pixels into a folder, which is made."""
    from PIL import Image

    from flawsmith.synthesis.demo_parts import render_part

    folder.mkdir(parents=True)
    for index in range(number):
        Image.fromarray(render_part(part, index=index, size=size)[0]).save(folder / f"{index:04d}.png")
    return folder


# The verdicts of these methods do not depend on what trains longest, as the score is that of their memories alone.
VERDICT_ALONE: Mapping[str, Mapping[str, object]] = {"fusion": {"epochs": 1}}


def page(name: str, title: str, sections: Iterable[str], *, write: bool) -> None:
    """Print a page of results, and write it to ``docs/results/<name>.md``.

    Args:
        name: the file's name without its ending.
        title: the heading.
        sections: blocks of Markdown, in order.
        write: whether to write the file.
    """
    from flawsmith.runtime.files import replacing

    head = [f"# {title}", f"Made by `{command()}`.", environment()]
    text = "\n\n".join([*head, *sections]) + "\n"
    print(text)
    if write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        with replacing(RESULTS / f"{name}.md") as temporary:
            temporary.write_text(text)


@dataclass(frozen=True)
class Pairs:
    """Two tasks timed in turns.

    Attributes:
        first, second: seconds of each run, in pairs.
    """

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        """Median seconds of the first and of the second task."""
        return statistics.median(self.first), statistics.median(self.second)

    @property
    def ratio(self) -> float:
        """Median over the pairs of second / first."""
        return statistics.median(self._ratios())

    @property
    def spread(self) -> tuple[float, float]:
        """The tenth and the ninetieth percentile of the paired ratios."""
        ordered = sorted(self._ratios())
        last = len(ordered) - 1
        return ordered[round(0.1 * last)], ordered[round(0.9 * last)]

    def _ratios(self) -> list[float]:
        return [second / first for first, second in zip(self.first, self.second, strict=True)]

    def speed_up(self) -> tuple[str, str, str]:
        """Milliseconds of both, and how many times faster the second is, with its spread."""
        return milliseconds(self.medians[0]), milliseconds(self.medians[1]), Pairs(self.second, self.first).ratio_text()

    def ratio_text(self) -> str:
        """The ratio with its spread, such as ``3.71 (3.60 to 3.80)``."""
        low, high = self.spread
        return f"{self.ratio:.2f} ({low:.2f} to {high:.2f})"


def seconds(task: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def paired(first: Callable[[], object], second: Callable[[], object], *, pairs: int, warm_up: int = 2) -> Pairs:
    """Time two tasks in alternating order, so that what slows the machine down slows both.

    Args:
        first, second: the tasks; the ratio is second / first.
        pairs: number of pairs; every other one begins with the second task.
        warm_up: untimed calls of each beforehand.
    """
    for _ in range(warm_up):
        first()
        second()
    results: list[tuple[float, float]] = []
    for number in range(pairs):
        if number % 2:
            late = seconds(second)
            results.append((seconds(first), late))
        else:
            early = seconds(first)
            results.append((early, seconds(second)))
    return Pairs(tuple(one for one, _ in results), tuple(two for _, two in results))


def milliseconds(value: float) -> str:
    """Seconds as milliseconds with three digits that count."""
    number = 1000 * value
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
