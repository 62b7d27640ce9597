"""Cameras: what a line needs of one, those that are built in, and where those of vendors' SDKs come from.

A vendor's SDK needs one class in any package, named by an entry point of the group ``flawsmith.cameras``:

    [project.entry-points."flawsmith.cameras"]
    acme = "acme_flawsmith:AcmeCamera"

It is made with the line's `CameraSettings`, in which ``kind = "acme"``, and has the methods of `Camera`.
"""

from __future__ import annotations

import random
import socket
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flawsmith.line.record import now
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import find_images, open_regular

GROUP = "flawsmith.cameras"
_REACH_SECONDS = 2.0
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


class CameraError(FlawsmithError):
    """A camera gives no picture; says why, and what to do."""


class NoMorePicturesError(Exception):
    """A folder or a video has come to its end."""


class CameraSettings(BaseModel):
    """A line's camera.

    Example:
        >>> CameraSettings(kind="folder", path="parts", rate=2, trigger="free").seconds
        5.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(max_length=80, description="folder, video, url, index, or the name that a plug-in has")
    trigger: Literal["free", "call"] = Field(
        default="call", description="free: a picture at the rate; call: when one is asked for"
    )
    rate: float | None = Field(default=None, gt=0, le=1000, description="pictures a second, where the trigger is free")
    seconds: float = Field(
        default=5.0, gt=0, le=600, description="in which a picture has to come, and a camera to open"
    )
    path: Path | None = Field(default=None, description="folder of images, or video file, from the settings' folder")
    order: Literal["name", "random"] = Field(default="name", description="of a folder's images")
    seed: int = Field(default=0, ge=0, description="of the random order")
    loop: bool = Field(default=True, description="whether folder or video begin anew at their end")
    url: str | None = Field(default=None, max_length=2000, description="rtsp://, http:// or https://")
    index: int = Field(default=0, ge=0, le=1000, description="of a camera that OpenCV knows, such as 0 for /dev/video0")
    options: dict[str, Any] = Field(default_factory=dict, description="for plug-ins, as they define them")

    @property
    def address(self) -> str | None:
        """The url without user and password, which are nobody's business."""
        if self.url is None:
            return None
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @model_validator(mode="after")
    def _check(self) -> CameraSettings:
        if self.trigger == "free" and self.rate is None:
            raise ValueError("a camera with the trigger free needs a rate, such as rate = 2 for two pictures a second")
        if self.kind in ("folder", "video") and self.path is None:
            raise ValueError(f"a camera of the kind {self.kind} needs a path")
        if self.kind == "url" and (self.url is None or urlsplit(self.url).scheme not in _PORTS):
            raise ValueError("a camera of the kind url needs a url that begins with rtsp://, http:// or https://")
        return self


@dataclass(frozen=True)
class Frame:
    """A picture.

    Attributes:
        image: the content of an image file, or (height, width, 3) RGB or (height, width) grey, uint8, as the sensor
            gave it. Whatever the camera writes into later must have been copied.
        taken: when it came, UTC.
        clock: seconds of the monotonic clock at that moment.
    """

    image: bytes | NDArray[np.uint8] = field(repr=False)
    taken: str = field(default_factory=now)
    clock: float = field(default_factory=time.monotonic)

    def content(self) -> bytes:
        """The picture as the content of a file, without loss.

        Raises:
            CameraError: the array is none that an image can have.
        """
        return self.image if isinstance(self.image, bytes) else png_of(self.image)


class Camera(Protocol):
    """What a line needs of a camera. All methods are called from one thread, one after the other.

    Attributes:
        streams: whether pictures come by themselves: they are then read all the time, so that none grows old in a
            buffer, and a trigger takes the first that comes after it. Otherwise `read` takes one.
    """

    streams: bool

    def open(self) -> None:
        """Connect. Raises CameraError."""

    def read(self) -> Frame:
        """The next picture. Raises CameraError, or NoMorePicturesError."""

    def close(self) -> None:
        """Give the camera back, whatever state it is in."""

    def diagnose(self) -> str:
        """One line for people: what is connected, or why nothing is and what to do; the camera may be open or not."""


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """An array as a PNG whose pixels are stored, not packed: a tenth of the time, at 3 bytes a pixel.

    Raises:
        CameraError: it is no image of 8 bits.

    Example:
        >>> from flawsmith.runtime.image import decode
        >>> image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        >>> bool((decode(png_of(image)) == image).all())
        True
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise CameraError(
            f"a camera gave an array of {pixels.shape} {pixels.dtype}; needed is uint8, (height, width, 3) or "
            "(height, width)"
        )
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels.size // height), np.uint8)  # each begins with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


class FolderCamera:
    """A simulated camera: the images of a folder, one after the other, as they are."""

    streams = False

    def __init__(self, settings: CameraSettings) -> None:
        assert settings.path is not None, "checked"
        self._settings, self._folder = settings, settings.path
        self._random = random.Random(settings.seed)
        self._paths: list[Path] = []
        self._number = 0

    def open(self) -> None:
        """Look which images there are."""
        try:
            self._paths = sorted(find_images(self._folder))
        except FlawsmithError as error:
            raise CameraError(str(error)) from None
        self._number = 0
        self._shuffle()

    def _shuffle(self) -> None:
        if self._settings.order == "random":
            self._random.shuffle(self._paths)

    def read(self) -> Frame:
        """The next image's content."""
        if self._number == len(self._paths):
            if not self._settings.loop:
                raise NoMorePicturesError
            self._number = 0
            self._shuffle()
        path = self._paths[self._number]
        self._number += 1
        try:
            with open_regular(path) as stream:
                return Frame(stream.read())
        except OSError as error:
            raise CameraError(f"{path}: cannot be read ({error.strerror})") from None

    def close(self) -> None:
        """Nothing to give back."""

    def diagnose(self) -> str:
        """How many images there are."""
        if not self._folder.is_dir():
            return f"simulated camera: there is no folder {self._folder}; make it, or correct the path"
        images = "1 image" if len(self._paths) == 1 else f"{len(self._paths)} images"
        return f"simulated camera: {images} in {self._folder}"


