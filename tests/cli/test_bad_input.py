"""Malformed and unusual folders, files and arguments: each gives one line that says what to do, and no traceback."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest


@dataclass
class SampleKey:
    """Where a case builds what it needs."""

    root: Path
    model: Path
    tiny: ModuleType
    trees: ModuleType

    def folder(self, *names: str) -> Path:
        path = self.root.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def file(self, name: str, content: bytes = b"text") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def picture(self, name: str, seed: int = 0) -> Path:
        return self.trees.picture(self.root / name, seed=seed)

    def parts(self, name: str = "bolt") -> Path:
        return self.trees.mvtec(self.root / name)

    def train(self, *options: object, data: Path | None = None) -> list[object]:
        return ["train", data or self.parts(), "--quiet", "--out", self.root / "run", *options]

    def with_validation(self) -> Path:
        for index in range(3):
            self.picture(f"nut/good/{index}.png", index)
            self.picture(f"nut/val/{index}.png", 50 + index)
        return self.root / "nut"

    def altered(self, change: Callable[[bytes], bytes]) -> Path:
        return self.file("altered.flaw", change(self.model.read_bytes()))


Case = Callable[[SampleKey], list[object]]


def leak(place: SampleKey) -> list[object]:
    parts = place.parts()
    shutil.copy(parts / "train/good/000.png", parts / "test/good/copy.png")
    return place.train(data=parts)


def all_corrupt(place: SampleKey) -> list[object]:
    data = place.with_validation()
    for path in data.glob("*/*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(path))
    return place.train(data=data)


def one_corrupt(place: SampleKey) -> list[object]:
    data = place.with_validation()
    (data / "good/1.png").write_bytes((data / "good/1.png").read_bytes()[:100])
    return place.train(data=data)


class Bomb:
    """Runs code when it is unpickled without restraint."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch exploded",))


def pickle_bomb(place: SampleKey) -> list[object]:
    weights = place.file("resnet18.pth", pickle.dumps(Bomb()))
    return place.train("--backbone", f"resnet18@{weights}")


def newer_schema(place: SampleKey) -> list[object]:
    path = place.root / "newer.flaw"
    with zipfile.ZipFile(place.model) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "manifest.json":
                content = json.dumps({**json.loads(content), "schema_version": 99}).encode()
            new.writestr(name, content)
    return ["info", path]


def several_categories(place: SampleKey) -> list[object]:
    place.parts("line/bolt")
    place.parts("line/nut")
    return place.train(data=place.root / "line")


def one_category_inside(place: SampleKey) -> list[object]:
    place.parts("line/bolt")
    return place.train(data=place.root / "line")


def archive(place: SampleKey) -> list[object]:
    path = place.root / "bolt.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("good/0.png", b"")
    return place.train(data=path)


def foreign_out(place: SampleKey) -> list[object]:
    place.file("run/thesis.txt")
    return place.train()


def former_run(place: SampleKey) -> list[object]:
    place.file("run/config.yaml", b"method: pbas\n")
    place.file("run/checkpoints/centre.safetensors")
    return place.train()


def other_run(place: SampleKey) -> list[object]:
    place.file("run/config.yaml", b"method: pbas\n")
    place.file("run/checkpoints/centre.safetensors")
    return place.train("--resume")


def corrupt_test_image(place: SampleKey) -> list[object]:
    parts = place.parts()
    (parts / "test/crack/000.png").write_bytes(b"no image")
    return ["evaluate", place.model, parts]


def good_only(place: SampleKey) -> list[object]:
    place.picture("photos/0.png")
    return ["evaluate", place.model, place.root / "photos"]


def foreign_demo(place: SampleKey) -> list[object]:
    place.file("demo/thesis.txt")
    return ["demo", "--out", place.root / "demo"]


def no_table(place: SampleKey) -> list[object]:
    root = place.trees.visa(place.root / "visa" / "candle")
    place.trees.visa_table(root).unlink()
    return ["doctor", root]


def loco(place: SampleKey, config: str | None = None, level: int = 255) -> list[object]:
    """An evaluation of a category with another defects_config.json, or with another grey value in a mask."""
    root = place.trees.mvtec_loco(place.root / "bottle")
    place.trees.mask(root / "ground_truth" / "logical_anomalies" / "000" / "000.png", level=level)
    if config is not None:
        (root / "defects_config.json").write_text(config)
    return ["evaluate", place.model, root]


def image_twice(place: SampleKey) -> list[object]:
    place.picture("0.png")
    return ["evaluate", place.model, place.file("a.csv", b"image,label,split\n0.png,good,train\n0.png,good,test\n")]


