"""Random scale, rotation, crop, flip, blur and photometric distortion, drawn from an example's own seed."""
