"""Measurements of tmkd beside other tools: speed on the same weights and pairs, answers, the server under load.

Contestants are processes. Other tools run in Python environments of their own where their dependencies differ.
Contestants take turns, so that a machine that slows down slows all of them.
"""
