"""How anomalies are simulated on good images, as the settings say."""

from __future__ import annotations

from collections.abc import Mapping

from flawsmith.methods.slsg.config import SLSGConfig, switched
from flawsmith.methods.slsg.published_simulation import published_simulation
from flawsmith.runtime.errors import FlawsmithError
from flawsmith.synthesis.foreground import Foreground
from flawsmith.synthesis.recipes import Recipe, find_recipe

GENERIC = "slsg-official"
"""What the released code does for a category without a recipe of its own."""


def chosen_simulation(
    config: SLSGConfig, dataset: str, category: str
) -> tuple[Recipe, Foreground, Mapping[str, str | float]]:
    """Recipe, foreground, and what to tell of the choice.

    With ``recipe=published`` the released code's recipe of a LOCO category is taken, and with ``foreground=published``
    its foreground: results are tuned to the category.

    Raises:
        FlawsmithError: the switches leave nothing of a published recipe.
    """
    found = published_simulation(dataset, category)
    if config.recipe != "published":
        recipe, name = find_recipe(config.recipe), config.recipe
    elif found is None:
        recipe, name = find_recipe(GENERIC), f"{GENERIC} (nothing published for {dataset}/{category})"
    else:
        recipe, name = found.recipe, f"released recipe of {category} (class-tuned)"
    foreground = config.foreground
    if foreground == "published":
        foreground = Foreground(mode="none") if found is None else found.foreground
    try:
        return switched(recipe, config), foreground, {"simulation": name}
    except ValueError as error:
        raise FlawsmithError(str(error)) from None
