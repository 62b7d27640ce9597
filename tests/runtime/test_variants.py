"""One file for several engines and precisions: graphs and limits of their own, and files as before without them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flawsmith.runtime.bundle import Bundle, BundleSpec, Variant
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.devices import DeviceName
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.inspector import Inspector

GREY = np.full((32, 48, 3), 140, np.uint8)  # scores 0.55: below 0.6, above 0.3


def limits(limit: float) -> Decision:
    return Decision(limit=limit, map_limit=limit, stated_false_reject_rate=0.05, n_good=19)


def variant(
    engine: str = "onnxruntime", precision: str = "int8", *, limit: float = 0.3, device: DeviceName = "cpu"
) -> Variant:
    return Variant(engine=engine, precision=precision, device=device, decision=limits(limit), parity={})  # type: ignore[arg-type]


def entries(bundle: Bundle) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle.to_bytes())) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_file_without_variants_is_one_of_schema_2(bundle: Bundle) -> None:
    parts = entries(bundle)

    assert json.loads(parts["manifest.json"])["schema_version"] == 2
    spec = json.loads(parts["spec.json"])
    assert spec["schema_version"] == 2
    assert not {"variants", "device"} & set(spec)
    assert "device" not in spec["decision"]


def test_graphs_and_limits_of_variants_survive_the_file(bundle: Bundle, tmp_path: Path) -> None:
    made = bundle.with_variant(variant(), bundle.model + b"").with_variant(variant("openvino", limit=0.4))
    made.save(tmp_path / "model.flaw")

    loaded = Bundle.load(tmp_path / "model.flaw")

    assert loaded.spec.schema_version == 3
    assert [(v.engine, v.precision, v.decision.limit) for v in loaded.spec.variants] == [
        ("onnxruntime", "int8", 0.3),
        ("openvino", "int8", 0.4),
    ]
    assert loaded.graphs == {"int8": bundle.model}
    assert loaded.to_bytes() == made.to_bytes()
    assert json.loads(entries(made)["manifest.json"])["sha256"].keys() >= {"int8.onnx"}


def test_order_in_which_variants_come_changes_no_byte(bundle: Bundle) -> None:
    first, second = variant(), variant("openvino", limit=0.4)

    one_way = bundle.with_variant(first, bundle.model).with_variant(second)
    other_way = bundle.with_variant(second, bundle.model).with_variant(first)

    assert one_way.to_bytes() == other_way.to_bytes()


def test_changed_graph_of_a_variant_is_noticed(bundle: Bundle, tmp_path: Path) -> None:
    content = bundle.with_variant(variant(), bundle.model).to_bytes()
    place = content.index(b"int8.onnx") + 200
    (tmp_path / "model.flaw").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])

    with pytest.raises(FlawsmithError, match=r"int8\.onnx|not an intact"):
        Bundle.load(tmp_path / "model.flaw")


def test_graph_that_no_variant_names_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    replace(bundle, graphs={"int8": bundle.model}).save(tmp_path / "more.flaw")
    with_variant = bundle.with_variant(variant(), bundle.model)
    replace(with_variant, graphs={}).save(tmp_path / "less.flaw")

    for name in ("more", "less"):
        with pytest.raises(FlawsmithError, match="graphs are not those of its variants"):
            Bundle.load(tmp_path / f"{name}.flaw")


def test_inspector_takes_the_limits_of_its_precision(bundle: Bundle) -> None:
    made = bundle.with_variant(variant(limit=0.3), bundle.model)

    first, second = Inspector.load(made), Inspector.load(made, precision="int8")

    assert (first.inspect(GREY).verdict, second.inspect(GREY).verdict) == ("review", "reject")
    assert second.calibrated
    assert (second.spec.precision, second.engine.precision) == ("int8", "int8")


def test_precision_without_a_graph_says_how_to_make_one(bundle: Bundle) -> None:
    with pytest.raises(FlawsmithError, match=r"no int8 graph.*--to openvino-int8 --into"):
        Inspector.load(bundle, engine="openvino", precision="int8")
    with pytest.raises(FlawsmithError, match="unknown precision 'int4'"):
        Inspector.load(bundle, precision="int4")


def test_limits_of_another_engine_in_this_precision_come_with_a_warning(bundle: Bundle) -> None:
    made = bundle.with_variant(variant("onnxruntime", limit=0.3), bundle.model)

    with pytest.warns(UserWarning, match="calibrated with onnxruntime in int8, this is openvino in int8"):
        inspector = Inspector.load(made, engine="openvino", precision="int8")

    assert not inspector.calibrated
    assert inspector.spec.decision.limit == 0.3


def test_new_limits_drop_variants_whose_limits_are_of_the_former_setting(bundle: Bundle) -> None:
    made = bundle.with_variant(variant(), bundle.model)

    changed = made.with_decision(limits(0.7), {})

    assert not changed.spec.variants
    assert not changed.graphs
    assert json.loads(entries(changed)["spec.json"])["schema_version"] == 2


def test_another_graph_drops_limits_that_rest_on_the_former_one(
    bundle: Bundle, new_detector: Callable[..., bytes]
) -> None:
    made = bundle.with_variant(variant("openvino", limit=0.4), bundle.model)

    changed = made.with_variant(variant("onnxruntime"), new_detector(score_first=True))

    assert [v.engine for v in changed.spec.variants] == ["onnxruntime"]


def test_limits_of_a_device_are_those_of_schema_3(bundle: Bundle, tmp_path: Path) -> None:
    decision = bundle.spec.decision.model_copy(update={"device": "cuda"})
    spec = bundle.spec.model_copy(update={"device": "cuda", "decision": decision})
    replace(bundle, spec=spec).save(tmp_path / "model.flaw")

    loaded = Bundle.load(tmp_path / "model.flaw").spec

    assert (loaded.schema_version, loaded.device, loaded.decision.device) == (3, "cuda", "cuda")
    assert BundleSpec.model_validate_json(loaded.model_dump_json(), strict=True) == loaded
