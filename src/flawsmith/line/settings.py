"""The settings of a service: ``LINES.toml``, or defaults for one model."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from flawsmith.line.cameras import CameraSettings
from flawsmith.line.pictures import Retention
from flawsmith.line.record import Outcome
from flawsmith.runtime.devices import DeviceName
from flawsmith.runtime.errors import FlawsmithError, why_refused

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Role = Literal["operator", "engineer"]
"""An operator has parts inspected, reads, and reviews; an engineer moves limits and loads models besides."""

DEFAULT_PORT = 8470
LINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_Settings = TypeVar("_Settings", bound=BaseModel)


class Token(BaseModel):
    """Someone or something that may talk to the service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=80, description="stands in the audit")
    role: Role = Field(description="operator or engineer")
    token: SecretStr = Field(min_length=16, max_length=200, description="sent as `Authorization: Bearer <token>`")

    @field_validator("token")
    @classmethod
    def _fits_into_a_header(cls, token: SecretStr) -> SecretStr:
        text = token.get_secret_value()
        if not text.isascii() or not text.isprintable() or text != text.strip():
            raise ValueError("a token must be printable ASCII without spaces at its ends, or no header can hold it")
        return token

    def matches(self, presented: str) -> bool:
        """Whether this token was presented; takes as long whether or not it was."""
        hashes = (hashlib.sha256(text.encode()).digest() for text in (self.token.get_secret_value(), presented))
        return hmac.compare_digest(*hashes)


