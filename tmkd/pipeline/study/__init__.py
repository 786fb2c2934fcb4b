"""Studies: variants of recipes over seeds, measured on the development set. The test set is not read."""
