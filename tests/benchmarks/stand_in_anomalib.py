"""Stands in for the runner: the same files in and out, without anomalib. Run by path, with numpy alone.

Its map is the distance of an image from the mean training image, its score the map's largest value. STAND_IN names a
way to fail.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

VERSIONS = {"anomalib": "9.9.0", "python": "3.99"}
MODE = os.environ.get("STAND_IN", "")


def distances(images: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(images, height, width)."""
    return np.abs(images - mean).mean(axis=1).astype(np.float32)


def answer(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    images = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("train", "calibration", "test")}
    start = time.perf_counter()
    mean = images["train"].mean(axis=0)
    for name in ("calibration", "test"):
        maps = distances(images[name], mean)
        if MODE == "nan" and name == "test":
            maps[0, 0, 0] = np.nan
        if MODE == "small":
            maps = maps[:, ::2]
        np.save(folder / f"{name}_maps.npy", maps)
        np.save(folder / f"{name}_scores.npy", maps.max(axis=(1, 2)).astype(np.float64))
    seconds = time.perf_counter() - start
    said = {
        "contract": request["contract"],
        "versions": VERSIONS,
        "train_seconds": seconds,
        "calibration_seconds": seconds,
        "test_seconds": seconds,
        "latency_seconds": [0.001] * len(request["timed"]),
        "model_bytes": mean.nbytes,
    }
    if MODE != "silent":
        (folder / "answer.json").write_text(json.dumps(said))


def main() -> int:
    if MODE == "refuses":
        print("a warning of no importance\nthere is no teacher here: fetch it", file=sys.stderr)
        return 3
    if MODE == "killed":
        os.kill(os.getpid(), 9)
    if MODE == "crashes":
        raise ValueError("two by two is five")
    if sys.argv[1] == "probe":
        models = [] if MODE == "old" else ["padim", "patchcore"]
        print("a greeting of a library")
        print(json.dumps({"contract": 7 if MODE == "foreign" else 1, "models": models, "versions": VERSIONS}))
    else:
        answer(Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
