"""Chat templates: the model's own or a named one, proven to be cut exactly between question and answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesmith.data.chat import Conversation, Turn
from finesmith.data.chat_sandbox import TemplateRefusedError, TemplateSlowError, compile_template
from finesmith.errors import ModelError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MACROS = (
    "{% macro offer(tools) %}{{ 'You can call these tools:\\n' }}{% for tool in tools %}{{ (tool | tojson) + '\\n' }}"
    '{% endfor %}{{ \'Call one by writing <tool_call>{"name": ..., "arguments": {...}}</tool_call>\' }}{% endmacro %}'
    "{% macro said(message) %}{% if message.reasoning_content %}"
    "{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '\\n' if message.content or not loop.first else '' }}"
    "{{ '<tool_call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson)"
    " + '</tool_call>' }}{% endfor %}{% endmacro %}"
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% if tools %}{% set system = (system + '\\n\\n' if system else '') + offer(tools) %}{% endif %}"
)
_BODIES = {
    "chatml": (
        "{% if system %}{{ '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}{% endif %}"
        "{% for message in messages if message.role != 'system' %}"
        "{{ '<|im_start|>' + message.role + '\\n' + said(message) + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "alpaca": (
        "{% if system %}{{ system + '\\n\\n' }}{% endif %}{% for message in messages if message.role != 'system' %}"
        "{% if message.role == 'assistant' %}{{ '### Response:\\n' + said(message) + eos_token }}"
        "{{ '' if loop.last else '\\n\\n' }}"
        "{% elif message.role == 'tool' %}{{ '### Result:\\n' + message.content + '\\n\\n' }}"
        "{% else %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    "inst": (
        "{% for message in messages if message.role != 'system' %}"
        "{% if message.role == 'assistant' %}{{ ' ' + said(message) + eos_token }}"
        "{% else %}{{ '[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if system and loop.first else '') }}"
        "{{ ('Tool result: ' if message.role == 'tool' else '') + message.content + ' [/INST]' }}{% endif %}"
        "{% endfor %}"
    ),
    "plain": (
        "{% if system %}{{ system + '\\n' }}{% endif %}{% for message in messages if message.role != 'system' %}"
        "{% if message.role == 'assistant' %}{{ 'Assistant: ' + said(message) + eos_token }}"
        "{{ '' if loop.last else '\\n' }}"
        "{% else %}{{ ('Tool: ' if message.role == 'tool' else 'User: ') + message.content + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}
_NEEDED = {"chatml": ("<|im_start|>", "<|im_end|>")}
NAMES = tuple(_BODIES)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template bound to its tokenizer's special tokens.

    source is the template's text; tool_source the one for conversations with tools, where it is another; stops are the
    special tokens that end an answer.
    """

    name: str
    source: str
    tool_source: str | None
    variables: Mapping[str, str]
    stops: tuple[str, ...]

    def text(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, ask: bool = False
    ) -> str:
        """Return a conversation as the model reads it; with `ask`, up to where an answer begins.

        Raises:
            TemplateRefusedError: the template raises an exception or takes too much.
        """
        return self._program(bool(tools))(
            {
                **self.variables,
                "messages": messages,
                "tools": list(tools) or None,
                "documents": None,
                "add_generation_prompt": ask,
            }
        )

    def _program(self, tools: bool) -> Callable[[Mapping[str, Any]], str]:
        return compile_template(self.tool_source if tools and self.tool_source is not None else self.source)

    def for_tokenizer(self) -> str | dict[str, str]:
        """Return what `tokenizer.chat_template` must be set to, so that it is saved with the model."""
        if self.tool_source is None:
            return self.source
        return {"default": self.source, "tool_use": self.tool_source}


