"""Find out how a file writes down conversations, and read them: messages, ShareGPT, Alpaca, pairs, preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finesmith.data.chat import Conversation, Fault, Turn, fault_of
from finesmith.data.chat_turns import MalformedError, only_text, read_history, read_tools, read_turn, read_turns
from finesmith.data.chunks import _no_garbage_collection
from finesmith.errors import DataError, shortened

Kind = Literal["messages", "sharegpt", "alpaca", "pair", "preference"]

MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns")
SYSTEMS = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
INPUTS = ("input", "context")
INSTRUCTED = ("output", "response", "answer", "completion")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("user", "assistant"),
    ("inputs", "targets"),
    ("input", "output"),
    ("source", "target"),
)
_SAMPLE = 200


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file writes down conversations: the kind, the column of each role, and a sentence that says why.

    Roles are messages, instruction, input, prompt, completion, chosen, history, system, tools and liked (true or false:
    whether the answer is to be imitated).
    """

    kind: Kind
    columns: Mapping[str, str]
    reason: str


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of the rows: conversations, faulty rows, and the positions of those marked as not to be imitated."""

    conversations: tuple[Conversation, ...]
    faults: tuple[Fault, ...] = ()
    disliked: tuple[int, ...] = field(default=())


def detect(
    rows: Sequence[Mapping[str, Any]],
    *,
    messages: str | None = None,
    prompt: str | None = None,
    completion: str | None = None,
) -> Layout:
    """Find out how the rows write down conversations, by the names of their columns and what stands in them.

    `messages`, or `prompt` and `completion`, name the columns where their names do not tell.

    Raises:
        DataError: no known layout fits, several do, or a named column does not exist.
    """
    columns: dict[str, str] = {}
    for row in rows[:_SAMPLE]:
        for column in row:
            columns.setdefault(column.strip().lower(), column)
    for name in (messages, prompt, completion):
        if name is not None and name not in columns.values():
            raise DataError(f"there is no column {shortened(name, 80)!r}; the columns are {_listed(columns)}")
    if (prompt is None) != (completion is None):
        raise DataError("name both the column of prompts and the column of answers, or neither")
    extra = {
        role: columns[name]
        for role, names in (("system", SYSTEMS), ("tools", TOOLS))
        for name in names[::-1]
        if name in columns
    }
    if prompt is not None and completion is not None:
        return _pair(prompt, completion, extra, "named in the recipe")
    if messages is not None:
        return _of_turns(rows, messages, columns, extra)
    return _found(rows, columns, extra)


def _found(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], extra: Mapping[str, str]) -> Layout:
    turned = [columns[name] for name in MESSAGES if name in columns]
    if "chosen" in columns and "rejected" in columns:
        return _preference(columns, turned, extra)
    if len(turned) > 1:
        raise DataError(f"several columns could hold the turns: {', '.join(map(repr, turned))}; name the one that does")
    if turned:
        return _of_turns(rows, turned[0], columns, extra)
    answers = [name for name in INSTRUCTED if name in columns]
    if "instruction" in columns and answers:
        if len(answers) > 1:
            raise DataError(f"several columns could hold the answer: {', '.join(answers)}; name the one that does")
        roles = {"instruction": columns["instruction"], "completion": columns[answers[0]], **extra}
        given = [columns[name] for name in INPUTS if name in columns]
        roles |= {"input": given[0]} if given else {}
        roles |= {"history": columns["history"]} if "history" in columns else {}
        named = ", ".join(repr(roles[role]) for role in ("instruction", "input", "completion") if role in roles)
        return Layout("alpaca", roles, f"Alpaca: the columns {named} are an instruction, its input and the answer")
    pairs = [(columns[one], columns[other]) for one, other in PAIRS if one in columns and other in columns]
    if len(pairs) == 1:
        return _pair(*pairs[0], extra, "known as a question and its answer")
    if pairs:
        named = ", ".join(f"{one!r} with {other!r}" for one, other in pairs)
        raise DataError(f"several pairs of columns could be prompt and answer: {named}; name the two that are")
    raise DataError(
        f"no conversations found in the columns {_listed(columns)}; expected a column of turns "
        f"({', '.join(MESSAGES[:2])}), instruction and output, or prompt and completion; name the columns, or choose "
        "the task causal-text for raw text"
    )


def _listed(columns: Mapping[str, str]) -> str:
    return ", ".join(repr(shortened(name, 40)) for name in list(columns.values())[:12]) or "(none)"


def _pair(prompt: str, completion: str, extra: Mapping[str, str], why: str) -> Layout:
    roles = {"prompt": prompt, "completion": completion, **extra}
    return Layout("pair", roles, f"prompt and answer: the columns {prompt!r} and {completion!r} are {why}")


def _of_turns(
    rows: Sequence[Mapping[str, Any]], column: str, columns: Mapping[str, str], extra: Mapping[str, str]
) -> Layout:
    """Tell ShareGPT from messages by the keys of the first turns, and see whether answers are marked good or bad."""
    roles = {"messages": column, **extra}
    keys: set[str] = set()
    for row in rows[:_SAMPLE]:
        turns = row.get(column)
        for turn in turns if isinstance(turns, list | tuple) else ():
            keys |= {key for key, value in turn.items() if value is not None} if isinstance(turn, Mapping) else set()
        keys |= {"from"} if isinstance(turns, str) and '"from"' in turns else set()
    kind: Kind = "sharegpt" if "from" in keys else "messages"
    name = "ShareGPT" if kind == "sharegpt" else "OpenAI messages"
    pair = "from and value" if kind == "sharegpt" else "role and content"
    reason = f"{name}: column {column!r} holds turns of {pair}"
    label = columns.get("label")
    if label is not None and all(isinstance(row.get(label), bool) for row in rows[:_SAMPLE]):
        roles["liked"] = label
        reason += f"; answers whose {label!r} is false are left out"
    return Layout(kind, roles, reason)


def _preference(columns: Mapping[str, str], turned: Sequence[str], extra: Mapping[str, str]) -> Layout:
    roles = {"chosen": columns["chosen"], **extra}
    said = "preference pairs: 'chosen' and 'rejected' are two answers; only the chosen one is imitated"
    asked = [columns[name] for name in ("prompt", "instruction", "question", "query") if name in columns]
    if turned:
        return Layout("preference", {"messages": turned[0], **roles}, said)
    if asked:
        roles |= {"prompt": asked[0]}
        roles |= {"input": columns["input"]} if "input" in columns and asked[0] == columns.get("instruction") else {}
    return Layout("preference", roles, said)


def convert(
    rows: Sequence[Mapping[str, Any]],
    layout: Layout,
    where: Sequence[str],
    *,
    ids: Sequence[int] | None = None,
    answered: bool = True,
) -> Converted:
    """Read every row as a conversation; `where[i]` names row i in messages, `ids[i]` (its position, if None) in runs.

    With `answered` False a row may end where an answer is asked for.

    Nothing is raised for a faulty row: all faults are returned, for `chat.refuse` or for the caller to drop and count.
    """
    with _no_garbage_collection():
        return _converted(rows, layout, where, range(len(rows)) if ids is None else ids, answered)


def _converted(
    rows: Sequence[Mapping[str, Any]], layout: Layout, where: Sequence[str], names: Sequence[int], answered: bool
) -> Converted:
    conversations: list[Conversation] = []
    faults: list[Fault] = []
    disliked: list[int] = []
    liked = layout.columns.get("liked")
    for position, (row, name) in enumerate(zip(rows, names, strict=True)):
        if liked is not None and row.get(liked) is False:
            disliked.append(position)
            continue
        try:
            conversations.append(_conversation(row, layout, int(name), answered))
        except MalformedError as error:
            faults.append(Fault(position, where[position], str(error), error.quote))
        except RecursionError:
            faults.append(
                Fault(position, where[position], "it is nested too deeply; expected turns of role and content")
            )
    return Converted(tuple(conversations), tuple(faults), tuple(disliked))


def _conversation(row: Mapping[str, Any], layout: Layout, name: int, answered: bool) -> Conversation:
    turns = _READERS[layout.kind](row, layout.columns)
    system = layout.columns.get("system")
    if system is not None and (said := only_text(row.get(system), system, missing="")).strip():
        turns.insert(0, Turn("system", said))
    tools = read_tools(row.get(layout.columns["tools"]), layout.columns["tools"]) if "tools" in layout.columns else ()
    wrong = fault_of(turns, answered=answered)
    if wrong:
        raise MalformedError(wrong)
    _refuse_half_characters(turns)
    return Conversation(tuple(turns), name, tools)


def _refuse_half_characters(turns: Sequence[Turn]) -> None:
    if all(turn.is_plain() and turn.content.isascii() for turn in turns):
        return
    for number, turn in enumerate(turns, 1):
        called = "".join(f"{call.name}{call.id}" for call in turn.calls)
        for text in (turn.content, turn.reasoning, f"{turn.name}{turn.answers}", called):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise MalformedError(
                    f"turn {number} ({turn.role}) holds half of a character (a lone surrogate) at its character "
                    f"{error.start + 1:,}; expected valid Unicode; write the file again as UTF-8"
                ) from error


def _messages(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Turn]:
    return read_turns(row.get(columns["messages"]), columns["messages"])


def _alpaca(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Turn]:
    asked = only_text(row.get(columns["instruction"]), columns["instruction"], missing="")
    if "input" in columns and (more := only_text(row.get(columns["input"]), columns["input"], missing="")).strip():
        asked = f"{asked}\n\n{more}" if asked.strip() else more
    answer = only_text(row.get(columns["completion"]), columns["completion"])
    earlier = read_history(row.get(columns["history"]), columns["history"]) if "history" in columns else []
    return [*earlier, Turn("user", asked), Turn("assistant", answer)]


def _pairs(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Turn]:
    prompt, answer = row.get(columns["prompt"]), row.get(columns["completion"])
    if isinstance(prompt, list | tuple):
        before = read_turns(prompt, columns["prompt"], trained=False)
    else:
        before = [Turn("user", only_text(prompt, columns["prompt"]))]
    if isinstance(answer, list | tuple):
        return [*before, *read_turns(answer, columns["completion"])]
    return [*before, Turn("assistant", only_text(answer, columns["completion"]))]


def _preferred(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Turn]:
    chosen = row.get(columns["chosen"])
    before: list[Turn] = []
    if "messages" in columns:
        before = read_turns(row.get(columns["messages"]), columns["messages"], trained=False)
    elif "prompt" in columns:
        asked = row.get(columns["prompt"])
        if isinstance(asked, list | tuple):
            before = read_turns(asked, columns["prompt"], trained=False)
        else:
            text = only_text(asked, columns["prompt"])
            more = only_text(row.get(columns["input"]), columns["input"], missing="") if "input" in columns else ""
            before = [Turn("user", f"{text}\n\n{more}" if more.strip() else text)]
    if isinstance(chosen, Mapping):
        return [*before, read_turn(chosen, len(before) + 1)]
    if not isinstance(chosen, list | tuple):
        return [*before, Turn("assistant", only_text(chosen, columns["chosen"]))]
    turns = read_turns(chosen, columns["chosen"])
    # Some files write the whole conversation into the answer's column again.
    whole = bool(turns) and turns[0].role in ("system", "user")
    return turns if whole else [*before, *turns]


_READERS = {
    "messages": _messages,
    "sharegpt": _messages,
    "alpaca": _alpaca,
    "pair": _pairs,
    "preference": _preferred,
}
