"""Damage of every kind, from a seed: to bytes, to nested values, and to tables before they are written."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
MB = 2**20

TOKENS: tuple[bytes, ...] = (
    b'"', b'""', b"'", b",", b",,,", b";", b"\t", b"|", b"\r", b"\n", b"\r\n", b"\n\n\n", b"\n\r", b"\0", b"\0\0\0\0",
    b"\x1a", b"\x1b[2J\x1b]0;x\x07", b"\x7f", b"\x85", b"\xa0", b"\xff", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf",
    b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"NaN", b"nan", b"-Infinity", b"Infinity", b".inf", b"1e999",
    b"-0", b"0x10", b"1_000", b"1e-400", b"9" * 400, b"1" * 5000, b"0." + b"3" * 300, b"null", b"None", b"true", b"~",
    b"{", b"}", b"[", b"]", b"[[[[" * 60, b"{" * 300, b'{"a":' * 120, b"]" * 40, b"{}", b"[]", b'{"text": "x"}', b"\\",
    b'\\"', b"\\u0000", b"\\ud800", b"\\udc00\\ud800", b"\\x", b"/*", b"//", b"#", b"# x", b": ", b":", b"- ", b"? ",
    b"---", b"\n---\n", b"...", b"|", b">", b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.getcwd []", b"!x ",
    b"%YAML 1.1\n", b"@", b"`", b"=", b"\n[", b"\n[[x]]\n", b"\n[data]\n", b'"""', b"'''", b"=1+1", b"=cmd|' /C x'!A0",
    b"<script>alert(1)</script>", b"../../..", b"/etc/hostname", b"file:///", b"PK\x03\x04", b"PAR1", b"\x1f\x8b\x08",
    b"\x80\x04\x95", "\u2028".encode(), "\u202e".encode(), "\u200b\u200d\ufeff".encode(),
    "e\u0301\u0327".encode() * 40, "👩‍👩‍👧‍👦🏳️‍🌈".encode(), "ﷺ\ufdfd".encode(), "\ud7ff\ue000".encode(),
    "İıſK".encode(), "𝟙٣".encode(), "日本語".encode("shift_jis"), "é".encode("latin-1"), b"label", b"text",
    b"text,label\n", b"sep=;\n",
)  # fmt: skip

ODD_NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf, 2**31, 2**32, 2**53 + 1,
    2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 100, 1000, 10**6,
)  # fmt: skip
ODD_TEXTS: tuple[str, ...] = (
    "", " ", "\t", "\n", "\r\n", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\ufeff", "\u202eevil", "\u2028", "\u200b", "NaN",
    "nan", "null", "None", "true", "yes", "0", "-1", "1e5", "1,5", "1.000,5", "#N/A", "=1+1", "<b>x</b>", "&lt;", "%s",
    "{0}", "{}", "[]", "['a', 'b']", '["a", "b"]', "a|b", "a;b", "a, b", "'", '"', '"unclosed', "\\", "\\u0000",
    "../..", "é" * 3, "e\u0301" * 50, "👩‍👩‍👧‍👦", "日本語のテキスト", "العربية", "\ud800", "İ", "ſ", "x" * 300,
    "word " * 3000, "z" * 70_000, "a@b.example", "4111 1111 1111 1111", "2024-01-02", "12:30", "1/2", "train", "test",
    "text", "label",
)  # fmt: skip


def nested(depth: int) -> Any:
    """Return lists and objects inside one another, so deep."""
    value: Any = "deep"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def odd_value(draw: random.Random) -> Any:
    """Return a value that nobody expects."""
    kind = draw.randrange(9)
    if kind < 3:
        return draw.choice(ODD_TEXTS)
    if kind < 5:
        return draw.choice(ODD_NUMBERS)
    if kind == 5:
        return draw.choice([None, True, False])
    if kind == 6:
        return [odd_value(draw) for _ in range(draw.randrange(4))]
    if kind == 7:
        return {str(draw.choice(ODD_TEXTS)): odd_value(draw) for _ in range(draw.randrange(3))}
    return nested(draw.choice([2, 5, 25, 200]))


def mutate_bytes(draw: random.Random, data: bytes, times: int | None = None) -> bytes:
    """Return the bytes with one to four kinds of damage."""
    for _ in range(times or draw.choice([1, 1, 1, 2, 3, 4])):
        data = draw.choice(_BYTE_DAMAGE)(draw, data)
    return data[: 4 * MB]


