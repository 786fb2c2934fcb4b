"""Teachers: slow, accurate models (or columns of scores) whose logits the student learns."""
