"""The Open Inference Protocol, version 2, over HTTP, as clients of Triton, KServe and others speak it.

A line is a model here, and has one version: the first digits of the model file's SHA-256. Tensors are JSON, or follow
it as bytes (Triton's extension for binary data). The image goes in as it lies in its file.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from flawsmith import __version__
from flawsmith.line.record import Record, Trigger
from flawsmith.line.station import Line
from flawsmith.serving.requests import Problem, checked_id
from flawsmith.serving.service import Engineer, InService, LineName, Service, allowed, refuse_error

oip = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
_READS = [allowed("operator")]
_MOST_NUMBERS = 2**22
"""Numbers of a map that are written as JSON, which takes ten times as many bytes."""


class _Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[str] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class _Output(BaseModel):
    name: Literal["score", "verdict", "regions", "map"]
    parameters: dict[str, Any] = Field(default_factory=dict)


class _Inference(BaseModel):
    """What is asked, without the bytes that may follow."""

    id: str | None = Field(default=None, max_length=128)
    inputs: list[_Tensor] = Field(min_length=1, max_length=1)
    outputs: list[_Output] = Field(default_factory=list, max_length=4)
    parameters: dict[str, Any] = Field(default_factory=dict)

    @property
    def asked(self) -> dict[str, bool]:
        """Outputs by name, and whether they go as bytes; by default all but the map."""
        as_bytes = bool(self.parameters.get("binary_data_output"))
        if not self.outputs:
            return dict.fromkeys(("score", "verdict", "regions"), as_bytes)
        return {output.name: bool(output.parameters.get("binary_data", as_bytes)) for output in self.outputs}


@oip.get("/health/live")
async def live() -> dict[str, bool]:
    """The process lives."""
    return {"live": True}


@oip.get("/health/ready")
def ready(service: InService) -> Response:
    """Whether all lines have a model, but for those that are not taught yet."""
    return _readiness(not any(line.is_unloaded for line in service.site.lines.values()))


def _readiness(is_ready: bool) -> Response:
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@oip.get("", dependencies=_READS)
async def server_metadata() -> dict[str, Any]:
    """What the server is."""
    return {"name": "flawsmith", "version": __version__, "extensions": ["model_repository", "binary_tensor_data"]}


@oip.get("/models/{line}", dependencies=_READS)
@oip.get("/models/{line}/versions/{version}", dependencies=_READS)
def model_metadata(line: LineName, service: InService, version: str = "") -> dict[str, Any]:
    """Inputs and outputs of a line."""
    place = _line(service, line, version)
    outputs = [("score", "FP32", [1]), ("verdict", "BYTES", [1]), ("regions", "BYTES", [1]), ("map", "FP32", [-1, -1])]
    return {
        "name": place.name,
        "versions": [_version(place)],
        "platform": "flawsmith",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in outputs],
    }


@oip.get("/models/{line}/ready")
@oip.get("/models/{line}/versions/{version}/ready")
def model_ready(line: LineName, service: InService, version: str = "") -> Response:
    """Whether a line has a model."""
    place = service.site.lines.get(line)  # asked without a token: what other lines there are is not told
    return _readiness(place is not None and place.model is not None and version in ("", _version(place)))


def _version(line: Line) -> str:
    return "" if line.model is None else line.model.sha256[:12]


def _line(service: Service, name: str, version: str) -> Line:
    line = service.line(name)
    if version and version != _version(line):
        raise Problem(404, f"line {line.name} has version {_version(line) or 'none'}, and no other")
    return line


@oip.post("/models/{line}/infer", dependencies=_READS)
@oip.post("/models/{line}/versions/{version}/infer", dependencies=_READS)
async def infer(
    line: LineName,
    service: InService,
    request: Request,
    version: str = "",
    inference_header_content_length: Annotated[int | None, Header(ge=0)] = None,
) -> Response:
    """Judge a part; it has a record as any other. ``parameters.part_id`` makes it safe to send again."""
    place = _line(service, line, version)
    asked: list[tuple[_Inference, bytes]] = []

    def trigger_of(body: bytes) -> Trigger:
        inference, image = _read(body, inference_header_content_length)
        asked.append((inference, image))
        told = {name: inference.parameters.get(name) for name in ("part_id", "lot_id")}
        if any(value is not None and not isinstance(value, str) for value in told.values()):
            raise Problem(400, "part_id and lot_id must be text")
        ids = {name: checked_id(value, name) for name, value in told.items()}
        return Trigger(place.name, image, source="inference", part_id=ids["part_id"], lot_id=ids["lot_id"])

    record, _ = await service.judged(place, request, trigger_of)
    refuse_error(record)
    inference, image = asked[0]
    if "map" not in inference.asked:
        return _answer(place, inference, record, None)
    # The map is large: it is written in a thread, too.
    return await service.drawn(lambda: _answer(place, inference, record, service.seen_again(record, image).map))


def _read(body: bytes, header_length: int | None) -> tuple[_Inference, bytes]:
    """What is asked, and the image.

    Raises:
        Problem: it is no request, or holds no image.
    """
    length = len(body) if header_length is None else header_length
    if length > len(body):
        raise Problem(400, "Inference-Header-Content-Length is longer than the request")
    try:
        inference = _Inference.model_validate_json(body[:length])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the request"
        raise Problem(400, f"{place}: {first['msg']}") from None
    tensor, rest = inference.inputs[0], body[length:]
    if tensor.name != "image" or tensor.datatype != "BYTES" or tensor.shape not in ([1], [1, 1]):
        raise Problem(400, "the input must be image, BYTES, of the shape [1]: the content of an image file")
    if "binary_data_size" in tensor.parameters:
        # An element is its length in four bytes, the least significant first, and its content.
        if tensor.parameters["binary_data_size"] != len(rest) or len(rest) < 4:
            raise Problem(400, "the bytes that follow are not as many as binary_data_size says")
        (size,) = struct.unpack_from("<I", rest)
        if size != len(rest) - 4:
            raise Problem(400, "the bytes that follow are not one element")
        return inference, rest[4:]
    if tensor.data is None or len(tensor.data) != 1:
        raise Problem(400, "the input has no data: give one element")
    try:
        return inference, base64.b64decode(tensor.data[0], validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, "the image is not base64") from None


def _answer(line: Line, inference: _Inference, record: Record, anomaly_map: NDArray[np.float32] | None) -> Response:
    regions = json.dumps([region.model_dump(mode="json") for region in record.regions])
    outputs, trailing = [], []
    for name, as_bytes in inference.asked.items():
        if name == "map":
            assert anomaly_map is not None, "computed where it is asked for"
            if not as_bytes and anomaly_map.size > _MOST_NUMBERS:
                advice = f"ask for it as bytes (binary_data), or GET /v1/lines/{line.name}/inspections/{record.id}/map"
                raise Problem(413, f"the map has {anomaly_map.size} numbers, too many for JSON: {advice}")
            kind, shape, raw = "FP32", list(anomaly_map.shape), anomaly_map.astype("<f4").tobytes()
            data: list[Any] = [] if as_bytes else anomaly_map.ravel().tolist()
        elif name == "score":
            score = np.array([record.score], "<f4")
            kind, shape, raw, data = "FP32", [1], score.tobytes(), score.tolist()
        else:
            text = record.verdict if name == "verdict" else regions
            kind, shape, data = "BYTES", [1], [text]
            raw = struct.pack("<I", len(text.encode())) + text.encode()
        output: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
        if as_bytes:
            trailing.append(raw)
            output["parameters"] = {"binary_data_size": len(raw)}
        else:
            output["data"] = data
        outputs.append(output)
    answer = {
        "model_name": line.name,
        "model_version": (record.model_sha256 or "")[:12],
        "id": inference.id or str(record.id),
        "parameters": {"inspection": record.id},
        "outputs": outputs,
    }
    head = json.dumps(answer, allow_nan=False).encode()
    if not trailing:
        return Response(head, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Response(b"".join([head, *trailing]), headers=headers, media_type="application/octet-stream")


@oip.post("/repository/index", dependencies=_READS)
def repository_index(service: InService) -> list[dict[str, str]]:
    """The lines, and whether they have a model."""
    return [
        {
            "name": line.name,
            "version": _version(line),
            "state": "UNAVAILABLE" if line.model is None else "READY",
            "reason": "unloaded" if line.is_unloaded else "" if line.model else "not taught yet",
        }
        for line in service.site.lines.values()
    ]


@oip.post("/repository/models/{line}/load")
def load(line: LineName, service: InService, caller: Engineer) -> dict[str, Any]:
    """Look at the model file of the settings anew. What is wrong with it changes nothing; parts go on being judged."""
    service.line(line).load(who=caller.name)
    return {}


@oip.post("/repository/models/{line}/unload")
def unload(line: LineName, service: InService, caller: Engineer) -> dict[str, Any]:
    """Take no parts on this line until a model is loaded."""
    service.line(line).unload(who=caller.name)
    return {}
