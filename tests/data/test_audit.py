from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data.audit import CHECKS, apply, audit
from finesmith.data.audit_rows import Kind, answer, excerpt, is_blank
from finesmith.data.near_duplicates import cluster
from finesmith.errors import DataError
from finesmith.recipe.schema import Audit
from finesmith.types import Examples, Finding

REVIEWS = [
    "The plot moves along briskly and never drags.",
    "A dull script wastes two fine actors completely.",
    "Every scene in the harbour looks wonderful.",
    "I left the cinema before the ending.",
    "Children will enjoy the talking otter most.",
    "Its music is too loud throughout the chase.",
]


def rows(
    texts: Sequence[str], labels: Sequence[Any] | None = None, pairs: Sequence[str] | None = None, first_id: int = 100
) -> Examples:
    return Examples(np.arange(first_id, first_id + len(texts)), texts, pairs, labels)


def look(examples: Examples, kind: Kind = "category", **more: Any) -> dict[str, Finding]:
    texts = examples.texts
    if examples.pairs is not None:
        texts = [f"{text}\n{pair}" for text, pair in zip(texts, examples.pairs, strict=True)]
    return {found.kind: found for found in audit(examples, clusters=lambda: cluster(texts), kind=kind, **more)}


def many(number: int) -> list[str]:
    """Return plain sentences that have little in common."""
    chance = np.random.default_rng(0)
    vocabulary = [
        f"{one}{two}" for one in ("ba", "ke", "li", "mo", "nu", "pra", "sto") for two in ("ring", "dle", "sk", "va")
    ]
    return [" ".join(chance.choice(vocabulary, 12)) for _ in range(number)]


def test_the_recipe_offers_what_the_checks_allow() -> None:
    assert set(Audit.model_fields) == set(CHECKS)
    for kind, check in CHECKS.items():
        key = Audit.model_fields[kind]
        assert key.default == check.default
        assert set(get_args(key.annotation)) == set(check.allowed)


def test_clean_rows_have_no_fault() -> None:
    found = look(rows(REVIEWS * 1, ["good", "bad"] * 3))
    assert set(found) <= {"lexical_diversity", "mixed_language"}
    assert all(one.severity == "info" and one.ids == () for one in found.values())


def test_nothing_to_audit() -> None:
    assert look(rows([], [])) == {}


@pytest.mark.parametrize("text", ["", "   \t\n", "...", "?!", "_", "-- --", "\u200b"])
def test_empty_rows(text: str) -> None:
    found = look(rows([*REVIEWS, text], ["good", "bad"] * 3 + ["bad"]))["empty"]
    assert found.ids == (106,)
    assert found.action == "drop"


def test_a_picture_or_a_digit_is_content() -> None:
    assert not is_blank("👍")
    assert not is_blank("5")
    assert not is_blank("好")


def test_a_pair_is_empty_when_either_text_is() -> None:
    found = look(rows(["one two", "", "three"], ["x", "y", "x"], pairs=["a", "b", " "]))
    assert found["empty"].ids == (101, 102)


def test_exact_duplicates_are_later_copies_with_the_same_label() -> None:
    texts = [*REVIEWS, REVIEWS[0].upper(), f"  {REVIEWS[0]}", REVIEWS[1]]
    found = look(rows(texts, ["good", "bad"] * 3 + ["good", "bad", "bad"]))
    assert found["exact_duplicates"].ids == (106, 108)
    assert found["conflicting_labels"].ids == (100, 106, 107)


def test_exact_duplicates_of_held_out_splits_are_kept() -> None:
    texts = [REVIEWS[0], REVIEWS[0], REVIEWS[1], REVIEWS[1], REVIEWS[2]]
    found = look(rows(texts, ["good"] * 5), splits=["test", "test", "train", "train", "train"])
    assert found["exact_duplicates"].ids == (103,)
    assert found["exact_duplicates"].details["kept_in_held_out_splits"] == {"test": 1}


def test_near_duplicates_name_what_they_copy() -> None:
    copy = REVIEWS[1].replace("fine", "good")
    found = look(rows([*REVIEWS, copy], ["good", "bad"] * 3 + ["bad"]))["near_duplicates"]
    assert found.ids == (106,)
    assert found.examples[0]["copy_of"] == REVIEWS[1]
    assert found.action == "keep"


def test_ratings_conflict_only_when_far_apart() -> None:
    texts = [*REVIEWS, REVIEWS[0], REVIEWS[1]]
    found = look(rows(texts, [1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 5.0, 2.5]), kind="number")
    assert found["conflicting_labels"].ids == (100, 106)


