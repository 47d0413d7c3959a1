"""Device selection and GPU checks, tensor placement, precision, and measuring a model with its state preserved."""
