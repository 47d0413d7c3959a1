"""Every choice of a training run, its overrides from the command line, and the steps that are recorded."""
