"""One few-shot task as tensors, and the type of named parameters."""

from typing import NamedTuple

from torch import Tensor

Parameters = dict[str, Tensor]
"""A model's parameters by name; a meta-gradient has the same form."""


class Episode(NamedTuple):
    """The support and the query set of one N-way K-shot Q-query task.

    Shapes: `support_inputs (N*K, C, H, W)` and `query_inputs (N*Q, C, H, W)` as floats in [0, 1];
    `support_labels (N*K,)` and `query_labels (N*Q,)` as int64 positions in [0, N). Images are ordered by
    position, so rows `[p*K, (p+1)*K)` of the support set belong to position `p`. A leading batch dimension
    on all four makes a batch of episodes.
    """

    support_inputs: Tensor
    support_labels: Tensor
    query_inputs: Tensor
    query_labels: Tensor
