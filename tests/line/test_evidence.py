"""What reviews prove, against scipy's Beta law, and what they must not be taken for."""

from __future__ import annotations

import pytest
from scipy.stats import beta

from flawsmith.line.limits import evidence, upper_bound
from flawsmith.line.record import Record
from flawsmith.line.store import AuditEntry

WAITING = {"band": 0, "passes": 0, "rejects": 0}


@pytest.mark.parametrize(("wrong", "looked_at"), [(0, 1), (0, 300), (3, 40), (41, 61), (7, 7)])
def test_bound_is_clopper_and_pearsons(wrong: int, looked_at: int) -> None:
    exact = 1.0 if wrong == looked_at else beta.ppf(0.95, wrong + 1, looked_at - wrong)

    assert upper_bound(wrong, looked_at) == pytest.approx(exact, abs=1e-9)


def part(number: int, draw: str, label: str, *, limits: str = "now", who: str = "anna") -> tuple[Record, AuditEntry]:
    record = Record(
        id=number,
        line="bolt",
        source="http",
        received="",
        clock=0.0,
        image_sha256="",
        verdict="pass",
        limits=limits,
        model_sha256="m",
    )
    facts = {"record": number, "label": label, "draw": draw}
    return record, AuditEntry(number, "2026-11-30T10:00:00", "review", who, "bolt", facts, "")


def of(labelled: list[tuple[Record, AuditEntry]], said: list[AuditEntry] | None = None) -> object:
    entries = [entry for _, entry in reversed(labelled)] if said is None else said
    return evidence(labelled, entries, WAITING, limits="now", model="m", since="2026-11-30")


def test_parts_of_the_band_prove_nothing_of_passes() -> None:
    labelled = [part(1, "band", "flawed"), part(2, "passes", "good"), part(3, "passes", "unclear")]

    misses = of(labelled).misses

    assert (misses.wrong, misses.looked_at) == (0, 1)
    assert misses.at_most_of_1000 == pytest.approx(950)


def test_verdicts_by_other_limits_prove_nothing_of_those_in_use() -> None:
    assert of([part(1, "passes", "flawed", limits="before")]).misses.looked_at == 0


def test_overkill_counts_good_parts_among_rejects() -> None:
    labelled = [part(n, "rejects", "good" if n < 4 else "flawed") for n in range(10)]

    overkill = of(labelled).overkill

    assert overkill.words.startswith("Overkill: 4 of 10 rejects looked at were good. 95 % sure: no more than ")


def test_second_opinions_are_the_last_words_of_two_people() -> None:
    said = [
        part(1, "band", label, who=who)[1]
        for label, who in (("good", "anna"), ("flawed", "otto"), ("good", "otto"), ("withdrawn", "mia"))
    ] + [part(2, "band", "good")[1]]

    result = of([], list(reversed(said)))

    assert (result.twice, result.agreed) == (1, 1)
