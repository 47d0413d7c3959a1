"""Expected largest projection of a unit vector on P random directions: the known part of LC's growth with P."""

from __future__ import annotations

import math
from functools import lru_cache

from grokkit.errors import UsageError


@lru_cache
def expected_max_projection(directions: int, size: int) -> float:
    """Compute kappa(P, D) = E max_p |<n, v_p>| for orthonormal v_1..v_P and n uniform on the unit sphere of R^D.

    To first order a unit is crossed if |z| < r max_p |<grad z, v_p>|. If gradients have no preferred direction, the
    mean count is proportional to r kappa times the density of boundaries, so LC / (r kappa) does not depend on P.

    n = g / |g| for a standard Gaussian g, whose length is independent of n. Hence kappa = E max_{p<=P} |g_p| / E |g|,
    with E max = integral over x > 0 of 1 - erf(x / sqrt 2)^P (by quadrature, relative error below 1e-8) and
    E |g| = sqrt 2 Gamma((D + 1) / 2) / Gamma(D / 2). For large P it approaches sqrt(2 ln(2 P) / D) from below.

    Args:
        directions: P, 1..size.
        size: D, the dimension of the input space.

    Raises:
        UsageError: `directions` is not in 1..size.

    >>> round(expected_max_projection(1, 1), 6), round(expected_max_projection(20, 784), 4)
    (1.0, 0.0774)
    """
    if not 1 <= directions <= size:
        raise UsageError(f"`directions` must be an int in 1..{size} (the input's size); got {directions!r}")
    from scipy.integrate import quad
    from scipy.special import erf

    # beyond 12 standard deviations the integrand is below P * 1e-32
    largest: float = quad(
        lambda x: 1 - erf(x / math.sqrt(2)) ** directions, 0, 12, epsabs=1e-12, epsrel=1e-10, limit=200
    )[0]
    length = math.sqrt(2) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2))
    return largest / length
