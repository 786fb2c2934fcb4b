"""Models: tokenizer, batching, encoders, the student and its heads, checkpoints."""