def test_leaks_are_dropped_from_train_and_never_from_test() -> None:
    texts = [*REVIEWS, REVIEWS[0], REVIEWS[2].replace("wonderful", "splendid"), REVIEWS[4]]
    splits = ["train", "train", "train", "train", "validation", "train", "test", "test", "test"]
    examples = rows(texts, ["good"] * 9)
    found = look(examples, splits=splits)
    exact, near = found["leakage"], found["near_leakage"]
    assert (exact.ids, exact.severity, exact.action) == ((100, 104), "error", "drop")
    assert (near.ids, near.severity, near.action) == ((102,), "warning", "keep")
    assert exact.details["ways"] == {"train to test": 1, "validation to test": 1}
    assert near.examples[0]["held_out_in"] == "test"
    applied = apply([exact, near], examples)
    assert applied.keep.tolist() == [False, True, True, True, False, True, True, True, True]
    both = look(examples, splits=splits, actions={"near_leakage": "drop"})
    assert apply(list(both.values()), examples).keep.tolist()[:5] == [False, True, False, True, False]


def test_groups_that_straddle_given_splits_are_named() -> None:
    splits = ["train", "train", "validation", "test", "train", "validation"]
    groups = ["ann", "bob", "bob", "ann", "cy", "ann"]
    plain = rows(REVIEWS, ["good", "bad"] * 3)
    examples = Examples(plain.ids, plain.texts, None, plain.labels, groups)
    found = look(examples, splits=splits)["group_leakage"]
    assert (found.ids, found.severity, found.action) == ((100, 101, 105), "error", "keep")
    assert found.details["ways"] == {"train to test": 1, "train to validation": 1, "validation to test": 1}
    assert found.details["groups"] == 2
    assert found.message.startswith("3 rows share a group with held-out rows: 1 from train to test")
    assert found.message.endswith("(2 groups)")
    assert found.shows == "ann, bob"
    assert found.examples[0]["group"] == "ann"
    assert found.examples[0]["held_out_in"] == "test"
    dropped = look(examples, splits=splits, actions={"group_leakage": "drop"})["group_leakage"]
    assert apply([dropped], examples).keep.tolist() == [False, False, True, True, True, False]
    assert "group_leakage" not in look(examples)
    assert "group_leakage" not in look(plain, splits=splits)


@given(st.lists(st.tuples(st.sampled_from(["train", "validation", "test"]), st.sampled_from("abcd")), max_size=12))
@settings(max_examples=60, deadline=None)
def test_group_leaks_agree_with_every_pair_of_rows(table: list[tuple[str, str]]) -> None:
    order = ["train", "validation", "test"]
    plain = rows([f"{REVIEWS[row % 6]} {row}" for row in range(len(table))])
    examples = Examples(plain.ids, plain.texts, None, None, [group for _, group in table])
    found = look(examples, splits=[split for split, _ in table])
    expected = {
        100 + row
        for row, (split, group) in enumerate(table)
        if any(group == other and order.index(later) > order.index(split) for later, other in table)
    }
    assert set(found["group_leakage"].ids if "group_leakage" in found else ()) == expected


@pytest.mark.parametrize("label", [None, float("nan"), "", "  "])
def test_missing_labels(label: object) -> None:
    assert look(rows(REVIEWS, ["good", "bad", "good", "bad", "good", label]))["missing_labels"].ids == (105,)


def test_a_rating_that_is_no_number_is_missing() -> None:
    found = look(rows(REVIEWS, ["1", 2, 3.5, "four", float("inf"), None]), kind="number")["missing_labels"]
    assert found.ids == (103, 104, 105)
    assert found.details["not_a_number"] == 1
    assert found.examples[0]["label"] == "four"


@pytest.mark.parametrize(("wrong", "severity"), [(1, "warning"), (2, "error")])
def test_many_ratings_that_are_no_numbers_are_an_error(wrong: int, severity: str) -> None:
    labels = [*["many"] * wrong, *range(20), *[None] * 10]
    found = look(rows(many(len(labels)), labels), kind="number")["missing_labels"]
    assert (found.severity, found.details["not_a_number"]) == (severity, wrong)


def test_a_list_without_labels_is_not_missing() -> None:
    assert answer([], "list") == ()
    assert answer(["b", "a", "b"], "list") == ("a", "b")
    assert answer(None, "list") is None
    assert "missing_labels" not in look(rows(REVIEWS, [[], ["a"], ["a", "b"], [], ["b"], ["a"]]), kind="list")


