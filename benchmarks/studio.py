"""How quick the studio is with 10,000 records and 2,000 parts to review, at the server and in a browser.

    flawsmith demo --out demo
    python benchmarks/studio.py --model demo/run/model.flaw --images demo/parts/bracket/test --quick
    python benchmarks/studio.py --model demo/run/model.flaw --images demo/parts/bracket/test --write

The service is a process of its own. Pages and what they ask are timed one request at a time; the browser is Debian's
Chromium, which playwright drives.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from common import page, parser, table

from flawsmith.line.pictures import Pictures, Retention
from flawsmith.line.record import Label, Record
from flawsmith.line.store import Store
from flawsmith.runtime.bundle import Bundle
from flawsmith.runtime.files import find_images
from serving import quantile, service

LINE = "line1"
BEGIN = (datetime.now(timezone.utc) - timedelta(hours=7)).isoformat()
ASKED = {
    "lines": ["/v1/lines", f"/v1/lines/{LINE}/counts?minutes=1440"],
    "limit": [f"/v1/lines/{LINE}", f"/v1/lines/{LINE}/limit/scores"],
    "try": [],
    "run": [f"/v1/lines/{LINE}", f"/v1/lines/{LINE}/inspections?limit=24", f"/v1/lines/{LINE}/counts?minutes=10"],
    "review": [f"/v1/lines/{LINE}/reviews?limit=50", f"/v1/lines/{LINE}/reviews/evidence"],
    "models": [f"/v1/lines/{LINE}/models", f"/v1/audit?line={LINE}&limit=30"],
    "settings": ["/v1/settings"],
}
"""What each page asks when it is opened, images aside."""
FILLED = {
    "lines": "[data-testid='lines.card'] dl dt",
    "limit": "[data-testid='limit.sentence']",
    "try": "[data-testid='try.drop']",
    "run": "rate-chart canvas",
    "review": "[data-testid='review.says']",
    "models": "[data-testid='models.row']",
    "settings": "[data-testid='settings.versions']",
}
"""What stands on a page once it is filled."""
MOVES = """
async (count) => {
  const chart = document.querySelector("limit-chart");
  const times = [];
  for (let step = 0; step < count; step++) {
    const rank = 1 + (step % Math.max(2, Number(chart.querySelector(".reject").getAttribute("aria-valuemax"))));
    chart.dispatchEvent(new CustomEvent("move", { detail: { kind: "reject", rank, isBeyond: false } }));
    times.push(await new Promise(requestAnimationFrame));
  }
  return times;
}
"""


def address(name: str) -> str:
    """Where a page is."""
    return {"lines": "/studio/", "settings": "/studio/settings"}.get(name, f"/studio/lines/{LINE}/{name}")


def fill(folder: Path, model: Path, images: Sequence[bytes], count: int, to_review: int) -> None:
    """Write records as a line would have over seven hours, and reviews of a quarter of those that were drawn."""
    rng = np.random.default_rng(0)
    decision = Bundle.load(model).spec.decision
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    pictures, store = Pictures(folder / "images", Retention(keep_free=0, passes=1)), Store(folder)
    names = [hashlib.sha256(content).hexdigest() for content in images]
    for name, content in zip(names, images, strict=True):
        pictures.keep(name, content, "reject")
    begin = datetime.fromisoformat(BEGIN)
    scores = decision.deciding_limit * rng.gamma(9.0, 0.075, count)
    records = []
    for number, deciding in enumerate(scores.tolist()):
        received = begin + timedelta(seconds=number * 25_000 / count)
        verdict = decision.verdict_of(deciding)
        records.append(
            Record(
                line=LINE,
                source="http",
                part_id=f"P-{number}",
                received=received.isoformat(timespec="microseconds"),
                clock=0.0,
                image_sha256=names[number % len(names)],
                verdict=verdict,
                score=deciding,
                deciding=deciding,
                times_limit=decision.times_limit(deciding),
                limit=decision.deciding_limit,
                review_limit=decision.review_limit,
                limits=decision.identity,
                model_sha256=sha256,
                timing={"wait": 1.0, "network": 20.0},
                inclusion=1.25 * to_review / count if rng.random() < 1.25 * to_review / count else None,
            )
        )
    stored = store.add(records)
    drawn = [record for record in stored if record.inclusion is not None]
    for record in drawn[to_review:]:
        label: Label = "flawed" if record.verdict == "reject" else "good"
        store.review(record.id, label, who="anna", line=LINE)
    store.close()


def ask(port: int, path: str, times: int) -> list[float]:
    """Seconds that an answer takes, each time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        seconds.append(time.perf_counter() - begin)
        assert response.status == 200, f"{path}: {response.status}"
    connection.close()
    return seconds


