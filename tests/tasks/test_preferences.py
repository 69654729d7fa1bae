"""Losses of real rows through the task against plain transformers, answer by answer; the reference."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesmith.errors import DataError, UserError
from finesmith.models.adapter_kinds import add_adapter, before_tuning
from finesmith.models.language import load_language_model
from finesmith.models.load import find, load_tokenizer
from finesmith.tasks.corpus import Choices, Corpus, Encoded, Reading
from finesmith.tasks.preference_losses import Objective
from finesmith.tasks.preference_rivals import answers, best_border, halved
from finesmith.tasks.preferences import Preferences
from tiny import write_tiny_llama

PAIRS = [
    ("is the film good", "the film is good and fun", "bad"),
    ("a story", "it was warm", "it was cold and dark but very very clever"),
    ("red or blue", "red", "blue and green"),
    ("why is the plot dull", "the plot is not dull at all it is great fun for one and two", "dull"),
    ("one two three", "four", "four five six seven"),
]
MARKED = [(prompt, one, number % 2 == 0) for number, (prompt, one, _) in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def rows_of(loss: str) -> list[dict[str, Any]]:
    if loss == "kto":
        return [{"prompt": prompt, "completion": answer, "label": good} for prompt, answer, good in MARKED]
    return [{"prompt": prompt, "chosen": one, "rejected": other} for prompt, one, other in PAIRS]


def prepared(loss: str, llama: Path, tmp_path: Path, attention: Any) -> tuple[Preferences, Any, Corpus, Encoded]:
    """Return task, network in float64, rows and their tokens; the network is then moved away from where it began."""
    base = find(str(llama), None)
    tokenizer = load_tokenizer(base)
    network, _ = load_language_model(
        base, tokenizer, kind="causal", seed=0, attention=attention, dtype=torch.float64
    )  # fmt: skip
    numbers = {"beta": 0.3, "smoothing": 0.1, "odds_weight": 0.7, "desirable_weight": 1.2, "undesirable_weight": 0.8}
    choices = Choices(objective=Objective(loss, **numbers))
    laid = Preferences.lay_out(
        Preferences.read([written(tmp_path / f"{loss}.jsonl", rows_of(loss))], Reading()), tokenizer, choices, 64
    )
    assert laid is not None
    task = Preferences.learn(laid.corpus, laid.choices)
    encoded = task.begin(network, task.encode(laid.corpus, tokenizer, 64), cache=None, key="")
    move(network.module)
    return task, network, laid.corpus, encoded


def move(module: torch.nn.Module) -> None:
    torch.manual_seed(30)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


class Plain:
    """The untouched and the moved model in plain transformers, one conversation at a time."""

    def __init__(self, llama: Path, template: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(llama)
        self.tokenizer.chat_template = template
        self.reference = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64).eval()
        self.policy = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64).eval()
        move(self.policy)

    def ids(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        asked = [{"role": "user", "content": prompt}]
        whole = self.tokenizer.apply_chat_template(
            [*asked, {"role": "assistant", "content": answer}], return_dict=False
        )
        before = self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert whole[: len(before)] == before
        assert whole[-1] == self.tokenizer.eos_token_id
        return before, whole[len(before) :]

    def log_p(self, model: Any, before: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            logs = model(torch.tensor([before + answer])).logits[0].log_softmax(-1)
        return sum(float(logs[len(before) + place - 1, token]) for place, token in enumerate(answer))

    def moved(self, before: list[int], answer: list[int]) -> float:
        return self.log_p(self.policy, before, answer) - self.log_p(self.reference, before, answer)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(loss: str, plain: Plain) -> list[float]:
    """Return the loss of each row, from the papers' formulas and plain transformers."""
    if loss == "kto":
        ids = [plain.ids(prompt, answer) for prompt, answer, _ in MARKED]
        gone = [plain.moved(ids[row][0], ids[(row + 1) % len(ids)][1]) for row in range(len(ids))]
        z = max(0.0, sum(gone) / len(gone))
        assert z > 0, "else the test says nothing of it"
        rewards = [0.3 * (plain.moved(*each) - z) for each in ids]
        return [
            1.2 * (1 - sigmoid(reward)) if good else 0.8 * (1 - sigmoid(-reward))
            for reward, (_, _, good) in zip(rewards, MARKED, strict=True)
        ]
    found = []
    for prompt, one, other in PAIRS:
        sides = [plain.ids(prompt, one), plain.ids(prompt, other)]
        if loss == "orpo":
            means = [plain.log_p(plain.policy, *side) / len(side[1]) for side in sides]
            odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in means]
            found.append(-means[0] - 0.7 * math.log(sigmoid(math.log(odds[0] / odds[1]))))
            continue
        h = plain.moved(*sides[0]) - plain.moved(*sides[1])
        if loss == "ipo":
            found.append((h - 1 / (2 * 0.3)) ** 2)
        else:
            found.append(-0.9 * math.log(sigmoid(0.3 * h)) - 0.1 * math.log(sigmoid(-0.3 * h)))
    return found


