"""Where and how a model is computed: device, software checks, placement, precision, use without a trace."""