def server_rows(port: int, times: int) -> list[list[str]]:
    """Milliseconds of each page and of all that it asks, one after the other."""
    rows = []
    for name, paths in ASKED.items():
        frame = ask(port, address(name), times)
        answers = [ask(port, path, times) for path in paths]
        together = [sum(each) for each in zip(frame, *answers, strict=True)]
        slowest = max((quantile(seconds, 0.5) for seconds in answers), default=0.0)
        cells = (quantile(frame, 0.5), slowest, quantile(together, 0.5), quantile(together, 0.95))
        rows.append([name, *(f"{1000 * seconds:.0f}" for seconds in cells)])
    return rows


def browser_rows(port: int, times: int) -> tuple[list[list[str]], list[float]]:
    """Milliseconds until a page is filled in a browser, the first time and later; and seconds between frames of the
    limit page while its limit moves."""
    from playwright.sync_api import sync_playwright

    rows = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        viewed = browser.new_page(viewport={"width": 1280, "height": 720})
        for name in FILLED:
            seconds = []
            for _ in range(times):
                begin = time.perf_counter()
                viewed.goto(f"http://127.0.0.1:{port}{address(name)}")
                viewed.wait_for_selector(FILLED[name])
                seconds.append(time.perf_counter() - begin)
            rows.append([name, f"{1000 * seconds[0]:.0f}", f"{1000 * quantile(seconds[1:], 0.5):.0f}"])
        viewed.goto(f"http://127.0.0.1:{port}{address('limit')}")
        viewed.wait_for_selector(FILLED["limit"])
        viewed.evaluate(MOVES, 20)
        frames = viewed.evaluate(MOVES, 40 if times < 5 else 200)
        browser.close()
    return rows, (np.diff(frames) / 1000).tolist()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, required=True, help="a model file")
    options.add_argument("--images", type=Path, required=True, help="a folder of images")
    arguments = options.parse_args()
    count, to_review, times = (1000, 200, 3) if arguments.quick else (10_000, 2000, 20)
    records = Path(tempfile.mkdtemp())
    images = [path.read_bytes() for path in find_images(arguments.images)[:40]]
    fill(records, arguments.model, images, count, to_review)
    with service(arguments.model, records) as (port, _):
        server = server_rows(port, times)
        browser, frames = browser_rows(port, max(3, times // 4))
    sections = [
        f"{count:,} records of one line over seven hours, {to_review:,} of them waiting for a review.",
        "What the server takes, in milliseconds: a page's frame, the slowest thing it asks, and all of it, one by one.",
        table(["page", "frame", "slowest", "all, median", "all, 95 of 100"], server),
        "What a browser takes until a page is filled, in milliseconds, images aside.",
        table(["page", "first time", "later"], browser),
        f"The limit page while the limit moves: {1 / quantile(frames, 0.5):.0f} frames a second in the median, "
        f"{1 / quantile(frames, 0.95):.0f} in the slowest 5 of 100.",
    ]
    page("studio", "How quick the studio is", sections, write=arguments.write)


if __name__ == "__main__":
    main()
