"""Kills ``flawsmith serve`` and ``flawsmith watch`` at random moments, and counts what was lost or recorded twice.

    python benchmarks/kills.py --quick            # a few
    python benchmarks/kills.py --write            # 100 of each; writes docs/results/kills.md

The model's score is the brightness of the image, so that every verdict is known. A sender goes on with the part that
the kill left open; files arrive while the watch runs, are written in pieces, and are moved once they are judged.
"""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from common import ROOT, page, parser, table
from PIL import Image

from flawsmith.line.record import Record
from flawsmith.line.store import Store


def picture(number: int) -> bytes:
    """A dark or, every third, a bright image; no two are the same."""
    pixels = np.full((32, 48, 3), 250 if number % 3 == 0 else 20, np.uint8)
    pixels[0, 0] = (number % 7, number // 7 % 256, number // 1792)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def verdict(number: int) -> str:
    """What the model says of it."""
    return "reject" if number % 3 == 0 else "pass"


def brightness_model(folder: Path) -> Path:
    """The model of the tests, whose score is the brightness."""
    spec = importlib.util.spec_from_file_location("runtime_tools", ROOT / "tests" / "runtime" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    path = folder / "model.flaw"
    tools.make_bundle().save(path)
    return path


def start(*arguments: object) -> subprocess.Popen[str]:
    """A command of Flawsmith's in a process of its own."""
    command = [sys.executable, "-m", "flawsmith", *map(str, arguments), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def send(port: int, number: int) -> tuple[int, str] | None:
    """Record and verdict of a part; None where no answer came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/v1/lines/line1/inspections", picture(number), {"Part-Id": f"P-{number}"})
        response = connection.getresponse()
        body = json.loads(response.read())
        return (body["id"], body["verdict"]) if response.status in (200, 201) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def kill_serve(model: Path, kills: int, draw: random.Random) -> list[str]:
    """A row: how many parts were acknowledged, and what the store says of them after all kills."""
    records, number = Path(tempfile.mkdtemp()), 0
    answers: dict[int, tuple[int, str]] = {}
    for _ in range(kills):
        process = start("serve", model, "--out", records, "--port", 0)
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        for part in range(max(0, number - 5), number):  # those that the kill left open, and some that it did not
            answer = send(port, part)
            assert answer is not None
            if answers.setdefault(part, answer) != answer:
                raise SystemExit(f"part {part} has another record: {answers[part]}, now {answer}")
        timer = threading.Timer(draw.uniform(0.0, 0.5), process.kill)
        timer.start()
        while (answer := send(port, number)) is not None:
            answers[number] = answer
            number += 1
        number += 1  # taken or not, it is asked for again
        timer.join()
        process.wait()
        process.stdout.close()
    store = Store(records)
    stored = Counter(record.part_id for record in pages(store))
    lost = sum(store_of(store, record) != (f"P-{part}", said) for part, (record, said) in answers.items())
    twice = sum(count > 1 for count in stored.values())
    wrong = sum(said != verdict(part) for part, (_, said) in answers.items())
    return ["serve", str(kills), str(len(answers)), str(lost), str(twice), str(wrong), str(len(store.verify().faults))]


def store_of(store: Store, number: int) -> tuple[str | None, str] | None:
    """Part and verdict of a record."""
    record = store.get(number)
    return None if record is None else (record.part_id, record.verdict)


def pages(store: Store) -> list[Record]:
    """All records of the line."""
    records: list[Record] = []
    after = 0
    while items := store.page("line1", after=after, count=1000):
        records += items
        after = items[-1].id
    return records


def kill_watch(model: Path, kills: int, draw: random.Random) -> list[str]:
    """A row: how many files arrived, and what the store says of them after all kills."""
    records, incoming = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    ended, number = threading.Event(), 0

    def write() -> None:
        nonlocal number
        while not ended.wait(0.01):
            content, path = picture(number), incoming / f"{number}.png"
            with path.open("wb") as stream:
                stream.write(content[:40])
                stream.flush()
                ended.wait(draw.choice((0.0, 0.02)))
                stream.write(content[40:])
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    options = ["--model", model, "--out", records, "--settle", 0.1, "--then", "move", "--json"]
    for _ in range(kills):
        process = start("watch", incoming, *options)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
    ended.set()
    writer.join()
    process = start("watch", incoming, *options)
    while any(incoming.glob("*.png")):
        time.sleep(0.1)
    process.terminate()
    process.communicate()
    store = Store(records)
    stored = pages(store)
    counts = Counter(record.name for record in stored)
    lost = sum(counts[f"{part}.png"] == 0 for part in range(number))
    twice = sum(count > 1 for count in counts.values())
    wrong = sum(record.verdict != verdict(int(str(record.name)[:-4])) for record in stored)
    return ["watch", str(kills), str(number), str(lost), str(twice), str(wrong), str(len(store.verify().faults))]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = options.parse_args()
    kills, draw = 5 if arguments.quick else 100, random.Random(arguments.seed)
    model = brightness_model(Path(tempfile.mkdtemp()))
    rows = [kill_serve(model, kills, draw), kill_watch(model, kills, draw)]
    heads = ["command", "kills", "parts", "lost", "twice", "wrong verdicts", "faults of the chain"]
    page("kills", "Killed at random moments", [table(heads, rows)], write=arguments.write)


if __name__ == "__main__":
    main()
