"""Hostile requests to every endpoint of a service, drawn from a seed: damaged images, model files with wrong parts, odd
names, numbers, JSON, headers and tokens.

    python -m tests.serving.hostile_requests --minutes 30

sends them to `flawsmith serve` in a process of its own, prints counts and each find: an answer that is no clear
refusal, none in time, a traceback in the log, something written that should not be, or memory that grows. ``make fuzz``
does so for a while; tests/serving/test_hostile_corpus.py sends some to a service in the tests' process.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import load_helpers
from tests.field.fuzz_bundles import NUMBERS, OTHERS, drawn_file
from tests.field.image_fuzzer import damaged_files
from tests.line.conftest import picture

from flawsmith.line.store import Store

FINDS = Path(__file__).parents[1] / "field" / "image_finds"
OPERATOR, ENGINEER = "operator-0123456789", "engineer-0123456789"
TOKENS = [
    {"name": "camera", "role": "operator", "token": OPERATOR},
    {"name": "anna", "role": "engineer", "token": ENGINEER},
]
ENDLESS = ("/v1/events",)
"""Streams, which no answer ends."""
SECONDS, GROWTH = 30.0, 400 * 2**20
ODD = [
    *("..%2f..%2fetc%2fpasswd", "%00", "%2e%2e", "a%0d%0aX-Bad:1", "%ff%fe", "-1", "0", "1e9", "+1", "1.5", "NaN"),
    *("9223372036854775808", "2147483648", "bolt%20", "*", "%F0%9F%98%80", "{line}", "%2525", ";ls", "null", "con"),
    *("%3Cscript%3E", "..%5c..%5cwindows", "9" * 40, "x" * 300, "0" * 64, "f" * 12),
]
FIELDS = [
    *("reason", "max_false_rejects", "review_rate", "use", "expected", "label", "comment", "role", "blind", "parts"),
    *("paused", "reference", "inputs", "outputs", "parameters", "id", "name"),
]
VALUES: list[Any] = [
    *NUMBERS, *OTHERS, "good", "line", "10/1000", "1/0", "-1/5", "1e999", "9" * 5000, "\ud800", "none", float("nan"),
    {"part_id": "\n"}, [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}], [[[[]]]] * 50,
]  # fmt: skip
BODIES = [b"", b"{", b"[" * 60_000, b'{"a":' * 10_000, b"\xff\xfe\x00", b"null", b'"', b"0" * 60_000, bytes(70_000)]
HEADERS: list[dict[str, str]] = [
    {"Part-Id": "../../x"}, {"Part-Id": "x" * 129}, {"Part-Id": "\xe4"}, {"Lot-Id": "\t"}, {"Last-Event-ID": "9" * 30},
    {"Origin": "null"}, {"Origin": "http://["}, {"Host": "evil.example"}, {"Content-Type": "multipart/form-data"},
    {"Content-Type": "multipart/form-data; boundary=" + "b" * 300}, {"Content-Type": "\xff/\xfe"},
    {"Content-Type": "application/json; charset=utf-7"}, {"Inference-Header-Content-Length": "7"},
    {"Inference-Header-Content-Length": "-7"}, {"X-Large": "x" * 20_000}, {"Range": "bytes=9-1,5-"},
    {"Accept-Encoding": "gzip;q=nan"}, {"Cookie": "flawsmith_token_8470=%%%; a" * 50}, {"Expect": "100-continue"},
    {"If-None-Match": "*"}, {"Authorization": "Bearer"}, {"Authorization": "Basic " + "A" * 200},
    {"Authorization": "Bearer " + OPERATOR[:-1]}, {"Authorization": "Bearer \xff"},
]  # fmt: skip


class Request(NamedTuple):
    """A request.

    Attributes:
        method, path, body, headers: as they are sent.
        kind: what is hostile about it.
    """

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    kind: str


def endpoints(described: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Method, path and names of the query of each endpoint, from the OpenAPI description; streams are left out."""
    return [
        (method.upper(), path, [each["name"] for each in facts.get("parameters", ()) if each["in"] == "query"])
        for path, methods in described["paths"].items()
        if path not in ENDLESS
        for method, facts in methods.items()
    ]


def hostile_requests(seed: int, places: Sequence[tuple[str, str, list[str]]]) -> Iterator[Request]:
    """Endless requests, the same for the same seed. Each endpoint comes in turn.

    Args:
        seed: of the draw.
        places: as `endpoints` gives them.
    """
    rng, images = random.Random(seed), damaged_files(seed)
    for number in itertools.count():
        method, path, query = places[number % len(places)]
        kind = rng.choice(["image", "image", "bundle", "json", "json", "bytes", "name", "header"])
        headers, body = {}, b""
        if kind == "header":
            headers |= rng.choice(HEADERS)
            body = picture(20)
        elif kind == "name":
            body = picture(20) if rng.random() < 0.5 else b'{"reason": "a reason", "label": "good", "parts": 3}'
        elif kind == "image":
            body = next(images)[1]
        elif kind == "bundle":
            body = drawn_file(rng.randrange(2**30))
        elif kind == "bytes":
            body = rng.choice(BODIES)
        else:
            order = {name: rng.choice(VALUES) for name in rng.sample(FIELDS, rng.randint(1, 5))}
            body = json.dumps(order).encode()
        if path.endswith("/infer") and kind in ("image", "bundle", "name"):
            body = inference_of(body)
        headers.setdefault("Content-Type", "application/octet-stream" if kind == "image" else "application/json")
        # An engineer's token where the body is to be read; elsewhere an operator's, which changes little.
        may_write = path.endswith(("/models", "/limit/preview"))
        headers.setdefault("Authorization", f"Bearer {ENGINEER if may_write else OPERATOR}")
        filled = filled_in(rng, path, is_odd=kind == "name")
        if query and rng.random() < 0.5:
            filled += (
                f"?{rng.choice(query)}={rng.choice([*ODD, '3', '2026-11-30T00:00:00', '0001-01-01T00:00:00%2B14:00'])}"
            )
        yield Request(method, filled, b"" if method == "GET" else body, headers, kind)