def test_broken_encoding_and_html_are_found_and_mended() -> None:
    texts = [
        "The caf\u00c3\u00a9 scene is lovely and slow.",
        "A <b>great</b> film &amp; a fine cast.",
        "<br>",
        REVIEWS[0],
    ]
    examples = rows(texts, ["good", "bad", "good", "bad"])
    found = look(examples, actions={"broken_encoding": "fix", "html": "fix"})
    assert found["broken_encoding"].ids == (100,)
    assert found["html"].ids == (101, 102)
    fixers: dict[str, Callable[[str], str]] = {
        "broken_encoding": lambda text: text.replace("\u00c3\u00a9", "é"),
        "html": lambda text: text.replace("<b>", "").replace("</b>", "").replace("&amp;", "&").replace("<br>", ""),
    }
    applied = apply(list(found.values()), examples, fixers=fixers)
    assert applied.texts[:2] == ["The café scene is lovely and slow.", "A great film & a fine cast."]
    assert applied.fixed == {"broken_encoding": 1, "html": 2}
    assert applied.dropped == {"html": 1}  # nothing was left of the third
    assert applied.keep.tolist() == [True, True, False, True]


def test_other_languages_are_named() -> None:
    spanish = [
        f"La película número {number} es muy aburrida y los actores no convencen a nadie en absoluto"
        for number in ["uno", "dos", "tres", "cuatro", "cinco", "seis"]
    ]
    found = look(rows([*REVIEWS * 3, *spanish], ["x"] * 24))["mixed_language"]
    assert found.ids == tuple(range(118, 124))
    assert found.details["main"] == "en"
    assert found.examples[0]["language"] == "es"


def test_personal_data_is_found_and_not_shown() -> None:
    found = look(rows([*REVIEWS, "Write to jane.miller@example.com about it."], ["x"] * 7))["personal_data"]
    assert found.ids == (106,)
    assert found.details["kinds"] == {"email": 1}
    assert "jane" not in json.dumps(found.examples)


def test_imbalance_is_measured() -> None:
    found = look(rows(many(130), ["often"] * 120 + ["seldom"] * 10))["imbalance"]
    assert found.details["ratio"] == pytest.approx(12)
    assert found.severity == "warning"
    assert "imbalance" not in look(rows(many(20), ["a"] * 10 + ["b"] * 10))


def test_small_classes_count_independent_examples() -> None:
    texts = [*many(40), *REVIEWS[:2], REVIEWS[3], REVIEWS[3], REVIEWS[3]]
    found = look(rows(texts, ["common"] * 40 + ["rare"] * 2 + ["copied"] * 3))["small_classes"]
    assert found.ids == tuple(range(140, 145))
    assert found.details["classes"] == {"copied": 1, "rare": 2}


def test_length_outliers() -> None:
    texts = [*many(60), "word", "and so on " * 200]
    found = look(rows(texts, ["x", "y"] * 31))["length"]
    assert found.ids == (160, 161)
    assert (found.details["short"], found.details["long"], found.details["median"]) == (1, 1, 12)


def test_truncation_counts_tokens_lost() -> None:
    found = look(rows(REVIEWS, ["x"] * 6), lengths=[10, 20, 30, 40, 5, 5], max_length=25)["truncation"]
    assert found.ids == (102, 103)
    assert found.details["tokens_lost"] == 5 + 15
    assert found.details["share_lost"] == pytest.approx(20 / 110)


def test_lexical_diversity_by_hand() -> None:
    found = look(rows(["a b a b", "a c"], ["x", "y"]))["lexical_diversity"]
    assert found.details["vocabulary"] == 3
    assert found.details["type_token_ratio"] == pytest.approx(3 / 6)
    assert found.details["distinct_2"] == pytest.approx(3 / 5)  # ab ba ab ba ac


def test_templates_are_poor_in_words() -> None:
    found = look(rows([f"please send my parcel number {row % 7} today thanks" for row in range(400)], ["x"] * 400))
    assert found["lexical_diversity"].severity == "warning"


@pytest.mark.parametrize(
    "mark", [lambda label: f"[{label[:2]}]", lambda label: f"rating={len(label)}/5", lambda label: f"Label: {label}"]
)
def test_a_mark_that_gives_the_label_away_is_found(mark: Callable[[str], str]) -> None:
    labels = ["spam", "private"] * 100
    texts = [f"{text} {mark(label)}" for text, label in zip(many(200), labels, strict=True)]
    found = look(rows(texts, labels))["label_in_text"]
    assert len(found.ids) == 200
    assert found.severity == "error"


