from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finesmith.errors import UserError
from finesmith.models.generate import generate
from finesmith.models.stops import Stops


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """A byte-level tokenizer: every character beyond ASCII takes several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "o.", "END"]
    merges = [("h", "e"), ("l", "l"), ("o", "."), ("E", "N"), ("EN", "D")]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "EN"])}
    engine = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>", eos_token="</s>")


def stopped(stops: Stops, tokens: list[int]) -> int | None:
    """How many tokens were there when a stop string was first seen."""
    return next((n for n in range(1, len(tokens) + 1) if stops.hit(tokens[:n])), None)


@pytest.mark.parametrize(
    ("text", "strings", "before"),
    [
        ("say hello. END now", ["END"], "say hello. "),
        ("say hello. END now", [". E"], "say hello"),
        ("say hello. END now", ["lo"], "say hel"),
        ("naïve — yes", ["ï"], "na"),
        ("naïve — yes", ["— y"], "naïve "),
        ("ab\n\nc", ["\n\n"], "ab"),
        ("日本語です", ["語で"], "日本"),
        ("one two", ["two", "one"], ""),
        ("x" * 300 + "yz", ["yz"], "x" * 300),
    ],
)
def test_a_stop_string_may_span_tokens_and_begin_within_one(
    bytewise: Any, text: str, strings: list[str], before: str
) -> None:
    tokens = bytewise(text).input_ids
    stops = Stops([], strings, bytewise)
    count = stopped(stops, tokens)
    assert count is not None
    naive = next(n for n in range(1, len(tokens) + 1) if any(s in bytewise.decode(tokens[:n]) for s in strings))
    assert count == naive
    assert stops.text(tokens[:count]) == before


def test_a_text_without_the_string_goes_on(bytewise: Any) -> None:
    stops = Stops([], ["END!"], bytewise)
    assert stopped(stops, bytewise("EN END? END EN").input_ids) is None
    assert stops.text(bytewise("EN D").input_ids) == "EN D"
    assert stopped(Stops([1], [], None), [1, 2]) is None
    assert Stops([1], [], None).text([3]) is None


def test_special_tokens_between_do_not_hide_a_string(bytewise: Any) -> None:
    e, n, d = (bytewise.convert_tokens_to_ids(c) for c in "END")
    stops = Stops([], ["END"], bytewise)
    assert stopped(stops, [e, *[0] * 40, n, *[0] * 40, d, 0]) == 83
    assert stops.text([e, 0, d]) == "ED"


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        (["."], None),
        ([""], r"stop_strings\[0\] is '', expected a text of at least one character"),
        ([".", "</s>"], r"stop_strings\[1\] is '</s>', a special token, .* stop at it with stop_tokens=\[1\]"),
    ],
)
def test_stop_strings_that_cannot_occur_are_refused(bytewise: Any, strings: list[str], message: str | None) -> None:
    if message is None:
        Stops([], strings, bytewise)
        return
    with pytest.raises(UserError, match=message):
        Stops([], strings, bytewise)


@pytest.mark.parametrize("way", [{}, {"strategy": "sample", "seed": 4}, {"strategy": "beam", "beams": 3}])
def test_a_story_ends_before_the_string(shared: Path, way: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / "stories260K" / "hf"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(text).input_ids for text in ("Once upon a time", "Lily had a red", "The dog was sad", "Tom")]
    free = generate(model, prompts, max_new_tokens=40, tokenizer=tokenizer, **way)
    found = generate(model, prompts, max_new_tokens=40, tokenizer=tokenizer, stop_strings=["y ", "n the"], **way)
    one = [
        generate(
            model, [p], ids=[i], max_new_tokens=40, tokenizer=tokenizer, stop_strings=["y ", "n the"], **way
        )[0]
        for i, p in enumerate(prompts)
    ]  # fmt: skip
    assert [(r.tokens, r.text, r.finished) for r in one] == [(r.tokens, r.text, r.finished) for r in found]
    assert "stop_string" in {r.finished for r in found}
    for mine, whole in zip(found, free, strict=True):
        assert mine.text is not None
        assert whole.text is not None
        if mine.finished == "stop_string":
            assert "y " not in mine.text
            assert "n the" not in mine.text
            assert any(s in tokenizer.decode(mine.tokens) for s in ("y ", "n the"))
            assert not any(s in tokenizer.decode(mine.tokens[:-1]) for s in ("y ", "n the"))
        if way.get("strategy") != "beam":
            assert whole.tokens[: len(mine.tokens)] == mine.tokens
            assert whole.text.startswith(mine.text)


def test_a_network_brings_its_tokenizer(shared: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finesmith.models.forward import Network

    folder = shared / "models" / "stories260K" / "hf"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    network = Network(model, model, tokenizer, False, "", 0)
    (found,) = generate(network, [[1, 403]], max_new_tokens=30, stop_strings=["."])
    assert found.finished == "stop_string"
    assert found.text is not None
    assert "." not in found.text
