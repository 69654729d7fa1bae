from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import synthetic_run
import yaml

from finesmith.errors import RunError
from finesmith.report import card
from finesmith.report.folder import read

# The rule by which the hub separates the front matter from the text.
FRONT = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")


def split(text: str) -> tuple[dict, str]:
    found = FRONT.search(text)
    assert found
    return yaml.safe_load(found[2]), text[found.end() :]


def change(folder: Path, name: str, **fields: object) -> None:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields), encoding="utf-8")


def test_front_matter_is_the_hubs_form(tmp_path: Path) -> None:
    front, body = split(card.build(synthetic_run.write(tmp_path / "reviews", test_rows=20, steps=10)))
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-classification"
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert front["language"] == ["en"]
    assert "license" not in front
    index = front["model-index"][0]
    assert index["name"] == "reviews"
    result = index["results"][0]
    assert set(result) == {"task", "dataset", "metrics"}
    assert result["dataset"] == {"name": "reviews.csv", "type": "reviews-csv", "split": "test"}
    assert {"type": "accuracy", "name": "Accuracy", "value": 0.827} in result["metrics"]
    assert "AutoModelForSequenceClassification.from_pretrained" in body
    assert "| tuned model | 82.7 % (80.4 to 85.0 %) |" in body
    assert "| Frozen features | 78.5 %" in body
    assert "Gain over Frozen features: +4.2 points" in body


@pytest.mark.parametrize(
    "name", [*synthetic_run.HOSTILE, "yes", "1.0", "null", "# a: b", "'", "a: [b", "é ñ 日本", "- x"]
)
def test_hostile_names_round_trip(tmp_path: Path, name: str) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    change(folder, "data", sources=[{"name": name}])
    text = card.build(folder)
    front, _ = split(text)
    plain = " ".join(re.split(r"[/\\]", name.rstrip("/\\"))[-1][:200].encode("utf-8", "replace").decode().split())
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == plain
    assert "license" not in front
    assert not re.search("[\x00-\x08\u202a-\u202e\u2066-\u2069]", text)


def test_hostile_labels_are_neither_html_nor_markup_nor_links(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", classes=15, hostile=True, test_rows=60, steps=10)
    text = card.build(folder)
    _, body = split(text)
    code = re.compile(r"```python\n.*?```", re.DOTALL)
    prose = code.sub("", body)
    assert "<" not in prose
    assert "```" not in prose
    assert not re.search(r"(?<!\\)\]", prose)
    assert not re.search(r"https?://", prose)
    assert not re.search(r"(?m)^(---|#(?!# |  ?))", re.sub(r"(?m)^# run$", "", prose))
    assert "license: stolen" in " ".join(prose.split())
    assert "license" not in split(text)[0]
    tables = [line for line in prose.splitlines() if line.startswith("|")]
    for line in tables:
        assert line.endswith("|")
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert widths <= {3, 4, 7}


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a|b", r"a\|b"),
        ("1. x", r"1\. x"),
        ("0.4 %", "0.4 %"),
        ("# x", r"\# x"),
        ("- x", r"\- x"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("see https://x.y", r"see https\://x.y"),
        ("WWW.x.y", r"WWW\.x.y"),
        ("a@b.c", r"a\@b.c"),
        ("two\nlines", "two lines"),
        ("a\\", "a\\\\"),
        ("mailto:x", r"mailto\:x"),
    ],
)
def test_markdown_is_escaped(text: str, safe: str) -> None:
    assert card.markdown(text) == safe


@pytest.mark.parametrize(
    ("method", "library", "line"),
    [
        ("full", "transformers", "AutoModelForSequenceClassification"),
        *((kind, "peft", "PeftModel.from_pretrained(base, ") for kind in sorted(card.ADAPTER_METHODS)),
        ("features", "sentence-transformers", "SentenceTransformer"),
        ("head_then_full", "transformers", "AutoModelForSequenceClassification"),
    ],
)
def test_each_method_says_how_it_is_loaded(tmp_path: Path, method: str, library: str, line: str) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    change(folder, "model", method=method)
    front, body = split(card.build(folder))
    assert front["library_name"] == library
    assert line in body
    assert ("AutoModel.from_pretrained" in body) == (method == "features")


@pytest.mark.parametrize("base", ["/home/someone/secret/my-model", "C:\\models\\my-model", "../models/deep/my-model"])
def test_a_local_base_is_no_hub_name_and_its_path_is_not_told(tmp_path: Path, base: str) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    change(folder, "model", base=base, base_sha256="0" * 64)
    text = card.build(folder)
    assert "base_model" not in split(text)[0]
    assert "A fine-tuned version of my-model" in text
    assert base not in text


@pytest.mark.parametrize("words", [[], ["estoppel"]])
@pytest.mark.parametrize(
    ("digest", "place"), [("0" * 64, "path/to/base"), (None, "someone/my_model"), (card.BUNDLED, card.BUNDLED_NAME)]
)
def test_an_adapter_says_how_it_is_put_together(
    tmp_path: Path, digest: str | None, place: str, words: list[str]
) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    change(folder, "model", method="lora", base="someone/my_model", base_sha256=digest)
    change(folder, "data", tokens={"added_words": words})
    text = card.build(folder)
    assert f'AutoModelForSequenceClassification.from_pretrained("{place}", config=config)' in text
    assert 'PeftModel.from_pretrained(base, "path/to/model")' in text
    assert ("base.resize_token_embeddings(words)" in text) == bool(words)
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")


def test_what_the_texts_say_is_not_in_the_card(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    finding = {"kind": "label_in_text", "severity": "error", "message": "the text gives the label away"}
    change(folder, "audit", findings=[{**finding, "shows": "'[SPAM]'", "examples": [{"id": 1, "text": "a secret"}]}])
    text = card.build(folder)
    assert "the text gives the label away" in text
    assert "SPAM" not in text
    assert "secret" not in text


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    front, body = split(card.build(tmp_path))
    assert set(front) == {"library_name", "pipeline_tag", "tags"}
    assert "There are no test scores." in body
    assert "has not been scored on a test split" in body


@pytest.mark.parametrize("name", ["run", "data", "audit", "model", "scores", "baselines", "verdict"])
def test_any_file_may_be_missing(tmp_path: Path, name: str) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    (folder / f"{name}.json").unlink()
    front, _ = split(card.build(folder))
    assert front["pipeline_tag"] == "text-classification"


def test_a_model_without_gain_says_so(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    change(folder, "verdict", better=False)
    assert "not shown to be better than the best simple baseline" in card.build(folder)


def test_a_known_licence_is_named(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    change(folder, "model", license="apache-2.0")
    assert "license: apache-2.0\n" in card.front_matter(read(folder))
    change(folder, "model", license="x\ny: z")
    assert "license" not in card.front_matter(read(folder))


def test_a_missing_folder_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        card.build(tmp_path / "nowhere")
