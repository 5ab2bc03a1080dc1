"""Class probabilities of full images: whole or by sliding window, over scales, mirrored or not."""
