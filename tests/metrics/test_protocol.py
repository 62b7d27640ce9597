"""The protocol as data: names, switches, what they mean, and the document that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from flawsmith.metrics.protocol import (
    CLEAN,
    MEANINGS,
    PAPERS,
    SWITCHES,
    Protocol,
    choose_protocol,
    papers,
)
from flawsmith.runtime.errors import FlawsmithError

DOCUMENT = Path(__file__).parents[2] / "docs" / "research" / "protocol.md"


def test_clean_deviates_in_nothing_and_says_what_it_does() -> None:
    assert CLEAN.deviations() == {}
    assert CLEAN.caveats() == []
    assert "image's own pixels" in CLEAN.describe()
    assert "lowest score" in CLEAN.describe()


def test_every_setting_of_every_switch_has_a_meaning_and_a_source() -> None:
    assert tuple(MEANINGS) == SWITCHES
    for switch in SWITCHES:
        settings = get_args(Protocol.model_fields[switch].annotation)
        assert tuple(MEANINGS[switch]) == settings
        assert settings[0] == Protocol.model_fields[switch].default, "clean comes first"
        assert all(meaning.says.endswith(".") and meaning.source for meaning in MEANINGS[switch].values())


@pytest.mark.parametrize(
    ("method", "layout"), [(method or "other", layout or "folder") for method, own in PAPERS.items() for layout in own]
)
def test_papers_never_looks_like_clean(method: str, layout: str) -> None:
    protocol = papers(method, layout)

    assert protocol.name == "papers"
    (stamp,) = protocol.caveats()
    assert all(f"{switch}={value}" in stamp for switch, value in protocol.deviations().items())


def test_papers_follows_method_and_layout() -> None:
    assert (papers("glass", "mvtec").mask, papers("pbas", "visa").mask) == ("bilinear_exact_one", "bilinear_above_zero")
    assert papers("glass", "mvtec").pro == papers("pbas", "visa").pro == "dilated_200"
    assert (papers("aand", "mvtec").rounding, papers("rd4ad", "visa").image_label) == ("three_decimals", "mask")
    assert (papers("slsg", "mvtec_loco").loco_mean, papers("slsg", "mvtec").loco_mean) == ("pooled", "loco")
    assert papers("another", "mvtec").deviations() == {"pixels": "network", "uninspected": "excluded"}


def test_a_changed_protocol_calls_itself_custom_and_names_every_deviation() -> None:
    changed = choose_protocol("papers", method="glass", layout="mvtec", changes={"pro": "exact"})

    assert changed.name == "custom"
    assert "pro" not in changed.deviations()
    assert changed.caveats()[0].startswith("PROTOCOL CUSTOM: not comparable with clean figures")
    assert choose_protocol("clean", method="glass", layout="mvtec", changes={"rounding": "three_decimals"}).caveats()


def test_changes_that_change_nothing_leave_the_name() -> None:
    back = {"pixels": "original", "uninspected": "lowest"}

    assert choose_protocol("clean", method="glass", layout="mvtec", changes={"pro": "exact"}) == CLEAN
    assert choose_protocol("papers", method="glass", layout="mvtec", changes={"pro": "dilated_200"}).name == "papers"
    assert choose_protocol("papers", method="another", layout="mvtec", changes=back) == CLEAN


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("official", {}, "choose clean or papers"),
        ("clean", {"prro": "exact"}, "did you mean 'pro'"),
        ("clean", {"pro": 5}, "pro is one of exact"),
        ("clean", {"pro": ["exact"]}, "pro is one of exact"),
        ("clean", {"name": "papers"}, "no switch called 'name'"),
        ("clean", {"mask": "bilinear_exact_one"}, "pixels=network alone"),
        ("clean", {"pixels": "network"}, "uninspected=excluded alone"),
    ],
)
def test_what_is_no_protocol_is_refused_in_one_line(name: str, changes: dict, said: str) -> None:
    with pytest.raises(FlawsmithError, match=said) as raised:
        choose_protocol(name, method="glass", layout="mvtec", changes=changes)

    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("values", [{"rounding": "three_decimals"}, {"name": "papers"}, {"name": "custom"}])
def test_a_name_that_does_not_fit_the_switches_is_refused(values: dict) -> None:
    with pytest.raises(ValidationError, match="cannot be called"):
        Protocol(**values)


def switches_table() -> str:
    """All switches, what each setting means and where it comes from, the first is that of ``clean``."""
    rows = [
        (f"`{switch}`" if number == 0 else "", f"`{value}`", meaning.says, meaning.source)
        for switch in SWITCHES
        for number, (value, meaning) in enumerate(MEANINGS[switch].items())
    ]
    return _markdown(("switch", "setting", "what it does", "who measures so"), rows)


def papers_table() -> str:
    """What ``papers`` means for each method."""
    rows = []
    for method, by_layout in PAPERS.items():
        for layout, switches in by_layout.items():
            others = "any other" if len(by_layout) > 1 else "any"
            deviations = ", ".join(f"`{name}={value}`" for name, value in switches.items())
            rows.append((method or "any other", layout or others, deviations))
    return _markdown(("method", "layout", "deviations from `clean`"), rows)


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def test_the_document_says_what_the_module_says() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    assert switches_table() in text
    assert papers_table() in text
