"""Options of ``flawsmith train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Named here once more, because the registry that knows them imports torch; a test compares the two.
Method = Annotated[str, typer.Option(help="The method: aand, glass, padim, patchcore, pbas, rd4ad or slsg.")]
Preset = Annotated[
    str | None,
    typer.Option(help="fast (the default), paper or official (the default on a GPU); slsg: official-loco too."),
]
Backbone = Annotated[
    str | None,
    typer.Option(help="efficientnet_lite0 (the default, needs no download), any timm name, a weights file, NAME@FILE."),
]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the method, such as epochs=20."),
]
Out = Annotated[Path | None, typer.Option(help="The run folder; by default runs/<category>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted.")]
TrainingEngine = Annotated[str, typer.Option(help="onnxruntime or openvino: what training and inspection run on.")]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16, of that engine.")]
Select = Annotated[str, typer.Option(help="last, or best on held-out good images and flaws forged on them.")]
Oracle = Annotated[
    bool,
    typer.Option("--oracle", help="Choose the checkpoint on labelled test data; everything it gives is stamped so."),
]
Alpha = Annotated[float, typer.Option(help="Share of good parts that may be rejected.")]
ReviewAlpha = Annotated[
    float | None, typer.Option(help="Share of good parts that may be sent to review; no such verdict by default.")
]
Textures = Annotated[
    str | None,
    typer.Option(help="What flaws are forged from: a folder of pictures, self, or procedural (the default)."),
]
Foregrounds = Annotated[
    str | None, typer.Option(help="Folder of masks of where the part is, for --set foreground=files.")
]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that forge flaws; by default two.")]
Baseline = Annotated[
    str, typer.Option(help="patchcore or padim, trained beside the model to see whether learning paid, or none.")
]
Fraction = Annotated[float, typer.Option(help="Share of the images to learn from that is used.")]
Bits = Annotated[int | None, typer.Option(help="Significant bits of a camera stored in 16-bit files, such as 12.")]
Accelerator = Annotated[str, typer.Option(help="Lightning's accelerator, such as cpu or gpu.")]
Devices = Annotated[
    str,
    typer.Option(help="Lightning's devices, which share every batch: a number, a list, -1 or auto."),
]
Strategy = Annotated[str, typer.Option(help="Lightning's strategy; ddp for several devices.")]
