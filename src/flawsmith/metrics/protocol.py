"""What is resized, cropped, pooled and averaged: the rules of an evaluation as data, every deviation a named switch.

``clean`` is the default: whole images in their own pixels, exact figures. ``papers`` is how the released code of a
method measures, so that a figure can stand beside a published table; ``PAPERS`` says what that means for each method.
docs/research/protocol.md is the same for readers, word for word.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flawsmith.runtime.errors import FlawsmithError, why_refused

Name = Literal["clean", "papers", "custom"]
Pro = Literal["exact", "dilated_200", "per_image_200"]
MaskRule = Literal["nearest", "bilinear_exact_one", "bicubic_exact_one", "bilinear_above_zero"]

CHOICES = ("clean", "papers")
"""The protocols to choose from; one with other switches calls itself ``custom``."""

_ALWAYS = (
    "All test images count once. Masks are binarised above zero at their own size; one of another size than its image "
    "is brought to it by the nearest pixel, and noted. Pixel figures pool the pixels of all test images, good ones "
    "too. Pixel AUROC and AP are exact. Regions are 8-connected, and their overlap counts to a false-positive rate of "
    "0.3. Flawed images without a mask count for the image figures alone. sPRO (MVTec LOCO AD) is always exact, in the"
    " image's own pixels, uninspected ones lowest, to a false-positive rate of 0.05; logical and structural anomalies "
    "apart, each with all good images, their mean and the value pooled over both. Rates are those of the model's own "
    "verdicts, at limits stored before a test image was seen."
)


class Meaning(NamedTuple):
    """What one setting of a switch does, and who measures so."""

    says: str
    source: str


class Protocol(BaseModel):
    """The rules of an evaluation. The defaults are ``clean``.

    Raises:
        ValueError: switches that contradict each other, or a name that does not fit them.

    >>> Protocol().name, Protocol().deviations()
    ('clean', {})
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field("clean", description="clean exactly where no switch deviates.")
    pixels: Literal["original", "network"] = Field("original", description="Pixels in which maps and masks meet.")
    uninspected: Literal["lowest", "excluded"] = Field("lowest", description="What a crop cut away.")
    mask: MaskRule = Field(
        "nearest", description="How a mask is brought to another size, and what counts as flawed then."
    )
    pro: Pro = Field("exact", description="The figure of region overlap.")
    image_score: Literal["model", "map_maximum"] = Field("model", description="The score of an image.")
    image_label: Literal["folder", "mask"] = Field("folder", description="What makes a test image flawed.")
    loco_mean: Literal["loco", "pooled"] = Field("loco", description="What is called the mean image AUROC of LOCO.")
    rounding: Literal["none", "three_decimals"] = Field("none", description="Rounding of image and pixel AUROC.")

    @model_validator(mode="after")
    def _check(self) -> Protocol:
        if self.pixels == "network" and self.uninspected == "lowest":
            raise ValueError("pixels=network holds no uninspected pixel, so it goes with uninspected=excluded alone")
        if self.pixels == "original" and self.mask != "nearest":
            raise ValueError(f"mask={self.mask} resizes to the network's input, so it goes with pixels=network alone")
        if (self.name == "clean") == bool(self.deviations()):
            raise ValueError(f"a protocol with the deviations {self.deviations()} cannot be called {self.name}")
        return self

    def deviations(self) -> dict[str, str]:
        """The switches that are not as in ``clean``, with what they are set to."""
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in SWITCHES if getattr(self, name) != fields[name].default}

    def caveats(self) -> list[str]:
        """What must stand beside every figure: nothing for ``clean``, else a line that names all deviations."""
        switches = ", ".join(f"{name}={value}" for name, value in self.deviations().items())
        line = f"PROTOCOL {self.name.upper()}: not comparable with clean figures, because {switches}"
        return [line] if switches else []

    def describe(self) -> str:
        """The rules in words."""
        return " ".join([_ALWAYS, *(MEANINGS[name][getattr(self, name)].says for name in SWITCHES)])


SWITCHES: tuple[str, ...] = tuple(name for name in Protocol.model_fields if name != "name")

