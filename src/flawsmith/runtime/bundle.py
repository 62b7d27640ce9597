"""The ``.flaw`` file: a trained model, its settings and limits, and what they rest on, in one verified
zip."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from flawsmith.runtime.decision import LARGEST_SCORE, Decision
from flawsmith.runtime.devices import DeviceName
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import replacing
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.tiles import Tiling

_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_PERMISSIONS = 0o644 << 16
_ENCRYPTED = 0x1
_ZIP_END, _ZIP64_LOCATOR = 22, 20  # bytes of the two records that end a zip without a comment
_NUMERIC = "biuf"
_LARGEST_VALUE = 8  # bytes of a number; longer ones differ from machine to machine
_MAX_ENTRIES, _MAX_DIRECTORY = 1000, 200_000
_POINTER = b"version https://git-lfs"


def write_parts(parts: Mapping[str, bytes]) -> bytes:
    """Returns a zip of the parts: stored, sorted by name, with fixed dates, permissions and system.

    Args:
        parts: content by name.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(parts):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = _UNIX
            entry.external_attr = _PERMISSIONS
            archive.writestr(entry, parts[name])
    return buffer.getvalue()


def write_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns an npz of numeric arrays, stored, with one possible content.

    Args:
        arrays: numeric or boolean arrays by name, of any shape.

    Raises:
        ValueError: an array of objects, text or records.
    """
    parts = {}
    for name, array in arrays.items():
        if array.dtype.kind not in _NUMERIC or array.dtype.itemsize > _LARGEST_VALUE:
            raise ValueError(f"array {name!r} has the type {array.dtype}; only numbers are stored")
        buffer = io.BytesIO()
        # Little-endian and row by row, whatever machine wrote it; ascontiguousarray would make a scalar 1-D.
        plain = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        np.lib.format.write_array(buffer, plain, version=(1, 0), allow_pickle=False)
        parts[f"{name}.npy"] = buffer.getvalue()
    return write_parts(parts)


def read_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """Reads what `write_arrays` wrote.

    The sizes that headers claim are held against the bytes that are there before any memory is taken.

    Raises:
        ValueError: anything but stored numeric arrays.
        zipfile.BadZipFile: not a zip, or a check sum differs.
    """
    with _open(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) != len(entries):
            raise ValueError("array names repeat")
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("arrays are longer than their file")
        arrays = {}
        for entry in entries:
            if not entry.filename.endswith(".npy"):
                raise ValueError(f"{entry.filename[:80]!r} is not an array")
            arrays[entry.filename[: -len(".npy")]] = _read_array(_read_entry(archive, entry, len(content)))
        return arrays


def _open(stream: BinaryIO) -> zipfile.ZipFile:
    """Opens a zip whose directory is as small as its last 22 bytes must say, for zipfile reads all of any directory."""
    length = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, length - _ZIP64_LOCATOR - _ZIP_END))
    tail = stream.read()
    end = tail[-_ZIP_END:]
    if len(end) < _ZIP_END or end[:4] != b"PK\x05\x06" or tail[:4] == b"PK\x06\x07":
        stream.seek(0)
        if stream.read(len(_POINTER)) == _POINTER:
            raise ValueError("it is a pointer of Git LFS: fetch the file with `git lfs pull`")
        raise ValueError("it is no zip, or is cut off")
    entries, directory = struct.unpack("<HI", end[10:16])
    if entries > _MAX_ENTRIES or directory > _MAX_DIRECTORY:
        raise ValueError("it has too many parts")
    stream.seek(0)
    return zipfile.ZipFile(stream)


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, cap: int) -> bytes:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        raise ValueError(f"{entry.filename[:80]} is compressed or encrypted")
    if entry.file_size > cap or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename[:80]} has {entry.file_size} bytes, more than allowed")
    return archive.read(entry)


def _read_array(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array has an unknown version")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in _NUMERIC or dtype.itemsize > _LARGEST_VALUE or by_columns:
        raise ValueError("an array does not hold plain numbers")
    data = content[stream.tell() :]
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array's length differs from its header")
    array = np.frombuffer(data, dtype).reshape(shape).copy()
    if not np.isfinite(array).all():
        raise ValueError("an array holds numbers that are not finite")
    return array


_Content = TypeVar("_Content")
_LARGEST_INTEGER = 2**64
SCHEMA_VERSION = 3
"""The newest layout that is read and written. What needs nothing of schema 3 is written as schema 2."""
EngineName = Literal["onnxruntime", "openvino"]
TrainingEngine = Literal["onnxruntime", "openvino", "torch"]
"""What computes the features of a training; torch does so on the device that trains."""
Precision = Literal["float32", "bfloat16", "float16", "int8"]
GRAPHS: Mapping[Precision, str] = {"float16": "float16.onnx", "int8": "int8.onnx"}
"""Parts that hold the network in another precision, for either engine; others are computed from ``model.onnx``."""
SelectionName = Literal["last", "best", "oracle"]

MOST_EARLIER = 20
"""Limits that a bundle keeps beside those in use."""

MOST_VARIANTS = 16
"""Engines, precisions and devices that a bundle has limits for, beside its first."""

ORACLE = "ORACLE: the checkpoint was chosen on test data; its figures are not comparable with those of other models"
"""What must stand beside every figure of a model whose checkpoint was chosen on labelled test images."""

_BEHIND_LIMITS = ("good", "good_levels", "good_zone_levels", "good_groups")
"""Arrays of the limits in use; those of earlier limits have ``@`` and the identity of the limits behind their name."""
_HASHES = ("learned_sha256", "held_out_sha256", "test_sha256")
SELF_TEST = "self_test"
"""Array of the numbers that `flawsmith.runtime.inspector.self_test` expects; its images have ``_1``, ``_2`` behind
their name."""
_MOST_TESTS = 8
_MIB = 2**20
_MANIFEST = "manifest.json"
# The largest size of each part. ONNX cannot exceed 2 GiB by itself.
_PARTS: Mapping[str, int] = {
    **dict.fromkeys(GRAPHS.values(), 2048 * _MIB),
    "calibration.npz": 64 * _MIB,
    "card.md": _MIB,
    "manifest.json": _MIB // 16,
    "model.onnx": 2048 * _MIB,
    "spec.json": _MIB,
}
_ROOMY_SPEC = 900_000
"""Bytes of settings with earlier limits: what is left of `_PARTS` is for changes that no limits bring."""


_Count = Annotated[int, Field(ge=0, le=10**12)]


class BackboneSpec(BaseModel):
    """The frozen network whose features the method uses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="timm's name of the architecture")
    weights: str = Field(description="where the weights came from: a package, a hub name, a file's base name")
    sha256: str = Field(description="SHA-256 of the weights, hexadecimal")
    levels: tuple[int | str, ...] = Field(description="feature levels used, in the order of the method")


