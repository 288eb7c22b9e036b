"""Privacy accounting: which epsilon a noise multiplier buys, and the other way round, by `dp-accounting`.

Everywhere a *noise multiplier* is the standard deviation of the noise divided by the L2 distance that it has to hide
(the sensitivity), and two inputs are neighbors when one *replaces* the other: the server knows who takes part, so
that nothing could hide a learner's presence, only what the learner holds.

`dp_accounting` is imported where it is used: it takes a second, which every process that only defends would pay.
"""

import math
from functools import lru_cache

_ROUNDING_UP = 1 + 1e-9


@lru_cache(maxsize=1024)
def gaussian_epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Return the epsilon at `delta` of `releases` Gaussian releases about the same data, to about 1e-12.

    `noise_multiplier` >= 0 (0 gives infinity), `releases` >= 1, `delta` in (0, 1). Each release may depend on those
    before. Exact, not a bound: k releases with multiplier z are as one with z / sqrt(k) (Dong, Roth and Su 2022,
    "Gaussian Differential Privacy", corollary 3.3), and that one has the closed form of Balle and Wang 2018
    ("Improving the Gaussian Mechanism", theorem 8). Raises `ValueError` outside these ranges.

    Example:
        >>> round(gaussian_epsilon(3.8, releases=40, delta=1e-5), 3)
        7.99
    """
    _check(noise_multiplier >= 0, "noise_multiplier", noise_multiplier, "at least 0")
    _check_run(releases, delta)
    import dp_accounting

    return float(dp_accounting.get_epsilon_gaussian(noise_multiplier / math.sqrt(releases), delta))


@lru_cache(maxsize=1024)
def gaussian_noise_multiplier(epsilon: float, releases: int, delta: float) -> float:
    """Return the least noise multiplier whose `releases` Gaussian releases are (`epsilon`, `delta`)-private.

    The inverse of `gaussian_epsilon`, rounded up by a factor of 1 + 1e-9. `epsilon` in (0, 10 000]. Raises
    `ValueError` outside the ranges.

    Example:
        >>> round(gaussian_noise_multiplier(8.0, releases=40, delta=1e-5), 3)
        3.796
    """
    _check(0 < epsilon <= 10_000, "epsilon", epsilon, "in (0, 10000]")
    _check_run(releases, delta)
    import dp_accounting

    return float(dp_accounting.get_sigma_gaussian(epsilon, delta)) * math.sqrt(releases) * _ROUNDING_UP


@lru_cache(maxsize=1024)
def secure_sum_epsilon(noise_multiplier: float, sampling_probability: float, rounds: int, delta: float) -> float:
    """Return an upper bound on the epsilon at `delta` of `rounds` noisy sums over learners sampled in secret.

    It may be used only where all of this holds; otherwise take `gaussian_epsilon` of what a learner sends:

    - the adversary sees one sum a round and no learner's own message (secure aggregation);
    - each learner joins each round independently with `sampling_probability` (Poisson sampling), and the adversary
      never learns who did. A server that samples by itself, as `MetaLearner` does, knows: then the probability is 1;
    - the sum's noise is Gaussian, its standard deviation `noise_multiplier` times twice the clipping norm, whoever
      joins. Where n learners each add their share, each with multiplier z, it is z * sqrt(n) with the *least* number
      of learners that the adversary does not control and that answer in any round.

    Two worlds are neighbors when one learner holds other data. `noise_multiplier` >= 0, `sampling_probability` in
    (0, 1], `rounds` >= 1, `delta` in (0, 1); raises `ValueError` outside. Takes up to seconds: privacy loss
    distributions are composed numerically and rounded up (Doroshenko et al. 2022, "Connect the Dots").

    Example:
        >>> round(secure_sum_epsilon(3.8, sampling_probability=1.0, rounds=40, delta=1e-5), 3)
        7.99
    """
    _check(noise_multiplier >= 0, "noise_multiplier", noise_multiplier, "at least 0")
    _check(0 < sampling_probability <= 1, "sampling_probability", sampling_probability, "in (0, 1]")
    _check_run(rounds, delta)
    if sampling_probability == 1:
        return gaussian_epsilon(noise_multiplier, rounds, delta)
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    # The library's multiplier is in units of one learner's norm; the distance between two of them is twice that.
    release = dp_accounting.GaussianDpEvent(2 * noise_multiplier)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(sampling_probability, release), rounds)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def redrawn_epsilon(noise_multiplier: float, drawn: int, held: int, rounds: int, delta: float) -> float:
    """Return an upper bound on the epsilon at `delta` of `rounds` episodes, each drawn in secret from a shard.

    Amplification by sampling (Tombs et al. 2022; Wang, Balle and Kasiviswanathan 2019, "Subsampled Renyi Differential
    Privacy", theorem 27), for an example of a class of which `held` are in the shard and `drawn` in an episode,
    support and query set together. It may be used only where all of this holds; otherwise take `gaussian_epsilon`:

    - each round draws its examples anew, uniformly without replacement, and independently of all rounds before;
    - the adversary never learns who was drawn: the draw's key is the learner's secret, as that of its noise. Draws
      by a seed that the server has, as those of an experiment, are fixed episodes to it;
    - what a round releases of an episode is (1 / `noise_multiplier`)-GDP in each example, whichever set it is in: k
      means of multiplier z count as one of z / sqrt(k), and of the two sets the smaller multiplier counts;
    - two shards are neighbors when one example is replaced by another of its class.

    `noise_multiplier` >= 0, 1 <= `drawn` <= `held`, `rounds` >= 1, `delta` in (0, 1); raises `ValueError` outside.
    Never above that of fixed episodes.

    Example:
        >>> round(redrawn_epsilon(3.84, drawn=20, held=100, rounds=40, delta=1e-5), 3)
        3.105
    """
    _check(noise_multiplier >= 0, "noise_multiplier", noise_multiplier, "at least 0")
    _check(1 <= drawn <= held, "drawn", drawn, f"in [1, {held}], the examples of a class in the shard")
    fixed = gaussian_epsilon(noise_multiplier, rounds, delta)
    if drawn == held or not math.isfinite(fixed):
        return fixed
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    release = dp_accounting.GaussianDpEvent(noise_multiplier)
    accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(held, drawn, release), rounds)
    return min(fixed, float(accountant.get_epsilon(delta)))


def _check_run(releases: int, delta: float) -> None:
    _check(releases >= 1, "releases", releases, "at least 1")
    _check(0 < delta < 1, "delta", delta, "in (0, 1)")


def _check(good: bool, name: str, value: float, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name}: must be {allowed}, got {value}")