@pytest.mark.parametrize("attention", ["ragged", "padded"])
@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "kto"])
def test_the_loss_of_real_rows_equals_plain_transformers(
    loss: str, attention: str, llama: Path, tmp_path: Path
) -> None:
    task, network, corpus, encoded = prepared(loss, llama, tmp_path, attention)
    assert network.ragged == (attention == "ragged")
    expected = by_hand(loss, Plain(llama, network.tokenizer.chat_template))
    ids = np.arange(len(corpus))
    # In one micro-batch and in several: KTO's divergence is of all of a step's rows.
    for parts in ([ids], [ids[:2], ids[2:]]):
        made = [task.batch(encoded, part, ids + 10, 0, 0, "cpu") for part in parts]
        made = task.prepared(network, encoded, made)
        assert task.units(made) == len(corpus)
        total, count = 0.0, 0
        for batch in made:
            assert batch.lengths.tolist() == sorted(batch.lengths.tolist())
            value, rows = task.loss(network, encoded, batch)
            total, count = total + value.item(), count + rows
        assert count == len(corpus)
        assert total == pytest.approx(sum(expected), abs=1e-8)
    outcome = task.predict(network, encoded)
    assert outcome.answers.losses.tolist() == pytest.approx(expected, abs=1e-8)
    assert outcome.loss == pytest.approx(sum(expected) / len(expected), abs=1e-8)
    measured = task.measure(corpus, encoded, outcome)
    assert measured["preference_loss"].value == pytest.approx(outcome.loss)
    assert measured["reward_accuracy"].value == pytest.approx(np.mean(outcome.answers.margins > 0))


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "kto"])
def test_a_row_drawn_twice_in_a_step_counts_twice(loss: str, llama: Path, tmp_path: Path) -> None:
    task, network, _, encoded = prepared(loss, llama, tmp_path, "auto")
    expected = by_hand(loss, Plain(llama, network.tokenizer.chat_template))
    if loss == "kto":
        # What the answers of other rows say is of each step's own rows.
        encoded = replace(encoded, detail=replace(encoded.detail, mismatched=None))
        ids = np.arange(len(expected))
        (whole,) = task.prepared(network, encoded, [task.batch(encoded, ids, ids, 0, 0, "cpu")])
        parts = [task.batch(encoded, np.array([row]), ids, 0, 0, "cpu") for row in ids]
        expected = [task.loss(network, encoded, part)[0].item() for part in parts]
        assert task.loss(network, encoded, whole)[0].item() == pytest.approx(sum(expected), abs=1e-8)
    drawn = np.array([3, 1, 3, 0, 1, 3])
    made = task.batch(encoded, drawn, np.arange(5), 0, 0, "cpu")
    value, rows = task.loss(network, encoded, made)
    assert (rows, task.units([made])) == (6, 6)
    assert value.item() == pytest.approx(sum(expected[row] for row in drawn), abs=1e-8)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_model_measured_against_itself_has_no_preference(loss: str, llama: Path, tmp_path: Path) -> None:
    task, network, corpus, encoded = prepared(loss, llama, tmp_path, "auto")
    here = task.begin(network, encoded, cache=None, key="")
    outcome = task.predict(network, here)
    assert outcome.answers.margins.tolist() == [0.0] * len(corpus)
    measured = task.measure(corpus, here, outcome)
    assert (measured["reward_accuracy"].value, measured["reward_margin"].value) == (0.5, 0.0)
    assert set(task.columns(corpus, outcome, quote=False)["prediction"]) == {"neither"}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_reference_is_the_network_without_its_adapter(kind: Any, llama: Path, tmp_path: Path) -> None:
    task, network, _, encoded = prepared("kto", llama, tmp_path, "auto")
    before = answers(network, encoded.detail.sequences)
    add_adapter(network, kind, {"r": 2}, seed=0, purpose="causal")
    with torch.no_grad():
        for parameter in network.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert np.abs(answers(network, encoded.detail.sequences) - before).max() > 1e-3
    with before_tuning(network, lambda: pytest.fail("a second model is not needed")) as reference:
        found = task.begin(reference, encoded, cache=None, key="").detail.reference
    assert np.abs(found - before).max() < 1e-9


