"""Attention masks as plain additions, so that they can be differentiated twice and vectorized."""

import torch
from torch import Tensor, nn


def additive_mask(present: Tensor, dtype: torch.dtype, later: bool) -> Tensor:
    """Return what is added to attention scores, `(B, 1, T, T)`: 0 where a token is seen, else the lowest number.

    `present (B, T)` is true for tokens that are not padding. With `later` a token also sees those after it.
    """
    seen = present[:, None, None, :].expand(-1, 1, present.shape[1], -1)
    if not later:
        seen = seen & torch.ones(present.shape[1], present.shape[1], dtype=torch.bool, device=present.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=present.device).masked_fill(~seen, torch.finfo(dtype).min)


def sees_later_tokens(module: nn.Module) -> bool:
    """Return whether a token sees those after it in this model of `transformers`, found out by computing."""
    # Tokens of any vocabulary.
    zeros = torch.zeros(1, 3, dtype=torch.int64)
    other = torch.tensor([[0, 0, 1]])
    base: nn.Module = module.base_model  # type: ignore[assignment]
    with torch.no_grad():
        first, second = (base(input_ids=tokens).last_hidden_state[0, 0] for tokens in (zeros, other))
    return not torch.equal(first, second)
