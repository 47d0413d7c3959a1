"""Many runs overnight: a file that names them, a queue on this machine or on a Ray cluster, a report in the morning."""
