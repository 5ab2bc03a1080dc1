"""Convolution, pooling, resampling and batch norm statistics, in the form that each platform computes fastest."""
