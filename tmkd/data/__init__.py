"""Pairs: the record, readers, splits, decontamination, tasks, pool sources and mining. No torch."""
