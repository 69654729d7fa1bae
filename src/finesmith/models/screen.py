"""Look at a model folder before any library opens it: refuse what could run code, lead elsewhere, or grow."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from finesmith.errors import ModelError
from finesmith.models.patterns import NAME_REPEATS, slow

SMALL_JSON = 32 * 2**20
LARGE_JSON = 512 * 2**20
LARGEST_HEADER = 100 * 2**20
MOST_LAYERS = 1000
LONGEST_POSITIONS = 2**24
ROOM = 2**18
# How many layers may share one set of weights: the largest ALBERT has 24.
SHARED_LAYERS = 64
MOST_STEPS = 64
MOST_GROWTH = 1000
LONGEST_REPLACEMENT = 1024
LONGEST_CHARSMAP = 4 * 2**20
MOST_TEMPLATE_IDS = 64
MOST_FILES = 10_000

_INNER = ("0_Transformer", "1_Pooling", "2_Dense", "additional_chat_templates")
_NAMES_CODE = tuple(
    f"{start}{kind}_implementation{end}"
    for kind in ("attn", "experts")
    for start, end in (("", ""), ("_", ""), ("_", "_internal"))
)
_SIZE = re.compile(r"(num|n|d)_\w+|dim|\w+_(size|dim|heads?|layers?|experts|embeddings|positions|ctx|rank|length)")
_COUNTS_LAYERS = re.compile(r"(\w+_)?(num_\w*layers|n_layers?|num_\w*blocks|depth)")
_COUNTS_POSITIONS = re.compile(r"\w*(position|ctx|length|window|token_id|chunk|vocab_offset)\w*")


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of safetensors files say: how many tensors and numbers, and how many numbers the largest has."""

    tensors: int
    numbers: int
    largest: int


def screen(folder: Path) -> None:
    """Look at a model folder.

    Raises ModelError when a file leads out of the folder or is no plain file, when config.json or the tokenizer's files
    ask for code, for other folders, or for sizes that the weights do not have, or when a header is damaged.
    """
    _plain_files(folder)
    config = read_object(folder / "config.json", SMALL_JSON)
    for name in ("special_tokens_map.json", "added_tokens.json", "generation_config.json", "1_Pooling/config.json"):
        read_object(folder / name, SMALL_JSON)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json) beside a model, so it is not clear which weights are "
            "meant; remove adapter_config.json, or merge the two (peft's merge_and_unload, then save_pretrained)"
        )
    _no_code(folder, config)
    screen_tokenizer(folder)
    weights = _weights(folder)
    for each in _sections(config):
        fitting(folder / "config.json", each, weights)


def screen_tokenizer(folder: Path) -> None:
    """Look at the tokenizer's files of a folder.

    Raises ModelError when one leads elsewhere or could make a text grow, or its splitting last, without end.
    """
    _plain_files(folder)
    config = read_object(folder / "tokenizer_config.json", SMALL_JSON)
    for key, value in config.items():
        if key.endswith(("_file", "_files")) and _leads_out(folder, value):
            raise ModelError(
                f"{folder / 'tokenizer_config.json'}: {key} names {str(value)[:80]!r}, a file outside of the folder, "
                f"which is not read; copy it into the folder and remove {key}"
            )
    path = folder / "tokenizer.json"
    engine = read_object(path, LARGE_JSON)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        _bounded_steps(path, part, list(_sections(engine.get(part) or {})))


