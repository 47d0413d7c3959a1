"""Turn recorded runs into tables, comparisons and exports."""
