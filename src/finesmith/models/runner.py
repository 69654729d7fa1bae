"""Run a language model token by token: a batch with its key-value cache, or one sequence by itself without any."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError
from finesmith.models.forward import OFFSET_POSITIONS, Network

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class Runner:
    """A causal or encoder-decoder model of transformers, plain or wrapped by peft, as generation needs it.

    vocabulary: how many token ids it can read. context: the most positions it has, or None where it has no limit;
    start: what its decoder begins with, empty for a causal model. pads: whether prompts of unequal length may share a
    batch; where not, the caller must bring equal lengths together.
    """

    def __init__(self, model: Network | nn.Module) -> None:
        self.module: nn.Module = model.module if isinstance(model, Network) else model
        self.inner, learned_prompt = _inside(self.module)
        config = self.inner.config
        parameters = inspect.signature(self.inner.forward).parameters
        self.two_part = bool(config.is_encoder_decoder)
        self.vocabulary = int(_embedding(self.inner).shape[0])
        self.context = _context_of(config.to_dict(), config.get_text_config().to_dict())
        self.start = decoder_start(self.inner) if self.two_part else ()
        # peft lays the vectors of a learned prompt before whatever it is given, so nothing before it can be kept.
        self.cached = not learned_prompt
        self.pads = not learned_prompt and (self.two_part or "position_ids" in parameters)
        if isinstance(model, Network):
            self.pads = self.pads and not model.grouped
        self._positions = self.pads and not self.two_part
        self._first_position = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
        self._chooses_logits = "logits_to_keep" in parameters

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Run without gradients, dropout and ragged attention; afterwards everything is as it was."""
        import torch

        training = {name for name, part in self.module.named_modules() if part.training}
        before = self.inner.config._attn_implementation
        try:
            self.module.eval()
            if before is not None and before.startswith("finesmith"):
                self.inner.set_attn_implementation("sdpa")
            with torch.no_grad():
                yield
        finally:
            if before is not None and before.startswith("finesmith"):
                self.inner.set_attn_implementation(before)
            for name, part in self.module.named_modules():
                part.training = name in training

    def counted(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return what a repetition penalty counts besides new tokens: what they are written after."""
        return self.start if self.two_part else prompt

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[Rows, Tensor]:
        """Read the prompts; return the batch and the logits of each first new token, [B, V]."""
        import torch

        lengths = torch.tensor([len(prompt) for prompt in prompts])
        width = int(lengths.max())
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        place = torch.arange(width)
        real = place < lengths[:, None] if self.two_part else place >= width - lengths[:, None]
        ids[real] = torch.tensor([token for prompt in prompts for token in prompt])
        mask = None if bool(real.all()) else real.long().to(self.inner.device)
        rows = Rows(self, ids.to(self.inner.device), mask)
        return rows, rows.read_all(1)[:, -1]

    def alone(self, prompt: Sequence[int], new: Sequence[Sequence[int]], count: int) -> Tensor:
        """Return the logits [N, count, V] at the last `count` places of one prompt's sequences, without a cache.

        new: N continuations of one length. The last logits are for the token after prompt and continuation. A function
        of the prompt and the continuations in their order, and of nothing else.
        """
        import torch

        device = self.inner.device
        rows = Rows(self, torch.tensor([list(prompt)], device=device).expand(len(new), -1), None)
        rows.cached = False
        rows.append(torch.tensor([list(one) for one in new], dtype=torch.long, device=device))
        return rows.read_all(count)[:, -count:]

    def call(self, count: int | None, **inputs: Any) -> Any:
        """Run the model and return its output, with the logits of the last `count` places where it lets one choose."""
        if count is not None and self._chooses_logits:
            inputs["logits_to_keep"] = count
        return self.module(**{name: value for name, value in inputs.items() if value is not None}, return_dict=True)

    def encode(self, ids: Tensor, mask: Tensor | None) -> Any:
        """Run the encoder of an encoder-decoder."""
        inputs = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
        return self.inner.get_encoder()(**inputs, return_dict=True)

    def positions(self, mask: Tensor, count: int) -> Tensor | None:
        """Return the position ids of the last `count` places of rows padded on the left."""
        if not self._positions:
            return None
        return ((mask.cumsum(1) - 1).clamp_min(0) + self._first_position)[:, -count:]


class Rows:
    """The sequences of a batch while they grow: their cache, or their tokens where the model keeps no cache."""

    def __init__(self, runner: Runner, ids: Tensor, mask: Tensor | None) -> None:
        import torch

        self.runner, self.cached = runner, runner.cached
        self.cache: Any = None
        self.prompt = ids
        self.prompt_mask = mask
        self.encoded: Tensor | None = None
        self.tokens, self.mask = ids, mask
        if runner.two_part:
            self.tokens = torch.tensor([runner.start], device=ids.device).expand(len(ids), -1)
            self.mask = None

    def append(self, tokens: Tensor) -> None:
        """Lay new tokens [B, n] at the end of the sequences, without running the model."""
        import torch

        self.tokens = torch.cat([self.tokens, tokens], 1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(tokens)], 1)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token a row (int64 [B]) and return the logits after it, [B, V]."""
        self.append(tokens[:, None])
        if self.cache is None:
            return self.read_all(1)[:, -1]
        return self._read(tokens[:, None], 1)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (int64 indices, in that order; one may stand several times)."""
        self.tokens, self.prompt = self.tokens[rows], self.prompt[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        self.prompt_mask = None if self.prompt_mask is None else self.prompt_mask[rows]
        self.encoded = None if self.encoded is None else self.encoded[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def read_all(self, count: int) -> Tensor:
        """Run the model over all tokens; return the logits of at least the last `count` places."""
        return self._read(self.tokens, count)

    def _read(self, tokens: Tensor, count: int) -> Tensor:
        runner = self.runner
        options: dict[str, Any] = {"use_cache": self.cached, "past_key_values": self.cache}
        if runner.two_part:
            options |= self._encoder_inputs()
            output = runner.call(None, decoder_input_ids=tokens, **options)
        else:
            options |= {"attention_mask": self.mask, "position_ids": self._positions(tokens)}
            output = runner.call(count, input_ids=tokens, **options)
        # A model that keeps states of another kind reads everything again.
        self.cache = output.get("past_key_values") if self.cached else None
        self.cached = self.cache is not None
        return output.logits  # type: ignore[no-any-return]

    def _positions(self, tokens: Tensor) -> Tensor | None:
        import torch

        mask = self.mask if self.mask is not None else torch.ones_like(self.tokens)
        return self.runner.positions(mask, tokens.shape[1])

    def _encoder_inputs(self) -> dict[str, Any]:
        if not self.runner.cached:
            return {"input_ids": self.prompt}
        from transformers.modeling_outputs import BaseModelOutput

        if self.encoded is None:
            self.encoded = self.runner.encode(self.prompt, self.prompt_mask).last_hidden_state
        states: Any = self.encoded
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "attention_mask": self.prompt_mask}


def _embedding(model: Any) -> Tensor:
    return model.get_input_embeddings().weight  # type: ignore[no-any-return]


def _inside(module: nn.Module) -> tuple[PreTrainedModel, bool]:
    """Return the transformers model within, and whether peft lays a learned prompt before its input."""
    from transformers import PreTrainedModel

    learned_prompt, inner = False, module
    # A model can only be wrapped by peft where peft was imported, which takes seconds.
    peft: Any = sys.modules.get("peft")
    if peft is not None and isinstance(module, peft.PeftModel):
        learned_prompt, inner = bool(module.active_peft_config.is_prompt_learning), module.get_base_model()
    if not isinstance(inner, PreTrainedModel) or not inner.can_generate():
        raise ModelError(
            f"{type(inner).__name__} cannot generate text: it has no language-model head; expected a causal or "
            "encoder-decoder model of transformers, such as LlamaForCausalLM or T5ForConditionalGeneration"
        )
    return inner, learned_prompt


def _context_of(config: dict[str, Any], text: dict[str, Any]) -> int | None:
    for settings in (text, config):
        if "relative_attention_num_buckets" in settings:
            return None
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(settings.get(key), int) and settings[key] > 0:
                return int(settings[key])
    return None


def decoder_start(model: PreTrainedModel) -> tuple[int, ...]:
    """Return what a decoder begins with: its start token, and the language or BOS token that must follow it.

    Raises ModelError where the configuration does not say.
    """
    settings = {**model.config.to_dict(), **(model.generation_config or model.config).to_diff_dict()}
    start, forced = settings.get("decoder_start_token_id"), settings.get("forced_bos_token_id")
    if start is None:
        start = settings.get("bos_token_id")
    if start is None:
        raise ModelError(
            f"the configuration of {type(model).__name__} names no decoder_start_token_id, so nothing says what its "
            "answers begin with; set it in config.json"
        )
    return (int(start),) if forced is None else (int(start), int(forced))


def own_stop_tokens(model: Network | nn.Module) -> tuple[int, ...]:
    """Return the tokens that the model's own generation settings, else its configuration, say it ends with."""
    inner, _ = _inside(model.module if isinstance(model, Network) else model)
    for settings in (inner.generation_config, inner.config.get_text_config()):
        named = settings.to_dict().get("eos_token_id") if settings is not None else None
        if named is not None:
            return tuple(named) if isinstance(named, (list, tuple)) else (int(named),)
    return ()


def finite_top(logits_BV: Tensor) -> torch.Tensor:
    """Return for each row whether its logits are numbers: minus infinity shuts a token out, the rest must be finite."""
    # The greatest value is NaN where any is NaN, infinite where any is plus infinity or all are minus infinity.
    return logits_BV.amax(-1).isfinite()
