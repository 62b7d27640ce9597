"""Outputs of a service: shown and counted where a person or Prometheus looks."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from tests.line.outputs.conftest import SECRET, until
from tests.serving.conftest import Running, picture


def test_outputs_are_shown_and_their_failures_counted(new_service: Callable[..., Running], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # where nobody listens afterwards
    webhook = {"kind": "webhook", "name": "mes", "url": f"http://127.0.0.1:{port}/PATHSECRET", "secret": SECRET}
    running = new_service(line={"outputs": [webhook, {"kind": "csv", "folder": tmp_path}]})

    assert running.judge(picture(20), "A-1").status == 201
    outputs = until(
        lambda: (
            (facts := running.call("GET", "/v1/lines/bolt/outputs").json)[0]["failures"]
            and facts[1]["delivered"]
            and facts
        )
    )
    metrics = running.call("GET", "/metrics").body.decode()

    assert [(output["output"], output["state"], output["behind"]) for output in outputs] == [
        ("mes", "failing", 1),
        ("csv", "waiting", 0),
    ]
    assert "cannot be reached" in outputs[0]["last_error"]
    assert outputs[0]["failing_since"] <= outputs[0]["last_error_at"]
    assert outputs[1]["failing_since"] is None
    assert "SECRET" not in str(outputs)
    counted = [line for line in metrics.splitlines() if line.startswith("flawsmith_output_failures_total")]
    assert [line.partition("} ")[0] for line in counted] == [
        'flawsmith_output_failures_total{line="bolt",output="mes"',
        'flawsmith_output_failures_total{line="bolt",output="csv"',
    ]
    assert [float(line.rpartition(" ")[2]) > 0 for line in counted] == [True, False]
    assert 'flawsmith_output_behind{line="bolt",output="mes"} 1.0' in metrics
    assert running.call("GET", "/v1/lines/nut/outputs").status == 404
