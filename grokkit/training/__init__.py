"""Config, device, recorder and the loop. Nothing is imported here, so that a config can be read without torch."""
