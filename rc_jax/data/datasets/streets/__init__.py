"""The procedural street scenes of the synthetic data set."""
