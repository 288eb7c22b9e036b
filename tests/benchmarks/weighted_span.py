"""The span test that weighs its evidence in each round where images are noisy, too.

    python tests/benchmarks/private_frontier.py --defenses noise --seeds 2 \\
        --attack '{"name": "weighted_span:WeightedSpan", "knows_defenses": true}'

`SpanTest` intersects the row spaces of a learner's gradients over the rounds where images of fixed sets are noisy.
Row spaces tell little where the first layer has fewer units than there are images; the evidence that shadow learners
weigh tells more.
"""

from metaleak.attacks.rounds import Round
from metaleak.attacks.span.span_test import SpanTest


class WeightedSpan(SpanTest):
    """A `SpanTest` with `weighted_over_rounds` for noisy images of fixed sets, too."""

    def _noise_on_fixed_sets(self, round: Round) -> tuple[float, float]:
        return 0.0, 0.0
