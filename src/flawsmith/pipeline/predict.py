"""Inspecting files and folders of any size, with results on disk as they come."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, get_args

import numpy as np
from PIL import Image

from flawsmith.runtime.decision import Decision
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import (
    further_pictures_note,
    is_folder,
    iter_images,
    left_out,
    left_out_note,
    make_folder,
    printable,
    replacing,
    result_name,
)
from flawsmith.runtime.inspector import Inspection, Inspector, Unreadable
from flawsmith.runtime.outputs import exclusive_folder, refuse_irreplaceable, uninterrupted
from flawsmith.runtime.regions import STRANGEST_PLACE

LINES, TABLE, OVERLAYS, MAPS = "verdicts.jsonl", "verdicts.csv", "overlays", "maps"
_NAMED = 3
OverlayChoice = Literal["none", "suspect", "all"]
"""Which images get an overlay: none, those with the verdict review or reject, or all."""
MapFormat = Literal["npy", "tiff"]
"""npy: numbered files in one folder. tiff: the tree of the folder of images, as evaluation servers take it."""
_ROW = ("image", "score", "times_limit", "verdict", "regions", "error")
_FACTS = ("limit", "model", "date")
_LAST = ("overlay", "remark")


@dataclass
class Prediction:
    """What a run of predictions has written so far.

    Attributes:
        lines: one JSON object an image, in input order.
        table: the same as CSV: image, score, the same as a multiple of the limit, verdict, number of regions, error;
            then what verdicts are traced by: limit, SHA-256 of the model file, date, path of the overlay; and a remark
            where the region is but the map's strangest place.
        verdicts: number of images by verdict.
        nearest: the image of each verdict that is nearest to the limit, with its score as a multiple of that.
        by_score_alone: number of images that the score rejects and the map does not.
        unreadable: number of images that could not be inspected.
        of_several: the first few images of files that hold further pictures, which were not inspected.
        n_of_several: number of such images.
        left_out: number of files in the folders that are no images that can be read, by ending.
        complete: False where the run was interrupted.
    """

    lines: Path
    table: Path
    verdicts: dict[str, int] = field(default_factory=lambda: {"pass": 0, "review": 0, "reject": 0})
    nearest: dict[str, tuple[float, str]] = field(default_factory=dict)
    by_score_alone: int = 0
    unreadable: int = 0
    of_several: list[str] = field(default_factory=list)
    n_of_several: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    complete: bool = False

    @property
    def total(self) -> int:
        return sum(self.verdicts.values()) + self.unreadable

    @property
    def notes(self) -> list[str]:
        """What was not inspected, in lines."""
        notes = [note] if (note := left_out_note(self.left_out)) else []
        further = further_pictures_note(self.of_several, self.n_of_several)
        return [*notes, further] if further else notes


def given_images(paths: Sequence[Path], out: Path) -> Iterator[Path]:
    """The images of files and folders in the order given, those of a folder sorted; one at a time.

    Overlays and maps in the output folder are results, not images to inspect, should that folder lie below a given one.

    Raises:
        FlawsmithError: none of the paths exists, or a folder cannot be listed.
    """
    if not paths:
        raise FlawsmithError("there are no images to inspect: give files or folders")
    if not any(os.path.lexists(path) for path in paths):
        raise FlawsmithError(f"there is no file or folder {paths[0]}: check the path and the rights to it")
    return _walk(paths, tuple(_absolute(out / folder) + os.sep for folder in (OVERLAYS, MAPS)))


def _walk(paths: Sequence[Path], results: tuple[str, ...]) -> Iterator[Path]:
    for path in paths:
        if is_folder(path):
            yield from (image for image in iter_images(path) if not _absolute(image).startswith(results))
        else:
            yield path


def _absolute(path: Path) -> str:
    # Without ".." but with links as they are, which Path alone cannot give.
    return os.path.abspath(path)  # noqa: PTH100


def predict(
    model: str | Path | Inspector,
    images: str | Path | Sequence[str | Path],
    out: str | Path = "verdicts",
    *,
    overlays: OverlayChoice = "suspect",
    maps: MapFormat | None = None,
    engine: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    batch: int = 1,
    decoders: int = 2,
    model_sha256: str = "",
    seen: Callable[[dict[str, Any]], object] = lambda record: None,
) -> Prediction:
    """Inspect images and write verdicts.jsonl, verdicts.csv and, where wanted, overlays and maps.

    Results are written line by line to ``verdicts.partial.*``, so memory does not grow with the number of images, and
    the final names appear when all is done. When the run is cut short (Ctrl-C, a full disk, a folder that may not be
    read) the complete lines are kept: under the final names, or where they are if an earlier run has these. The next
    run begins ``verdicts.partial.*`` anew.

    Overlays are PNG files in ``overlays/``. Maps are ``.npy`` or ``.tiff`` files in ``maps/``, float32 (height, width)
    in pixels of the image, NaN where nothing was inspected. Names begin with the position of the image in the input, so
    images of the same name in two folders do not collide; maps as ``.tiff`` lie as their images do in the one folder
    that is given. Each line names its own.

    Args:
        model: a model file, or an inspector.
        images: a file, a folder, or several of them.
        out: folder for the results; made if missing.
        overlays: which images get an overlay.
        maps: write every anomaly map, in this format.
        engine: another engine than the one the model was calibrated with; an inspector has its own.
        precision, device: as `Inspector.load` takes them; an inspector has its own.
        batch: images that the network sees at a time, as `Inspector.stream` takes it.
        decoders: threads that decode, at least 1.
        model_sha256: of the model file, for the table; that of a file that is given is known.
        seen: is given each record as it is written.

    Returns:
        Where the results are, and counts.

    Raises:
        FlawsmithError: the model cannot be read, nothing to inspect, there is no such choice of overlays or maps, or a
            result cannot be written.
    """
    if overlays not in get_args(OverlayChoice):
        raise FlawsmithError(f"overlays={overlays!r} is not possible: choose {', '.join(get_args(OverlayChoice))}")
    inspector = (
        model
        if isinstance(model, Inspector)
        else Inspector.load(model, engine=engine, precision=precision, device=device)
    )
    if not isinstance(model, Inspector) and not model_sha256:
        model_sha256 = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    sources = [images] if isinstance(images, (str, Path)) else images
    paths = [path if isinstance(path, Path) else Path(path) for path in sources]  # no copies of many thousands
    folder = Path(out)
    tree = map_tree(paths, folder, maps)
    stream = inspector.stream(given_images(paths, folder), decoders=decoders, batch=batch)
    records = (record_of(result, index, folder, overlays, maps, tree) for index, result in enumerate(stream))
    return write_records(records, paths, folder, facts=facts_of(inspector.spec.decision, model_sha256), seen=seen)


def map_tree(paths: Sequence[Path], out: Path, maps: MapFormat | None) -> Path | None:
    """The folder whose tree the maps repeat; None: they do not.

    Raises:
        FlawsmithError: there is no such format, no such folder, or two of its images would have the same map.
    """
    if maps is not None and maps not in get_args(MapFormat):
        raise FlawsmithError(f"--maps {maps} is not possible: write --maps npy or --maps tiff")
    if maps != "tiff":
        return None
    if len(paths) != 1 or not is_folder(paths[0]):
        raise FlawsmithError("--maps tiff repeats the tree of one folder: give that folder alone, or --maps npy")
    first: dict[Path, Path] = {}
    for image in given_images(paths, out):
        other = first.setdefault(image.with_suffix(""), image)
        if other != image:
            raise FlawsmithError(f"{other} and {image} would have the same map: rename one of them, or give --maps npy")
    return paths[0]


def facts_of(decision: Decision, model: str) -> dict[str, Any]:
    """What every row of the table says of how it was made: the limit of what decides, the model file and the date."""
    return {"limit": decision.deciding_limit, "model": model, "date": datetime.now().astimezone().date().isoformat()}


def write_records(
    records: Iterable[dict[str, Any]],
    paths: Sequence[Path],
    out: Path,
    *,
    facts: Mapping[str, Any],
    seen: Callable[[dict[str, Any]], object] = lambda record: None,
) -> Prediction:
    """Write verdicts.jsonl and verdicts.csv as `predict` does.

    Args:
        paths: what was to be inspected, for messages.
        facts: of the run, as `facts_of` gives them.

    Raises:
        FlawsmithError: there are no records, one says so itself, or a result cannot be written.
    """
    with _Results(out, facts) as results:
        for record in records:
            results.add(record)
            seen(record)
        results.prediction.left_out = left_out(paths, results=out)
        if results.prediction.total == 0:
            note = left_out_note(results.prediction.left_out)
            fix = note or "give images or their folder"
            raise FlawsmithError(f"there are no images in {', '.join(map(str, paths))}: {fix}")
        results.prediction.complete = True
    return results.prediction


def record_of(
    result: Inspection | Unreadable,
    index: int,
    out: Path,
    overlays: OverlayChoice,
    maps: MapFormat | None,
    tree: Path | None = None,
) -> dict[str, Any]:
    """The JSON line of one image, whose pictures are written as `predict` says.

    It holds no durations, so that the same images give the same file.

    Args:
        index: its position in the input.
        tree: the folder whose tree the maps repeat.

    Raises:
        FlawsmithError: a picture cannot be written.
    """
    record = result.to_dict()
    record.pop("timing", None)
    record["image"] = printable(record["image"])
    if "error" in record:
        record["error"] = printable(record["error"])
    if isinstance(result, Inspection):
        record |= _pictures(result, index, out, overlays, maps, tree)
    return record


def _pictures(
    result: Inspection, index: int, out: Path, overlays: OverlayChoice, maps: MapFormat | None, tree: Path | None
) -> dict[str, str | None]:
    """Write what pictures are wanted; their paths relative to the output folder."""
    assert result.image is not None
    written: dict[str, str | None] = {}
    if overlays == "all" or (overlays == "suspect" and result.verdict != "pass"):
        name = f"{OVERLAYS}/{result_name(index, result.image, '.png')}"
        written["overlay"] = name if _write_overlay(result, out / name) else None
    if maps is not None:
        pixels = result.map if result.not_inspected is None else np.where(result.not_inspected, np.nan, result.map)
        place = Path(result.image).relative_to(tree).with_suffix(".tiff") if tree is not None else None
        name = f"{MAPS}/{result_name(index, result.image, '.npy') if place is None else place.as_posix()}"
        make_folder((out / name).parent)
        with replacing(out / name) as temporary, temporary.open("wb") as file:
            if place is None:
                np.save(file, pixels.astype(np.float32, copy=False))
            else:
                Image.fromarray(pixels.astype(np.float32, copy=False)).save(file, format="TIFF")
        written["map"] = printable(name)
    return written


def _write_overlay(result: Inspection, path: Path) -> bool:
    """Draw over the image, read once more; False where it has gone or changed since it was inspected."""
    try:
        picture = result.overlay(scale=True)
    except FlawsmithError:
        return False
    make_folder(path.parent)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=1)
    return True


class _Results:
    """The two files of verdicts while they grow; leaving the block gives them their final names.

    They grow under names that people see, so that nothing is lost when the program is killed.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any]) -> None:
        self._facts = [facts[name] for name in _FACTS]
        self.prediction = Prediction(out / LINES, out / TABLE)
        self._out = out
        self._files: list[_GrowingFile] = []
        self._folder = ExitStack()

    def __enter__(self) -> _Results:
        with ExitStack() as stack:
            stack.enter_context(exclusive_folder(self._out))
            finals = (self.prediction.lines, self.prediction.table)
            refuse_irreplaceable(finals)
            for final in finals:
                self._files.append(_GrowingFile(final.with_stem(f"{final.stem}.partial")))
                stack.callback(self._files[-1].discard)
            self._add_row((*_ROW, *_FACTS, *_LAST))
            self._folder = stack.pop_all()
        return self

    def add(self, record: dict[str, Any]) -> None:
        """Write one image's line and row; an image counts when both are whole."""
        self._files[0].write(json.dumps(record, allow_nan=False) + "\n")
        score, verdict, times = record.get("score", ""), record.get("verdict", ""), record.get("times_limit")
        regions = len(record["regions"]) if "regions" in record else ""
        strangest = any(region["strangest_place"] for region in record.get("regions", ()))
        shown = "" if times is None else f"{times:.4g}"
        row = (record["image"], score, shown, verdict, regions, record.get("error", ""))
        self._add_row((*row, *self._facts, record.get("overlay") or "", STRANGEST_PLACE if strangest else ""))
        for file in self._files:
            file.flush()
        for file in self._files:
            file.commit()
        if record.get("further_pictures"):
            self.prediction.n_of_several += 1
            if len(self.prediction.of_several) < _NAMED:
                self.prediction.of_several.append(record["image"])
        if verdict:
            self.prediction.verdicts[verdict] += 1
            self.prediction.by_score_alone += strangest and verdict == "reject"
            nearest = self.prediction.nearest.get(verdict)
            if times is not None and (nearest is None or abs(times - 1) < abs(nearest[0] - 1)):
                self.prediction.nearest[verdict] = (times, record["image"])
        else:
            self.prediction.unreadable += 1

    def _add_row(self, row: Iterable[object]) -> None:
        csv.writer(self._files[1], lineterminator="\n").writerow(row)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not lose what the first one keeps.
        with uninterrupted(), self._folder:
            self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        prediction = self.prediction
        if prediction.total == 0:
            return
        finals = prediction.lines, prediction.table
        prediction.lines, prediction.table = (file.path for file in self._files)
        for file in self._files:
            file.close()
        if error is None or not any(os.path.lexists(final) for final in finals):
            prediction.lines = self._files[0].move(finals[0])
            prediction.table = self._files[1].move(finals[1])
        # A reader of stdout that has left (``| head``) is no failure worth a word.
        told = isinstance(error, FlawsmithError | OSError | MemoryError | KeyboardInterrupt)
        if told and error is not None and not isinstance(error, BrokenPipeError):
            raise InterruptedPredictionError(prediction, error) from error


