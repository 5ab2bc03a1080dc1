"""Reads and writes parameters: checkpoints, and weight files of other projects."""
