"""Every method, whole: what a run saves, plain libraries load, and what is merged is the same model without peft."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import PEFT_WARNING, plan, read, reviews, table, tuned, with_values, write_csv
from language_jobs import conversations, language_plan, sentences, write_conll, write_rows
from safetensors.torch import load_file

from finesmith.recipe import ADAPTERS
from finesmith.workflows.apply import load_run
from finesmith.workflows.merge import merge
from finesmith.workflows.setup import default_learning_rate
from plain import Plain
from tiny import bert_tokenizer, write_tiny_llama

pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)

# Which methods of each task are run; together they are all, in both stories.
METHODS = {
    "classification": ("full", "head_then_full", "features", *ADAPTERS),
    "token-classification": ("full", "lora", "pissa", "ia3", "prompt"),
    "causal-text": ("full", "rslora", "dora", "prompt"),
    "masked-text": ("full", "lora", "ia3"),
}
CASES = [(task, method) for task, methods in METHODS.items() for method in methods]
MERGED = [(task, method) for task, method in CASES if method in ADAPTERS and method != "prompt"]
CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "causal-text": "AutoModelForCausalLM",
    "masked-text": "AutoModelForMaskedLM",
}
TEXTS = ["the film was great", "a dull and boring plot", "anna loves rome in the dark", "one two three four five six"]

# Runs where finesmith is not imported: loads each folder as its users would, and writes the outputs for each text.
PLAIN = """
import json, sys, torch, transformers

def outputs(case):
    folder, kind = case["folder"], getattr(transformers, case["class"])
    if case["form"] == "sentence-transformers":
        from sentence_transformers import SentenceTransformer
        return SentenceTransformer(folder, device="cpu").encode(job["texts"]).astype("float64").tolist()
    if case["form"] == "peft":
        from peft import PeftModel
        config = transformers.AutoConfig.from_pretrained(folder)
        words, config.vocab_size = config.vocab_size, transformers.AutoConfig.from_pretrained(case["base"]).vocab_size
        base = kind.from_pretrained(case["base"], config=config)
        if words != config.vocab_size:
            base.resize_token_embeddings(words)
        model = PeftModel.from_pretrained(base, folder).eval()
    else:
        model = kind.from_pretrained(folder).eval()
    tokenizer, found = transformers.AutoTokenizer.from_pretrained(folder), []
    for text in job["texts"]:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0].double()
        if logits.dim() == 2:
            logits = logits[-len(tokenizer(text)["input_ids"]):]
        found.append(logits.flatten().tolist())
    return found

