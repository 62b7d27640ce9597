"""Model files of a stranger: their hashes are right, their parts are not. Drawn from a seed, tried one after the other.

    python tests/field/fuzz_bundles.py --minutes 30 --keep finds

runs for so long and prints counts; a find is a traceback, a crash, ten seconds, or two gigabytes. ``make fuzz`` tries
some in the tests' process (tests/field/test_bundle_fuzz.py), where finds of the past are kept as seeds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import selectors
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flawsmith.pipeline.describe import describe_model, model_in_words
from flawsmith.runtime.bundle import BackboneSpec, Bundle, BundleSpec, TrainingSummary, write_parts
from flawsmith.runtime.decision import Decision, GroupFigures
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspector
from flawsmith.runtime.roi import RegionOfInterest, Zone

SECONDS, KIBIBYTES = 10.0, 9 * 2**19
SIZE = (16, 24)
IMAGE = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
Random = random.Random

NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    7,
    255,
    2**31,
    -(2**31),
    2**62,
    10**9,
    10**30,
    0.5,
    -0.5,
    1e-320,
    1e38,
    1e300,
    -1e308,
]
RAW = ["1e999", "-1e999", "NaN", "Infinity", "1" * 4000, "1" * 5000, "1e-999", "0.1e1", "-0"]
OTHERS: list[Any] = [
    None,
    True,
    False,
    "",
    "x",
    "\x1b[31mred",
    "\x00",
    "é" * 50,
    "9" * 400,
    [],
    {},
    [[]],
    [1, 2, 3],
    {"a": []},
]
OPERATORS = """
    Add Sub Mul Div MatMul Gemm Conv ConvTranspose MaxPool AveragePool Relu Softmax Concat Reshape Transpose Squeeze
    Unsqueeze Expand Tile ConstantOfShape Resize Pad Gather GatherND ScatterND TopK ArgMax ReduceMean ReduceMax
    ReduceSum Slice Split Shape Cast Identity Where Range OneHot NonZero CumSum EyeLike RandomNormal Loop If Scan LSTM
    Einsum DFT GridSample NonMaxSuppression QuantizeLinear DequantizeLinear InstanceNormalization BatchNormalization
    Upsample
