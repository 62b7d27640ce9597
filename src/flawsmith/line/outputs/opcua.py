"""The OPC UA server behind which clients find the latest result of a line, in the words of OPC 40100-1."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from asyncua import ua
from asyncua.common.node import Node
from asyncua.crypto.permission_rules import USER_TYPES, SimpleRoleRuleset
from asyncua.server.event_generator import EventGenerator
from asyncua.server.server import Server
from asyncua.ua.object_ids import ObjectIds

from flawsmith.line.outputs.delivery import Health, Offline, OutputFacts, check_address
from flawsmith.line.record import Record
from flawsmith.line.settings import OpcUaOutput
from flawsmith.runtime.errors import FlawsmithError

NAMESPACE = "urn:flawsmith:line:1"
"""Of all nodes; its number rises when a client would have to change."""
BEAT_SECONDS = 1.0
_START_SECONDS, _END_SECONDS = 30.0, 10.0
_MOST_WAITING = 1000
_MOST_CLIENTS = 50
_LAST = 20
"""Results that `LastResults` holds."""
_COMPLETED, _FAILED = 1, 4
"""Values of OPC 40100-1's ResultStateDataType."""
_TEXTS = ("ResultId", "JobId", "PartId", "ProductId", "InternalRecipeId", "InternalConfigurationId", "ProcessingTimes")
_RESULT = {
    **dict.fromkeys((*_TEXTS, "Verdict"), ua.VariantType.String),
    **dict.fromkeys(("IsPartial", "IsSimulated", "Passed"), ua.VariantType.Boolean),
    "CreationTime": ua.VariantType.DateTime,
    "ResultState": ua.VariantType.Int32,
    "ResultContent": ua.VariantType.Variant,
    "ResultCount": ua.VariantType.UInt32,
}
"""What a result has, as variables of the line and as fields of the event."""
_STATE = {
    "LastResults": ua.VariantType.String,
    "Online": ua.VariantType.Boolean,
    "OfflineReason": ua.VariantType.String,
    "Heartbeat": ua.VariantType.UInt32,
}
_ARRAYS = ("ResultContent", "LastResults")
_EMPTY = {
    ua.VariantType.String: "",
    ua.VariantType.Boolean: False,
    ua.VariantType.DateTime: datetime.fromtimestamp(0, timezone.utc),
}
_node_id: Callable[..., ua.NodeId] = ua.NodeId  # its annotations are of asyncua's subclasses of int and str
_READING = {
    _node_id(kind)
    for kind in set(USER_TYPES)
    - {ObjectIds.WriteRequest_Encoding_DefaultBinary, ObjectIds.CallRequest_Encoding_DefaultBinary}
}


class _ReadOnly(SimpleRoleRuleset):
    """Whoever a client says it is, it reads and subscribes, and no more."""

    def __init__(self) -> None:
        pass  # needs none of the tables of roles

    def check_validity(self, user: object, action_type_id: ua.NodeId, body: object) -> bool:
        return action_type_id in _READING


