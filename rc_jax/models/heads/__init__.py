"""One module for each segmentation head: ``Stages -> Outputs``."""
