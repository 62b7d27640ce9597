"""How anomalies are simulated on good images, as the settings say."""

from __future__ import annotations

from collections.abc import Mapping

from flawsmith.methods.slsg.config import SLSGConfig
from flawsmith.methods.slsg.published_simulation import published_simulation
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import Branch, Recipe, find_recipe

GENERIC = "slsg-official"
"""What the released code does for a category without a recipe of its own."""


def chosen_simulation(
    config: SLSGConfig, dataset: str, category: str
) -> tuple[Recipe, Foreground, Mapping[str, str | float]]:
    """Recipe, foreground, and what to tell of the choice.

    With ``recipe=published`` the released code's recipe of a LOCO category is taken, foreground included: results are
    tuned to the category.
    """
    if config.recipe != "published":
        recipe, foreground, told = find_recipe(config.recipe), config.foreground, {"simulation": config.recipe}
    else:
        found = published_simulation(dataset, category)
        recipe = found.recipe if found else find_recipe(GENERIC)
        foreground = found.foreground if found else config.foreground
        name = f"released recipe of {category} (class-tuned)"
        told = {"simulation": name if found else f"{GENERIC} (nothing published for {dataset}/{category})"}
    return _switched(recipe, config), foreground, told


def _switched(recipe: Recipe, config: SLSGConfig) -> Recipe:
    """The recipe without the branches that are switched off, the others' shares raised in proportion (Table 5)."""
    kept = [branch for branch in recipe.branches if (config.logical if _logical(branch) else config.structural)]
    if not kept:
        kept = list(recipe.branches)
    total = sum(branch.share for branch in kept)
    shaped = tuple(
        branch.model_copy(
            update={
                "share": branch.share / total,
                "rule": branch.rule.model_copy(update={"shape": config.mask_shape}),
            }
        )
        for branch in kept
    )
    return recipe.model_copy(update={"branches": shaped})


def _logical(branch: Branch) -> bool:
    """Whether a branch blends in another good image."""
    return branch.texture == "other"
