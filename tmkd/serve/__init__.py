"""`tmkd serve`: ranks passages and answers questions over HTTP. Only a teacher's process imports PyTorch.

The way of a pair: `app` (routes) -> `body` (read and check) -> `queueing` (one queue, batches across requests) ->
`scorer_process` (starts and watches the scoring process) -> `worker` (that process). `settings` holds every limit.
"""
