from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import synthetic_run

from finesmith.errors import RunError
from finesmith.report import charts, curves, page, sections
from finesmith.report.folder import RunFolder, read
from finesmith.report.format import cut, metric_difference, metric_value, plain, visible

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr", "base"}
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "a", "header", "main", "nav", "section", "p", "h1", "h2", "h3"),
    *("bdi", "span", "strong", "code", "pre", "ul", "ol", "li", "dl", "div", "dt", "dd", "table", "thead", "tbody"),
    *("tr", "th", "td", "figure", "figcaption", "details", "summary", "blockquote", "footer"),
    *("br", "wbr", "svg", "line", "circle", "rect", "path", "polyline", "text"),
}
HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


class Reader(HTMLParser):
    """Collect elements, attributes and text, and check that every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.styles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.styles if self.open and self.open[-1] == "style" else self.text).append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def parsed(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def assert_harmless(path: Path) -> Reader:
    reader = parsed(path)
    assert set(reader.tags) <= ALLOWED
    assert reader.tags.count("style") == 1
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("style", "src", "srcset", "action", "formaction", "xlink:href", "data", "autofocus"), (
            tag,
            name,
        )
        if name == "href":
            assert value is not None
            assert re.fullmatch(r"#[a-z]+", value)
    assert "url(" not in "".join(reader.styles)
    assert "@import" not in "".join(reader.styles)
    assert not HIDDEN.search(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 2_000_000
    return reader


@pytest.mark.parametrize("classes", [2, 6, 13])
def test_hostile_text_stays_text(tmp_path: Path, classes: int) -> None:
    folder = synthetic_run.write(tmp_path / "run", classes=classes, hostile=True, test_rows=300, steps=60)
    reader = assert_harmless(page.build(folder))
    assert "<script>alert(1)</script>" in reader.words
    assert '" onmouseover="alert(3)' in reader.words
    assert "{{ 7 * 7 }}" in reader.words
    assert "[U+202E]" in reader.words


@pytest.mark.parametrize("state", ["failed", "interrupted", "running"])
def test_hostile_text_in_an_unfinished_run(tmp_path: Path, state: str) -> None:
    folder = synthetic_run.write(tmp_path / "run", state=state, hostile=True, steps=40)
    reader = assert_harmless(page.build(folder))
    assert "Training reached step 20" in reader.words
    assert {"failed": "Failed", "interrupted": "Interrupted", "running": "Running"}[state] in reader.words
    assert "The test split has not been opened" in reader.words
    assert ("finesmith resume" in reader.words) == (state != "running")


def test_a_hostile_folder_name_stays_text(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / '"><script>alert(1)<' / "x\u202e", test_rows=20, steps=10)
    reader = assert_harmless(page.build(folder))
    assert "x[U+202E]" in reader.words


def test_the_policy_allows_the_one_style_sheet_and_nothing_else(tmp_path: Path) -> None:
    import base64
    import hashlib

    reader = parsed(page.build(synthetic_run.write(tmp_path, test_rows=20, steps=10)))
    policy = next(
        value or "" for _, name, value in reader.attributes if name == "content" and "default-src" in str(value)
    )
    digest = base64.b64encode(hashlib.sha256("".join(reader.styles).encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_a_large_run_stays_small(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path, classes=77, test_rows=100_000, steps=20_000)
    reader = assert_harmless(page.build(folder))
    assert "of 100,000 test examples are wrong" in reader.words


def test_the_longest_of_everything_stays_under_two_megabytes(tmp_path: Path) -> None:
    nasty = '"<&\u202e\x00' * 300
    folder = synthetic_run.write(tmp_path, classes=300, test_rows=600, steps=50)

    def swell(value: Any) -> Any:
        if isinstance(value, dict):
            more = {f"{nasty}{i}": nasty for i in range(6)} if len(value) < 9 else {}
            return {key: swell(item) for key, item in value.items()} | more
        if isinstance(value, list):
            return [swell(item) for item in value] * (10 if len(value) < 10 else 1)
        return nasty if isinstance(value, str) else value

    for name in ("run", "data", "audit", "examples", "model", "next", "baselines"):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(swell(json.loads(file.read_text()))), encoding="utf-8")
    scores = json.loads((folder / "scores.json").read_text())
    for row in scores["details"]["per_class"]:
        row["label"] = nasty
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    (folder / "recipe.yaml").write_text('- "<&>"\n' * 200_000, encoding="utf-8")
    assert_harmless(page.build(folder))


NAMES = sorted(name.removesuffix(".json") for name in page.FILES if name.endswith(".json"))


@pytest.mark.parametrize("missing", [*page.FILES, "everything"])
def test_any_file_may_be_missing(tmp_path: Path, missing: str) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=60, steps=20)
    for name in page.FILES:
        if missing in (name, "everything"):
            (folder / name).unlink(missing_ok=True)
    words = assert_harmless(page.build(folder)).words
    assert ("This run folder holds no verdict" in words) == (missing in ("verdict.json", "everything"))


@pytest.mark.parametrize("alone", list(page.FILES))
def test_any_file_may_be_alone(tmp_path: Path, alone: str) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=60, steps=20)
    for name in page.FILES:
        if name != alone:
            (folder / name).unlink(missing_ok=True)
    assert_harmless(page.build(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"text"', '{"state": 3}', "[" * 5000, '{"a": NaN}'])
def test_damaged_files_are_named_and_left_out(tmp_path: Path, content: str) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=60, steps=20)
    for name in NAMES:
        (folder / f"{name}.json").write_text(content, encoding="utf-8")
    (folder / "events.jsonl").write_text(f"{content}\n{content}\n", encoding="utf-8")
    (folder / "predictions" / "test.parquet").write_bytes(b"PAR1 broken")
    words = assert_harmless(page.build(folder)).words
    assert "predictions/test.parquet cannot be read" in words
    if content in ("{", "[" * 5000):
        assert "scores.json is damaged and was left out" in words
        assert "2 damaged lines of events.jsonl were left out" in words


@pytest.mark.parametrize(
    "value", [None, True, "x", [], {}, [1, "a", None], {"value": "x"}, -1, 1e308, float("inf"), 10**400]
)
def test_values_of_the_wrong_type_do_no_harm(tmp_path: Path, value: Any) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=30, steps=12)
    for name in NAMES:
        whole = json.loads((folder / f"{name}.json").read_text())
        if isinstance(whole, dict):
            (folder / f"{name}.json").write_text(json.dumps(dict.fromkeys(whole, value)), encoding="utf-8")
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()[:-1]]
    twisted = [{key: item if key == "event" else value for key, item in line.items()} for line in lines]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, twisted)), encoding="utf-8")
    assert_harmless(page.build(folder))


def test_figures_are_those_of_the_files(tmp_path: Path) -> None:
    words = parsed(page.build(synthetic_run.write(tmp_path, test_rows=1066))).words
    assert "Better than the best baseline The tuned model is better: 82.7 % accuracy" in words
    assert "Accuracy on test 82.7 % 95 % interval 80.4 to 84.9 %" in words
    assert "Gain over Frozen features +4.2 points +1.9 to +6.6 points; p < 0.001 (exact McNemar)" in words
    assert "can show differences from 3.1 points" in words
    assert "9,000 read − 42 dropped = 8,958 = 7,166 train + 896 validation + 896 test ✓" in words
    assert "The test split was opened once, after training had ended." in words
    assert "Began at step 533" in words
    assert "In this run's folder: finesmith tune next-recipe.yaml" in words


def test_a_rating_has_its_own_charts(tmp_path: Path) -> None:
    words = assert_harmless(page.build(synthetic_run.write(tmp_path, regression=True, test_rows=200, steps=30))).words
    assert "Predicted and true values" in words
    assert "lower is better" in words
    assert "The predictions furthest from the truth, of 200 test examples" in words
    assert "RMSE on test 0.712 95 % interval 0.689 to 0.734" in words


def test_a_second_opening_of_the_test_split_is_said(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path, test_rows=20, steps=10)
    with (folder / "events.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('\n{"event": "test_opened"}\n')
    words = parsed(page.build(folder)).words
    assert "The test split was opened 2 times: its figures may be too good" in words


def test_a_test_split_opened_while_training_is_said(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path, test_rows=20, steps=10)
    with (folder / "events.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('\n{"event": "step", "step": 99, "loss": 0.1}\n')
    words = parsed(page.build(folder)).words
    assert "opened once, before training had ended: its figures may be too good" in words


def test_no_gain_is_not_painted_green(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path, test_rows=20, steps=10)
    verdict = json.loads((folder / "verdict.json").read_text())
    verdict |= {"better": False, "conclusion": "Fine-tuning did not help: TF-IDF is as good and 400 times cheaper."}
    (folder / "verdict.json").write_text(json.dumps(verdict))
    made = page.banner(read(folder))
    assert (made["tone"], made["chip"]) == ("even", "No gain shown")
    assert made["conclusion"].startswith("Fine-tuning did not help")


def test_a_failed_run_does_not_claim_its_old_verdict(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path, test_rows=20, steps=10)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"state": "failed", "error": {"kind": "X", "message": "boom"}}))
    made = page.banner(read(folder))
    assert made["tone"] == "bad"
    assert made["error"] == ("X", "boom")
    assert "failed before it reached a verdict" in made["conclusion"]


def test_counts_that_do_not_add_up_are_said(tmp_path: Path) -> None:
    flow = [("read", 100), ("dropped: empty", -3), ("train", 80), ("test", 10)]
    made = sections.flow(RunFolder(tmp_path, data={"flow": [{"stage": s, "rows": r} for s, r in flow]}))
    assert made is not None
    assert made["agrees"] is False
    assert made["sums"] == "100 read − 3 dropped = 97 ≠ 80 train + 10 test"


def test_confident_mistakes_come_first(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from finesmith.report import mistakes

    (tmp_path / "predictions").mkdir()
    rows = {
        "id": [10, 11, 12, 13],
        "text": ["right", "unsure", "sure", "off"],
        "label": ["a", "a", "b", "c"],
        "prediction": ["a", "b", "a", "a"],
        "confidence": [0.9, 0.5, 0.99, 0.6],
        "probabilities": [[0.9, 0.1, 0.0], [0.4, 0.5, 0.1], [0.99, 0.01, 0.0], [0.6, 0.4, 0.0]],
    }
    pq.write_table(pa.table(rows), tmp_path / "predictions" / "test.parquet")
    found, problem = mistakes.find(RunFolder(tmp_path), ["a", "b", "c"])
    assert problem is None
    assert found is not None
    assert (found.rows, found.wrong) == (4, 3)
    assert [row.id for row in found.confident] == [12, 13, 11]
    assert [row.given for row in found.confident] == [0.01, 0.0, 0.4]


def test_withheld_texts_are_said_to_be(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    assert "withheld" not in parsed(page.build(folder)).words
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"{recipe.read_text('utf-8')}\noutput:\n  redact: true\n", "utf-8")
    finding = {"kind": "html", "severity": "warning", "message": "1 row", "examples": [{"id": 7, "label": "a"}]}
    synthetic_run.write_json(folder, "audit.json", {"findings": [finding]})
    reader = parsed(page.build(folder))
    assert "The texts of the data are withheld from this run folder ( output.redact )" in reader.words
    assert "(text withheld) id 7" in reader.words


def test_what_a_finding_shows_is_told(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    finding = {"kind": "label_in_text", "severity": "error", "message": "given away", "shows": "'[SPAM]' in 98 %"}
    synthetic_run.write_json(folder, "audit.json", {"findings": [finding]})
    assert "'[SPAM]' in 98 %" in parsed(page.build(folder)).words


def test_each_source_has_its_scores_or_says_why_not(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=30, steps=12)
    words = assert_harmless(page.build(folder)).words
    assert "reviews.csv 1 6,000 2,389 890 82.7 % 79.7 to 85.7 %" in words
    assert "calls.csv too few rows to be scored 2 1,166 4,777 6 – – – –" in words
    data = json.loads((folder / "data.json").read_text())
    apart = copy.deepcopy(data)
    apart["mixture"][0]["test"] = apart["mixture"][1]["train"] = 0
    synthetic_run.write_json(folder, "data.json", apart)
    assert "By source" not in assert_harmless(page.build(folder)).words, "a given test file is no mixture"
    del data["mixture"][1]
    synthetic_run.write_json(folder, "data.json", data)
    assert "By source" not in assert_harmless(page.build(folder)).words


def test_rows_are_shown_as_the_model_was_fed_them(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=30, steps=12)
    html = page.build(folder).read_text("utf-8")
    reader = assert_harmless(folder / "report.html")
    assert "reviews.csv row 4 64 of 71 tokens, the longest learnt answer positive" in reader.words
    assert "7 tokens cut off" in reader.words
    assert "… 40 tokens …" in reader.words
    assert '<bdi class="token supervised">mask<bdi class="answer">warm</bdi></bdi>' in html
    assert '<bdi class="token supervised special">&lt;/s&gt;</bdi>' in html
    assert html.count('<p class="tokens" dir="rtl">') == 1, "a row that is mostly Hebrew runs from the right"
    (folder / "examples.json").unlink()
    assert "As the model sees it" not in assert_harmless(page.build(folder)).words


def test_home_folders_are_not_told(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    paths = ("/home/jane/data/a.csv", "/Users/jane/a b.csv", r"C:\\Users\\jane\\a.csv", "/srv/home/data.csv")
    (folder / "recipe.yaml").write_text("".join(f'- "{path}"\n' for path in paths), "utf-8")
    words = parsed(page.build(folder)).words
    assert "jane" not in words
    assert [place for place in ("~/data/a.csv", "~/a b.csv", "a.csv", "/srv/home/data.csv") if place not in words] == []


def test_multi_label_mistakes_are_sets(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from finesmith.report import mistakes

    (tmp_path / "predictions").mkdir()
    rows = {
        "id": [0, 1, 2],
        "text": ["x", "y", "z"],
        "label": [["a", "b"], ["a"], []],
        "prediction": [["b", "a"], ["b"], ["a"]],
        "probabilities": [[0.9, 0.9], [0.1, 0.9], [0.8, 0.1]],
    }
    pq.write_table(pa.table(rows), tmp_path / "predictions" / "test.parquet")
    found, _ = mistakes.find(RunFolder(tmp_path), ["a", "b"])
    assert found is not None
    assert (found.wrong, [row.id for row in found.worst]) == (2, [1, 2])
    assert_harmless(page.build(tmp_path))


def test_a_step_told_twice_after_a_resume_keeps_its_last_figure() -> None:
    events = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": "x"}]
    assert curves.pairs(events, "loss") == ([1.0, 2.0], [3.0, 1.0])


def test_thinning_keeps_the_extremes() -> None:
    ys = [float((i * 7919) % 1000) for i in range(20_000)]
    ys[777], ys[12_345] = -50.0, 5000.0
    xs, kept = charts.thin(list(range(20_000)), ys, 200)
    assert len(kept) <= 220
    assert (min(kept), max(kept)) == (-50.0, 5000.0)
    assert xs == sorted(xs)


def test_moving_average_against_a_naive_loop() -> None:
    ys = [1.0, 5.0, 2.0, 8.0, 3.0]
    naive = [sum(ys[max(0, i - 2) : i + 1]) / len(ys[max(0, i - 2) : i + 1]) for i in range(5)]
    assert charts.moving_average(ys, 3) == pytest.approx(naive)


@pytest.mark.parametrize(
    "values", [[0.0], [3.2, 3.2], [-1e-9, 1e-9], [1e12, 1.5e12], [0.781, 0.833], [-5, 12], [0, 1e300]]
)
def test_axes_hold_their_values(values: list[float]) -> None:
    axis = charts.linear_axis(values)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert len(charts.tick_texts(axis)) == len(axis.ticks)


@pytest.mark.parametrize("values", [[1e-7, 1e-1], [1e-5], [0.003, 0.004], [1e-30, 1e30]])
def test_log_axes_hold_their_values(values: list[float]) -> None:
    axis = charts.log_axis(values)
    assert axis.low <= min(values) * 1.0001
    assert axis.high >= max(values) * 0.9999 or len(axis.ticks) == 5
    assert charts.tick_texts(charts.log_axis([1e-7, 1e-1]))[0] == "10⁻⁷"


def test_numbers_are_written_for_people() -> None:
    assert [plain(x) for x in (5e-5, 12345.6, 0, -2.5, None, True, float("nan"))] == [
        "5e−5", "12,346", "0", "−2.5", "–", "–", "–",
    ]  # fmt: skip
    assert metric_value("accuracy", 0.8274) == "82.7 %"
    assert metric_value("mcc", -0.0512) == "−0.051"
    assert metric_difference("macro_f1", 0.0421) == "+4.2 points"
    assert visible("a\u202eb\x00\nc\ud800") == "a[U+202E]b[U+0000] c[U+D800]"
    assert cut("abcdef", 4) == "abc…"
    assert cut("\x00" * 100, 10) == "[U+0000][…"


def test_a_missing_folder_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        page.build(tmp_path / "nowhere")


def test_building_twice_leaves_one_file_and_the_same_page(tmp_path: Path) -> None:
    folder = synthetic_run.write(tmp_path / "run", test_rows=20, steps=10)
    first = page.build(folder).read_bytes()
    assert page.build(folder).read_bytes() == first
    assert [path.name for path in folder.glob("*report*")] == ["report.html"]
