"""Where a model is computed: which device, whether its software works, numbers and memory format, and use without a trace."""
