"""A run: its data, its teachers and their labels, its students, evaluation, export and report."""
