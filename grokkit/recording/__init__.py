"""Writing a trajectory from any training loop: recorder, instruments, signal, resume state, timers, budget."""