class OpcUaServer:
    """Serves the results of a line over OPC UA, in a thread of its own.

    Args:
        settings: of the output.
        line: its name.
        state: whether the line takes parts.
        is_simulated: whether the line's camera is a folder or a video.
        on_failure: told of each failure.

    Raises:
        FlawsmithError: it cannot listen there.
    """

    def __init__(
        self,
        settings: OpcUaOutput,
        line: str,
        *,
        state: Callable[[], Offline],
        is_simulated: bool = False,
        on_failure: Callable[[], object] = lambda: None,
    ) -> None:
        self._settings, self._line, self._state = settings, line, state
        self._is_simulated, self._health = is_simulated, Health(line, settings, on_failure)
        self.port = settings.port
        self._waiting: deque[Record] = deque()
        self._last: deque[str] = deque(maxlen=_LAST)
        self._delivered = self._skipped = self._beats = 0
        self._is_ending = self._is_over = False
        self._listening = threading.Event()
        check_address(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"{line}-{settings.label}", daemon=True)
        self._thread.start()
        if not self._listening.wait(_START_SECONDS) or self._is_over:
            reason = f" ({self._health.last_error})" if self._health.last_error else ""
            raise FlawsmithError(f"output {settings.label} cannot listen at {settings.host}:{settings.port}{reason}")

    def recorded(self, record: Record) -> None:
        """Tell of a record; returns at once."""
        if len(self._waiting) >= _MOST_WAITING:
            with suppress(IndexError):
                self._waiting.popleft()
                self._skipped += 1
        self._waiting.append(record)
        self._rouse()

    def close(self) -> None:
        """Tell of what is left, and end; connections are closed."""
        self._is_ending = True
        self._rouse()
        self._thread.join(_END_SECONDS)

    def facts(self) -> OutputFacts:
        """How the output is doing."""
        return self._health.facts(
            target=f"opc.tcp://{self._settings.host}:{self.port}/",
            behind=len(self._waiting),
            delivered=self._delivered,
            skipped=self._skipped,
            is_over=self._is_over,
        )

    def _rouse(self) -> None:
        assert self._loop is not None, "listening"
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._wake.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._failed(error)
        finally:
            self._is_over = True
            self._listening.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = Server()
        server.name = server.manufacturer_name = "Flawsmith"
        server.application_type = ua.ApplicationType.Server
        await server.init()
        await server.set_application_uri(f"urn:flawsmith:{self._line}")
        server.allow_remote_admin(False)
        server.iserver.max_connections = _MOST_CLIENTS
        server.set_identity_tokens([ua.AnonymousIdentityToken])
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity], _ReadOnly())
        server.set_endpoint(f"opc.tcp://{self._settings.host}:{self._settings.port}/")
        server.socket_address = (self._settings.host, self._settings.port)
        nodes, event = await self._new_nodes(server)
        await self._beat(nodes)
        await server.start()
        try:
            assert server.bserver is not None, "started"
            self.port = server.bserver.port
            self._listening.set()
            while not self._is_ending or self._waiting:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), BEAT_SECONDS)
                self._wake.clear()
                await self._tell(nodes, event)
        finally:
            await server.stop()

    async def _new_nodes(self, server: Server) -> tuple[dict[str, Node], EventGenerator]:
        space = await server.register_namespace(NAMESPACE)
        line = await server.nodes.objects.add_object(_node_id(self._line, space), ua.QualifiedName(self._line, space))
        kind = await server.create_custom_event_type(space, "ResultReadyEventType")
        nodes = {}
        for name, variant in (_RESULT | _STATE).items():
            empty: Any = [] if name in _ARRAYS else _EMPTY.get(variant, 0)
            data = ObjectIds.BaseDataType if variant is ua.VariantType.Variant else None
            place = _node_id(f"{self._line}.{name}", space)
            nodes[name] = await line.add_variable(place, ua.QualifiedName(name, space), empty, variant, data)
            if name in _RESULT:
                await kind.add_property(space, name, empty, variant, data)
        event = await server.get_event_generator(kind)  # of the server's node, to which every client can subscribe
        event.event.SourceNode, event.event.SourceName = line.nodeid, self._line
        return nodes, event

    async def _tell(self, nodes: dict[str, Node], event: EventGenerator) -> None:
        """Whatever goes wrong with a record, the next is told of."""
        while self._waiting:
            record = self._waiting.popleft()
            try:
                await self._publish(record, nodes, event)
            except Exception as error:
                self._skipped += 1
                self._failed(error)
            else:
                self._delivered += 1
                self._health.delivered()
        try:
            await self._beat(nodes)
        except Exception as error:
            self._failed(error)

    async def _publish(self, record: Record, nodes: dict[str, Node], event: EventGenerator) -> None:
        await nodes["Passed"].write_value(False, _RESULT["Passed"])  # as long as the values are of two parts
        values = _values_of(record, is_simulated=self._is_simulated and record.source == "camera")
        values["ResultCount"] = (self._delivered + self._skipped + 1) % 2**32
        for name, value in values.items():
            if name != "Passed":
                await nodes[name].write_value(value, _RESULT[name])
        told = {name: values[name] for name in ("ResultId", "PartId", "Verdict", "Passed")}
        self._last.append(json.dumps(told | {"CreationTime": record.received, "Score": record.deciding}))
        await nodes["LastResults"].write_value(list(self._last), _STATE["LastResults"])
        await nodes["Passed"].write_value(values["Passed"], _RESULT["Passed"])
        for name, value in values.items():
            setattr(event.event, name, value)
        await event.trigger(message=f"{values['Verdict']} {values['PartId']}".strip())

    async def _beat(self, nodes: dict[str, Node]) -> None:
        state = self._state()
        if state is not Offline.ONLINE:
            await nodes["Passed"].write_value(False, _RESULT["Passed"])
        self._beats = (self._beats + 1) % 2**32
        values = {"Online": state is Offline.ONLINE, "OfflineReason": state.reason, "Heartbeat": self._beats}
        for name, value in values.items():
            await nodes[name].write_value(value, _STATE[name])

    def _failed(self, error: Exception) -> None:
        self._health.failed(" ".join(f"{type(error).__name__}: {error}".split())[:500])


def _values_of(record: Record, *, is_simulated: bool) -> dict[str, Any]:
    """A record in the words of OPC 40100-1, all but `ResultCount`."""
    score, limit = (math.nan if number is None else number for number in (record.deciding, record.limit))
    regions = json.dumps([region.model_dump(mode="json") for region in record.regions])
    return {
        "ResultId": str(record.id),
        "JobId": str(record.id),  # each trigger is a job
        "PartId": record.part_id or "",
        "CreationTime": datetime.fromisoformat(record.received),
        "IsPartial": False,
        "IsSimulated": is_simulated,
        "ResultState": _FAILED if record.verdict == "error" else _COMPLETED,
        "ProductId": record.product,
        "InternalRecipeId": record.model_sha256 or "",
        "InternalConfigurationId": record.limits or "",
        "ProcessingTimes": json.dumps(record.timing),
        "ResultContent": [
            ua.Variant(record.verdict, ua.VariantType.String),
            ua.Variant(score, ua.VariantType.Double),
            ua.Variant(limit, ua.VariantType.Double),
            ua.Variant(regions, ua.VariantType.String),
        ],
        "Verdict": record.verdict,
        "Passed": record.verdict == "pass",
    }
