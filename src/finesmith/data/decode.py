"""Turn a file's bytes into text, saying which encoding was found."""

from __future__ import annotations

import codecs
import zlib
from dataclasses import dataclass
from pathlib import Path

from finesmith.data.bounds import refuse_growth
from finesmith.errors import DataError

SAMPLE_BYTES = 65_536
ENCODING_REMEDY = "set data.encoding to the file's encoding (predict and evaluate: --encoding)"

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip archive (an .xlsx, .docx or .zip file)"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.xls or .doc)"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstandard data"),
    (b"PAR1", "a parquet file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
)
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))


@dataclass(frozen=True, slots=True)
class Decoded:
    """A file's text, the encoding as a person would say it, and what is worth knowing about the choice."""

    text: str
    encoding: str
    notes: tuple[str, ...] = ()


def load_bytes(path: Path, name: str) -> bytes:
    """Return the bytes of a file, unpacked when it ends in `.gz`.

    Raises:
        DataError: the file cannot be read, is not gzip data, or unpacks to far more than a data file would.
    """
    try:
        packed = path.read_bytes()
    except PermissionError:
        raise DataError(f"{name}: permission denied; make the file readable (chmod u+r) and try again") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error}); make it readable") from None
    return _unpack(packed, name) if path.suffix.lower() == ".gz" else packed


def _unpack(packed: bytes, name: str) -> bytes:
    parts: list[bytes] = []
    total, rest = 0, packed
    try:
        while rest:
            stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            while not stream.eof:
                part = stream.decompress(rest, 2**24)
                rest = stream.unconsumed_tail or stream.unused_data
                if not part and not rest and not stream.eof:
                    raise DataError(f"{name}: the gzip data end too early; the file was cut off, copy it again")
                parts.append(part)
                total += len(part)
                refuse_growth(name, len(packed), total, "unpack it yourself if you trust it")
            rest = stream.unused_data.lstrip(b"\0")
    except zlib.error:
        raise DataError(f"{name}: ends in .gz but does not hold valid gzip data; unpack it or copy it again") from None
    return b"".join(parts)


def decode(data: bytes, name: str, encoding: str | None = None) -> Decoded:
    """Return the text of `data`: by the given encoding, else byte-order mark, UTF-8, UTF-16, cp1252 or Latin-1.

    Raises:
        DataError: the bytes are not text, or not text in the encoding given.
    """
    _refuse_binary(data, name)
    if encoding is not None:
        return Decoded(_strict(data, name, encoding), encoding)
    for mark, codec in _BOMS:
        if data.startswith(mark):
            return Decoded(_strict(data[len(mark) :], name, codec), f"{codec} with BOM")
    if b"\0" in data:
        return _without_bom(data, name)
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError as error:
        _refuse_damaged_utf8(data, name, error)
    return _western(data, name)


def _refuse_binary(data: bytes, name: str) -> None:
    for signature, what in _SIGNATURES:
        if data.startswith(signature):
            raise DataError(f"{name}: holds {what}, not text; give the format its own extension or export it as csv")
    if data.startswith(_PICKLES) or _is_old_pickle(data):
        raise DataError(f"{name}: holds a Python pickle, which can run code and is never loaded; save it as parquet")


def _is_old_pickle(data: bytes) -> bool:
    """Say whether data are a pickle of the first two protocols, which are nearly text: a program up to its stop."""
    if not data.endswith(b".") or len(data) > SAMPLE_BYTES:
        return False
    import pickletools

    try:
        names = [operation.name for operation, _, _ in pickletools.genops(data)]
    except ValueError:
        return False
    return names[-1:] == ["STOP"] and not {"GLOBAL", "INST", "REDUCE", "BUILD"}.isdisjoint(names)


def _strict(data: bytes, name: str, codec: str) -> str:
    try:
        text = data.decode(codec).lstrip("\ufeff")
    except LookupError:
        raise DataError(f"{name}: unknown encoding {codec[:40]!r}; usual ones are utf-8, utf-16, cp1252") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}: byte 0x{data[error.start]:02x} in line {line} is not valid {codec}; "
            f"mend that line or {ENCODING_REMEDY}"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{name}: holds NUL characters (the first in line {line}), so it is not plain text; remove them, or export "
            "the data anew"
        )
    return text


def _without_bom(data: bytes, name: str) -> Decoded:
    """Read UTF-16 that has no byte-order mark: its NULs all stand on the same side of each pair of bytes."""
    even, odd = data[0::2].count(0), data[1::2].count(0)
    codec = "utf-16-le" if odd > even else "utf-16-be"
    if len(data) % 2 == 0 and max(even, odd) >= 20 * min(even, odd):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            text = ""
        sample = text[:SAMPLE_BYTES]
        printable = sum(character.isprintable() or character.isspace() for character in sample)
        if sample and "\0" not in text and printable >= 0.98 * len(sample):
            return Decoded(text, codec, (f"read as {codec} by the pattern of its bytes; it has no byte-order mark",))
    nuls = even + odd
    line = data.count(b"\n", 0, data.index(b"\0")) + 1
    raise DataError(
        f"{name}: holds {nuls:,} NUL bytes (the first in line {line}), so it is binary data and not text; "
        "export it as csv or jsonl"
    )


def _refuse_damaged_utf8(data: bytes, name: str, error: UnicodeDecodeError) -> None:
    """Stop when nearly all of the file is UTF-8: reading the whole as Latin-1 would spoil every other accent."""
    kept = data.decode("utf-8", "ignore")
    well_formed = (
        sum(1 for character in kept if character > "\x7f") if len(kept) < 2**20 else len(kept.encode()) - len(kept)
    )
    damaged = len(data) - len(kept.encode())
    if well_formed > 3 * damaged:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}: byte 0x{data[error.start]:02x} in line {line} is not UTF-8 although the rest of the file is "
            f"({damaged} such bytes); mend the line, or set data.encoding=cp1252 (predict and evaluate: --encoding "
            "cp1252) if the file really is Western"
        )


def _western(data: bytes, name: str) -> Decoded:
    sample = data[:SAMPLE_BYTES] if max(data[:SAMPLE_BYTES], default=0) > 0x7F else data
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1a" for byte in sample)
    if control > 0.01 * len(sample):
        raise DataError(
            f"{name}: {control:,} of its first {len(sample):,} bytes are control codes: binary, not text; export it as "
            "csv"
        )
    letters = sum(chr(byte).isalpha() for byte in sample)
    accented = sum(byte > 0xBF for byte in sample)
    if accented > 0.4 * letters and accented > 20:
        guess = _guess(sample)
        raise DataError(f"{name}: the text is neither UTF-8 nor a Western encoding{guess}; {ENCODING_REMEDY}")
    note = "not UTF-8; accents are read as Western European"
    if not any(0x80 <= byte <= 0x9F for byte in data):
        return Decoded(data.decode("latin-1"), "latin-1", (note,))
    try:
        return Decoded(data.decode("cp1252"), "cp1252", (note,))
    except UnicodeDecodeError:
        return Decoded(data.decode("latin-1"), "latin-1", (note, "some bytes are control codes in Latin-1"))


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return f" (it may be {best.encoding})" if best is not None else ""