def inference_of(image: bytes) -> bytes:
    """A request of the Open Inference Protocol with an image."""
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(image).decode()]}
    return json.dumps({"inputs": [tensor]}).encode()


def filled_in(rng: random.Random, path: str, *, is_odd: bool) -> str:
    """A path with names and numbers in its places."""
    usual = {"line": "bolt", "number": "1", "version": "0" * 12}
    parts = []
    for part in path.split("/"):
        if not part.startswith("{"):
            parts.append(part)
        elif is_odd and rng.random() < 0.7:
            parts.append(rng.choice(ODD))
        else:
            parts.append(usual.get(part.strip("{}"), "1"))
    return "/".join(parts)


def send(port: int, request: Request) -> tuple[int, bytes]:
    """Status and body of the answer; 0 where the connection was closed without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(request.method, request.path, request.body, dict(request.headers))
        response = connection.getresponse()
        return response.status, response.read()
    except (ConnectionError, http.client.RemoteDisconnected):  # it was refused before all was sent
        return 0, b""
    finally:
        connection.close()


def fault_of(request: Request, status: int, body: bytes, secrets: Sequence[str]) -> str:
    """What is wrong with an answer; empty: it is a result, or a clear refusal that gives nothing away."""
    if status in (0, 200, 201, 202, 204, 304):
        return ""
    if not 400 <= status < 500 and status != 503:
        return f"status {status}: {body[:200]!r}"
    text = body.decode("utf-8", "replace")
    if "Traceback" in text or any(secret in text for secret in secrets):
        return f"gives away {text[:300]}"
    if text in ("Invalid HTTP request received.", "Service Unavailable", '{"ready":false}'):
        return ""
    try:
        answer = json.loads(text)
    except ValueError:
        return f"no JSON: {text[:200]}"
    detail = answer.get("detail", answer.get("error"))  # the Open Inference Protocol's name
    if not isinstance(detail, str) or not detail or "\n" in detail or len(detail) > 1000:
        return f"no clear line: {text[:300]}"
    return ""


def wrote_record(request: Request, status: int, body: bytes) -> bool:
    """Whether an answer is of a part with a record: an image that cannot be read has one too."""
    return status == 422 and (b'"inspection"' in body or request.path.endswith("/infer"))


def main() -> int:
    """Send for some minutes, and print counts and finds."""
    import psutil

    parser = argparse.ArgumentParser(description="Send hostile requests to every endpoint of a service.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="drawn by default, so that every run sends others")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**40)
    folder = Path(tempfile.mkdtemp())
    load_helpers("tiny_bundles", "runtime/conftest.py").make_bundle().save(folder / "bolt.flaw")
    tokens = "".join(
        "[[tokens]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in token.items()) for token in TOKENS
    )
    (folder / "LINES.toml").write_text(
        f'{tokens}[images]\nkeep_free = 0\n[lines.bolt]\nmodel = "bolt.flaw"\nthreads = 1\n'
    )
    outside = {path.name for path in folder.iterdir()} | {"records", "log"}
    command = [sys.executable, "-m", "flawsmith", "serve", str(folder / "LINES.toml"), "--port", "0", "--quiet"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])
    described = json.loads(send(port, Request("GET", "/v1/openapi.json", b"", {}, ""))[1])
    watched, begun = psutil.Process(process.pid), 0
    counts: Counter[str] = Counter()
    finds: list[str] = []
    end = time.monotonic() + 60 * options.minutes
    for number, request in enumerate(hostile_requests(seed, endpoints(described))):
        if time.monotonic() > end or process.poll() is not None:
            break
        start = time.monotonic()
        try:
            status, body = send(port, request)
            fault = fault_of(request, status, body, [str(folder), OPERATOR, ENGINEER])
        except TimeoutError:
            status, fault = -1, f"no answer within {SECONDS:g} s"
        counts[f"{request.kind} {status}"] += 1
        if number == 300:
            begun = watched.memory_info().rss
        if fault:
            finds.append(f"{number} {request.method} {request.path[:100]} ({request.kind}): {fault}")
            print(finds[-1], flush=True)
        if (took := time.monotonic() - start) > SECONDS:
            finds.append(f"{number} {request.method} {request.path[:100]}: {took:.0f} s")
    if process.poll() is not None:
        finds.append(f"the service ended with {process.returncode}")
    elif begun and (growth := watched.memory_info().rss - begun) > GROWTH:
        finds.append(f"memory grew by {growth / 2**20:.0f} MiB")
    process.terminate()
    process.wait(60)
    if b"Traceback" in (folder / "log").read_bytes():
        finds.append(f"a traceback in {folder / 'log'}")
    if (left := {path.name for path in folder.iterdir()} - outside) or Store(folder / "records").verify().faults:
        finds.append(f"written beside the records: {left}")
    print(*finds[-5:], sep="\n")
    print(f"{sum(counts.values())} requests from seed {seed}: {dict(counts.most_common())}; {len(finds)} finds")
    return 1 if finds else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
