"""What sections of a recipe are made of: the base that refuses what it does not know, and the types of values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from finesmith.recipe.scalars import column_name, number, truth, whole_number

Bool = Annotated[bool, BeforeValidator(truth)]
Whole = Annotated[int, BeforeValidator(whole_number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(whole_number)]
Float = Annotated[float, BeforeValidator(number)]
Rate = Annotated[float, Field(gt=0, lt=1), BeforeValidator(number)]
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(number)]
Text = Annotated[str, Field(min_length=1)]
Column = Annotated[str, Field(min_length=1), BeforeValidator(column_name)]


def accepts(words: str) -> dict[str, Any]:
    """Return the schema's note of what a key accepts, in words."""
    return {"accepts": words}


class Section(BaseModel):
    """A frozen group of keys; unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
