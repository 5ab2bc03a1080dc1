"""One module for each value of ``--mode``, named like it.

Each has ``FLAGS``, the flags that it reads, and ``run``, whose arguments are named like them. ``run`` returns an exit
status, or anything else for 0. A ``run`` with the argument ``command`` also gets the command line, a ``Command``.
"""

from rc_jax.fields import Flag

CONFIG = Flag(
  "config",
  "",
  "Recipe: a file or a name such as cityscapes, with :VARIANT; --config.path.to.field=value sets its fields.",
)
WORKDIR = Flag("workdir", None, "Folder of the run. Default: runs/<name of the recipe>.")
CHECKPOINT = Flag(
  "checkpoint",
  None,
  "A run's folder, one of its checkpoints, a step's number, or a file of weights. Default: the newest of --workdir.",
)
