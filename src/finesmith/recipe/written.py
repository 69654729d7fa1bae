"""The sections of tasks whose answers are written texts: how a conversation is laid out, and how an answer is made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finesmith.recipe.fields import Count, Section, Text, accepts
from finesmith.recipe.scalars import number, whole_number


class TextLayout(Section):
    """How a conversation becomes the text that a model reads: tasks of written answers."""

    template: Literal["auto", "own", "chatml", "alpaca", "inst", "plain", "none"] = Field(
        default="auto",
        description="Chat template: the tokenizer's own or a named one, which is saved with the model; auto takes the "
        "tokenizer's own, and plain where it has none. Encoder-decoders have none.",
    )
    loss: Literal["answers", "last", "all"] = Field(
        default="answers",
        description="What is learnt: every answer of the assistant, the last one, or every token; scores are of "
        "answers always.",
    )
    too_long: Literal["drop", "shorten", "stop"] = Field(
        default="drop",
        description="Conversations longer than data.max_length: drop and count them, cut the beginning of the prompt "
        "(and drop where the answers alone do not fit), or stop. An answer is never cut. For an encoder-decoder prompt "
        "and answer are measured apart, and the prompt's end is cut.",
    )


class Generation(Section):
    """How answers are written, in evaluation and by the saved model: tasks of written answers."""

    strategy: Literal["greedy", "sample", "beam"] = Field(
        default="greedy", description="Take the likeliest token, draw one, or search with beams."
    )
    max_new_tokens: Count | None = Field(
        default=None,
        description="Longest answer in tokens; null takes the length that 99 percent of the training answers stay "
        "under.",
    )
    temperature: Annotated[float, BeforeValidator(number), Field(gt=0, le=100)] | None = Field(
        default=None,
        description="Divides the logits before one is drawn; null is 1. For strategy sample.",
        json_schema_extra=accepts("a number above 0, at most 100, or null"),
    )
    top_k: Count | None = Field(default=None, description="Draw among so many likeliest tokens. For strategy sample.")
    top_p: Annotated[float, BeforeValidator(number), Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Draw among the likeliest tokens that hold so much of the probability. For strategy sample.",
        json_schema_extra=accepts("a number above 0, at most 1, or null"),
    )
    beams: Annotated[int, Field(ge=2), BeforeValidator(whole_number)] | None = Field(
        default=None, description="How many beams; null is 4. For strategy beam."
    )
    stop: list[Text] = Field(
        default_factory=list,
        description="Texts that end an answer, besides the chat template's stop token.",
        json_schema_extra={**accepts("a list of texts"), "default": []},
    )
