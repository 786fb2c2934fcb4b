"""Studies: variants of recipes over seeds, measured on development rows. Test rows are not read."""
