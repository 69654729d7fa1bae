"""Rows of conversations on their way into a run: forms, faults, templates, lengths, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import events, read, table, tuned
from language_jobs import conversations, language_plan, write_rows

from finesmith.errors import DataError, FinesmithError, ModelError, RecipeError
from finesmith.recipe import from_dict
from finesmith.workflows.apply import evaluate_file, predict_file
from finesmith.workflows.check import check, infer_recipe

USER, REPLY = {"role": "user", "content": "the film is red"}, {"role": "assistant", "content": "red film"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def make(tmp_path: Path, llama: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that makes a short recipe over rows."""

    def plan(rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
        short = {"train__epochs": 0.2, "evaluate__generated_rows": 2, "model__dropout": None,
                 "generation__max_new_tokens": 3, "evaluate__baselines": ["nearest"]}  # fmt: skip
        return language_plan(
            "instruct", write_rows(tmp_path / "rows.jsonl", rows), llama, tmp_path / "cache", **{**short, **values}
        )

    return plan


def talks(count: int = 40) -> list[dict[str, Any]]:
    """Return conversations of turns, some of two rounds."""
    rows = []
    for number, row in enumerate(conversations(count)):
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        more = [{"role": "user", "content": "and this"}, {"role": "assistant", "content": "the end"}]
        rows.append({"messages": turns + (more if number % 3 == 0 else [])})
    return rows


FAULTS = {
    "a missing role": ([{"content": "the film"}, REPLY], "role"),
    "an empty turn": ([USER, {"role": "assistant", "content": "  "}], "is empty"),
    "two systems": ([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER, REPLY], "system"),
    "a result without a call": ([USER, {"role": "tool", "content": "1"}, REPLY], "without a call"),
    "an unknown key": ([{**USER, "mood": "warm"}, REPLY], "mood"),
    "a lone surrogate": ([{**USER, "content": "the \ud83d film"}, REPLY], "half of a character"),
    "a megabyte": ([{**USER, "content": "film " * 200_000}, REPLY], "characters"),
    "no answer": ([USER], "ends|no assistant"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_row_is_named_or_dropped_and_counted(fault: str, make: Callable[..., dict[str, Any]]) -> None:
    turns, said = FAULTS[fault]
    rows = talks(40)
    rows.insert(6, {"messages": turns})
    plan = make(rows)
    with pytest.raises(DataError, match=rf"row 7.*({said})") as raised:
        check(from_dict(plan))
    assert len(str(raised.value)) < 1400
    if fault == "a megabyte":
        # A cell so large is refused when the file is read, before anything is known of its rows.
        return
    found = check(from_dict({**plan, "data": {**plan["data"], "malformed": "drop"}}))
    assert {"stage": "dropped: malformed", "rows": -1} in found["flow"]
    assert found["flow"][0] == {"stage": "read", "rows": 41}


def test_every_form_of_a_file_is_read_and_said(
    shared: Path, make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    forms = {
        "alpaca_en_demo": "Alpaca", "glaive_toolcall_en_demo": "ShareGPT", "kto_en_demo": "OpenAI messages"
    }  # fmt: skip
    base = str(shared / "models" / "stories260K" / "hf")
    for name, said in forms.items():
        rows = json.loads((shared / "data" / "instruct_llamafactory" / f"{name}.json").read_text("utf-8"))
        few = {"data__train": str(tmp_path / f"{name}.json"), "model__base": base}
        (tmp_path / f"{name}.json").write_text(json.dumps(rows[:150]), "utf-8")
        cut = {"text__too_long": "shorten", "text__loss": "last"} if name.startswith("glaive") else {}
        # Of these answers most are longer than 512 tokens, which the preflight rightly stops at.
        cut |= {"guards__preflight": "tell"} if name.startswith("kto") else {}
        run = tuned(make([], **few, **cut), tmp_path / name)
        notes = " ".join(str(event.get("message")) for event in events(run))
        assert f"conversations in the form {said}" in notes
        flow = read(run, "data.json")["flow"]
        assert flow[0] == {"stage": "read", "rows": 150}
        assert sum(stage["rows"] for stage in flow if stage["rows"] < 0) + 150 == sum(
            stage["rows"] for stage in flow if stage["stage"] in ("train", "validation", "test")
        )


def test_an_answer_is_never_cut(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    rows = talks(30)
    rows += [{"messages": [{**USER, "content": "really very " * 40}, REPLY]}]
    rows += [{"messages": [USER, {**REPLY, "content": "really very " * 40}]}]
    told: list[dict[str, Any]] = []
    dropped = check(from_dict(make(rows)), listeners=[told.append])["flow"]
    assert {"stage": "dropped: too long", "rows": -2} in dropped
    said = [note["message"] for note in told if str(note.get("message")).startswith("too long")]
    assert len(said) == 1
    assert "2 of 32 conversations (6%) have more than 64 tokens" in said[0]
    assert "text.too_long: shorten" in said[0]
    told.clear()
    found = check(from_dict(make(rows, text__too_long="shorten")), listeners=[told.append])
    shortened, lengths = found["flow"], found["plan"]["tokens"]
    assert (lengths["truncated_rows"], lengths["max_length"]) == (1, 64)
    said = [note["message"] for note in told if str(note.get("message")).startswith("too long")]
    assert "1 of 32 conversations (3%) have more than 64 tokens even without their prompts" in said[0]
    assert "shorten" not in said[0]
    assert {"stage": "dropped: too long", "rows": -1} in shortened
    with pytest.raises(DataError, match=r"row 31.*more than 64 tokens"):
        check(from_dict(make(rows, text__too_long="stop")))


def test_examples_that_fit_nowhere_are_no_baseline(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    # Of 64 tokens the answer takes 60: no example can stand before a prompt.
    plan = make(talks(40), generation__max_new_tokens=60, evaluate__baselines=["few_shot", "nearest"])
    found = {row["name"]: row["skipped"] for row in read(tuned(plan, tmp_path / "run"), "baselines.json")}
    skipped = [reason for reason in found.values() if reason]
    assert len(skipped) == 1
    assert "no training example fits beside a prompt and an answer of 60 tokens in the 64 that are read" in skipped[0]


def test_columns_are_found_or_named(make: Callable[..., dict[str, Any]]) -> None:
    renamed = [{"q": row["prompt"], "a": row["response"]} for row in conversations(30)]
    with pytest.raises(DataError, match=r"no conversations found in the columns 'q', 'a'.*data\.prompt"):
        check(from_dict(make(renamed)))
    assert check(from_dict(make(renamed, data__prompt="q", data__completion="a")))["flow"][0]["rows"] == 30
    with pytest.raises(RecipeError, match=r"data\.prompt is 'q' but data\.completion is not named"):
        from_dict(make(renamed, data__prompt="q"))
    with pytest.raises(RecipeError, match=r"keep one of the two"):
        from_dict(make(renamed, data__prompt="q", data__completion="a", data__messages="m"))
    logged = [{"log": row["messages"]} for row in talks(30)]
    assert check(from_dict(make(logged, data__messages="log")))["flow"][0]["rows"] == 30


def test_conversations_are_recognised_where_nothing_else_fits(make: Callable[..., dict[str, Any]]) -> None:
    worded = [{**row, "response": f"{row['response']}, {row['prompt']}"} for row in conversations(30)]
    for rows in (talks(30), worded):
        plan = make(rows)
        del plan["task"], plan["evaluate"]["generated_rows"], plan["generation"], plan["evaluate"]["baselines"]
        resolved = infer_recipe(from_dict(plan))
        assert "task: instruct" in resolved
    # Answers of few kinds are labels, as they were before conversations were known.
    labelled = [{"question": row["prompt"], "label": row["response"].split()[0]} for row in conversations(60)]
    plan = make(labelled)
    del plan["task"], plan["evaluate"]["generated_rows"], plan["generation"], plan["evaluate"]["baselines"]
    assert "task: classification" in infer_recipe(from_dict(plan))


@pytest.mark.parametrize(
    ("row", "task"),
    [({"prompt": "{0}", "chosen": "good {0}", "rejected": "bad {0}"}, "preferences"),
     ({"prompt": "{0}", "completion": "an answer to {0}", "label": True}, "preferences"),
     ({"anchor": "{0}", "positive": "good {0}"}, "embeddings"),
     ({"anchor": "{0}", "positive": "good {0}", "negative": "{0} not"}, "embeddings"),
     ({"text": "{0}", "positive": True}, "classification")],
)  # fmt: skip
def test_columns_that_speak_for_a_task_are_heard(
    row: dict[str, Any], task: str, make: Callable[..., dict[str, Any]], tiny_model: Path
) -> None:
    rows = []
    for number, one in enumerate(conversations(60)):
        told = {key: value.format(one["prompt"]) if isinstance(value, str) else number % 2 == 0
                for key, value in row.items()}  # fmt: skip
        rows.append(told)
    plan = make(rows) if task == "preferences" else make(rows, model__base=str(tiny_model))
    del plan["task"], plan["evaluate"]["generated_rows"], plan["generation"], plan["evaluate"]["baselines"]
    assert f"task: {task}" in infer_recipe(from_dict(plan))


def test_the_template_is_the_named_one_and_goes_with_the_model(
    make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run = tuned(make(talks(30), text__template="alpaca"), tmp_path / "run")
    assert "### Instruction:" in (run / "model" / "chat_template.jinja").read_text("utf-8")
    settings = read(run, "model/generation_config.json")
    assert settings["eos_token_id"] == [3]
    assert settings["max_new_tokens"] == 3
    own = make(talks(30), model__base=str(run / "model"))
    own["data"]["train"] = str(write_rows(tmp_path / "more.jsonl", talks(30)))
    again = tuned(own, tmp_path / "again")
    assert "template: own" in (again / "recipe.yaml").read_text("utf-8")
    assert (again / "model" / "chat_template.jinja").read_text("utf-8") == (
        run / "model" / "chat_template.jinja"
    ).read_text("utf-8")  # fmt: skip
    with pytest.raises(ModelError, match=r"chatml.*needs"):
        check(from_dict(make(talks(30), text__template="chatml")))
    with pytest.raises(ModelError, match="no chat template"):
        check(from_dict(make(talks(30), text__template="own")))


def test_texts_can_be_withheld(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    secret = "zebra77"
    rows = conversations(40)
    for row in rows:
        row["response"] = f"{row['response']} {secret}"
        row["prompt"] = f"{row['prompt']} {secret}"
    run = tuned(make(rows, output__redact=True, output__cache="none"), tmp_path / "run")
    assert not (run / "predictions" / "baselines.parquet").exists()
    columns = table(run / "predictions" / "test.parquet")
    assert {"prediction", "reference", "text"}.isdisjoint(columns)
    assert "finished" in columns
    for path in run.rglob("*"):
        # The tuned weights may well know it; the files of the run do not say it.
        if path.is_file() and path.suffix != ".safetensors":
            assert secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("options", [
    {"generation__strategy": "sample", "generation__temperature": 0.7, "generation__top_k": 5,
     "generation__top_p": 0.9},
    {"generation__strategy": "beam", "generation__beams": 2}, {"generation__stop": ["red", "blue", "green"]},
])  # fmt: skip
def test_answers_are_written_as_the_recipe_says_and_again_so(
    options: dict[str, Any], make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run = tuned(make(conversations(40), **options), tmp_path / "run")
    rows = table(run / "predictions" / "test.parquet")
    settings = read(run, "model/generation_config.json")
    assert settings["do_sample"] == ("generation__temperature" in options)
    assert settings.get("num_beams", 1) == options.get("generation__beams", 1)
    if "generation__stop" in options:
        assert not any(word in (text or "") for text in rows["prediction"] for word in ("red", "blue", "green"))


def test_prompts_of_any_form_are_answered(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run = str(tuned(make(talks(30)), tmp_path / "run"))
    asked = [{"messages": [USER]}, {"messages": [USER, REPLY, {"role": "user", "content": "and this"}]},
             {"messages": [USER, REPLY]}]  # fmt: skip
    [found] = predict_file(run, str(write_rows(tmp_path / "m.jsonl", asked)))
    texts = found.column("prediction").to_pylist()
    assert len(texts) == 3
    assert texts[0] == texts[2]
    (tmp_path / "plain.txt").write_text("the film is red\nthe card is blue\n", "utf-8")
    [found] = predict_file(run, str(tmp_path / "plain.txt"))
    assert found.column("prediction").to_pylist()[0] == texts[0]
    long = [{"prompt": "really " * 100}, {"prompt": "the film is red"}]
    [found] = predict_file(run, str(write_rows(tmp_path / "long.jsonl", long)))
    assert found.column("prediction").to_pylist() == [None, texts[0]]
    assert found.column("finished").to_pylist()[0] == "no room"
    with pytest.raises(DataError, match="row 2"):
        list(predict_file(run, str(write_rows(tmp_path / "bad.jsonl", [{"messages": [USER]}, {"messages": [{}]}]))))
    scored = evaluate_file(run, str(write_rows(tmp_path / "e.jsonl", talks(6))))
    assert scored["examples"] == 6
    assert 0 <= scored["scores"]["rouge_l"]["value"] <= 1
    with pytest.raises(FinesmithError, match="no conversations found"):
        evaluate_file(run, str(write_rows(tmp_path / "none.jsonl", [{"x": "y"}])))


@pytest.mark.parametrize("loss", ["answers", "last", "all"])
def test_losses_are_those_of_transformers(loss: str, llama: Path) -> None:
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    from finesmith.models.load import find, load_tokenizer
    from finesmith.tasks.corpus import Choices, Reading, Speech
    from finesmith.tasks.instruct import Instruct

    base = find(str(llama))
    tokenizer = load_tokenizer(base)
    path = write_rows(llama.parent / f"{loss}.jsonl", talks(12))
    corpus = Instruct.read([str(path)], Reading())
    choices = Choices(speech=Speech(loss=loss))  # type: ignore[arg-type]
    laid = Instruct.lay_out(corpus, tokenizer, choices, 64)
    assert laid is not None
    task = Instruct.learn(laid.corpus, laid.choices)
    encoded = task.encode(laid.corpus, tokenizer, 64)
    network, _ = task.load(base, tokenizer, seed=0, dtype=torch.float64)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64).eval()
    order = encoded.rows.lengths().argsort(kind="stable")
    batch = task.batch(encoded, order, order, 0, 0, "cpu")
    with torch.no_grad():
        summed, count = task.loss(network, encoded, batch)
    expected, targets = 0.0, 0
    for one in laid.corpus.content.conversations:
        ids = tokenizer.apply_chat_template(one.messages())["input_ids"]
        labels = list(ids) if loss == "all" else [-100] * len(ids)
        turns = [place for place, turn in enumerate(one.turns) if turn.role == "assistant"]
        for place in turns[-1:] if loss == "last" else turns:
            before = tokenizer.apply_chat_template(one.messages()[:place], add_generation_prompt=True)["input_ids"]
            after = tokenizer.apply_chat_template(one.messages()[: place + 1])["input_ids"]
            labels[len(before) : len(after)] = ids[len(before) : len(after)]
        # Not transformers' own loss, which rounds the logits to float32.
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        assert logits.dtype == torch.float64
        expected += float(cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum"))
        targets += sum(label != -100 for label in labels[1:])
    assert count == targets
    assert float(summed) == pytest.approx(expected, rel=1e-8)
    outcome = task.predict(network, encoded)
    if loss != "all":
        assert float(-outcome.log_probabilities.sum()) == pytest.approx(expected, rel=1e-8)  # type: ignore[union-attr]