"""
DIMENSIONS = [0, 1, 2, 3, -1, 7, 24, 2**16, 2**31, 2**40, 2**62]


def detector() -> onnx.ModelProto:
    """A small detector with the kinds of nodes that trained ones have."""
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
        "scale": np.ones(4, np.float32),
        "shift": np.zeros(4, np.float32),
        "bank": rng.normal(0, 1, (4, 5)).astype(np.float32),
        "flat": np.array([1, 4, -1]),
        "back": np.array([1, *(length // 2 for length in SIZE)]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "one": np.array([1]),
        "both": np.array([1, 2]),
        "none": np.array([], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "shift", "scale"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Reshape", ["r", "flat"], ["f"]),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "bank"], ["d"]),
        helper.make_node("ReduceMax", ["d", "both"], ["unused"], keepdims=0),
        helper.make_node("ReduceMean", ["f", "one"], ["m"], keepdims=0),
        helper.make_node("Reshape", ["m", "back"], ["s"]),
        helper.make_node("Unsqueeze", ["s", "one"], ["u"]),
        helper.make_node("Resize", ["u", "none", "scales"], ["z"], mode="linear"),
        helper.make_node("Squeeze", ["z", "one"], ["map"]),
        helper.make_node("ReduceMax", ["map", "both"], ["score"], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "detector",
        [value("image", TensorProto.FLOAT, ["b", 3, *SIZE])],
        [value("map", TensorProto.FLOAT, ["b", *SIZE]), value("score", TensorProto.FLOAT, ["b"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def sound_parts() -> dict[str, bytes]:
    """The parts of a sound file, but for the manifest."""
    spec = BundleSpec(
        package_version="0.1.0", method="pbas", preset="fast", config={"width": 512, "levels": ["2", "3"]}, seed=0,
        backbone=BackboneSpec(name="tiny", weights="packaged", sha256="ab" * 32, levels=(2, "layer3")),
        geometry=Geometry(size=SIZE, policy="crop", resize=32, value_range=(0, 4095)),
        decision=Decision(
            limit=0.6, map_limit=0.5, review_limit=0.4, stated_false_reject_rate=0.05, n_good=19,
            region_of_interest=RegionOfInterest(
                include=(((0, 0), (1, 0), (1, 1)),), mask=RegionOfInterest.from_mask(np.eye(8, dtype=bool)).mask,
            ),
            zones=(Zone(name="seal", region=RegionOfInterest(include=(((0, 0), (1, 0), (1, 1)),)), offset=-0.1),),
            minimum_area=2, groups=GroupFigures(by="day", count=3, lowest=0.0, highest=0.1, mean=0.05),
        ),
        training=TrainingSummary(layout="mvtec", category="nut", n_train=80, n_calibration=19, images_sha256="cd" * 32),
        parity={"score": 1e-6},
    )  # fmt: skip
    arrays = {"good": np.linspace(0, 1, 19), "forged": np.arange(6, dtype=np.float32)}
    bundle = Bundle(spec, detector().SerializeToString(), arrays, "# Bolt")
    with zipfile.ZipFile(io.BytesIO(bundle.to_bytes())) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != "manifest.json"}


SOUND = sound_parts()


def drawn_bytes(rng: Random, content: bytes) -> bytes:
    """Bytes changed, cut out, doubled or put in."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randint(0, len(changed)), rng.choice([1, 1, 2, 4, 16, 300])
        action = rng.randrange(4)
        if action == 0 and place < len(changed):
            changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, changed[place] ^ 1 << rng.randrange(8)])
        elif action == 1:
            del changed[place : place + length]
        elif action == 2:
            changed[place:place] = changed[place : place + length]
        else:
            changed[place:place] = rng.randbytes(length)
    return bytes(changed)


def drawn_spec(rng: Random, content: bytes) -> bytes:
    """One or two values of the JSON replaced, left out or added."""
    spec = json.loads(content)
    marks: dict[str, str] = {}
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(spec))
        holder, key = rng.choice(places)
        action = rng.random()
        if action < 0.1:
            del holder[key]
        elif action < 0.2 and isinstance(holder, list):
            holder += copy.deepcopy(holder[:1]) * rng.choice([1, 5, 2000])
        elif action < 0.3 and isinstance(holder, dict):
            holder[rng.choice(["x", "", "hook", "é", key + " "])] = copy.deepcopy(rng.choice(NUMBERS + OTHERS))
        elif action < 0.6:
            mark = f"@{len(marks)}@"
            marks[json.dumps(mark)] = rng.choice(RAW)
            holder[key] = mark
        else:
            holder[key] = copy.deepcopy(rng.choice(NUMBERS + OTHERS))
    text = json.dumps(spec)
    for mark, raw in marks.items():
        text = text.replace(mark, raw)
    return text.encode()


