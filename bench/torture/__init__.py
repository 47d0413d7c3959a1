"""The crash suite: writers that are killed, machines and disks that fail, damaged files, runs that are stopped."""
