"""Faults of conversations: rows are made by `data.render` as training will make them, and probed as a run probes them.

When a task of conversations has a run of its own, these can be put into it as the others are.
"""

# ruff: noqa: ARG001, ARG005 - a change is given all there is, and few need all of it
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gauntlet import Case

QUESTIONS = ("the film was good ?", "a dull story and bad acting .", "is the plot clever ?", "love this warm scene !")
ANSWERS = ("yes it was", "not at all but the music is fun", "no", "enjoy it in the end and start again")


def conversations(turns: int) -> list[Any]:
    """Return conversations of one or two rounds."""
    from finesmith.data.chat import Conversation, Turn

    return [
        Conversation(
            tuple(
                Turn(role, (QUESTIONS if role == "user" else ANSWERS)[(i + at) % 4])
                for at in range(turns)
                for role in ("user", "assistant")
            ),
            i,
        )
        for i in range(12)
    ]


def tokenizer() -> Any:
    """Return a tokenizer with the marks of ChatML."""
    from tiny import bert_tokenizer

    found: Any = bert_tokenizer()
    found.bos_token, found.eos_token = "[CLS]", "[SEP]"
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return found


def probed(
    name: str, turns: int, change: Callable[[Any, Any, list[list[int]]], Any], **options: Any
) -> Callable[[Any], Any]:
    """Render, change, and probe; `change` gets the rendered rows, the tokenizer and the prompts' ids."""

    def leaf(world: Any) -> list[Any]:
        from finesmith.data.chat_template import named_template
        from finesmith.data.render import prompt_ids, render
        from finesmith.guards.rows import look_at_rows
        from finesmith.tasks.corpus import Answers

        del world
        words, talks = tokenizer(), conversations(turns)
        template = named_template(name, words)
        where = [f"row {i}" for i in range(len(talks))]
        found = render(talks, template, words, where, **options)
        prompts = [prompt_ids(talks[int(i)], template, words, turn=1) for i in found.ids]
        stops = tuple(words.convert_tokens_to_ids(list(template.stops)))
        rows, prompts, stops, lost = change(found, words, prompts) or (found.rows, prompts, stops, len(found.dropped))
        answers = Answers(stops if stops else (), lost=lost, prompts=dict(enumerate(prompts)))
        return list(look_at_rows(rows, answers, causal=True, beginning=words.bos_token_id, decode=words.decode))

    return leaf


