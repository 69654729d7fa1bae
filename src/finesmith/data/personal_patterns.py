"""What personal data look like: the word lists and patterns behind `personal`.

Every repetition is bounded, so that time stays proportional to the length of the text whatever it holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Check = Literal["address", "card", "date", "iban", "ip", "number", "phone"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern for one kind, tried only where the hint that it `needs` (a key of `HINTS`) is found.

    The span is group `it` where the pattern has one; `check` names what looks closer and may cut or refuse it.
    """

    kind: str
    needs: str
    pattern: re.Pattern[str]
    check: Check | None = None


# --- words -----------------------------------------------------------------------------------------------------------

DOMAINS = r"(?:com|org|net|edu|gov|info|co\.uk)"
CAPITAL = "[A-ZÀ-ÖØ-ÞĀ-ŽΆ-ΫЀ-Я]"
WORD = rf"{CAPITAL}[\w'-]{{0,24}}"
NAME = (
    rf"(?!I\b){CAPITAL}[^\W\d_]{{1,20}}(?:['-][^\W\d_]{{2,20}})?"
    rf"(?: (?:{CAPITAL}\. |(?:de|van|von|der|di|da|al|bin|la) )?{CAPITAL}[^\W\d_]{{1,24}}(?:-{WORD})?){{0,3}}"
)
TITLE = r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Sir|Madam|Herr|Frau|Sr|Sra|Mme|Mlle)"
NO_SURNAME = r"(?:If|The|He|She|It|In|How|What|They|Each|There|When|On|At|This|We)\b"
MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre"
    r"|diciembre|janvier|f[eé]vrier|mars|avril|mai|juin|juillet|ao[uû]t|septembre|octobre|novembre|d[eé]cembre"
    r"|Januar|Februar|M[aä]rz|Juni|Juli|Oktober|Dezember)\b\.?"
)
YEARS = r"(?:\d{1,2}|10\d)"
STATE = (
    r"(?:A[AEKLPRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|PR|RI|S[CD]|T[NX]|UT"
    r"|V[AIT]|W[AIVY])"
)
STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Way|Court|Ct|Square|Sq|Place|Pl|Terrace|Parkway"
    r"|Pkwy|Highway|Hwy|Crescent|Close|Circle|Cir|Alley|Row|Quay|Gardens|Trail|Streets|Parks?|Plaza)\b\.?"
)
STREET_FIRST = (
    r"(?:C/|(?:Rua|Rúa|Rue|Via|Viale|Calle|Avda|Avenida|Avenue|Av|Piazza|Piazzetta|Vicolo|Corso|Plaza|Place|Praça"
    r"|Boulevard|Chemin|Camino|Paseo|Travessa|Largo|Quai|ul|ulica|ulice|Carrer|Impasse|ул|Πλατεία)\b\.?)"
)
STREET_LAST = (
    r"(?:stra(?:ss|ß)e|str|gasse|weg|platz|allee|damm|ufer|vejen|vej|gaden|gade|gatan|gata|gaten|gate|v[aä]gen|veien"
    r"|vegen|veg|gränd|straat|laan|plein|gracht|dijk|katu|tie|kuja|polku|t[aä]nav|stræti|straeti|vegur|utca)\.?"
)
STREET_AFTER = r"(?:[Ss]trasse|[Ss]traße|[Ss]tr\.|utca|út|u\.|tér|tee|pst|vei|gade)"
LINK = r"(?:d[aeiou][is]?|del|della|la|el|l[aeo]s|y|e)"
ROOM = (
    r"(?:[Aa]pt\.?|[Aa]partment|[Ss]uite|Ste\.?|Flat|Unit|P\. ?O\. ?Box|PO Box|[Pp]ost[Bb]ox|PSC|Box)"
    r" ?#? ?\d{1,6}[A-Za-z]?\b"
)
CORNER = r"(?:[A-ZÀ-Þ\d][\w'-]{0,24}|d[aeiou][is]?)"
LINE = r"[,\s>?|*]{1,8}"
MORE = (
    rf"(?:\.?{LINE}{ROOM}){{0,2}}"
    rf"(?:(?:{LINE}|[ ])\d{{3,6}}\b|\s?[,\n][,\s>?|*]{{0,7}}{WORD}(?:[ ]{WORD}){{0,3}}){{0,6}}"
)
"""The room, city, country and postcode that may follow a street, on one line or several."""
FREE = r"(?<![\w.,$€£-])"
AT = (
    r"(?:address(?: is| was| to)?[:?]?(?: it is| it's)?"
    r"|(?:lives?|lived|living|resides?|located|office is|restaurant is|it's|meet(?: me| you)?"
    r"|arrived|off|delivered?|shipped|ship|send|sent|moved?|taxi) (?:at|in|on|to))"
)
REGIONS = (  # noqa: SIM905
    "GB US FR DE ES IT NL BE CH AT SE NO DK FI IS IE PT PL CZ SK HU SI HR EE LV LT GR CY MT RO BG UA TR IL IN AU NZ ZA"
    " BR MX AR CL CO JP SG TN GL"
).split()

