"""What watches a run and says how it goes: progress in the terminal, messages to a webhook."""