def _places(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def drawn_arrays(rng: Random, content: bytes) -> bytes:
    """Headers and contents of arrays that numpy would not write."""
    if rng.random() < 0.2:
        return drawn_bytes(rng, content)
    kinds = [
        "<f8",
        ">f4",
        "<f2",
        "|b1",
        "|O",
        "<U4",
        "|S3",
        "<M8[s]",
        "<c16",
        "<f16",
        "|V8",
        "<i8",
        "x",
        "<f0",
        "[('a','f4')]",
    ]
    shape = rng.choice(
        ["()", "(3,)", "(0,)", "(-1,)", "(2**40,)", f"({10**30},)", "(1,)*70", "(3.0,)", "('a',)", "(True,)", "[3]"]
    )
    kind = rng.choice(kinds)
    descr, by_columns = kind if kind[0] == "[" else repr(kind), rng.choice(["False", "True", "0"])
    header = f"{{'descr': {descr}, 'fortran_order': {by_columns}, 'shape': {shape}}}"
    header = rng.choice([header, header, header, "__import__('os')", "{" * 200, "1" * 9000, header[:-3]])
    text = header.encode().ljust(rng.choice([117, 200]))[:65000] + b"\n"
    data = rng.choice(
        [b"", bytes(24), b"\xff" * 24, np.full(3, np.nan).tobytes(), np.full(3, np.inf).tobytes(), bytes(2**14)]
    )
    version = rng.choice([b"\x01\x00"] * 4 + [b"\x02\x00", b"\x03\x00", b"\x09\x09"])
    array = b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data
    names = rng.choice(
        [["good.npy"], ["good.npy", "forged.npy"], ["a/../b.npy"], ["good"], [f"{n}.npy" for n in range(1500)]]
    )
    return write_parts(dict.fromkeys(names, array))


def drawn_graph(rng: Random, content: bytes) -> bytes:
    """Nodes, attributes, weights, inputs and outputs changed; sometimes the bytes."""
    if rng.random() < 0.15:
        return drawn_bytes(rng, content)
    model = onnx.load_model_from_string(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        with contextlib.suppress(ValueError, TypeError, IndexError):
            rng.choice(GRAPH_CHANGES)(rng, model)
    return model.SerializeToString()


def _change_operator(rng: Random, model: onnx.ModelProto) -> None:
    rng.choice(model.graph.node).op_type = rng.choice(OPERATORS.split())


def _leave_out_node(rng: Random, model: onnx.ModelProto) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _shuffle_nodes(rng: Random, model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _change_names(rng: Random, model: onnx.ModelProto) -> None:
    node = rng.choice(model.graph.node)
    names = [name for other in model.graph.node for name in (*other.input, *other.output)]
    names += [tensor.name for tensor in model.graph.initializer] + ["", "nowhere", "map", "image"]
    side = rng.choice([node.input, node.input, node.output])
    if rng.random() < 0.7:
        side[rng.randrange(len(side))] = rng.choice(names)
    else:
        side.append(rng.choice(names))


def _change_attribute(rng: Random, model: onnx.ModelProto) -> None:
    node = rng.choice([node for node in model.graph.node if node.attribute])
    attribute = rng.choice(node.attribute)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(DIMENSIONS)
    elif rng.random() < 0.5:
        attribute.i = rng.choice(DIMENSIONS)
    else:
        attribute.f = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e38])
    if rng.random() < 0.2:
        attribute.type = rng.randrange(16)


def _add_attribute(rng: Random, model: onnx.ModelProto) -> None:
    name = rng.choice(
        ["axis", "axes", "kernel_shape", "pads", "group", "mode", "perm", "to", "value", "equation", "alpha"]
    )
    value = rng.choice(
        [rng.choice(DIMENSIONS), [rng.choice(DIMENSIONS) for _ in range(3)], "x" * rng.choice([1, 5000]), 1.5]
    )
    rng.choice(model.graph.node).attribute.append(helper.make_attribute(name, value))


def _change_weights(rng: Random, model: onnx.ModelProto) -> None:
    tensor = rng.choice(model.graph.initializer)
    action = rng.randrange(5)
    if action == 0:
        tensor.data_type = rng.randrange(25)
    elif action == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(DIMENSIONS)
    elif action == 2:
        tensor.raw_data = drawn_bytes(rng, tensor.raw_data)
    elif action == 3:
        array = numpy_helper.to_array(tensor)
        new = np.array(rng.choice([DIMENSIONS, [0, -1, 3, 5]]))[: max(1, array.size)]
        tensor.CopyFrom(numpy_helper.from_array(np.resize(new, array.shape).astype(array.dtype), tensor.name))
    else:
        kind = rng.choice([np.float64, np.float16, np.int8, np.int32, np.int64, bool])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))


