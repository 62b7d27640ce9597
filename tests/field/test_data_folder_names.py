"""Folders named for good and bad in people's own words: understood where they are clear, refused where they are not.

Whatever the names, flawed parts are never learned from without a word.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from flawsmith.data.doctor import check
from flawsmith.data.layouts import load
from flawsmith.data.layouts.names import meaning, sort_folders
from flawsmith.data.samples import Dataset
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images

CLEAR = """
    pass/fail Pass/Fail passed/failed PASS/REJECT accept/reject accepted/rejected approved/denied ok/ko ok/ng OK/NG
    OK/NOK ok/nok okay/notokay OK/Not_OK ok/not_ok OK/NotOK good/not_good good/no_good G/NG P/F normal/abnormal
    healthy/defective healthy/unhealthy clean/damaged clean/contaminated intact/broken undamaged/damaged
    conform/nonconform conforming/non-conforming compliant/non_compliant acceptable/unacceptable usable/unusable
    perfect/imperfect correct/wrong correct/incorrect flawless/flawed faultless/faulty valid/invalid good/anomaly
    normal/anomalies fine/scratched unscratched/scratched no_defect/defect NoDefect/Defect defect_free/defect
    defect-free/defective not_defective/defective without_flaws/with_flaws OK_parts/NOK_parts 01_good/02_bad
    0_good/1_bad good-1/bad-1 GoodParts/BadParts goodimages/badimages Good_Samples/Defective_Samples
    lineA_ok/lineA_ng OK_2024/NG_2024 OK1/NG1 class_good/class_bad success/failure
    iO/niO IO/NIO i.O./n.i.O. i_O/n_i_O in_Ordnung/nicht_in_Ordnung gut/schlecht Gut/Ausschuss GUT/NOK
    Gutteile/Schlechtteile ok-teile/ausschuss Gutteile/Fehlerteile fehlerfrei/fehlerhaft einwandfrei/mangelhaft
    bestanden/nicht_bestanden konform/nicht-konform richtig/falsch freigegeben/gesperrt unbeschädigt/beschädigt
    gut/Kratzer
    bon/mauvais bonnes/mauvaises conforme/non_conforme sans_défaut/défaut accepté/refusé bon/rebut bueno/malo
    buenos/defectuosos conforme/no_conforme aprobado/rechazado sin_defectos/con_defectos bom/ruim boas/defeituosas
    aprovado/reprovado buono/cattivo buoni/difettosi conforme/scarto idoneo/non_idoneo goed/fout
    goedgekeurd/afgekeurd conform/niet-conform dobry/wadliwy dobre/zle poprawny/niepoprawny zgodny/niezgodny
    dobré/špatné bezvadny/vadny shodny/neshodny jó/rossz hibátlan/hibás megfelelő/nem_megfelelő bra/dålig
    godkänd/underkänd godkjent/feil fejlfri/fejl hyvä/viallinen ehjä/rikki_virhe dober/slabo ispravno/neispravno
    iyi/kötü sağlam/hatalı kusursuz/kusurlu conform/neconform
    хорошие/брак годный/негодный исправный/неисправный норма/дефект καλό/κακό 良品/不良品 合格/不合格 正常/异常
    正常/異常 好/坏 良品画像/不良品画像 欠陥なし/欠陥 OK品/NG品 無缺陷/缺陷 양품/불량 정상/비정상 합격/불합격
    ＯＫ/ＮＧ جيد/معيب תקין/פגום ดี/เสีย ผ่าน/ไม่ผ่าน 01_ดี/02_เสีย अच्छा/खराब अच्छा_भाग/खराब_भाग 좋음/나쁨 healthy/sick
    bun/rebut
    valid/invalid nominal/anomalous inliers/deviations trainOK/trainNG imgOK/imgNOK unauffällig/auffällig apto/no_apto
    godkänt/underkänt bez_vad/s_vadou vyhovuje/nevyhovuje исправен/неисправен без_дефектов/с_дефектами 適合/不適合
    傷なし/傷あり 異常無/異常有 無不良/有不良 可/不可 적합/부적합 lulus/tidak_lulus αποδεκτά/απορριφθέντα ਚੰਗਾ/ਮਾੜਾ
    fehlerlos/fehlerbehaftet unblemished/blemished đạt/lỗi không_lỗi/lỗi
    ✓/✗ ✔️/❌ 👍/👎 ○/× (✓)/(✗) pristine/marred buen_estado/mal_estado hyväksytyt/hylätyt przyjęte/odrzucone
    přijato/zamítnuto elfogadva/elutasítva цілі/пошкоджені исправни/неисправни שלם/שבור kaliteli/kalitesiz
    неповреждённые/повреждённые ohne_Risse/mit_Rissen
    aceptable/no_aceptable válido/no_válido válidas/inválidas correctas/incorrectas sanas/dañadas limpio/sucio
    aprovadas/rejeitadas válido/inválido limpo/sujo sprawne/niesprawne bez_wad/z_wadami neporušené/porušené
    poprawne/błędne akceptowane/odrzucone normalne/anomalie czyste/brudne całe/pęknięte správné/chybné
    přijaté/odmítnuté kvalitní/nekvalitní čisté/poškozené normální/abnormální kabul/red doğru/yanlış defosuz/defolu
    temiz/kirli onaylandı/reddedildi sağlam/kırık 优质/劣质 良/次 无瑕/有瑕 通过/未通过 正确/错误 完整/破损 良/否
    きれい/汚れ 可/否 正/誤 良い/悪い 適/不適 グッド/バッド オーケー/エヌジー 좋은/나쁜 통과/탈락 무결점/결점
    깨끗한/더러운 정품/불량 megfelelő/nemmegfelelő rendben/nincs_rendben elfogadható/elfogadhatatlan hibamentes/hibás
    hiba_nélkül/hibás tiszta/koszos in_orde/niet_in_orde foutloos/foutief onbeschadigd/beschadigd normaal/afwijkend
    acceptabel/onacceptabel felfria/defekta accepterad/avvisad oskadad/skadad rätt/fel godkända/kasserade
    uskadet/skadet ehjä/rikki kunnossa/epäkunnossa puhdas/likainen accettabile/inaccettabile valido/non_valido
    pulito/sporco corretti/errati valide/non_valide bonnes/abîmées réussi/échec akzeptabel/inakzeptabel
    норма/аномалия без_дефекта/с_дефектом принято/отклонено ок/брак чистые/грязные bez_greške/s_greškom
    brez_napake/z_napako χωρίς_ελάττωμα/με_ελάττωμα hợp_lệ/không_hợp_lệ diterima/ditolak ของดี/ของเสีย
    स्वीकृत/अस्वीकृत good/rej conforme/NC functional/nonfunctional OK_1/NG_2 ok-2024/ng-2024 OK(1)/NG(1)
    fără_defecte/cu_defecte uygun/uygun_değil תקין/לא_תקין सही/सही_नहीं conform/nu_conform
