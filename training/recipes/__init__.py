"""Recipes: YAML files, named by their path without the ending."""

from pathlib import Path

from unimm.errors import UserError

RECIPES = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of all shipped recipes."""
    return sorted(str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a shipped recipe, or ``name`` itself if it is a YAML file.

    Raises:
        UserError: There is no such recipe.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if name in recipe_names():
        return RECIPES / f"{name}.yaml"
    raise UserError(
        f"there is no recipe {name!r}; choose {', '.join(recipe_names())} or give a YAML file"
    )
