"""The cost of a run in dollars (seconds of all attempts times the hourly price), and a budget that stops the run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grokkit.errors import UsageError

PRICE_VARIABLE = "GROKKIT_PRICE"
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Budget:
    """The hourly price of the machine and the limit on spending. Neither is part of the config: they are stored in
    status.json, and no hash depends on them.

    Args:
        price: dollars per hour; None: unknown.
        budget: dollars that a run may cost over all its attempts; None: no limit.
    """

    price: float | None = None
    budget: float | None = None

    @classmethod
    def create(cls, price: float | None = None, budget: float | None = None) -> Budget:
        """Create a validated budget; `price` defaults to the environment variable GROKKIT_PRICE.

        Raises:
            UsageError: a price below 0, or a budget that is not above 0.
        """
        if price is None:
            price = _read_price_variable()
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise UsageError(f"`price` must be dollars per hour, at least 0; got {price}")
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            raise UsageError(f"`budget` must be dollars, above 0; got {budget}")
        return cls(price, budget)

    def require_price(self) -> None:
        """Raise UsageError if there is a budget but no price to compute the cost with."""
        if self.budget is not None and self.price is None:
            raise UsageError(
                f"a budget needs a price: pass --price in dollars per hour, such as 0.28, or set {PRICE_VARIABLE}"
            )

    def split(self, runs: int, at_once: int = 1) -> Budget:
        """Return one run's share of the budget if `runs` runs share it, `at_once` of them on the machine at a time."""
        return Budget(
            None if self.price is None else self.price / at_once, None if self.budget is None else self.budget / runs
        )


def _read_price_variable() -> float | None:
    text = os.environ.get(PRICE_VARIABLE, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{PRICE_VARIABLE} must be dollars per hour, such as 0.28; got {text!r}") from None


@dataclass(frozen=True)
class CostTracker:
    """The cost of a run: the total of its earlier attempts, and the hourly price of this one.

    Args:
        price: dollars per hour in this attempt; None: unknown.
        seconds: seconds of the earlier attempts.
        spent: dollars of the earlier attempts that had a price; None if none had one.
    """

    price: float | None
    seconds: float = 0.0
    spent: float | None = None

    @classmethod
    def resume(cls, status: Mapping[str, Any], price: float | None = None) -> CostTracker:
        """Create the tracker of a run with this status; `price` defaults to that of the last attempt."""
        before = sum((status.get("costs") or {}).values())
        return cls(status.get("price") if price is None else price, before, status.get("spent"))

    def dollars_after(self, seconds: float) -> float | None:
        """Return the dollars spent once the run has taken `seconds` over all attempts; None if no attempt had a price.

        Seconds of attempts without a price cost nothing.
        """
        if self.price is None:
            return self.spent
        return (self.spent or 0.0) + self.price * (seconds - self.seconds) / SECONDS_PER_HOUR


def format_dollars(value: float) -> str:
    """Return `$1,234.50`, or two significant digits for less than 10 cents: `$0.0042`."""
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${format_amount(value)}"


def format_amount(value: float) -> str:
    """Return dollars in the form of a command-line argument: no dollar sign, no comma."""
    return f"{value:.2f}" if value >= 0.1 else f"{float(f'{value:.1e}'):.12f}".rstrip("0")


def get_spent(status: Mapping[str, Any]) -> float:
    """Return the dollars in a run's status; 0 if it had no price."""
    return float(status.get("spent") or 0.0)
