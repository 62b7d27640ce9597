"""The settings of outputs: ``[[lines.bolt.outputs]]`` in ``LINES.toml``."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from flawsmith.line.record import Outcome

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_Output = TypeVar("_Output", bound="OutputBase")


class OutputBase(BaseModel):
    """What all outputs have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    name: str = Field(default="", description="in metrics and answers, and what is remembered; by default the kind")

    @field_validator("name")
    @classmethod
    def _name_fits(cls, name: str) -> str:
        if name and _NAME.fullmatch(name) is None:
            raise ValueError(f"the output name {name[:80]!r} may hold letters, digits, - and _, 40 at most")
        return name

    @property
    def label(self) -> str:
        """Its name, or its kind."""
        return self.name or self.kind

    def seen_from(self: _Output, base: Path) -> _Output:
        """The same with paths that are seen from a folder."""
        paths = {name: base / value for name, value in self if isinstance(value, Path)}
        return self.model_copy(update=paths)


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


def check_outputs(outputs: Sequence[OutputBase], place: Sequence[str]) -> None:
    """Whether outputs of a line go together.

    Args:
        outputs: of the line.
        place: its site, area and station.

    Raises:
        ValueError: they do not; says why.
    """
    labels = [output.label for output in outputs]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"two outputs are called {twice}: give each a name of its own")
    files = [(output.kind, output.folder) for output in outputs if isinstance(output, FileOutput)]
    if len(set(files)) != len(files):
        raise ValueError("two outputs write the same files: give each a folder of its own")
    if any(isinstance(output, MqttOutput) for output in outputs):
        for level in place:
            if set(level) & set("+#/") or not level.isprintable():
                raise ValueError(f"{level[:80]!r} cannot be part of an MQTT topic: leave +, # and / out of it")
