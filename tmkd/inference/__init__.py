"""Inference without torch: score pairs with an exported student."""
