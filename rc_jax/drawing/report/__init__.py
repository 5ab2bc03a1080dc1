"""The page that shows a run: one HTML file with its charts, pictures, styles and script."""
