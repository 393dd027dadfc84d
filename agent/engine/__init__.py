"""Run models, each in a child process."""