# --- what stands around a number -------------------------------------------------------------------------------------

LOOKALIKES = {
    **dict.fromkeys((0xA0, 0x2007, 0x2009, 0x202F), " "),
    **dict.fromkeys(range(0x2010, 0x2016), "-"),
    0x2019: "'",
}
ISSUER = re.compile(r"3[04-9]|4|5|6|2[2-7]|1800|2131|0604")
EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?\d{1,6}\b", re.IGNORECASE)
UNIT = re.compile(
    r" ?(?:[%$€£¥°]|\d"
    r"|(?:usd|eur|euros?|dollars?|pounds?|pesos?|kr|people|personas|habitantes|hours?|days?|miles|km|kg)\b)",
    re.IGNORECASE,
)
PHONE_WORD = re.compile(
    r"\b(?:phone|tel|telephone|mobile|cell|cellphone|fax|call|ring|dial|text|whatsapp|tel[eé]fono|m[oó]vil"
    r"|t[eé]l[eé]phone)\b",
    re.IGNORECASE,
)
HOUSE_NUMBERS = re.compile(rf"(?:{FREE}\d{{1,6}}[A-Za-z]? ){{1,2}}$")

# --- hints: cheap where the rules are not ----------------------------------------------------------------------------

HINT = re.compile(
    rf"[\d@]|://|www\.|\.{DOMAINS}\b|[Nn]ame\b|[A-Z]\. [A-Z]|[Cc]all me|[Rr]egards,|[Ss]incerely,"
    rf"|\b(?:{TITLE}|Dear|Hi|Hello|mrs?|ms|dr)\b\.? "
)
"""Without it no rule finds anything."""

HINTS = {
    "": re.compile(""),
    "@": re.compile("@"),
    "url": re.compile(rf"://|www\.|\.{DOMAINS}\b", re.IGNORECASE),
    "digit": re.compile(r"\d"),
    "4 digits": re.compile(r"(?:\d\D{0,15}){3}\d"),
    "7 digits": re.compile(r"(?:\d\D{0,3}){6}\d"),
    "12 digits": re.compile(r"(?:\d\D?){11}\d"),
    "colons": re.compile(r":[0-9a-f]{0,4}:", re.IGNORECASE),
    "label": re.compile(
        r"\b(?:licen[cs]e|passport|account|acct|routing|policy|member|insurance|tax|patient|record|ssn|social security)"
        r"\b[^\n]{0,40}\d",
        re.IGNORECASE,
    ),
    "street": re.compile(rf"\b{STREET}"),
    "street first": re.compile(rf"\b{STREET_FIRST} "),
    "street last": re.compile(rf"(?:{STREET_LAST}|\b{STREET_AFTER}) \d"),
    "room": re.compile(rf"\b{ROOM}"),
    "corner": re.compile("corner of"),
    "military": re.compile(r"\b[ADF]PO\b", re.IGNORECASE),
    "at": re.compile(rf"\b{AT}\s", re.IGNORECASE),
}


