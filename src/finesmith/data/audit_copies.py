"""Checks for copies: exact, near, under different labels, and across splits; and for groups across splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from finesmith.data.audit_rows import Rows, excerpt, excerpts, finding, row_count, share
from finesmith.data.split import leaks
from finesmith.types import Action, Finding


def exact_duplicates(rows: Rows, action: Action) -> Finding | None:
    """Find later copies of a text with the same label; of given splits only train is touched."""
    first: dict[tuple[int, tuple[str, ...], str], int] = {}
    later: list[int] = []
    held: Counter[str] = Counter()
    for row, (cluster, label) in enumerate(zip(rows.clusters.exact.tolist(), rows.answers, strict=True)):
        if rows.blank[row] or label is None:
            continue
        split = "train" if rows.splits is None else rows.splits[row]
        if first.setdefault((cluster, label, split), row) == row:
            continue
        if split == "train":
            later.append(row)
        else:
            held[split] += 1
    if not later and not held:
        return None
    message = f"{row_count(len(later))} ({share(len(later), len(rows))}) repeat an earlier text with the same label"
    if held:
        message += "; " + ", ".join(
            f"{number} in {split} are kept as they are" for split, number in sorted(held.items())
        )
    return finding(
        rows,
        "exact_duplicates",
        "warning" if len(later) > len(rows) / 100 else "info",
        message,
        later,
        action=action,
        remedy="copies count double in training; `data.audit.exact_duplicates: keep` trains on them all the same",
        details={"kept_in_held_out_splits": dict(held)},
    )


def near_duplicates(rows: Rows, action: Action) -> Finding | None:
    """Find later members of families of texts that differ in a word or so."""
    exact, first = rows.clusters.exact.tolist(), rows.clusters.first.tolist()
    later = [
        row
        for row in range(len(rows))
        if exact[row] == row and first[row] != row and not rows.blank[row] and rows.open_to_training(row)
    ]
    if not later:
        return None
    families = Counter(first[row] for row in later)
    others = max(families.values())
    message = (
        f"{row_count(len(later))} ({share(len(later), len(rows))}) nearly repeat an earlier text, in {len(families):,} "
        f"families, the largest of {others + 1} texts"
    )
    if rows.clusters.cut:
        message += f"; {row_count(rows.clusters.cut)} of the largest families are kept together only when closer still"
    copied = {row: excerpt(rows.contents[first[row]]) for row in later[:100]}
    return finding(
        rows,
        "near_duplicates",
        "warning" if len(later) > len(rows) / 20 else "info",
        message,
        later,
        action=action,
        remedy="a split made here keeps a family together; `data.audit.near_duplicates: drop` keeps one text of each",
        details={"families": len(families), "largest_family": others + 1, "cut": rows.clusters.cut},
        examples=excerpts(rows, later, copy_of=copied),
    )


def conflicting_labels(rows: Rows, action: Action) -> Finding | None:
    """Find equal texts under different labels; numbers differ when they are a standard deviation apart."""
    members: dict[int, list[int]] = {}
    for row, cluster in enumerate(rows.clusters.exact.tolist()):
        if not rows.blank[row] and rows.answers[row] is not None:
            members.setdefault(cluster, []).append(row)
    apart = _standard_deviation(rows) if rows.kind == "number" else 0.0
    groups = [group for group in members.values() if len(group) > 1 and _disagree(rows, group, apart)]
    if not groups:
        return None
    affected = sorted(row for group in groups for row in group)
    shown = {
        group[0]: sorted({excerpt(", ".join(rows.answers[row] or ()), 40) for row in group})[:5] for group in groups
    }
    return finding(
        rows,
        "conflicting_labels",
        "warning",
        f"{row_count(len(affected))} ({share(len(affected), len(rows))}) hold {len(groups):,} texts that occur under "
        "different labels",
        affected,
        action=action,
        remedy="correct the labels; or `data.audit.conflicting_labels: drop` leaves all of them out",
        details={"texts": len(groups)},
        examples=excerpts(rows, [group[0] for group in groups], labels=shown),
    )


def _standard_deviation(rows: Rows) -> float:
    import numpy as np

    values = [float(label[0]) for label in rows.answers if label]
    with np.errstate(over="ignore", invalid="ignore"):  # the task refuses numbers that are too large
        return float(np.std(values)) if values else 0.0


def _disagree(rows: Rows, group: Iterable[int], apart: float) -> bool:
    labels = {rows.answers[row] for row in group}
    if len(labels) < 2:
        return False
    if rows.kind != "number":
        return True
    values = [float(label[0]) for label in labels if label]
    return max(values) - min(values) >= apart


def leakage(rows: Rows, action: Action) -> Finding | None:
    """Find rows of given train (and validation) splits that equal rows held out in a later split."""
    return _leaked(rows, action, "leakage")


def near_leakage(rows: Rows, action: Action) -> Finding | None:
    """Find rows of given train (and validation) splits that nearly repeat rows held out in a later split.

    Kept by default: people ask the same thing in nearly the same words, and a given split may mean to test just that.
    """
    return _leaked(rows, action, "near_leakage")


def _leaked(rows: Rows, action: Action, kind: str) -> Finding | None:
    if rows.splits is None:
        return None
    found = leaks(rows.splits, rows.clusters, rows.contents)
    exactly = kind == "leakage"
    affected = [row for row in (found.exact if exactly else found.near).tolist() if not rows.blank[row]]
    if not affected:
        return None
    ways = Counter(f"{rows.splits[row]} to {rows.splits[found.source[row]]}" for row in affected)
    copied = {row: excerpt(rows.contents[found.source[row]]) for row in affected}
    held = {row: rows.splits[found.source[row]] for row in affected}
    return finding(
        rows,
        kind,
        "error" if exactly else "warning",
        f"{row_count(len(affected))} {'copy' if exactly else 'nearly repeat'} held-out rows: "
        + ", ".join(f"{number:,} from {way}" for way, number in sorted(ways.items())),
        affected,
        action=action,
        remedy=f"`data.audit.{kind}: drop` drops the copy from the earlier split, never from test; with `keep` it "
        "stays and the scores may be too good",
        details={"ways": dict(sorted(ways.items()))},
        examples=excerpts(rows, affected, copy_of=copied, held_out_in=held),
    )


def group_leakage(rows: Rows, action: Action) -> Finding | None:
    """Find rows of given train (and validation) splits whose group also stands in a later split.

    Kept by default: a given split may mean to test on groups that are known.
    """
    groups = rows.examples.groups
    if rows.splits is None or groups is None:
        return None
    later: dict[str, str] = {}
    for split in ("validation", "test"):
        later.update({group: split for group, name in zip(groups, rows.splits, strict=True) if name == split})
    order = {"train": 0, "validation": 1, "test": 2}
    affected = [row for row, name in enumerate(rows.splits) if order[later.get(groups[row], "train")] > order[name]]
    if not affected:
        return None
    ways = Counter(f"{rows.splits[row]} to {later[groups[row]]}" for row in affected)
    shared = Counter(groups[row] for row in affected)
    named = ", ".join(excerpt(group, 40) for group, _ in shared.most_common(3))
    return finding(
        rows,
        "group_leakage",
        "error",
        f"{row_count(len(affected))} share a group with held-out rows: "
        + ", ".join(f"{number:,} from {way}" for way, number in sorted(ways.items()))
        + f" ({len(shared):,} group{'s' if len(shared) > 1 else ''})",
        affected,
        action=action,
        remedy="`data.audit.group_leakage: drop` drops them from the earlier split, never from test; with `keep` the "
        "scores say nothing about new groups",
        shows=f"{named}{', …' if len(shared) > 3 else ''}",
        details={"ways": dict(sorted(ways.items())), "groups": len(shared), "largest": dict(shared.most_common(50))},
        examples=excerpts(
            rows,
            affected,
            group={row: excerpt(groups[row], 40) for row in affected[:100]},
            held_out_in={row: later[groups[row]] for row in affected[:100]},
        ),
    )
