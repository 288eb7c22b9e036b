"""Attention masks as plain additions, which can be differentiated twice and vectorized."""

import torch
from torch import Tensor, nn


def additive_mask(present: Tensor, dtype: torch.dtype, later: bool) -> Tensor:
    """Return what is added to the scores of attention, `(B, 1, T, T)`: 0 where a token is seen, else very little.

    `present (B, T)` tells which tokens are no padding; with `later` a token sees also those after it.
    """
    seen = present[:, None, None, :].expand(-1, 1, present.shape[1], -1)
    if not later:
        seen = seen & torch.ones(present.shape[1], present.shape[1], dtype=torch.bool, device=present.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=present.device).masked_fill(~seen, torch.finfo(dtype).min)


def sees_later_tokens(module: nn.Module) -> bool:
    """Return whether in this model of `transformers` a token sees those after it, found out by computing."""
    # Tokens of any vocabulary.
    zeros = torch.zeros(1, 3, dtype=torch.int64)
    other = torch.tensor([[0, 0, 1]])
    base: nn.Module = module.base_model  # type: ignore[assignment]
    with torch.no_grad():
        first, second = (base(input_ids=tokens).last_hidden_state[0, 0] for tokens in (zeros, other))
    return not torch.equal(first, second)