def _change_port(rng: Random, model: onnx.ModelProto) -> None:
    port = rng.choice([*model.graph.input, *model.graph.output])
    action = rng.randrange(5)
    if action == 0:
        port.type.tensor_type.elem_type = rng.randrange(25)
    elif action == 1:
        rng.choice(port.type.tensor_type.shape.dim).dim_value = rng.choice(DIMENSIONS)
    elif action == 2:
        port.name = rng.choice(["image", "map", "score", "c", "w", "", "x"])
    elif action == 3:
        port.type.tensor_type.ClearField("shape")
    else:
        outputs = model.graph.output
        del outputs[rng.randrange(len(outputs))]


def _change_versions(rng: Random, model: onnx.ModelProto) -> None:
    if rng.random() < 0.5:
        model.opset_import[0].version = rng.choice([-1, 0, 1, 7, 11, 13, 23, 99, 2**40])
    else:
        model.ir_version = rng.choice([-1, 0, 1, 3, 8, 13, 99, 2**40])


def _insert_growth(rng: Random, model: onnx.ModelProto) -> None:
    """A node that makes much of little, on the way of the image or of a constant."""
    place = rng.randrange(len(model.graph.node))
    node = model.graph.node[place]
    name = node.input[0] if rng.random() < 0.5 else rng.choice(model.graph.initializer).name
    sizes = [rng.choice([1, 2, 64, 1000, 10**5, 10**6, 2**31, -1]) for _ in range(rng.choice([1, 2, 3, 4]))]
    shape = numpy_helper.from_array(np.array(sizes), "sizes")
    scales = numpy_helper.from_array(np.array(sizes, np.float32), "factors")
    model.graph.initializer.extend([shape, scales])
    grown = {
        "Expand": [name, "sizes"], "Tile": [name, "sizes"], "ConstantOfShape": ["sizes"], "Pad": [name, "sizes"],
        "Resize": [name, "", "factors"], "Reshape": [name, "sizes"], "Add": [name, name],
        "OneHot": ["sizes", "sizes", "factors"],
    }  # fmt: skip
    operator = rng.choice(list(grown))
    model.graph.node.insert(place, helper.make_node(operator, grown[operator], ["grown"]))
    if rng.random() < 0.7:
        node = model.graph.node[place + 1]
        node.input[0] = "grown"
    else:
        model.graph.node.insert(place + 1, helper.make_node("ReduceMax", ["grown"], ["peak"], keepdims=0))
        model.graph.node.insert(place + 2, helper.make_node("Add", [name, "peak"], ["added"]))
        model.graph.node[place + 3].input[0] = "added"


GRAPH_CHANGES: list[Callable[[Random, onnx.ModelProto], None]] = [
    _change_operator, _leave_out_node, _shuffle_nodes, _change_names, _change_names, _change_attribute,
    _change_attribute, _add_attribute, _change_weights, _change_weights, _change_port, _change_port, _change_versions,
    _insert_growth, _insert_growth,
]  # fmt: skip

CHANGES: dict[str, Callable[[Random, bytes], bytes]] = {
    "spec.json": drawn_spec,
    "model.onnx": drawn_graph,
    "calibration.npz": drawn_arrays,
    "card.md": drawn_bytes,
}


def drawn_file(seed: int) -> bytes:
    """A model file with one or two parts changed, mostly with right hashes; the same for the same seed."""
    rng = Random(seed)
    parts = dict(SOUND)
    for name in dict.fromkeys(rng.choices(list(CHANGES), weights=[4, 8, 2, 0.2], k=rng.choice([1, 1, 1, 2]))):
        parts[name] = CHANGES[name](rng, parts[name])
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    manifest = json.dumps({"schema_version": 2, "sha256": hashes}).encode()
    if rng.random() < 0.03:
        manifest = drawn_bytes(rng, manifest)
    content = write_parts({**parts, "manifest.json": manifest})
    return drawn_bytes(rng, content) if rng.random() < 0.03 else content


