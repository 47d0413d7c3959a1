"""Train many seeds of one config at once: vmapped in one process, or in parallel subprocesses."""
