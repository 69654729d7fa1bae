"""Decide which columns hold text, label and split, by name first and content second, and say why."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from finesmith.data.profiles import ColumnProfile, Kind, name_tokens, profile
from finesmith.errors import DataError

__all__ = ["ColumnProfile", "Columns", "Kind", "find_columns", "profile"]

TEXT_NAMES = frozenset(
    {
        "text",
        "texts",
        "review",
        "sentence",
        "message",
        "body",
        "comment",
        "content",
        "question",
        "document",
        "utterance",
    }
    | {"query", "description", "post", "tweet", "abstract", "input", "narrative", "feedback", "complaint", "passage"}
)
LABEL_NAMES = frozenset(
    {"label", "labels", "category", "categories", "class", "target", "sentiment", "rating", "ratings", "stars", "score"}
    | {"intent", "topic", "topics", "tag", "tags", "emotion", "polarity", "genre", "genres", "overall"}
)
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
)
SPLIT_COLUMNS = frozenset({"split", "set", "fold", "partition", "subset"})
SPLIT_VALUES = frozenset({"train", "training", "validation", "valid", "val", "dev", "development", "test", "testing"})
GROUP_TOKENS = frozenset(
    {"customer", "user", "author", "patient", "client", "account", "reviewer", "document", "doc", "session", "case"}
    | {"thread", "conversation", "speaker", "group", "pmid", "company"}
)
_ASIDE = frozenset({"title", "headline", "subject", "id", "date", "time", "url", "link", "length", "count", "lang"})
_ASIDE_FROM_LABELS = frozenset({"id", "date", "time", "url", "link", "count"})
_TEXT_KINDS = frozenset({"text", "category", "constant"})
_LABEL_KINDS = frozenset({"category", "rating", "boolean", "list", "number"})
_LOW_VARIETY_KINDS = frozenset({"category", "rating", "boolean", "list"})
_MUCH_LONGER = 3.0


@dataclass(frozen=True, slots=True)
class Columns:
    """The column of each role (None: there is none), a sentence for each choice not named by the user, and hints."""

    text: str
    text_pair: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    suggestions: tuple[str, ...] = ()


def find_columns(
    profiles: Sequence[ColumnProfile],
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
) -> Columns:
    """Return the column of each role: the one named, else the one its name says, else the one its content says.

    A pair is looked for only when neither text nor pair is named; a group is used only when named.

    Raises:
        DataError: a named column does not exist or has two roles, nothing is text, or two readings are possible.
    """
    named = {"text": text, "text_pair": text_pair, "label": label, "group": group, "split": split}
    _check_named(profiles, named)
    reasons: dict[str, str] = {}
    taken = {name for name in named.values() if name is not None}
    free = [each for each in profiles if each.name not in taken]
    if split is None:
        split = _find_split(free, reasons)
        free = [each for each in free if each.name != split]
    if text is None and text_pair is None:
        text, text_pair = _find_pair(free, reasons)
    if text is None:
        text = _find_text(free, reasons)
    free = [each for each in free if each.name not in (text, text_pair)]
    if label is None:
        label = _find_label(free, reasons)
    used = {text, text_pair, label, group, split}
    return Columns(text, text_pair, label, group, split, reasons, _suggest_groups(profiles, used, group))


def _check_named(profiles: Sequence[ColumnProfile], named: dict[str, str | None]) -> None:
    columns = [each.name for each in profiles]
    roles: dict[str, str] = {}
    for role, name in named.items():
        if name is None:
            continue
        if name not in columns:
            raise DataError(
                f"data.{role} is {name[:80]!r}, but there is no such column{_nearest(name, columns)}: name one of these"
            )
        if name in roles:
            raise DataError(
                f"column {name[:80]!r} is named for both data.{roles[name]} and data.{role}; name two columns"
            )
        roles[name] = role
        found = next(each for each in profiles if each.name == name)
        if role in ("text", "text_pair") and found.kind in ("empty", "other"):
            what = "has no values" if found.kind == "empty" else "holds objects, not text"
            raise DataError(
                f"data.{role} is {name[:80]!r}, but that column {what}; name another of the columns {_listed(columns)}"
            )


def _nearest(name: str, columns: Sequence[str]) -> str:
    lowered = {column.lower(): column for column in reversed(columns)}
    near = difflib.get_close_matches(name.lower(), list(lowered), 1, cutoff=0.5)
    meant = f"; is it {lowered[near[0]]!r}?" if near else ";"
    return f"{meant} The columns are {_listed(columns)}" if near else f"{meant} the columns are {_listed(columns)}"


def _listed(columns: Iterable[str]) -> str:
    shown = [column[:40] for column in columns]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def _plain(name: str) -> str:
    return "_".join(name_tokens(name))


def _find_split(profiles: Sequence[ColumnProfile], reasons: dict[str, str]) -> str | None:
    found = [
        each
        for each in profiles
        if _plain(each.name) in SPLIT_COLUMNS
        and each.values
        and {value.strip().lower() for value in each.values} <= SPLIT_VALUES
    ]
    if len(found) > 1:
        raise _two_readings("split", found)
    if not found:
        return None
    reasons["split"] = f"column {found[0].name!r} is named like a split and holds {', '.join(found[0].values[:4])}"
    return found[0].name


def _find_pair(profiles: Sequence[ColumnProfile], reasons: dict[str, str]) -> tuple[str | None, str | None]:
    by_name = {_plain(each.name): each for each in profiles if each.kind in _TEXT_KINDS}
    for first, second in PAIR_NAMES:
        if first in by_name and second in by_name:
            one, other = by_name[first].name, by_name[second].name
            reasons["text"] = f"columns {one!r} and {other!r} are named like the two texts of a pair"
            reasons["text_pair"] = reasons["text"]
            return one, other
    return None, None


def _find_text(profiles: Sequence[ColumnProfile], reasons: dict[str, str]) -> str:
    words = [each for each in profiles if each.kind in _TEXT_KINDS]
    long = [each for each in words if each.kind == "text"]
    named_text = [each for each in words if _plain(each.name) == "text"]
    known = [each for each in long if _plain(each.name) in TEXT_NAMES]
    partly = [
        each for each in long if TEXT_NAMES & set(name_tokens(each.name)) and not _ASIDE & set(name_tokens(each.name))
    ]
    for candidates in (named_text, known, partly):
        if len(candidates) == 1:
            reasons["text"] = f"column {candidates[0].name!r} is named like a text and {_words_of(candidates[0])}"
            return candidates[0].name
        if candidates and candidates is not partly:
            raise _two_readings("text", candidates)
    by_length = sorted(partly or long, key=lambda each: each.mean_words, reverse=True)
    short = [each for each in words if _plain(each.name) in TEXT_NAMES]
    if not by_length and len(short) == 1:
        reasons["text"] = f"column {short[0].name!r} is named like a text and {_words_of(short[0])}"
        return short[0].name
    if not by_length:
        columns = _listed(each.name for each in profiles)
        raise DataError(f"no column of free text found (columns: {columns}); name it with --set data.text=COLUMN")
    longest = by_length[0]
    if len(by_length) == 1:
        reasons["text"] = f"column {longest.name!r} is the only one of free text and {_words_of(longest)}"
    elif longest.mean_words >= _MUCH_LONGER * by_length[1].mean_words:
        reasons["text"] = f"column {longest.name!r} is by far the longest text: it {_words_of(longest)}"
    else:
        raise _two_readings("text", by_length)
    return longest.name


def _find_label(profiles: Sequence[ColumnProfile], reasons: dict[str, str]) -> str | None:
    plainly = [
        each for each in profiles if _plain(each.name) in ("label", "labels") and each.kind not in ("empty", "other")
    ]
    known = [each for each in profiles if _plain(each.name) in LABEL_NAMES and each.kind in _LABEL_KINDS]
    lone = [each for each in profiles if _plain(each.name) in LABEL_NAMES and each.kind in ("constant", "id")]
    partly = [
        each
        for each in profiles
        if each.kind in _LABEL_KINDS
        and LABEL_NAMES & set(name_tokens(each.name))
        and not _ASIDE_FROM_LABELS & set(name_tokens(each.name))
    ]
    for candidates in (plainly, known, lone, partly):
        if len(candidates) > 1:
            raise _two_readings("label", candidates)
        if candidates:
            reasons["label"] = f"column {candidates[0].name!r} is named like a label and {_variety_of(candidates[0])}"
            return candidates[0].name
    varied = [
        each for each in profiles if each.kind in _LOW_VARIETY_KINDS and not GROUP_TOKENS & set(name_tokens(each.name))
    ]
    if len(varied) > 1:
        raise _two_readings("label", varied)
    if varied:
        reasons["label"] = f"column {varied[0].name!r} is the only one of few values: it {_variety_of(varied[0])}"
        return varied[0].name
    return None


def _two_readings(role: str, candidates: Sequence[ColumnProfile]) -> DataError:
    describe = _words_of if role == "text" else _variety_of
    shown = [f"{each.name[:80]!r} ({describe(each)})" for each in candidates[:6]]
    more = f" and {len(candidates) - 6} more" if len(candidates) > 6 else ""
    choices = " or ".join(f"--set data.{role}={_quoted(each.name[:80])}" for each in candidates[:6])
    count = {2: "two", 3: "three", 4: "four"}.get(len(candidates), str(len(candidates)))
    return DataError(
        f"{count} columns could be the {role}: {', '.join(shown[:-1])} and {shown[-1]}{more}; choose with {choices}"
    )


def _quoted(name: str) -> str:
    return name if name and all(letter.isalnum() or letter in "_-." for letter in name) else f"'{name}'"


def _words_of(each: ColumnProfile) -> str:
    return f"holds {each.mean_words:.0f} words on average"


def _variety_of(each: ColumnProfile) -> str:
    if each.kind == "number":
        return f"holds numbers, {each.distinct:,} distinct"
    if each.kind == "list":
        parted = f", parted by {each.separator!r}" if each.separator else ""
        return f"holds several labels per row{parted}"
    return f"has {each.distinct:,} distinct value{'s' if each.distinct != 1 else ''}"


def _suggest_groups(profiles: Sequence[ColumnProfile], used: set[str | None], group: str | None) -> tuple[str, ...]:
    if group is not None:
        return ()
    return tuple(
        f"column {each.name!r} repeats ({each.distinct:,} values in {each.rows - each.missing:,} rows): if rows that "
        f"share one belong together, keep them in one split with --set data.group={_quoted(each.name)}"
        for each in profiles
        if each.name not in used
        and each.kind in ("id", "category", "number")
        and GROUP_TOKENS & set(name_tokens(each.name))
        and 1 < each.distinct < each.rows - each.missing
    )
