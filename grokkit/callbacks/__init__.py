"""Callbacks that observe a training run: progress bar, log lines, webhook messages."""
