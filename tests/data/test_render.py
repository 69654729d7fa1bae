"""Conversations to token ids: transformers' apply_chat_template and a naive mask are the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesmith.data import placing
from finesmith.data.byte_words import ByteWords, expression_of
from finesmith.data.chat import Call, Conversation, Turn, refuse
from finesmith.data.chat_formats import convert, detect
from finesmith.data.chat_shapes import Shapes
from finesmith.data.chat_template import NAMES, ChatTemplate, cut, named_template, own_template
from finesmith.data.chunks import engine_of
from finesmith.data.render import Rendered, prompt_ids, render
from finesmith.errors import DataError, ModelError, UserError

STRIPPING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[Q] ' + m['content'].strip() + ' [/Q]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{% else %}{{ m.content ~ '\\n' }}{% endif %}{% endfor %}"
)
ASKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LETTERS = "Answer: 42, it's don't naïve  two  spaces\n\nlines\ttabs 你好 1234567 <|im_end|> \U0001f600 x=1; [/Q]"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(pattern: str | None = None) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    engine = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    engine.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    engine.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator([LETTERS, "The answer is 42. It's a test:\n\nYes, it is. assistant user"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=["gpt2", "qwen", "pieces"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "pieces":
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            request.getfixturevalue("shared") / "models/stories260K/hf", model_max_length=10**9
        )
    return byte_level(QWEN if request.param == "qwen" else None)


def templates(tokenizer: Any) -> list[ChatTemplate]:
    found = [named_template(name, tokenizer) for name in ("alpaca", "inst", "plain")]
    found.append(own_template(STRIPPING, tokenizer))
    if "<|im_end|>" in tokenizer.get_vocab():
        found += [named_template("chatml", tokenizer), own_template(ASKING, tokenizer)]
    return found


def chat(*texts: str, system: str | None = None, name: int = 0) -> Conversation:
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]
    return Conversation((Turn("system", system), *turns) if system else tuple(turns), name)


CHATS = [
    chat("What is 6 * 7?", "42", name=0),
    chat(" Hi \n", "Yes,  it is.\n\n1. a\n2. b ", "And 你好?", "naïve \U0001f600", name=1),
    chat("Q", "A", "Q2", "A2", "Q3", "It's a test: x=1;", system="Be brief.", name=2),
    chat("Say <|im_end|> or </s>", "the token </s> and <|im_end|> end a turn", "why", "so", name=3),
    chat("think", "a </think>\n\nb", name=4),
    Conversation(
        (
            Turn("user", "Weather?"),
            Turn("assistant", "", calls=(Call("weather", {"city": "Łódź", "days": 2}),)),
            Turn("tool", '{"sun": true}'),
            Turn("assistant", "Sunny."),
        ),
        5,
        ({"type": "function", "function": {"name": "weather"}},),
    ),
]


def oracle(conversation: Conversation, template: ChatTemplate, tokenizer: Any) -> list[int]:
    tokenizer.chat_template = template.for_tokenizer()
    tools = [dict(tool) for tool in conversation.tools] or None
    ids: list[int] = tokenizer.apply_chat_template(conversation.messages(), tools=tools)["input_ids"]
    return ids


def asked(conversation: Conversation, template: ChatTemplate, tokenizer: Any, turn: int) -> list[int]:
    tokenizer.chat_template = template.for_tokenizer()
    tools = [dict(tool) for tool in conversation.tools] or None
    found = tokenizer.apply_chat_template(conversation.messages()[:turn], tools=tools, add_generation_prompt=True)
    ids: list[int] = found["input_ids"]
    return ids


def naive_mask(ids: list[int], conversation: Conversation, template: ChatTemplate, tokenizer: Any) -> list[bool]:
    """Mark from the end of each prompt to the first stop token after what the answer holds itself."""
    stops = set(tokenizer.convert_tokens_to_ids(list(template.stops)))
    mask = [False] * len(ids)
    for turn, said in enumerate(conversation.turns):
        if said.role != "assistant":
            continue
        place = len(asked(conversation, template, tokenizer, turn))
        own = sum(said.content.count(stop) for stop in template.stops)
        while True:
            mask[place] = True
            if ids[place] in stops:
                if not own:
                    break
                own -= 1
            place += 1
    return mask


def test_ids_and_masks_equal_the_oracle(tokenizer: Any) -> None:
    for template in templates(tokenizer):
        where = [f"row {i}" for i in range(len(CHATS))]
        found = render(CHATS, template, tokenizer, where)
        refused = {fault.position for fault in found.faults}
        assert found.ids.tolist() == [i for i in range(len(CHATS)) if i not in refused]
        if template.source == ASKING:
            # Its text drops what stands before </think>, and writes no tool calls.
            assert refused == {4, 5}
        elif template.source == STRIPPING:
            assert refused == {5}
        else:
            assert not refused
        for row, name in enumerate(found.ids.tolist()):
            tokens, targets = found.rows.row(row)
            ids = oracle(CHATS[name], template, tokenizer)
            assert tokens.tolist() == ids
            mask = naive_mask(ids, CHATS[name], template, tokenizer)
            assert targets.tolist() == [*(t if m else -100 for t, m in zip(ids[1:], mask[1:], strict=True)), -100]
            assert not found.parted


def test_training_prompts_are_inference_prompts(tokenizer: Any) -> None:
    for template in templates(tokenizer):
        for conversation in CHATS[:4]:
            tokens, _ = render([conversation], template, tokenizer, ["row"]).rows.row(0)
            for turn, said in enumerate(conversation.turns):
                if said.role == "assistant":
                    prompt = prompt_ids(conversation, template, tokenizer, turn)
                    assert prompt == asked(conversation, template, tokenizer, turn)
                    assert tokens[: len(prompt)].tolist() == prompt
                    assert prompt.count(tokenizer.bos_token_id) <= 1


def test_the_stop_token_is_always_supervised_and_one_bos_at_most(tokenizer: Any) -> None:
    for template in templates(tokenizer):
        stops = set(tokenizer.convert_tokens_to_ids(list(template.stops)))
        found = render(CHATS[:3], template, tokenizer, ["row"] * 3)
        for row, conversation in enumerate(CHATS[:3]):
            tokens, targets = found.rows.row(row)
            answers = sum(turn.role == "assistant" for turn in conversation.turns)
            assert sum(int(target) in stops for target in targets) == answers
            assert (tokens == tokenizer.bos_token_id).sum() <= 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=30).filter(str.strip), min_size=2, max_size=6)),
    st.sampled_from([STRIPPING, ASKING, "chatml", "plain"]),
    st.booleans(),
)
def test_the_quick_ways_equal_the_plain_ones(texts: list[list[str]], form: str, last: bool) -> None:
    tokenizer = TOKENIZER
    template = named_template(form, tokenizer) if form in NAMES else own_template(form, tokenizer)
    shapes = Shapes(template, last=last)
    engine = engine_of(tokenizer)
    words = ByteWords(engine, expression_of(engine) or "")
    for each in texts:
        conversation = chat(*each[: len(each) // 2 * 2])
        try:
            expected: Any = cut(conversation, template, last=last)
        except ValueError as error:
            with pytest.raises(type(error)):
                shapes.cut(conversation)
            continue
        assert shapes.cut(conversation) == expected
        ids = words.tokenise([expected.text], NOWHERE).ids.tolist()
        assert ids == engine.encode(expected.text, add_special_tokens=False).ids


TOKENIZER = byte_level()
NOWHERE = np.empty(0, np.int64)


def test_the_engine_alone_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for template in templates(TOKENIZER):
        quick = render(CHATS, template, TOKENIZER, ["row"] * 6)
        with monkeypatch.context() as patch:
            patch.setattr(placing, "expression_of", lambda engine: None)
            plain = render(CHATS, template, TOKENIZER, ["row"] * 6)
        assert np.array_equal(quick.rows.tokens, plain.rows.tokens)
        assert np.array_equal(quick.rows.targets, plain.rows.targets)


def test_a_token_that_reaches_into_the_answer_is_parted(tokenizer: Any) -> None:
    """The prompt ends in a space that would join the answer's first word."""
    source = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token if m.role == 'assistant' else '\\n') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    template = own_template(source, tokenizer)
    conversation = chat("What?", "The answer is 42.", "And?", "It's a test:")
    found = render([conversation], template, tokenizer, ["row"])
    tokens, targets = found.rows.row(0)
    assert not found.faults
    assert found.parted == (0,)
    prompt = prompt_ids(conversation, template, tokenizer, 1)
    assert tokens[: len(prompt)].tolist() == prompt
    assert targets[: len(prompt) - 1].tolist() == [-100] * (len(prompt) - 1)
    assert tokenizer.decode(tokens) == tokenizer.decode(oracle(conversation, template, tokenizer))
    learnt = tokenizer.decode([t for t in targets.tolist() if t != -100])
    assert learnt.replace(" ", "") == "Theansweris42.</s>It'satest:</s>"


