"""The recipe: a user's whole plan for one run, in one file, checked before anything starts."""

from finesmith.recipe.check import from_dict
from finesmith.recipe.language import ADAPTERS, LANGUAGE, LORA_KINDS
from finesmith.recipe.load import is_recipe, load
from finesmith.recipe.schema import Recipe
from finesmith.recipe.write import flatten, replace, to_dict, to_yaml, with_absolute_paths

__all__ = [
    "ADAPTERS",
    "LANGUAGE",
    "LORA_KINDS",
    "Recipe",
    "flatten",
    "from_dict",
    "is_recipe",
    "load",
    "replace",
    "to_dict",
    "to_yaml",
    "with_absolute_paths",
]
