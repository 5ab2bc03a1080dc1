"""Where parameters come from and go to: checkpoints, and weight files of other projects."""
