"""What a workspace keeps: steps, stored labels, cached tokens."""
