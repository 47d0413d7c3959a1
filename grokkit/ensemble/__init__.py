"""Many seeds of one config at once: one stacked update, or processes beside each other."""