def try_file(path: Path, *, engine: str | None = None) -> str:
    """What all commands do with a model file; how it ended.

    Raises:
        Exception: anything but one clear line: a find.
    """
    try:
        json.dumps(describe_model(path), allow_nan=False)
        model_in_words(Bundle.load(path)).encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            inspector = Inspector.load(path, engine=engine, threads=1)
    except FlawsmithError as error:
        _check_line(error, path)
        return "refused"
    try:
        for image in (IMAGE, IMAGE[:1, :1].astype(np.uint16)):
            inspection = inspector.inspect(image)
            json.dumps(inspection.to_dict(), allow_nan=False)
            inspection.overlay(image)
    except FlawsmithError as error:
        _check_line(error)
        return "not computed"
    return "inspected"


def _check_line(error: FlawsmithError, path: Path | None = None) -> None:
    line = str(error)
    assert "\n" not in line
    assert len(line) < 700, line
    assert path is None or line.startswith(f"{path}: "), line


def _child(start: int, folder: Path, engines: list[str]) -> None:
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    path = folder / "model.flaw"
    for seed in range(start, start + 2000):
        path.write_bytes(drawn_file(seed))
        engine = engines[seed % len(engines)]
        print(f"begin {seed}", flush=True)
        try:
            outcome = try_file(path, engine=engine)
        except Exception as error:
            outcome = f"TRACEBACK {engine} {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if os.name == "posix" else 0
        print(f"end {seed} {peak} {outcome}", flush=True)
        if peak > KIBIBYTES:
            return


def _watch(
    start: int, folder: Path, engines: str, until: float
) -> tuple[int, list[tuple[int, str]], collections.Counter[str]]:
    """The next seed, finds, and how files ended, of one child process."""
    command = [sys.executable, __file__, "--child", str(start), "--keep", str(folder), "--engines", engines]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    counts: collections.Counter[str] = collections.Counter()
    finds: list[tuple[int, str]] = []
    selector = selectors.DefaultSelector()
    selector.register(child.stdout, selectors.EVENT_READ)
    seed, waiting, began = start, False, time.monotonic()
    try:
        while time.monotonic() < until:
            if not selector.select(SECONDS * 3 if waiting else 60):
                finds.append((seed, "SLOW: more than half a minute"))
                return seed + 1, finds, counts
            line = child.stdout.readline()
            if not line:
                if child.wait() != 0:
                    words = child.stderr.read() if child.stderr is not None else ""
                    finds.append((seed, f"CRASH {child.returncode} {' '.join(words.split())[-200:]}"))
                return seed + 1, finds, counts
            if line.startswith("begin "):
                seed, waiting, began = int(line.split()[1]), True, time.monotonic()
            elif line.startswith("end "):
                _, _, peak, outcome = line.rstrip("\n").split(" ", 3)
                waiting = False
                counts[outcome.split()[0]] += 1
                if outcome.startswith("TRACEBACK"):
                    finds.append((seed, outcome))
                if time.monotonic() - began > SECONDS:
                    finds.append((seed, f"SLOW: {time.monotonic() - began:.0f} s, {outcome}"))
                if int(peak) > KIBIBYTES:
                    finds.append((seed, f"LARGE: {int(peak) // 1024} MiB, {outcome}"))
            else:
                finds.append((seed, f"WORDS on stdout: {line.strip()[:100]}"))
        return seed + 1, finds, counts
    finally:
        child.kill()
        child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, help="the first; drawn by default, so that every run tries others")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-bundles"), help="folder of finds")
    parser.add_argument("--engines", default="onnxruntime,openvino")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.child is not None:
        _child(options.child, options.keep, options.engines.split(","))
        return 0
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**40)
    first, until = seed, time.monotonic() + 60 * options.minutes
    totals: collections.Counter[str] = collections.Counter()
    found = 0
    while time.monotonic() < until:
        seed, finds, counts = _watch(seed, options.keep, options.engines, until)
        totals += counts
        for number, words in finds:
            found += 1
            (options.keep / f"{number}.flaw").write_bytes(drawn_file(number))
            print(f"seed {number}: {words}", flush=True)
    (options.keep / "model.flaw").unlink(missing_ok=True)
    print(f"{sum(totals.values())} files from seed {first}: {dict(totals)}; {found} finds", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
