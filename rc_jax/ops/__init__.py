"""Convolution, pooling, resampling and batch normalisation, in the form that each platform computes fastest."""
