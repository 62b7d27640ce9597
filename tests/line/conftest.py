"""A model whose score is the brightness, pictures for it, and a site with one line."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from flawsmith.line import versions
from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import Site
from flawsmith.runtime.bundle import Bundle

GOOD_SCORES = np.linspace(0.2, 0.58, 19)


def picture(brightness: int, *, note: int = 0, size: tuple[int, int] = (48, 32)) -> bytes:
    """A PNG of even brightness; the note makes its content another one."""
    pixels = np.full((size[1], size[0], 3), brightness, np.uint8)
    pixels[0, 0] = (note % 7, note // 7 % 256, note // 1792)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def brightness_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rejects above a brightness of 0.6, reviews above 0.4, and holds the scores of 19 good images."""
    arrays = {"good": GOOD_SCORES, "good_levels": GOOD_SCORES}
    path = tmp_path_factory.mktemp("model") / "model.flaw"
    dataclasses.replace(tiny.make_bundle(), calibration=arrays).save(path)
    return path


@pytest.fixture(scope="session")
def new_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Model files whose score is a multiple of the brightness, with limits at 0.6 and 0.4 of the brightness or others.

    ``change`` is given the bundle, and returns the one to be saved.
    """
    folder = tmp_path_factory.mktemp("models")

    def build(factor: float, change: Callable[[Bundle], Bundle] = lambda bundle: bundle, **limits: float) -> Path:
        decision = tiny.make_spec().decision
        scaled = {"limit": decision.limit * factor, "map_limit": decision.map_limit * factor, "review_limit": None}
        bundle = tiny.make_bundle(decision=decision.model_copy(update={**scaled, **limits}))
        arrays = {"good": GOOD_SCORES * factor, "good_levels": GOOD_SCORES * factor}
        path = folder / f"{len(list(folder.iterdir()))}.flaw"
        change(dataclasses.replace(bundle, model=multiplied(bundle.model, factor), calibration=arrays)).save(path)
        return path

    return build


def multiplied(graph: bytes, factor: float) -> bytes:
    """A detector whose input is multiplied first."""
    model = onnx.load_from_string(graph)
    constant, product = f"factor{len(model.graph.node)}", f"product{len(model.graph.node)}"
    number = helper.make_node("Constant", [], [constant], value_float=factor)
    multiplication = helper.make_node("Mul", ["image", constant], [product])
    for node in model.graph.node:
        node.input[:] = [product if name == "image" else name for name in node.input]
    nodes = [number, multiplication, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


@pytest.fixture
def _trial_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are tried here, which takes no second; what a process of its own is good for, other tests show."""
    monkeypatch.setattr(versions, "run_apart", lambda work, **_: work())
    monkeypatch.setattr(versions, "_NICE", 0)


@pytest.fixture
def new_site(brightness_model: Path, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Opens a site with the line ``bolt``; those still open are closed."""
    sites: list[Site] = []

    def open_site(on_record: Any = lambda _: None, on_event: Any = lambda *_: None, **line: Any) -> Site:
        values = {
            "records": tmp_path / "records",
            "images": {"keep_free": 0},
            "lines": {"bolt": {"model": brightness_model, "threads": 1, **line}},
        }
        sites.append(Site(ServiceSettings.model_validate(values), on_record, on_event))
        return sites[-1]

    yield open_site
    for site in sites:
        if not site.is_closed:
            site.close()
