"""From runs to tables: any number of runs flattened to one tidy frame."""