def test_the_reference_comes_from_the_cache_and_only_for_the_same_rows_and_weights(llama: Path, tmp_path: Path) -> None:
    task, network, corpus, encoded = prepared("dpo", llama, tmp_path, "auto")
    first = task.begin(network, encoded, cache=tmp_path / "cache", key="weights").detail.reference
    move(network.module)
    again = task.begin(network, encoded, cache=tmp_path / "cache", key="weights").detail.reference
    assert again.tolist() == first.tolist()
    other = task.begin(network, encoded, cache=tmp_path / "cache", key="other weights").detail.reference
    assert other.tolist() != first.tolist()
    fewer = task.encode(task.take(corpus, [0, 2]), network.tokenizer, 64)
    assert len(task.begin(network, fewer, cache=tmp_path / "cache", key="weights").detail.reference) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_pair_is_two_sequences_of_one_row(llama: Path, tmp_path: Path) -> None:
    task, _, corpus, encoded = prepared("dpo", llama, tmp_path, "auto")
    assert len(encoded.rows) == len(corpus) == 5
    sizes = encoded.detail.sequences.lengths()
    assert encoded.rows.lengths().tolist() == (sizes[::2] + sizes[1::2]).tolist()
    batch = task.batch(encoded, np.array([3, 1]), np.arange(5) * 7, 0, 0, "cpu")
    assert sorted(batch.ids.tolist()) == [7, 7, 21, 21]
    assert sorted(batch.extra.sequences.tolist()) == [2, 3, 6, 7]
    assert corpus.texts[0].count("assistant:") == 2


def test_a_pair_is_dropped_with_both_answers_when_one_does_not_fit(llama: Path, tmp_path: Path) -> None:
    rows = [*rows_of("dpo"), {"prompt": "a", "chosen": "b", "rejected": "very " * 60}]
    tokenizer = load_tokenizer(find(str(llama), None))
    corpus = Preferences.read([written(tmp_path / "long.jsonl", rows)], Reading())
    laid = Preferences.lay_out(corpus, tokenizer, Choices(), 64)
    assert laid is not None
    assert (laid.kept.tolist(), dict(laid.lost)) == ([0, 1, 2, 3, 4], {"too long": 1})
    with pytest.raises(DataError, match=r"long.jsonl: none of the 6 rows can be used: 6 have an answer that does not"):
        Preferences.lay_out(corpus, tokenizer, Choices(), 6)


def test_contradictions_show_as_one_text_under_two_labels_and_equal_answers_have_no_label(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "p", "chosen": "c", "rejected": "c"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ]
    corpus = Preferences.read([written(tmp_path / "odd.jsonl", rows)], Reading())
    assert corpus.texts[0] == corpus.texts[1]
    assert corpus.labels == ["the first answer", "the second answer", None, "the first answer"]
    assert corpus.groups is not None
    assert len({*corpus.groups[:3]}) == 1
    assert corpus.groups[3] != corpus.groups[0]


def test_malformed_rows_are_named_or_counted(tmp_path: Path) -> None:
    rows = [*rows_of("dpo"), {"prompt": "p", "chosen": "", "rejected": "x"}, {"prompt": "p", "chosen": "y"}]
    path = written(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=r"2 of 7 rows cannot be used:\n.*bad.jsonl row 6: .*empty"):
        Preferences.read([path], Reading())
    corpus = Preferences.read([path], Reading(malformed="drop"))
    assert (len(corpus), dict(corpus.lost)) == (5, {"malformed": 2})
    assert corpus.where[-1].endswith("row 5")
    with pytest.raises(DataError, match="row 6"):
        Preferences.read_unlabelled([path], Reading(malformed="drop"))


@pytest.mark.parametrize(("loss", "rows"), [("kto", "dpo"), ("dpo", "kto"), ("orpo", "kto")])
def test_a_loss_of_other_rows_is_refused(loss: str, rows: str, tmp_path: Path) -> None:
    corpus = Preferences.read([written(tmp_path / "rows.jsonl", rows_of(rows))], Reading())
    with pytest.raises(UserError, match=f"train.loss is {loss}, but the rows are"):
        Preferences.learn(corpus, Choices(objective=Objective(loss)))


