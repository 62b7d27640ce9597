"""The bundle: same bytes every time, and nothing taken on trust."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flawsmith.runtime.bundle import _PARTS, Bundle, read_arrays, write_arrays, write_parts
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.roi import RegionOfInterest

Parts = dict[str, bytes]


def _parts(bundle: Bundle) -> Parts:
    with zipfile.ZipFile(io.BytesIO(bundle.to_bytes())) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def _signed(parts: Parts, *, version: object = 1) -> Parts:
    """The parts with a manifest that fits them, as a forger would make it."""
    content = {name: data for name, data in parts.items() if name != "manifest.json"}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    manifest = {"schema_version": version, "sha256": hashes}
    return {**content, "manifest.json": json.dumps(manifest).encode()}


def _with_spec(parts: Parts, **changes: object) -> Parts:
    spec = {**json.loads(parts["spec.json"]), **changes}
    return _signed({**parts, "spec.json": json.dumps(spec).encode()})


def _npz(content: bytes, name: str = "a.npy") -> bytes:
    return write_parts({name: content})


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def test_bundle_survives_the_file(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "model.flaw"

    bundle.save(path)
    loaded = Bundle.load(path)

    assert loaded.spec == bundle.spec
    assert loaded.spec.backbone.levels == (2, "layer3")
    assert loaded.model == bundle.model
    assert loaded.card == bundle.card
    assert set(loaded.calibration) == set(bundle.calibration)
    for name, array in bundle.calibration.items():
        np.testing.assert_array_equal(loaded.calibration[name], array)
        assert loaded.calibration[name].dtype == array.dtype


def test_same_bundle_gives_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    shuffled = replace(bundle, calibration=dict(reversed(list(bundle.calibration.items()))))
    bundle.save(tmp_path / "a.flaw")
    Bundle.load(tmp_path / "a.flaw").save(tmp_path / "b.flaw")

    assert (tmp_path / "a.flaw").read_bytes() == (tmp_path / "b.flaw").read_bytes()
    assert shuffled.to_bytes() == bundle.to_bytes()


def test_file_is_stored_sorted_and_dated_1980(bundle: Bundle) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.to_bytes())) as opened:
        entries = opened.infolist()

    assert [entry.filename for entry in entries] == [
        "calibration.npz",
        "card.md",
        "manifest.json",
        "model.onnx",
        "spec.json",
    ]
    for entry in entries:
        assert entry.compress_type == zipfile.ZIP_STORED
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        assert (entry.create_system, entry.external_attr) == (3, 0o644 << 16)


def test_numpy_reads_the_calibration_itself(bundle: Bundle) -> None:
    with np.load(io.BytesIO(_parts(bundle)["calibration.npz"]), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["forged"], bundle.calibration["forged"])


def test_arrays_of_any_shape_and_layout_survive() -> None:
    arrays = {
        "scalar": np.array(3.5),
        "none": np.zeros((0, 4), np.int16),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">f8"),
        "flags": np.array([True, False]),
        "half": np.arange(3, dtype=np.float16),
    }

    read = read_arrays(write_arrays(arrays))

    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].shape == array.shape


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["text"]), np.zeros(2, [("a", "f4")])])
def test_arrays_that_are_not_numbers_are_not_written(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="only numbers"):
        write_arrays({"a": array})


def test_failed_save_leaves_the_old_file_and_no_litter(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.flaw"
    bundle.save(path)
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FlawsmithError, match="No space left"):
        replace(bundle, card="new").save(path)

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_into_a_missing_folder_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="cannot be written"):
        bundle.save(tmp_path / "none" / "model.flaw")


def test_part_that_could_not_be_loaded_is_not_saved(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawsmith.runtime.bundle._PARTS", {**_PARTS, "model.onnx": 10})

    with pytest.raises(FlawsmithError, match=r"model\.onnx has \d+ bytes"):
        bundle.save(tmp_path / "model.flaw")


def test_changed_byte_anywhere_is_never_accepted_silently(bundle: Bundle, tmp_path: Path) -> None:
    content = bundle.to_bytes()
    path = tmp_path / "model.flaw"
    for place in range(0, len(content), 23):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        try:
            loaded = Bundle.load(path)
        except FlawsmithError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
        else:
            # Bytes of the zip that carry no content, such as an entry's date.
            assert loaded.to_bytes() == content


def test_pointer_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.flaw").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1234\n" * 9)
    with pytest.raises(FlawsmithError, match="git lfs pull"):
        Bundle.load(tmp_path / "model.flaw")


def test_file_cut_anywhere_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    content = bundle.to_bytes()
    path = tmp_path / "model.flaw"
    for length in range(0, len(content), 101):
        path.write_bytes(content[:length])
        with pytest.raises(FlawsmithError, match="not an intact model file"):
            Bundle.load(path)


CHANGES: dict[str, tuple[Callable[[Parts], Parts], str]] = {
    "missing part": (lambda p: {k: v for k, v in p.items() if k != "card.md"}, "lacks card.md"),
    "missing manifest": (
        lambda p: {k: v for k, v in p.items() if k != "manifest.json"},
        "lacks manifest.json",
    ),
    "unknown part": (lambda p: {**p, "run.py": b"x"}, "unknown part 'run.py'"),
    "path that climbs": (lambda p: {**p, "../model.onnx": b"x"}, "unknown part"),
    "absolute path": (lambda p: {**p, "/etc/passwd": b"x"}, "unknown part"),
    "folder": (lambda p: {**p, "model.onnx/": b""}, "unknown part"),
    "changed model": (lambda p: {**p, "model.onnx": p["model.onnx"] + b"x"}, "model.onnx was changed"),
    "changed card": (lambda p: {**p, "card.md": b"safe"}, "card.md was changed"),
    "manifest of text": (lambda p: {**p, "manifest.json": b"[]"}, "manifest.json is not a JSON object"),
    "manifest nested deeply": (
        lambda p: {**p, "manifest.json": b"[" * 60_000},
        "manifest.json is not a JSON object",
    ),
    "manifest without hashes": (
        lambda p: {**p, "manifest.json": b'{"schema_version": 1}'},
        "does not list the parts",
    ),
    "manifest of other parts": (
        lambda p: {**p, "manifest.json": b'{"schema_version": 1, "sha256": {"a": "b"}}'},
        "does not list the parts",
    ),
    "newer manifest": (lambda p: {**_signed(p, version=4), "weights.bin": b"x"}, "made by a newer Flawsmith"),
    "manifest without a version": (lambda p: _signed(p, version=None), "no schema version"),
    "newer spec": (lambda p: _with_spec(p, schema_version=7), "schema 7, this one reads 3"),
    "version of a wrong kind": (lambda p: _with_spec(p, schema_version=True), "no schema version"),
    "spec with an unknown field": (lambda p: _with_spec(p, hook="os.system"), "spec.json: hook: "),
    "spec with an unknown engine": (lambda p: _with_spec(p, engine="torch"), "spec.json: engine: "),
    "spec without a seed": (
        lambda p: _signed(
            {
                **p,
                "spec.json": json.dumps({k: v for k, v in json.loads(p["spec.json"]).items() if k != "seed"}).encode(),
            }
        ),
        "spec.json: seed: ",
    ),
    "spec that is no JSON": (
        lambda p: _signed({**p, "spec.json": b"\xff{"}),
        "spec.json is not a JSON object",
    ),
    "spec nested deeply": (
        lambda p: _signed({**p, "spec.json": b'{"a":' * 90_000}),
        "spec.json is not a JSON object",
    ),
    "card that is no text": (lambda p: _signed({**p, "card.md": b"\xff\xfe\x00"}), "malformed"),
    "arrays that are no zip": (lambda p: _signed({**p, "calibration.npz": b"x"}), "malformed"),
    "array of objects": (
        lambda p: _signed({**p, "calibration.npz": _npz(_object_array())}),
        "does not hold plain numbers",
    ),
    "array of a giant shape": (
        lambda p: _signed(
            {
                **p,
                "calibration.npz": _npz(_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000000,)}")),
            }
        ),
        "length differs",
    ),
    "array with code in its header": (
        lambda p: _signed({**p, "calibration.npz": _npz(_npy("__import__('os').abort()"))}),
        "malformed",
    ),
    "member that is no array": (
        lambda p: _signed({**p, "calibration.npz": _npz(b"x", "a.txt")}),
        "is not an array",
    ),
    "arrays compressed": (
        lambda p: _signed({**p, "calibration.npz": _compressed_arrays()}),
        "longer than their file",
    ),
    "arrays compressed a little": (
        lambda p: _signed({**p, "calibration.npz": _compressed_arrays(noise=True)}),
        "is compressed or encrypted",
    ),
}


def _object_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    return buffer.getvalue()


def _compressed_arrays(*, noise: bool = False) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 2**60, 9) if noise else np.zeros(1_000_000)
    np.savez_compressed(buffer, a=values)
    return buffer.getvalue()


@pytest.mark.parametrize("name", CHANGES)
def test_forged_bundle_is_refused_with_one_line(name: str, bundle: Bundle, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    path = tmp_path / "model.flaw"
    path.write_bytes(write_parts(change(_parts(bundle))))

    with pytest.raises(FlawsmithError) as caught:
        Bundle.load(path)

    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_compressed_bomb_is_refused_unread(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "model.flaw"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in _parts(bundle).items():
            opened.writestr(name, bytes(200_000_000) if name == "model.onnx" else content)

    with pytest.raises(FlawsmithError, match="compressed or encrypted"):
        Bundle.load(path)


def test_doubled_part_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "model.flaw"
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in _parts(bundle).items():
            opened.writestr(name, content)
        with pytest.warns(UserWarning, match="Duplicate"):
            opened.writestr("model.onnx", b"another")

    with pytest.raises(FlawsmithError, match="a part twice"):
        Bundle.load(path)


def test_size_that_a_directory_only_claims_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    content = bytearray(bundle.to_bytes())
    place = content.rindex(b"model.onnx") - 46
    content[place + 20 : place + 28] = struct.pack("<II", 1_900_000_000, 1_900_000_000)
    path = tmp_path / "model.flaw"
    path.write_bytes(content)

    with pytest.raises(FlawsmithError, match="longer than the file"):
        Bundle.load(path)


def test_part_above_its_cap_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "model.flaw"
    path.write_bytes(write_parts(_signed({**_parts(bundle), "card.md": bytes(2**20 + 1)})))

    with pytest.raises(FlawsmithError, match=r"card\.md has 1048577 bytes"):
        Bundle.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not an intact"), (b"PK\x03\x04", "not an intact"), (b"\x89PNG\r\n", "not an intact")],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.flaw"
    path.write_bytes(content)

    with pytest.raises(FlawsmithError, match=message):
        Bundle.load(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="no such model file"):
        Bundle.load(tmp_path / "none.flaw")
    with pytest.raises(FlawsmithError, match="is a folder"):
        Bundle.load(tmp_path)


def test_loading_writes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "model.flaw"
    bundle.save(path)

    Bundle.load(path)

    assert list(tmp_path.iterdir()) == [path]


def test_frozen_version_1_file_opens_and_inspects():
    # Written once by the first release of the format; a change of the format must go on reading it.
    frozen = Path(__file__).parent / "data" / "version-1.flaw"
    loaded = Bundle.load(frozen)
    assert loaded.spec.schema_version == 2  # migrated as it was read
    assert loaded.spec.decision.limit == 0.6
    assert loaded.calibration["good_scores"].shape == (19,)
    white = np.full((20, 30, 3), 255, np.uint8)
    assert Inspector.load(loaded).inspect(white).verdict == "reject"


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("good_groups", np.zeros(3, np.int32)),
        ("good_groups", np.full(40, -1)),
        ("good_groups", np.zeros(40)),
        ("good_levels", np.zeros(39)),
        ("good", np.float64(0.5)),
        ("good", np.full(40, 1e300)),
        ("good", np.zeros((40, 5))),
        ("good_levels@0123456789ab", np.full(40, -1e31)),
        ("forged", np.full(6, 1e300)),
        ("learned_sha256", np.uint8(0)),
        ("held_out_sha256", np.zeros((2, 31), np.uint8)),
        ("test_sha256", np.zeros((2, 32))),
        ("anything", np.float64(1)),
    ],
)
def test_calibration_arrays_of_a_stranger_are_checked(
    name: str, array: np.ndarray, bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "model.flaw"
    sound = {"good": np.zeros(40), "good_levels": np.ones(40), "learned_sha256": np.zeros((7, 32), np.uint8)}
    replace(bundle, calibration=sound).save(path)
    assert len(Bundle.load(path).calibration) == 3
    replace(bundle, calibration={**sound, name: array}).save(path)

    with pytest.raises(
        FlawsmithError, match=r"calibration\.npz is malformed \(array '(good|forged|learned|held_out|test|anything)"
    ) as caught:
        Bundle.load(path)

    assert "\n" not in str(caught.value)


def test_earlier_limits_with_large_masks_leave_room_for_those_in_use(bundle: Bundle, tmp_path: Path) -> None:
    speckled = np.random.default_rng(0).random((1100, 1300)) > 0.5
    region = RegionOfInterest.from_mask(speckled)
    assert region.mask is not None and len(region.mask) > 200_000

    for number in range(8):
        decision = bundle.spec.decision.model_copy(update={"region_of_interest": region, "limit": 1.0 + number})
        bundle = bundle.with_decision(decision, {"good": np.full(19, number / 10)})
    bundle.save(tmp_path / "model.flaw")

    loaded = Bundle.load(tmp_path / "model.flaw")
    kept = [earlier.limit for earlier in loaded.spec.earlier_decisions]
    assert loaded.spec.decision.limit == 8.0
    assert kept and kept == [5.0, 6.0, 7.0][-len(kept) :]
    arrays = {f"good@{earlier.identity}" for earlier in loaded.spec.earlier_decisions}
    assert arrays == {name for name in loaded.calibration if name.startswith("good@")}
