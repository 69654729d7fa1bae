"""What the tasks that answer for every token read of a recipe, and what they leave unread and so refuse."""

from __future__ import annotations

from collections.abc import Mapping

# The methods that train an adapter on frozen weights, and those of them that are kinds of LoRA.
LORA_KINDS = ("lora", "rslora", "dora", "pissa")
ADAPTERS = (*LORA_KINDS, "ia3", "prompt")
# By task, the baselines it knows, in the order in which they are run.
BASELINES: Mapping[str, tuple[str, ...]] = {
    "token-classification": ("majority", "word_tag"),
    "causal-text": ("base", "ngram"),
    "masked-text": ("base", "unigram"),
    "instruct": ("base", "few_shot", "nearest", "frequent"),
    "concept-to-text": ("base", "few_shot", "nearest", "copy"),
    "summarisation": ("base", "few_shot", "nearest", "lead"),
    "preferences": ("base", "longer", "majority"),
    "embeddings": ("base", "tfidf"),
}
LANGUAGE = frozenset(BASELINES)

_CLEANING = ("unicode", "whitespace", "html", "lemmatise", "redact")
_UNREAD = (
    "data.text_pair", "data.group", "data.split", "data.max_rows", "data.separator", "data.domain_words",
    "data.audit.missing_labels", "data.audit.imbalance", "data.audit.small_classes", "data.audit.label_in_text",
    *(f"data.clean.{name}" for name in _CLEANING),
    "method.pooling", "train.loss", "train.focal_gamma", "train.class_weights", "train.label_smoothing",
)  # fmt: skip
# What is said of rows with labels and of a usual length, which documents have not.
_OF_ROWS = (
    "data.label", "data.audit.conflicting_labels", "data.audit.group_leakage", "data.audit.length",
    "data.audit.truncation",
)  # fmt: skip
# What is said of one text and its label.
_OF_ANSWERS = (
    "data.text", "data.label", "data.audit.group_leakage", "data.audit.length", "data.audit.truncation",
)  # fmt: skip
# Tasks whose answers are written texts, and those of them that read conversations.
WRITTEN = ("instruct", "concept-to-text", "summarisation")
TALKS = ("instruct",)
_OF_RELATED = (
    "data.text_pair",
    "data.audit.missing_labels",
    "data.audit.imbalance",
    "data.audit.small_classes",
    "method.pooling",
)
# By task, the keys that it does not read.
UNREAD: Mapping[str, tuple[str, ...]] = {
    "token-classification": _UNREAD,
    "causal-text": (*_UNREAD, *_OF_ROWS),
    "masked-text": (*_UNREAD, *_OF_ROWS),
    "instruct": (*_UNREAD, *_OF_ANSWERS),
    "summarisation": (*_UNREAD, *_OF_ANSWERS),
    "concept-to-text": (
        *_UNREAD,
        *(key for key in _OF_ANSWERS if key != "data.audit.group_leakage"),
        "data.audit.conflicting_labels",
    ),
    "preferences": (
        *(key for key in _UNREAD if key not in ("data.audit.missing_labels", "train.loss")),
        "data.text",
        "data.label",
        "data.audit.length",
        "data.audit.truncation",
    ),
    "embeddings": (*(key for key in _UNREAD if key not in _OF_RELATED), "data.weights"),
}
# Keys that these tasks alone read.
READ_BY: Mapping[str, tuple[str, ...]] = {
    "data.document_separator": ("causal-text", "masked-text"),
    "data.overlap": ("causal-text", "masked-text"),
    "mask.rate": ("masked-text",),
    "mask.whole_words": ("masked-text",),
    "data.messages": TALKS,
    **dict.fromkeys(("data.prompt", "data.completion"), WRITTEN),
    "data.malformed": (*WRITTEN, "preferences"),
    **dict.fromkeys(("text.template", "text.too_long"), (*WRITTEN, "preferences")),
    **dict.fromkeys(("text.loss", "evaluate.shots", "evaluate.generated_rows"), WRITTEN),
    **dict.fromkeys(
        (f"preference.{key}" for key in ("beta", "smoothing", "odds_weight", "desirable_weight", "undesirable_weight")),
        ("preferences",),
    ),
    **{
        f"generation.{key}": WRITTEN
        for key in ("strategy", "max_new_tokens", "temperature", "top_k", "top_p", "beams", "stop")
    },
    "data.negative": ("embeddings",),
    "contrast.loss": ("embeddings",),
    "contrast.temperature": ("embeddings",),
    "contrast.margin": ("embeddings",),
    "contrast.widths": ("embeddings",),
}
# The losses of preferences, each with the numbers of the section preference that it reads.
PREFERENCE_LOSSES: Mapping[str, tuple[str, ...]] = {
    "dpo": ("beta", "smoothing"),
    "ipo": ("beta",),
    "orpo": ("odds_weight",),
    "kto": ("beta", "desirable_weight", "undesirable_weight"),
}
# Tasks whose models peft can put a prompt before, and which let the network alone run them.
PROMPTED = frozenset({"token-classification", "causal-text"})


def methods_of(task: str) -> tuple[str, ...]:
    """Return the methods by which a task that answers for every token can be tuned."""
    return ("full", *(name for name in ADAPTERS if name != "prompt" or task in PROMPTED))
