"""What the service costs: against an Inspector in a plain loop, under ten times its load, and over many requests.

    python benchmarks/serving.py --quick          # proves the script alone
    python benchmarks/serving.py --write          # writes docs/results/serving.md

The service is a process of its own, as on the line; clients are threads of this one, which keep their connections.
The soak has a service of its own, whose model is that of the tests: it is the service that is to stay as it is, not a
network that is to be waited for.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from common import VERDICT_ALONE, category_folder, page, parser, table, trained_model
from kills import brightness_model, picture, verdict

from flawsmith.line.store import Store
from flawsmith.runtime.files import find_images
from flawsmith.runtime.inspector import Inspector

PATH = "/v1/lines/line1/inspections"


@dataclass
class Load:
    """What came of many requests.

    Attributes:
        statuses: number of answers by status.
        seconds: of each answer with a record, from the first byte sent to the last one read.
        records: verdict by part.
        elapsed: seconds for all of it.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    records: dict[str, str] = field(default_factory=dict)
    elapsed: float = 0.0

    @property
    def rate(self) -> float:
        """Parts with a record a second."""
        return len(self.records) / self.elapsed


@contextmanager
def service(model: Path, records: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process of ``flawsmith serve``."""
    command = [sys.executable, "-m", "flawsmith", "serve", str(model), "--out", str(records), "--port", "0", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().rpartition(":")[2]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def send(port: int, parts: Sequence[tuple[str, bytes]], clients: int) -> Load:
    """Send parts from several clients at once, each one after the other."""
    load, lock, work = Load(), threading.Lock(), iter(parts)

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                part = next(work, None)
            if part is None:
                connection.close()
                return
            begin = time.perf_counter()
            connection.request("POST", PATH, part[1], {"Part-Id": part[0], "Content-Type": "application/octet-stream"})
            response = connection.getresponse()
            body = response.read()
            took = time.perf_counter() - begin
            with lock:
                load.statuses[response.status] += 1
                if response.status == 201:
                    load.seconds.append(took)
                    load.records[part[0]] = json.loads(body)["verdict"]

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.elapsed = time.perf_counter() - begin
    return load


@contextmanager
def health(port: int) -> Iterator[list[float]]:
    """Seconds that ``/healthz`` takes meanwhile, ten times a second: how long the event loop is held up."""
    seconds: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not ended.wait(0.1):
            begin = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            seconds.append(time.perf_counter() - begin)
        connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()


def plain_loop(model: Path, images: Sequence[bytes], count: int) -> tuple[Load, list[str]]:
    """The same images through an Inspector, and the verdict of each image."""
    inspector, load, verdicts = Inspector.load(model), Load(), []
    for content in images:
        verdicts.append(str(inspector.inspect(content).verdict))
    begin = time.perf_counter()
    for number in range(count):
        start = time.perf_counter()
        load.records[str(number)] = str(inspector.inspect(images[number % len(images)]).verdict)
        load.seconds.append(time.perf_counter() - start)
    load.elapsed = time.perf_counter() - begin
    return load, verdicts


def parts_of(images: Sequence[bytes], count: int, name: str) -> list[tuple[str, bytes]]:
    """Parts with names of their own, whose images repeat."""
    return [(f"{name}-{number}", images[number % len(images)]) for number in range(count)]


def wrong(load: Load, verdicts: Sequence[str]) -> int:
    """Parts whose verdict is another one than the plain loop's."""
    numbers = {part: int(part.rpartition("-")[2]) for part in load.records}
    return sum(verdict != verdicts[numbers[part] % len(verdicts)] for part, verdict in load.records.items())


def lost(records: Path, loads: Sequence[Load]) -> int:
    """Parts that were acknowledged and have not exactly one record, with that verdict."""
    store = Store(records)
    stored: dict[str | None, list[str]] = {}
    after = 0
    while rows := store.fields("line1", ("part_id", "verdict"), after=after, count=10_000):
        for _, _, part, said in rows:
            stored.setdefault(part, []).append(said)
        after = rows[-1][0]
    store.close()
    return sum(stored.get(part) != [said] for load in loads for part, said in load.records.items())


def size_of(process: psutil.Process) -> tuple[float, int]:
    """Memory in MiB, and open descriptors."""
    return process.memory_info().rss / 2**20, process.num_fds()


def row(name: str, load: Load) -> list[str]:
    """A row of the table of rates and times."""
    return [name, f"{load.rate:.1f}", *(f"{1000 * quantile(load.seconds, share):.1f}" for share in (0.5, 0.99))]


def quantile(seconds: Sequence[float], share: float) -> float:
    """The value that a share of them does not exceed."""
    return sorted(seconds)[round(share * (len(seconds) - 1))]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, help="folder of the trained model, kept for the next time")
    options.add_argument("--category", default="screw", help="category of the shared real images")
    options.add_argument("--method", default="fusion", help="method of the model")
    options.add_argument("--model", type=Path, help="a model file instead of a trained one")
    options.add_argument("--images", type=Path, help="a folder of images instead of the category's")
    options.add_argument("--parts", type=int, default=600, help="parts a row, and a tenth of those of the overload")
    options.add_argument("--soak", type=int, default=50_000, help="requests of the soak")
    arguments = options.parse_args()
    if arguments.model is None:
        data = category_folder(arguments.category)
        work = arguments.work or Path(tempfile.mkdtemp())
        settings = VERDICT_ALONE.get(arguments.method)
        name = f"{arguments.category}-{arguments.method}"
        model = trained_model(data, name, work, arguments.method, settings=settings)
        folder = arguments.images or data / "test"
    else:
        model, folder = arguments.model, arguments.images
    images = [path.read_bytes() for path in find_images(folder)[:40]]
    count, soak = (40, 300) if arguments.quick else (arguments.parts, arguments.soak)
    records, soaked, folder = (Path(tempfile.mkdtemp()) for _ in range(3))

    loop, verdicts = plain_loop(model, images, count)
    with service(model, records) as (port, process):
        send(port, parts_of(images, 20, "warm"), 2)
        rows = [row("Inspector in a plain loop", loop)]
        loads = {clients: send(port, parts_of(images, count, f"c{clients}"), clients) for clients in (1, 2, 4)}
        rows += [row(f"service, {clients} client{'s' * (clients > 1)}", load) for clients, load in loads.items()]
        with health(port) as seconds:
            overload = send(port, parts_of(images, 10 * count, "over"), 160)
        rows.append(row("service, 160 clients", overload))
    pictures = [picture(number) for number in range(1000)]
    with service(brightness_model(folder), soaked) as (port, process):
        memory, tenths = [size_of(process)], []
        for tenth in range(10):
            tenths.append(send(port, parts_of(pictures, soak // 10, f"soak{tenth}"), 4))
            memory.append(size_of(process))
    judged, known = [*loads.values(), overload], [verdict(number) for number in range(1000)]
    acknowledged = sum(len(load.records) for load in [*judged, *tenths])
    wrong_ones = sum(wrong(load, verdicts) for load in judged) + sum(wrong(load, known) for load in tenths)
    lost_ones = lost(records, judged) + lost(soaked, tenths)
    best = max(load.rate for load in loads.values())
    sections = [
        f"{len(images)} images of {sum(map(len, images)) / len(images) / 1e3:.0f} kB in turn, {count} parts a row. The "
        f"service reaches {best / loop.rate:.2f} of the plain loop.",
        table(["", "parts a second", "p50, ms", "p99, ms"], rows),
        f"Overload, 160 clients that send as fast as they can into a queue of 16: {sum(overload.statuses.values())} "
        f"requests, {overload.statuses[201]} with a record, {overload.statuses[503]} refused with 503, "
        f"{sum(overload.statuses.values()) - overload.statuses[201] - overload.statuses[503]} others. "
        f"/healthz meanwhile: p50 {1000 * quantile(seconds, 0.5):.0f} ms, p99 {1000 * quantile(seconds, 0.99):.0f} ms. "
        f"Of all {acknowledged} acknowledged parts of this page {wrong_ones} have another verdict than in the plain "
        f"loop, and {lost_ones} have no record, or two.",
        f"Soak of {sum(len(load.records) for load in tenths)} parts, {tenths[-1].rate:.0f} a second, on small images "
        "by a model that costs next to nothing: memory and open descriptors after each tenth.",
        table(
            ["after", "memory, MiB", "descriptors"],
            [[str(tenth), f"{mebibytes:.0f}", str(number)] for tenth, (mebibytes, number) in enumerate(memory)],
        ),
    ]
    page("serving", "What the service costs", sections, write=arguments.write)


if __name__ == "__main__":
    main()
