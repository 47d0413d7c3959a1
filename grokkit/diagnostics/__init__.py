"""What is worth knowing before a run: a range test of the rate, throughput, loading, time and money."""
