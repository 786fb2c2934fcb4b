"""`tmkd serve`: questions and passages over HTTP. No PyTorch in the server, nor in the student's process.

One pair's way: `app` (routes) -> `body` (read and check) -> `queueing` (one queue, batches across requests) -> `scorer`
(the scoring process and its supervision) -> `worker` (that process). `settings` holds every limit.
"""
