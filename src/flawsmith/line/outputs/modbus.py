"""The Modbus TCP server behind which a PLC finds a line, and a PLC to try it with."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pymodbus.client import ModbusTcpClient
from pymodbus.constants import ExcCodes
from pymodbus.exceptions import ModbusException
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from flawsmith.line.outputs.delivery import Health, Offline, OutputFacts, check_address
from flawsmith.line.outputs.handshake import (
    CONTROL,
    CONTROL_REGISTERS,
    STATUS,
    STATUS_REGISTERS,
    TABLE_VERSION,
    Control,
    Fault,
    Handshake,
    Status,
    Verdict,
    part_registers,
    values_of,
)
from flawsmith.line.record import Record
from flawsmith.line.settings import ModbusOutput
from flawsmith.runtime.errors import FlawsmithError

_START_SECONDS = 10.0
_POLL_SECONDS = 0.005
_REGISTER_FUNCTIONS = (3, 4, 6, 16, 22, 23)
"""Those that read and write whole registers; there are no coils."""
DEFAULT_PORT: int = ModbusOutput.model_fields["port"].default


class PlcServer:
    """Serves a handshake as Modbus registers, in a thread of its own.

    Args:
        settings: of the output.
        handshake: that it serves.
        health: of the output.

    Raises:
        FlawsmithError: it cannot listen there.
    """

    def __init__(self, settings: ModbusOutput, handshake: Handshake, health: Health) -> None:
        self._settings, self.handshake, self._health = settings, handshake, health
        self._clients = 0
        self.port = settings.port
        self._control = [0] * CONTROL_REGISTERS
        self._is_over = False
        self._listening = threading.Event()
        check_address(settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"{settings.label}-server", daemon=True)
        self._thread.start()
        if not self._listening.wait(_START_SECONDS) or self._is_over:
            raise FlawsmithError(f"output {settings.label} cannot listen at {settings.host}:{settings.port}")

    def recorded(self, record: Record) -> None:
        """Tell of a record; returns at once."""
        self.handshake.recorded(record)

    def close(self) -> None:
        """End; connections are closed."""
        self.handshake.close()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def facts(self) -> OutputFacts:
        """How the output is doing."""
        return self._health.facts(
            target=f"{self._settings.host}:{self.port}",
            behind=self.handshake.waiting,
            delivered=self.handshake.delivered,
            skipped=self.handshake.overruns,
            is_over=self._is_over,
        )

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = None
        try:
            server = self._loop.run_until_complete(self._serve())
            self._listening.set()
            self._loop.run_forever()
        finally:
            self._is_over = True
            self._listening.set()
            if server is not None:
                self._loop.run_until_complete(server.shutdown())
            self._loop.close()

    async def _serve(self) -> ModbusTcpServer:
        registers = [
            SimData(CONTROL, count=CONTROL_REGISTERS, datatype=DataType.REGISTERS),
            SimData(STATUS, count=STATUS_REGISTERS, datatype=DataType.REGISTERS, readonly=True),
        ]
        server = ModbusTcpServer(
            SimDevice(0, registers, action=self._accessed),  # 0: whatever unit id the PLC sends
            address=(self._settings.host, self._settings.port),
            trace_connect=self._connected,
        )
        await server.serve_forever(background=True)
        listener: Any = server.transport  # an asyncio.Server, whatever its type says
        self.port = listener.sockets[0].getsockname()[1]
        return server

    async def _accessed(
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        """Pymodbus calls this before it reads or writes; whether the address is one it has checked."""
        if function not in _REGISTER_FUNCTIONS:
            return ExcCodes.ILLEGAL_FUNCTION
        if values is not None:
            written = [int(value) for value in values]
            self._control[address - CONTROL : address - CONTROL + len(written)] = written
            self.handshake.write(self._control[0], self._control[1:])
        else:
            registers[STATUS - start : STATUS - start + STATUS_REGISTERS] = self.handshake.read()
        return None

    def _connected(self, is_connected: bool) -> None:
        self._clients = max(0, self._clients + (1 if is_connected else -1))
        if self._clients == 0:
            self._control = [0] * CONTROL_REGISTERS
            self.handshake.lost()


@dataclass(frozen=True)
class Reading:
    """What a PLC reads at one moment.

    Attributes:
        status: bits of the status word.
        offline: why the line takes no parts.
        error: what went wrong since it was cleared.
        acquisition: id of the latest trigger.
        heartbeat: counts up while the service lives.
        waiting: results that are not acknowledged.
        inspection: id of the trigger that the result is of; 0: another than the PLC triggered it.
        verdict, fault, regions, record, score, times_limit, part_id: of the result; zero and empty where none is valid.
    """

    status: Status
    offline: Offline
    error: Fault
    acquisition: int
    heartbeat: int
    waiting: int
    inspection: int
    verdict: Verdict
    fault: Fault
    regions: int
    record: int
    score: float
    times_limit: float
    part_id: str

    @property
    def is_pass(self) -> bool:
        """Whether the part may go on: valid and passed; anything else is a reject."""
        return Status.RESULTS_VALID | Status.PASSED in self.status and self.verdict is Verdict.PASS


class SimulatedPlc:
    """A PLC to try a line with: it triggers, reads and acknowledges as one on a line would.

    Args:
        host, port: of the Modbus output.
        seconds: that it waits for an answer of any kind.

    Raises:
        FlawsmithError: nobody listens there, or it is something else.
    """

    def __init__(self, host: str, port: int = DEFAULT_PORT, *, seconds: float = 10.0) -> None:
        self.place, self._seconds = f"{host}:{port}", seconds
        self._client = ModbusTcpClient(host, port=port, timeout=seconds, retries=0, reconnect_delay=0)
        if not self._client.connect():
            raise FlawsmithError(f"{self.place}: nobody listens there; see the host and port of the modbus output")
        try:
            if self._registers()["version"] != TABLE_VERSION:
                raise FlawsmithError(f"{self.place}: is no modbus output of this Flawsmith")
            self.write(Control(0))
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> SimulatedPlc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def write(self, control: Control, part_id: str | None = None) -> None:
        """Write the control word, and with it the id of the part for a trigger."""
        values = [int(control)] + ([] if part_id is None else part_registers(part_id))
        try:
            answer = self._client.write_registers(CONTROL, values)
        except (ModbusException, OSError) as error:
            raise self._lost() from error
        if answer.isError():
            raise FlawsmithError(f"{self.place}: refuses to be written; it is no modbus output of Flawsmith")

    def read(self) -> Reading:
        """All status registers at one moment."""
        values = self._registers()
        part_id = values.pop("part_id").rstrip(b"\0").decode("ascii", "replace")
        del values["version"]
        kinds = {"status": Status, "offline": Offline, "error": Fault, "verdict": Verdict, "fault": Fault}
        return Reading(**values | {name: kind(values[name]) for name, kind in kinds.items()}, part_id=part_id)

    def inspect(self, part_id: str | None = None) -> Reading:
        """Trigger, and wait for the result of this trigger; older results are acknowledged and passed over.

        Raises:
            FlawsmithError: the line was not ready, gave no result in time, or the connection was lost.
        """
        self.write(Control.TRIGGER_ENABLE | Control.CLEAR_ERROR)
        self.write(Control.TRIGGER_ENABLE)
        self._wait_for(lambda reading: Status.TRIGGER_READY in reading.status, "is not ready for a trigger")
        self.write(Control.TRIGGER_ENABLE | Control.TRIGGER, part_id or "")
        acknowledged = self._wait_for(
            lambda reading: Status.TRIGGER_ACK in reading.status or Status.ERROR in reading.status,
            "does not acknowledge the trigger",
        )
        self.write(Control.TRIGGER_ENABLE)
        if Status.TRIGGER_ACK not in acknowledged.status:
            raise FlawsmithError(f"{self.place}: refuses the trigger ({acknowledged.error.name})")
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            result = self.next_result()
            if result.inspection == acknowledged.acquisition:
                return result
        raise FlawsmithError(f"{self.place}: gives no result of trigger {acknowledged.acquisition}")

    def next_result(self) -> Reading:
        """Wait for a result, acknowledge it, and return it.

        Raises:
            FlawsmithError: there was none in time, or the connection was lost.
        """
        result = self._wait_for(lambda reading: Status.RESULTS_VALID in reading.status, "gives no result")
        self.write(Control.TRIGGER_ENABLE | Control.RESULTS_ACK)
        self._wait_for(lambda reading: Status.RESULTS_VALID not in reading.status, "keeps its result")
        self.write(Control.TRIGGER_ENABLE)
        return result

    def _wait_for(self, condition: Callable[[Reading], bool], trouble: str) -> Reading:
        end = time.monotonic() + self._seconds
        while not condition(reading := self.read()):
            if time.monotonic() > end:
                reason = f": it is offline, {reading.offline.reason}" if reading.offline else ""
                raise FlawsmithError(f"{self.place}: {trouble} within {self._seconds:g} s{reason}")
            time.sleep(_POLL_SECONDS)
        return reading

    def _registers(self) -> dict[str, Any]:
        try:
            answer = self._client.read_holding_registers(STATUS, count=STATUS_REGISTERS)
        except (ModbusException, OSError) as error:
            raise self._lost() from error
        if answer.isError() or len(answer.registers) != STATUS_REGISTERS:
            raise FlawsmithError(f"{self.place}: is no modbus output of Flawsmith")
        return values_of(answer.registers)

    def _lost(self) -> FlawsmithError:
        return FlawsmithError(f"{self.place}: the connection was lost: a PLC rejects every part until it is back")
