"""Chat rows to token ids and labels: finesmith beside TRL's SFTTrainer.

    python bench/prepare_chat.py                      # 20,000 rows, 3 rounds; needs trl: pip install trl
    python bench/prepare_chat.py --rows 2000 --peer-rows 500 --rounds 1
    python bench/prepare_chat.py --peer-processes 2   # TRL with dataset_num_proc=2; its default is one
    python bench/prepare_chat.py --rows 200000 --peer-rows 0 --rounds 1   # finesmith alone: its peak memory

The rows are the problems of gsm8k and the instructions, conversations and preferred answers of LLaMA-Factory's demo
files, from one to seven rounds; where they do not suffice they come again with a number before the question, so that no
two are equal. finesmith finds the format, reads and checks the rows and renders them. TRL prepares the same rows when
its trainer is made around a model of one layer; the time of making the trainer around a single row is taken off. Both
clocks run from rows in memory (TRL: in its Arrow table) to ids and labels, with all libraries imported before.

Both use one template (Llama 3's turns) and one byte-level tokenizer of 32,000 pieces, made here from the corpora. TRL
learns from assistant turns with `assistant_only_loss`, for which its template needs `generation` marks; finesmith gets
the same template with them. Both must have made the same ids and labels, which is checked row by row. Both may use all
cores. TRL's time for a row does not depend on how many there are; `--peer-rows` lets it prepare only the first ones.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("FINESMITH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% generation %}{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim }}"
    "{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|pad|>"]
ROLES = {"system": "system", "human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="rows that finesmith prepares")
    parser.add_argument("--peer-rows", type=int, default=20_000, help="of them, how many TRL prepares")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-processes", type=int, default=None, help="TRL's dataset_num_proc")
    given = parser.parse_args()
    rows = chats(given.rows)
    peer = rows[: min(given.peer_rows, given.rows)]
    tokenizer = make_tokenizer()
    rates: dict[str, list[float]] = {"finesmith": [], "trl": []}
    before = peak_memory()
    for _ in range(given.rounds):
        seconds, rendered = prepare(rows, tokenizer)
        rates["finesmith"].append(len(rows) / seconds)
        print(f"finesmith: {len(rows):,} rows in {seconds:.2f} s; {rendered.told()}", flush=True)
        if not peer:
            print(json.dumps({"peak_mb": peak_memory(), "peak_mb_before": before, "tokens": rendered.rows.tokens.size}))
            continue
        seconds, dataset = prepare_with_trl(peer, tokenizer, given.peer_processes)
        rates["trl"].append(len(peer) / seconds)
        print(f"      trl: {len(peer):,} rows in {seconds:.2f} s", flush=True)
        compare(rendered.rows, dataset)
    if not peer:
        return
    mine, its = (statistics.median(rates[side]) for side in ("finesmith", "trl"))
    print(f"{len(peer):,} rows have identical ids and labels; {mine:,.0f} rows/s against {its:,.0f}")
    print(json.dumps({"rows_per_second": round(mine), "rows_per_second_ratio": round(mine / its, 2)}))


def peak_memory() -> int:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def chats(count: int) -> list[dict[str, Any]]:
    """Return so many different conversations as messages."""
    data = SHARED / "data"
    if not data.is_dir():
        raise SystemExit(f"needs the shared data folder ({data} is absent; set FINESMITH_SHARED)")
    found: list[list[dict[str, str]]] = []
    for name in ("train", "test"):
        for line in (data / "gsm8k" / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            found.append(exchange(row["question"], row["answer"]))
    folder = data / "instruct_llamafactory"
    for name in ("alpaca_en_demo", "identity"):
        for row in json.loads((folder / f"{name}.json").read_text()):
            found.append(exchange("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]))
    for row in json.loads((folder / "dpo_en_demo.json").read_text()):
        found.append(turns([*row["conversations"], row["chosen"]]))
    for row in json.loads((folder / "kto_en_demo.json").read_text()):
        found.append([{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]])
    for row in json.loads((folder / "glaive_toolcall_en_demo.json").read_text()):
        if all(turn["from"] in ROLES for turn in row["conversations"]):
            found.append(turns(row["conversations"]))
    rows = []
    for number in range(count):
        again, place = divmod(number, len(found))
        messages = [dict(message) for message in found[place]]
        if again:
            messages[0]["content"] = f"{again}. {messages[0]['content']}"
        rows.append({"messages": messages})
    return rows


def exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def turns(given: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in given]


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with lzma.open(SHARED / "corpora" / "english.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read(6_000_000)
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(text.split("\n"), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=engine, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[-1]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def prepare(rows: list[dict[str, Any]], tokenizer: Any) -> tuple[float, Any]:
    import numpy  # noqa: F401

    from finesmith.data.chat import refuse
    from finesmith.data.chat_formats import convert, detect
    from finesmith.data.chat_template import own_template
    from finesmith.data.render import render

    began = time.perf_counter()
    where = [f"row {number}" for number in range(1, len(rows) + 1)]
    converted = convert(rows, detect(rows), where)
    refuse(converted.faults, len(rows))
    template = own_template(tokenizer.chat_template, tokenizer)
    rendered = render(converted.conversations, template, tokenizer, where)
    refuse(rendered.faults, len(rows))
    return time.perf_counter() - began, rendered


def prepare_with_trl(rows: list[dict[str, Any]], tokenizer: Any, processes: int | None) -> tuple[float, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import trl
    from datasets import Dataset, disable_progress_bars
    from transformers import LlamaConfig, LlamaForCausalLM

    disable_progress_bars()
    print(f"      trl: version {trl.__version__}", flush=True)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.SFTConfig(
            output_dir=folder, report_to=[], use_cpu=True, bf16=False, max_length=None, assistant_only_loss=True,
            shuffle_dataset=False, dataset_num_proc=processes,
        )  # fmt: skip
        took = []
        for some in (rows[:1], rows):
            dataset = Dataset.from_list(some)
            began = time.perf_counter()
            trainer = trl.SFTTrainer(model, settings, train_dataset=dataset, processing_class=tokenizer)
            took.append(time.perf_counter() - began)
        return took[1] - took[0], trainer.train_dataset


def compare(mine: Any, its: Any) -> None:
    """Stop unless the peer made the same ids and labels, which it shifts later."""
    import numpy as np

    for number, row in enumerate(its):
        tokens, targets = mine.row(number)
        labels = np.array(row["labels"])
        if tokens.tolist() != row["input_ids"] or targets[:-1].tolist() != labels[1:].tolist():
            raise SystemExit(f"the sides made different ids or labels of row {number + 1}")


if __name__ == "__main__":
    main()
