"""Ratios of cost, measured side by side: `make bench`. Never part of the tests: a time is not a truth."""
