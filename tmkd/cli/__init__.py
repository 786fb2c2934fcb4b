"""The command line: one file a group of commands. It holds no logic."""
