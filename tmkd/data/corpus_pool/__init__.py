"""A pool mined from a corpus on disk: questions in a stream, their passages, parts that are kept, one file."""
