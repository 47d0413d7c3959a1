"""Training: building a trainer from a config, the step, the loop, data-parallel ranks."""

# Nothing is imported here, so that importing a submodule stays cheap.