job = json.load(open(sys.argv[1]))
answers = {name: outputs(case) for name, case in job["cases"].items()}
assert not any(name.startswith("finesmith") for name in sys.modules)
json.dump(answers, open(sys.argv[2], "w"))
"""


class Jobs:
    """A run of each task and method, made when first asked for."""

    def __init__(self, folder: Path, bert: Path, llama: Path, plain: Plain) -> None:
        self.folder, self.bert, self.llama, self._plain = folder, bert, llama, plain
        rows = [(text, label if i % 5 else "mixed") for i, (text, label) in enumerate(reviews(90))]
        self.rows = write_csv(folder / "reviews.csv", rows)
        self.sentences = write_conll(folder / "names.conll", sentences(70))
        self.text = folder / "text.txt"
        self.text.write_text("\n\n".join(text for text, _ in reviews(70, words=24)), "utf-8")

    def base(self, task: str) -> Path:
        return self.llama if task == "causal-text" else self.bert

    def tree(self, task: str, method: str, **values: Any) -> dict[str, Any]:
        base, cache = self.base(task), self.folder / "cache"
        # Far from the beginning: an adapter that hardly moved would prove little.
        rate = default_learning_rate(method, 1)[0] * 5
        given = {"method__name": method, "train__learning_rate": rate, **values}
        if task == "classification":
            tree = plan(self.rows, base, cache, **given)
            if method == "features":
                return tree | {"train": {}, "model": {"base": str(base)}}
            return tree
        data = self.sentences if task == "token-classification" else self.text
        dropout = {"model__dropout": None} if task == "causal-text" else {}
        return language_plan(task, data, base, cache, train__epochs=1, **{**given, **dropout})

    @functools.cache  # noqa: B019 - as many entries as there are cases
    def run(self, task: str, method: str) -> Path:
        return tuned(self.tree(task, method), self.folder / f"{task}-{method}")

    @functools.cache  # noqa: B019
    def merged(self, task: str, method: str) -> dict[str, Any]:
        return merge(str(self.run(task, method)))

    @functools.cache  # noqa: B019
    def plain(self) -> dict[str, list[list[float]]]:
        """Return what plain libraries answer, by the name of each model."""
        cases = {}
        for task, method in CASES:
            run = self.run(task, method)
            form = {"features": "sentence-transformers"}.get(method, "peft" if method in ADAPTERS else "transformers")
            case = {"folder": str(run / "model"), "form": form, "class": CLASSES[task], "base": str(self.base(task))}
            cases[f"{task} {method}"] = case
        for task, method in MERGED:
            made = self.merged(task, method)
            assert made["loads_with"] == CLASSES[task]
            cases[f"{task} {method} merged"] = {"folder": made["folder"], "form": "", "class": CLASSES[task]}
        job, found = self.folder / "job.json", self.folder / "answers.json"
        job.write_text(json.dumps({"texts": TEXTS, "cases": cases}), "utf-8")
        self._plain(PLAIN, str(job), str(found))
        return json.loads(found.read_text("utf-8"))  # type: ignore[no-any-return]


def ours(folder: str, task: str) -> list[list[float]]:
    """Return what finesmith's own loading and running answers."""
    from finesmith.data.batches import ragged
    from finesmith.data.tokens import tokenize
    from finesmith.models.token_loss import token_logits

    model: Any = load_run(folder)
    network = model.network if task != "classification" else model.predictor.network
    tokens = tokenize(TEXTS, None, network.tokenizer, max_length=None, cache=None)
    if task == "classification":
        return model.predictor.logits(tokens, np.arange(len(TEXTS))).tolist()  # type: ignore[no-any-return]
    with torch.no_grad():
        batches = [ragged(tokens, np.array([i]), ids=np.arange(len(TEXTS))) for i in range(len(TEXTS))]
        return [token_logits(network, batch).double().flatten().tolist() for batch in batches]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny Llama whose embeddings are tied, and a tokenizer of words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tied-llama")
    tokenizer: Any = bert_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, llama: Path, plain: Plain) -> Iterator[Jobs]:
    # The report is made from the other files, so it is not looked at here, and it takes a third of such a short run.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finesmith.report.page.build", lambda folder: folder / "report.html")
        yield Jobs(tmp_path_factory.mktemp("adapters"), tiny_model, llama, plain)