def masked(change: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """Change the targets: (targets, tokens, tokenizer) -> targets."""

    def apply(found: Any, words: Any, prompts: Any) -> Any:
        rows = found.rows
        stops = tuple(words.convert_tokens_to_ids(["<|im_end|>", "[SEP]"]))
        fresh = replace(rows, targets=change(rows.targets.copy(), rows, words))
        return fresh, prompts, stops, len(found.dropped)

    return apply


def _next(rows: Any) -> Any:
    import numpy as np

    found = np.append(rows.tokens[1:], -100)
    found[rows.offsets[1:] - 1] = -100
    return found.astype(np.int32)


def zeros(targets: Any, rows: Any, words: Any) -> Any:
    targets[:] = -100
    return targets


def ones(targets: Any, rows: Any, words: Any) -> Any:
    return _next(rows)


def prompts_instead(targets: Any, rows: Any, words: Any) -> Any:
    found = _next(rows)
    found[targets != -100] = -100
    return found


def no_stop(targets: Any, rows: Any, words: Any) -> Any:
    for token in words.convert_tokens_to_ids(["<|im_end|>", "[SEP]"]):
        targets[targets == token] = -100
    return targets


def no_stop_but_last(targets: Any, rows: Any, words: Any) -> Any:
    """Leave the stop token of the last turn alone."""
    last = [
        int((targets[a:b] != -100).nonzero()[0].max()) + a
        for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    ]
    kept = targets[last].copy()
    targets = no_stop(targets, rows, words)
    targets[last] = kept
    return targets


def first_token_only(targets: Any, rows: Any, words: Any) -> Any:
    on = targets != -100
    targets[1:][on[1:] & on[:-1]] = -100
    return targets


def twice(found: Any, words: Any, prompts: Any) -> Any:
    """Put a beginning of text before every row, which has one."""
    return _with_prefix(found.rows, words.bos_token_id, prompts, found)


def _with_prefix(rows: Any, token: int, prompts: Any, found: Any) -> Any:
    import numpy as np

    count = len(rows)
    starts = rows.offsets[:-1]
    first = rows.tokens[starts] == token
    extra = np.where(first, 1, 2)
    tokens = np.insert(rows.tokens, np.repeat(starts, extra), token)
    targets = np.insert(rows.targets, np.repeat(starts, extra), -100)
    offsets = rows.offsets + np.concatenate([[0], np.cumsum(extra)])
    del count
    return replace(rows, tokens=tokens, targets=targets, offsets=offsets), prompts, _all_stops(rows), 0


def _all_stops(rows: Any) -> tuple[int, ...]:
    words = tokenizer()
    return tuple(words.convert_tokens_to_ids(["<|im_end|>", "[SEP]"]))


def other_prompts(change: Callable[[list[int], Any], list[int]]) -> Callable[[Any, Any, Any], Any]:
    def apply(found: Any, words: Any, prompts: Any) -> Any:
        return found.rows, [change(prompt, words) for prompt in prompts], _all_stops(found.rows), 0

    return apply


def cut_at(share: float) -> Callable[[Any, Any, Any], Any]:
    """Cut every row from the right, as a tokenizer that truncates does."""

    def apply(found: Any, words: Any, prompts: Any) -> Any:
        import numpy as np

        rows = found.rows
        keep = np.maximum(2, (rows.lengths() * share).astype(int))
        chosen = np.concatenate([np.arange(a, a + k) for a, k in zip(rows.offsets[:-1], keep, strict=True)])
        targets = rows.targets[chosen].copy()
        offsets = np.concatenate([[0], np.cumsum(keep)])
        targets[offsets[1:] - 1] = -100
        cut = replace(rows, tokens=rows.tokens[chosen], targets=targets, offsets=offsets)
        return cut, prompts, _all_stops(rows), 0

    return apply


def same(found: Any, words: Any, prompts: Any) -> None:
    """Change nothing."""


def unknown_stop(found: Any, words: Any, prompts: Any) -> Any:
    """Have generation stop at another token."""
    return found.rows, prompts, (7,), 0


VARIANTS: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("mask of zeros or ones", "all zeros", masked(zeros), {}),
    ("mask of zeros or ones", "all ones", masked(ones), {}),
    ("mask of zeros or ones", "prompts in place of answers", masked(prompts_instead), {}),
    ("mask of zeros or ones", "everything, by a setting", same, {"loss": "all"}),
    ("stop token never supervised", "taken for padding", masked(no_stop), {}),
    ("stop token never supervised", "the first token of an answer alone", masked(first_token_only), {}),
    ("stop token never supervised", "generation stops at another", unknown_stop, {}),
    ("double BOS", "tokenizer and template write it", twice, {}),
    ("double BOS", "one more at inference", other_prompts(lambda p, w: [w.bos_token_id, *p]), {}),
    ("double BOS", "the turn is not opened at inference", other_prompts(lambda p, w: [*p[:-1], 9]), {}),
    ("an answer cut away", "rows cut in half", cut_at(0.5), {}),
    ("an answer cut away", "rows lose their ends", cut_at(0.9), {}),
    ("an answer cut away", "most do not fit", same, {"max_length": 12, "too_long": "drop"}),
]
CHAT = [
    Case(fault, variant, f"chat ({name}, {turns} rounds)", leaf=probed(name, turns, change, **options))
    for name, turns in (("chatml", 1), ("plain", 2))
    for fault, variant, change, options in VARIANTS
]
CHAT.append(
    Case(
        "stop token never supervised", "of one turn of two", "chat (plain, 2 rounds)",
        leaf=probed("plain", 2, masked(no_stop_but_last)),
    )
)  # fmt: skip
CLEAN_CHAT = [
    Case("", f"{name}, {turns} rounds", "chat", leaf=probed(name, turns, same))
    for name, turns in (("chatml", 1), ("chatml", 2), ("alpaca", 1), ("inst", 2), ("plain", 2))
]