def _rule(kind: str, needs: str, pattern: str, check: Check | None = None, any_case: bool = True) -> Rule:
    return Rule(kind, needs, re.compile(pattern, re.IGNORECASE if any_case else 0), check)


def _address(needs: str, pattern: str, check: Check | None = None) -> Rule:
    return _rule("street_address", needs, pattern, check, any_case=False)


def _labelled(kind: str, label: str) -> Rule:
    """Match the identifier that follows its label: `passport number is X1234567`."""
    number = (
        r"(?: (?:number|no\.?|num|id))?\s{0,3}(?:is|are|[:#=-])?\s{0,3}[:#]?\s{0,3}"
        r"(?P<it>[A-Z]{0,3}\d[A-Z0-9-]{3,18})\b"
    )
    return _rule(kind, "label", rf"\b{label}{number}", "number")


RULES = (
    _rule("email", "@", r"(?<![\w.+-])[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}\b"),
    _rule("url", "url", r"(?:\b(?:https?|ftp)://|\bwww\.)[^\s<>\"'()\[\]{}|\\\x1f]{1,1999}[\w/=&#-]"),
    _rule("url", "url", rf"(?<![\w.@-])(?:[a-z0-9][a-z0-9-]{{0,62}}\.){{1,4}}{DOMAINS}\b(?:/[\w/.?=&%-]{{0,500}})?"),
    _rule("iban", "12 digits", r"\b[A-Z]{2}\d{2} ?[A-Z0-9](?: ?[A-Z0-9]){10,29}\b", "iban"),
    _rule("credit_card", "12 digits", r"(?<![\w.,$€£+-])\d(?:[ -]?\d){11,18}(?!\w)", "card"),
    _rule(
        "date",
        "4 digits",
        r"(?<![\w/.-])(?:\d{4}-\d{1,2}-\d{1,2}(?:[T ]\d{1,2}:\d{2}(?::\d{2})?)?"
        r"|\d{1,2}([/.-])\d{1,2}\1(?:\d{4}|\d{2}))(?![\w/-]|\.\d)",
        "date",
    ),
    _rule(
        "date",
        "4 digits",
        rf"\b(?:\d{{1,2}}(?:st|nd|rd|th|\.)?(?: (?:of|de))? {MONTH}(?: (?:de|del))?,? \d{{4}}"
        rf"|{MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})\b",
    ),
    _rule("date", "4 digits", r"\b(?:born|birth|d\.?o\.?b\.?|naci[oó])\b[^\d\n\x1f]{1,20}(?P<it>(?:19|20)\d\d)\b"),
    _rule("us_ssn", "7 digits", r"(?<![\w.-])(?!000|666)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
    _rule("us_ssn", "label", r"\b(?:ssn|social security)\b[^\d\n]{0,20}(?P<it>\d{3}[ -]?\d{2}[ -]?\d{4})(?![\w-])"),
    _rule("ip_address", "4 digits", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", "ip"),
    _rule("ip_address", "colons", r"(?<![\w:.])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", "ip"),
    _labelled("us_driver_license", r"(?:driver'?s?'?|driving) licen[cs]e"),
    _rule("us_driver_license", "12 digits", r"\b[A-Z]\d{12,14}\b", any_case=False),
    _labelled("passport", "passport"),
    _labelled(
        "account_number",
        r"(?:account|acct\.?|routing|policy|member|insurance|tax|patient|medical record)(?= (?:number|no|num|id)\b)",
    ),
    _rule(
        "phone",
        "7 digits",
        r"(?<![\w$€£¥#/:=-])(?<!\d[.,])(?:\+ ?)?\(?\d(?:[ ./-]?[()]?[ .-]?\d){6,16}(?![:%]|[.,]\d|[^\WxX])",
        "phone",
    ),
    _address(
        "street",
        rf"{FREE}\d{{1,6}}[A-Za-z]?,? (?:(?:{WORD}|of|the|\d{{1,3}}(?:st|nd|rd|th)?)\.? ){{1,5}}{STREET}{MORE}",
        "address",
    ),
    _address(
        "street first",
        rf"\b{STREET_FIRST}(?: (?:{WORD}\.?|{LINK}|\d{{1,2}})){{1,5}},? \d{{1,5}}\b{MORE}",
        "address",
    ),
    _address(
        "street last",
        rf"\b(?:{WORD} ){{0,3}}(?:{CAPITAL}[\w-]{{1,24}}{STREET_LAST}|{WORD} {STREET_AFTER})"
        rf" \d{{1,5}}[A-Za-z]?\b{MORE}",
        "address",
    ),
    _address(
        "at",
        rf"\b(?i:{AT})\s{{1,3}}(?P<it>(?:the corner of )?\d{{1,6}} (?!(?i:{MONTH}))"
        rf"(?:(?:(?:{WORD}|\d{{1,4}}|d[aeiou])[ ,]{{1,2}}){{0,4}}{WORD}(?: \d{{1,5}})?|(?:\w{{3,25}} ){{1,3}}\d{{1,5}})"
        rf"\b{MORE})",
    ),
    _address(
        "corner",
        rf"\bcorner of (?:{CORNER}\.? ){{1,5}}(?:{STREET} )?and {CORNER}(?: {CORNER}){{0,4}}(?: {STREET})?",
    ),
    _address(
        "military",
        r"(?i:(?:\b(?:unit|psc|cmr) \d{1,5},? box \d{1,5}\s{1,4})?\b[adf]po,? a[aep],? \d{5}(?:-\d{4})?\b)",
    ),
    _address(
        "room",
        rf"(?:{FREE}\d{{1,6}} (?:\w[\w'-]{{0,24}}\.? ){{0,5}}\w[\w'-]{{0,24}}\.?{LINE})?\b{ROOM}{MORE}",
        "address",
    ),
    _rule(
        "postcode",
        "digit",
        r"\b(?:zip|post|postal|plz|c[oó]digo postal|code postal)[ -]?(?:code)?s?\b\s{0,3}(?:is\b|:|#|=)?\s{0,3}"
        r"(?P<it>(?=[A-Z]{0,2}\d)[A-Z0-9]{2,5}(?:[ -](?=[A-Z]{0,2}\d|[A-Z]{2}\b)[A-Z0-9]{2,4})?)\b",
    ),
    _rule(
        "postcode",
        "digit",
        rf"\b(?:{STATE},? \d{{5}}(?:-\d{{4}})?|[A-Z]{{1,2}}\d[A-Z\d]? \d[A-Z]{{2}}|[A-Z]\d[A-Z] \d[A-Z]\d)\b(?!-)",
        any_case=False,
    ),
    _rule("age", "digit", rf"\b{YEARS}(?:[ -](?:years?|yrs?|months?)[ -]old\b|[ -]?y\.?/?o\b\.?)"),
    _rule("age", "digit", rf"\b(?:aged?(?: of)?:?|turn(?:s|ed|ing)?) (?P<it>{YEARS})(?=[.,;!?)\n]|$| years?\b)"),
    _rule("age", "digit", r"\b(?:(?:he|she|i) (?:was|am|is)|(?:i'm|s?he's)) (?P<it>[1-9]\d|10\d)(?=[.,;!?)\n]|$)"),
    _rule("name", "", rf"\b(?:{TITLE}\b\.? {NAME}|(?:mrs?|ms|dr)\. [^\W\d_]{{2,20}})", any_case=False),
    _rule(
        "name",
        "",
        r"\b(?:[Mm]y (?:(?:full|last|first) )?name is|[Nn]ame:|[Cc]all me|Dear|Hi|Hello|(?:[Rr]egards|[Ss]incerely),)"
        rf"\s{{1,4}}(?P<it>(?!(?:There|Sir|Madam|All|Team)\b){NAME})",
        any_case=False,
    ),
    _rule(
        "name",
        "",
        rf"\b{CAPITAL}[^\W\d_]{{1,20}} [A-Z]\. (?!{NO_SURNAME}){CAPITAL}[\w'-]{{1,24}}",
        any_case=False,
    ),
)
"""The rules in the order they are tried."""
