"""From counts to the density of region boundaries: how far a frame of P random directions reaches."""

from __future__ import annotations

import math
from functools import lru_cache

from scipy.integrate import quad


@lru_cache
def mean_reach(directions: int, size: int) -> float:
    """E max_p |<n, v_p>| for a unit vector n and P orthonormal directions, uniform (Haar) in D dimensions.

    <n, v_1>, ..., <n, v_P> are P coordinates of a uniform unit vector, that is, of g / |g| with g standard normal; the
    direction of g is independent of its length, so the mean is E max_p |g_p| / E |g| with
    E max_p |g_p| = integral over t > 0 of 1 - erf(t / sqrt 2)^P, and E |g| = sqrt 2 Gamma((D + 1) / 2) / Gamma(D / 2).
    For P = 1 it is Gamma(D / 2) / (sqrt(pi) Gamma((D + 1) / 2)).
    """
    # above 40 standard deviations nothing is left of the integrand, also for the largest P
    largest, _ = quad(lambda t: -math.expm1(directions * math.log(math.erf(t / math.sqrt(2)))), 0, 40, limit=200)
    return largest / math.sqrt(2) * math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2))
