"""What a recipe may say: every section and key with its type, limits, default and meaning.

The models only hold values. `check.from_dict` builds a recipe and tells everything that is wrong with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finesmith.recipe.compared import Contrast, Preference
from finesmith.recipe.fields import Bool, Column, Count, Float, Rate, Section, Share, Text, Whole, accepts
from finesmith.recipe.scalars import number, truth, whole_number
from finesmith.recipe.written import Generation, TextLayout


def _known_encoding(value: str) -> str:
    try:
        "".encode(value)
    except LookupError:
        raise ValueError("unknown encoding") from None
    return value


# A task is a file: its name is known from the folder, without importing it.
_NO_TASKS = {
    "__init__", "protocol", "language", "corpus", "documents", "dialogues", "answers", "answer_rivals", "answer_scores",
    "writing", "asked_tables", "losses", "contrastive", "encoded_texts", "compared_answers", "preference_losses",
    "preference_rivals", "embedding_rows", "two_part",
}  # fmt: skip
_FILES_OF_TASKS = (Path(__file__).parent.parent / "tasks").glob("*.py")
TASKS = ("auto", *sorted(f.stem.replace("_", "-") for f in _FILES_OF_TASKS if f.stem not in _NO_TASKS))


def _known_task(value: str) -> str:
    if value not in TASKS:
        raise ValueError("unknown task")
    return value


Weights = Annotated[list[Annotated[float, Field(gt=0), BeforeValidator(number)]], Field(min_length=1)]
Sources = Text | Annotated[list[Text], Field(min_length=1)]

KeepDropStop = Literal["keep", "drop", "stop"]
KeepStop = Literal["keep", "stop"]
AnyAction = Literal["keep", "drop", "fix", "stop"]
Baseline = Literal[
    "majority", "tfidf", "features", "zero_shot", "word_tag", "base", "ngram", "unigram", "few_shot", "nearest",
    "frequent", "copy", "lead", "longer",
]  # fmt: skip
# What every recipe without a list means: the baselines of the task at hand, which for classes and numbers are these.
USUAL_BASELINES = ("majority", "tfidf", "features", "zero_shot")

_FILES = accepts("a file, a folder or a hub id, or a list of them")
_FILES_OR_NONE = accepts("a file, a folder or a hub id, a list of them, or null")
_COLUMN = accepts("a column's name or null")


class Audit(Section):
    """What is done about each kind of finding: keep the rows, drop them, fix them, or stop the run."""

    empty: KeepDropStop = Field(default="drop", description="Rows whose text is empty or only white space.")
    missing_labels: Literal["drop", "stop"] = Field(default="drop", description="Rows without a label, NaN included.")
    exact_duplicates: KeepDropStop = Field(
        default="drop", description="Rows with the same text and the same label as an earlier row."
    )
    near_duplicates: KeepDropStop = Field(
        default="keep",
        description="Rows that differ from an earlier one in a few words; kept ones always share a split.",
    )
    conflicting_labels: KeepDropStop = Field(default="keep", description="The same text under different labels.")
    broken_encoding: AnyAction = Field(default="keep", description="Text decoded with the wrong encoding (mojibake).")
    html: AnyAction = Field(default="keep", description="Text with HTML tags or entities; fix strips them.")
    mixed_language: KeepDropStop = Field(default="keep", description="Rows in another language than most.")
    personal_data: AnyAction = Field(
        default="keep",
        description="E-mail addresses, telephone, card and account numbers and the like; fix redacts them.",
    )
    imbalance: KeepStop = Field(default="keep", description="One class far more frequent than another.")
    small_classes: KeepDropStop = Field(default="keep", description="Classes with too few rows to be in every split.")
    length: KeepDropStop = Field(default="keep", description="Texts far shorter or longer than the others.")
    truncation: KeepStop = Field(default="keep", description="Texts longer than data.max_length, whose end is cut off.")
    lexical_diversity: KeepStop = Field(default="keep", description="Few different words for the amount of text.")
    label_in_text: KeepStop = Field(
        default="keep", description="The label's own words stand in the text and give it away."
    )
    leakage: KeepDropStop = Field(
        default="drop", description="Rows of a given train split that also stand in validation or test."
    )
    near_leakage: KeepDropStop = Field(
        default="keep", description="Rows of a given train split that nearly repeat one of validation or test."
    )
    group_leakage: KeepDropStop = Field(
        default="keep", description="Rows of a given train split whose data.group also stands in validation or test."
    )


class Clean(Section):
    """Changes made to every text before anything else sees it; all off, because most models want raw text."""

    unicode: Bool = Field(
        default=False,
        description="Bring characters to one form (NFC) and drop invisible ones.",
    )
    whitespace: Bool = Field(default=False, description="Turn runs of white space into one space.")
    html: Bool = Field(default=False, description="Strip tags and decode entities.")
    lemmatise: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] | None = Field(
        default=None,
        description="Replace words by their dictionary forms in this language; needs the extra `lemmas`.",
        json_schema_extra=accepts("a language code such as en or es, or null"),
    )
    redact: Bool = Field(default=False, description="Replace personal data by a word for its kind.")


class Data(Section):
    """Where the examples come from and how they are read, checked, cleaned, split and cut into tokens."""

    train: Sources = Field(
        description="What to learn from: csv, tsv, json, jsonl, parquet, xlsx, txt (or gz of a text form), a folder "
        "with one file per class, or a Hugging Face id.",
        json_schema_extra=_FILES,
    )
    weights: Weights | None = Field(
        default=None,
        description="How often rows of each source of data.train are drawn, such as [2, 1]; null draws every row once "
        "an epoch.",
        json_schema_extra=accepts("a list of numbers above 0, one for each source, or null"),
    )
    validation: Sources | None = Field(
        default=None, description="Validation rows; null splits them off data.train.", json_schema_extra=_FILES_OR_NONE
    )
    test: Sources | None = Field(
        default=None,
        description="Test rows, opened once, at the end; null splits them off data.train.",
        json_schema_extra=_FILES_OR_NONE,
    )
    text: Column | None = Field(
        default=None,
        description="Column of the text; null infers it from names and content.",
        json_schema_extra=_COLUMN,
    )
    text_pair: Column | None = Field(
        default=None,
        description="Column of the second text of a pair; null infers it from names and content.",
        json_schema_extra=_COLUMN,
    )
    negative: Column | None = Field(
        default=None,
        description="Column of a text that does not belong to data.text, beside data.text_pair, which does; null "
        "infers it. For embeddings.",
        json_schema_extra=_COLUMN,
    )
    label: Column | None = Field(
        default=None,
        description="Column of the label or the rating, or of the score of two texts for embeddings; null infers it "
        "from names and content.",
        json_schema_extra=_COLUMN,
    )
    group: Column | None = Field(
        default=None,
        description="Column whose equal values must stay in one split (a customer, a document).",
        json_schema_extra=_COLUMN,
    )
    split: Column | None = Field(
        default=None, description="Column that names each row's split; null infers it.", json_schema_extra=_COLUMN
    )
    validation_fraction: Float = Field(
        default=0.15, gt=0, lt=0.9, description="Share of the rows split off for validation."
    )
    test_fraction: Float = Field(default=0.15, gt=0, lt=0.9, description="Share of the rows split off for test.")
    split_seed: Whole = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Another number gives another split; the split is stable under added rows.",
    )
    max_rows: Count | None = Field(
        default=None, description="Read at most so many rows of each source; null reads all."
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = Field(
        default=None,
        description="Encoding of text files; null detects it.",
        json_schema_extra=accepts("an encoding's name such as utf-8, latin-1 or utf-16, or null"),
    )
    max_length: Annotated[int, Field(ge=4), BeforeValidator(whole_number)] | None = Field(
        default=None,
        description="Longest sequence in tokens, special tokens included; null takes the model's limit or the length "
        "that 99.9 percent of the texts stay under, whichever is less.",
    )
    separator: Text | None = Field(
        default=None,
        description="What stands between the labels of a multi-label row; null infers it.",
        json_schema_extra=accepts("text or null"),
    )
    document_separator: Text | None = Field(
        default=None,
        description="What stands between the documents of a text file; null: blank lines in a file, nothing in a "
        "folder, whose files are documents. For causal-text and masked-text.",
        json_schema_extra=accepts("text or null"),
    )
    overlap: Whole = Field(
        default=0,
        ge=0,
        description="Tokens of a document that a following sequence is given again, as context. For causal-text and "
        "masked-text.",
    )
    messages: Column | None = Field(
        default=None,
        description="Column of the turns of a conversation; null finds it by names. For instruct.",
        json_schema_extra=_COLUMN,
    )
    prompt: Column | None = Field(
        default=None,
        description="Column of what is asked, with data.completion; null finds it by names. For instruct, "
        "concept-to-text and summarisation.",
        json_schema_extra=_COLUMN,
    )
    completion: Column | None = Field(
        default=None,
        description="Column of the answers, with data.prompt; null finds it by names. For instruct, "
        "concept-to-text and summarisation.",
        json_schema_extra=_COLUMN,
    )
    malformed: Literal["stop", "drop"] = Field(
        default="stop",
        description="Rows that are no conversation (a role is missing, a turn is empty, ...), or that the chat "
        "template refuses: stop and name them, or drop and count them. For tasks of written answers.",
    )
    domain_words: Annotated[int, Field(ge=0), BeforeValidator(whole_number)] | list[Text] = Field(
        default=0,
        description="Add words to the vocabulary: so many of the frequent ones that the tokenizer breaks most, or "
        "exactly these.",
    )
    audit: Audit = Field(default_factory=Audit)
    clean: Clean = Field(default_factory=Clean)


class Mask(Section):
    """What a model of masked words has to guess: the task masked-text."""

    rate: Rate = Field(default=0.15, description="Share of the words that is masked; drawn anew in every epoch.")
    whole_words: Bool = Field(default=True, description="Mask words whole, or each of their pieces by itself.")


class Model(Section):
    """The pre-trained model that everything starts from."""

    base: Text = Field(
        default="default",
        description="The bundled model (default), a folder or a hub id. safetensors only.",
        json_schema_extra=accepts("default, a folder or a hub id"),
    )
    revision: Text | None = Field(
        default=None, description="Commit, tag or branch of a hub id.", json_schema_extra=accepts("text or null")
    )
    dropout: Share | None = Field(default=None, description="Dropout in the whole model; null keeps the model's own.")
    attention: Literal["auto", "ragged", "padded"] = Field(
        default="auto",
        description="Run sequences without padding (ragged) or padded; auto goes ragged wherever that is exact.",
    )


class Method(Section):
    """Which weights are trained, and how."""

    name: Literal["full", "lora", "rslora", "dora", "pissa", "ia3", "prompt", "features", "head_then_full"] = Field(
        default="full",
        description="full trains every weight; features a head on embeddings computed once; head_then_full the head "
        "first, then everything; the others an adapter on frozen weights.",
    )
    lora: dict[str, Any] = Field(
        default={},
        description="Options of peft's LoraConfig, for lora, rslora, dora and pissa; what is not named keeps the "
        "kind's own value (docs/adapters.md) or peft's.",
        json_schema_extra=accepts("options of peft's LoraConfig, each with its value"),
    )
    prompt_tokens: Count = Field(default=20, description="How many vectors prompt learns to put before every text.")
    layer_decay: Float = Field(
        default=1.0, gt=0, le=1, description="Each layer's learning rate is this times the rate of the layer above it."
    )
    freeze_layers: Whole = Field(
        default=0, ge=0, description="Keep so many of the lowest layers fixed, and the embeddings with them."
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        default="auto",
        description="How token vectors become one vector, for features and embeddings; auto follows the model.",
    )


class Train(Section):
    """The optimisation: AdamW, its schedule, its batches and its loss."""

    learning_rate: Rate | Literal["auto"] | None = Field(
        default=None,
        description="Peak learning rate; null takes the method's default, auto runs a learning-rate range test first.",
        json_schema_extra={"usual": "a usual value for full tuning is 2e-5, for lora 2e-4"},
    )
    epochs: Annotated[float, BeforeValidator(number), Field(gt=0, le=1000)] | None = Field(
        default=None,
        description="Passes over the training rows, a fraction is allowed; null takes 2, and up to 10 where the rows "
        "are so few that 2 would be under 250 updates.",
        json_schema_extra=accepts("a number from 0 to 1000, or null"),
    )
    batch_size: Count = Field(default=32, description="Examples per update.")
    micro_batch_size: Count | None = Field(
        default=None,
        description="Examples in memory at once; null fits it to the memory. Changes speed and memory; the result only "
        "by rounding and the random numbers of dropout.",
    )
    seed: Whole = Field(default=0, ge=0, lt=2**32, description="Seed of new weights, order and dropout.")
    weight_decay: Share = Field(
        default=0.01, description="AdamW's decay of weight matrices (never of biases and norms)."
    )
    warmup: Share = Field(default=0.1, description="Share of all updates over which the learning rate rises from zero.")
    schedule: Literal["linear", "cosine", "constant", "plateau"] = Field(
        default="linear",
        description="How the learning rate goes on after the warm-up; plateau halves it when validation stalls.",
    )
    max_grad_norm: Float = Field(
        default=1.0, gt=0, description="Gradients longer than this (L2 norm) are scaled down to it."
    )
    label_smoothing: Share = Field(default=0.0, description="Share of each target spread over all classes.")
    loss: Literal["cross_entropy", "focal", "dpo", "ipo", "orpo", "kto"] = Field(
        default="cross_entropy",
        description="focal gives easy examples less weight; regression always uses squared error. The task preferences "
        "has dpo in place of the default, ipo or orpo for pairs, and kto for marked answers.",
    )
    focal_gamma: Float = Field(
        default=2.0, gt=0, le=10, description="How much less weight the focal loss gives easy examples."
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced weights each class by the inverse of its frequency."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Arithmetic; auto takes bfloat16 where the device is fast at it."
    )
    activation_checkpointing: Bool = Field(
        default=False,
        description="Keep only what enters each layer, and compute the layer again on the way back: the same results "
        "in much less memory, for about a third more time.",
    )
    compile: Bool = Field(
        default=False,
        description="Have torch's compiler fuse what each layer does while it is trained. Meant for long runs on a "
        "GPU: compiling takes a minute or more, and results differ by rounding.",
    )
    evaluations: Count | None = Field(
        default=None, description="Evaluations on validation per epoch; null takes about 8 in the whole training."
    )


class Guards(Section):
    """What watches the run and acts."""

    preflight: Literal["stop", "tell"] = Field(
        default="stop",
        description="What a probe that fails before or right after the first step does: stop the run, or be told.",
    )
    early_stopping: Bool = Field(
        default=True, description="Stop when validation no longer improves; the best state is kept."
    )
    patience: Count = Field(default=4, description="Evaluations without improvement after which to stop.")


class Evaluate(Section):
    """How the tuned model is judged."""

    metric: Text | None = Field(
        default=None,
        description="The metric that selects and decides; null takes the task's own.",
        json_schema_extra=accepts("a metric of the task (such as accuracy, macro_f1, mcc or rmse) or null"),
    )
    baselines: Annotated[list[Baseline], Field(min_length=1)] = Field(
        default_factory=lambda: list(USUAL_BASELINES),  # type: ignore[arg-type]
        description="Simpler methods that the tuned model has to beat. Tasks that answer for every token put all of "
        "their own in place of this list: token-classification majority and word_tag, causal-text base and ngram, "
        "masked-text base and unigram, embeddings base and tfidf, instruct base, few_shot, nearest and frequent, "
        "concept-to-text base, few_shot, nearest and copy, summarisation base, few_shot, nearest and lead, "
        "preferences base, longer and majority.",
        json_schema_extra={"default": list(USUAL_BASELINES)},
    )
    shots: Count = Field(
        default=3, description="Training examples in the prompt of the baseline few_shot. For tasks of written answers."
    )
    generated_rows: Annotated[int, Field(ge=2), BeforeValidator(whole_number)] = Field(
        default=500,
        description="At most so many test rows are answered in writing, and a fifth as many (20 at least) of "
        "validation. For tasks of written answers.",
    )
    bootstrap_samples: Whole = Field(
        default=2000, ge=100, le=1_000_000, description="Resamples of the test rows behind each 95 percent interval."
    )


class Output(Section):
    """What is written, where and how often."""

    dir: Text | None = Field(
        default=None,
        description="The run folder; null makes runs/<data name>-<date>-<time>.",
        json_schema_extra=accepts("a folder or null"),
    )
    cache: Text | None = Field(
        default=None,
        description="Folder for tokens and embeddings that later runs reuse; null takes the user's cache folder (with "
        "output.redact: none), none keeps nothing.",
        json_schema_extra=accepts("a folder, none, or null"),
    )
    checkpoint_minutes: Float = Field(
        default=10.0, gt=0, description="Minutes between checkpoints, besides the one at each evaluation."
    )
    keep_checkpoints: Count = Field(default=2, description="How many of the latest checkpoints stay on disk.")
    tensorboard: Bool = Field(default=False, description="Write TensorBoard logs too; needs the extra `tensorboard`.")
    redact: Bool = Field(
        default=False,
        description="Keep every text of the data out of the run folder: report, predictions and audit name rows by "
        "their ids alone.",
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_tokens_nowhere(cls, values: Any) -> Any:
        # Tokens are texts in another form: who withholds those has to name a folder for these.
        if isinstance(values, dict) and truth(values.get("redact")) is True and values.get("cache") is None:
            return {**values, "cache": "none"}
        return values


class Recipe(Section):
    """The user's whole plan for one run. Build it with `load`, `from_dict` or `replace`, which check it."""

    task: Annotated[str, AfterValidator(_known_task)] = Field(
        default="auto",
        description="What is to be learnt; auto infers it from the label column and says so.",
        json_schema_extra={"enum": list(TASKS)},
    )
    data: Data
    mask: Mask = Field(default_factory=Mask)
    text: TextLayout = Field(default_factory=TextLayout)
    generation: Generation = Field(default_factory=Generation)
    preference: Preference = Field(default_factory=Preference)
    contrast: Contrast = Field(default_factory=Contrast)
    model: Model = Field(default_factory=Model)
    method: Method = Field(default_factory=Method)
    train: Train = Field(default_factory=Train)
    guards: Guards = Field(default_factory=Guards)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    output: Output = Field(default_factory=Output)