def preset_in_words(preset: str, deviations: Sequence[str]) -> str:
    """A preset's name, and by name all that is not as it has it.

    Example:
        >>> preset_in_words("official", ["backbone efficientnet_lite0", "epochs=3"])
        'official, with 2 changes: backbone efficientnet_lite0, epochs=3'
    """
    if not deviations:
        return preset
    changes = "1 change" if len(deviations) == 1 else f"{len(deviations)} changes"
    return f"{preset}, with {changes}: {', '.join(deviations)}"


def stamps_of(selection: SelectionName) -> list[str]:
    """What must stand beside every figure of a model whose checkpoint was chosen in this way; empty: nothing."""
    return [ORACLE] if selection == "oracle" else []


class TrainingSummary(BaseModel):
    """What the model learned from; no paths, no times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: str = Field(description="layout of the data, such as mvtec or folder")
    category: str = Field(description="the product")
    n_train: _Count = Field(description="good images trained on")
    n_calibration: _Count = Field(description="good images held out for the limits")
    images_sha256: str = Field(description="SHA-256 over the sorted content hashes of all images used")
    selection: SelectionName = Field(
        default="last",
        description="which checkpoint was kept; oracle: the best on labelled test images, so that its figures on them "
        "say nothing of other images",
    )
    textures: str = Field(
        default="",
        description="what flaws were synthesized from: procedural, self, or a folder; empty: none were",
    )
    foreground: str = Field(
        default="", description="where flaws were synthesized: a mode such as auto, or the folder of mask files"
    )
    findings: dict[str, str | float] = Field(
        default_factory=dict, description="what the method found out about the data, such as GLASS's hypothesis"
    )
    deviations: tuple[str, ...] = Field(
        default=(), description="what is not as a published preset has it, each in a few words; absent where nothing is"
    )

    @model_serializer(mode="wrap")
    def _without_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Model files that deviate from nothing, as those of a preset of ours, do not mention it."""
        fields: dict[str, Any] = dump(self)
        return fields if self.deviations else {name: value for name, value in fields.items() if name != "deviations"}

    @property
    def stamps(self) -> list[str]:
        """What must stand beside every figure of the model; empty: nothing."""
        return stamps_of(self.selection)


