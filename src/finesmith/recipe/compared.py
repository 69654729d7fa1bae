"""The sections of a recipe on what is learnt by comparing rows: preferences and embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finesmith.recipe.fields import Count, Float, Section, accepts


class Preference(Section):
    """How strongly preferences are learnt: the task preferences."""

    beta: Float = Field(
        default=0.1, gt=0, description="How dearly the model pays for leaving what it was; dpo, ipo and kto read it."
    )
    smoothing: Float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs taken to be marked the wrong way round, for dpo."
    )
    odds_weight: Float = Field(
        default=0.1, gt=0, description="Weight of the odds ratio beside the loss of the chosen answer, for orpo."
    )
    desirable_weight: Float = Field(default=1.0, gt=0, description="Weight of good answers, for kto.")
    undesirable_weight: Float = Field(default=1.0, gt=0, description="Weight of bad answers, for kto.")


class Contrast(Section):
    """How embeddings are learnt: the task embeddings."""

    loss: Literal["auto", "ranking", "triplet", "supervised", "similarity"] = Field(
        default="auto",
        description="ranking: find each anchor's positive among all of the batch (pairs, triplets); triplet: keep each "
        "negative further away than the positive (triplets); supervised: bring sentences of a label together "
        "(labelled); similarity: make the cosine of two texts their score (scored pairs). auto: ranking, or what alone "
        "the rows can teach.",
    )
    temperature: Float = Field(
        default=0.05,
        gt=0,
        le=10,
        description="What cosines are divided by; the lower, the more the nearest others count.",
    )
    margin: Float = Field(
        default=0.5, gt=0, le=2, description="How much further a negative is to be, in cosine, with the loss triplet."
    )
    widths: Annotated[list[Count], Field(min_length=1)] | None = Field(
        default=None,
        description="Train the first so many numbers of each embedding to be one by themselves, for each of these.",
        json_schema_extra=accepts("a list of whole numbers, or null"),
    )
