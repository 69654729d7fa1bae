"""Find and redact personal data in text by rules alone: nothing is downloaded and no model is asked.

What has a form of its own (e-mail, telephone, payment card, IBAN, web and IP addresses, identity numbers) is found
reliably and checked where a check digit exists. Street addresses, dates and ages are found when they are written in a
usual way. Names are found only beside a clue such as "Mr." or "my name is": most names in running text are missed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from finesmith.data.personal_patterns import (
    EXTENSION,
    HINT,
    HINTS,
    HOUSE_NUMBERS,
    ISSUER,
    LOOKALIKES,
    PHONE_WORD,
    REGIONS,
    RULES,
    UNIT,
    Check,
    Rule,
)

KINDS = (
    "email",
    "url",
    "iban",
    "credit_card",
    "date",
    "us_ssn",
    "ip_address",
    "us_driver_license",
    "passport",
    "account_number",
    "phone",
    "street_address",
    "postcode",
    "age",
    "name",
)
"""Every kind that `find` reports; where two could claim the same characters the earlier one has them."""

_ROUNDS = 8
_BLANK = "\x1f"
_PLACEHOLDER = re.compile(r"\[(?:" + "|".join(kind.upper() for kind in KINDS) + r")\]")


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of personal data: its kind (one of `KINDS`) and where it stands, `text[start:end]`."""

    kind: str
    start: int
    end: int


def find(text: str) -> list[Span]:
    """Find the personal data in one text, as spans sorted by position that never overlap."""
    return find_many([text])[0]


def find_many(texts: Iterable[str]) -> list[list[Span]]:
    """Find the personal data in each text; a text without digits, `@`, a web address or a name's clue costs little."""
    return [_find(text) if HINT.search(text) else [] for text in texts]


def redact(text: str, spans: Sequence[Span] | None = None) -> str:
    """Replace each span by its kind in brackets, such as `[EMAIL]`.

    Without `spans` the text is searched, and what is left searched again until nothing more is found (at most 8
    times), so that redacting twice changes nothing. Given spans must not overlap.
    """
    if spans is not None:
        return _replace(text, spans)
    for _ in range(_ROUNDS):
        found = find(text)
        if not found:
            break
        text = _replace(text, found)
    return text


def _replace(text: str, spans: Sequence[Span]) -> str:
    pieces, end = [], 0
    for span in sorted(spans, key=lambda span: span.start):
        pieces += [text[end : span.start], f"[{span.kind.upper()}]"]
        end = span.end
    return "".join([*pieces, text[end:]])


def _find(text: str) -> list[Span]:
    """Run the rules in order; what one finds is blanked, so that no later rule sees it."""
    seen = text if text.isascii() else text.translate(LOOKALIKES)
    if "[" in seen:
        seen = _PLACEHOLDER.sub(lambda match: _BLANK * len(match[0]), seen)
    hints = {name for name, hint in HINTS.items() if hint.search(seen)}
    spans: list[Span] = []
    for rule in RULES:
        found = _joined(_matches(rule, seen)) if rule.needs in hints else []
        if found:
            spans += [Span(rule.kind, start, end) for start, end in found]
            seen = _blank(seen, found)
    spans.sort(key=lambda span: span.start)
    return spans


def _matches(rule: Rule, seen: str) -> Iterator[tuple[int, int]]:
    group = "it" if "it" in rule.pattern.groupindex else 0
    for match in rule.pattern.finditer(seen):
        start, end = match.span(group)
        if rule.check is None:
            yield start, end
        else:
            yield from _CHECKS[rule.check](seen, start, end)


