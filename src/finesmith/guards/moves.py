"""Probes of what moves in a step: every trainable tensor, and nothing that is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from finesmith.guards.preflight import Probed
from finesmith.guards.trials import undone
from finesmith.train.step import LossSum, backward

if TYPE_CHECKING:
    from torch import Tensor, nn

    from finesmith.train.adamw import Optimizer
    from finesmith.types import Batch

REMEDY = "Some weights get no gradient: check method.lora.target_modules and method.freeze_layers"
# A weight w shows a change of more than |w| times this in float32.
VISIBLE = 2.0**-22
SHOWN = 3


class Watch:
    """Looks at the weights before the first step of training and after it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = {name: checksum(p) for name, p in module.named_parameters()}

    def probed(self, optimizer: Optimizer, again: Callable[[], Probed]) -> Probed:
        """Check after the first step, its gradients still there, that what is trainable moved and nothing else did.

        A tensor whose gradient is so small, or whose weights are so large, that float32 shows no change has moved. One
        step may leave a tensor at rest by chance, or because what follows it is still zero: `again` looks once more.
        """
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        trainable, idle, moved, unknown = 0, [], [], []
        named = dict(self._module.named_parameters())
        for name, parameter in named.items():
            same = checksum(parameter) == self._before[name]
            if not parameter.requires_grad:
                moved += [] if same else [name]
                continue
            trainable += 1
            if id(parameter) not in rates:
                unknown.append(name)
            elif parameter.grad is None or not bool(parameter.grad.any()):
                idle += [] if may_rest(name) or _waits(name, named) else [name]
            elif same and _would_show(parameter, rates[id(parameter)]):
                idle.append(name)
        if idle and not moved and not unknown:
            return again()
        return _told(trainable, idle, moved, unknown, "the first step")


def checksum(tensor: Tensor) -> int:
    """Return a sum over the bits of a tensor: another one as soon as a number changes, but by a strange coincidence."""
    import torch

    flat = tensor.detach().reshape(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8
    aligned = flat[:whole].data_ptr() % 8 == 0
    total = int((flat[:whole] if aligned else flat[:whole].clone()).view(torch.int64).sum())
    return total + int(flat[whole:].long().sum())


def _would_show(parameter: nn.Parameter, rate: float) -> bool:
    """Whether a step of Adam from nothing must have changed a number of this tensor."""
    assert parameter.grad is not None
    size = parameter.grad.abs()
    return bool(((rate * size / (size + 1e-8)) > 2 * VISIBLE * parameter.detach().abs()).any())


def every_tensor_learns(
    module: nn.Module, loss_sum: LossSum, batches: Sequence[Batch], make_optimizer: Callable[[], Optimizer]
) -> Probed:
    """Check in a trial step, which is undone, that what is trainable gets a gradient and moves, and nothing else does.

    Weight decay alone moves a matrix too, and teaches it nothing.
    """
    import torch

    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    told: set[str] = set()
    with undone(module, list(module.parameters())):
        module.train()
        optimizer = make_optimizer()
        units = sum(len(batch.lengths) for batch in batches)
        # Up to two steps: an adapter's second factor starts at zero, so the first one has no gradient before it moved.
        for _ in range(2):
            module.zero_grad(set_to_none=True)
            backward(loss_sum, batches, units, lambda _: None)
            told |= {name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}
            optimizer.step()
            same = {name for name, p in module.named_parameters() if torch.equal(p, before[name])}
            idle = [name for name in trainable if (name in same or name not in told) and not may_rest(name)]
            if not idle:
                break
        moved = [name for name, p in module.named_parameters() if not p.requires_grad and name not in same]
    return _told(len(trainable), idle, moved, [], "a trial step (undone)")


def _told(trainable: int, idle: Sequence[str], moved: Sequence[str], unknown: Sequence[str], when: str) -> Probed:
    evidence = f"{trainable - len(idle) - len(unknown)} of {trainable} trainable tensors moved in {when}"
    for what, names in (("at rest", idle), ("frozen but moved", moved), ("not in the optimiser", unknown)):
        if names:
            evidence += f"; {what}: {', '.join(names[:SHOWN])}"
    return Probed("every tensor learns", not (idle or moved or unknown) and trainable > 0, evidence, REMEDY)


def may_rest(name: str) -> bool:
    """Whether a tensor may get no gradient by construction.

    Token types and positions never used, a pooler that no head reads, a mask's vector without a mask, experts that no
    token of a batch was sent to, and the biases of keys, which shift all of a query's scores alike and change nothing.
    """
    resting = ("token_type_embeddings", "position_embeddings", "pooler", "mask_emb", ".experts.", "trainable_tokens")
    keys = ("key.bias", "k_proj.bias", "k_lin.bias", "key_proj.bias", "attn.k.bias")
    return any(part in name for part in resting) or name.endswith(keys)


def _waits(name: str, named: dict[str, nn.Parameter]) -> bool:
    """Whether a first factor of LoRA had no gradient because its second one was still zero."""
    partner = named.get(name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B"))
    return partner is not None and partner is not named[name] and partner.grad is not None and bool(partner.grad.any())