class OutputBase(BaseModel):
    """What all outputs have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    name: str = Field(default="", description="in metrics and answers, and what is remembered; by default the kind")

    @field_validator("name")
    @classmethod
    def _name_fits(cls, name: str) -> str:
        if name and _OUTPUT_NAME.fullmatch(name) is None:
            raise ValueError(f"the output name {name[:80]!r} may hold letters, digits, - and _, 40 at most")
        return name

    @property
    def label(self) -> str:
        """Its name, or its kind."""
        return self.name or self.kind


class DeliveredOutput(OutputBase):
    """An output that remembers how far it has come."""

    verdicts: tuple[Outcome, ...] = Field(
        default=get_args(Outcome), min_length=1, description="tell of these alone; by default of all"
    )
    behind: int = Field(
        default=100_000, ge=1, le=10_000_000, description="records that may wait; of more the oldest are skipped"
    )


class WebhookOutput(DeliveredOutput):
    """POST of each record, signed as Standard Webhooks has it."""

    kind: Literal["webhook"]
    url: SecretStr = Field(max_length=2000, description="http:// or https://; it may hold a secret, and is never shown")
    secret: SecretStr = Field(description="whsec_ and the base64 of 24 to 64 bytes; signs each delivery")
    seconds: float = Field(default=10, gt=0, le=300, description="for an answer")
    ca_file: Path | None = Field(default=None, description="PEM of who signed the receiver's certificate")

    @field_validator("url")
    @classmethod
    def _url_is_one(cls, secret: SecretStr) -> SecretStr:
        url = secret.get_secret_value()
        try:
            parts = urlsplit(url)
            is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_one = False
        if not is_one or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("the url of a webhook must be like https://mes.example/inspections")
        if parts.username is not None:
            raise ValueError("the url of a webhook may hold no user name: the receiver checks the signature")
        return secret

    @field_validator("secret")
    @classmethod
    def _secret_is_one(cls, secret: SecretStr) -> SecretStr:
        if not 24 <= len(_key_of(secret)) <= 64:
            raise ValueError(
                "the secret of a webhook must be whsec_ and the base64 of 24 to 64 random bytes: "
                "`openssl rand -base64 32` makes them"
            )
        return secret

    @property
    def key(self) -> bytes:
        """The bytes behind the secret."""
        return _key_of(self.secret)


def _key_of(secret: SecretStr) -> bytes:
    """Empty where it is none."""
    kind, _, text = secret.get_secret_value().partition("_")
    try:
        return base64.b64decode(text, validate=True) if kind == "whsec" else b""
    except (binascii.Error, ValueError):
        return b""


class MqttOutput(DeliveredOutput):
    """Messages to an MQTT broker: a record each, and whether the line is at work."""

    kind: Literal["mqtt"]
    host: str = Field(min_length=1, max_length=255, description="of the broker")
    port: int | None = Field(default=None, ge=1, le=65535, description="by default 1883, with tls 8883")
    tls: bool = Field(default=False, description="encrypt, and check the broker's certificate")
    ca_file: Path | None = Field(default=None, description="PEM of who signed it; by default those the system trusts")
    username: str | None = Field(default=None, max_length=255)
    password: SecretStr | None = Field(default=None, max_length=1000)
    seconds: float = Field(default=10, gt=0, le=300, description="for the broker to answer")

    @model_validator(mode="after")
    def _fits_together(self) -> MqttOutput:
        if self.ca_file is not None and not self.tls:
            raise ValueError("ca_file needs tls = true")
        if self.password is not None and self.username is None:
            raise ValueError("a password needs a username")
        return self


class FileOutput(DeliveredOutput):
    """A file a day, with a line for each record."""

    kind: Literal["csv", "jsonl"]
    folder: Path = Field(description="of the files, LINE-2026-11-30.csv")
    day: Literal["utc", "local"] = Field(default="utc", description="whose midnight begins another file")


class ServedOutput(OutputBase):
    """An output that others connect to."""

    host: str = Field(default="127.0.0.1", min_length=1, max_length=255, description="to listen at; has no passwords")
    port: int = Field(ge=0, le=65535)


class ModbusOutput(ServedOutput):
    """A Modbus TCP server with which a PLC triggers and reads results; `docs/line/plc.md` has the registers."""

    kind: Literal["modbus"]
    port: int = Field(default=5020, ge=0, le=65535, description="502 is usual and needs rights; 0: any that is free")
    buffer: int = Field(default=8, ge=1, le=1000, description="results that may wait for the PLC")


class OpcUaOutput(ServedOutput):
    """An OPC UA server that shows the latest result; `docs/line/outputs.md` has its variables."""

    kind: Literal["opcua"]
    port: int = Field(default=4840, ge=0, le=65535, description="each line needs another; 0: any that is free")


OutputSettings = Annotated[
    WebhookOutput | MqttOutput | FileOutput | ModbusOutput | OpcUaOutput, Field(discriminator="kind")
]
"""Any of them, told apart by ``kind``."""


class LineSettings(BaseModel):
    """A line: a camera, a model, and how much may wait."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path | None = Field(
        default=None, description="the .flaw file, from the folder of the settings; none: the line is not taught yet"
    )
    site: str = Field(default="", max_length=80, description="for traceability, as ISA-95 names it")
    area: str = Field(default="", max_length=80)
    station: str = Field(default="", max_length=80)
    engine: Literal["onnxruntime", "openvino"] | None = Field(
        default=None, description="by default the one the limits were calibrated with"
    )
    device: DeviceName | Literal["auto"] | None = Field(
        default=None,
        description="where ONNX Runtime computes; by default that of the limits, auto: the first that is here. Nothing "
        "falls back to another one",
    )
    threads: int | None = Field(default=None, ge=1, le=1024, description="for the network; by default one a core")
    queue: int = Field(default=16, ge=1, le=10_000, description="parts that may wait or be in work; more are refused")
    decoders: int = Field(default=2, ge=1, le=64, description="threads that decode images")
    audit_share: float = Field(
        default=0.0, ge=0, le=1, description="share of passes and of rejects that are put before a reviewer at random"
    )
    camera: CameraSettings | None = Field(default=None, description="takes the pictures; none: they are sent")
    outputs: tuple[OutputSettings, ...] = Field(default=(), max_length=20, description="what is told of each record")

    @model_validator(mode="after")
    def _outputs_go_together(self) -> LineSettings:
        labels = [output.label for output in self.outputs]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"two outputs are called {twice}: give each a name of its own")
        files = [(output.kind, output.folder) for output in self.outputs if isinstance(output, FileOutput)]
        if len(set(files)) != len(files):
            raise ValueError("two outputs write the same files: give each a folder of its own")
        if any(isinstance(output, MqttOutput) for output in self.outputs):
            for level in (self.site, self.area, self.station):
                if set(level) & set("+#/") or not level.isprintable():
                    raise ValueError(f"{level[:80]!r} cannot be part of an MQTT topic: leave +, # and / out of it")
        return self

    def seen_from(self, base: Path) -> LineSettings:
        """The same with paths that begin in a folder."""
        camera = None if self.camera is None else _seen_from(self.camera, base)
        outputs = tuple(_seen_from(output, base) for output in self.outputs)
        return _seen_from(self, base).model_copy(update={"camera": camera, "outputs": outputs})

    def shown(self) -> dict[str, Any]:
        """The same ready for JSON and for everyone, without secrets."""
        shown = self.model_dump(mode="json")
        if self.camera is not None:
            hidden = dict.fromkeys(self.camera.options, "**********")
            shown["camera"] |= {"url": self.camera.address, "options": hidden}
        return shown

    def place(self, name: str) -> str:
        """site/area/line/station, without what is not named."""
        return "/".join(part for part in (self.site, self.area, name, self.station) if part)


def _seen_from(settings: _Settings, base: Path) -> _Settings:
    return settings.model_copy(update={name: base / value for name, value in settings if isinstance(value, Path)})


