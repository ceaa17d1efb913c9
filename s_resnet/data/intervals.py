"""Confidence intervals of proportions counted on images."""

from __future__ import annotations

import math

Z = 1.959963984540054  # the normal quantile of 95 %


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion.

    With ``p = right / images``::

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike the interval from the standard error, it stays within 0 ... 1 and is right near both ends.

    Args:
        right: how many images are right.
        images: how many images there are, n >= 1.

    Returns:
        The lower and the upper bound.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927,
    doi:10.1080/01621459.1927.10502953.
    """
    p, spread = right / images, Z * Z / images
    middle = p + spread / 2
    half = Z * math.sqrt(p * (1 - p) / images + spread / (4 * images))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if right == 0 else low), (1.0 if right == images else high)  # exact, whatever rounding would give


def paired_difference(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two proportions counted on the same images: the first minus the second.

    Where the two agree on most images, as a network and its conversion do, it is far narrower than two separate
    intervals suggest.

    Args:
        both: how many images both have right.
        first: how many only the first has right.
        second: how many only the second has right.
        neither: how many neither has right.

    Returns:
        The lower and the upper bound.

    Source: Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 1998, method 10 (Wilson intervals and a corrected phi).
    """
    images = both + first + second + neither
    one, other = both + first, both + second
    p, q = one / images, other / images
    (low, high), (floor, ceiling) = wilson(one, images), wilson(other, images)
    cross = both * neither - first * second
    corrected = max(cross - images / 2, 0.0) if cross > 0 else float(cross)
    size = math.sqrt(one * (images - one) * other * (images - other))
    phi = corrected / size if size else 0.0

    def reach(here: float, there: float) -> float:
        return math.sqrt(max(0.0, here * here - 2 * phi * here * there + there * there))

    return p - q - reach(p - low, ceiling - q), p - q + reach(high - p, q - floor)
