"""Log writers: where a run logs its scalars besides ``metrics.jsonl``.

A writer is one file here, or elsewhere, and one line in ``LOG_WRITERS``; ``docs/adding/log_writer.md`` shows one.
"""

import importlib.util
from collections.abc import Callable

import jax

from rc_jax.fields import require
from rc_jax.training.event_log import EventLog
from rc_jax.training.log_writers.log_writer import LoggedRun, LogWriter
from rc_jax.training.log_writers.mlflow_run import MlflowRun
from rc_jax.training.log_writers.wandb_run import WandbRun

LOG_WRITERS: dict[str, Callable[[LoggedRun], LogWriter]] = {
  "tensorboard": lambda run: EventLog(run.workdir / "tensorboard", run.first_step),
  "wandb": WandbRun,
  "mlflow": MlflowRun,
}
# Writers whose package has their name, and so has the extra that installs it.
_EXTRAS = ("wandb", "mlflow")


def writer_names(log_to: str) -> tuple[str, ...]:
  """Returns the names in the field ``train.log_to``.

  >>> writer_names("tensorboard, tensorboard"), writer_names("")
  (('tensorboard',), ())

  Raises:
    ValueError: a name is no key of ``LOG_WRITERS``, or its package is not installed; one line.
  """
  names = tuple(dict.fromkeys(name.strip() for name in log_to.split(","))) if log_to.strip() else ()
  expected = f"names separated by commas, of {', '.join(LOG_WRITERS)}"
  require(all(name in LOG_WRITERS for name in names), "train.log_to", log_to, expected)
  for name in _EXTRAS if jax.process_index() == 0 else ():
    if name in names and importlib.util.find_spec(name) is None:
      raise ValueError(
        f"config.train.log_to: is {log_to!r}, but {name} is not installed; run: pip install 'rc_jax[{name}]', or "
        "leave it out"
      )
  return names


__all__ = ["LOG_WRITERS", "LogWriter", "LoggedRun", "writer_names"]
