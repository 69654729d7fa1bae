"""Audit a data set: what is wrong with it, and what is done about each fault.

`audit` names the faults and touches nothing; `apply` drops, mends or stops as each finding says and counts what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from finesmith.data import audit_copies, audit_labels, audit_text
from finesmith.data.audit_rows import Kind, Rows, is_blank, look_at
from finesmith.errors import DataError
from finesmith.types import Action, Examples, Finding

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from finesmith.data.near_duplicates import Clusters


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of fault: how it is found, what is done about it by default, and what else may be."""

    run: Callable[[Rows, Action], Finding | None]
    default: Action
    allowed: tuple[Action, ...]


# In this order rows are dropped, and the first reason counts.
CHECKS: dict[str, Check] = {
    "empty": Check(audit_text.empty, "drop", ("keep", "drop", "stop")),
    "missing_labels": Check(audit_labels.missing_labels, "drop", ("drop", "stop")),
    "leakage": Check(audit_copies.leakage, "drop", ("keep", "drop", "stop")),
    "near_leakage": Check(audit_copies.near_leakage, "keep", ("keep", "drop", "stop")),
    "group_leakage": Check(audit_copies.group_leakage, "keep", ("keep", "drop", "stop")),
    "exact_duplicates": Check(audit_copies.exact_duplicates, "drop", ("keep", "drop", "stop")),
    "near_duplicates": Check(audit_copies.near_duplicates, "keep", ("keep", "drop", "stop")),
    "conflicting_labels": Check(audit_copies.conflicting_labels, "keep", ("keep", "drop", "stop")),
    "broken_encoding": Check(audit_text.broken_encoding, "keep", ("keep", "fix", "drop", "stop")),
    "html": Check(audit_text.html, "keep", ("keep", "fix", "drop", "stop")),
    "personal_data": Check(audit_text.personal_data, "keep", ("keep", "fix", "drop", "stop")),
    "mixed_language": Check(audit_text.mixed_language, "keep", ("keep", "drop", "stop")),
    "length": Check(audit_text.length, "keep", ("keep", "drop", "stop")),
    "truncation": Check(audit_text.truncation, "keep", ("keep", "stop")),
    "imbalance": Check(audit_labels.imbalance, "keep", ("keep", "stop")),
    "small_classes": Check(audit_labels.small_classes, "keep", ("keep", "drop", "stop")),
    "label_in_text": Check(audit_labels.label_in_text, "keep", ("keep", "stop")),
    "lexical_diversity": Check(audit_text.lexical_diversity, "keep", ("keep", "stop")),
}

# These wait until copies are known; the others need not.
READ_CLUSTERS = frozenset(
    {
        "leakage", "near_leakage", "group_leakage", "exact_duplicates", "near_duplicates", "conflicting_labels",
        "small_classes",
    }
)  # fmt: skip

# These read nothing but texts and labels, and take their time. Where they change no row, nothing has to wait for them.
SLOW = ("broken_encoding", "html", "personal_data", "mixed_language", "label_in_text", "lexical_diversity")


def can_wait(actions: Mapping[str, Action]) -> frozenset[str]:
    """Return the kinds whose findings take their time and only tell, by the actions chosen."""
    return frozenset(name for name in SLOW if actions.get(name, CHECKS[name].default) == "keep")


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did.

    keep: bool [N]; dropped: rows dropped by kind, each counted once under its first reason, so that
    N = keep.sum() + sum(dropped); texts and pairs: all N, mended where a kind was fixed; fixed: rows changed by kind.
    """

    keep: npt.NDArray[np.bool_]
    dropped: dict[str, int]
    texts: list[str]
    pairs: list[str] | None = None
    fixed: dict[str, int] = field(default_factory=dict)


def audit(
    examples: Examples,
    *,
    clusters: Callable[[], Clusters],
    kind: Kind,
    splits: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    max_length: int | None = None,
    actions: Mapping[str, Action] | None = None,
    kinds: Collection[str] | None = None,
) -> tuple[Finding, ...]:
    """Look for every kind of fault and return the findings in the order in which `apply` acts on them.

    `clusters` returns those of `near_duplicates.cluster` over the texts (text and pair together where there are pairs);
    the checks that do without run first. `splits` is the split of each row when the user gave them, else None;
    `lengths` each row's tokens before truncation to `max_length`; `actions` what to do per kind where it is not the
    default; `kinds` what to look for, where that is not everything. Only kinds with something to say appear.

    Raises:
        DataError: an unknown kind, or an action the kind does not know.
    """
    chosen = {kind_of: check.default for kind_of, check in CHECKS.items()} | _checked(actions or {})
    if not len(examples):
        return ()
    rows = look_at(examples, kind=kind, clusters=clusters, splits=splits, lengths=lengths, max_length=max_length)
    asked = [name for name in CHECKS if kinds is None or name in kinds]
    order = sorted(asked, key=lambda name: name in READ_CLUSTERS)
    findings = {name: CHECKS[name].run(rows, chosen[name]) for name in order}
    return tuple(found for name in asked if (found := findings[name]) is not None)


def _checked(actions: Mapping[str, Action]) -> dict[str, Action]:
    for name, action in actions.items():
        if name not in CHECKS:
            raise DataError(f"data.audit.{name[:80]} is unknown; the audit looks for {', '.join(CHECKS)}")
        if action not in CHECKS[name].allowed:
            raise DataError(
                f"data.audit.{name} is {str(action)[:80]!r}; expected one of {', '.join(CHECKS[name].allowed)}"
            )
    return dict(actions)


def apply(
    findings: Sequence[Finding], examples: Examples, *, fixers: Mapping[str, Callable[[str], str]] | None = None
) -> Applied:
    """Do what each finding's action says: drop its rows, mend them with `fixers[kind]`, stop, or keep them.

    A row that mending leaves without content is dropped and counted under the kind that was mended, unless it was so
    before.

    Raises:
        DataError: a finding's action is stop.
    """
    import numpy as np

    for found in findings:
        if found.action == "stop":
            message = f"{found.message}, and data.audit.{found.kind} is stop. {found.remedy}".rstrip()
            raise DataError(message, quote=found.shows)
    position = {int(identity): row for row, identity in enumerate(examples.ids)}
    keep = np.ones(len(examples), bool)
    dropped: dict[str, int] = {}
    for found in findings:
        if found.action == "drop":
            _drop(keep, [position[identity] for identity in found.ids], found.kind, dropped)
    texts, pairs = list(examples.texts), None if examples.pairs is None else list(examples.pairs)
    fixed: dict[str, int] = {}
    for found in findings:
        if found.action != "fix":
            continue
        rows = [row for row in (position[identity] for identity in found.ids) if keep[row]]
        mend = (fixers or {})[found.kind]
        changed, emptied = set(), set()
        for column in (texts, pairs):
            for row in rows if column is not None else ():
                before = cast(list[str], column)[row]
                after = mend(before)
                if after != before:
                    cast(list[str], column)[row] = after
                    changed.add(row)
                    if is_blank(after) and not is_blank(before):
                        emptied.add(row)
        fixed[found.kind] = len(changed)
        _drop(keep, sorted(emptied), found.kind, dropped)
    return Applied(keep, dropped, texts, pairs, fixed)


def _drop(keep: npt.NDArray[np.bool_], rows: Sequence[int], kind: str, dropped: dict[str, int]) -> None:
    new = [row for row in rows if keep[row]]
    keep[new] = False
    if new:
        dropped[kind] = dropped.get(kind, 0) + len(new)
