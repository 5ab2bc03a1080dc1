"""Reads thousands of damaged files: the command is ``python -m benchmarks.fuzz``, see ``__main__``."""