@pytest.mark.parametrize(("task", "method"), CASES)
def test_plain_libraries_give_the_same_outputs(task: str, method: str, jobs: Jobs) -> None:
    if method == "features":
        pytest.importorskip("sentence_transformers")
        model: Any = load_run(str(jobs.run(task, method)))
        expected = np.log(np.array([one["probabilities"] for one in _rows(model.predict(TEXTS))]))
        found = np.array(jobs.plain()[f"{task} {method}"])
        found = found - np.log(np.exp(found).sum(1, keepdims=True))
    else:
        expected = np.concatenate(ours(str(jobs.run(task, method)), task))
        found = np.concatenate(jobs.plain()[f"{task} {method}"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 1e-3, "outputs must differ for this to mean anything"


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(("task", "method"), MERGED)
def test_a_merged_model_is_the_same_in_plain_transformers_and_here(task: str, method: str, jobs: Jobs) -> None:
    made = jobs.merged(task, method)
    expected = np.concatenate(ours(str(jobs.run(task, method)), task))
    np.testing.assert_allclose(np.concatenate(jobs.plain()[f"{task} {method} merged"]), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(ours(made["folder"], task)), expected, rtol=1e-3, atol=1e-4)
    assert made["gap"] <= made["tolerance"] == 1e-4
    assert made["moved"] > 1e-3, "the adapter must do something for this to mean anything"
    assert made["compared"].endswith("test rows of the run")
    assert made["tied"] == (task in ("causal-text", "masked-text"))


@pytest.mark.parametrize(("task", "method"), [case for case in CASES if case[1] in ADAPTERS])
def test_a_run_says_what_was_trained(task: str, method: str, jobs: Jobs) -> None:
    run = jobs.run(task, method)
    facts, about = read(run, "model.json"), read(run, "model/finesmith.json")
    assert facts["method"] == about["method"] == method
    assert 0 < facts["trainable"] < facts["parameters"]
    assert facts["reload_gap"] <= 1e-4
    assert about["base_sha256"] == facts["base_sha256"] is not None
    assert facts["attention"]["kind"] == ("padded" if method == "prompt" else "ragged")
    written = (run / "recipe.yaml").read_text("utf-8")
    alpha = {"lora": 32, "rslora": 8, "dora": 32, "pissa": 16}.get(method)
    assert (f"lora_alpha: {alpha}" in written) == (alpha is not None)
    assert "PeftModel.from_pretrained" in (run / "model" / "README.md").read_text("utf-8")


def test_a_merged_model_predicts_and_is_evaluated_as_its_run(jobs: Jobs, tmp_path: Path) -> None:
    import finesmith
    from finesmith.workflows.apply import evaluate_file

    run, folder = jobs.run("classification", "dora"), Path(jobs.merged("classification", "dora")["folder"])
    before = sorted(path.name for path in folder.rglob("*"))
    whole, plain = (evaluate_file(str(place), str(jobs.rows)) for place in (run, folder))
    assert whole["scores"]["log_loss"]["value"] == pytest.approx(plain["scores"]["log_loss"]["value"], abs=1e-5)
    assert sorted(path.name for path in folder.rglob("*")) == before, "a model folder stays as it is"
    rows = table(run / "predictions" / "test.parquet")
    answered = finesmith.load(folder).predict(rows["text"])
    np.testing.assert_allclose([one["probabilities"] for one in answered], rows["probabilities"], atol=1e-5)
    assert read(folder, "finesmith.json")["merged"]["method"] == "dora"


@pytest.mark.parametrize(
    ("task", "method"), [*(("classification", kind) for kind in ADAPTERS), ("token-classification", "prompt")]
)
def test_the_preflight_has_nothing_against_them(task: str, method: str, jobs: Jobs) -> None:
    from finesmith.recipe import from_dict
    from finesmith.workflows.check import check

    found = check(from_dict(with_values(jobs.tree(task, method), {"train.learning_rate": None})))
    assert found["ok"], found["probes"]
    words = {"data.domain_words": ["moviegoer"]}
    if task == "classification" and method not in ("ia3", "prompt"):
        assert check(from_dict(with_values(jobs.tree(task, method), words)))["ok"], "though no row holds the word"


def test_instructions_are_merged_with_template_and_settings(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", conversations(60))
    base = write_tiny_llama(tmp_path / "base")
    values = {"method__name": "dora", "model__dropout": None, "train__epochs": 1}
    run = tuned(language_plan("instruct", rows, base, tmp_path / "cache", **values), tmp_path / "run")
    assert merge(str(run))["moved"] > 1e-2
    for name in ("chat_template.jinja", "generation_config.json"):
        assert (run / "merged" / name).read_bytes() == (run / "model" / name).read_bytes()
    before, after = (load_run(str(folder)).predict(TEXTS[:2]) for folder in (run, run / "merged"))
    assert before == after


def test_merged_embeddings_are_pooled_as_their_adapter_was(tiny_model: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    rows = [(f"{text} really", text) for text, _ in reviews(60)]
    data = write_csv(tmp_path / "pairs.csv", rows, ("query", "passage"))
    values = {"method__name": "pissa", "method__pooling": "cls", "train__learning_rate": 5e-3, "train__epochs": 1}
    run = tuned(language_plan("embeddings", data, tiny_model, tmp_path / "cache", **values), tmp_path / "run")
    folder = merge(str(run))["folder"]
    expected, found = (np.array(load_run(str(place)).predict(TEXTS)["embedding"]) for place in (run, folder))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)


@pytest.mark.parametrize(("task", "method"), [("classification", "lora"), ("classification", "pissa")])
def test_words_added_are_trained_saved_and_merged(task: str, method: str, jobs: Jobs, tmp_path: Path) -> None:
    rows = [(f"a moviegoer said {text}", label) for text, label in reviews(60)]
    data = write_csv(tmp_path / "words.csv", rows)
    run = tuned(jobs.tree(task, method, data__train=str(data), data__domain_words=["moviegoer"]), tmp_path / "run")
    made = merge(str(run))
    assert made["gap"] <= 1e-4
    saved = load_file(run / "model" / "adapter_model.safetensors")
    base, whole = load_file(jobs.bert / "model.safetensors"), load_file(run / "merged" / "model.safetensors")
    first, second = base["embeddings.word_embeddings.weight"], whole["bert.embeddings.word_embeddings.weight"]
    assert not any(len(tensor) >= len(first) for tensor in saved.values()), "no whole table beside the adapter"
    assert len(second) == len(first) + 1
    assert torch.equal(second[:-1], first)
    tokenizer: Any = bert_tokenizer()
    pieces = tokenizer("moviegoer", add_special_tokens=False)["input_ids"]
    assert not torch.allclose(second[-1], first[pieces].mean(0), atol=1e-4), "the new word moved"
    [answer] = load_run(str(run / "merged")).predict(["moviegoer"])["probabilities"]
    [expected] = load_run(str(run)).predict(["moviegoer"])["probabilities"]
    np.testing.assert_allclose(answer, expected, atol=1e-5)


# --- resume ----------------------------------------------------------------------------------------------------------

RESUMED = [("classification", kind) for kind in ADAPTERS if kind != "lora"] + [("token-classification", "prompt")]


@pytest.mark.parametrize(("task", "method"), RESUMED)
def test_an_interrupted_run_ends_with_the_same_bits(
    task: str, method: str, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import differences

    from finesmith.workflows.tune import resume

    tree = with_values(jobs.tree(task, method), {"train.epochs": 2, "model.dropout": 0.2})
    whole = tuned(tree, tmp_path / "whole")
    stopped_at(2, tree, tmp_path / "again", monkeypatch)
    resume(str(tmp_path / "again"))
    assert differences(whole, tmp_path / "again") == []


def stopped_at(number: int, tree: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a recipe until so many checkpoints were saved."""
    from finesmith.workflows import training

    save, saved = training._save, []

    def stop(*given: Any, **named: Any) -> None:
        save(*given, **named)
        saved.append(1)
        if len(saved) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            tuned(tree, folder)


def test_a_base_taken_apart_otherwise_is_not_gone_on_with(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another library of linear algebra may find other parts, to which the matrices of a checkpoint do not belong."""
    from finesmith.errors import RunError
    from finesmith.models import adapter_kinds
    from finesmith.workflows.tune import resume

    stopped_at(1, jobs.tree("classification", "pissa"), tmp_path / "run", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(adapter_kinds, "start_of", lambda _: "f" * 64)
        with pytest.raises(RunError, match=r"base model was [0-9a-f]{16} taken out of .* is now f{16} taken out of"):
            resume(str(tmp_path / "run"))
    resume(str(tmp_path / "run"))
    assert read(tmp_path / "run", "run.json")["state"] == "finished"