MEANINGS: Mapping[str, Mapping[str, Meaning]] = {
    "pixels": {
        "original": Meaning("Maps are brought to the image's own pixels; masks stay as they are.", "MVTec LOCO AD"),
        "network": Meaning(
            "Maps stay at the network's input; masks are resized and cropped as the image was; letterbox bars are "
            "no pixels.",
            "released code of GLASS, PBAS, AAND; SLSG except for sPRO",
        ),
    },
    "uninspected": {
        "lowest": Meaning(
            "Pixels the model does not look at count with the lowest score, so a flaw there is not found.", "Flawsmith"
        ),
        "excluded": Meaning(
            "Pixels the model does not look at are left out; an image keeps its label, and one whose flaw is lost "
            "counts as free of flawed pixels.",
            "released code of GLASS, PBAS (centre crop)",
        ),
    },
    "mask": {
        "nearest": Meaning("A mask that must be resized takes the nearest pixel.", "released code of AAND (> 0.5)"),
        "bilinear_exact_one": Meaning(
            "Masks are resized bilinearly in 8 bits; only pixels that stay at 255 are flawed, which erodes them.",
            "released code of GLASS, PBAS on MVTec AD, MPDD, WFDD",
        ),
        "bicubic_exact_one": Meaning(
            "Masks are resized by Pillow's default, bicubic, in 8 bits; only pixels that stay at 255 are flawed.",
            "released code of SLSG",
        ),
        "bilinear_above_zero": Meaning(
            "Masks are resized bilinearly in float; every pixel above 0 is flawed, which dilates them.",
            "released code of GLASS, PBAS on VisA",
        ),
    },
    "pro": {
        "exact": Meaning(
            "AUPRO is exact: every distinct score is a threshold, and the curve is interpolated at its limit.",
            "Bergmann et al., IJCV 2021",
        ),
        "dilated_200": Meaning(
            "PRO of GLASS and PBAS: 200 even thresholds between the extremes of all maps; predictions are dilated by "
            "5×5 pixels for the overlap alone; false-positive rates below 0.3 are stretched to 0..1. It is inflated.",
            "released code of GLASS, PBAS",
        ),
        "per_image_200": Meaning(
            "PRO of RD4AD: 200 even thresholds between the extremes of each flawed image's map; false-positive rates "
            "below 0.3 over their largest; the mean over flawed images.",
            "function in the released code of AAND, whose call is disabled",
        ),
    },
    "image_score": {
        "model": Meaning("The image score is the model's own.", "each paper"),
        "map_maximum": Meaning("The image score is the largest value of the map.", "evaluation kit of MVTec LOCO AD"),
    },
    "image_label": {
        "folder": Meaning("An image is flawed where its folder or the data set's table says so.", "each data set"),
        "mask": Meaning(
            "A flawed image whose resized mask marks no pixel counts as good.",
            "released code of AAND (maximum of the mask)",
        ),
    },
    "loco_mean": {
        "loco": Meaning(
            "The LOCO mean is half the sum of logical and structural.", "Bergmann et al., IJCV 2022"
        ),
        "pooled": Meaning(
            "What is called the LOCO mean of image AUROC is the AUROC pooled over all anomalies.",
            "released code of SLSG",
        ),
    },
    "rounding": {
        "none": Meaning("Nothing is rounded.", "Flawsmith"),
        "three_decimals": Meaning("Image and pixel AUROC are rounded to three decimals.", "released code of AAND"),
    },
}  # fmt: skip
"""What each setting of each switch means."""

CLEAN = Protocol()

_NETWORK = {"pixels": "network", "uninspected": "excluded"}
_INFLATED = {**_NETWORK, "mask": "bilinear_exact_one", "pro": "dilated_200"}
_TEACHER = {**_NETWORK, "pro": "per_image_200", "image_label": "mask", "rounding": "three_decimals"}
PAPERS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "glass": {"": _INFLATED, "visa": {**_INFLATED, "mask": "bilinear_above_zero"}},
    "pbas": {"": _INFLATED, "visa": {**_INFLATED, "mask": "bilinear_above_zero"}},
    "aand": {"": _TEACHER},
    "rd4ad": {"": _TEACHER},
    "slsg": {
        "": {**_NETWORK, "mask": "bicubic_exact_one"},
        "mvtec_loco": {**_NETWORK, "mask": "bicubic_exact_one", "loco_mean": "pooled"},
    },
    "": {"": _NETWORK},
}
"""What ``papers`` means, by method and by layout of the data; ``""`` stands for any other. A method that is not named
is measured in the network's pixels, and as in ``clean`` in all else."""


def papers(method: str, layout: str) -> Protocol:
    """How the released code of a method measures on data of a layout.

    >>> papers("glass", "visa").deviations()["mask"]
    'bilinear_above_zero'
    """
    by_layout = PAPERS.get(method, PAPERS[""])
    return Protocol.model_validate({"name": "papers", **by_layout.get(layout, by_layout[""])})


def choose_protocol(name: str, *, method: str, layout: str, changes: Mapping[str, Any] | None = None) -> Protocol:
    """A protocol by name, with single switches changed.

    Args:
        name: ``clean`` or ``papers``.
        method: name of the model's method.
        layout: layout of the data, such as ``mvtec``.
        changes: switches to set, by name. A protocol that is neither of the two then calls itself ``custom``.

    Raises:
        FlawsmithError: an unknown name, switch or setting, or switches that contradict each other.
    """
    if name not in CHOICES:
        raise FlawsmithError(f"no protocol is called {name!r}: choose clean or papers with --protocol")
    base = CLEAN if name == "clean" else papers(method, layout)
    chosen = {switch: getattr(base, switch) for switch in SWITCHES}
    for switch, value in (changes or {}).items():
        _check_choice(switch, value)
        chosen[switch] = value
    for known in (base, CLEAN):
        if all(getattr(known, switch) == value for switch, value in chosen.items()):
            return known
    try:
        return Protocol.model_validate({"name": "custom", **chosen})
    except ValidationError as error:
        raise FlawsmithError(
            f"these switches of the protocol contradict each other: {why_refused(error.errors()[0])}"
        ) from error


def _check_choice(switch: str, value: Any) -> None:
    """A switch and a setting of it that exist."""
    if switch not in SWITCHES:
        close = get_close_matches(switch, SWITCHES, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise FlawsmithError(f"the protocol has no switch called {switch!r}: {hint}known are {', '.join(SWITCHES)}")
    known = get_args(Protocol.model_fields[switch].annotation)
    if value not in known:
        raise FlawsmithError(f"--set {switch}={value} is not possible: {switch} is one of {', '.join(known)}")
