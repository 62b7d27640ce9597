"""STUB, replaced by the merge."""

import dataclasses

from flawsmith.runtime.errors import FlawsmithError


def with_groups(dataset, by="auto"):
    if by not in ("auto", "none", "folder"):
        raise FlawsmithError(f"{by} column")
    samples = tuple(
        dataclasses.replace(s, group=s.image.parent.name if by == "folder" else "") for s in dataset.samples
    )
    return dataclasses.replace(dataset, samples=samples, grouped_by="sub-folder" if by == "folder" else "")
