"""Run an encoder-decoder on ragged batches: sources and answers side by side, each padded on the right.

A row's tokens are its source and then its answer; `batch.targets` is -100 on the source and on the answer its own ids.
The decoder reads the token that answers begin with, and then the answer but for its last token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finesmith.models.probe import _tolerance, probe_batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from finesmith.models.token_heads import TokenNetwork
    from finesmith.types import Batch

WHY = "padded: an encoder-decoder attends from one text to another"
ONE_BY_ONE = "; one row at a time, because padding would change its outputs"


def seq2seq_states(network: TokenNetwork, batch: Batch) -> Tensor:
    """Return the decoder's last hidden states at each target, [S, D] in the order of the batch.

    Raises ValueError where a row has no source or no answer.
    """
    import torch

    model: Any = network.classifier
    found = []
    for inputs, places in _given(network, batch):
        encoded = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        hidden = model.get_decoder()(
            input_ids=inputs["decoder_input_ids"],
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=inputs["attention_mask"],
            use_cache=False,
        ).last_hidden_state
        found.append(hidden[places])
    return torch.cat(found)


def seq2seq_logits(network: TokenNetwork, batch: Batch) -> Tensor:
    """Return the logits of each target as the model's own forward gives them, [S, V] in the order of the batch.

    Raises ValueError where a row has no source or no answer.
    """
    import torch

    model: Any = network.classifier
    return torch.cat([model(**inputs, use_cache=False).logits[places] for inputs, places in _given(network, batch)])


def _given(network: TokenNetwork, batch: Batch) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield what the model is given, and where answers stand in what its decoder reads, bool [B, L]."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    assert batch.targets is not None
    sizes = batch.lengths.tolist()
    row = torch.repeat_interleave(torch.arange(len(sizes), device=batch.tokens.device), batch.lengths)
    counts = torch.bincount(row[batch.targets != -100], minlength=len(sizes)).tolist()
    begin = torch.full((1,), network.start[0], device=batch.tokens.device)
    sources, answers = [], []
    for tokens, count, name in zip(torch.split(batch.tokens, sizes), counts, batch.ids.tolist(), strict=True):
        if not 0 < count < len(tokens):
            raise ValueError(f"example {name} has {len(tokens) - count} tokens of source and {count} of answer")
        sources.append(tokens[:-count])
        answers.append(torch.cat([begin, tokens[-count:-1]]))
    step = 1 if network.grouped else max(1, len(sizes))
    for at in range(0, len(sizes), step):
        some, written = sources[at : at + step], answers[at : at + step]
        inputs = {
            "input_ids": pad_sequence(some, batch_first=True, padding_value=network.pad_id),
            "attention_mask": _real(some).long(),
            "decoder_input_ids": pad_sequence(written, batch_first=True, padding_value=network.pad_id),
        }
        yield inputs, _real(written)


def _real(rows: list[Tensor]) -> Tensor:
    """Return where rows padded on the right hold a token of theirs, bool [B, L]."""
    import torch

    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return torch.arange(int(lengths.max()), device=lengths.device)[None] < lengths[:, None]


def choose_parts(network: TokenNetwork) -> None:
    """Choose how an encoder-decoder runs: its head on answers only, and rows together; each if the numbers agree.

    What must be met is the model's own answer to each row alone.
    """
    import torch

    model = network.classifier
    training = model.training
    batch = _probe_rows(network)
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            network.grouped = True
            expected = seq2seq_logits(network, batch)
            network.split = _agrees(network, batch, expected)
            network.grouped = False
            together = seq2seq_logits(network, batch)
            network.grouped = float((together - expected).abs().max()) > max(1e-4, _tolerance(expected))
    finally:
        model.train(training)
    network.why = WHY + (ONE_BY_ONE if network.grouped else "")


def _agrees(network: TokenNetwork, batch: Batch, expected: Tensor) -> bool:
    """Whether the head gives the expected logits on the decoder's states alone."""
    from finesmith.models.token_heads import head_of

    try:
        head = head_of(network)
        states = seq2seq_states(network, batch)
        found: torch.Tensor = head.linear(head.before(network.classifier, states))
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return False
    if head.cap is not None:
        found = (found / head.cap).tanh() * head.cap
    return found.shape == expected.shape and float((found - expected).abs().max()) <= _tolerance(expected)


def _probe_rows(network: TokenNetwork) -> Batch:
    """Return three sequences of valid tokens, of unequal lengths, whose second halves are answers."""
    import torch

    batch = probe_batch(network)
    ends = batch.lengths.cumsum(0)
    row = torch.repeat_interleave(torch.arange(len(ends), device=ends.device), batch.lengths)
    answered = torch.arange(len(batch.tokens), device=ends.device) >= (ends - (batch.lengths + 1) // 2)[row]
    return replace(batch, targets=torch.where(answered, batch.tokens, -100))