def named_template(name: str, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return one of finesmith's own templates (`NAMES`), for base models that have none.

    An answer ends in the tokenizer's end-of-text token (`chatml`: in <|im_end|>). A beginning-of-text token is written
    where the tokenizer itself puts one before a text.

    Raises:
        ModelError: there is no such template, or the tokenizer lacks a token that it needs.
    """
    if name not in _BODIES:
        raise ModelError(f"there is no chat template {shortened(name, 60)!r}; choose one of {', '.join(NAMES)}")
    known = _special_tokens(tokenizer)
    missing = [token for token in _NEEDED.get(name, ()) if token not in known]
    if missing:
        raise ModelError(
            f"the chat template {name!r} needs {' and '.join(missing)} as special tokens, which this tokenizer lacks; "
            "choose 'plain', 'alpaca' or 'inst', which need the end-of-text token only"
        )
    if name not in _NEEDED and not tokenizer.eos_token:
        raise ModelError(
            f"the chat template {name!r} ends answers with the end-of-text token, which this tokenizer lacks; "
            "name a causal model as model.base, whose tokenizer has one"
        )
    adds_start = tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    source = _MACROS + ("{{ bos_token }}" if adds_start else "") + _BODIES[name]
    return _proven(name, source, None, tokenizer)


def own_template(template: str | Mapping[str, str] | None, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return the template that came with the tokenizer (`tokenizer.chat_template`) or that the user wrote.

    Raises:
        ModelError: there is none, it does not render, no special token ends an answer, or it begins an answer otherwise
            than it asks for one.
    """
    source = template.get("default") if isinstance(template, Mapping) else template
    tool_source = template.get("tool_use") if isinstance(template, Mapping) else None
    if not source:
        raise ModelError(f"this tokenizer has no chat template; name one of {', '.join(NAMES)}")
    return _proven("tokenizer", source, tool_source, tokenizer)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return special | ({tokenizer.eos_token} if tokenizer.eos_token else set())


def _proven(name: str, source: str, tool_source: str | None, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return a template after two rounds of a made-up conversation were cut where they should be."""
    variables = {key: str(token) for key, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    bare = ChatTemplate(name, source, tool_source, variables, ())
    special = re.compile("|".join(map(re.escape, sorted(_special_tokens(tokenizer), key=len, reverse=True))) or r"(?!)")
    words = ("qzfirst", "qzsecond", "qzthird", "qzfourth")
    messages = [{"role": role, "content": word} for role, word in zip(("user", "assistant") * 2, words, strict=True)]
    stops: dict[str, None] = {}
    try:
        for size in (2, 4):
            text = bare.text(messages[:size])
            for answer in range(1, size, 2):
                prompt = bare.text(messages[:answer], ask=True)
                at = text.find(words[answer])
                if not text.startswith(prompt) or at < len(prompt):
                    raise ModelError(_inexact(prompt, text))
                found = special.search(text, at + len(words[answer]))
                beyond = text.find(words[answer + 1]) if answer + 1 < size else len(text)
                if found is None or found.start() > beyond:
                    raise ModelError(
                        "the chat template ends an answer with no special token, so a model tuned on it would never "
                        "stop; write {{ eos_token }} after the assistant's content, or name one of "
                        f"{', '.join(NAMES)}"
                    )
                stops[found.group()] = None
            start = variables.get("bos_token")
            if start and text.startswith(2 * start):
                raise ModelError(f"the chat template writes {start!r} twice at the beginning; expected at most once")
    except TemplateRefusedError as error:
        raise ModelError(
            f"{error}, for two plain rounds of user and assistant; name one of {', '.join(NAMES)}"
        ) from error
    return ChatTemplate(name, source, tool_source, variables, tuple(stops))


def _inexact(prompt: str, text: str) -> str:
    same = next((i for i, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other), len(prompt))
    near = slice(max(0, same - 20), same + 30)
    return (
        "the chat template asks for an answer otherwise than it writes one, so no exact cut lies between the two: "
        f"{prompt[near]!a} when it asks, {text[near]!a} when it writes; "
        f"mend the template, or name one of {', '.join(NAMES)}"
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """A conversation's text, and where the answers to be learnt stand in it, each with its stop token: [start, end)."""

    text: str
    spans: tuple[tuple[int, int], ...]


def cut(conversation: Conversation, template: ChatTemplate, *, last: bool = False) -> Cut:
    """Render a conversation and find its trained answers, or with `last` the last of them.

    An answer begins where the prompt that asks for it ends, and ends with the first stop token after what it says.

    Raises:
        TemplateSlowError: the template takes too long.
        TemplateRefusedError: it refuses the conversation, or cannot be cut exactly there.
    """
    messages = conversation.messages()
    text = template.text(messages, conversation.tools)
    answers = [place for place, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    trained = [place for place in answers if conversation.turns[place].trained]
    spans: list[tuple[int, int]] = []
    bound = len(text)
    for place in reversed(answers):
        if last and place < trained[-1]:
            break
        prompt = template.text(messages[:place], conversation.tools, ask=True)
        if not text.startswith(prompt):
            raise TemplateRefusedError(f"turn {place + 1}: {_inexact(prompt, text)}")
        if conversation.turns[place].trained:
            end = _end(text, len(prompt), bound, conversation.turns[place], place, template.stops)
            spans.append((len(prompt), end))
        bound = len(prompt)
    return Cut(text, tuple(reversed(spans)))


def _end(text: str, start: int, bound: int, turn: Turn, place: int, stops: Sequence[str]) -> int:
    """Return where an answer ends, its stop token included."""
    own = (
        turn.content
        + turn.reasoning
        + (json.dumps([dict(call.arguments) for call in turn.calls]) if turn.calls else "")
    )
    ends = sorted(
        found + len(stop) for stop in stops if (found := _nth(text, stop, own.count(stop), start, bound)) >= 0
    )
    if not ends:
        raise TemplateRefusedError(f"the chat template writes no stop token after turn {place + 1} (assistant)")
    said = text[start : ends[0]]
    if turn.content.strip() not in said or any(call.name not in said for call in turn.calls):
        raise TemplateRefusedError(
            f"the chat template leaves out or changes what turn {place + 1} (assistant) says; name another template"
        )
    return ends[0]


def _nth(text: str, wanted: str, skipped: int, start: int, bound: int) -> int:
    """Return the place of an occurrence within text[start:bound] after so many others, or -1."""
    at = text.find(wanted, start, bound)
    while at >= 0 and skipped:
        at = text.find(wanted, at + len(wanted), bound)
        skipped -= 1
    return at


__all__ = [
    "NAMES",
    "ChatTemplate",
    "Cut",
    "TemplateRefusedError",
    "TemplateSlowError",
    "cut",
    "named_template",
    "own_template",
]
