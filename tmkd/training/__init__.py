"""Training: one loop, losses, targets, auxiliary objectives. It knows nothing of tasks and workspaces."""
