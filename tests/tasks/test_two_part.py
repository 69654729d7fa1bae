"""Rows for encoder-decoders: what the encoder reads, what the decoder writes, what is cut, dropped and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from finesmith.errors import DataError, ModelError, UserError
from finesmith.models.load import find, load_tokenizer
from finesmith.tasks import two_part
from finesmith.tasks.corpus import Choices, Corpus, LaidOut, Reading, Speech
from finesmith.tasks.instruct import Instruct
from finesmith.tasks.summarisation import Summarisation
from tiny import write_tiny_t5

APART = Speech(template="none", max_new_tokens=6)
ROWS = [
    {"prompt": "the film is red", "completion": "red film"},
    {"prompt": "a very dull story", "completion": "dull"},
    {"prompt": "this", "completion": "that is a good one"},
]


@pytest.fixture(params=["t5", "bart"])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tiny_t5(tmp_path / request.param, bart=request.param == "bart")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return load_tokenizer(find(str(write_tiny_t5(tmp_path / "base"))))


def read(folder: Path, rows: list[dict[str, Any]], malformed: str | None = None) -> Corpus:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return Instruct.read([str(path)], Reading(malformed=malformed))


def laid(corpus: Corpus, tokenizer: Any, max_length: int = 64, **speech: Any) -> LaidOut:
    found = Instruct.lay_out(corpus, tokenizer, Choices(speech=replace(APART, **speech)), max_length)
    assert found is not None
    return found


def test_rows_are_what_the_tokenizer_writes_and_losses_those_of_transformers(family: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    base = find(str(family))
    words = load_tokenizer(base)
    words.chat_template = "{{ messages }}"
    found = laid(read(tmp_path, ROWS), words)
    assert words.chat_template is None
    task = Instruct.learn(found.corpus, found.choices)
    assert task.head == "seq2seq"
    assert task.settled["text.template"] == ("none", "an encoder-decoder reads a prompt as it stands")
    encoded = task.encode(found.corpus, words, 64)
    for row, each in enumerate(ROWS):
        tokens, targets = encoded.rows.row(row)
        given, answer = words(each["prompt"])["input_ids"], words(text_target=each["completion"])["input_ids"]
        assert tokens.tolist() == given + answer
        assert targets.tolist() == [-100] * len(given) + answer
        assert answer[-1] == words.eos_token_id
        assert two_part.prompt_of(encoded.rows, row) == given == encoded.answers.prompts[row]  # type: ignore[union-attr]
    network, _ = task.load(base, words, seed=0, dtype=torch.float64)
    model = AutoModelForSeq2SeqLM.from_pretrained(family, dtype=torch.float64).eval()
    network.module.eval()
    order = encoded.rows.lengths().argsort(kind="stable")
    with torch.no_grad():
        summed, count = task.loss(network, encoded, task.batch(encoded, order, order, 0, 0, "cpu"))
        expected = []
        for each in ROWS:
            inputs = words(each["prompt"], text_target=each["completion"], return_tensors="pt")
            logits = model(**inputs).logits[0].log_softmax(-1)
            expected.append(-float(logits.gather(1, inputs["labels"][0][:, None]).sum()))
    assert count == sum(len(words(text_target=each["completion"])["input_ids"]) for each in ROWS)
    assert float(summed) == pytest.approx(sum(expected), rel=1e-8)
    outcome = task.predict(network, encoded)
    assert outcome.log_probabilities == pytest.approx(-np.array(expected), rel=1e-8)
    assert dict(task.measure(found.corpus, encoded, outcome))["bits_per_byte"].value == pytest.approx(
        sum(expected) / np.log(2) / sum(len(each["completion"]) for each in ROWS)
    )


def test_answers_are_those_of_transformers_whatever_shares_a_batch(family: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(1)
    model = AutoModelForSeq2SeqLM.from_pretrained(family).eval()
    with torch.no_grad():
        # Random weights as small as those of a new model would write one word for ever, whatever the prompt.
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            parameter.mul_(2.0 if "encoder_attn" in name or "EncDec" in name else 1.0)
    model.save_pretrained(family)
    base = find(str(family))
    words = load_tokenizer(base)
    texts = [each["prompt"] for each in ROWS]
    for speech in (APART, replace(APART, strategy="beam", beams=3)):
        task = Instruct(speech, ("rouge_l",))
        asked = task.lay_out(Instruct.of_texts(texts, texts), words, task.choices, 64)
        assert asked is not None
        network, _ = task.load(base, words, seed=0)
        task.complete(network, tmp_path)
        model.generation_config = type(model.generation_config).from_pretrained(tmp_path)
        together = task.answer(network, task.encode(asked.corpus, words, 64)).answers.texts
        assert len(set(together)) > 1
        for place, text in enumerate(texts):
            ids = model.generate(**words(text, return_tensors="pt"))[0]
            assert together[place] == words.decode(ids, skip_special_tokens=True).strip()
            one = task.encode(Instruct.take(asked.corpus, [place]), words, 64)
            assert task.answer(network, one).answers.texts == (together[place],)


def test_a_system_turn_is_read_before_the_prompt(tokenizer: Any, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be good"}, {"role": "user", "content": "the film"}]
    row = {"messages": [*turns, {"role": "assistant", "content": "red"}]}
    found = laid(read(tmp_path, [row]), tokenizer)
    assert two_part.prompt_of(found.corpus.content.trained, 0) == tokenizer("be good\n\nthe film")["input_ids"]


TURNS = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "red"}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
FAULTS = {
    "several turns": (
        {"messages": TURNS * 2},
        "it has 4 turns, but an encoder-decoder takes one prompt and one answer",
    ),
    "a tool": ({"messages": [TURNS[0], CALL]}, "it has tools or thinks aloud, but an encoder-decoder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_more_than_a_prompt_and_an_answer_is_refused_by_row_or_dropped(
    fault: str, tokenizer: Any, tmp_path: Path
) -> None:
    row, said = FAULTS[fault]
    corpus = read(tmp_path, [{"messages": TURNS}, row])
    with pytest.raises(DataError, match=f"rows.jsonl row 2: {said}"):
        laid(corpus, tokenizer)
    found = laid(corpus, tokenizer, malformed="drop")
    assert found.kept.tolist() == [0]
    assert dict(found.lost) == {"not one prompt and one answer": 1}
    with pytest.raises(DataError, match=r"none of the 1 rows can be used.*1 are not one prompt"):
        laid(Instruct.take(corpus, [1]), tokenizer, malformed="drop")
    asked = replace(corpus, content=replace(corpus.content, references=None))
    with pytest.raises(DataError, match="row 1: it has 2 turns"):
        laid(asked, tokenizer)


def test_a_long_prompt_is_dropped_or_loses_its_end_and_an_answer_is_never_cut(tokenizer: Any, tmp_path: Path) -> None:
    long = [{"prompt": "one two three four five six", "completion": "a b"}, {"prompt": "it", "completion": "a " * 9}]
    corpus = read(tmp_path, [*ROWS, *long])
    dropped = laid(corpus, tokenizer, 6)
    assert (dropped.kept.tolist(), dropped.unfit, dropped.shortened) == ([0, 1, 2], 2, 0)
    assert dict(dropped.lost) == {"too long": 2}
    assert "2 of 5 rows (40%) have a prompt or an answer of more than 6 tokens" in dropped.notes[1]
    cut = laid(corpus, tokenizer, 6, too_long="shorten")
    assert (cut.kept.tolist(), cut.unfit, cut.shortened) == ([0, 1, 2, 3], 1, 1)
    assert cut.notes[0].endswith("1 prompts cut")
    ids = tokenizer("one two three four five")["input_ids"]
    assert two_part.prompt_of(cut.corpus.content.trained, 3) == ids
    assert len(ids) == 6
    task = Instruct.learn(cut.corpus, cut.choices)
    assert task.encode(cut.corpus, tokenizer, 6).answers.prompts[3] == ids  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"row 4: its prompt or its answer has more than 6 tokens"):
        laid(corpus, tokenizer, 6, too_long="stop")
    with pytest.raises(DataError, match=r"of 1 the prompt or the answer.*text\.too_long: shorten"):
        laid(Instruct.take(corpus, [3]), tokenizer, 6)


@pytest.mark.parametrize("too_long", ["drop", "shorten"])
def test_a_prompt_to_predict_on_has_the_tokens_of_training_or_no_room(
    too_long: Any, tmp_path: Path, tokenizer: Any
) -> None:
    base = find(str(tmp_path / "base"))
    texts = ["the film", "one two three four five six seven"]
    task = Instruct(replace(APART, too_long=too_long), ("rouge_l",))
    asked = task.lay_out(Instruct.of_texts(texts, texts), tokenizer, task.choices, 6)
    assert asked is not None
    network, _ = task.load(base, tokenizer, seed=0)
    written = task.answer(network, task.encode(asked.corpus, tokenizer, 6)).answers
    assert written.finished[0] != "no room"
    if too_long == "drop":
        assert (written.texts[1], written.finished[1]) == (None, "no room")
    else:
        assert asked.corpus.content.prompts[1] == tokenizer("one two three four five")["input_ids"]
        assert written.texts[1] is not None


def test_answers_end_where_generation_stops(tokenizer: Any, tmp_path: Path) -> None:
    engine, end = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    corpus = read(tmp_path, ROWS[:1])
    for single, ids in (("$A", []), ("$A [SEP] [MASK]", [end, tokenizer.mask_token_id]), ("[MASK] $A [SEP]", [end])):
        engine.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("[SEP]", end), ("[MASK]", tokenizer.mask_token_id)]
        )
        tokens, targets = laid(corpus, tokenizer).corpus.content.trained.row(0)
        assert two_part.prompt_of(laid(corpus, tokenizer).corpus.content.trained, 0)[-len(ids) :] == ids or not ids
        learnt = targets[targets != -100].tolist()
        assert learnt[-1] == end
        assert learnt.count(end) == 1
        assert (learnt[0] == tokenizer.mask_token_id) == single.startswith("[MASK]")
        assert tokens[-1] == end
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        laid(corpus, tokenizer)


def test_templates_are_for_models_of_one_part() -> None:
    assert two_part.settled_for(Speech(), two_part=True).template == "none"
    assert two_part.settled_for(Speech(), two_part=False) == Speech()
    with pytest.raises(UserError, match=r"text\.template is plain, but the base model is an encoder-decoder"):
        two_part.settled_for(Speech(template="plain"), two_part=True)
    with pytest.raises(UserError, match=r"text\.template is none, but the base model is no encoder-decoder"):
        two_part.settled_for(Speech(template="none"), two_part=False)


def test_examples_in_the_prompt_are_left_out_with_a_reason(tokenizer: Any, tmp_path: Path) -> None:
    found = laid(read(tmp_path, ROWS), tokenizer)
    task = Summarisation.learn(found.corpus, found.choices)
    encoded = task.encode(found.corpus, tokenizer, 64)
    with pytest.raises(DataError, match="no examples before it"):
        task.fit_baseline("few_shot", found.corpus, encoded, lambda: None)