def _place(draw: random.Random, data: bytes) -> int:
    return draw.randrange(len(data) + 1)


def flip_bits(draw: random.Random, data: bytes) -> bytes:
    """Return the bytes with one bit changed, or some."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 4, 30]) if data else 0):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _random_byte(draw: random.Random, data: bytes) -> bytes:
    at = _place(draw, data)
    return data[:at] + bytes([draw.randrange(256)]) + data[at + draw.randrange(2) :]


def _truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: _place(draw, data)]


def _cut_out(draw: random.Random, data: bytes) -> bytes:
    at = _place(draw, data)
    return data[:at] + data[at + draw.choice([1, 2, 7, 40, 400]) :]


def _behead(draw: random.Random, data: bytes) -> bytes:
    return data[draw.choice([1, 2, 3, 8, 30]) :]


def _double_block(draw: random.Random, data: bytes) -> bytes:
    start, at = _place(draw, data), _place(draw, data)
    block = data[start : start + draw.choice([1, 10, 60, 300])]
    return data[:at] + block * draw.choice([1, 1, 2, 20]) + data[at:]


def _swap_blocks(draw: random.Random, data: bytes) -> bytes:
    a, b, c = sorted(_place(draw, data) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _token(draw: random.Random, data: bytes) -> bytes:
    token = draw.choice(TOKENS)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at = _place(draw, data)
        data = data[:at] + token + data[at + draw.choice([0, 0, len(token)]) :]
    return data


def _token_at_line_start(draw: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at] = draw.choice(TOKENS) + lines[at]
    return b"\n".join(lines)


def _line(draw: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    what = draw.randrange(4)
    if what == 0:
        lines.insert(at, lines[other])
    elif what == 1:
        del lines[at]
    elif what == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = b" " * draw.choice([1, 2, 3]) + lines[at]
    return b"\n".join(lines)


def _line_ends(draw: random.Random, data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\n", draw.choice([b"\r\n", b"\r", b"\n\n", b"\n\r", b"", b"\x0b"]))


def _encoding(draw: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    codec = draw.choice(
        ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7", "cp037"]
    )
    return text.encode(codec, "replace")


def _mark(draw: random.Random, data: bytes) -> bytes:
    return draw.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\xef\xbb\xbf" * 2]) + data


def _quotes(draw: random.Random, data: bytes) -> bytes:
    old, new = draw.choice(
        [(b'"', b"'"), (b'"', b""), (b"'", b'"'), (b'"', b'\\"'), (b" ", b'"'), (b",", b";"), (b",", b"\t")]
    )
    return data.replace(old, new, draw.choice([-1, 1, 3]))


def _nothing_left(draw: random.Random, data: bytes) -> bytes:
    return draw.choice([b"", b"\n", b" ", b"\0", b"\n\n\n", data[:1], b"\xef\xbb\xbf", data * 2])


_BYTE_DAMAGE: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip_bits, flip_bits, _random_byte, _truncate, _cut_out, _cut_out, _behead, _double_block, _swap_blocks, _token,
    _token, _token, _token_at_line_start, _token_at_line_start, _line, _line, _line_ends, _encoding, _mark, _quotes,
    _nothing_left,
)  # fmt: skip


def mutate_tree(draw: random.Random, tree: Any, words: tuple[str, ...] = (), times: int | None = None) -> Any:
    """Return nested values with one to three nodes replaced, removed, renamed, doubled, wrapped or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(times or draw.choice([1, 1, 2, 3])):
        places = list(_places(tree, ()))
        if not places:
            return odd_value(draw)
        tree = _change(draw, tree, draw.choice(places), words)
    return tree


