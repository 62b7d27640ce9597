"""Images that a line is taught with: folders, roles, groups, and what is said of them."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.line.conftest import picture

from flawsmith.data.layouts import load
from flawsmith.line.looks import FILE, Looks, oddness, vector_of
from flawsmith.line.settings import LineSettings
from flawsmith.line.teaching import Teaching, advice
from flawsmith.line.workspace import Workspace
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace(tmp_path / "studio")
    yield opened
    opened.close()


@pytest.fixture
def teaching(workspace: Workspace) -> Teaching:
    return workspace.teaching("bolt")


def give(teaching: Teaching, content: bytes, name: str = "a.png", **facts: object) -> str:
    """Add an image; its outcome."""
    path = teaching.folder.parent.parent / "incoming" / f"{os.urandom(4).hex()}"
    path.write_bytes(content)
    addition = teaching.add(path, name=name, **facts)  # type: ignore[arg-type]
    assert not path.exists()
    return addition.outcome


def teach(teaching: Teaching, number: int, *, folder: str = "", first: int = 0) -> None:
    for note in range(first, first + number):
        assert give(teaching, picture(100, note=note), f"{note}.png", folder=folder) == "added"


def test_images_lie_in_folders_that_train_reads(teaching: Teaching) -> None:
    teach(teaching, 3, folder="2026-11-23")
    give(teaching, picture(90), "k.png", role="calibrate", folder="2026-11-24")
    give(teaching, picture(10), "f.png", role="flawed")
    give(teaching, picture(20), "n.png", role="not-good")

    dataset = load(teaching.folder, "folder")

    assert (len(dataset.good_train), len(dataset.good_val), len(dataset.test_flawed)) == (3, 1, 1)
    assert dataset.category == "bolt"
    assert (teaching.folder / "good/2026-11-23/0.png").read_bytes() == picture(100, note=0)


def test_an_image_is_taken_once_whatever_its_name(teaching: Teaching) -> None:
    assert give(teaching, picture(100), "a.png") == "added"
    assert give(teaching, picture(100), "b.png", role="flawed") == "known"
    assert give(teaching, picture(101), "a.png") == "added"

    assert sorted(path.stem[:2] for path in (teaching.folder / "good").iterdir()) == ["a", "a-"]


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (b"no image", "a.png", "image"),
        (picture(100)[:-60], "a.png", ""),
        (picture(100), "a.exe", "no image by its name"),
        (picture(100), "", "no image by its name"),
    ],
)
def test_what_is_no_image_is_refused_and_leaves_nothing(
    teaching: Teaching, content: bytes, name: str, why: str
) -> None:
    path = teaching.folder.parent.parent / "incoming" / "x"
    path.write_bytes(content)

    addition = teaching.add(path, name=name)

    assert addition.outcome == "refused"
    assert why in addition.why
    assert str(path) not in addition.why
    assert not list(teaching.folder.rglob("*")), "nothing was written"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("../../../evil.png", "../../.."),
        ("/etc/evil.png", "/etc"),
        ("..\\..\\evil.png", "C:\\Windows"),
        ("evil.png", "good/../../x"),
        ("evil\x1b[2J\n.png", "\x00a/.ssh"),
        (f"{'e' * 300}vil.png", "x" * 300),
        ("..png", ".."),
    ],
)
def test_names_lead_nowhere_else(teaching: Teaching, workspace: Workspace, name: str, folder: str) -> None:
    assert give(teaching, picture(100), name, folder=folder) in ("added", "refused")

    images = [path for path in workspace.folder.parent.rglob("*.png") if path.is_file()]

    assert all(path.is_relative_to(teaching.folder / "good") for path in images)
    assert all(len(path.relative_to(teaching.folder).parts) <= 3 and path.name.isprintable() for path in images)


def test_roles_change_by_renaming_and_survive_another_start(teaching: Teaching, workspace: Workspace) -> None:
    teach(teaching, 6, folder="monday")
    first, second = sorted(teaching.images(), key=lambda sha256: teaching.images()[sha256].path)[:2]

    assert teaching.assign([first, second, "0" * 64], "not-good") == [first, second]
    assert teaching.assign([second], "learn") == [second]
    assert teaching.assign([second], "learn") == []

    again = Teaching(teaching.folder, Looks(workspace.folder, max_pixels=10**6), workspace.folder / "incoming")
    assert {again.image(sha256).role for sha256 in (first,)} == {"not-good"}
    assert again.image(second).folder == "monday"
    assert (teaching.folder / "aside/not-good/monday/0.png").is_file()


def test_files_that_a_person_puts_there_count(teaching: Teaching) -> None:
    place = teaching.folder / "good" / "tuesday"
    place.mkdir(parents=True)
    (place / "mine.png").write_bytes(picture(50))
    (place / "Thumbs.db").write_bytes(b"x")

    (image,) = teaching.images().values()

    assert (image.role, image.folder, image.look) == ("learn", "tuesday", None)
    assert teaching.look_at()
    (image,) = teaching.images().values()
    assert image.look is not None
    assert (image.look.height, image.look.width) == (32, 48)


def test_groups_are_told_by_folder_day_or_name(teaching: Teaching) -> None:
    monday, tuesday = 1_700_000_000.0, 1_700_090_000.0
    for note, modified in enumerate((monday, monday, tuesday)):
        give(teaching, picture(100, note=note), f"lot{note // 2}_{note}.png", modified=modified)

    assert teaching.groups().by == "none"
    teaching.change(grouping="day")
    assert sorted(group.counts["learn"] for group in teaching.group_table()) == [1, 2]
    teaching.change(grouping="name:lot([0-9])")
    assert sorted(set(teaching.groups().of.values())) == ["0", "1"]
    give(teaching, picture(100, note=9), "9.png", folder="a")
    teaching.change(grouping="folder")
    assert sorted(set(teaching.groups().of.values())) == ["", "a"]


@pytest.mark.parametrize("grouping", ["week", "name:", "name:(", "name:a", "name:(a)(b)", "day:x"])
def test_groupings_that_are_none_are_refused(teaching: Teaching, grouping: str) -> None:
    with pytest.raises(FlawsmithError):
        teaching.change(grouping=grouping)

    assert teaching.settings.grouping == "auto"


def test_what_stands_out_is_said_by_group(teaching: Teaching) -> None:
    teach(teaching, 12)
    for note in range(3):
        give(teaching, picture(60, note=note), f"dark{note}.png")
    give(teaching, picture(100, size=(64, 48)), "large.png")

    (group,) = teaching.group_table()

    assert sorted(remark.words for remark in group.remarks) == [
        "1 of another size than 48 × 32",
        "3 darker than the rest",
    ]


def test_odd_images_are_asked_about_until_confirmed(teaching: Teaching) -> None:
    teach(teaching, 12)
    pixels = np.full((32, 48, 3), 100, np.uint8)
    pixels[8:24, 8:40] = 200
    Image.fromarray(pixels).save(path := teaching.folder.parent.parent / "incoming" / "odd.png")
    odd = teaching.add(path, name="odd.png").sha256
    assert not teaching.is_ranked
    teaching.rank()

    assert teaching.is_ranked
    assert teaching.oddest()[:1] == [odd]
    teaching.confirm([odd])
    assert odd not in teaching.oddest()


def test_two_people_who_confirm_at_once_are_both_heard(teaching: Teaching) -> None:
    people = [threading.Thread(target=teaching.confirm, args=([f"{number:064d}"],)) for number in range(12)]
    for person in people:
        person.start()
    for person in people:
        person.join()

    assert len(teaching.settings.confirmed) == 12


def test_the_image_that_looks_most_like_another_is_a_good_one(teaching: Teaching) -> None:
    for brightness in (60, 120):
        give(teaching, picture(brightness), f"{brightness}.png")
    give(teaching, picture(100, note=2), "flaw.png", role="flawed")

    nearest = teaching.nearest(vector_of(picture(101), max_pixels=10**6))

    assert nearest is not None
    assert teaching.image(nearest).path.name == "120.png"


def test_the_least_usual_of_many_vectors_is_the_oddest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = list(rng.normal(size=(200, 30)).astype(np.float32))
    vectors[17] += 6

    assert int(oddness(vectors).argmax()) == 17
    assert np.median(oddness(vectors)) == pytest.approx(1)


def test_a_region_that_cannot_be_used_leaves_the_former_one(teaching: Teaching) -> None:
    good = {"width": 48, "height": 32, "include": [[[0, 0], [40, 0], [40, 30]]], "exclude": []}
    teaching.draw(good)

    for bad in ({**good, "include": [[[0, 0], [40, 0]]]}, {**good, "include": [[[0, 0], [400, 0], [4, 4]]]}, {}):
        with pytest.raises(FlawsmithError) as refusal:
            teaching.draw(bad)
        assert "incoming" not in str(refusal.value)

    assert teaching.region == good
    teaching.draw(None)
    assert teaching.region is None


@pytest.mark.parametrize("text", ["{", '{"width": 4}', '{"width": 4, "height": 4, "include": [[[0, 0]]]}'])
def test_a_region_that_a_person_wrote_wrongly_is_not_passed_over(teaching: Teaching, text: str) -> None:
    teach(teaching, 1)
    (teaching.folder / "region.json").write_text(text)

    with pytest.raises(FlawsmithError, match=r"region\.json"):
        _ = teaching.region


def test_images_that_come_while_others_are_listed_disturb_nobody(teaching: Teaching) -> None:
    teach(teaching, 2)
    images = teaching.images()

    for _ in images:
        give(teaching, picture(90), "new.png")  # a dictionary that changes would end the loop

    assert (len(images), len(teaching.images())) == (2, 3)


def test_a_snapshot_stays_as_it_was(teaching: Teaching, tmp_path: Path) -> None:
    teach(teaching, 4, folder="a")
    teach(teaching, 4, folder="good", first=10)
    teach(teaching, 3, folder="b", first=20)
    give(teaching, picture(10), "flaw.png", role="flawed")
    give(teaching, picture(20), "not.png", role="not-good")
    teaching.change(grouping="folder")

    counts = teaching.snapshot(tmp_path / "shot" / "bolt")
    teaching.assign(list(teaching.images()), "left-out")

    dataset = load(tmp_path / "shot" / "bolt", "folder")
    assert counts == {"learn": 11, "flawed": 1}
    assert (len(dataset.good_train), len(dataset.test_flawed)) == (11, 1)
    assert {sample.image.parent.name for sample in dataset.good_train} == {"a", "good", "b"}


def test_too_few_images_make_no_snapshot(teaching: Teaching, tmp_path: Path) -> None:
    teach(teaching, 4)

    with pytest.raises(FlawsmithError, match="4 good images are too few"):
        teaching.snapshot(tmp_path / "bolt")


def test_advice_grows_with_images_and_days() -> None:
    assert advice(0, 0, 0, "none")[0].startswith("Drop images of good parts.")
    assert "Too few" in " ".join(advice(3, 0, 0, "none"))
    assert "rejected 43 on a new one, and 209 on one in 20" in " ".join(advice(200, 0, 1, "day"))
    enough = " ".join(advice(200, 300, 12, "day"))
    assert "300 set the limit: at best 3.3 of 1,000" in enough
    assert "95 % sure: no more than 10 of these days." in enough
    assert "more" not in enough.replace("no more than", "")


def test_the_doctor_speaks_of_the_images_as_they_are(teaching: Teaching) -> None:
    teach(teaching, 6)
    assert not teaching.is_checked
    assert teaching.findings() == ()
    give(teaching, picture(0, note=0), "black.png")
    assert not teaching.is_checked
    assert [finding.name for finding in teaching.findings()] != []
    assert teaching.is_checked


def test_a_cache_that_is_damaged_or_gone_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)

    looks = Looks(tmp_path, max_pixels=10**6)
    (tmp_path / "a.png").write_bytes(picture(100))

    assert looks.thumbnail(tmp_path / "a.png", "0" * 64).startswith(b"\xff\xd8")
    looks.close()


def wait_for(workspace: Workspace) -> None:
    for _ in range(300):
        if workspace.imports["bolt"].is_over:
            return
        threading.Event().wait(0.02)
    raise AssertionError("the import does not end")


def test_flawed_parts_put_by_hand_among_good_ones_are_not_learned(teaching: Teaching, tmp_path: Path) -> None:
    for place in ("good/ng", "good/2026-11-23/reject", "validation/good/niO"):
        (teaching.folder / place).mkdir(parents=True)
        (teaching.folder / place / "x.png").write_bytes(picture(30, note=len(place)))
    teach(teaching, 5)

    roles = {image.path.parent.name: (sha256, image.role) for sha256, image in teaching.images().items()}

    assert {name: role for name, (_, role) in roles.items()} == {
        "good": "learn", "ng": "flawed", "reject": "flawed", "niO": "flawed"
    }  # fmt: skip
    assert teaching.snapshot(tmp_path / "bolt") == {"learn": 5, "flawed": 3}
    assert teaching.assign([roles["ng"][0]], "learn") == [roles["ng"][0]]
    assert teaching.images()[roles["ng"][0]].path == teaching.folder / "good" / "x.png"


def test_a_folder_is_copied_with_its_groups(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "camera"
    for number, day in enumerate(("mon", "mon", "tue")):
        (source / day).mkdir(parents=True, exist_ok=True)
        (source / day / f"{number}.png").write_bytes(picture(100, note=number))
    (source / "tue" / "broken.png").write_bytes(b"x")
    ended = threading.Event()

    job = workspace.import_folder("bolt", source, on_end=ended.set)

    assert ended.wait(10)
    assert (job.added, job.refused_count, job.total, job.error) == (3, 1, 4, "")
    assert (source / "mon" / "0.png").exists()
    assert {image.folder for image in workspace.teaching("bolt").images().values()} == {"mon", "tue"}


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("bad", ["ng", "Ausschuss", "lot 7/reject", "✗", "不良品"])
@pytest.mark.parametrize("way", ["folder", "archive", "flawed folder"])
def test_flawed_parts_of_a_folder_are_never_learned_from(
    workspace: Workspace, tmp_path: Path, bad: str, way: str
) -> None:
    names = {"ok/a.png": picture(100), "ok/b.png": picture(101), f"{bad}/c.png": picture(10)}
    ended = threading.Event()
    if way == "archive":
        with zipfile.ZipFile(tmp_path / "parts.zip", "w") as archive:
            for name, content in names.items():
                archive.writestr(f"parts/{name}", content)
        job = workspace.import_archive("bolt", tmp_path / "parts.zip", on_end=ended.set)
    else:
        for name, content in names.items():
            (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "parts" / name).write_bytes(content)
        folder = tmp_path / "parts" / (bad if way == "flawed folder" else "")
        job = workspace.import_folder("bolt", folder, on_end=ended.set)
    assert ended.wait(30)

    good = 0 if way == "flawed folder" else 2
    assert (job.added, job.flawed, job.refused_count) == (good + 1, 1, 0)
    roles = [image.role for image in workspace.teaching("bolt").images().values()]
    assert sorted(roles) == ["flawed"] + ["learn"] * good


@pytest.mark.parametrize("masks", ["ground_truth/ng", "masks", "GT", "overlays", "ng/ground_truth"])
@pytest.mark.parametrize("way", ["folder", "archive", "by hand"])
def test_masks_of_a_data_set_are_no_images_of_parts(workspace: Workspace, tmp_path: Path, masks: str, way: str) -> None:
    names = {f"ok/{n}.png": picture(100, note=n) for n in range(5)}
    names |= {"ng/c.png": picture(10), f"{masks}/c.png": picture(255)}
    ended, teaching, pipes = threading.Event(), workspace.teaching("bolt"), hasattr(os, "mkfifo")
    root = teaching.folder / "good" if way == "by hand" else tmp_path / "parts"
    for name, content in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    if way == "archive":
        job = workspace.import_archive("bolt", zipped(tmp_path / "parts.zip", names), on_end=ended.set)
    elif way == "folder":
        if pipes:
            os.mkfifo(root / "ok" / "pipe.png")
        job = workspace.import_folder("bolt", root, on_end=ended.set)
    if way != "by hand":
        assert ended.wait(30)
        refused = 1 + (pipes and way == "folder")
        assert (job.added, job.flawed, job.refused_count) == (6, 1, refused)
    assert teaching.snapshot(tmp_path / "copy") == {"learn": 5, "flawed": 1}


@pytest.mark.parametrize("way", ["folder", "archive"])
def test_masks_among_the_images_are_no_images_of_parts(workspace: Workspace, tmp_path: Path, way: str) -> None:
    names = {f"day/{n}.png": picture(100, note=n) for n in range(2)}
    names |= {"day/0_mask.png": picture(255), "day/1-overlay.png": picture(9), "day/unmasked_mask.png": picture(50)}
    names |= {"day_mask/0.png": picture(254)}
    ended = threading.Event()
    if way == "archive":
        job = workspace.import_archive("bolt", zipped(tmp_path / "parts.zip", names), on_end=ended.set)
    else:
        for name, content in names.items():
            (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "parts" / name).write_bytes(content)
        job = workspace.import_folder("bolt", tmp_path / "parts", on_end=ended.set)
    assert ended.wait(30)
    assert (job.added, job.refused_count) == (3, 3)


@pytest.mark.parametrize("inner", ["", "parts/"])
def test_folders_of_which_nothing_says_which_is_good_are_refused(
    workspace: Workspace, tmp_path: Path, inner: str
) -> None:
    for name in ("positive", "negative"):
        (tmp_path / "set" / inner / name).mkdir(parents=True)
        (tmp_path / "set" / inner / name / "a.png").write_bytes(picture(100))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("positive", "negative"):
            archive.writestr(f"{inner}{name}/a.png", picture(100))

    line = "nothing says whether negative/ and positive/ hold good or flawed parts: rename them"
    with pytest.raises(FlawsmithError, match=line):
        workspace.import_folder("bolt", tmp_path / "set", on_end=lambda: None)
    with pytest.raises(FlawsmithError, match=line):
        workspace.import_archive("bolt", tmp_path / "set.zip", on_end=lambda: None)
    assert workspace.teaching("bolt").images() == {}


def test_names_in_an_archive_lead_nowhere(workspace: Workspace, tmp_path: Path) -> None:
    hostile = {
        "../../../../evil.png": picture(1),
        "/abs.png": picture(2),
        "a/b/c.png": picture(3),
        "__MACOSX/._c.png": picture(4),
        "run.sh": b"rm -rf",
        "inner.zip": b"PK",
    }
    archive = zipped(tmp_path / "a.zip", hostile)

    job = workspace.import_archive("bolt", archive, on_end=lambda: None)
    wait_for(workspace)

    assert (job.added, job.passed_over) == (3, 2)
    assert not archive.exists()
    assert {path.name for path in tmp_path.rglob("*.png")} == {"evil.png", "abs.png", "c.png"}
    assert all(p.is_relative_to(workspace.folder / "lines/bolt/good") for p in tmp_path.rglob("*.png"))


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.line.workspace.MOST_UNPACKED", 10_000)
    archive = zipped(tmp_path / "bomb.zip", {f"{number}.png": bytes(5_000) for number in range(3)})

    with pytest.raises(FlawsmithError, match="unpacks to more than"):
        workspace.import_archive("bolt", archive, on_end=lambda: None)

    assert not archive.exists()
    assert not list((workspace.folder / "incoming").iterdir())


def test_an_archive_that_lies_about_its_sizes_is_counted_as_it_comes(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "liar.zip", {"a.png": bytes(400_000)})
    content = archive.read_bytes()
    archive.write_bytes(content.replace((400_000).to_bytes(4, "little"), (4_000).to_bytes(4, "little")))

    job = workspace.import_archive("bolt", archive, on_end=lambda: None)
    wait_for(workspace)

    assert (job.added, job.refused_count) == (0, 1)
    assert not list((workspace.folder / "incoming").iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip" * 100])
def test_what_is_no_archive_is_refused(workspace: Workspace, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)

    with pytest.raises(FlawsmithError, match="no zip archive"):
        workspace.import_archive("bolt", tmp_path / "a.zip", on_end=lambda: None)


def test_one_process_has_a_studio_at_a_time(workspace: Workspace) -> None:
    with pytest.raises(FlawsmithError, match="another flawsmith command is writing there"):
        Workspace(workspace.folder)


def test_settings_of_a_person_hold_beside_the_lines_of_the_studio(tmp_path: Path) -> None:
    (tmp_path / "lines/tile/good").mkdir(parents=True)
    (tmp_path / "settings.toml").write_text(
        'port = 1234\n[[tokens]]\nname="a"\nrole="engineer"\ntoken="0123456789abcdef"\n'
    )

    workspace = Workspace(tmp_path)

    settings = workspace.settings(host="0.0.0.0")
    assert (settings.port, list(settings.lines), settings.host) == (1234, ["tile"], "0.0.0.0")
    assert settings.records == tmp_path / "records"
    workspace.close()


def test_a_folder_that_cannot_be_made_is_named_without_an_option_that_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(FlawsmithError, match=r"cannot be made \(.*\): give another folder$"):
        Workspace(tmp_path / "file" / "studio")


def test_a_cache_that_is_damaged_inside_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(100))
    first = Looks(tmp_path, max_pixels=10**6)
    for number in range(20):
        first.look(tmp_path / "a.png", f"{number:064}")
    first.close()
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))

    looks = Looks(tmp_path, max_pixels=10**6)

    assert looks.thumbnail(tmp_path / "a.png", "0" * 64).startswith(b"\xff\xd8")
    assert looks.vectors(["0" * 64]).keys() == {"0" * 64}
    looks.close()


def test_an_image_that_is_taken_out_does_not_come_back_as_its_copy(teaching: Teaching) -> None:
    teach(teaching, 3)
    (sha256,) = (s for s, image in teaching.images().items() if image.path.name == "1.png")
    for copy in ("good/copy.png", "validation/good/copy.png"):
        (teaching.folder / copy).parent.mkdir(parents=True, exist_ok=True)
        (teaching.folder / copy).write_bytes(picture(100, note=1))
    teaching._scanned = None

    moved = teaching.assign([sha256], "not-good")
    teaching._scanned = None

    assert moved == [sha256]
    assert teaching.images()[sha256].role == "not-good"
    assert sorted(path.name for path in (teaching.folder / "good").iterdir()) == ["0.png", "2.png"]
    assert not list((teaching.folder / "validation/good").iterdir())


@pytest.mark.parametrize("content", ['{"grouping": 3, "scale": 0.05}', '{"scale": 0.05,', '{"group": "day"}'])
def test_settings_that_a_person_wrote_wrongly_are_neither_passed_over_nor_overwritten(
    teaching: Teaching, content: str
) -> None:
    teach(teaching, 5)
    (teaching.folder / "teach.json").write_text(content)

    for work in (teaching.groups, lambda: teaching.change(scale=0.1), lambda: teaching.confirm(["0" * 64])):
        with pytest.raises(FlawsmithError, match=r"teach\.json cannot be used"):
            work()

    assert (teaching.folder / "teach.json").read_text() == content


@pytest.mark.parametrize("content", ["{", '{"lines": {"bolt": {"colour": "red"}}}', "[]"])
def test_lines_that_cannot_be_read_are_neither_passed_over_nor_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "studio.json").write_text(content)

    with pytest.raises(FlawsmithError, match=r"studio\.json"):
        Workspace(tmp_path)

    assert (tmp_path / "studio.json").read_text() == content


def test_full_disk_is_not_taken_for_a_damaged_archive(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "parts.zip", {"a.png": picture(100), "b.png": picture(101)})
    monkeypatch.setattr(workspace, "has_room", lambda length=0: False)

    job = workspace.import_archive("bolt", archive, on_end=lambda: None)
    wait_for(workspace)

    assert (job.error, job.refused) == ("the disk is full: free some space", [])


def test_names_that_are_no_text_can_be_shown(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / os.fsdecode(b"\xe9\x1b.png")).symlink_to("nowhere")

    job = workspace.import_folder("bolt", tmp_path / "parts", on_end=lambda: None)
    wait_for(workspace)

    assert job.refused == ["\\xe9\\x1b.png: cannot be read (No such file or directory)"]


def test_lines_that_two_people_make_at_once_both_stay(tmp_path: Path) -> None:
    studio = Workspace(tmp_path)
    lines = studio.settings().lines  # as both have seen them

    studio.write_lines({**lines, "bolt": LineSettings(station="1")})
    studio.write_lines({**lines, "nut": LineSettings()})
    studio.close()
    again = Workspace(tmp_path)

    assert {name: line.station for name, line in again.settings().lines.items()} == {"bolt": "1", "nut": ""}
    again.close()


def test_import_whose_end_cannot_be_noted_has_ended_all_the_same(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise FlawsmithError("the disk is full")

    caplog.set_level("ERROR")
    job = workspace.import_archive("bolt", zipped(tmp_path / "parts.zip", {"a.png": picture(100)}), on_end=fail)
    workspace.close()

    assert (job.is_over, job.error, job.added) == (True, "", 1)
    assert [record.message for record in caplog.records] == ["what came of an import was not noted: the disk is full"]


def test_images_for_a_training_that_a_kill_left_behind_go_at_the_next_start(tmp_path: Path) -> None:
    images = tmp_path / "trainings/bolt/.2.0123456789ab.tmp/images/bolt/good"
    images.mkdir(parents=True)
    (images / "a.png").write_bytes(picture(100))
    (tmp_path / "trainings/bolt/1").mkdir()

    Workspace(tmp_path).close()

    assert [path.name for path in (tmp_path / "trainings/bolt").iterdir()] == ["1"]
