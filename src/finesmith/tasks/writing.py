"""Have a network write the last answers of conversations, and say how other programs do the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finesmith.data.chat_template import ChatTemplate
    from finesmith.data.supervised import Supervised
    from finesmith.models.generate import Generated
    from finesmith.models.token_heads import TokenNetwork
    from finesmith.tasks.corpus import Speech
    from finesmith.tasks.language import Ints, Progress

# What is said of a prompt that leaves no room for an answer, in place of what ended it.
NO_ROOM = "no room"


@dataclass(frozen=True, slots=True)
class Written:
    """The last answers of N rows. texts: None where none was asked for; finished: what ended each, None where unknown.

    tokens: how many each has, None where unknown.
    """

    texts: tuple[str | None, ...]
    finished: tuple[str | None, ...] | None = None
    tokens: tuple[int | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """What is asked of rows. scored: their tokens with the answers as targets, None where they have none; prompts:
    what comes before the last answer, of rows without; aloud: int64, the rows whose last answer is written; template:
    None for an encoder-decoder.
    """

    scored: Supervised | None
    prompts: tuple[list[int], ...] | None
    aloud: Ints
    template: ChatTemplate | None
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def __len__(self) -> int:
        return len(self.prompts) if self.prompts is not None else len(self.scored or ())


def write(
    network: TokenNetwork,
    sheet: Sheet,
    prompts: Sequence[list[int]],
    speech: Speech,
    progress: Progress | None = None,
) -> Written:
    """Have a network continue the prompts, one for each row of `sheet.aloud`; the other rows stay unanswered."""
    from finesmith.models.generate import generate

    rows = sheet.aloud.tolist()
    assert speech.max_new_tokens is not None
    fitted = {row: _fitted(prompt, sheet, speech) for row, prompt in zip(rows, prompts, strict=True)}
    asked = {row: prompt for row, prompt in fitted.items() if prompt is not None}
    made = generate(
        network,
        list(asked.values()),
        max_new_tokens=speech.max_new_tokens,
        strategy=speech.strategy,
        temperature=speech.temperature,
        top_k=speech.top_k,
        top_p=speech.top_p,
        beams=speech.beams,
        stop_tokens=stop_tokens(sheet.template, sheet.tokenizer),
        stop_strings=speech.stop,
        tokenizer=sheet.tokenizer,
        seed=speech.seed,
        ids=list(asked),
        on_done=None if progress is None else lambda _: progress(1),
    )
    found: dict[int, Generated] = dict(zip(asked, made, strict=True))
    every = range(len(sheet))
    return Written(
        tuple((found[row].text or "").strip() if row in found else None for row in every),
        tuple(found[row].finished if row in found else NO_ROOM if row in fitted else None for row in every),
        tuple(len(found[row].tokens) if row in found else None for row in every),
    )


def _fitted(prompt: list[int], sheet: Sheet, speech: Speech) -> list[int] | None:
    """Return a prompt that leaves room for an answer, cut at its beginning where that is allowed; else None.

    An encoder-decoder has room for answers of their own, and its prompts were cut already where that is allowed.
    """
    if sheet.template is None:
        return prompt if len(prompt) <= sheet.max_length else None
    if len(prompt) < sheet.max_length:
        return prompt
    if speech.too_long != "shorten":
        return None
    kept = int(prompt[0] == sheet.tokenizer.bos_token_id)
    room = min(speech.max_new_tokens or 1, sheet.max_length // 2)
    return [*prompt[:kept], *prompt[len(prompt) - (sheet.max_length - room - kept) :]]


def stop_tokens(template: ChatTemplate | None, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end an answer: the template's, if there is one, and the end of all text."""
    stops = () if template is None else template.stops
    return token_ids({*stops, *([str(tokenizer.eos_token)] if tokenizer.eos_token else [])}, tokenizer)


def token_ids(names: Collection[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of special tokens, ascending."""
    ids: list[int] = tokenizer.convert_tokens_to_ids(sorted(names))  # type: ignore[assignment]
    return tuple(sorted(ids))


def save_settings(speech: Speech, network: TokenNetwork, folder: Path) -> None:
    """Write for transformers what ends an answer, how long one may be and how tokens are chosen."""
    from transformers import GenerationConfig

    from finesmith.data.chat_template import own_template

    tokenizer, apart = network.tokenizer, network.kind == "seq2seq"
    template = None if apart else own_template(tokenizer.chat_template, tokenizer)
    keys = ("decoder_start_token_id", "forced_bos_token_id")
    drawn = {"temperature": speech.temperature or 1.0, "top_k": speech.top_k or 0, "top_p": speech.top_p or 1.0}
    chosen: dict[str, dict[str, Any]] = {
        "greedy": {"do_sample": False},
        "sample": {"do_sample": True, **drawn},
        "beam": {"do_sample": False, "num_beams": speech.beams or 4},
    }
    config: Any = GenerationConfig
    config(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(stop_tokens(template, tokenizer)),
        pad_token_id=network.pad_id,
        # transformers counts a token that every answer must begin with.
        max_new_tokens=(speech.max_new_tokens or 1) + len(network.start[1:]),
        **dict(zip(keys, network.start, strict=False)),
        **chosen[speech.strategy],
    ).save_pretrained(folder)
