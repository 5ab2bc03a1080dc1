"""The progress of training on the screen: the updating line, a line for each scoring, and the time left."""

import math
import time

from rc_jax.config import Config
from rc_jax.console import UpdatingLine, duration, say
from rc_jax.training.objective import Metrics
from rc_jax.training.plan import scorings_left
from rc_jax.training.throughput import Speed

_ESTIMATE_AFTER = 10  # steps; the time of the first alone would be a poor estimate
_BAR = 20  # characters
_NOTABLE_WAIT = 0.05  # share of the time


class TrainingProgress:
  """Shows how far a run is, how fast it is and how long the rest takes."""

  def __init__(self, config: Config, terms: dict[str, float], first: int, last_miou: float | None):
    """Starts the clock of the run.

    Args:
      config: a validated config.
      terms: name -> weight of each term of the loss.
      first: updates made before the run starts or resumes.
      last_miou: the newest score of the run, in 0..1; None where it has none.
    """
    self._config, self._terms, self._first, self._last_miou = config, terms, first, last_miou
    self._began = self._start = time.monotonic()
    self._step_seconds = math.inf  # of one step, saving included
    self._scoring_seconds = 0.0  # of one scoring, the newest; 0 before the first
    self._all_scoring_seconds = 0.0
    self._estimated = False
    self._line = UpdatingLine()
    self._shown: tuple[Metrics, Speed] | None = None

  def start(self) -> None:
    """Starts the clock of the steps: the step is compiled."""
    self._start, self._all_scoring_seconds = time.monotonic(), 0.0

  def count_step(self, step: int) -> None:
    """Shows in a terminal that ``step`` was started, with the loss and the speed of the last `show`."""
    if self._shown is not None and self._line.rewrites:
      self._line.show(*self._texts(step, *self._shown))

  def show(self, step: int, metrics: Metrics, speed: Speed) -> None:
    """Shows a step that the devices have finished.

    Args:
      step: updates made.
      metrics: on the host.
      speed: of the steps since the last call.
    """
    steps = self._config.train.steps
    training = time.monotonic() - self._start - self._all_scoring_seconds
    self._step_seconds = training / (step - self._first)
    self._shown = (metrics, speed)
    self._line.show(*self._texts(step, metrics, speed))
    if not self._estimated and step - self._first >= min(_ESTIMATE_AFTER, steps - self._first):
      self._estimated = True
      if step < steps:
        self.flush()  # in a log file, first the step that the estimate is from
        say(self._estimate())

  def flush(self) -> None:
    """Clears the line of a terminal; prints the newest step in a log file, if it was not printed."""
    self._line.flush()

  def scored(self, step: int, miou: float, over: str, seconds: float) -> None:
    """Prints the line of a scoring.

    Args:
      step: updates made.
      miou: in 0..1.
      over: the number of classes that it is the mean of, ``"over 18 of 19 classes"``.
      seconds: that the scoring took.
    """
    self._scoring_seconds = seconds
    self._all_scoring_seconds += seconds
    steps, split = self._config.train.steps, self._config.eval.split
    change = "" if self._last_miou is None else f" ({100 * (miou - self._last_miou):+.2f})"
    self._last_miou = miou
    left = self.seconds_left(step)
    left_text = f", about {duration(left)} left" if step < steps and math.isfinite(left) else ""
    score = f"mIoU {100 * miou:.2f} {over} on {split}{change}"
    say(f"step {step}/{steps}: {score}, after {duration(self.elapsed())}{left_text}")

  def elapsed(self) -> float:
    """Returns the seconds since the run was started or resumed."""
    return time.monotonic() - self._began

  def seconds_left(self, step: int) -> float:
    """Returns the seconds that the rest of the run takes: its steps and, once one was timed, its scorings."""
    steps = self._config.train.steps - step
    training = steps * self._step_seconds if steps else 0.0  # 0 x infinity would be NaN
    return training + scorings_left(self._config, step) * self._scoring_seconds

  def _estimate(self) -> str:
    steps = self._config.train.steps
    rest = f"the {steps - self._first:,} steps{' left' if self._first else ''}"
    scorings = scorings_left(self._config, self._first)
    on_top = f"{scorings} scoring{'s come' if scorings > 1 else ' comes'} on top"
    return f"{rest} take about {duration((steps - self._first) * self._step_seconds)}; {on_top}"

  def _texts(self, step: int, metrics: Metrics, speed: Speed) -> tuple[str, ...]:
    """Returns the state from the longest to the shortest form; the first also stands in log files."""
    steps = self._config.train.steps
    percent = f"{100 * step // steps} %"
    done = round(_BAR * step / steps)
    left = f"{duration(self.seconds_left(step))} left"
    rate = f"{_three_digits(speed.images_per_second)} images/s"
    waits = speed.data_wait >= _NOTABLE_WAIT
    long_rate = f"{rate} ({speed.data_wait:.0%} of the time waiting for data)" if waits else rate
    short_rate = f"{rate}, data wait {speed.data_wait:.0%}" if waits else rate

    named, weighted = [], []
    for name, weight in self._terms.items():
      if name == "contrast" and step <= self._config.contrast.start_step:
        weight = 0.0
      value = float(metrics[f"loss_{name}"])
      named.append(f"{'' if weight == 1 else f'{weight:g} x '}{name} {value:.3f}")
      weighted.append(f"{weight * value:.2f}")
    loss = float(metrics["loss"])
    long_loss = f"loss {loss:.3f} = {' + '.join(named)}"
    short_loss = f"loss {loss:.2f} = {' + '.join(weighted)}"

    place = f"step {step}/{steps}"
    bar = f"[{'#' * done}{'.' * (_BAR - done)}]"
    lr = f"lr {float(metrics['learning_rate']):.2e}"
    full = ("  ".join((place, bar, percent, long_rate, left, long_loss)),) if self._line.rewrites else ()
    return (
      *full,
      f"{place} ({percent})  {long_loss}  {lr}  {long_rate}  {left}",
      f"{place} {percent}  {short_rate}  {left}  {long_loss}",
      f"{place} {percent}  {short_rate}  {left}  {short_loss}",
      f"{place} {percent}  {short_rate}  {left}  loss {loss:.2f}",
      f"{place} {percent}  {left}  loss {loss:.2f}",
      f"{place} {percent}  {left}",
      f"{step}/{steps} {percent}",
    )


def _three_digits(number: float) -> str:
  """Formats a positive number with three digits, or all before the point.

  >>> _three_digits(0.1234), _three_digits(24.13), _three_digits(5120.4)
  ('0.123', '24.1', '5120')
  """
  return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
