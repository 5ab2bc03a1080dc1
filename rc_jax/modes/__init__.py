"""One module for each value of ``--mode``, named like it."""