class ServiceSettings(BaseModel):
    """All settings of a service.

    Example:
        >>> settings = ServiceSettings(lines={"bolt": {"model": "bolt.flaw"}})
        >>> settings.host, settings.lines["bolt"].queue
        ('127.0.0.1', 16)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    host: str = Field(default="127.0.0.1", max_length=255, description="address to listen at; others need tokens")
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535, description="0: any that is free")
    records: Path = Field(default=Path("records"), description="folder of records and images")
    upload_megabytes: float = Field(default=32, gt=0, le=2048, description="largest request")
    model_megabytes: float = Field(default=1024, gt=0, le=4096, description="largest model file that is uploaded")
    megapixels: float = Field(default=50, gt=0, le=400, description="largest image")
    upload_seconds: float = Field(default=10, gt=0, le=3600, description="for a request to arrive whole")
    answer_seconds: float = Field(default=30, gt=0, le=3600, description="for a part to be judged, waiting included")
    model_seconds: int = Field(default=60, ge=1, le=600, description="for the network, on one image or tile")
    images: Retention = Field(default=Retention(), description="which images are kept")
    studio: bool = Field(default=True, description="whether there are pages for browsers at /studio")
    tokens: tuple[Token, ...] = Field(default=(), max_length=1000)
    lines: dict[str, LineSettings] = Field(max_length=100)

    @field_validator("lines")
    @classmethod
    def _names_fit_addresses(cls, lines: dict[str, LineSettings]) -> dict[str, LineSettings]:
        for name in lines:
            if LINE_NAME.fullmatch(name) is None:
                raise ValueError(f"the line name {name[:80]!r} may hold letters, digits, - and _, 63 at most")
        return lines

    def with_line(self, name: str, line: LineSettings) -> ServiceSettings:
        """The same with another line.

        Raises:
            FlawsmithError: its name cannot be one, or there are too many lines.

        Example:
            >>> settings = ServiceSettings(lines={}).with_line("bolt", LineSettings())
            >>> settings.lines["bolt"].model is None
            True
        """
        values = {field: getattr(self, field) for field in type(self).model_fields}
        try:
            return type(self).model_validate({**values, "lines": {**self.lines, name: line}})
        except ValidationError as error:
            raise FlawsmithError(why_refused(error.errors()[0], "lines")) from None

    @model_validator(mode="after")
    def _tokens_where_others_listen(self) -> ServiceSettings:
        if self.host not in _LOOPBACK and not self.tokens:
            raise ValueError(
                f"listening at {self.host} lets anyone in the network move limits: add [[tokens]] to the settings, or "
                "listen at 127.0.0.1"
            )
        if len({token.name for token in self.tokens}) != len(self.tokens):
            raise ValueError("two tokens have the same name")
        if len({token.token.get_secret_value() for token in self.tokens}) != len(self.tokens):
            raise ValueError("two tokens are the same: the audit could not tell who did what")
        return self

    @property
    def local(self) -> bool:
        """Whether this machine alone reaches the service."""
        return self.host in _LOOPBACK

    @property
    def max_pixels(self) -> int:
        """Largest image in pixels."""
        return int(self.megapixels * 1e6)

    @property
    def max_bytes(self) -> int:
        """Largest request in bytes."""
        return int(self.upload_megabytes * 2**20)

    @classmethod
    def checked(cls, values: Mapping[str, Any], file: Path) -> ServiceSettings:
        """Settings of values.

        Args:
            values: by field.
            file: that is named where one is wrong.

        Raises:
            FlawsmithError: one is wrong; names it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FlawsmithError(f"{file}: {why_refused(first, place or 'the file')}") from None

    @classmethod
    def load(cls, path: Path, *, line: str | None = None, **changes: Any) -> ServiceSettings:
        """Settings of a TOML file, or of one model alone.

        Args:
            path: a ``.toml`` file, whose paths are seen from its folder, or a ``.flaw`` file.
            line: this line alone; None: all of the file, or ``line1`` for a model.
            **changes: fields that take the place of those in the file; None leaves the file's.

        Raises:
            FlawsmithError: the file cannot be read, or a setting is wrong; names it.
        """
        values: dict[str, Any] = {"lines": {line or "line1": {"model": path}}}
        if path.suffix.lower() == ".toml":
            values = read_toml(path)
        overriding = {name: value for name, value in changes.items() if value is not None}
        settings = cls.checked({**values, **overriding}, path)
        if path.suffix.lower() != ".toml":
            return settings
        base, lines = path.parent, settings.lines
        if line is not None:
            if line not in lines:
                raise FlawsmithError(f"{path}: holds no line {line}: give --line {' or '.join(lines)}")
            lines = {line: lines[line]}
        lines = {name: place.seen_from(base) for name, place in lines.items()}
        records = settings.records if "records" in overriding else base / settings.records
        return settings.model_copy(update={"lines": lines, "records": records})


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        FlawsmithError: it cannot be read, or is none.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlawsmithError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FlawsmithError(f"{path}: is no TOML ({error}); correct that line") from None