def _places(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [each for key, item in inner for each in ((*path, key), *_places(item, (*path, key)))]


def _change(draw: random.Random, tree: Any, path: tuple[Any, ...], words: tuple[str, ...]) -> Any:
    holder = tree
    for part in path[:-1]:
        holder = holder[part]
    key, what = path[-1], draw.randrange(9)
    value = holder[key]
    if what < 3:
        holder[key] = odd_value(draw)
    elif what == 3:
        del holder[key]
    elif what == 4:
        holder[key] = [value] if draw.random() < 0.5 else {"value": value}
    elif what == 5 and isinstance(value, (str, int, float)):
        holder[key] = _retyped(draw, value)
    elif what == 6 and isinstance(holder, dict):
        del holder[key]
        holder[_misspelt(draw, str(key), words)] = value
    elif what == 7 and isinstance(holder, dict):
        holder[draw.choice(words) if words and draw.random() < 0.7 else str(draw.choice(ODD_TEXTS))] = odd_value(draw)
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    else:
        holder[key] = _retyped(draw, value) if isinstance(value, (str, int, float)) else odd_value(draw)
    return tree


def _retyped(draw: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return draw.choice([str(value).lower(), int(value), [value], None])
    if isinstance(value, (int, float)):
        return draw.choice([str(value), -value, value * 10**6, bool(value), f"{value}x", None, [value]])
    return draw.choice([value.upper(), value + " ", "", f"{value}{value}", value[:-1], value[::-1], 7, None, [value]])


def _misspelt(draw: random.Random, name: str, words: tuple[str, ...]) -> str:
    at = draw.randrange(len(name) + 1)
    return draw.choice(
        [name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name.upper(), f"{name}.{name}", f" {name}",
         name + "\0", *([draw.choice(words)] if words else [])]
    )  # fmt: skip


def mutate_rows(draw: random.Random, rows: list[Row]) -> list[Row]:
    """Return a table's rows with odd cells, doubled or dropped rows, columns renamed, swapped, emptied or added."""
    rows = copy.deepcopy(rows)
    for _ in range(draw.choice([1, 1, 2, 3])):
        if not rows:
            return rows
        draw.choice(_ROW_DAMAGE)(draw, rows)
    return rows


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row)) or ["text"]


def _odd_cells(draw: random.Random, rows: list[Row]) -> None:
    name = draw.choice(_names(rows))
    for _ in range(draw.choice([1, 2, len(rows) // 2, len(rows)])):
        draw.choice(rows)[name] = odd_value(draw)


def _one_odd_value(draw: random.Random, rows: list[Row]) -> None:
    name, value = draw.choice(_names(rows)), odd_value(draw)
    for row in rows:
        row[name] = value


def _odd_texts(draw: random.Random, rows: list[Row]) -> None:
    name = draw.choice(_names(rows))
    for row in rows:
        row[name] = draw.choice(ODD_TEXTS)


def _odd_numbers(draw: random.Random, rows: list[Row]) -> None:
    name = draw.choice(_names(rows))
    for row in rows:
        row[name] = draw.choice(ODD_NUMBERS)


def _fewer_fields(draw: random.Random, rows: list[Row]) -> None:
    name = draw.choice(_names(rows))
    for row in draw.sample(rows, draw.randrange(1, len(rows) + 1)):
        row.pop(name, None)


def _new_column(draw: random.Random, rows: list[Row]) -> None:
    name = str(draw.choice([*ODD_TEXTS, "split", "label2", "Text", "sentence1", "sentence2", "rating", "row_index"]))
    values = draw.choice([[odd_value(draw)], ["train", "test"], ["a", "b", "c"], list(range(50)), list(ODD_TEXTS)])
    for row in rows:
        row[name] = draw.choice(values)


def _rename(draw: random.Random, rows: list[Row]) -> None:
    old, new = draw.choice(_names(rows)), str(draw.choice([*ODD_TEXTS, "label", "text"]))
    for row in rows:
        if old in row:
            row[new] = row.pop(old)


def _few_rows(draw: random.Random, rows: list[Row]) -> None:
    del rows[draw.choice([0, 1, 2, 9]) :]


def _many_copies(draw: random.Random, rows: list[Row]) -> None:
    rows += [copy.deepcopy(draw.choice(rows)) for _ in range(draw.choice([1, 5, 60]))]


def _shuffle_column(draw: random.Random, rows: list[Row]) -> None:
    name = draw.choice(_names(rows))
    values = [row.get(name) for row in rows]
    draw.shuffle(values)
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _long_text(draw: random.Random, rows: list[Row]) -> None:
    draw.choice(rows)[draw.choice(_names(rows))] = draw.choice(["word ", "x", "<a ", "a@", "1 ", "\u0301"]) * 20_000


_ROW_DAMAGE: tuple[Callable[[random.Random, list[Row]], None], ...] = (
    _odd_cells, _odd_cells, _odd_cells, _one_odd_value, _odd_texts, _odd_numbers, _fewer_fields, _new_column,
    _new_column, _rename, _few_rows, _many_copies, _shuffle_column, _long_text,
)  # fmt: skip
