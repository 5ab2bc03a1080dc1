"""Batches for training and examples for scoring, read ahead in threads or processes (Grain)."""
