"""Model files whose hashes are right and whose parts are not: one line that names the file, soon, in little memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from flawsmith.cli.main import main
from flawsmith.runtime import engine as engine_module
from flawsmith.runtime.bundle import Bundle, write_parts
from flawsmith.runtime.engine import _Watchdog, run_apart
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspector, Unreadable

IMAGE = np.full((40, 60, 3), 100, np.uint8)
SIZE = (32, 48)
Write = Callable[..., Path]


@pytest.fixture
def write(tiny: Any, tmp_path: Path) -> Write:
    """Writes a model file, with other content in some parts, under a manifest that fits."""

    def run(parts: dict[str, bytes] | None = None) -> Path:
        with zipfile.ZipFile(io.BytesIO(tiny.make_bundle().to_bytes())) as archive:
            content = {name: archive.read(name) for name in archive.namelist() if name != "manifest.json"}
        content |= parts or {}
        hashes = {name: hashlib.sha256(part).hexdigest() for name, part in content.items()}
        manifest = json.dumps({"schema_version": 1, "sha256": hashes}).encode()
        (tmp_path / "model.flaw").write_bytes(write_parts({**content, "manifest.json": manifest}))
        return tmp_path / "model.flaw"

    return run


@pytest.fixture
def spec(tiny: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(tiny.make_spec().model_dump_json())
    spec["decision"]["groups"] = {"by": "day", "count": 2, "lowest": 0.0, "highest": 0.1, "mean": 0.05}
    region = {"include": [[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]]}
    zone = {"name": "seal", "region": region, "minimum_area": 2, "offset": -0.1}
    spec["earlier_decisions"] = [{**spec["decision"], "zones": [zone]}]
    return spec


def line_of(path: Path, act: Callable[[], Any]) -> str:
    """The one line in which something is refused, which names the file and comes at once."""
    start = time.process_time()
    with pytest.raises(FlawsmithError) as caught:
        act()
    assert time.process_time() - start < 5
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e308",
    "-1e308",
    f"{10**30}",
    "9" * 5000,
    '"1"',
    "true",
    "[]",
    "{}",
]
NUMBERS += ["1e-320", "null"]
PLACES: dict[str, set[str]] = {
    "seed": set(),
    "geometry.size.0": set(),
    "geometry.resize": {"null"},
    "geometry.mean.1": {"1e-320"},
    "geometry.std.2": set(),
    "geometry.value_range": {"null"},
    "decision.limit": set(),
    "decision.map_limit": {"1e-320"},
    "decision.review_limit": {"1e-320", "null"},
    "decision.minimum_area": set(),
    "earlier_decisions.0.zones.0.offset": {"1e-320"},
    "earlier_decisions.0.zones.0.minimum_area": {"null"},
    "earlier_decisions.0.zones.0.region.include.0.0.1": {"1e-320"},
    "decision.pixel_size": {"null"},
    "decision.repeat_deviation": {"1e-320", "null"},
    "decision.target_review_rate": {"null"},
    "decision.groups.count": set(),
    "decision.groups.highest": {"1e-320", "null"},
    "decision.target_false_reject_rate": set(),
    "decision.stated_false_reject_rate": set(),
    "decision.n_good": set(),
    "decision.highest_score": {"1e-320", "null"},
    "training.n_train": set(),
    "training.n_calibration": set(),
    "backbone.levels": {"[]"},
    "schema_version": set(),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_number_of_the_spec_is_without_bounds(place: str, write: Write, spec: dict[str, Any]) -> None:
    *folders, name = place.split(".")
    holder: Any = spec
    for folder in folders:
        holder = holder[int(folder) if folder.isdigit() else folder]
    holder[int(name) if name.isdigit() else name] = "@"
    text = json.dumps(spec)

    for number in NUMBERS:
        path = write({"spec.json": text.replace('"@"', number).encode()})
        if number in PLACES[place]:
            Bundle.load(path)
        else:
            line = line_of(path, lambda path=path: Bundle.load(path))
            assert "spec.json" in line or "schema version" in line or "newer Flawsmith" in line


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 30, "9" * 5000])
@pytest.mark.parametrize("place", ["config", "parity", "findings"])
def test_free_numbers_are_finite_too(number: str, place: str, write: Write, spec: dict[str, Any]) -> None:
    (spec["training"] if place == "findings" else spec)[place] = {"deep": "@"}
    path = write({"spec.json": json.dumps(spec).replace('"@"', number).encode()})

    assert "spec.json" in line_of(path, lambda: Bundle.load(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "crop", "resize": 10**9}, "resize"),
        ({"policy": "crop", "resize": 8193}, "resize"),
        ({"size": [20_000, 20_000]}, "size"),
        ({"std": [1e-9, 1.0, 1.0]}, "std"),
        ({"value_range": [0.0, 1e-300]}, "value_range must rise"),
        ({"size": [32.0, 48.0]}, "size"),
    ],
)
def test_geometry_of_a_size_that_no_machine_holds_is_refused(
    change: dict[str, Any], words: str, write: Write, spec: dict[str, Any]
) -> None:
    spec["geometry"] |= change
    path = write({"spec.json": json.dumps(spec).encode()})

    assert words in line_of(path, lambda: Bundle.load(path))


def test_crop_of_a_giant_picture_still_inspects_an_image_of_one_pixel(tiny: Any) -> None:
    geometry = Geometry(policy="crop", size=SIZE, resize=1000, mean=(0, 0, 0), std=(1, 1, 1))

    inspection = Inspector.load(tiny.make_bundle(geometry=geometry)).inspect(IMAGE[:1, :1])

    assert inspection.map.shape == (1, 1)


def npz(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return write_parts({"good.npy": b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data})


HEADER = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}"


@pytest.mark.parametrize(
    "content",
    [
        *(
            npz(HEADER.format(repr(kind), "(1,)"), bytes(32))
            for kind in ("|O", "<U4", "|S3", "<M8[s]", "|V8", "x", "<f0")
        ),
        *(npz(HEADER.format(repr(kind), "(1,)"), bytes(size)) for kind, size in (("<c16", 16), ("<f16", 16))),
        npz(HEADER.format("[('a', '<f4')]", "(1,)"), bytes(4)),
        npz(HEADER.format("['<f4', '<f4']", "(1,)"), bytes(4)),
        *(
            npz(HEADER.format("'<f8'", shape))
            for shape in ("(-1,)", "(3.0,)", "('a',)", f"({10**30},)", "(1,) * 70", "5")
        ),
        *(npz(HEADER.format("'<f8'", "(1,)"), struct.pack("<d", value)) for value in (np.nan, np.inf, -np.inf)),
        npz("{" * 100),
        npz("1" * 100),
        npz(""),
        npz(HEADER.format("'<f8'", "(0,)"), version=b"\x09\x09"),
        npz("[" * 9000 + "]" * 9000),
        b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, 0, 0, 0),
        b"PK\x06\x07" + bytes(16) + b"PK\x05\x06" + bytes(18),
    ],
)
def test_arrays_that_numpy_would_not_write_are_named(content: bytes, write: Write) -> None:
    path = write({"calibration.npz": content})

    assert "calibration.npz is malformed" in line_of(path, lambda: Bundle.load(path))


def test_zip_with_a_directory_of_many_entries_is_refused_unread(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "many.flaw"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(2000):
            archive.writestr(str(number), b"")

    assert "too many parts" in line_of(path, lambda: Bundle.load(path))


def graph(
    nodes: list[onnx.NodeProto] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    *,
    kinds: tuple[int, int, int] = (TensorProto.FLOAT,) * 3,
    outputs: tuple[str, ...] = ("map", "score"),
    opset: int = 18,
) -> bytes:
    """A detector of other nodes; by default the mean of the channels and its maximum."""
    nodes = nodes or [
        helper.make_node("ReduceMean", ["image", "one"], ["map"], keepdims=0),
        helper.make_node("ReduceMax", ["map", "both"], ["score"], keepdims=0),
    ]
    shapes: dict[str, list[Any]] = {"image": ["b", 3, *SIZE], "map": ["b", *SIZE], "score": ["b"]}
    value = dict(zip(shapes, kinds, strict=True))
    ports = {name: helper.make_tensor_value_info(name, value[name], shapes[name]) for name in shapes}
    weights = {"one": np.array([1]), "both": np.array([1, 2]), **(constants or {})}
    made = helper.make_graph(
        nodes,
        "g",
        [ports["image"]],
        [ports[name] for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


MEAN = helper.make_node("ReduceMean", ["image", "one"], ["mean"], keepdims=0)
PEAK = helper.make_node("ReduceMax", ["map", "both"], ["score"], keepdims=0)
BROKEN: dict[str, bytes] = {
    "input of another type": graph(kinds=(TensorProto.DOUBLE, TensorProto.DOUBLE, TensorProto.DOUBLE)),
    "whole numbers": graph(kinds=(TensorProto.INT64, TensorProto.INT64, TensorProto.INT64)),
    "output of another type": graph(kinds=(TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.DOUBLE)),
    "missing output": graph(outputs=("map",)),
    "no output": graph(outputs=()),
    "missing input of a node": graph([helper.make_node("Pad", ["image"], ["mean"]), MEAN, PEAK]),
    "only a missing input of a node": graph([MEAN, helper.make_node("Pad", ["mean"], ["map"]), PEAK]),
    "circle": graph(
        [helper.make_node("Add", ["image", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"]), MEAN, PEAK]
    ),
    "operator that there is not": graph([MEAN, helper.make_node("Magic", ["mean"], ["map"]), PEAK]),
    "attribute of another type": graph([MEAN, helper.make_node("Softmax", ["mean"], ["map"], axis=[1, 2]), PEAK]),
    "axis that there is not": graph([MEAN, helper.make_node("Softmax", ["mean"], ["map"], axis=2**31), PEAK]),
    "operator set of the future": graph(opset=900),
    "operator set of a giant number": graph(opset=2**40),
    "name that is no text": graph().replace(b"score", b"sc\xffre"),
    "random bytes": bytes(range(256)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_graph_that_cannot_be_loaded_is_refused_by_either_engine(
    name: str, engine: str, write: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write({"model.onnx": BROKEN[name]})

    line_of(path, lambda: Inspector.load(path, engine=engine))

    assert capfd.readouterr() == ("", "")


GROWING = [
    helper.make_node("ReduceMax", ["image"], ["peak"], keepdims=0),
    helper.make_node("Expand", ["peak", "sizes"], ["large"]),
    helper.make_node("ReduceMax", ["large"], ["top"], keepdims=0),
    MEAN,
    helper.make_node("Add", ["mean", "top"], ["map"]),
    PEAK,
]


def mapped(operator: str, constant: np.ndarray) -> bytes:
    """A detector whose map is the mean and a constant, combined."""
    return graph([MEAN, helper.make_node(operator, ["mean", "k"], ["map"]), PEAK], {"k": constant})


UNCOMPUTABLE: dict[str, bytes] = {
    "reshape that fails": mapped("Reshape", np.array([0, 7, -1])),
    "map of another size": mapped("Reshape", np.array([0, 24, 64])),
    "map that is not finite": mapped("Div", np.zeros(1, np.float32)),
    "map beyond all bounds": mapped("Mul", np.full(1, 1e37, np.float32)),
    "more memory than there is": graph(GROWING, {"sizes": np.array([10**6, 10**7])}),
    "more memory than is given": graph(GROWING, {"sizes": np.array([10**5, 10**5])}),
}


@pytest.mark.parametrize("name", UNCOMPUTABLE)
def test_graph_that_cannot_be_computed_says_so_for_the_image(
    name: str, write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write({"model.onnx": UNCOMPUTABLE[name]})
    Image.fromarray(IMAGE).save(tmp_path / "a.png")

    try:
        inspector = Inspector.load(path)
    except FlawsmithError as error:
        assert str(error).startswith(f"{path}: ")
        return
    (result,) = inspector.stream(tmp_path / "a.png")

    assert isinstance(result, Unreadable)
    assert result.error.startswith(f"{tmp_path / 'a.png'}: ")
    assert "\n" not in result.error
    assert capfd.readouterr() == ("", "")


def enlarged(factor: float, nodes: list[onnx.NodeProto] | None = None) -> bytes:
    """A detector that enlarges the image by a factor, as ``x``, and adds the maximum of ``y``, if nodes give that."""
    top = helper.make_node("ReduceMax", ["y" if nodes else "x"], ["top"], keepdims=0)
    add = helper.make_node("Add", ["mean", "top"], ["map"])
    made = [helper.make_node("Resize", ["image", "", "scales"], ["x"]), *(nodes or []), top, MEAN, add, PEAK]
    return graph(made, {"scales": np.array([1, 1, factor, factor], np.float32)})


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_network_that_takes_too_long_is_stopped(
    engine: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["p0"]),
        *(helper.make_node("MatMul", [f"p{i}", f"p{i}"], [f"p{i + 1}"]) for i in range(200)),
        helper.make_node("Identity", ["p200"], ["y"]),
    ]
    path = write({"model.onnx": enlarged(20, products)})
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    monkeypatch.setattr(_Watchdog, "TICK", 0.05)
    # With one thread OpenVINO heeds a word to stop in asynchronous runs alone.
    inspector = Inspector.load(path, engine=engine, threads=1, max_seconds=0.2)

    first, second = inspector.stream([tmp_path / "a.png"] * 2)

    # Of a run that was not stopped the numbers would not be finite, which are other words.
    for result in (first, second):
        assert isinstance(result, Unreadable)
        assert result.error.startswith(
            f"{tmp_path / 'a.png'}: the model works on one image for more than 0.2 s and was"
        )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_limit_of_time_changes_nothing_for_a_model_that_keeps_it(engine: str, write: Write) -> None:
    path = write()

    results = [
        Inspector.load(path, engine=engine, max_seconds=limit).inspect(IMAGE).to_dict() | {"timing": 0}
        for limit in (None, 1)
    ]

    assert results[0] == results[1]


HUGE_NODE = [
    helper.make_node("Constant", [], ["shape"], value_ints=[1, 3, 1201, 1201]),
    helper.make_node("Constant", [], ["tenth"], value_float=0.1),
    helper.make_node("Expand", ["tenth", "shape"], ["kernel"]),
    helper.make_node("Conv", ["x", "kernel"], ["y"], pads=[600, 600, 600, 600]),
]
"""An hour in one node, which no watch between nodes ends."""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_trial_refuses_a_model_that_computes_without_end(engine: str, write: Write) -> None:
    path = write({"model.onnx": enlarged(40, HUGE_NODE)})
    start = time.monotonic()

    line = line_of(path, lambda: Inspector.load(path, engine=engine, trial_seconds=4))

    assert "takes more than 4 s to be loaded and to work on one image" in line
    assert time.monotonic() - start < 30


def test_a_trial_changes_nothing_for_a_sound_model(write: Write) -> None:
    path = write()

    results = [
        Inspector.load(path, trial_seconds=limit).inspect(IMAGE).to_dict() | {"timing": 0} for limit in (None, 120)
    ]

    assert results[0] == results[1]


def test_a_process_that_ends_without_a_word_is_no_answer() -> None:
    with pytest.raises(FlawsmithError, match="ended the process that tried it"):
        run_apart(partial(os._exit, 0), seconds=60, too_long="")


def test_a_trial_says_what_loading_would(write: Write) -> None:
    path = write({"model.onnx": BROKEN["circle"]})

    line = line_of(path, lambda: Inspector.load(path, trial_seconds=120))

    assert line == line_of(path, lambda: Inspector.load(path))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_a_trial_that_lacks_memory_refuses_the_model(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    little = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**26, 2**26)); "
    monkeypatch.setattr(engine_module, "_TRIAL", little + engine_module._TRIAL)
    path = write()
    assert "ended the process that tried it" in line_of(path, lambda: Inspector.load(path, trial_seconds=120))


def test_openvino_refuses_a_graph_whose_values_take_too_much_memory(write: Write) -> None:
    Inspector.load(write({"model.onnx": enlarged(100)}), engine="openvino").inspect(IMAGE)
    path = write({"model.onnx": enlarged(500)})  # 4.6 GB at once
    assert "more than 4 GiB of memory" in line_of(path, lambda: Inspector.load(path, engine="openvino"))


def test_openvino_refuses_a_graph_whose_sizes_depend_on_the_image(write: Write) -> None:
    places = [helper.make_node("NonZero", ["x"], ["z"]), helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)]
    path = write({"model.onnx": enlarged(1, places)})
    assert "depends on the image" in line_of(path, lambda: Inspector.load(path, engine="openvino"))


@pytest.mark.parametrize("command", ["info", "doctor", "predict"])
@pytest.mark.parametrize("part", ["spec.json", "model.onnx", "calibration.npz"])
def test_commands_end_with_one_line(
    command: str, part: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        {part: {"spec.json": b'{"schema_version": 1, "seed": 1e999}', "model.onnx": BROKEN["circle"]}.get(part, b"x")}
    )
    (tmp_path / "images").mkdir()
    more = [str(tmp_path / "images"), "--out", str(tmp_path / "out")] if command == "predict" else []

    code = main([command, str(path), *more])

    out, err = capsys.readouterr()
    if (command, part) == ("info", "model.onnx"):
        assert code == 0  # it says what the file says of itself; the graph is not looked at
    else:
        assert code in (1, 2)
        assert "Traceback" not in out + err
        assert str(path) in out + err