class InterruptedPredictionError(FlawsmithError):
    """A run of predictions was cut short; what was complete is on disk.

    Attributes:
        prediction: what is on disk.
        interrupted: whether the user stopped it.
    """

    def __init__(self, prediction: Prediction, cause: BaseException) -> None:
        self.prediction, self.interrupted = prediction, isinstance(cause, KeyboardInterrupt)
        if self.interrupted:
            reason = "interrupted"
        elif isinstance(cause, OSError):
            reason = f"cannot write the verdicts ({cause.strerror})"
        else:
            reason = str(cause) or "not enough memory"
        super().__init__(f"{reason}; the verdicts of the first {prediction.total} images are in {prediction.lines}")


class _GrowingFile:
    """A text file of which only whole lines are ever kept.

    Args:
        path: the file; one that is there is of a run that was killed or cut short, and goes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = 0
        self._pending = b""
        try:
            path.unlink(missing_ok=True)
            # Unbuffered: what a write could not put on a full disk is known at once, and nothing is left to flush.
            self._file: IO[bytes] = path.open("xb", buffering=0)
        except OSError as error:
            raise FlawsmithError(
                f"{path} cannot be replaced ({error.strerror}): close the program that has it open, or give another "
                "folder with --out"
            ) from None

    def write(self, text: str) -> int:
        self._pending += text.encode("utf-8", "backslashreplace")
        return len(text)

    def flush(self) -> None:
        """Put the pending lines on disk."""
        rest = memoryview(self._pending)
        self._pending = b""
        while rest:
            rest = rest[self._file.write(rest) :]

    def commit(self) -> None:
        """Count what is on disk as whole."""
        self._whole = self._file.tell()

    def close(self) -> None:
        """Cut off what is not whole; the file stays."""
        self._file.truncate(self._whole)
        os.fsync(self._file.fileno())
        self._file.close()

    def move(self, target: Path) -> Path:
        """Give the closed file its final name.

        Raises:
            FlawsmithError: another file of that name cannot be replaced; the verdicts stay where they are. Or somebody
                has removed the file.
        """
        try:
            return self.path.replace(target)
        except OSError as error:
            if not os.path.lexists(self.path):
                raise FlawsmithError(
                    f"{self.path} was removed while it was written, and the verdicts with it; repeat, into a folder "
                    "that nothing else clears"
                ) from None
            raise FlawsmithError(
                f"{target} cannot be replaced ({error.strerror}): close the program that has it open; the verdicts are "
                f"in {self.path}"
            ) from None

    def discard(self) -> None:
        """Remove the file, unless it was closed."""
        if not self._file.closed:
            self._file.close()
            self.path.unlink(missing_ok=True)