def unmasked(place: SampleKey) -> list[object]:
    root = place.trees.ksdd2(place.root / "surface")
    for mask in root.rglob("*_GT.png"):
        mask.unlink()
    return place.train(data=root)


def no_good_tiles(place: SampleKey) -> list[object]:
    root = place.trees.magnetic_tile(place.root / "tiles")
    shutil.rmtree(root / "MT_Free")
    return place.train(data=root)


def not_utf8(place: SampleKey) -> list[object]:
    return ["doctor", os.fsdecode(os.fsencode(place.root) + b"/caf\xe9")]


CASES: dict[str, tuple[Case, str]] = {
    # The data.
    "missing folder": (lambda p: p.train(data=p.root / "nowhere"), "there is no folder"),
    "one image": (lambda p: p.train(data=p.picture("0.png")), "give the folder that holds it"),
    "text file": (lambda p: p.train(data=p.file("notes.txt")), "is a file, but a folder of images is expected"),
    "archive": (archive, "unpack it"),
    "model as data": (lambda p: p.train(data=p.model), "is a trained model"),
    "empty folder": (lambda p: p.train(data=p.folder("empty")), "is empty"),
    "no images": (lambda p: p.train(data=p.file("docs/a.txt").parent), "found no good images"),
    "root of a data set": (several_categories, "with 2 categories (bolt, nut); pick one"),
    "folder above": (one_category_inside, "holds the category bolt but is none itself"),
    "test part": (lambda p: p.train(data=p.parts() / "test"), "is only the test/ part"),
    "leak": (leak, "the same image stands in train and test"),
    "all corrupt": (all_corrupt, "flawsmith doctor"),
    "one corrupt": (one_corrupt, "good/1.png: damaged or truncated image"),
    "VisA without its table": (no_table, "copy split_csv/1cls.csv to "),
    "LOCO with a damaged configuration": (lambda p: loco(p, "[{"), "defects_config.json (no intact JSON)"),
    "LOCO with an entry that lacks something": (lambda p: loco(p, "[{}]"), "entry 1: defect_name is missing"),
    "LOCO with a mask of no entry": (lambda p: loco(p, level=7), "has the grey value 7, which stands for no defect"),
    "empty table": (lambda p: ["doctor", p.file("a.csv", b"")], "a.csv is empty; write a first line"),
    "table not UTF-8": (
        lambda p: ["doctor", p.file("a.csv", b"image,label,split\nf\xe4den.png,good,train\n")],
        "line 2, is",
    ),
    "table with an image twice": (image_twice, "line 3, names '0.png' for test, as line 2 does for train"),
    "table of missing images": (
        lambda p: p.train(data=p.file("a.csv", b"image,label,split\nx.png,good,train\n")),
        "line 2",
    ),
    "table in another layout": (
        lambda p: p.train("--layout", "visa", data=p.file("a.csv", b"a")),
        "leave --layout out",
    ),
    "test set to train on": (
        lambda p: p.train(data=p.trees.mad(p.root / "MAD-man" / "Person_1" / "screw")),
        "train on screw of MVTec AD, then run `flawsmith evaluate` here",
    ),
    "test set to synthesize on": (
        lambda p: ["synthesize", p.trees.mad(p.root / "bolt"), "--out", p.root / "forged"],
        "train on the data set it belongs to",
    ),
    "KolektorSDD2 without masks": (unmasked, "train/ has numbered images, but train/ none with a mask"),
    "magnetic tiles without good ones": (no_good_tiles, "almost in magnetic_tile layout: MT_Blowhole/ is there"),
    "name not UTF-8": (not_utf8, "there is no folder"),
    # What to train.
    "unknown method": (lambda p: p.train("--method", "pbsa"), "did you mean 'pbas'?"),
    "unknown preset": (lambda p: p.train("--preset", "quick"), "choose from"),
    "unknown backbone": (lambda p: p.train("--backbone", "resnet_18"), "did you mean 'resnet18'"),
    "missing weights": (lambda p: p.train("--backbone", "resnet18@gone.pth"), "no weight file at gone.pth"),
    "weights of no known name": (lambda p: p.train("--backbone", p.file("mine.pth")), "write --backbone NAME@"),
    "pickle bomb": (pickle_bomb, "is not a readable weight file"),
    "unknown setting": (lambda p: p.train("--set", "epoch=3"), "no setting called 'epoch'"),
    "setting without a value": (lambda p: p.train("--set", "epochs"), "is not key=value"),
    "setting without a name": (lambda p: p.train("--set", "=3"), "is not key=value"),
    "setting that is no YAML": (lambda p: p.train("--set", "strides=[8,"), "--set strides=[8,16]"),
    "setting twice": (lambda p: p.train("--set", "epochs=3", "--set", "epochs=4"), "given twice"),
    "setting out of range": (lambda p: p.train("--set", "epochs=0"), "epochs=0 is not possible"),
    "setting of another type": (lambda p: p.train("--set", "epochs=many"), "epochs='many' is not possible"),
    "neither of a setting's types": (
        lambda p: p.train("--method", "aand", "--set", "foreground=bogus"),
        "foreground.mode='bogus' is not possible: it must be 'none', 'files', 'threshold', 'auto', 'disc' or "
        "'box', or it must be 'published'",
    ),
    "wrong part of a setting of several types": (
        lambda p: p.train("--set", "bank=[5,{side: 3, levels: 0}]"),
        "bank.1.levels=0 is not possible: it must be at least 1",
    ),
    "settings that contradict each other": (
        lambda p: p.train("--method", "aand", "--set", "strides=[8,16]"),
        "student_blocks needs 2 positive numbers",
    ),
    "input of no size": (lambda p: p.train("--set", "image_size=[0,0]"), "image_size.0=0 is not possible"),
    "textures that nothing synthesizes from": (lambda p: p.train("--textures", "self"), "fusion synthesizes no flaws"),
    "masks that nothing reads": (
        lambda p: p.train("--method", "glass", "--foregrounds", p.folder("masks")),
        "add --set foreground=files",
    ),
    "no such accelerator": (lambda p: p.train("--accelerator", "tpux"), "cannot train with --accelerator tpux"),
    "no such strategy": (lambda p: p.train("--strategy", "none"), "--strategy none"),
    "no devices": (lambda p: p.train("--devices", "0"), "--devices 0"),
    "run folder of an impossible name": (lambda p: p.train("--out", "x" * 300), "give another folder with --out"),
    "model of an impossible name": (lambda p: ["doctor", "x" * 300 + ".flaw"], "x.flaw"),
    "negative seed": (lambda p: p.train("--seed", "-1"), "seed=-1 is not possible"),
    "seed in words": (lambda p: p.train("--seed", "one"), "Invalid value for '--seed'"),
    "alpha above one": (lambda p: p.train("--alpha", "2"), "--max-false-rejects 2 is not possible"),
    "tile below the smallest": (lambda p: p.train("--tile", "16"), "tile=16 is not possible"),
    "negative tile": (lambda p: p.train("--tile", "-512"), "tile=-512 is not possible"),
    "tile in words": (lambda p: p.train("--tile", "large"), "Invalid value for '--tile'"),
    "overlap of half a tile": (lambda p: p.train("--tile", "64", "--overlap", "32"), "must be below half of the tile"),
    "negative overlap": (lambda p: p.train("--tile", "64", "--overlap", "-8"), "overlap=-8 is not possible"),
    "overlap in words": (lambda p: p.train("--tile", "64", "--overlap", "some"), "Invalid value for '--overlap'"),
    "unknown engine": (lambda p: p.train("--engine", "tensorrt"), "engine='tensorrt' is not possible"),
    "too many bits": (lambda p: p.train("--bits", "99"), "bits=99 is not possible"),
    "unknown layout": (lambda p: p.train("--layout", "mvtek"), "did you mean mvtec?"),
    "layout of another set": (lambda p: p.train("--layout", "mvtec_loco"), "is not in mvtec_loco layout; expected"),
    "masks part": (
        lambda p: p.train(data=p.trees.mvtec_loco(p.root / "bottle") / "ground_truth"),
        "is only the ground_truth/ part",
    ),
    # Where to write.
    "run folder is a file": (lambda p: p.train("--out", p.file("note")), "is a file: give a folder with --out"),
    "run folder below a file": (lambda p: p.train("--out", p.file("note") / "run"), "with --out"),
    "run folder of something else": (foreign_out, "is not empty and holds no run"),
    "run folder in use": (former_run, "holds a run already"),
    "resume of another run": (other_run, "holds a run already, and it was begun with"),
    "demo in a foreign folder": (foreign_demo, "is not empty and holds no demo"),
    "demo in a file": (lambda p: ["demo", "--out", p.file("note")], "is a file: give a folder with --out"),
    "demo below a file": (lambda p: ["demo", "--out", p.file("note") / "demo"], "with --out"),
    "demo of an unknown part": (lambda p: ["demo", "--out", p.root / "d", "--part", "wheel"], "choose one of"),
    "demo with a negative seed": (lambda p: ["demo", "--out", p.root / "d", "--seed", "-1"], "must not be negative"),
    # The model.
    "missing model": (lambda p: ["info", p.root / "gone.flaw"], "no such model file"),
    "model is a folder": (lambda p: ["info", p.folder("runs")], "is a folder, not a model file"),
    "model is text": (lambda p: ["info", p.file("a.flaw")], "not an intact model file"),
    "model is empty": (lambda p: ["doctor", p.file("a.flaw", b"")], "not an intact model file"),
    "model truncated": (lambda p: ["predict", p.altered(lambda b: b[:-99]), p.root], "not an intact model file"),
    "model tampered with": (
        lambda p: ["info", p.altered(lambda b: b.replace(b'"seed": 0', b'"seed": 7'))],
        "altered.flaw: not an intact model file",
    ),
    "model of a newer version": (newer_schema, "pip install --upgrade flawsmith"),
    "arguments swapped": (lambda p: ["evaluate", p.parts(), p.model], "is a folder, not a model file"),
    "doctor of nothing": (lambda p: ["doctor", p.root / "gone.flaw"], "no such model file"),
    # Evaluating and predicting.
    "nothing to evaluate on": (good_only, "has no test images"),
    "corrupt test image": (corrupt_test_image, "or remove it from the test split"),
    "evaluation into a file": (lambda p: ["evaluate", p.model, p.parts(), "--out", p.file("n")], "give a folder"),
    "no such engine": (lambda p: ["evaluate", p.model, p.parts(), "--engine", "trt"], "unknown engine 'trt'"),
    "no such photo": (lambda p: ["predict", p.model, p.root / "gone.png"], "there is no file or folder"),
    "folder without photos": (
        lambda p: ["predict", p.model, p.folder("empty"), "--out", p.root / "v"],
        "there are no images in",
    ),
    "no decoders": (
        lambda p: ["predict", p.model, p.picture("0.png"), "--decoders", "0", "--out", p.root / "v"],
        "decoders must be at least 1",
    ),
    "verdicts into a file": (
        lambda p: ["predict", p.model, p.picture("0.png"), "--out", p.file("note")],
        "is a file: give a folder with --out",
    ),
    # The arguments themselves.
    "unknown command": (lambda p: ["trian", p.root], "No such command 'trian'"),
    "unknown option": (lambda p: ["train", p.root, "--epochs", "3"], "No such option"),
    "progress in place of a folder": (lambda p: p.train("--progress", p.folder("logs")), "is a folder: give the name"),
    "progress in place of another file": (
        lambda p: p.train("--progress", p.file("notes.txt", b"mine")),
        "is a file of something else: give another --progress",
    ),
    "flaw larger than the images": (lambda p: p.train("--smallest-flaw", "1000"), "pixels are more than images of"),
    "overlap without tiles": (lambda p: p.train("--overlap", "8"), "give their side too, as tile"),
    "fewer reviews than rejects": (
        lambda p: p.train("--review-rate", "0.001"),
        "the review rate must be larger than the rate of false rejects",
    ),
    "option of another command": (
        lambda p: ["predict", p.model, p.root, "--tile", "512"],
        "train has it; see flawsmith predict --help",
    ),
    "missing argument": (lambda p: ["evaluate", p.model], "Missing argument 'DATA'"),
}


