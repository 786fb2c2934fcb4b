"""The steps of a run, one file each. A finished step is never done again."""
