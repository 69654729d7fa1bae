"""A network without a head: one vector a text, pooled from the last hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from finesmith.models.forward import DECODERS, Network, Pooling, embed

if TYPE_CHECKING:
    from torch import Tensor

    from finesmith.models.load import Base
    from finesmith.types import Batch


@dataclass(slots=True)
class Encoder(Network):
    """A network that answers with one vector a text. pooling: how it is made of those of the tokens."""

    pooling: Pooling = "mean"


def vectors(network: Network, batch: Batch) -> Tensor:
    """Return the pooled states of each text, [B, D], not normalised."""
    assert isinstance(network, Encoder)
    return embed(network, batch, network.pooling)


def pooling_of(wanted: Literal["auto", "mean", "cls", "last"], base: Base, family: str) -> Pooling:
    """Return the pooling that is wanted, or declared by the base model, or usual for its family."""
    if wanted != "auto":
        return wanted
    if base.pooling is not None:
        return cast(Pooling, base.pooling)
    return "last" if family in DECODERS else "mean"
