"""The files of published figures: what a file says, and reading one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flawsmith.runtime.errors import FlawsmithError

DATASETS: Mapping[str, str] = {
    "mvtec_ad": "MVTec AD",
    "mvtec_loco": "MVTec LOCO AD",
    "mvtec_3d": "MVTec 3D-AD, photographs alone",
    "visa": "VisA",
    "mpdd": "MPDD",
    "wfdd": "WFDD",
    "btad": "BeanTech AD",
    "mad_man": "MAD-man",
    "mad_sys": "MAD-sys",
    "four_sets": "mean of MVTec AD, VisA, MPDD and WFDD",
    "two_weak_sets": "mean of MAD-man and MAD-sys",
}
"""The data sets, and the means over several of them, with their names in words."""

Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Kind = Literal["result", "ablation", "released"]
Metric = Literal[
    "image_auroc",
    "image_auroc_logical",
    "image_auroc_structural",
    "image_auroc_loco_mean",
    "image_ap",
    "pixel_auroc",
    "pixel_ap",
    "aupro",
    "spro_loco_mean",
]
Quantity = Literal[
    "images_per_second",
    "ms_per_image",
    "training_hours",
    "training_ms_per_image",
    "parameters_millions",
    "gflops",
    "memory_megabytes",
]


class Frozen(BaseModel):
    """Data that nobody changes, with no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProtocolNote(Frozen):
    """One way in which a paper measures, and what it touches."""

    text: str = Field(description="The note, in sentences.")
    metrics: tuple[Metric, ...] = Field(default=(), description="The figures it touches; all if empty.")
    datasets: tuple[str, ...] = Field(default=(), description="The data sets it touches; all if empty.")

    def touches(self, *, dataset: str | None = None, metrics: Collection[str] = ()) -> bool:
        """Whether it says something of this data set and one of these figures; None and empty stand for any."""
        of_dataset = dataset is None or not self.datasets or dataset in self.datasets
        return of_dataset and (not metrics or not self.metrics or not set(metrics).isdisjoint(self.metrics))


class PublishedRow(Frozen):
    """A method in a table."""

    method: str = Field(description="As the paper names it.")
    variant: str | None = Field(default=None, description="The variant or the setting of the ablation.")
    notes: tuple[str, ...] = Field(default=(), description="What to bear in mind about this row.")
    figures: dict[Metric, tuple[Share | None, ...]] = Field(
        description="By metric, a value in [0, 1] for each column of the table, None where the paper has none."
    )


class PublishedTable(Frozen):
    """A table of a paper, or what its text says in figures."""

    source: str = Field(description="Number of the table, or where else the figures stand.")
    section: str | None = Field(default=None, description="Section of the paper.")
    subject: str = Field(description="What is compared.")
    kind: Kind = Field(description="The paper's results, its ablations, or what its released code or weights give.")
    notes: tuple[str, ...] = Field(default=(), description="What to bear in mind about the table.")
    columns: tuple[Annotated[str, Field(pattern=r"^\w+/\w+$")], ...] = Field(
        description="Data set and category of each column, as in visa/candle or visa/mean."
    )
    rows: tuple[PublishedRow, ...] = Field(description="The methods.")

    @model_validator(mode="after")
    def _is_rectangular(self) -> PublishedTable:
        for column in self.columns:
            if column.split("/")[0] not in DATASETS:
                raise ValueError(f"no data set is called {column.split('/')[0]!r}")
        for row in self.rows:
            for metric, values in row.figures.items():
                if len(values) != len(self.columns):
                    raise ValueError(
                        f"{row.method}, {metric}: {len(values)} values for {len(self.columns)} columns of {self.source}"
                    )
        return self


class PublishedCost(Frozen):
    """A speed, a size or a duration that a paper prints."""

    method: str = Field(description="As the paper names it.")
    variant: str | None = Field(default=None, description="The variant.")
    quantity: Quantity = Field(description="What is measured, with its unit.")
    value: float = Field(gt=0, description="In the unit of the quantity.")
    device: str | None = Field(default=None, description="The processor it was measured on.")
    batch_size: int | None = Field(default=None, gt=0, description="Images a batch, if the paper says so.")
    source: str = Field(description="Number of the table, or where else it stands.")
    section: str | None = Field(default=None, description="Section of the paper.")
    notes: tuple[str, ...] = Field(default=(), description="What to bear in mind.")


class PublishedPaper(Frozen):
    """A paper with all of its figures."""

    name: str = Field(description="Short name, that of its file.")
    title: str = Field(description="Its title.")
    reference: str = Field(description="Authors, method, place and year.")
    method: str = Field(description="The method that it proposes.")
    comparators: str = Field(description="How its figures of other methods came about.")
    protocol: tuple[ProtocolNote, ...] = Field(description="How it measures.")
    remarks: tuple[str, ...] = Field(description="Where it contradicts itself or another paper.")
    tables: tuple[PublishedTable, ...] = Field(description="Its tables.")
    costs: tuple[PublishedCost, ...] = Field(description="Its speeds and sizes.")


def parse_paper(text: str, file: str) -> PublishedPaper:
    """One paper's file.

    Args:
        text: its content.
        file: its name, for messages.

    Raises:
        FlawsmithError: no YAML, an unknown key, or a value that is missing or out of range; the line says where.
    """
    try:
        return PublishedPaper.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its head"
        raise FlawsmithError(f"{file}, {where}: {first['msg']}; correct it or install flawsmith anew") from error
    except yaml.YAMLError as error:
        raise FlawsmithError(f"{file} is no intact YAML; correct it or install flawsmith anew") from error