@pytest.fixture
def place(
    tmp_path: Path, model: Path, tiny: ModuleType, trees: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> SampleKey:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAWSMITH_CACHE", str(tmp_path / "cache"))
    return SampleKey(tmp_path, model, tiny, trees)


@pytest.fixture
def no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling a backbone takes seconds, and no case here gets as far as using it."""
    from flawsmith.pipeline import steps

    monkeypatch.setattr(steps, "make_extractor", lambda *arguments, **options: None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("no_compilation")
def test_mistake_gives_one_line_that_says_what_to_do(name, place, flawsmith):
    build, fragment = CASES[name]
    arguments = build(place)

    outcome = flawsmith(*arguments)

    lines = outcome.err.splitlines()
    assert outcome.code == 2, outcome.err
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert fragment in lines[0]
    assert outcome.out == ""


def test_pickle_bomb_does_not_go_off(place, flawsmith, no_compilation):
    flawsmith(*pickle_bomb(place))

    assert not (place.root / "exploded").exists()


def test_failed_training_leaves_no_model_behind(place, flawsmith, no_compilation):
    flawsmith(*one_corrupt(place))

    assert not list((place.root / "run").glob("*.flaw"))
    assert not list((place.root / "run").glob(".*.tmp"))


def test_failed_prediction_leaves_nothing_behind(place, flawsmith):
    flawsmith("predict", place.model, place.folder("empty"), "--out", place.root / "verdicts")

    assert not (place.root / "verdicts").exists()