@pytest.mark.parametrize(("rows", "loss"), [("dpo", "dpo"), ("kto", "kto")])
def test_the_rows_choose_the_loss(rows: str, loss: str, tmp_path: Path) -> None:
    corpus = Preferences.read([written(tmp_path / "rows.jsonl", rows_of(rows))], Reading())
    task = Preferences.learn(corpus, Choices())
    assert task.objective.loss == loss
    assert Preferences.from_state(json.loads(json.dumps(task.state))) == task
    other = Preferences.read([written(tmp_path / "other.jsonl", rows_of("kto" if rows == "dpo" else "dpo"))], Reading())
    with pytest.raises(DataError, match="but this model was tuned on"):
        task.require_known(other)
    with pytest.raises(DataError, match="expected one form in all files"):
        Preferences.join([corpus, other])


def test_marks_of_one_kind_teach_nothing(tmp_path: Path) -> None:
    rows = [{**row, "label": True} for row in rows_of("kto")]
    corpus = Preferences.read([written(tmp_path / "rows.jsonl", rows)], Reading())
    with pytest.raises(DataError, match="all of the 5 training answers are good"):
        Preferences.learn(corpus, Choices())


@pytest.mark.parametrize(("loss", "name"), [("dpo", "longer"), ("dpo", "base"), ("kto", "longer"), ("kto", "base")])
def test_baselines_know_lengths_and_likelihoods(loss: str, name: str, llama: Path, tmp_path: Path) -> None:
    task, network, corpus, encoded = prepared(loss, llama, tmp_path, "auto")
    plain = Plain(llama, network.tokenizer.chat_template)
    fitted = task.fit_baseline(name, corpus, encoded, lambda: pytest.fail("the reference is known"))
    margins = fitted.answer(corpus, encoded).answers.margins

    def score(prompt: str, answer: str) -> float:
        before, said = plain.ids(prompt, answer)
        return len(said) if name == "longer" else plain.log_p(plain.reference, before, said) / len(said)

    if loss == "dpo":
        expected = [score(prompt, one) - score(prompt, other) for prompt, one, other in PAIRS]
        assert margins.tolist() == pytest.approx(expected, abs=1e-8)
    else:
        values = np.array([score(prompt, answer) for prompt, answer, _ in MARKED])
        border, way = best_border(values, np.array([good for _, _, good in MARKED]))
        expected = [(1 if good else -1) * way * (v - border) for v, (_, _, good) in zip(values, MARKED, strict=True)]
        assert margins.tolist() == pytest.approx(expected, abs=1e-8)
    measured = task.measure(corpus, encoded, fitted.answer(corpus, encoded))
    assert set(measured) == {"reward_accuracy"}
    coin = task.fit_baseline("majority", corpus, encoded, lambda: network)
    value = task.measure(corpus, encoded, coin.answer(corpus, encoded))["reward_accuracy"].value
    assert value == (0.5 if loss == "dpo" else 0.6)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_border_is_as_good_as_any(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 12))
    values, good = draw.integers(-3, 4, count).astype(float), draw.random(count) < 0.5
    border, way = best_border(values, good)

    def right(border: float, way: float) -> int:
        return int(((way * (values - border) > 0) == good).sum())

    assert not (values == border).any()
    assert right(border, way) == max(right(b - 0.5, w) for b in range(-4, 6) for w in (1.0, -1.0))


def test_progress_of_pairs_counts_rows() -> None:
    told: list[int] = []
    tell = halved(told.append)
    assert tell is not None
    for count in (3, 1, 5, 1):
        tell(count)
    assert sum(told) == 5


def test_what_moved_is_told_a_token(llama: Path, tmp_path: Path) -> None:
    task, network, corpus, encoded = prepared("dpo", llama, tmp_path, "auto")
    plain = Plain(llama, network.tokenizer.chat_template)
    chosen, rejected = task.details(corpus, task.predict(network, encoded))["answers"]
    ids = [plain.ids(prompt, one) for prompt, one, _ in PAIRS]
    tokens = sum(len(said) for _, said in ids)
    assert (chosen["answers"], rejected["answers"], chosen["rows"]) == ("chosen", "rejected", 5)
    assert chosen["before"] == pytest.approx(sum(plain.log_p(plain.reference, *each) for each in ids) / tokens)
    assert chosen["after"] == pytest.approx(sum(plain.log_p(plain.policy, *each) for each in ids) / tokens)
    assert (
        task.details(
            corpus,
            replace(
                task.predict(network, encoded), answers=replace(task.predict(network, encoded).answers, reference=None)
            ),
        )
        == {}
    )
