"""The outputs of a line, which tell others of each record. None of them can hold up judging."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from flawsmith.line.outputs.delivery import END_SECONDS, Cursors, Health, Offline, OutputFacts, Pump, Sink
from flawsmith.line.outputs.files import FileSink
from flawsmith.line.outputs.webhook import WebhookSink
from flawsmith.line.queue import PartConflictError
from flawsmith.line.record import Record
from flawsmith.line.settings import (
    DeliveredOutput,
    FileOutput,
    LineSettings,
    ModbusOutput,
    MqttOutput,
    OpcUaOutput,
    OutputSettings,
    WebhookOutput,
)
from flawsmith.line.store import Store
from flawsmith.runtime.errors import FlawsmithError, package_missing

if TYPE_CHECKING:
    from flawsmith.line.outputs.modbus import PlcServer
    from flawsmith.line.outputs.opcua import OpcUaServer
    from flawsmith.line.station import Line

OnFailure = Callable[[str, str], object]
"""Told of the line and the output that failed."""


class Outputs:
    """All outputs of a line.

    Args:
        name: of the line.
        settings: of the line.

    Raises:
        FlawsmithError: a package or a file is missing; nothing was begun.
    """

    def __init__(self, name: str, settings: LineSettings) -> None:
        self._name, self._labels = name, [output.label for output in settings.outputs]
        self._served = [output for output in settings.outputs if isinstance(output, (ModbusOutput, OpcUaOutput))]
        self._delivered = [output for output in settings.outputs if isinstance(output, DeliveredOutput)]
        self._sinks = [_sink(output, name, settings.place(name)) for output in self._delivered]
        for served in self._served:
            _import(served.kind, "plc" if isinstance(served, ModbusOutput) else "opcua", served, name)
        self._is_simulated = settings.camera is not None and settings.camera.kind in ("folder", "video")
        self._pumps: list[Pump] = []
        self._servers: list[PlcServer | OpcUaServer] = []
        self._line: Line | None = None
        self._store: Store | None = None
        self._trigger: Callable[[str | None], Future[Record]] | None = None
        self._is_ending = False

    def start(
        self,
        line: Line,
        store: Store,
        cursors: Cursors,
        *,
        trigger: Callable[[str | None], Future[Record]] | None = None,
        on_failure: OnFailure = lambda *_: None,
    ) -> None:
        """Begin to tell of records.

        Args:
            line: whose records; it takes no parts yet.
            store: where they are.
            cursors: that remember how far each output has come.
            trigger: has a picture taken and judged as the part of this id, and promises its record, of an error if need
                be. None: the line has no camera that a PLC could trigger.
            on_failure: told of each failed attempt.

        Raises:
            FlawsmithError: an address is taken; `close` ends what was begun.
        """
        self._line, self._store, self._trigger = line, store, trigger
        for served in self._served:
            self._servers.append(self._server(served, store, partial(on_failure, self._name, served.label)))
        for output, sink in zip(self._delivered, self._sinks, strict=True):
            failed = partial(on_failure, self._name, output.label)
            pump = Pump(self._name, output, sink, store, cursors, state=self.state, on_failure=failed)
            self._pumps.append(pump)

    def state(self) -> Offline:
        """Whether the line takes parts."""
        if self._is_ending:
            return Offline.ENDING
        line = self._line
        if line is None or line.model is None:
            return Offline.NO_MODEL
        return Offline.PAUSED if line.camera is not None and line.camera.state == "paused" else Offline.ONLINE

    def recorded(self, record: Record) -> None:
        """Tell of a record; returns at once."""
        for pump in self._pumps:
            pump.wake()
        for server in self._servers:
            server.recorded(record)

    def facts(self) -> list[OutputFacts]:
        """How the outputs are doing, in the order of the settings."""
        facts = [server.facts() for server in self._servers] + [pump.facts() for pump in self._pumps]
        return sorted(facts, key=lambda fact: self._labels.index(fact.output))

    def end(self) -> None:
        """Say that the line takes no more parts; what was taken is still judged, and told of."""
        self._is_ending = True

    def close(self) -> None:
        """Deliver what is left, as far as there is time, and end."""
        self.end()
        for pump in self._pumps:
            pump.end()
        end = time.monotonic() + END_SECONDS
        for pump in self._pumps:
            pump.join(max(0.0, end - time.monotonic()))
        for server in self._servers:
            server.close()
        self._pumps, self._servers = [], []

    def _server(
        self, output: ModbusOutput | OpcUaOutput, store: Store, failed: Callable[[], object]
    ) -> PlcServer | OpcUaServer:
        if isinstance(output, OpcUaOutput):
            from flawsmith.line.outputs.opcua import OpcUaServer

            return OpcUaServer(output, self._name, state=self.state, is_simulated=self._is_simulated, on_failure=failed)
        from flawsmith.line.outputs.handshake import Handshake
        from flawsmith.line.outputs.modbus import PlcServer

        line = self._line
        assert line is not None, "started"

        health = Health(self._name, output, failed)
        handshake = Handshake(
            None if self._trigger is None else self._acquire,
            state=self.state,
            has_room=lambda: len(line.queue) < line.queue.capacity,
            capacity=output.buffer,
            first=store.number_from_end(self._name, 0),  # goes on rising over restarts
            on_fault=lambda fault: health.note(fault.name.lower().replace("_", " ")),
        )
        return PlcServer(output, handshake, health)

    def _acquire(self, part_id: str | None) -> Future[Record]:
        assert self._trigger is not None, "or the PLC could not trigger"
        assert self._store is not None, "started"
        # No picture would be taken, and the verdict that comes back would be that of the part of before.
        if part_id is not None and any(r.verdict != "error" for r in self._store.of_part(self._name, part_id)):
            raise PartConflictError
        future = self._trigger(part_id)
        wait([future])  # nothing else says that the picture was taken, before which the part must not move
        return future


def _sink(output: OutputSettings, line: str, place: str) -> Sink:
    """Raises a FlawsmithError where a package or a certificate is missing."""
    if isinstance(output, WebhookOutput):
        is_tls = output.url.get_secret_value().startswith("https:")
        return WebhookSink(output, _trust(output.ca_file) if is_tls else None)
    if isinstance(output, MqttOutput):
        _import("mqtt", "mqtt", output, line)
        from flawsmith.line.outputs.mqtt import MqttSink

        return MqttSink(output, place, _trust(output.ca_file) if output.tls else None)
    assert isinstance(output, FileOutput), "others are served, not delivered to"
    return FileSink(output, line)


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "it holds no certificate in PEM"
        raise FlawsmithError(f"{ca_file}: cannot be used as ca_file ({reason})") from None


def _import(module: str, extra: str, output: OutputSettings, line: str) -> None:
    try:
        import_module(f"flawsmith.line.outputs.{module}")
    except ModuleNotFoundError as error:
        missing = package_missing(error, f"output {output.label} of line {line}", extra)
        if missing is None:
            raise
        raise FlawsmithError(missing) from None
