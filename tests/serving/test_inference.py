"""The Open Inference Protocol as the public client of Triton speaks it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tests.serving.conftest import picture

from flawsmith.serving import inference as inference_module

ALL = ("score", "verdict", "regions", "map")
IMAGE_OF_A_PART = {
    "name": "image",
    "shape": [1],
    "datatype": "BYTES",
    "data": [base64.b64encode(picture(250)).decode()],
}


@pytest.fixture
def client(running: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        yield client


def image_input(content: bytes, *, binary: bool) -> Any:
    tensor = triton.InferInput("image", [1], "BYTES")
    element = content if binary else base64.b64encode(content)
    tensor.set_data_from_numpy(np.array([element], np.object_), binary_data=binary)
    return tensor


def test_client_finds_server_and_model(client: Any, running: Any) -> None:
    metadata = client.get_model_metadata("bolt")

    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("bolt")
    assert client.get_server_metadata()["name"] == "flawsmith"
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == list(ALL)
    version = metadata["versions"][0]
    assert client.is_model_ready("bolt", version)
    assert not client.is_model_ready("bolt", "0")
    assert client.get_model_metadata("bolt", version) == metadata


@pytest.mark.parametrize("binary", [True, False])
def test_client_has_a_part_judged(client: Any, running: Any, binary: bool) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ALL]
    content = picture(250, size=(60, 40))

    result = client.infer(
        "bolt", [image_input(content, binary=binary)], outputs=outputs, parameters={"part_id": f"T-{binary}"}
    )

    record = running.call("GET", f"/v1/lines/bolt/inspections?part_id=T-{binary}").json["items"][0]
    assert result.as_numpy("score") == pytest.approx([record["score"]])
    verdict = result.as_numpy("verdict")[0]
    assert (verdict.decode() if isinstance(verdict, bytes) else verdict) == record["verdict"] == "reject"
    assert json.loads(result.as_numpy("regions")[0]) == record["regions"]
    assert result.as_numpy("map").shape == (40, 60)
    assert result.as_numpy("map").max() == pytest.approx(250 / 255, abs=0.01)
    assert record["source"] == "inference"


def test_part_sent_again_has_the_same_record(client: Any) -> None:
    results = [
        client.infer("bolt", [image_input(picture(20), binary=True)], parameters={"part_id": "T-again"})
        for _ in range(2)
    ]

    first, second = (result.get_response()["parameters"]["inspection"] for result in results)
    assert first == second


def test_model_is_unloaded_and_loaded_again(client: Any, running: Any) -> None:
    assert client.get_model_repository_index()[0]["state"] == "READY"
    client.unload_model("bolt")

    with pytest.raises(triton.InferenceServerException, match="no model"):
        client.infer("bolt", [image_input(picture(20), binary=True)])
    assert running.judge(picture(20)).status == 503
    assert running.call("GET", "/readyz").status == 503
    assert not client.is_server_ready()
    assert client.get_model_repository_index()[0]["state"] == "UNAVAILABLE"

    client.load_model("bolt")
    assert client.is_server_ready()
    assert running.judge(picture(20)).status == 201
    noted = [(e.facts["action"], e.facts["sha256"]) for e in running.service.site.store.entries(kind="model")][:2]
    assert noted == [("loaded", running.service.site.lines["bolt"].model.sha256), ("unloaded", None)]


IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["aGFsbG8="]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the request"),
        (b"[1, 2", "the request"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [{**IMAGE, "datatype": "FP32"}]}, "BYTES"),
        ({"inputs": [{**IMAGE, "data": ["***"]}]}, "base64"),
        ({"inputs": [{**IMAGE, "data": ["a", "b"]}]}, "one element"),
        ({"inputs": [{**IMAGE, "parameters": {"binary_data_size": 900}}]}, "binary_data_size"),
        ({"inputs": [IMAGE], "outputs": [{"name": "secrets"}]}, "outputs"),
        ({"inputs": [IMAGE], "parameters": {"part_id": 3}}, "must be text"),
        ({"inputs": [IMAGE], "parameters": {"part_id": "\n"}}, "printable"),
        ({"inputs": [IMAGE]}, "image"),
    ],
)
def test_request_that_is_none_is_refused_in_the_protocols_form(running: Any, body: Any, reason: str) -> None:
    answer = running.call("POST", "/v2/models/bolt/infer", body)

    assert 400 <= answer.status < 500
    assert list(answer.json) == ["error"]
    assert reason in answer.json["error"]
    assert running.call("POST", "/v2/models/nut/infer", body).status in (400, 404)


def test_map_that_is_too_large_for_json_goes_as_bytes(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_module, "_MOST_NUMBERS", 1000)
    asked = {"inputs": [IMAGE_OF_A_PART], "parameters": {"part_id": "large"}}

    refused = running.call("POST", "/v2/models/bolt/infer", {**asked, "outputs": [{"name": "map"}]})
    as_bytes = {"name": "map", "parameters": {"binary_data": True}}
    taken = running.call("POST", "/v2/models/bolt/infer", {**asked, "outputs": [as_bytes]})

    assert (refused.status, "binary_data" in refused.json["error"]) == (413, True)
    assert taken.status == 200
    assert len(taken.body) - int(taken.headers["inference-header-content-length"]) == 4 * 48 * 32
