"""Pictures: panels of predictions, contact sheets, and the page that shows a run."""
