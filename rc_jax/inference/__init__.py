"""Labels and class probabilities of images: at once or by sliding window, over scales and mirror images."""