def test_a_rating_written_in_the_text_is_found() -> None:
    ratings = [row % 5 + 1 for row in range(200)]
    texts = [f"{text} {rating}/5" for text, rating in zip(many(200), ratings, strict=True)]
    assert len(look(rows(texts, ratings), kind="number")["label_in_text"].ids) == 200
    assert "label_in_text" not in look(rows(many(200), ratings), kind="number")


def test_natural_words_raise_no_alarm(shared: Path) -> None:
    import csv

    with (shared / "data/banking77/train.csv").open(encoding="utf-8", newline="") as file:
        intents = list(csv.DictReader(file))
    examples = rows([row["text"] for row in intents], [row["category"] for row in intents])
    from finesmith.data.audit_rows import look_at

    alone = cluster(["x"])
    for data in (examples, bench(shared).film_reviews(shared).examples()):
        seen = look_at(data, kind="category", clusters=lambda: alone, splits=None, lengths=None, max_length=None)
        assert CHECKS["label_in_text"].run(seen, "keep") is None


def test_stop_stops_with_the_finding() -> None:
    examples = rows([*REVIEWS, ""], ["good"] * 7)
    found = look(examples, actions={"empty": "stop"})
    with pytest.raises(DataError, match=r"1 row \(14\.3 %\) are empty.*data\.audit\.empty is stop"):
        apply(list(found.values()), examples)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"emty": "drop"}, "data.audit.emty is unknown; the audit looks for empty"),
        ({"empty": "fix"}, "expected one of keep, drop, stop"),
    ],
)
def test_unknown_actions_are_refused(actions: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        look(rows(REVIEWS, ["x"] * 6), actions=actions)


def test_an_excerpt_is_short_and_harmless() -> None:
    shown = excerpt("\x1b[31mred\u202e\x00 text\nnext " + "long " * 100)
    assert shown.startswith("[31mred text next long")
    assert len(shown) == 160
    assert shown.endswith("…")


dirty = st.sampled_from(
    [
        *REVIEWS,
        REVIEWS[0].upper(),
        REVIEWS[1].replace("fine", "good"),
        "",
        "...",
        "caf\u00c3\u00a9 au lait",
        "<p>see this</p>",
        "a@b.org",
    ]
)


@given(
    table=st.lists(
        st.tuples(dirty, st.sampled_from(["x", "y", None, ""]), st.sampled_from(["train", "validation", "test"])),
        max_size=25,
    ),
    given_splits=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_counts_add_up(table: list[tuple[str, str | None, str]], given_splits: bool, data: st.DataObject) -> None:
    actions = {
        kind: data.draw(st.sampled_from([action for action in check.allowed if action != "stop"]), label=kind)
        for kind, check in CHECKS.items()
    }
    examples = rows([text for text, _, _ in table], [label for _, label, _ in table])
    splits = [split for _, _, split in table] if given_splits else None
    found = audit(examples, clusters=lambda: cluster(examples.texts), kind="category", splits=splits, actions=actions)
    fixers = dict.fromkeys(("broken_encoding", "html", "personal_data"), lambda text: text.replace("a", ""))
    applied = apply(found, examples, fixers=fixers)
    assert len(examples) == int(applied.keep.sum()) + sum(applied.dropped.values())
    assert len(applied.texts) == len(examples)
    for one in found:
        assert set(one.ids) <= set(examples.ids.tolist())
        assert len(one.examples) <= 5
        assert all(len(str(example["text"])) <= 160 for example in one.examples)
        json.dumps([one.details, one.examples])
        if one.action == "drop":
            assert not applied.keep[[identity - 100 for identity in one.ids]].any()
    kept_labels = [label for keep, (_, label, _) in zip(applied.keep, table, strict=True) if keep]
    assert all(label in ("x", "y") for label in kept_labels)


def bench(shared: Path) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "audit_planted.py"
    specification = importlib.util.spec_from_file_location("audit_planted", path)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules["audit_planted"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_planted_faults_are_found(shared: Path) -> None:
    planted = bench(shared)
    table = planted.measure(planted.plant(shared, 50, seed=1), planted.look(planted.film_reviews(shared)))
    for kind, line in table.items():
        if kind == "personal names":
            continue
        assert line["planted"] >= 50
        if kind != "mixed_language":
            assert line["recall"] >= (0.9 if kind == "personal_data" else 0.95), (kind, line["missed"])
            assert line["precision"] >= 0.95, (kind, line["false"])
    hits, size = table["mixed_language"]["groups"]["longer"]
    assert hits / size >= 0.95
