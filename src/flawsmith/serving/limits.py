"""What moving a limit takes, in one answer: a page then needs no further one while it moves."""

from __future__ import annotations

from fastapi import APIRouter

from flawsmith.line.limits import LimitScores, limit_scores
from flawsmith.serving.service import PROBLEMS, InService, LineName, allowed

limits = APIRouter(prefix="/v1", dependencies=[allowed("operator")], responses=PROBLEMS)
_RECENT = 1000


@limits.get("/lines/{line}/limit/scores")
def scores(line: LineName, service: InService) -> LimitScores:
    """Scores behind the limits, what each step is worth, and what the latest 1,000 parts would become."""
    model, store = service.model(line), service.site.store
    recent = store.page(line, count=_RECENT)
    return limit_scores(
        model,
        recent=recent,
        has_image=[service.site.pictures.has(record.image_sha256) for record in recent],
        labelled=store.labelled(line),
        picked=store.entries(line=line, kind="picked", count=_RECENT),
        changes=store.entries(line=line, kind="limit", count=_RECENT),
    )
