"""Measurements: training, labelling, scoring and latency beside what people use today, on the same weights and rows.

Every contestant is a process of its own, in an environment of its own where its dependencies differ from ours; rounds
are interleaved, so that a machine that slows down slows all of them.
"""
