"""What is saved answers in plain transformers, peft and sentence-transformers as it did in finesmith."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finesmith.data.tokens import tokenize
from finesmith.models import forward
from finesmith.models.adapter_kinds import add_adapter
from finesmith.models.forward import Network
from finesmith.models.load import find, load_classifier, load_tokenizer
from finesmith.models.reload import read_dense, reload_network
from finesmith.models.save import save_classifier, save_features
from finesmith.models.vocabulary import add_words
from finesmith.tasks.regression import Regression
from finesmith.train.linear import LinearHead
from finesmith.workflows.finish import fold_rescaling, save_network, save_predictor
from finesmith.workflows.inference import Predictor

TEXTS = ["a good film", "the plot was awful, and dull", "zyxwv", "one two three four five six seven eight nine ten"]
PAIRS = ["good", "it is", "red", "ten"]

# Runs where finesmith is not imported: loads each folder as its users would and writes what it answers.
PLAIN = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

def logits(folder, model, pairs):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        inputs = tokenizer(job["texts"], job["pairs"] if pairs else None, padding=True, return_tensors="pt")
        return model.eval()(**inputs).logits.double().tolist()

def answer(case):
    folder = case["folder"]
    if case["form"] == "transformers":
        return logits(folder, AutoModelForSequenceClassification.from_pretrained(folder), case["pairs"])
    config = AutoConfig.from_pretrained(folder)
    if case["form"] == "peft":
        from peft import PeftModel
        base = AutoModelForSequenceClassification.from_pretrained(case["base"], config=config)
        return logits(folder, PeftModel.from_pretrained(base, folder), case["pairs"])
    if case["form"] == "auto peft":
        from peft import AutoPeftModelForSequenceClassification
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=config.num_labels)
        return logits(folder, model, case["pairs"])
    if case["form"] == "encoder":
        from transformers import AutoModel
        model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in job["texts"]]
        return [row.mean(0).double().tolist() for row in rows]
    from sentence_transformers import SentenceTransformer
    return SentenceTransformer(folder, device="cpu").encode(job["texts"]).astype("float64").tolist()

if __name__ == "__main__":
    job = json.load(open(sys.argv[1]))
    answers = {name: answer(case) for name, case in job["cases"].items()}
    assert "finesmith" not in sys.modules
    json.dump(answers, open(sys.argv[2], "w"))
"""


def network_on(base: Path, outputs: int = 3) -> Network:
    found = find(str(base))
    labels = ("bad", "good", "so so") if outputs == 3 else None
    problem: Any = "single_label_classification" if outputs == 3 else "regression"
    network, _ = load_classifier(found, load_tokenizer(found), outputs=outputs, problem=problem, labels=labels, seed=3)
    return network


