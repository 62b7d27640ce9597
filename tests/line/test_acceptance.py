"""An acceptance study against scikit-learn's kappa, AIAG's bounds and what may not be placed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from flawsmith.line.acceptance import Placement, Plan, Study, result_of
from flawsmith.runtime.errors import FlawsmithError

NUMBERS = itertools.count(1)


def placed(part: str, truth: str, verdict: str, deciding: float = 0.5) -> Placement:
    number = next(NUMBERS)
    facts = {"part": part, "truth": truth, "verdict": verdict, "deciding": deciding, "image_sha256": f"{number:064d}"}
    return Placement.model_validate({"id": number, **facts})


def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    placements = [
        placed(str(number), truth, rng.choice(["pass", "review", "reject"], p=odds))
        for number, (truth, odds) in enumerate([("good", [0.8, 0.1, 0.1]), ("flawed", [0.1, 0.2, 0.7])] * 20)
    ]

    stopped = [placement.verdict != "pass" for placement in placements]
    expected = cohen_kappa_score([placement.truth == "flawed" for placement in placements], stopped)

    assert result_of(placements, 1.0).kappa == pytest.approx(expected)


def test_a_part_counts_as_right_when_it_is_so_every_time() -> None:
    result = result_of(
        [
            placed("g1", "good", "pass", 0.4),
            placed("g1", "good", "pass", 0.6),
            placed("g2", "good", "pass"),
            placed("g2", "good", "review"),
            placed("b1", "flawed", "reject"),
            placed("b1", "flawed", "pass"),
            placed("b2", "flawed", "review"),
        ],
        2.0,
    )

    assert (result.effective, result.misses, result.false_alarms) == (2, 1, 1)
    assert (result.missed_parts, result.alarmed_parts, result.changing) == (["b1"], ["g2"], ["b1", "g2"])
    assert result.repeat_deviation == pytest.approx((0.02 / 3) ** 0.5 / 2)  # of three parts that were placed twice


@pytest.mark.parametrize(
    ("misses", "alarms", "grade"),
    [(0, 0, "acceptable"), (2, 5, "acceptable"), (3, 0, "marginal"), (5, 10, "marginal"), (6, 0, "not acceptable")],
)
def test_the_grade_is_that_of_aiag(misses: int, alarms: int, grade: str) -> None:
    flawed = [placed(f"b{number}", "flawed", "pass" if number < misses else "reject") for number in range(100)]
    good = [placed(f"g{number}", "good", "reject" if number < alarms else "pass") for number in range(100)]

    assert result_of([*good, *flawed], 1.0).grade == grade


def test_what_is_proven_goes_by_parts_not_by_placements() -> None:
    once = result_of([placed(f"b{number}", "flawed", "reject") for number in range(50)], 1.0)
    thrice = result_of([placed(f"b{number % 50}", "flawed", "reject") for number in range(150)], 1.0)

    assert once.misses_at_most == thrice.misses_at_most == pytest.approx(1 - 0.05 ** (1 / 50))
    assert (once.grade, once.false_alarms_at_most) == (None, None)


@pytest.mark.parametrize(
    ("part", "truth", "is_same_picture", "reason"),
    [
        ("b1", "good", False, "placed as flawed before"),
        ("b1", "flawed", False, "2 times already"),
        ("b2", "flawed", True, "the very picture"),
    ],
)
def test_what_would_spoil_a_study_is_refused(part: str, truth: str, is_same_picture: bool, reason: str) -> None:
    before = (placed("b1", "flawed", "reject"), placed("b1", "flawed", "reject"))
    study = Study(1, Plan(good=1, flawed=2, repeats=2), "model", "limits", 1.0, "anna", "", before)

    with pytest.raises(FlawsmithError, match=reason):
        study.refuse(part, truth, before[0].image_sha256 if is_same_picture else "f" * 64)  # type: ignore[arg-type]


def test_a_study_that_was_signed_takes_no_more() -> None:
    with pytest.raises(FlawsmithError, match="is over"):
        Study(1, Plan(), "model", "limits", 1.0, "anna", "", signed="M. Kern").refuse("g1", "good", "f" * 64)
