"""The rows that `check --show` and the report show are those that the model is fed, whatever the task."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from jobs import events, plan, read, reviews, tuned, write_csv
from language_jobs import language_plan, sentences, write_conll

from finesmith.errors import UserError
from finesmith.recipe import from_dict
from finesmith.workflows.check import check
from finesmith.workflows.shown import of_tokens
from terminal import Screen

LONG = "the film was good and the story is bright " * 9


def shown(tree: dict[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], check(from_dict(tree), show=True)["examples"])


def texts(row: dict[str, Any], *kinds: str) -> list[str]:
    return [token["text"] for token in row["tokens"] if not kinds or token["kind"] in kinds]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    rows = reviews(90)
    # Among so many, one at least falls into train.
    for place in range(20, 26):
        rows[place] = (f"{rows[place][0]} {LONG}", rows[place][1])
    write_csv(folder / "reviews.csv", rows)
    write_csv(folder / "stars.csv", [(text, 1.5 + 2 * (label == "positive")) for text, label in rows])
    pairs = [
        (text, f"{text} {LONG}" if place % 9 == 0 else "it was", label) for place, (text, label) in enumerate(rows)
    ]
    write_csv(folder / "pairs.csv", pairs, ("text", "other", "label"))
    topics = [(text, "plot;music" if label == "positive" else "") for text, label in rows]
    write_csv(folder / "topics.csv", [("a dull end", "plot"), *topics])
    tagged = sentences(60)
    tagged[3] = [("film", "O")] * 80
    write_conll(folder / "names.conll", tagged)
    (folder / "notes.txt").write_text("\n\n".join(" ".join(word for word, _ in row * 6) for row in sentences(50)))
    return folder


def test_whole_texts_are_shown_with_their_tokens_and_label(data: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = shown(plan(data / "reviews.csv", tiny_model, data / "cache"))
    rows = reviews(90)
    assert found["task"] == "classification"
    assert 4 <= len(found["examples"]) <= 5
    assert [row["why"][0] for row in found["examples"][:4]] == ["first"] * 3 + ["longest"]
    for row in found["examples"][:3]:
        text, label = rows[row["id"]]
        assert texts(row) == tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert row["target"] == label
        assert row["where"] == f"{data / 'reviews.csv'} row {row['id'] + 1}"
    [cut] = [row for row in found["examples"] if "cut" in row["why"]]
    whole = len(tokenizer(f"{rows[cut['id']][0]} {LONG}")["input_ids"])
    assert (cut["length"], cut["original_length"]) == (64, whole)
    assert cut["tokens"][-2] == {"text": "", "kind": "cut", "count": whole - 64}
    assert cut["tokens"][-1] == {"text": "[SEP]", "kind": "special"}


def test_pairs_and_numbers_and_lists_are_shown(data: Path, tiny_model: Path) -> None:
    found = shown(plan(data / "pairs.csv", tiny_model, data / "cache", data__text_pair="other"))
    assert texts(found["examples"][1]).count("[SEP]") == 2
    [cut] = [row for row in found["examples"] if row["why"][-1:] == ["cut"]][:1]
    assert cut["tokens"][-1]["kind"] == "cut", "which of the two texts lost them is not told"

    found = shown(plan(data / "stars.csv", tiny_model, data / "cache", task="regression"))
    targets = {row["target"] for row in found["examples"]}
    # Half of the ratings are one value, half the other: standardised they are about 1 and -1.
    assert {target.split(",")[0] for target in targets} == {"1.5", "3.5"}
    assert {target.split("learnt as ")[1][:2] for target in targets} <= {"+1", "+0", "-1", "-0"}

    found = shown(plan(data / "topics.csv", tiny_model, data / "cache", task="multi-label", data__separator=";"))
    assert {"music, plot", "(none)"} <= {row["target"] for row in found["examples"]}


def test_words_are_shown_with_their_tags(data: Path, tiny_model: Path) -> None:
    found = shown(language_plan("token-classification", data / "names.conll", tiny_model, data / "cache"))
    assert found["meaning"].endswith("its label.")
    tagged = sentences(60)
    for row in found["examples"]:
        labels = [token["label"] for token in row["tokens"] if token["kind"] == "supervised"]
        if "cut" in row["why"]:
            assert labels == ["O"] * 62
            assert row["tokens"][-2] == {"text": "", "kind": "cut", "count": 18}
        else:
            assert labels in [[tag for _, tag in words] for words in tagged]
        assert row["supervised"] == len(labels)
        assert not any("label" in token for token in row["tokens"] if token["kind"] != "supervised")


def test_masks_are_those_of_the_first_epoch(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from finesmith.run import Run
    from finesmith.workflows.language.fit import plan_of
    from finesmith.workflows.language.story import begin

    recipe = from_dict(language_plan("masked-text", data / "notes.txt", tiny_model, data / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    run = Run.create(tmp_path / "run", command="test")
    gathered, setup = begin(recipe, run)
    run.close()
    found = of_tokens(recipe, gathered, setup)
    steps = plan_of(recipe, gathered, setup)
    trained = set()
    for batch in (batch for step in range(steps.steps_per_epoch) for batch in steps.batches(step)[0]):
        assert batch.targets is not None
        sizes = batch.lengths.tolist()
        for tokens, targets in zip(batch.tokens.split(sizes), batch.targets.split(sizes), strict=True):
            names = tokenizer.convert_ids_to_tokens(tokens.tolist())
            wanted = [None if t == -100 else tokenizer.convert_ids_to_tokens(t) for t in targets.tolist()]
            trained.add((tuple(names), tuple(wanted)))
    assert len(found["examples"]) >= 3
    for row in found["examples"]:
        key = tuple(texts(row)), tuple(token.get("label") for token in row["tokens"])
        assert key in trained, "no batch of the first epoch holds this row as it is shown"


def test_chats_of_any_task_are_shown_with_the_answer_marked(shared: Path) -> None:
    """A task that nobody knew when this was written: only its batches, its kind and its tokens are asked for."""
    from transformers import AutoTokenizer

    from finesmith.data.chat_formats import convert, detect
    from finesmith.data.chat_template import named_template
    from finesmith.data.packing import ragged
    from finesmith.data.render import render

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K" / "hf")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    answers = ["A cat.", "Two dogs ran home.", "Yes.", "No, " * 60 + "never."]
    rows = [{"messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": answer}]}
            for i, answer in enumerate(answers)]  # fmt: skip
    where = [f"chat.jsonl row {i + 1}" for i in range(4)]
    layout = detect(rows, messages=None, prompt=None, completion=None)
    conversations = convert(rows, layout, where).conversations
    rendered = render(conversations, named_template("chatml", tokenizer), tokenizer, where)
    task = SimpleNamespace(
        name="chats", kind="causal", labels=None,
        batch=lambda encoded, at, ids, epoch, seed, device: ragged(encoded.rows, at, ids=ids, device=device),
        taught=lambda encoded, batch: None, head="causal",
    )  # fmt: skip
    encoded = SimpleNamespace(rows=rendered.rows, lengths=rendered.rows.lengths())
    data = SimpleNamespace(task=task, ids={"train": np.arange(4)}, places=where)
    setup = SimpleNamespace(encoded={"train": encoded}, network=SimpleNamespace(tokenizer=tokenizer))
    recipe = from_dict({"data": {"train": "chat.jsonl"}})
    found = of_tokens(recipe, cast(Any, data), cast(Any, setup))
    assert [row["where"] for row in found["examples"]] == where
    for row, answer in zip(found["examples"], answers, strict=True):
        said = "".join(texts(row, "supervised"))
        assert said.startswith(answer[:4].strip())
        assert said.rstrip("↵").endswith("<|im_end|>"), "the stop token is learnt, and seen to be"
        assert "Question" not in said
        prompt = "".join(texts(row, "plain", "special"))
        assert "Question" in prompt
        assert answer[:4].strip() not in prompt
    assert found["examples"][3]["why"] == ["longest"]
    assert [token["kind"] for token in found["examples"][3]["tokens"]].count("skipped") == 1


def test_tasks_wired_later_are_shown_too(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    from language_jobs import conversations, write_rows

    from tiny import write_tiny_llama

    rows = conversations(40)
    tree = language_plan(
        "instruct", write_rows(tmp_path / "rows.jsonl", rows), write_tiny_llama(tmp_path / "llama"), tmp_path / "cache",
        model__dropout=None, generation__max_new_tokens=3, evaluate__baselines=["nearest"],
    )  # fmt: skip
    for row in shown(tree)["examples"]:
        assert texts(row, "supervised") == [*rows[row["id"]]["response"].split(), "[SEP]"]

    pairs = write_csv(
        tmp_path / "p.csv", [(f"{t} {i}", f"{t} and {i}") for i, (t, _) in enumerate(reviews(60))], ("text", "pair")
    )
    tree = language_plan("embeddings", pairs, tiny_model, data / "cache", data__text="text", data__text_pair="pair")
    found = shown(tree)
    assert found["meaning"].startswith("Each text becomes one vector")
    assert not any(texts(row, "supervised") or "supervised" in row for row in found["examples"])
    assert len(found["examples"]) == 2 * len({row["id"] for row in found["examples"]})
    sizes = {(row["id"], row["sort"]): row["length"] for row in found["examples"]}
    for name in {row["id"] for row in found["examples"]}:
        assert sizes[name, "positive"] == sizes[name, "anchor"] + 1, "the word between them"

    compared = [{"prompt": row["prompt"], "chosen": row["response"], "rejected": "dull"} for row in rows]
    chosen = write_rows(tmp_path / "compared.jsonl", compared)
    found = shown(language_plan("preferences", chosen, tmp_path / "llama", "none", model__dropout=None))
    assert found["meaning"].startswith("Marked tokens are answers")
    for row in found["examples"]:
        said = compared[row["id"]][row["sort"]].split()
        assert texts(row, "supervised") == [*said, "[SEP]"]


def test_a_run_keeps_what_check_shows(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    tree = language_plan("token-classification", data / "names.conll", tiny_model, data / "cache", train__epochs=1)
    run = tuned(tree, tmp_path / "tags")
    assert read(run, "examples.json") == json.loads(json.dumps(shown(tree)))
    page = (run / "report.html").read_text("utf-8")
    assert "As the model sees it" in page
    assert '<bdi class="answer">B-PER</bdi>' in page

    tree = plan(data / "reviews.csv", tiny_model, data / "cache")
    run = tuned(tree, tmp_path / "classes")
    assert read(run, "examples.json") == json.loads(json.dumps(shown(tree)))


def test_rows_are_kept_after_the_first_step(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesmith.workflows import shown as module

    done: list[list[str]] = []

    def keep(_: Any, run: Any, make: Any) -> None:
        done.append([event["event"] for event in events(run.folder)])
        make()

    monkeypatch.setattr(module, "keep", keep)
    tuned(plan(data / "reviews.csv", tiny_model, data / "cache"), tmp_path / "a")
    tuned(language_plan("masked-text", data / "notes.txt", tiny_model, data / "cache", train__epochs=1), tmp_path / "b")
    assert [names.count("step") for names in done] == [1, 1]


def test_nothing_is_kept_or_shown_where_texts_are_withheld(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    tree = plan(data / "reviews.csv", tiny_model, "none", output__redact=True)
    run = tuned(tree, tmp_path / "run")
    assert not (run / "examples.json").exists()
    assert "As the model sees it" not in (run / "report.html").read_text("utf-8")
    with pytest.raises(UserError, match=r"output\.redact is true.*--set output\.redact=false"):
        check(from_dict(tree), show=True)
    assert "examples" not in check(from_dict(tree))


def test_marks_stand_where_there_are_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    from finesmith.console import show_rows

    tokens = [
        {"text": "<s>", "kind": "special"}, {"text": "Hi", "kind": "plain"}, {"text": "\\xf0", "kind": "plain"},
        {"text": " yes", "kind": "supervised"}, {"text": "[bold]", "kind": "supervised", "label": "B-X"},
        {"text": "</s>", "kind": "supervised", "special": True}, {"text": "", "kind": "cut", "count": 1200},
        {"text": "", "kind": "skipped", "count": 5, "supervised": 0},
    ]  # fmt: skip
    row = {"id": 0, "where": "a\x1b[45m.csv row 1", "why": ["first"], "length": 6, "original_length": 1206,
           "supervised": 3, "tokens": tokens}  # fmt: skip
    found = {"task": "x", "meaning": "Marked tokens are learnt.", "rows": 9, "examples": [row]}
    plain = "«<s>»|Hi|\\xf0|[ yes|[bold]=B-X|«</s>»]|(1,200 tokens cut off)|(… 5 tokens …)"

    def said(**variables: str) -> str:
        screen = Screen()
        with monkeypatch.context() as patch:
            for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
                patch.delenv(name, raising=False)
            for name, value in {"TERM": "xterm", "COLUMNS": "200", **variables}.items():
                patch.setenv(name, value)
            patch.setattr("sys.stdout", screen)
            show_rows(found)
        return screen.getvalue()

    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        out = said(**variables)
        assert plain in out
        assert "\x1b[3" not in out
    coloured = said()
    assert "\x1b[1;32m yes\x1b[0m" in coloured
    assert "\x1b[35m=B-X\x1b[0m" in coloured
    assert "[45m.csv" in coloured
    assert "\x1b[45m" not in coloured, "what stands in the data steers no terminal"
    narrow = said(COLUMNS="30", NO_COLOR="1")
    assert max(len(line) for line in narrow.splitlines() if line.startswith("  ")) <= 30