class OpenCvCamera:
    """Whatever OpenCV opens: a camera by its number, a stream by its address, a video file."""

    def __init__(self, settings: CameraSettings) -> None:
        self._settings = settings
        self._cv2 = _opencv()
        self._capture: Any = None
        self._error = ""
        self._size = (0, 0)
        self.streams = settings.kind != "video"

    @property
    def _source(self) -> str | int:
        settings = self._settings
        return settings.index if settings.kind == "index" else settings.url or str(settings.path)

    @property
    def _name(self) -> str:
        if self._settings.kind == "url":
            return str(self._settings.address)
        return f"camera {self._source}" if self._settings.kind == "index" else str(self._source)

    def open(self) -> None:
        """Connect."""
        cv2 = self._cv2
        if self._settings.kind == "url":
            patience = int(1000 * self._settings.seconds)
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, patience, cv2.CAP_PROP_READ_TIMEOUT_MSEC, patience]
            self._capture = cv2.VideoCapture(self._source, cv2.CAP_FFMPEG, limits)
        else:
            self._capture = cv2.VideoCapture(self._source)
        if not self._capture.isOpened():
            raise CameraError(f"{self._name}: cannot be opened; {self._reason()}")
        if self.streams:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> Frame:
        """The next picture."""
        is_read, pixels = self._capture.read()
        if not is_read and self._settings.kind == "video":
            if not self._settings.loop or not self._size[0]:
                raise NoMorePicturesError
            self.close()
            self.open()
            is_read, pixels = self._capture.read()
        if not is_read:
            raise CameraError(f"{self._name}: gives no picture any more; {self._reason()}")
        self._size = (pixels.shape[1], pixels.shape[0])
        return Frame(self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels.copy())

    def close(self) -> None:
        """Give the camera back."""
        if self._capture is not None:
            self._capture.release()

    def diagnose(self) -> str:
        """Size and rate, or what is missing."""
        if self._capture is None or not self._capture.isOpened():
            return f"{self._name}: {self._reason()}"
        rate = self._capture.get(self._cv2.CAP_PROP_FPS)
        size = f"{self._size[0]} x {self._size[1]} pixels" if self._size[0] else "no picture yet"
        return f"{self._name}: {size}, {rate:.3g} pictures a second by {self._capture.getBackendName()}"

    def _reason(self) -> str:
        """Why nothing comes, as far as that can be seen from here."""
        kind = self._settings.kind
        if kind == "video":
            path = Path(str(self._source))
            return "it is no video that OpenCV reads" if path.is_file() else "there is no such file; correct the path"
        if kind == "index":
            device = Path(f"/dev/video{self._source}")
            if Path("/dev").is_dir() and not device.exists():
                return f"there is no {device}; plug the camera in, or give another index"
            return f"another program may use it, or {device} may not be read: add the user to the group video"
        return _reason_of_address(str(self._source))


def _reason_of_address(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_REACH_SECONDS):
            return f"{parts.hostname} answers at port {port}, so check the address's path, user and password"
    except OSError as error:
        return f"{parts.hostname} does not answer at port {port} ({error.strerror or error}); check cable and address"


def _opencv() -> ModuleType:
    """OpenCV, which the service's other parts do without."""
    with suppress(ImportError):
        return import_module("cv2")
    raise FlawsmithError('cameras and videos need OpenCV: pip install "flawsmith[camera]"')


_BUILT_IN: dict[str, Callable[[CameraSettings], Camera]] = {
    "folder": FolderCamera,
    "video": OpenCvCamera,
    "url": OpenCvCamera,
    "index": OpenCvCamera,
}


def make_camera(settings: CameraSettings) -> Camera:
    """The camera of a line, which is not opened yet.

    Args:
        settings: of the camera.

    Raises:
        FlawsmithError: there is no such kind, or what it needs is not installed.
    """
    if settings.kind in _BUILT_IN:
        return _BUILT_IN[settings.kind](settings)
    plug_ins = {point.name: point for point in entry_points(group=GROUP)}
    if settings.kind not in plug_ins:
        known = ", ".join([*_BUILT_IN, *sorted(plug_ins)])
        raise FlawsmithError(f"there is no camera of the kind {settings.kind}: known are {known}")
    try:
        camera: Camera = plug_ins[settings.kind].load()(settings)
    except Exception as error:  # a plug-in may raise whatever it likes
        raise FlawsmithError(f"the plug-in for cameras of the kind {settings.kind} fails: {error}") from error
    return camera