""".split()  # noqa: SIM905
UNCLEAR = """
    0/1 00/01 1/2 1/0 -1/1 A/B a/b X/Y positive/negative Positive/Negative pos/neg positiv/negativ
    positivo/negativo 阳性/阴性 true/false True/False yes/no ja/nein y/n t/f TP/FP class0/class1 class_0/class_1
    label_0/label_1 cls-0/cls-1 target0/target1 good_and_bad/ng_or_ok tauglich/untauglich zulässig/unzulässig +/-
    overkill/escape 0/1/2 ohne_Befund/mit_Befund utan_fel/med_fel green/red grün/rot A-Ware/B-Ware grade_A/grade_B
    1st/2nd +/− ★/☆ 😎/🤔 xyz_fehlerhafte/abc_fehlerhaftes uden_buler/med_buler
""".split()  # noqa: SIM905
SILENT = ("berlin/munich", "foo/bar", "xyzzy/plugh", "alpha/omega")
PLACES = """
    monday/tuesday Montag/Dienstag cam1/cam2 camera_left/camera_right lot_17/lot_18 batch-a/batch-b left/right
    oben/unten 2024-05-01/2024-05-02 20240501/20240502 line1/line2 part1/part2 week01/week02/week03 1/2/3
    early/late
""".split()  # noqa: SIM905


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6), value).save(path)


def arrange(root: Path, *folders: str) -> Path:
    """Four images in the first folder, two in each of the others."""
    for position, folder in enumerate(folders):
        for number in range(2 if position else 4):
            picture(root / folder / f"{number}.png", 10 * position + number)
    return root


def learned(dataset: Dataset) -> set[str]:
    return {sample.image.relative_to(dataset.root).parts[0] for sample in dataset.good_train}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("pair", CLEAR)
def test_words_of_opposite_meaning_are_understood(pair: str, form: str) -> None:
    good, bad = unicodedata.normalize(form, pair).split("/")  # type: ignore[arg-type]
    names = sort_folders([Path(bad), Path(good)])
    assert ([f.name for f in names.good], [f.name for f in names.flawed]) == ([good], [bad])


@pytest.mark.parametrize(
    "pair", ["pass/fail", "valid/invalid", "niO/iO", "gut/schlecht", "良品/不良品", "G/NG", "01_good/02_bad"]
)
def test_good_parts_are_learned_and_the_others_tested(tmp_path: Path, pair: str) -> None:
    first, second = pair.split("/")
    dataset = load(arrange(tmp_path / "parts", first, second))
    good, bad = (second, first) if pair == "niO/iO" else (first, second)
    assert learned(dataset) == {good}
    assert {sample.image.parent.name for sample in dataset.test_flawed} == {bad}
    assert len(dataset.samples) == 6


BESIDE = """
    go/nogo GO/NO-GO in_spec/out_of_spec within_tolerance/out_of_tolerance nominal/off_nominal inliers/outliers
    keep/discarded released/blocked ship/quarantine Freigabe/Sperre ganz/gebrochen entero/roto hel/trasig
    vellykket/mislykket lulus/gagal gott/slæmt ép/sérült arızasız/arızalı целые/битые добрі/браковані σωστό/λάθος
    مقبول/مرفوض ভালো/খারাপ நல்ல/மோசமான ปกติ/ผิดปกติ
