"""A model whose score is the brightness, pictures for it, and a site with one line."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import Site

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
