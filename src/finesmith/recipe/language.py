"""What the tasks that answer for every token read of a recipe, and what they leave unread and so refuse."""

from __future__ import annotations

from collections.abc import Mapping

# By task, the baselines it knows, in the order in which they are run.
BASELINES: Mapping[str, tuple[str, ...]] = {
    "token-classification": ("majority", "word_tag"),
}
LANGUAGE = frozenset(BASELINES)

_CLEANING = ("unicode", "whitespace", "html", "lemmatise", "redact")
_UNREAD = (
    "data.text_pair", "data.group", "data.split", "data.max_rows", "data.separator", "data.domain_words",
    "data.audit.missing_labels", "data.audit.imbalance", "data.audit.small_classes", "data.audit.label_in_text",
    *(f"data.clean.{name}" for name in _CLEANING),
    "method.pooling", "train.loss", "train.focal_gamma", "train.class_weights", "train.label_smoothing",
)  # fmt: skip
# By task, the keys that it does not read.
UNREAD: Mapping[str, tuple[str, ...]] = {
    "token-classification": _UNREAD,
}
METHODS = ("full", "lora")
