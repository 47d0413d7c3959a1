"""What only a GPU can tell, in stages that fit a rented hour: `make gpu`, or `python -m bench.gpu --help`."""
