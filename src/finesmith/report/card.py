"""Write a model card in Hugging Face's form: YAML front matter and Markdown, safe whatever the labels are called."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesmith.report.answers import one_by_one
from finesmith.report.folder import RunFolder, items, mapping, read, records
from finesmith.report.format import (
    count,
    cut,
    duration,
    label_text,
    metric_difference,
    metric_difference_interval,
    metric_interval,
    metric_key,
    metric_name,
    metric_value,
    number,
    plain,
    probability,
    system_name,
    visible,
    words,
)
from finesmith.types import SPLITS

if TYPE_CHECKING:
    from jinja2 import Environment

BUNDLED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BUNDLED_NAME = "sentence-transformers/all-MiniLM-L6-v2"
LORA_KINDS = frozenset({"lora", "rslora", "dora", "pissa"})
ADAPTER_METHODS = LORA_KINDS | {"ia3", "prompt"}
HUB_METRICS = {"macro_f1": "f1", "mcc": "matthews_correlation", "auroc": "roc_auc", "spearman": "spearmanr"}
LABELS_SHOWN = 100
# By the head of a model: its class in transformers, the task on the hub, and what people call it.
HEADS = {
    "": ("SequenceClassification", "text-classification", "Text classification"),
    "token": ("TokenClassification", "token-classification", "Token classification"),
    "causal": ("CausalLM", "text-generation", "Text generation"),
    "seq2seq": ("Seq2SeqLM", "text2text-generation", "Text-to-text generation"),
    "masked": ("MaskedLM", "fill-mask", "Masked language modelling"),
    "embedding": ("Embeddings", "sentence-similarity", "Embeddings"),
}
POOLINGS = {
    "cls": "states[:, 0]",
    "last": "states[range(len(states)), inputs.attention_mask.sum(1) - 1]",
    "mean": "(states * inputs.attention_mask[..., None]).sum(1) / inputs.attention_mask.sum(1, keepdim=True)",
}
LANGUAGE_SHARE = 0.1
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{1,60}")
# Brackets, code, emphasis, table bars, struck text, formulas, mentions, and what starts an address.
_SPECIAL = re.compile(r"([\\`*_\[\]|~$@]|:(?=//)|(?<=mailto):|(?<=xmpp):)", re.IGNORECASE)
_LINE_START = re.compile(r"^([-+#=:])")
_LIST_START = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


@functools.cache
def _templates() -> Environment:
    import jinja2
    from markupsafe import Markup

    return jinja2.Environment(
        loader=jinja2.PackageLoader("finesmith.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: Markup(markdown(value)) if type(value) is str else value,
    )


def build(run_folder: Path) -> str:
    """Return the text of README.md for the model of a run, from the run folder alone.

    Raises:
        RunError: `run_folder` is not a folder.
    """
    from markupsafe import Markup

    folder = read(run_folder)
    body = (
        _templates()
        .get_template("card.md")
        .render(
            name=cut(folder.name, 120),
            conclusion=cut(folder.verdict.get("conclusion"), 800),
            task=words(folder.task, 60),
            base=base_name(folder),
            method=words(folder.model.get("method"), 60),
            load=_load(folder),
            place=Markup(_base_place(folder)),
            grown=bool(items(mapping(folder.data.get("tokens")).get("added_words"))),
            pooled=Markup(POOLINGS.get(str(folder.model.get("pooling")), POOLINGS["mean"])),
            written="written" in mapping(folder.scores.get("details")),
            two_part=folder.model.get("head") == "seq2seq",
            answered=_answered(folder),
            labels=[label_text(label, 120) for label in items(folder.data.get("labels"))[:LABELS_SHOWN]],
            labels_left_out=max(0, len(items(folder.data.get("labels"))) - LABELS_SHOWN),
            data=_data(folder),
            findings=_findings(folder),
            training=_training(folder),
            results=_results(folder),
            gain=_gain(folder),
            overfitting=cut(mapping(folder.verdict.get("overfitting")).get("sentence"), 400),
            limits=_limits(folder),
            version=cut(folder.run.get("finesmith"), 40),
        )
    )
    # The template stays code that runs as it stands.
    body = body.replace("ForSequenceClassification", f"For{_head(folder)[0]}")
    return f"---\n{front_matter(folder)}---\n\n{body}".encode("utf-8", "replace").decode("utf-8")


def front_matter(folder: RunFolder) -> str:
    """Return the YAML block of the card, without its fences; what is not known is left out."""
    import yaml

    pairs = bool(mapping(folder.data.get("columns")).get("text_pair")) and not _embeds(folder)
    fields: dict[str, Any] = {"library_name": _library(folder), "pipeline_tag": _head(folder)[1]}
    licence = folder.model.get("license")
    if isinstance(licence, str) and _LICENCE.fullmatch(licence):
        fields["license"] = licence
    base = base_name(folder)
    if base and _is_hub_name(folder, base):
        fields["base_model"] = base
    languages = _languages(folder)
    if languages:
        fields["language"] = languages
    method = str(folder.model.get("method", ""))
    tags = ["finesmith", "text-pair-classification" if pairs else "", "regression" if _is_rating(folder) else ""]
    tags += ["lora" if method in LORA_KINDS else "", method if method in ADAPTER_METHODS - {"lora"} else ""]
    fields["tags"] = [tag for tag in tags if tag]
    results = _index(folder)
    if results:
        fields["model-index"] = [{"name": _plain(folder.name, 200), "results": [results]}]
    # Escaping everything beyond ASCII when something is hidden keeps bidirectional characters out of the file.
    shown = all(text == visible(text) for text in _texts(fields))
    return str(yaml.safe_dump(fields, allow_unicode=shown, sort_keys=False, default_flow_style=False, width=10**6))


def markdown(text: str) -> str:
    """Return `text` as one line of Markdown that can be neither HTML, nor markup, nor a link."""
    line = " ".join(visible(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _SPECIAL.sub(r"\\\1", line)
    line = _LIST_START.sub(r"\1\\\2", _LINE_START.sub(r"\\\1", line))
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", line)


def base_name(folder: RunFolder) -> str:
    """Return the base model's public name; of a folder on someone's disk only the last part."""
    base = folder.model.get("base")
    if folder.model.get("base_sha256") == BUNDLED:
        return BUNDLED_NAME
    if not isinstance(base, str) or not base:
        return ""
    return base if _HUB_NAME.fullmatch(base) else _plain(re.split(r"[/\\]", base.rstrip("/\\"))[-1], 120)


def _is_hub_name(folder: RunFolder, name: str) -> bool:
    given = folder.model.get("base")
    local = isinstance(given, str) and given != name and name != BUNDLED_NAME
    return bool(_HUB_NAME.fullmatch(name)) and not local


def _plain(text: str, length: int) -> str:
    return " ".join(text[:length].encode("utf-8", "replace").decode("utf-8").split())


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else []


def _languages(folder: RunFolder) -> list[str]:
    for finding in records(folder.audit.get("findings")):
        if finding.get("kind") == "mixed_language":
            shares = mapping(mapping(finding.get("details")).get("shares")).items()
            return [
                code for code, part in shares if _LANGUAGE.fullmatch(code) and (number(part) or 0.0) >= LANGUAGE_SHARE
            ]
    return []


def _library(folder: RunFolder) -> str:
    method = str(folder.model.get("method", ""))
    if _embeds(folder) and method not in ADAPTER_METHODS:
        return "sentence-transformers"
    return {"features": "sentence-transformers"}.get(method, "peft" if method in ADAPTER_METHODS else "transformers")


def _is_rating(folder: RunFolder) -> bool:
    return any(word in folder.task for word in ("regression", "rating")) or "rmse" in mapping(folder.scores.get("test"))


def _index(folder: RunFolder) -> dict[str, Any] | None:
    scores = mapping(folder.scores.get("test"))
    metrics = []
    for name, score in list(scores.items())[:20]:
        value = number(mapping(score).get("value"))
        if value is not None:
            key = metric_key(name)
            metrics.append({"type": _plain(HUB_METRICS.get(key, key), 60), "name": metric_name(name), "value": value})
    if not metrics:
        return None
    sources = records(folder.data.get("sources"))
    given = str(sources[0].get("name", "")) if sources else ""
    name = _plain(re.split(r"[/\\]", given.rstrip("/\\"))[-1] if given else "", 200) or "private data"
    kind = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "private-data"
    return {
        "task": dict(zip(("type", "name"), _head(folder)[1:], strict=True)),
        "dataset": {"name": name, "type": kind, "split": "test"},
        "metrics": metrics,
    }


def _head(folder: RunFolder) -> tuple[str, str, str]:
    return HEADS.get(str(folder.model.get("head", "")), HEADS[""])


def _embeds(folder: RunFolder) -> bool:
    return folder.model.get("head") == "embedding"


def _load(folder: RunFolder) -> str:
    method = str(folder.model.get("method", ""))
    if _embeds(folder):
        return "embedding adapter" if method in ADAPTER_METHODS else "embeddings"
    return "features" if method == "features" else "adapter" if method in ADAPTER_METHODS else "full"


def _base_place(folder: RunFolder) -> str:
    """Return where others find the base model: its public name, where it has one."""
    digest, name = folder.model.get("base_sha256"), base_name(folder)
    # Only the weights of a folder have been hashed; of the bundled ones the public name is known.
    public = (digest is None or digest == BUNDLED) and _is_hub_name(folder, name)
    return name if public else "path/to/base"


def _data(folder: RunFolder) -> dict[str, Any]:
    splits = mapping(folder.data.get("splits"))
    tokens = mapping(folder.data.get("tokens"))
    truncated = number(tokens.get("truncated_share"))
    return {
        "splits": [(name, count(mapping(splits[name]).get("rows"))) for name in SPLITS if name in splits],
        "flow": [
            (words(row.get("stage"), 100), count(row.get("rows"))) for row in records(folder.data.get("flow"))[:20]
        ],
        "longest": int(number(folder.data.get("max_length")) or 512),
        "cuts": truncated is not None,
        "truncated": f"{100 * truncated:.1f} %" if truncated else "",
    }


def _findings(folder: RunFolder) -> list[tuple[str, str, str]]:
    rank = {"error": 0, "warning": 1, "info": 2}
    every = sorted(records(folder.audit.get("findings")), key=lambda row: rank.get(str(row.get("severity")), 3))
    return [
        (cut(row.get("severity"), 20), cut(row.get("message"), 300), cut(row.get("action"), 30)) for row in every[:12]
    ]


def _training(folder: RunFolder) -> list[tuple[str, str]]:
    train = mapping(folder.settings.get("train"))
    machine, versions = mapping(folder.run.get("machine")), mapping(folder.run.get("versions"))
    trainable, parameters = number(folder.model.get("trainable")), number(folder.model.get("parameters"))
    rows = [
        ("trained parameters", f"{count(trainable)} of {count(parameters)}" if trainable and parameters else ""),
        ("precision", cut(folder.model.get("precision"), 40)),
        *[
            (words(key, 40), plain(value, 6) if number(value) is not None else cut(value, 80))
            for key, value in list(train.items())[:20]
        ],
        ("time", duration(folder.run.get("seconds")) if number(folder.run.get("seconds")) is not None else ""),
        ("device", cut(machine.get("device") or mapping(folder.model.get("device")).get("device"), 60)),
        *[(cut(key, 40), cut(value, 40)) for key, value in list(versions.items())[:8]],
    ]
    return [(key, value) for key, value in rows if value]


def _results(folder: RunFolder) -> dict[str, Any] | None:
    systems = [("tuned model", mapping(folder.scores.get("test")))]
    systems += [
        (system_name(row.get("name")), mapping(mapping(row.get("scores")).get("test")))
        for row in folder.baselines[:12]
        if not row.get("skipped")
    ]
    names = list(dict.fromkeys(name for _, scores in systems for name in scores))[:8]
    rows = [(name, [_cell(key, mapping(scores.get(key))) for key in names]) for name, scores in systems if scores]
    if not rows or not names:
        return None
    tested = count(folder.verdict.get("test_size"))
    return {"metrics": [metric_name(name) for name in names], "rows": rows, "size": tested}


def _answered(folder: RunFolder) -> str:
    """Say of which rows each metric is, where not all were answered in writing."""
    told = mapping(mapping(folder.scores.get("details")).get("written"))
    rows, whole = number(told.get("rows")), number(told.get("of"))
    if rows is None or whole is None or rows >= whole:
        return one_by_one(folder)
    return (
        f"Answers were written to {count(rows)} of the {count(whole)} test rows; bits per byte and perplexity are of "
        "all of them."
    )


def _cell(name: str, score: dict[str, Any]) -> str:
    interval = metric_interval(name, score.get("low"), score.get("high"))
    return f"{metric_value(name, score.get('value'))}{f' ({interval})' if interval else ''}"


def _gain(folder: RunFolder) -> str:
    gain, metric = mapping(folder.verdict.get("gain")), folder.verdict.get("metric", "")
    if number(gain.get("value")) is None:
        return ""
    ends = items(gain.get("interval"))
    interval = metric_difference_interval(metric, *ends) if len(ends) == 2 else ""
    chance = probability(gain.get("p_value"))
    told = (
        f"Gain over {system_name(gain.get('against', 'the best baseline'))}: {metric_difference(metric, gain['value'])}"
    )
    told += f" (95 % interval {interval})" if interval else ""
    return f"{told}, p {chance if chance.startswith('<') else f'= {chance}'}."


def _limits(folder: RunFolder) -> list[str]:
    metric, verdict = folder.verdict.get("metric", ""), folder.verdict
    limits = [
        "The figures hold for texts like those of the test split; on other texts the model has not been measured."
    ]
    smallest = number(verdict.get("smallest_detectable"))
    if smallest is not None:
        difference = metric_difference(metric, smallest).lstrip("+")
        limits.append(f"Differences below {difference} could not have been seen with a test split of this size.")
    if verdict.get("better") is False:
        limits.append("It was not shown to be better than the best simple baseline; consider using that one.")
    if folder.run.get("state") in ("failed", "interrupted"):
        limits.append("The run that made this model did not finish.")
    if not mapping(folder.scores.get("test")):
        limits.append("The model has not been scored on a test split.")
    return limits
