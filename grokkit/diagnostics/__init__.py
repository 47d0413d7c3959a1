"""Tools to run before training: learning-rate range test, throughput, data-loader baseline, time and cost estimate."""
