"""MQTT: records as messages, and a retained status with a last will."""

from __future__ import annotations

import json
import secrets
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from socket import SHUT_RDWR, socket
from typing import Any

from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from flawsmith.line.outputs.delivery import SCHEMA, DeliveryError, Letter, Offline
from flawsmith.line.record import now
from flawsmith.line.settings import MqttOutput

KEEP_ALIVE_SECONDS = 15
"""Of silence, after which client or broker ask whether the other is there; after 1.5 times as much it is not."""


class MqttSink:
    """Publishes records below a topic. A connection that is lost is made anew, by a client of its own.

    Paho could reconnect by itself, but would then send again what it had kept, beside what the output sends again.

    Args:
        settings: of the output.
        topic: of the line; records go to ``topic/inspection``, the status to ``topic/status``.
        trust: with tls, whom to trust.
    """

    def __init__(self, settings: MqttOutput, topic: str, trust: ssl.SSLContext | None) -> None:
        self._settings, self._topic, self._trust = settings, topic, trust
        self._port = settings.port or (8883 if settings.tls else 1883)
        self._client: Client | None = None
        self._state: Offline | None = None
        self._refusal: str | None = None

    @property
    def target(self) -> str:
        """Broker and topic."""
        return f"{'mqtts' if self._settings.tls else 'mqtt'}://{self._settings.host}:{self._port}/{self._topic}"

    def tend(self, state: Offline) -> None:
        """Connect where there is no connection, and say whether the line takes parts where that has changed."""
        if self._client is None or not self._client.is_connected():
            self._hang_up()
            self._client = self._connected()
            self._state = None
        if state is not self._state:
            self._wait_for([self._publish("status", _status(state), retain=True)])
            self._state = state

    def deliver(self, letters: Sequence[Letter]) -> int:
        """Publish letters, and wait until the broker has them."""
        sent = [self._publish("inspection", json.dumps(letter.message(), allow_nan=False)) for letter in letters]
        return self._wait_for(sent)

    def close(self) -> None:
        """Say that the line is offline, and take leave, so that the last will is not needed."""
        client = self._client
        if client is None or not client.is_connected():
            return
        with suppress(DeliveryError):
            self._wait_for([self._publish("status", _status(Offline.ENDING), retain=True)])
            client.disconnect()
        self._hang_up(wait=True)

    def _connected(self) -> Client:
        settings, place = self._settings, f"{self._settings.host}:{self._port}"
        # 23 characters are what every broker takes; a random name, as two clients of one name end each other.
        client = Client(CallbackAPIVersion.VERSION2, f"flawsmith-{secrets.token_hex(6)}", reconnect_on_failure=False)
        client.connect_timeout = settings.seconds
        client.max_inflight_messages_set(100)
        client.will_set(f"{self._topic}/status", _status(None), qos=1, retain=True)
        if settings.username is not None:
            password = None if settings.password is None else settings.password.get_secret_value()
            client.username_pw_set(settings.username, password)
        if self._trust is not None:
            client.tls_set_context(self._trust)
        answered = threading.Event()
        refusals: list[str] = []

        def on_connect(_client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if reason.is_failure:
                refusals.append(str(reason))
            answered.set()

        client.on_connect = on_connect
        client.on_disconnect = lambda *_: answered.set()
        try:
            client.connect(settings.host, self._port, keepalive=KEEP_ALIVE_SECONDS)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DeliveryError(f"the broker {place} cannot be reached ({reason})") from None
        client.loop_start()
        self._client = client
        is_answered = answered.wait(settings.seconds)
        if refusals:
            raise DeliveryError(f"the broker {place} refuses the connection ({refusals[0]}): see username and password")
        if not is_answered or not client.is_connected():
            raise DeliveryError(f"the broker {place} did not take the connection")
        return client

    def _publish(self, name: str, text: str, *, retain: bool = False) -> MQTTMessageInfo:
        if self._client is None:
            raise DeliveryError(f"the connection to the broker {self._settings.host}:{self._port} was lost")
        return self._client.publish(f"{self._topic}/{name}", text, qos=1, retain=retain)

    def _wait_for(self, sent: Sequence[MQTTMessageInfo]) -> int:
        """Wait for the broker to have the messages; returns how many of the first it has."""
        assert self._client is not None, "connected by tend()"
        end = time.monotonic() + self._settings.seconds
        for count, message in enumerate(sent):
            while not (message.rc == MQTTErrorCode.MQTT_ERR_SUCCESS and message.is_published()):
                is_lost = message.rc != MQTTErrorCode.MQTT_ERR_SUCCESS or not self._client.is_connected()
                if is_lost or time.monotonic() > end:
                    self._hang_up()
                    if count:
                        return count
                    place = f"{self._settings.host}:{self._port}"
                    raise DeliveryError(
                        f"the connection to the broker {place} was lost"
                        if is_lost
                        else f"the broker {place} acknowledged nothing within {self._settings.seconds:g} s"
                    )
                with suppress(RuntimeError, ValueError):
                    message.wait_for_publish(0.1)
        return len(sent)

    def _hang_up(self, *, wait: bool = False) -> None:
        """End the connection without taking leave, so that the broker publishes the last will; paho's thread ends."""
        client, self._client = self._client, None
        if client is None:
            return
        if wait:
            client.loop_stop()
            return
        connection = client.socket()
        if isinstance(connection, socket):  # TLS too
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)


def _status(state: Offline | None) -> str:
    """Whether the line takes parts; None: nobody can say, which is the last will."""
    reason = "connection lost" if state is None else state.reason
    status: dict[str, object] = {"schema": SCHEMA, "state": "offline" if reason else "online", "reason": reason}
    if state is not None:  # the will is written long before it is published
        status["since"] = now()
    return json.dumps(status)
