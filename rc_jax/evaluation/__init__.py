"""Scores of a split by the rules of its data set, their files, and intervals over images."""