def screen_adapter(folder: Path) -> None:
    """Look at an adapter's own files.

    Raises ModelError when it has no safetensors weights, is no LoRA adapter, or asks for what an adapter must not.
    """
    _plain_files(folder)
    weights, path = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not weights.is_file():
        raise ModelError(
            f"{weights} is missing; other forms of adapters are not opened (pickles can run code): copy it again"
        )
    _header(weights)
    config = read_object(path, SMALL_JSON)
    ranks = [config.get("r"), *_mapping(config.get("rank_pattern")).values()]
    pattern = config.get("target_modules")
    wrong = {
        "peft_type": config.get("peft_type") != "LORA",
        "r": not all(type(rank) is int and 0 < rank <= 4096 for rank in ranks),
        "init_lora_weights": config.get("init_lora_weights") not in (True, False, None, "gaussian"),
        "target_modules": isinstance(pattern, str) and slow(pattern, repeats=NAME_REPEATS),
        "exclude_modules": isinstance(config.get("exclude_modules"), str),
        **{key: bool(config.get(key)) for key in ("megatron_config", "auto_mapping", "loftq_config")},
        "layer_replication": not _replicates_sanely(config.get("layer_replication") or []),
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            shown = json.dumps(config.get(key))[:80]
            raise ModelError(
                f"{path}: {key} is {shown}, which finesmith never writes; the adapter is damaged or not its own"
            )


def _replicates_sanely(spans: Any) -> bool:
    """Whether these are (first, last) pairs of layers that make a model of at most 1,000."""
    if not isinstance(spans, list):
        return False
    pairs = [span for span in spans if isinstance(span, list) and [type(one) for one in span] == [int, int]]
    return len(pairs) == len(spans) and all(0 <= a < b for a, b in pairs) and sum(b - a for a, b in pairs) <= 1000


def read_object(path: Path, largest: int) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one where there is no file.

    Raises ModelError when it is larger than `largest` bytes, not JSON, nested too deeply, or no object.
    """
    if not path.exists():
        return {}
    size = path.stat().st_size
    if size > largest:
        raise ModelError(f"{path} has {size:,} bytes, expected at most {largest:,}; it is no file of a model")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except RecursionError:
        raise ModelError(f"{path} is nested too deeply for a file of a model; get it from its source again") from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({str(error)[:100]}); get it from its source again") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}; make it readable") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, expected a JSON object; get it from its source again")
    return value


# --- files -----------------------------------------------------------------------------------------------------------


def _plain_files(folder: Path) -> None:
    """Refuse links out of the folder, pipes and devices; those of the hub's cache lead to its `blobs` and are fine."""
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    places = [folder, *(folder / name for name in _INNER if (folder / name).is_dir())]
    entries = [entry for place in places for entry in place.iterdir()]
    if len(entries) > MOST_FILES:
        raise ModelError(
            f"{folder} holds {len(entries):,} files, which no model folder does; name the folder of the model"
        )
    for entry in entries:
        if entry.is_symlink():
            target = Path(os.path.realpath(entry))  # a link to itself is no error here
            if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
                raise ModelError(
                    f"{entry} is a link that leads out of the model folder; put the file itself there if you trust it"
                )
        if not (entry.is_file() or entry.is_dir()):
            raise ModelError(f"{entry} is not an ordinary file; remove it from the model folder")


def _leads_out(folder: Path, value: Any) -> bool:
    """Say whether a value names a file that exists and is not in the folder; one on its author's disk is harmless."""
    if isinstance(value, list | dict):
        return any(_leads_out(folder, each) for each in (value.values() if isinstance(value, dict) else value))
    if not isinstance(value, str) or not value:
        return False
    try:
        places = [place for place in (Path(value), folder / value) if place.exists()]
    except (OSError, ValueError):
        return True
    home = folder.resolve()
    return any(not place.resolve().is_relative_to(home) and not (folder / value).is_symlink() for place in places)


# --- config.json -----------------------------------------------------------------------------------------------------


def _no_code(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / "config.json"
    if "auto_map" in config:
        from transformers import CONFIG_MAPPING

        if str(config.get("model_type")) not in CONFIG_MAPPING:
            raise ModelError(
                f"{path}: this model needs Python code of its own (auto_map), which finesmith never runs; name a model "
                "that transformers knows by itself"
            )
    for each in _sections(config):
        for key in _NAMES_CODE:
            if any(isinstance(value, str) and "/" in value for value in _leaves(each.get(key))):
                raise ModelError(
                    f"{path}: {key} is {json.dumps(each[key])[:80]}, code from a hub, which finesmith never runs; "
                    f"remove {key}"
                )
    if config.get("quantization_config"):
        raise ModelError(
            f"{path}: the weights are quantised (quantization_config), and such weights cannot be tuned; "
            "name the model they were made from"
        )
    weights = config.get("transformers_weights")
    if weights is not None and not (
        isinstance(weights, str) and Path(weights).name == weights and ".safetensors" in weights
    ):
        raise ModelError(
            f"{path}: transformers_weights is {str(weights)[:80]!r}, expected the name of a .safetensors file of this "
            "folder; remove transformers_weights"
        )


def fitting(path: Path, config: Mapping[str, Any], weights: Weights) -> None:
    """Refuse sizes far beyond what the weights hold: memory would be asked for before anyone notices.

    Raises:
        ModelError: the size is named.
    """
    sizes = {
        key: value
        for key, value in config.items()
        if _SIZE.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool)
    }
    width = max(1, *(sizes.get(key, 1) for key in ("hidden_size", "d_model", "n_embd", "dim", "emb_dim")))
    layers, inner, vocabulary = 1, 4 * width, sizes.get("vocab_size", 1)
    for key, value in sizes.items():
        if _COUNTS_LAYERS.fullmatch(key):
            most = min(MOST_LAYERS, max(weights.tensors, 1))
            layers = max(layers, value)
        elif _COUNTS_POSITIONS.fullmatch(key):
            most = LONGEST_POSITIONS
        else:
            most = (8 * weights.largest + ROOM) // width
            inner = max(inner, value) if "intermediate" in key or "inner" in key or "ffn" in key else inner
        if value > most:
            raise ModelError(
                f"{path}: {key} is {value:,}, far more than the weights beside it hold; the two do not belong "
                "together: get both from their source again"
            )
    needed = layers * (4 * width * width + 2 * width * inner) + vocabulary * width
    if needed > SHARED_LAYERS * weights.numbers + 64 * ROOM:
        raise ModelError(
            f"{path} asks for some {needed:,} numbers, the weights beside it hold {weights.numbers:,}; the two do not "
            "belong together: get both from their source again"
        )


# --- weights ---------------------------------------------------------------------------------------------------------


def _weights(folder: Path) -> Weights:
    shapes: list[Sequence[int]] = []
    for file in sorted(folder.glob("*.safetensors")):
        shapes += _header(file)
    for index in folder.glob("*.safetensors.index.json"):
        names = set(_mapping(read_object(index, SMALL_JSON).get("weight_map")).values())
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise ModelError(
                    f"{index}: weight_map names {str(name)[:80]!r}, expected files of this folder; it is damaged"
                )
    numbers = [prod(shape) for shape in shapes]
    return Weights(len(shapes), sum(numbers), max(numbers, default=0))


def _header(path: Path) -> list[Sequence[int]]:
    """Return the shape of every tensor in a safetensors file; the library that reads it checks the rest."""

    def damaged(why: str) -> ModelError:
        return ModelError(
            f"cannot load the model of {path.parent.name!r}: {path} has no good safetensors header: {why}; "
            "get the file from its source again"
        )

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(LARGEST_HEADER, size - 8):
            raise damaged(f"its length is given as {length:,} bytes in a file of {size:,}")
        raw = file.read(length)
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise damaged(f"it is not valid JSON ({str(error)[:80]})") from None
    if not isinstance(entries, dict):
        raise damaged("it is no JSON object")
    shapes: list[Sequence[int]] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        shape, place = _mapping(entry).get("shape"), _mapping(entry).get("data_offsets")
        if not (_whole(shape) and _whole(place) and len(place) == 2 and place[0] <= place[1] <= size - 8 - length):
            raise damaged(f"tensor {name[:80]!r} has no good shape or place in the file")
        if prod(shape) > 8 * (place[1] - place[0]):
            raise damaged(f"tensor {name[:80]!r} has shape {str(shape)[:60]} in {place[1] - place[0]:,} bytes")
        shapes.append(shape)
    return shapes


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _whole(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


# --- tokenizer.json --------------------------------------------------------------------------------------------------


def _bounded_steps(path: Path, part: str, steps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse steps that could multiply a text, and patterns that could take for ever on one."""
    if len(steps) > MOST_STEPS and part != "post_processor":
        raise ModelError(
            f"{path}: its {part} has {len(steps)} steps, more than any tokenizer needs; name another model"
        )
    growth = 1
    for step in steps:
        for pattern in (step.get("Regex"), _mapping(step.get("pattern")).get("Regex")):
            if isinstance(pattern, str) and slow(pattern):
                raise ModelError(
                    f"{path}: the pattern {pattern[:80]!r} of its {part} could take for ever on some texts; "
                    "name another model"
                )
        for key, longest in {"content": LONGEST_REPLACEMENT, "prepend": LONGEST_REPLACEMENT}.items():
            if part == "normalizer" and isinstance(step.get(key), str):
                growth *= max(1, len(step[key]))
                if len(step[key]) > longest:
                    growth = MOST_GROWTH + 1
        charsmap = step.get("precompiled_charsmap")
        if isinstance(charsmap, str):
            growth *= 1 + len(charsmap) // LONGEST_CHARSMAP * MOST_GROWTH
        if isinstance(step.get("ids"), list) and len(step["ids"]) > MOST_TEMPLATE_IDS:
            growth = MOST_GROWTH + 1
    if growth > MOST_GROWTH:
        raise ModelError(f"{path}: its {part} could make a text many times longer; name another model")


def _sections(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object in a JSON value, the outermost first."""
    waiting = [value]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, dict):
            yield each
        waiting += [inner for inner in _inside(each) if isinstance(inner, dict | list)]


def _inside(value: Any) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in _inside(value):
            yield from _leaves(inner)
    else:
        yield value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
