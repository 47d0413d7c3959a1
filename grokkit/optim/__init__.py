"""Optimizers by name, weight decay that the rate does not change, and the scheduler that follows a policy."""
