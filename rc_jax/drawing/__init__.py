"""Pictures: panels of predictions, plots of a run, contact sheets."""