def shake(network: Network) -> Network:
    """Move everything trainable, as training would."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    network.module.eval()
    return network


def answers(network: Network, *, pairs: bool = False) -> torch.Tensor:
    return predicted(Predictor(network), pairs=pairs)


def predicted(predictor: Predictor, *, pairs: bool = False) -> torch.Tensor:
    import numpy as np

    tokens = tokenize(TEXTS, PAIRS if pairs else None, predictor.network.tokenizer, max_length=None, cache=None)
    return torch.from_numpy(predictor.logits(tokens, np.arange(len(TEXTS))))


def write_base(kind: str, folder: Path) -> Path:
    """Write a small base model whose classifier has more than one new module, or lacks a tensor."""
    from transformers import (
        AutoModel,
        BertConfig,
        BertModel,
        DebertaV2Config,
        DistilBertConfig,
        LlamaConfig,
        RobertaConfig,
    )

    from tiny import bert_tokenizer

    tokenizer: Any = bert_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24, "pad_token_id": 0,
    }  # fmt: skip
    config = {
        "distilbert": lambda: DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=24),
        "roberta": lambda: RobertaConfig(**sizes, max_position_embeddings=70, type_vocab_size=1),
        "deberta": lambda: DebertaV2Config(**sizes),
        "llama": lambda: LlamaConfig(**sizes, bos_token_id=2, eos_token_id=3),
        "bert without pooler": lambda: BertConfig(**sizes),
    }[kind]()
    torch.manual_seed(1)
    if kind == "bert without pooler":
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    else:
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def features_predictor(base: Path, outputs: int, pooling: Any) -> Predictor:
    network = network_on(base, outputs)
    network.module.requires_grad_(False)
    network.module.eval()
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(outputs, network.classifier.config.hidden_size, generator=random, dtype=torch.float64)
    head = LinearHead(weight, torch.arange(outputs, dtype=torch.float64), 0.1, {})
    return Predictor(network, head, pooling)


LORA: dict[str, Any] = {"r": 2, "lora_alpha": 8}


@pytest.fixture(scope="module")
def told(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Save every kind of model; return what finesmith answered and what the plain libraries answer."""
    root = tmp_path_factory.mktemp("saved")
    cases: dict[str, dict[str, Any]] = {}
    ours: dict[str, torch.Tensor] = {}

    def add(name: str, form: str, folder: Path, found: torch.Tensor, *, base: Path = tiny_model, pairs: bool = False):
        cases[name] = {"form": form, "folder": str(folder), "base": str(base), "pairs": pairs}
        ours[name] = found

    def save(name: str, network: Network, form: str, *, base: Path = tiny_model, pairs: bool = False) -> Path:
        folder = root / name
        found = answers(network, pairs=pairs)
        save_network(network, folder)
        add(name, form, folder, found, base=base, pairs=pairs)
        return folder

    save("full", shake(network_on(tiny_model)), "transformers")
    save("pairs", shake(network_on(tiny_model)), "transformers", pairs=True)

    words = network_on(tiny_model)
    added = add_words(words.classifier, words.tokenizer, ["zyxwv"])
    assert added.words == ("zyxwv",)
    save("words", shake(words), "transformers")

    for kind in ("roberta", "deberta", "llama"):
        base = write_base(kind, root / f"base {kind}")
        save(f"full {kind}", shake(network_on(base)), "transformers", base=base)
    for kind in ("bert", "distilbert", "deberta", "roberta", "llama", "bert without pooler"):
        base = tiny_model if kind == "bert" else root / f"base {kind}"
        if not base.exists():
            write_base(kind, base)
        network = network_on(base)
        add_adapter(network, "lora", LORA, seed=0)
        folder = save(f"lora {kind}", shake(network), "peft", base=base)
        add(f"auto lora {kind}", "auto peft", folder, ours[f"lora {kind}"])

    for method in ("full", "lora"):
        network = network_on(tiny_model, 1)
        if method == "lora":
            add_adapter(network, "lora", LORA, seed=0)
        predictor, task = Predictor(shake(network)), Regression(2.5, 7.0)
        found = torch.from_numpy(task.outputs(predicted(predictor).numpy()))[:, None]
        left = fold_rescaling(predictor, task)
        assert left.rescaling == (1.0, 0.0)
        save_predictor(predictor, root / f"{method} regression", max_length=32)
        form = "peft" if method == "lora" else "transformers"
        add(f"{method} regression", form, root / f"{method} regression", found)

    forms = ["encoder"] + ["sentence-transformers"] * (importlib.util.find_spec("sentence_transformers") is not None)
    for form in forms:
        for pooling in ("mean", "cls", "last") if form != "encoder" else ("mean",):
            predictor = features_predictor(tiny_model, 3, pooling)
            name = f"features {pooling} {form}"
            save_predictor(predictor, root / name, max_length=32)
            if form == "encoder":
                predictor.head = LinearHead(torch.eye(32).double(), torch.zeros(32).double(), 0.0, {})
            add(name, form, root / name, predicted(predictor))
        if form != "encoder":
            predictor, task = features_predictor(tiny_model, 1, "mean"), Regression(2.5, 7.0)
            found = torch.from_numpy(task.outputs(predicted(predictor).numpy()))[:, None]
            fold_rescaling(predictor, task)
            save_predictor(predictor, root / "features regression", max_length=32)
            add("features regression", form, root / "features regression", found)

    (root / "plain.py").write_text(PLAIN, "utf-8")
    (root / "job.json").write_text(json.dumps({"texts": TEXTS, "pairs": PAIRS, "cases": cases}), "utf-8")
    done = subprocess.run(
        [sys.executable, str(root / "plain.py"), str(root / "job.json"), str(root / "answers.json")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((root / "answers.json").read_text("utf-8"))
    return {name: (ours[name], torch.tensor(theirs[name], dtype=torch.float64)) for name in cases}


NAMES = [
    "full", "pairs", "words", "full roberta", "full deberta", "full llama",
    *(f"{auto}lora {kind}" for auto in ("", "auto ")
      for kind in ("bert", "distilbert", "deberta", "roberta", "llama", "bert without pooler")),
    "full regression", "lora regression", "features mean encoder",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_plain_libraries_answer_the_same(name: str, told: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    found, expected = told[name]
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(found.abs().max()))
    assert float(found.std()) > 1e-3, "answers must differ for this test to mean anything"


@pytest.mark.parametrize("name", ["mean", "cls", "last", "regression"])
def test_sentence_transformers_answers_the_same(name: str, told: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    pytest.importorskip("sentence_transformers")
    found, expected = told["features regression" if name == "regression" else f"features {name} sentence-transformers"]
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(found.abs().max()))


RELOADED = ["full", "lora", "lora distilbert", "lora deberta", "lora bert without pooler"]


@pytest.mark.parametrize("name", RELOADED)
def test_finesmith_reloads_what_it_saved(name: str, tiny_model: Path, tmp_path: Path) -> None:
    kind = name.removeprefix("lora").strip()
    base = write_base(kind, tmp_path / "base") if kind and name != "full" else tiny_model
    network = network_on(base)
    if name.startswith("lora"):
        add_adapter(network, "lora", LORA, seed=0)
    before = answers(shake(network))
    save_network(network, tmp_path / "saved")
    again = reload_network(
        tmp_path / "saved", adapter_on=str(base) if name.startswith("lora") else None, outputs=3,
        problem="single_label_classification", labels=("bad", "good", "so so"), device="cpu",
    )  # fmt: skip
    assert torch.equal(answers(again), before)


def test_the_whole_head_is_trained_beside_an_adapter(tmp_path: Path) -> None:
    network = network_on(write_base("distilbert", tmp_path))
    options = add_adapter(network, "lora", LORA, seed=0)
    trained = {name for name, p in network.module.named_parameters() if p.requires_grad}
    assert options["modules_to_save"] == ["pre_classifier"]
    for part in ("pre_classifier", "classifier"):
        for tensor in ("weight", "bias"):
            assert f"base_model.model.{part}.modules_to_save.default.{tensor}" in trained
    assert any("lora_A" in name for name in trained)
    assert not any("pre_classifier" in name and "lora" in name for name in trained)


def test_saved_configurations_name_an_attention_that_others_know(tiny_model: Path, tmp_path: Path) -> None:
    network = network_on(tiny_model)
    assert network.classifier.config._attn_implementation == "finesmith_ragged"
    save_classifier(network, tmp_path / "full")
    add_adapter(network, "lora", LORA, seed=0)
    save_network(network, tmp_path / "lora")
    predictor = features_predictor(tiny_model, 3, "mean")
    save_predictor(predictor, tmp_path / "features", max_length=32)
    for path in tmp_path.rglob("*.json"):
        assert "finesmith" not in path.read_text("utf-8"), path
    assert network.classifier.config._attn_implementation == "finesmith_ragged", "and the network still runs ragged"


def test_the_head_names_the_labels_of_the_task(tiny_model: Path, tmp_path: Path) -> None:
    network = network_on(tiny_model)
    save_classifier(network, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "so so"}
    assert config["label2id"] == {"bad": 0, "good": 1, "so so": 2}
    assert config["problem_type"] == "single_label_classification"
    assert not (tmp_path / "README.md").exists()


def test_added_words_are_trained_saved_and_reloaded(tiny_model: Path, tmp_path: Path) -> None:
    network = network_on(tiny_model)
    added = add_words(network.classifier, network.tokenizer, ["replevin", "estoppel"])
    table = network.classifier.get_input_embeddings().weight
    rows = list(added.rows)
    first = table.detach()[rows].clone()
    means = torch.stack([table.detach()[list(pieces)].double().mean(0) for pieces in added.pieces])
    assert torch.allclose(first.double(), means, atol=1e-7)

    tokens = tokenize(["replevin is estoppel"], None, network.tokenizer, max_length=None, cache=None)
    assert set(rows) <= set(tokens.tokens.tolist())
    optimizer = torch.optim.SGD(network.module.parameters(), lr=0.1)
    import numpy as np

    from finesmith.data.batches import ragged

    batch = ragged(tokens, np.arange(1), ids=np.arange(1))
    (torch.nn.functional.cross_entropy(forward.logits(network, batch), torch.tensor([0])) * 100).backward()
    optimizer.step()
    trained = table.detach()[rows].clone()
    assert not torch.isclose(trained, first).all(1).any(), "each new row moved"

    save_classifier(network, tmp_path)
    again = reload_network(
        tmp_path, adapter_on=None, outputs=3, problem="single_label_classification",
        labels=("bad", "good", "so so"), device="cpu",
    )  # fmt: skip
    assert torch.equal(again.classifier.get_input_embeddings().weight.detach()[rows], trained)
    assert (
        again.tokenizer("replevin is estoppel")["input_ids"] == network.tokenizer("replevin is estoppel")["input_ids"]
    )


def test_tied_weights_survive(tmp_path: Path, tiny_model: Path) -> None:
    """A base saved with its tied language-model head loads whole, and the saved classifier stands alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(find(str(tiny_model)))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    network = shake(network_on(tmp_path / "base"))
    before = answers(network)
    save_classifier(network, tmp_path / "saved")
    again = reload_network(
        tmp_path / "saved", adapter_on=None, outputs=3, problem="single_label_classification",
        labels=("bad", "good", "so so"), device="cpu",
    )  # fmt: skip
    assert torch.equal(answers(again), before)


def damage(change: Callable[[dict[str, torch.Tensor]], None], path: Path) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("name", ["classifier.weight", "bert.encoder.layer.0.output.dense.bias"])
def test_a_saved_model_that_lost_a_tensor_is_not_loaded(name: str, tiny_model: Path, tmp_path: Path) -> None:
    from finesmith.errors import ModelError

    save_classifier(network_on(tiny_model), tmp_path)
    damage(lambda tensors: tensors.pop(name), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"lacks the weights {name}"):
        reload_network(
            tmp_path, adapter_on=None, outputs=3, problem="single_label_classification", labels=None, device="cpu"
        )


@pytest.mark.parametrize("part", ["lora_A", "classifier.weight"])
def test_an_adapter_that_lost_a_tensor_is_not_loaded(part: str, tiny_model: Path, tmp_path: Path) -> None:
    from finesmith.errors import ModelError

    network = network_on(tiny_model)
    add_adapter(network, "lora", LORA, seed=0)
    save_network(network, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    damage(lambda tensors: tensors.pop(next(name for name in tensors if part in name)), path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        reload_network(
            tmp_path, adapter_on=str(tiny_model), outputs=3, problem="single_label_classification", labels=None,
            device="cpu",
        )  # fmt: skip


def test_a_saved_linear_head_is_read_back(tiny_model: Path, tmp_path: Path) -> None:
    from finesmith.errors import ModelError

    predictor = features_predictor(tiny_model, 3, "mean")
    assert predictor.head is not None
    save_features(
        predictor.network, tmp_path, predictor.head.weight, predictor.head.bias, pooling="mean", max_length=16
    )
    weight, bias = read_dense(tmp_path)
    assert torch.equal(weight, predictor.head.weight.float())
    assert torch.equal(bias, predictor.head.bias.float())
    assert find(str(tmp_path)).pooling == "mean"
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="is missing; the model folder is damaged"):
        read_dense(tmp_path)