def supervised(found: Rendered) -> int:
    return int((found.rows.targets != -100).sum())


def test_loss_on_the_last_answer_or_on_everything(tokenizer: Any) -> None:
    template = named_template("plain", tokenizer)
    answers, last, everything = (
        render([CHATS[2]], template, tokenizer, ["row"], loss=loss) for loss in ("answers", "last", "all")
    )
    tokens, targets = everything.rows.row(0)
    assert targets[:-1].tolist() == tokens[1:].tolist()
    assert targets[-1] == -100
    prompt = prompt_ids(CHATS[2], template, tokenizer, 6)
    assert supervised(last) == len(tokens) - len(prompt)
    assert supervised(last) < supervised(answers) < supervised(everything)


def test_turns_that_are_not_trained_are_not_supervised() -> None:
    turns = (
        Turn("user", "Q"),
        Turn("assistant", "first", trained=False),
        Turn("user", "R"),
        Turn("assistant", "second"),
    )
    found = render([Conversation(turns, 0)], named_template("chatml", TOKENIZER), TOKENIZER, ["row"])
    assert TOKENIZER.decode([t for t in found.rows.targets if t != -100]) == "second<|im_end|>"


def test_truncation_never_cuts_an_answer(tokenizer: Any) -> None:
    template = named_template("plain", tokenizer)
    chats = [chat("word " * 50, "42", name=7), chat("Q", "word " * 50, name=8), chat("Q", "A", name=9)]
    where = [f"row {i}" for i in (7, 8, 9)]
    whole = render(chats, template, tokenizer, where)
    limit = 40
    assert (whole.rows.lengths() > limit).tolist() == [True, True, False]
    dropped = render(chats, template, tokenizer, where, max_length=limit)
    assert dropped.ids.tolist() == [9]
    assert dropped.dropped == (7, 8)
    cut_rows = render(chats, template, tokenizer, where, max_length=limit, too_long="shorten")
    assert cut_rows.ids.tolist() == [7, 9]
    assert (cut_rows.shortened, cut_rows.dropped) == ((7,), (8,))
    tokens, targets = cut_rows.rows.row(0)
    before, labels = whole.rows.row(0)
    assert len(tokens) == limit
    kept = int(before[0] == tokenizer.bos_token_id)
    assert tokens.tolist() == [*before[:kept].tolist(), *before[kept - limit :].tolist()]
    assert [t for t in targets if t != -100] == [t for t in labels if t != -100]
    with pytest.raises(DataError, match=r"(?s)2 of 3 rows.*row 7: .*more than 40 tokens"):
        render(chats, template, tokenizer, where, max_length=limit, too_long="stop")
    with pytest.raises(UserError, match="at least 3"):
        render(chats, template, tokenizer, where, max_length=2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}", "never stop"),
        ("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}<x>{% endif %}",
         "no exact cut"),
        ("{{ bos_token + bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", "at most once"),
        ("{% for m in messages %}", "cannot be used"),
        ("{{ raise_exception('roles!') }}", "roles!"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 3 seconds"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_trusted_are_refused(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        own_template(source, TOKENIZER)


def test_missing_tokens_and_names_are_told(shared: Path) -> None:
    with pytest.raises(ModelError, match="choose one of chatml"):
        named_template("vicuna", TOKENIZER)
    with pytest.raises(ModelError, match="no chat template"):
        own_template(None, TOKENIZER)
    from transformers import AutoTokenizer

    stories = AutoTokenizer.from_pretrained(shared / "models/stories260K/hf")
    with pytest.raises(ModelError, match=r"needs <\|im_start\|>"):
        named_template("chatml", stories)


def test_a_template_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = byte_level()
    template = named_template("chatml", tokenizer)
    tokenizer.chat_template = template.for_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    tokens, _ = render([CHATS[5]], template, tokenizer, ["row"]).rows.row(0)
    tools = [dict(tool) for tool in CHATS[5].tools]
    assert again.apply_chat_template(CHATS[5].messages(), tools=tools)["input_ids"] == tokens.tolist()


def test_a_template_for_tools_is_used_for_them() -> None:
    with_tools = ASKING.replace("{{ m.role }}", "{{ m.role }} tools")
    template = own_template({"default": ASKING, "tool_use": with_tools}, TOKENIZER)
    asks = [{"role": "user", "content": "Q"}]
    assert template.text(asks, CHATS[5].tools) == "<|im_start|>user tools\nQ<|im_end|>\n"
    assert template.text(asks) == "<|im_start|>user\nQ<|im_end|>\n"


def test_no_conversations_are_no_rows() -> None:
    found = render([], named_template("plain", TOKENIZER), TOKENIZER, [])
    assert len(found.rows) == 0
    assert found.told()


@pytest.mark.parametrize(
    "name", ["alpaca_en_demo", "identity", "glaive_toolcall_en_demo", "dpo_en_demo", "kto_en_demo"]
)
def test_shared_files_render_as_the_oracle(shared: Path, name: str) -> None:
    given = json.loads((shared / "data" / "instruct_llamafactory" / f"{name}.json").read_text())[::10]
    check_rows(given, shared)


def test_gsm8k_renders_as_the_oracle(shared: Path) -> None:
    lines = (shared / "data" / "gsm8k" / "test.jsonl").read_text().splitlines()[::20]
    check_rows([json.loads(line) for line in lines], shared)


def check_rows(given: list[dict[str, Any]], shared: Path) -> None:
    from transformers import AutoTokenizer

    stories = AutoTokenizer.from_pretrained(shared / "models/stories260K/hf", model_max_length=10**9)
    where = [f"row {i}" for i in range(len(given))]
    found = convert(given, detect(given), where)
    refuse(found.faults, len(given))
    for tokenizer, name in ((stories, "inst"), (TOKENIZER, "chatml")):
        template = named_template(name, tokenizer)
        rendered = render(found.conversations, template, tokenizer, where)
        assert not rendered.faults
        for row, conversation in enumerate(found.conversations):
            tokens, targets = rendered.rows.row(row)
            assert tokens.tolist() == oracle(conversation, template, tokenizer)
            last = len(prompt_ids(conversation, template, tokenizer, len(conversation.turns) - 1))
            stop = tokenizer.convert_tokens_to_ids(template.stops[0])
            end = tokens.tolist().index(stop, last)
            assert targets[last - 1 : end].tolist() == tokens[last : end + 1].tolist()
