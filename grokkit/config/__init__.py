"""The configuration of a training run, overrides from the command line, and the recording schedule."""
