"""Trainings killed at random moments and resumed, against one that was left alone: the same bytes or not.

Ten `fast` trainings are killed with SIGKILL, each at a random (seeded) moment of an uninterrupted training's time,
and resumed to their end. Their model files, and that of another checkout with the data in another folder, are
compared with the uninterrupted one byte by byte. Every training begins with an empty feature cache, which its
resumption finds as it was left.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import ROOT, draw_parts, page, parser, table

TRAIN = (
    "import sys, flawsmith; flawsmith.train(sys.argv[1], out=sys.argv[2], preset='fast', "
    "resume=sys.argv[4] == 'resume', "
    "set={'epochs': int(sys.argv[3])}, quiet=True); print(flawsmith.__file__)"
)
SIZE = (128, 128)
MODEL = "model.flaw"


@dataclass(frozen=True)
class Training:
    """One training: its data, its epochs, where it works, and the sources that it runs."""

    data: Path
    folder: Path
    epochs: int
    sources: Path = ROOT / "src"

    @property
    def run(self) -> Path:
        return self.folder / "parts"

    def start(self, *, resume: bool = False) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        how = "resume" if resume else "anew"
        return subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(self.data), str(self.run), str(self.epochs), how],
            env={**os.environ, "PYTHONPATH": str(self.sources), "FLAWSMITH_CACHE": str(self.folder / "cache")},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *, resume: bool = False) -> str:
        """Run to the end; SHA-256 of the model file.

        Raises:
            SystemExit: it failed, or other sources were run.
        """
        process = self.start(resume=resume)
        output, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"training failed ({process.returncode}):\n{errors[-2000:]}")
        if not Path(output.strip().splitlines()[-1]).is_relative_to(self.sources):
            raise SystemExit(f"another flawsmith than that in {self.sources} was run: {output}")
        return hashlib.sha256((self.run / MODEL).read_bytes()).hexdigest()

    def kill_after(self, seconds: float) -> str:
        """Start, kill at that moment, and say what the run folder then held."""
        process = self.start()
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        return self.found()

    def found(self) -> str:
        """How far the training has come, by what lies on disk."""
        if (self.run / MODEL).exists():
            return "the model file"
        metrics = self.run / "metrics.jsonl"
        if metrics.exists():
            return f"{len(metrics.read_text().splitlines())} epochs"
        if (self.run / "checkpoints").exists():
            return "the centres"
        if list((self.folder / "cache").rglob("*.npy")):
            return "features"
        return "the configuration" if self.run.exists() else "nothing"


def other_checkout(folder: Path) -> tuple[Path, str]:
    """The sources in another place: a clone, or a copy where the working tree has changes; and which it is."""
    status = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "src"]
    changes = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    target = folder / "checkout"
    if changes.strip():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "src", target / "src", ignore=ignored)
        return target / "src", "a copy of the working tree (which has changes)"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)], check=True)
    return target / "src", "a clone"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--images", type=int, default=40)
    arguments.add_argument("--epochs", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = arguments.parse_args()
    kills, images, epochs = (1, 12, 2) if args.quick else (args.kills, args.images, args.epochs)
    rng = np.random.default_rng(args.seed)
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = draw_parts(folder / "data" / "bracket", images, size=SIZE)
        start = time.monotonic()
        reference = Training(data, folder / "uninterrupted", epochs).finish()
        duration = time.monotonic() - start
        for number in range(kills):
            moment = float(rng.uniform(0, duration))
            training = Training(data, folder / f"killed-{number}", epochs)
            state = training.kill_after(moment)
            digest = training.finish(resume=True)
            rows.append((number + 1, f"{moment:.1f}", state, digest[:12], "yes" if digest == reference else "**no**"))
            print(*rows[-1], file=sys.stderr, flush=True)
        sources, kind = other_checkout(folder)
        elsewhere = shutil.copytree(data, folder / "somewhere" / "else" / data.name)
        digest = Training(elsewhere, folder / "other", epochs, sources).finish()
    same = "the same bytes" if digest == reference else "**other bytes**"
    equal = sum(row[-1] == "yes" for row in rows)
    sections = [
        f"{images} rendered parts of {SIZE[1]}×{SIZE[0]} pixels, `fast` with {epochs} epochs. The "
        "uninterrupted training took "
        f"{duration:.1f} s; its model file has the SHA-256 {reference[:12]}….",
        f"## Killed and resumed: {equal} of {kills} with the same bytes\n\n"
        + table(("kill", "after, s", "found on disk", "SHA-256 after resuming", "same bytes"), rows),
        f"## From another checkout\n\n{kind[0].upper()}{kind[1:]} in another folder, with the images in "
        "another folder: "
        f"{digest[:12]}…, {same}.",
    ]
    page("resume", "Killed and resumed", sections, write=args.write)


if __name__ == "__main__":
    main()