class Variant(BaseModel):
    """The same model for another engine, precision or device, with limits of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: EngineName
    precision: Precision = Field(description="float16 and int8 have a graph of their own, float16.onnx or int8.onnx")
    device: DeviceName = Field(default="cpu", description="where it computes")
    decision: Decision = Field(description="its limits")
    parity: dict[str, FiniteFloat] = Field(description="figures of the gate that it passed, by name")


class BundleSpec(BaseModel):
    """All settings of a bundle: ``spec.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    schema_version: Literal[2, 3] = Field(
        default=2, description="version of this file's layout; 3 where there are variants or another device than cpu"
    )
    package_version: str = Field(description="Flawsmith's version that made the bundle")
    method: str = Field(description="name of the method, such as pbas")
    preset: str = Field(description="name of the method's preset")
    config: dict[str, JsonValue] = Field(description="every number of the method's configuration")
    backbone: BackboneSpec
    geometry: Geometry
    tiling: Tiling | None = Field(
        default=None, description="tiles into which images are cut, each on its way by geometry; None: the whole image"
    )
    engine: EngineName = Field(default="onnxruntime", description="the engine the limits were calibrated with")
    precision: Precision = Field(default="float32", description="the precision the limits were calibrated with")
    device: DeviceName = Field(default="cpu", description="where the limits were calibrated")
    decision: Decision = Field(description="the limits in use")
    earlier_decisions: tuple[Decision, ...] = Field(
        default=(), max_length=MOST_EARLIER, description="limits that were in use before, the latest last"
    )
    training: TrainingSummary
    parity: dict[str, FiniteFloat] = Field(
        default_factory=dict, description="figures of the export's parity gate, by name"
    )
    network: dict[str, Annotated[int, Field(ge=0, lt=2**63)]] = Field(
        default_factory=dict,
        description="size of the trained network: parameters, the numbers it holds whether learned or not, and flops, "
        "the floating-point operations of one image in convolutions and matrix products, two a multiplication and sum",
    )
    seed: int = Field(description="seed of the run")
    variants: tuple[Variant, ...] = Field(
        default=(), max_length=MOST_VARIANTS, description="the model for other engines, precisions and devices"
    )

    @model_serializer(mode="wrap")
    def _as_old_as_possible(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What uses nothing of schema 3 is written as schema 2, byte for byte, and opens in earlier releases."""
        fields: dict[str, Any] = dump(self)
        if not self.variants:
            del fields["variants"]
        if self.device == "cpu":
            del fields["device"]
        is_new = self.variants or self.device != "cpu" or self.precision in GRAPHS
        return {**fields, "schema_version": 3 if is_new else 2}

    @property
    def preset_in_words(self) -> str:
        """The preset's name, and all that is not as it has it."""
        return preset_in_words(self.preset, self.training.deviations)

    def cell(self, image_size: tuple[int, int]) -> float:
        """Pixels of an image by one of the network's input, which sees the image or one tile of it at a time.

        Args:
            image_size: (height, width), pixels.
        """
        return self.geometry.cell(image_size if self.tiling is None else self.tiling.tiles(image_size)[0].size)

    @model_validator(mode="after")
    def _tiles_show_all(self) -> BundleSpec:
        if self.tiling is not None and self.geometry.policy == "crop":
            raise ValueError("tiling needs a geometry that cuts nothing away from a tile, not the policy crop")
        return self


@dataclass(frozen=True)
class Bundle:
    """A model ready to inspect.

    Attributes:
        spec: settings, geometry and limits.
        model: the ONNX graph: input ``image`` float32 (b, 3, h, w), outputs ``map`` float32 (b, h, w) and
            ``score`` float32 (b).
        calibration: numeric arrays by name. ``good`` (n,): scores of the good images behind the limits, ``good_levels``
            (n,): the levels of their maps, ``good_zone_levels`` (n, zones + 1): those by zone, the last elsewhere,
            where there are zones, ``good_groups`` (n,): numbers of their groups, where they have some;
            ``forged`` (m,): scores of synthetic flaws; ``learned_sha256``, ``held_out_sha256`` and ``test_sha256``
            (k, 32) bytes: hashes of the files that the model learned from, that set its first limits, and that stood
            in the test split beside them; ``self_test`` (k, 2) and ``self_test_1``, ... (h, w, 3) uint8: good images
            at the size of the network's input, their scores and the means of their maps. Bundles of schema 1 have
            ``good`` and ``forged`` alone.
        card: Markdown for people.
        path: the file it was loaded from; None: it was made here.
        graphs: further graphs of the same form by precision, ``float16`` or ``int8``, of variants.

    Example:
        >>> import tempfile
        >>> spec = BundleSpec(
        ...     package_version="0.1.0", method="pbas", preset="fast", config={}, seed=0,
        ...     backbone=BackboneSpec(name="resnet18", weights="random", sha256="0" * 64, levels=(8, 16)),
        ...     geometry=Geometry(size=(256, 256)),
        ...     decision=Decision(limit=0.6, map_limit=0.5, stated_false_reject_rate=0.01, n_good=99),
        ...     training=TrainingSummary(
        ...         layout="mvtec", category="bolt", n_train=200, n_calibration=99, images_sha256="0" * 64
        ...     ),
        ... )
        >>> path = Path(tempfile.mkdtemp()) / "model.flaw"
        >>> Bundle(spec, model=b"an ONNX graph", card="# Bolt").save(path)
        >>> Bundle.load(path).spec.training.category
        'bolt'
    """

    spec: BundleSpec
    model: bytes = field(repr=False)
    calibration: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    card: str = field(default="", repr=False)
    path: Path | None = field(default=None, repr=False, compare=False)
    graphs: Mapping[Precision, bytes] = field(default_factory=dict, repr=False)

    def to_bytes(self) -> bytes:
        """Returns the file's content: the same bundle gives the same bytes, everywhere and always.

        Raises:
            FlawsmithError: a part exceeds the size that `load` accepts.
            ValueError: a calibration array is not numeric.
        """
        parts = {
            "model.onnx": self.model,
            "spec.json": _to_json(self.spec.model_dump(mode="json")),
            "calibration.npz": write_arrays(self.calibration),
            "card.md": self.card.encode(),
            **{GRAPHS[precision]: graph for precision, graph in self.graphs.items()},
        }
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
        version = json.loads(parts["spec.json"])["schema_version"]
        parts["manifest.json"] = _to_json({"schema_version": version, "sha256": hashes})
        for name, content in parts.items():
            if len(content) > _PARTS[name]:
                raise FlawsmithError(f"bundle: {name} has {len(content)} bytes, more than the {_PARTS[name]} allowed")
        return write_parts(parts)

    def with_decision(
        self, decision: Decision, arrays: Mapping[str, NDArray[Any]] | None = None, card: str | None = None
    ) -> Bundle:
        """The same model with other limits; those in use before are kept with their scores.

        Up to 20 of them are kept, the latest, or fewer where large masks make them longer than a model file holds.
        Variants go, as their limits were those of the former setting.

        Args:
            decision: the limits to use.
            arrays: the scores behind them: ``good``, ``good_levels``, ``good_zone_levels`` and ``good_groups``. None:
                those that the bundle keeps of these limits, which were in use before.
            card: for people; None: as before.
        """
        former, stored = self.spec.decision, dict(self.calibration)
        for name in _BEHIND_LIMITS:
            if name in stored:
                stored[f"{name}@{former.identity}"] = stored.pop(name)
        if arrays is None:
            of_them = {name: f"{name}@{decision.identity}" for name in _BEHIND_LIMITS}
            arrays = {name: stored[key] for name, key in of_them.items() if key in stored}
        earlier = dict.fromkeys(kept for kept in (*self.spec.earlier_decisions, former) if kept != decision)
        limits = {"decision": decision, "earlier_decisions": tuple(earlier)[-MOST_EARLIER:]}
        spec = self.spec.model_copy(update={**limits, "variants": ()})
        while spec.earlier_decisions and len(_to_json(spec.model_dump(mode="json"))) > _ROOMY_SPEC:
            spec = spec.model_copy(update={"earlier_decisions": spec.earlier_decisions[1:]})
        known = {"", *(kept.identity for kept in spec.earlier_decisions)}
        stored = {name: array for name, array in stored.items() if name.partition("@")[2] in known}
        return dataclasses.replace(
            self,
            spec=spec,
            calibration={**stored, **arrays},
            card=self.card if card is None else card,
            path=None,
            graphs={},
        )

    def with_variant(self, variant: Variant, graph: bytes | None = None) -> Bundle:
        """The same model with an engine, precision or device more; one that is there already is replaced.

        Args:
            variant: with its limits.
            graph: the network in its precision, where that is ``float16`` or ``int8``. Limits of other engines that
                rest on a former graph of the precision go.

        Raises:
            FlawsmithError: there are too many.
        """
        changed = graph is not None and graph != self.graphs.get(variant.precision)
        others = [
            other
            for other in self.spec.variants
            if (other.engine, other.precision, other.device) != (variant.engine, variant.precision, variant.device)
            and not (changed and other.precision == variant.precision)
        ]
        if len(others) == MOST_VARIANTS:
            raise FlawsmithError(f"a model file holds {MOST_VARIANTS} engines, precisions and devices at most")
        ordered = sorted([*others, variant], key=lambda each: (each.engine, each.precision, each.device))
        graphs = self.graphs if graph is None else {**self.graphs, variant.precision: graph}
        spec = self.spec.model_copy(update={"variants": tuple(ordered), "schema_version": 3})
        return dataclasses.replace(self, spec=spec, graphs=graphs, path=None)

    def as_variant(self, engine: EngineName, precision: Precision, device: DeviceName = "cpu") -> Bundle:
        """The bundle as it inspects with an engine, precision and device.

        Its model is the graph of that precision. Its limits are those of the variant, or where there is none those of
        another engine or device in this precision, or those in use; ``spec.engine``, ``spec.precision`` and
        ``spec.device`` say which.

        Raises:
            FlawsmithError: the bundle holds no graph of this precision.
        """
        spec, asked = self.spec, (engine, precision, device)
        if asked == (spec.engine, spec.precision, spec.device):
            return self
        if precision in GRAPHS and precision not in self.graphs:
            raise FlawsmithError(
                f"the model file holds no {precision} graph: make one with flawsmith export MODEL --to "
                f"{engine.removesuffix('runtime')}-{'fp16' if precision == 'float16' else precision} --into"
            )
        alike = [variant for variant in spec.variants if variant.precision == precision]
        exact = [variant for variant in alike if (variant.engine, variant.device) == (engine, device)]
        limits = next(iter(exact or (alike if precision in GRAPHS else [])), None)
        graph = self.graphs.get(precision, self.model)
        if limits is None:
            return dataclasses.replace(self, model=graph)
        update = {name: getattr(limits, name) for name in ("engine", "precision", "device", "decision", "parity")}
        others = {name: array for name, array in self.calibration.items() if name in _HASHES}
        return dataclasses.replace(
            self,
            spec=spec.model_copy(update={**update, "variants": (), "earlier_decisions": ()}),
            model=graph,
            calibration=others,
            graphs={},
        )

    def save(self, path: str | Path) -> None:
        """Writes the bundle; an existing file is replaced when the new one is whole.

        Raises:
            FlawsmithError: the path cannot be written, or a part is too large.
        """
        content = self.to_bytes()
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Reads and verifies a bundle, in memory alone.

        Args:
            path: a ``.flaw`` file.

        Raises:
            FlawsmithError: missing or unreadable file, not a bundle, damaged, made by a newer Flawsmith, or
                holding anything a bundle does not hold.
        """
        path = Path(path)
        try:
            if not path.is_file():
                reason = "is a folder, not a model file" if path.is_dir() else "no such model file"
                raise FlawsmithError(f"{path}: {reason}; give a .flaw file")
            if path.stat().st_size > sum(_PARTS.values()) + _MIB:
                raise FlawsmithError(f"{path}: too large for a model file; give a .flaw file")
            with path.open("rb") as stream:
                return cls._read(stream, path)
        except FlawsmithError:
            raise
        except _RefusedError as refusal:
            raise FlawsmithError(f"{path}: {refusal}") from None
        except OSError as error:
            raise FlawsmithError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        except MemoryError:
            raise FlawsmithError(f"{path}: too large for the free memory; close other programs") from None
        except Exception as error:
            # The readers of zip, JSON, text and arrays answer odd bytes with nearly every exception there is.
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise FlawsmithError(f"{path}: not an intact model file ({reason}); copy or export it anew") from None

    @classmethod
    def _read(cls, stream: io.BufferedReader, path: Path) -> Bundle:
        parts = _read_parts(stream)
        hashes = _object(parts.pop(_MANIFEST), _MANIFEST).get("sha256")
        if not isinstance(hashes, dict) or set(hashes) != set(parts):
            raise _RefusedError("manifest.json does not list the parts; copy or export the model anew")
        for name, content in parts.items():
            if hashlib.sha256(content).hexdigest() != hashes[name]:
                raise _RefusedError(
                    f"{name} was changed or damaged (its SHA-256 differs); copy or export the model anew"
                )
        spec = _read_spec(parts["spec.json"])
        graphs: dict[Precision, bytes] = {name: parts[part] for name, part in GRAPHS.items() if part in parts}
        if set(graphs) != {variant.precision for variant in spec.variants} & set(GRAPHS):
            raise _RefusedError("its graphs are not those of its variants; export the model anew")
        return cls(
            spec=spec,
            model=parts["model.onnx"],
            calibration=_part("calibration.npz", _read_calibration, parts),
            card=_part("card.md", bytes.decode, parts),
            path=path,
            graphs=graphs,
        )


class _RefusedError(ValueError):
    """Why a file is no bundle; `Bundle.load` adds the path."""


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _part(name: str, read: Callable[[bytes], _Content], parts: Mapping[str, bytes]) -> _Content:
    """What a part holds; whatever goes wrong, the part is named."""
    try:
        return read(parts[name])
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise _RefusedError(f"{name} is malformed ({reason}); export the model anew") from None


def _read_calibration(content: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a file that may come from a stranger; those of unknown names only have a length.

    Raises:
        ValueError: naming an array that is not as `Bundle` describes it.
    """
    arrays = read_arrays(content)
    lengths: dict[str, int] = {}
    for name, array in arrays.items():
        kind, _, identity = name.partition("@")
        if array.ndim == 0:
            raise ValueError(f"array {name[:80]!r} is a single number")
        if kind in _BEHIND_LIMITS and array.ndim != (2 if kind == "good_zone_levels" else 1):
            raise ValueError(
                f"array {name[:80]!r} has the shape {array.shape}, not one number an image, or a zone of it"
            )
        if kind in _BEHIND_LIMITS and lengths.setdefault(identity, len(array)) != len(array):
            raise ValueError(f"array {name[:80]!r} has {len(array)} numbers, those beside it {lengths[identity]}")
        if kind in (*_BEHIND_LIMITS, "forged") and not (np.abs(array.astype(np.float64)) <= LARGEST_SCORE).all():
            raise ValueError(f"array {name[:80]!r} has numbers beyond {LARGEST_SCORE:g}")
        if kind == "good_groups" and (array.dtype.kind not in "iu" or (array < 0).any()):
            raise ValueError(f"array {name[:80]!r} has other numbers than 0, 1, 2 and so on")
        if kind in _HASHES and (array.dtype != np.uint8 or array.shape[1:] != (hashlib.sha256().digest_size,)):
            raise ValueError(f"array {name[:80]!r} holds no SHA-256")
    tests = arrays.get(SELF_TEST)
    if tests is not None:
        images = [arrays.get(f"{SELF_TEST}_{number}") for number in range(1, min(len(tests), _MOST_TESTS) + 1)]
        if tests.shape != (len(images), 2) or not all(image is not None and _is_picture(image) for image in images):
            raise ValueError(f"array {SELF_TEST!r} has no score and map value for each of up to {_MOST_TESTS} images")
    return arrays


def _is_picture(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size > 0


def _object(content: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content, parse_float=_number, parse_int=_number, parse_constant=_number)
    except OverflowError:
        raise _RefusedError(f"{name} holds a number that is not finite or too large; export the model anew") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _RefusedError(f"{name} is not a JSON object; copy or export the model anew")
    return value


def _number(text: str) -> int | float:
    """A number of JSON that other programs can hold too.

    Raises:
        OverflowError: it is larger.
    """
    value = float(text)
    if not math.isfinite(value):
        raise OverflowError
    if text.lstrip("-").isdigit():
        if abs(value) >= _LARGEST_INTEGER:
            raise OverflowError
        return int(text)
    return value


def _check_version(value: dict[str, Any]) -> None:
    version = value.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise _RefusedError("the model file names no schema version; export the model anew")
    if version > SCHEMA_VERSION:
        raise _RefusedError(
            f"made by a newer Flawsmith (schema {version}, this one reads {SCHEMA_VERSION}): upgrade with "
            "pip install --upgrade flawsmith"
        )


def _read_parts(stream: BinaryIO) -> dict[str, bytes]:
    """Reads a zip that must hold the parts of a bundle and nothing else, each stored without compression.

    Args:
        stream: a seekable file.

    Returns:
        Content by name.

    Raises:
        ValueError: a part is missing, unknown, doubled, compressed, encrypted or too large.
        zipfile.BadZipFile: not a zip, or a check sum differs.
    """
    length = stream.seek(0, io.SEEK_END)
    with _open(stream) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if names.count(_MANIFEST) == 1:  # before the names are judged: a newer schema may well have other parts
            manifest = _read_entry(archive, archive.getinfo(_MANIFEST), _PARTS[_MANIFEST])
            _check_version(_object(manifest, _MANIFEST))
        for name in names:
            if name not in _PARTS:
                raise ValueError(f"it holds an unknown part {name[:80]!r}")
        if len(set(names)) != len(names):
            raise ValueError("it holds a part twice")
        missing = sorted(set(_PARTS) - set(names) - set(GRAPHS.values()))
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        # Stored parts cannot be longer together than the file, unless they overlap.
        if sum(entry.file_size for entry in entries) > length:
            raise ValueError("its parts are longer than the file")
        return {entry.filename: _read_entry(archive, entry, _PARTS[entry.filename]) for entry in entries}


def _read_spec(content: bytes) -> BundleSpec:
    value = _object(content, "spec.json")
    _check_version(value)
    if value["schema_version"] == 1:
        content = _to_json(_from_version_1(value))
    try:
        return BundleSpec.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "spec"
        raise _RefusedError(f"spec.json: {place}: {first['msg']}; export the model anew") from None


def _from_version_1(spec: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 knows excluded polygons, masks and several sets of limits."""
    decision = spec.get("decision")
    if isinstance(decision, dict) and decision.get("region_of_interest") is not None:
        decision = {**decision, "region_of_interest": {"include": decision["region_of_interest"]}}
    return {**spec, "schema_version": 2, "decision": decision}
