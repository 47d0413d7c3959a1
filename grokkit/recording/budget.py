"""What a run costs in dollars: seconds of all attempts times the price of an hour, and a budget that stops it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grokkit.errors import UsageError

PRICE_VARIABLE = "GROKKIT_PRICE"
HOUR = 3600.0


@dataclass(frozen=True)
class Budget:
    """What an hour of the machine costs, and how much may be spent. Neither is a choice of the run: they stand in
    status.json, not in the config, and no hash depends on them.

    Args:
        price: dollars an hour; None: unknown.
        budget: dollars that a run may cost over all its attempts; None: no limit.
    """

    price: float | None = None
    budget: float | None = None

    @classmethod
    def of(cls, price: float | None = None, budget: float | None = None) -> Budget:
        """The purse with these numbers, checked; without a price, with that of the environment variable GROKKIT_PRICE.

        Raises:
            UsageError: a price below 0, or a budget that is not above 0.
        """
        if price is None:
            price = _price_of_environment()
        if price is not None and not (math.isfinite(price) and price >= 0):
            raise UsageError(f"`price` must be dollars an hour, at least 0; got {price}")
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            raise UsageError(f"`budget` must be dollars, above 0; got {budget}")
        return cls(price, budget)

    def needs_price(self) -> None:
        """Raise UsageError where there is a budget and no price to count with."""
        if self.budget is not None and self.price is None:
            raise UsageError(
                f"a budget needs a price: say --price 0.28 (dollars an hour), or set {PRICE_VARIABLE} to it"
            )

    def shared(self, runs: int, at_once: int = 1) -> Budget:
        """One run's part of it, where `runs` runs are paid from it, `at_once` of them on the machine at a time."""
        return Budget(
            None if self.price is None else self.price / at_once, None if self.budget is None else self.budget / runs
        )


def _price_of_environment() -> float | None:
    text = os.environ.get(PRICE_VARIABLE, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{PRICE_VARIABLE} must be dollars an hour, such as 0.28; got {text!r}") from None


@dataclass(frozen=True)
class CostTracker:
    """What a run has cost: that of earlier attempts, and an hour's price from here on.

    Args:
        price: dollars an hour in this attempt; None: unknown.
        seconds: of the earlier attempts.
        spent: dollars of the earlier attempts that had a price; None where none had one.
    """

    price: float | None
    seconds: float = 0.0
    spent: float | None = None

    @classmethod
    def resume(cls, status: Mapping[str, Any], price: float | None = None) -> CostTracker:
        """The bill of a run with this status; without a new price, an hour costs what it cost in the last attempt."""
        before = sum((status.get("costs") or {}).values())
        return cls(status.get("price") if price is None else price, before, status.get("spent"))

    def after(self, seconds: float) -> float | None:
        """Dollars when the run has taken `seconds` over all attempts; seconds without a price count as none. None where
        no attempt had a price."""
        if self.price is None:
            return self.spent
        return (self.spent or 0.0) + self.price * (seconds - self.seconds) / HOUR


def format_dollars(value: float) -> str:
    """`$1,234.50`, or two digits of what is less than a dime: `$0.0042`."""
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${parse_amount(value)}"


def parse_amount(value: float) -> str:
    """`dollars` as a flag takes it: no sign, no comma."""
    return f"{value:.2f}" if value >= 0.1 else f"{float(f'{value:.1e}'):.12f}".rstrip("0")


def get_spent(status: Mapping[str, Any]) -> float:
    """Dollars in a run's status; 0 where it had no price."""
    return float(status.get("spent") or 0.0)