""".split()  # noqa: SIM905
"""The flawed one of these is known by its word; the other is what is left."""


@pytest.mark.parametrize("pair", BESIDE)
def test_the_other_of_two_is_good_where_one_is_known_to_be_flawed(tmp_path: Path, pair: str) -> None:
    good, bad = pair.split("/")
    dataset = load(arrange(tmp_path / "parts", good, bad))
    assert learned(dataset) == {good}
    assert {sample.image.parent.name for sample in dataset.test_flawed} == {bad}


@pytest.mark.parametrize(("good", "unclear"), [("ok", "ok_xyz"), ("good", "nuqneH good"), ("hea", "hea_pole")])
def test_a_good_name_with_an_unknown_word_is_not_learned_beside_the_plain_one(
    tmp_path: Path, good: str, unclear: str
) -> None:
    dataset = load(arrange(tmp_path / "parts", good, unclear))
    assert learned(dataset) == {good}
    assert any(f"not used: {unclear}/ (2 images)" in note for note in dataset.notes)


@pytest.mark.parametrize("names", ["good/good_2", "ok_cam1/ok_cam2", "good/good parts", "ok/ok_left", "good/ok"])
def test_good_parts_of_two_folders_are_all_learned(tmp_path: Path, names: str) -> None:
    dataset = load(arrange(tmp_path / "parts", *names.split("/")))
    assert learned(dataset) == set(names.split("/"))


@pytest.mark.parametrize("names", UNCLEAR)
def test_names_that_may_mean_either_are_refused_with_the_ways_out(tmp_path: Path, names: str) -> None:
    root = arrange(tmp_path / "parts", *names.split("/"))
    with pytest.raises(FlawsmithError) as caught:
        load(root)
    line = str(caught.value)
    assert all(f"{name}/" in line for name in names.split("/"))
    assert all(way in line for way in ("rename", "--layout folder", "CSV table", "give the folder of the good ones"))
    assert "\n" not in line


def test_who_insists_learns_from_all_and_is_told(tmp_path: Path) -> None:
    dataset = load(arrange(tmp_path / "parts", "0", "1"), "folder")
    assert learned(dataset) == {"0", "1"}
    assert any("learned from as good" in note and "0/ and 1/" in note for note in dataset.notes)


@pytest.mark.parametrize("names", SILENT)
def test_names_of_no_known_meaning_are_a_warning(tmp_path: Path, names: str) -> None:
    findings = check(load(arrange(tmp_path / "parts", *names.split("/"))))
    (finding,) = [item for item in findings.items if item.name == "unlabelled-folders"]
    assert finding.severity == "warning"
    assert all(f"{name}/" in finding.what for name in names.split("/"))
    assert "bad/" in finding.fix


@pytest.mark.parametrize("names", PLACES)
def test_days_cameras_and_lots_are_learned_with_a_note(tmp_path: Path, names: str) -> None:
    folders = names.split("/")
    dataset = load(arrange(tmp_path / "parts", *folders))
    (finding,) = [item for item in check(dataset).items if item.name == "unlabelled-folders"]
    assert learned(dataset) == set(folders)
    assert finding.severity == "note"


@pytest.mark.parametrize("bad", ["ng", "fail", "scratch", "Ausschuss"])
def test_flawed_parts_beside_unlabelled_ones_are_not_learned(tmp_path: Path, bad: str) -> None:
    dataset = load(arrange(tmp_path / "parts", "monday", "tuesday", bad))
    assert learned(dataset) == {"monday", "tuesday"}
    assert {sample.defect for sample in dataset.test_flawed} == {bad}


@pytest.mark.parametrize("inner", ["pass", "fail", "0_bad", "positive", "gut"])
def test_labels_further_down_are_refused(tmp_path: Path, inner: str) -> None:
    root = tmp_path / "parts"
    for day in ("monday", "tuesday"):
        picture(root / day / inner / "a.png", 1)
    with pytest.raises(FlawsmithError, match=r"labelled set"):
        load(root)


@pytest.mark.parametrize("good", ["good", "ok", "pass"])
@pytest.mark.parametrize("bad", ["bad", "reject/cam1", "lot 7/NG", "✗"])
@pytest.mark.parametrize("above", ["", "train/", "training/"])
def test_flawed_parts_in_a_folder_of_good_ones_are_not_learned(tmp_path: Path, above: str, good: str, bad: str) -> None:
    dataset = load(arrange(tmp_path / "parts", f"{above}{good}", f"{above}{good}/{bad}"))
    assert {sample.image.parent.name for sample in dataset.good_train} == {good}
    place = bad.removesuffix("/cam1")
    assert any(f"not used: {above}{good}/{place}/ (2 images): its name says flawed" in note for note in dataset.notes)


def test_flawed_parts_below_those_that_set_the_limit_are_refused(tmp_path: Path) -> None:
    root = arrange(tmp_path / "parts", "good", "validation/good", "validation/good/ng")
    with pytest.raises(FlawsmithError, match=r"good/ng has 2 images, but good parts alone set the limit"):
        load(root)


def test_images_beside_a_folder_of_no_known_meaning_are_not_learned_with_it_in_silence(tmp_path: Path) -> None:
    root = arrange(tmp_path / "parts", ".", "old")
    (finding,) = [item for item in check(load(root)).items if item.name == "unlabelled-folders"]
    assert (finding.severity, "old/" in finding.what) == ("warning", True)


@pytest.mark.parametrize("test", ["test", "testing", "Tests"])
@pytest.mark.parametrize("train", ["train", "Training"])
def test_splits_are_known_by_their_other_names(tmp_path: Path, train: str, test: str) -> None:
    dataset = load(arrange(tmp_path / "bolt", f"{train}/ok", f"{test}/pass", f"{test}/fail"))
    assert (len(dataset.good_train), len(dataset.test_good), len(dataset.test_flawed)) == (4, 2, 2)
    assert dataset.notes == ()
    with pytest.raises(FlawsmithError, match=f"is only the {test}/ part of"):
        load(tmp_path / "bolt" / test)


def test_labelled_folders_below_others_are_named_together(tmp_path: Path) -> None:
    for part in ("bolt", "nut"):
        arrange(tmp_path / "set" / part, "gut", "schlecht")
    with pytest.raises(FlawsmithError, match=r"2 categories \(bolt, nut\)"):
        load(tmp_path / "set")


LOTS = [
    # What lies where, what has to be named, and where all of it goes.
    (("lot_A/ok", "lot_A/ng", "lot_B/ok"), ("lot_A", "lot_B/ (ok/)")),
    (("lot_A/ok", "lot_B/ok", "lot_B/ng", "lot_C/ng"), ("lot_B", "lot_A/ (ok/)", "lot_C/ (ng/)")),
    (("Charge1/iO", "Charge1/niO", "Charge2/niO", "Charge3"), ("Charge1", "Charge2/ (niO/)", "Charge3/ (2 images)")),
    (("mon/am/pass", "mon/am/fail", "mon/pm/pass", "tue/pass"), ("mon/am", "mon/pm/ (pass/)", "tue/ (pass/)")),
    (("a/gut", "a/schlecht", "b/gut", "b/schlecht", "c/gut"), ("2 categories a, b", "c/ (gut/)")),
    (("lot_A/ok", "lot_A/ng", "."), ("lot_A", "2 images in no folder")),
    (("lot_A/ok", "lot_B/ng"), ("lot_A/ok/ and lot_B/ng/ look like parts of a labelled set",)),
    (("lot_A/ok", "lot_B/ok", "lot_C/x/良品"), ("lot_A/ok/, lot_B/ok/ and lot_C/x/良品/ look like parts",)),
]


@pytest.mark.parametrize(("folders", "names"), LOTS)
def test_lots_of_which_some_are_labelled_by_halves_are_all_named(
    tmp_path: Path, folders: tuple[str, ...], names: tuple[str, ...]
) -> None:
    with pytest.raises(FlawsmithError) as caught:
        load(arrange(tmp_path / "parts", *folders))
    line = str(caught.value)
    assert all(name in line for name in names), line
    assert "into good/ and" in line and "into bad/" in line
    assert "\n" not in line


@pytest.mark.parametrize("sets", [("a/bolt", "a/nut", "b/cap"), ("x/y/bolt", "x/y/nut")])
def test_a_folder_of_data_sets_names_every_category(tmp_path: Path, sets: tuple[str, ...]) -> None:
    for name in sets:
        picture(tmp_path / "sets" / name / "train" / "good" / "0.png", 1)
        picture(tmp_path / "sets" / name / "test" / "crack" / "0.png", 2)
    with pytest.raises(FlawsmithError) as caught:
        load(tmp_path / "sets")
    assert all(name in str(caught.value) for name in sets)


# A test split


@pytest.mark.parametrize("good", ["pass", "OK", "iO", "gut", "normal", "healthy", "no_defect", "良品", "good_parts"])
@pytest.mark.parametrize("flawed", ["fail", "abnormal", "niO", "crack", "foo", "defects"])
def test_good_test_images_are_known_by_any_good_word(tmp_path: Path, good: str, flawed: str) -> None:
    root = arrange(tmp_path / "bolt", "train/good", f"test/{good}", f"test/{flawed}")
    dataset = load(root)
    assert (len(dataset.good_train), len(dataset.test_good), len(dataset.test_flawed)) == (4, 2, 2)
    assert dataset.defects == (flawed,)


@pytest.mark.parametrize("good", ["ok", "pass", "iO", "Gutteile", "正常"])
def test_training_folders_are_known_by_any_good_word(tmp_path: Path, good: str) -> None:
    dataset = load(arrange(tmp_path / "bolt", f"train/{good}", "train/ng", "test/good", "test/dent"))
    assert learned(dataset) == {"train"}
    assert {sample.image.parent.name for sample in dataset.good_train} == {good}
    assert any("train/ng/ (2 images)" in note for note in dataset.notes)


@pytest.mark.parametrize("names", ["0/1", "positive/negative", "A/B", "true/false", "class0/class1"])
def test_unclear_test_folders_are_refused(tmp_path: Path, names: str) -> None:
    root = arrange(tmp_path / "bolt", "train/good", *(f"test/{name}" for name in names.split("/")))
    with pytest.raises(FlawsmithError) as caught:
        load(root)
    assert all(f"test/{name}/" in str(caught.value) for name in names.split("/"))
    assert "good/" in str(caught.value)


def test_numbers_are_defect_types_beside_good_test_images(tmp_path: Path) -> None:
    dataset = load(arrange(tmp_path / "bolt", "train/good", "test/good", "test/0", "test/1"))
    assert dataset.defects == ("0", "1")
    assert dataset.notes == ()


def test_a_test_split_without_a_known_good_folder_is_noted(tmp_path: Path) -> None:
    dataset = load(arrange(tmp_path / "bolt", "train/good", "test/foo", "test/bar"))
    assert "4 images there count as flawed" in dataset.notes[0]


@pytest.mark.parametrize("other", ["training", "testing", "labels", "overlays", "heatmaps", "annotations"])
def test_folders_of_another_role_are_never_learned(tmp_path: Path, other: str) -> None:
    dataset = load(arrange(tmp_path / "parts", "monday", other))
    assert learned(dataset) == {"monday"}
    assert any(f"{other}/ (2 images)" in note for note in dataset.notes)


# What systems leave behind

STRAYS = (
    "Thumbs",
    "MSOCache",
    "Papierkorb",
    "iPod Photo Cache",
    "@SynoResource",
    "@sharebin",
    ".thumbnails",
    "thumbnails",
    "@eaDir",
    "#recycle",
    "@Recycle",
    "@__thumb",
    "#snapshot",
    "~snapshot",
    "$RECYCLE.BIN",
    "$Recycle.Bin",
    "RECYCLER",
    "System Volume Information",
    "__MACOSX",
    "lost+found",
    "FOUND.000",
    ".Trash-1000",
    ".Trashes",
    ".ipynb_checkpoints",
    ".snapshot",
    ".AppleDouble",
    "PaxHeaders.1234",
    "Lixeira",
    "ごみ箱",
    "@Trash",
    "@eaDir@tmp",
    "$Extend",
    "thumbnails_256",
    "__thumbnails__",
)


@pytest.mark.parametrize("beside", ["", "good", "monday"])
def test_what_a_file_system_makes_is_no_image_of_a_part(tmp_path: Path, beside: str) -> None:
    root = tmp_path / "parts"
    picture(root / beside / "a.png", 1)
    picture(root / beside / "._a.png", 2)
    for number, stray in enumerate(STRAYS):
        picture(root / stray / "b.png", 10 + number)
        picture(root / beside / stray / "deep" / "c.png", 100 + number)
    dataset = load(root)
    assert [sample.image.name for sample in dataset.samples] == ["a.png"]
    assert dataset.notes == ()
    assert [path.name for path in find_images(root)] == ["a.png"]


@pytest.mark.parametrize("name", ["@1.png", "$part.png", "#7.png", "thumb_1.png", "cache.png"])
def test_images_whose_names_are_like_those_of_strays_are_seen(tmp_path: Path, name: str) -> None:
    picture(tmp_path / name, 1)
    assert [path.name for path in find_images(tmp_path)] == [name]


def test_stray_folders_are_no_defect_types(tmp_path: Path) -> None:
    strays = [f"{part}/{stray}" for part in ("train", "test") for stray in STRAYS]
    root = arrange(tmp_path / "bolt", "train/good", "test/good", "test/crack", *strays)
    dataset = load(root)
    assert dataset.defects == ("crack",)
    assert len(dataset.good_train) == 4
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("crack", "flawed"),
        ("lighting", None),
        ("okra", None),
        ("singapore", None),
        ("unicorn", None),
        ("passage", None),
        ("goodyear", None),
        ("nova", None),
        ("front", None),
        ("not defective", "good"),
        ("non ok", "flawed"),
        ("false rejects", "unclear"),
        ("ok after ng", "unclear"),
        ("io board", None),
        ("iO Teile", "good"),
        ("NC 1", None),
        ("3×4", None),
        ("✗✗", "flawed"),
        ("✓ ✗", None),
        ("⭕️", "good"),
    ],
)
def test_meaning_of_single_names(name: str, expected: str | None) -> None:
    assert meaning(name) == expected


def splits(dataset: Dataset) -> dict[str, set[str]]:
    """The folders of images by what is done with them."""
    kinds: dict[str, set[str]] = {}
    for sample in dataset.samples:
        kind = f"{sample.split} {sample.label}"
        kinds.setdefault(kind, set()).add(sample.image.parent.relative_to(dataset.root).as_posix())
    return kinds


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("ok/train ng/test", {"train good": {"ok/train"}, "test flawed": {"ng/test"}}),
        ("OK/Train OK/Test NG", {"train good": {"OK/Train"}, "test good": {"OK/Test"}, "test flawed": {"NG"}}),
        ("ok/training ok/val ng", {"train good": {"ok/training"}, "val good": {"ok/val"}, "test flawed": {"ng"}}),
        ("ok/train ng ng/test", {"train good": {"ok/train"}, "test flawed": {"ng", "ng/test"}}),
        ("ok/train/cam1 ng/test/dent", {"train good": {"ok/train/cam1"}, "test flawed": {"ng/test/dent"}}),
        ("TrainOK TestOK TestNG", {"train good": {"TrainOK"}, "test good": {"TestOK"}, "test flawed": {"TestNG"}}),
        ("ok-train ok-val ng-test", {"train good": {"ok-train"}, "val good": {"ok-val"}, "test flawed": {"ng-test"}}),
        ("test_good test_bad", {"train good": {"test_good"}, "test flawed": {"test_bad"}}),
    ],
)
def test_splits_within_labels_are_understood(tmp_path: Path, folders: str, expected: dict[str, set[str]]) -> None:
    dataset = load(arrange(tmp_path / "parts", *folders.split()))
    assert splits(dataset) == expected
    assert dataset.notes == ()


def test_masks_and_defects_keep_their_names_where_flawed_parts_lie_in_a_split(tmp_path: Path) -> None:
    root = arrange(tmp_path / "parts", "ok/train", "ng/test", "ground_truth/ng")
    assert [(s.defect, [mask.name for mask in s.masks]) for s in load(root).test_flawed] == [
        ("ng", ["0.png"]), ("ng", ["1.png"])
    ]  # fmt: skip


def test_good_images_beside_their_split_are_named(tmp_path: Path) -> None:
    dataset = load(arrange(tmp_path / "parts", "ok/train", "ok", "ng"))
    assert learned(dataset) == {"ok"}
    assert any("not used: 2 images in ok/, beside ok/train/" in note for note in dataset.notes)


@pytest.mark.parametrize("split", ["test", "val"])
def test_good_parts_for_anything_but_training_are_refused_with_the_way_out(tmp_path: Path, split: str) -> None:
    with pytest.raises(FlawsmithError, match=r"no good images to train on in .*ok; put images .*train"):
        load(arrange(tmp_path / "parts", f"ok/{split}", "ng"))


@pytest.mark.parametrize("names", ["GT/ST", "gt/st", "GT/NT"])
def test_masks_that_may_be_good_parts_are_refused(tmp_path: Path, names: str) -> None:
    first, second = names.split("/")
    with pytest.raises(FlawsmithError, match=rf"{first}/ holds good parts .* or masks .*{second}/ to bad/"):
        load(arrange(tmp_path / "parts", first, second))
