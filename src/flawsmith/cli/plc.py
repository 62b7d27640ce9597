"""``flawsmith plc``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flawsmith.cli.app import AsJson, error_boundary, print_json, print_out
from flawsmith.runtime.errors import FlawsmithError

if TYPE_CHECKING:
    from flawsmith.line.outputs.modbus import Reading


def plc(
    address: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="Where the modbus output listens; port 5020.")],
    count: Annotated[int, typer.Option(min=1, help="Parts to trigger.")] = 1,
    part_id: Annotated[str | None, typer.Option(help="Id of the part; several get -1, -2 and so on.")] = None,
    listen: Annotated[
        bool, typer.Option("--listen", help="Do not trigger: read results of parts that come by other ways.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="To wait for the line each time.")] = 10.0,
    json_: AsJson = False,
) -> None:
    """Play a PLC: trigger, read each result, acknowledge it and print it.

    Example: flawsmith plc 127.0.0.1:5020 --count 3
    """
    with error_boundary(tier="plc"):
        from flawsmith.line.outputs.modbus import DEFAULT_PORT, SimulatedPlc

        host, port = _address(address, DEFAULT_PORT)
        with SimulatedPlc(host, port, seconds=seconds) as simulated:
            for number in range(1, count + 1):
                name = f"{part_id}-{number}" if part_id and count > 1 else part_id
                _show(simulated.next_result() if listen else simulated.inspect(name), as_json=json_)


def _address(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default)
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise FlawsmithError(f"{text} is no HOST[:PORT]: write for example 127.0.0.1:{default}")
    return host.strip("[]"), int(port)


def _show(result: Reading, *, as_json: bool) -> None:
    if as_json:
        names = {name: getattr(result, name).name.lower() for name in ("verdict", "fault", "error", "offline")}
        print_json(asdict(result) | names | {"passed": result.is_pass})
        return
    times = "-" if result.fault else f"{result.times_limit:.2f}x"
    why = f"  {result.fault.name.lower().replace('_', ' ')}" if result.fault else ""
    print_out(
        f"{result.inspection:>5}  {result.verdict.name.lower():<6}  {times:<7}  {result.part_id or '-'}  "
        f"record {result.record}{why}"
    )
