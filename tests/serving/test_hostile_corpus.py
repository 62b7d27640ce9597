"""Hostile requests drawn by hostile_requests.py: a result or a clear refusal, and nothing else written."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from typing import Any

import pytest
from tests.conftest import PROJECT
from tests.serving.conftest import picture
from tests.serving.hostile_requests import (
    ENGINEER,
    FINDS,
    OPERATOR,
    TOKENS,
    Request,
    endpoints,
    fault_of,
    hostile_requests,
    inference_of,
    send,
    wrote_record,
)
from tests.serving.test_hostile import files_below

REQUESTS = 240
LINE = "/v1/lines/bolt"
UPLOADS = (f"{LINE}/inspections", f"{LINE}/try", f"{LINE}/models", "/v2/models/bolt/infer")


@pytest.fixture(scope="module")
def guarded(new_service: Any) -> Any:
    """A service that asks for tokens."""
    return new_service(tokens=TOKENS)


def written(running: Any) -> tuple[Any, ...]:
    """All that a request may have written."""
    site = running.service.site
    return site.store.last_number(), site.store.entries(count=1), files_below(site.settings.records)


def trouble(running: Any, request: Request) -> str:
    """What is wrong with what came of a request."""
    before = written(running)
    status, body = send(running.port, request)
    after = written(running)
    secrets = [str(running.service.site.settings.records), OPERATOR, ENGINEER]
    if status >= 400 and after != before and not (wrote_record(request, status, body) and after[1:] == before[1:]):
        return f"{status}, and something was written"
    return fault_of(request, status, body, secrets)


@pytest.mark.usefixtures("_trial_in_this_process")
def test_hostile_requests_are_refused_clearly_and_write_nothing(guarded: Any, seed: int) -> None:
    described = guarded.call("GET", "/v1/openapi.json").json

    found = {
        f"{number} {request.method} {request.path} ({request.kind})": trouble(guarded, request)
        for number, request in enumerate(islice(hostile_requests(seed, endpoints(described)), REQUESTS))
    }

    assert {name: fault for name, fault in found.items() if fault} == {}
    assert guarded.judge(picture(250), token=OPERATOR).json["verdict"] == "reject"
    assert guarded.service.site.store.verify().faults == ()


@pytest.mark.parametrize("path", UPLOADS)
def test_images_that_once_were_finds_are_refused_clearly(guarded: Any, path: str) -> None:
    headers = {"Authorization": f"Bearer {ENGINEER}", "Content-Type": "application/octet-stream"}
    contents = [find.read_bytes() for find in sorted(FINDS.iterdir())]

    faults = [
        trouble(
            guarded, Request("POST", path, inference_of(content) if path.endswith("infer") else content, headers, "")
        )
        for content in contents
    ]

    assert faults == [""] * len(contents)
    assert contents


def test_program_sends_for_its_time_and_prints_counts() -> None:
    command = [sys.executable, "-m", "tests.serving.hostile_requests", "--minutes", "0.05", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"}

    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "requests from seed 1" in result.stdout
    assert "; 0 finds" in result.stdout