def _joined(found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that overlap made one: a check may stretch what its pattern matched."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _blank(seen: str, found: list[tuple[int, int]]) -> str:
    pieces, last = [], 0
    for start, end in found:
        pieces += [seen[last:start], _BLANK * (end - start)]
        last = end
    return "".join([*pieces, seen[last:]])


# --- checks that a pattern cannot make -------------------------------------------------------------------------------


def _iban(seen: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    from stdnum import iban

    text = seen[start:end]
    ends = [len(text), *(match.start() for match in reversed(list(re.finditer(" ", text))))]
    for stop in ends:
        if iban.is_valid(text[:stop], check_country=False):
            yield start, start + stop
            return


def _card(seen: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Keep what has a card's length, an issuer's first digits and a right check digit (Luhn)."""
    from stdnum import luhn

    for first, last in _windows(seen, start, end):
        digits = re.sub(r"\D", "", seen[first:last])
        if 12 <= len(digits) <= 19 and ISSUER.match(digits) and luhn.is_valid(digits):
            yield first, last
            return


def _date(seen: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Keep a numeric date whose day and month exist, in either order."""
    numbers = [int(number) for number in re.findall(r"\d+", seen[start:end])[:3]]
    first, second = (numbers[1], numbers[2]) if numbers[0] > 31 else (numbers[0], numbers[1])
    if min(first, second) >= 1 and min(first, second) <= 12 and max(first, second) <= 31:
        yield start, end


def _ip(seen: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    from ipaddress import ip_address

    text = seen[start:end].rstrip(":.")
    try:
        ip_address(text)
    except ValueError:
        return
    if len(text) >= 6:
        yield start, start + len(text)


def _number(seen: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Keep an identifier that holds at least 4 digits."""
    if len(re.findall(r"\d", seen[start:end])) >= 4:
        yield start, end


def _address(seen: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Take in the one or two numbers that stand before a street."""
    numbers = HOUSE_NUMBERS.search(seen, max(0, start - 20), start)
    yield numbers.start() if numbers else start, end


def _windows(seen: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the run of digit groups, then the run without its last or first one or two groups."""
    groups = [match.span() for match in re.finditer(r"\d+", seen[start:end])]
    for dropped in range(min(3, len(groups))):
        for left in range(dropped + 1):
            first, last = groups[left][0] if left else 0, groups[len(groups) - 1 - dropped + left][1]
            yield start + first, start + last


def _phone(seen: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Keep what is written as a telephone number and is not an amount, a count, a range of years or a decimal."""
    extension = EXTENSION.match(seen, end)
    stop = extension.end() if extension else end
    if not extension and UNIT.match(seen, end):
        return
    said = PHONE_WORD.search(seen, max(0, start - 30), start) is not None
    for first, last in _windows(seen, start, end):
        whole = (first, last) == (start, end)
        decimals = seen[max(0, first - 2) : first].strip("0123456789") == "." and not said
        if not decimals and (whole or said or seen[first] in "+(0") and _is_phone(seen[first:last], said):
            yield first, stop if last == end else last
            return


# Figures as studies write them: 1.000-1.008, 0.35 (0.25-0.46), 120 (47-194), 2168 (293).
STATISTIC = re.compile(r"\d\.\d[^+]*[-–(]|[-–(][^+]*\d\.\d|^\d{1,4}\s*\(\d{1,3}(?:\s*[-–]\s*\d{1,3})?\)?$")


@lru_cache(maxsize=65536)
def _is_phone(raw: str, said: bool) -> bool:
    groups = re.findall(r"\d+", raw)
    digits = "".join(groups)
    if not 7 <= len(digits) <= 15 or len(set(digits)) == 1:
        return False
    if raw[0] == "+" or digits.startswith("00"):
        return _possible("+" + digits.removeprefix("00").removeprefix("0"))
    if len(digits) > 12 and not said:
        return False
    if not said and STATISTIC.search(raw):
        return False
    between = set(re.sub(r"\d", "", raw))
    if "/" in between and not (len(groups) == 2 and digits[0] == "0"):
        return False
    if all(len(group) == 4 and "1000" <= group <= "2099" for group in groups):
        return False
    shape = [len(group) for group in groups]
    if shape[0] <= 3 and len(shape) > 1 and set(shape[1:]) == {3}:  # 1 000 000 and 1.000.000 are counts
        if digits.endswith("000") or "." in between or shape[0] == 1:
            return False
        return said or raw[0] == "(" or _valid(digits)
    if "." in between and len(shape) < 3:
        return False
    if said or raw[0] == "(" or shape == [3, 3, 4]:
        return len(digits) <= 13
    if len(shape) == 1:
        return len(digits) in (10, 11) and _valid(digits, ("US", "GB", "FR", "IT", "DE"))
    if len(shape) == 2:
        local = shape == [3, 4] and digits[0] > "1" and not digits.endswith("000")
        return local or (not digits.endswith("000") and max(shape) <= 8 and _valid(digits))
    if max(shape) <= 2 and digits[0] != "0" and " " in between:  # a list of small numbers
        return False
    return _valid(digits)


def _possible(digits: str) -> bool:
    import phonenumbers

    try:
        return bool(phonenumbers.is_possible_number(phonenumbers.parse(digits)))
    except phonenumbers.NumberParseException:
        return False


def _valid(digits: str, regions: Sequence[str] | None = None) -> bool:
    import phonenumbers

    for region in regions or REGIONS:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(digits, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False


_CHECKS: Mapping[Check, Callable[[str, int, int], Iterable[tuple[int, int]]]] = {
    "address": _address,
    "card": _card,
    "date": _date,
    "iban": _iban,
    "ip": _ip,
    "number": _number,
    "phone": _phone,
}
