"""The classical gradient inversions.

They were made for the plain gradient of a batch. Here they invert whatever the learners' rule sends, with all of the
learner's unknown images as dummies, so their results on meta-gradients are nobody's published numbers.
"""

from typing import Any

from metaleak.attacks.inversion.from_noise import InversionFromNoise


def dlg_attack(**settings: Any) -> InversionFromNoise:
    """Return "deep leakage from gradients" (Zhu et al. 2019) with these fields of `InversionFromNoise`.

    Theirs: the squared distance of all parameters together, L-BFGS, no box, no prior on images, soft labels that are
    optimized too. Ours: the distance is divided by the observed norm, which L-BFGS does not feel beyond its first
    step; backtracking with one evaluation a step, and 1 000 of them, where they make 300 steps of up to 20 iterations
    without a line search; labels start equal instead of random; the first trial moves a pixel by 0.1 at most. Raises
    pydantic's `ValidationError` for a setting that is unknown or not allowed.
    """
    theirs = {"loss": "squared", "optimizer": "lbfgs", "boxed": False, "knows": "nothing"}
    return InversionFromNoise(**{**theirs, "rate": 0.1, "iterations": 1000, **settings})


def inverting_gradients_attack(**settings: Any) -> InversionFromNoise:
    """Return "inverting gradients" (Geiping et al. 2020) with these fields of `InversionFromNoise`.

    Theirs: the cosine of all parameters together, total variation of weight 0.1 and 4 800 steps (the defaults of
    their code; `breaching` has 0.2 and 24 000), known labels, Adam on the gradient's signs, a box, the rate divided
    by ten after 3/8, 5/8 and 7/8. Ours: pixels are not normalized, so the rate 0.1 in deviations became 0.025 and
    the start has mean 0.5 and deviation 0.25; the last point counts and not the best. Raises pydantic's
    `ValidationError` for a setting that is unknown or not allowed.
    """
    theirs = {"loss": "cosine", "total_variation": 0.1, "signed": True, "decay": "steps", "iterations": 4800}
    return InversionFromNoise(**{**theirs, "rate": 0.025, **settings})


def cosine_tv_attack(**settings: Any) -> InversionFromNoise:
    """Return cosine matching with a total variation, the baseline of R-GAP's successors (Chen & Campbell 2021).

    Theirs: cosine, total variation of weight 0.01, known labels, Adam on the gradient itself, 4 800 steps. Ours: the
    rate 0.025, its linear fall and the box, of which we have no account. Raises pydantic's `ValidationError` for a
    setting that is unknown or not allowed.
    """
    theirs = {"loss": "cosine", "total_variation": 0.01, "iterations": 4800}
    return InversionFromNoise(**{**theirs, "rate": 0.025, **settings})
