"""The training objective, Eq. 5 of RegionContrast: a sum of named, weighted terms.

``L = L_pixel + sum of the extra outputs' terms + contrast_weight L_RC``, where the usual extra output is the auxiliary
head: ``L = L_pixel + 0.4 L_aux + 0.1 L_RC``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from rc_jax import losses
from rc_jax.config import Config, uses_contrast
from rc_jax.contrast.method import Contrast, ContrastiveMethod, RegionContrast
from rc_jax.models import Outputs
from rc_jax.ops import resample

Metrics = dict[str, Array]

# A value of ``contrast.method`` -> from ``config.contrast`` to the method.
METHODS: dict[str, Callable[[Config], ContrastiveMethod]] = {
  "region": lambda contrast: RegionContrast(
    scope=contrast.scope,
    centers=contrast.centers,
    temperature=contrast.temperature,
    slots=contrast.slots,
    bank_size=contrast.bank_size,
    bank_dtype=contrast.bank_dtype,
  ),
}


class Term(NamedTuple):
  """One term of the objective, ``weight * value``; its metric ``loss_<name>`` is the value, a float32 scalar."""

  name: str
  weight: float | Array
  value: Array


def contrastive_method(config: Config) -> ContrastiveMethod | None:
  """Returns the contrastive method of a config; None for the baseline.

  Raises:
    ValueError: ``contrast.method`` names none.
  """
  if not uses_contrast(config):
    return None
  name = config.contrast.method
  if name not in METHODS:
    raise ValueError(f"config.contrast.method: is {name!r}; expected one of {', '.join(map(repr, METHODS))}")
  return METHODS[name](config.contrast)


def objective(
  outputs: Outputs,
  labels: Array,
  bank: Any,
  config: Config,
  align_corners: bool,
  step: Array,
  pixel_share: Array | None = None,
) -> tuple[Array, Metrics, Any]:
  """Computes ``L = sum of weight * value`` over the terms of a batch.

  Args:
    outputs: of the network in training.
    labels: ``[B,H,W]`` int32; 255 is ignored.
    bank: of the contrastive method, as the steps before left it.
    config: a validated config.
    align_corners: ``Network.align_corners``.
    step: int32 scalar, updates made before; ``contrast.start_step`` compares with it.
    pixel_share: of a part of a batch, one of ``losses.pixel_shares``; multiplies the terms that are means over pixels,
      also in the metrics. None: these are a batch.

  Returns:
    The loss, a float32 scalar; metrics: ``loss`` and ``loss_<name>`` of each term, float32 scalars, and the statistics
    of the contrast, scalars or ``[N]``; and the keys for ``ContrastiveMethod.update``, None for the baseline.

  Raises:
    ValueError: the config has no weight for a term of the network, or no such contrastive method.

  Source: RegionContrast, Eq. 5.
  """
  terms = [*pixel_terms(outputs, labels, config.loss, align_corners, pixel_share)]
  metrics: Metrics = {}
  keys = None
  method = contrastive_method(config)
  if method is not None:
    contrast = _contrast(method, outputs, labels, bank, align_corners)
    terms.append(Term("contrast", contrast_weight(config, step), contrast.loss))
    metrics |= {f"contrast_{name}": value for name, value in contrast.stats.items()}
    keys = contrast.keys
  loss = terms[0].weight * terms[0].value
  for term in terms[1:]:
    loss = loss + term.weight * term.value
  return loss, metrics | _loss_metrics(terms, loss), keys


def contrast_weight(config: Config, step: Array) -> float | Array:
  """Returns the weight of the contrastive loss after ``step`` updates: 0 before ``contrast.start_step``."""
  weight: float = config.loss.contrast_weight
  if not config.contrast.start_step:
    return weight
  return jnp.where(step < config.contrast.start_step, 0.0, weight)


def pixel_terms(
  outputs: Outputs,
  labels: Array,
  config_loss: Config,
  align_corners: bool,
  pixel_share: Array | None = None,
) -> list[Term]:
  """Returns the pixel loss of the logits, and the terms of the extra outputs in the order of their names."""
  pixel_loss = losses.build_pixel_loss(config_loss, align_corners, pixel_share)
  terms = [Term("pixel", 1.0, pixel_loss(outputs.logits, labels))]
  # By name: a dict that has passed through a JAX transformation has its keys sorted.
  for name, extra in sorted(outputs.extra.items()):
    field = f"{extra.term}_weight"
    if field not in config_loss:
      raise ValueError(
        f"config.loss.{field}: missing, but the network's extra output {name!r} has the term {extra.term!r}; "
        "add the field to the FIELDS of its head"
      )
    loss = pixel_loss
    if extra.loss is not None:
      loss = extra.loss
      if extra.logits.ndim == 4:
        loss = losses.on_grid(extra.loss, align_corners, config_loss.class_weights, pixel_share)
    terms.append(Term(extra.term, config_loss[field], loss(extra.logits, labels)))
  return terms


def _contrast(
  method: ContrastiveMethod, outputs: Outputs, labels: Array, bank: Any, align_corners: bool
) -> Contrast:
  """Computes the contrast on the feature grid, to which labels are downsampled by nearest neighbour."""
  grid = (outputs.logits.shape[1], outputs.logits.shape[2])
  grid_labels = resample.downsample_labels(labels, grid, align_corners)  # [B,H,W] -> [B,h,w]
  return method.loss(outputs.features, outputs.logits, grid_labels, bank)


def _loss_metrics(terms: list[Term], loss: Array) -> Metrics:
  """Returns ``loss``, ``loss_<name>`` of each term, and ``loss_<name>_scaled``, the weighted value, of two."""
  zero = jnp.float32(0.0)
  # In every run, so that the columns of two runs are the same: also where nothing is supervised or contrasted.
  metrics = {"loss": loss, "loss_aux": zero, "loss_contrast": zero}
  weights = {term.name: term.weight for term in terms}
  for term in terms:
    name = f"loss_{term.name}"
    metrics[name] = metrics.get(name, zero) + term.value
  for name in ("aux", "contrast"):
    metrics[f"loss_{name}_scaled"] = weights.get(name, 0.0) * metrics[f"loss_{name}"]
  return metrics
