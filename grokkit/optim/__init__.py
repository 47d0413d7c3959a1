"""Optimizers by name, weight decay independent of the learning rate, and `PolicyLR`, the policy scheduler."""
