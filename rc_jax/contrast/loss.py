"""The contrastive loss over region centers: RegionContrast, Equation 4.

``l(q) = mean over k+ of -log( exp(q.k+/tau) / ( exp(q.k+/tau) + sum over k- of exp(q.k-/tau) ) )``

A query ``q`` is the center of a class in an image. Its positives ``k+`` are the keys of that class, its negatives
``k-`` the keys of all other classes. The two public functions differ in the keys: those of memory banks, or the batch's
own centers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from rc_jax.contrast.image_bank import Bank
from rc_jax.contrast.memory_bank import check_shapes
from rc_jax.contrast.region_centers import RegionCenters
from rc_jax.contrast.streamed import LEAST_BOUNDED_TEMPERATURE, Terms, streamed_contrast

BATCH_SCOPES = ("image", "batch")


def region_contrast_loss(
  centers: RegionCenters, bank: Bank, temperature: ArrayLike = 0.2
) -> tuple[Array, dict[str, Array]]:
  """Mean over queries of Equation 4, with the keys of memory banks.

  ``l(q) = mean over k+ of -log( exp(q.k+/tau) / ( exp(q.k+/tau) + sum over k- of exp(q.k-/tau) ) )``

  A query of class ``i`` has as positives ``k+`` the valid slots of bank ``i``, and as negatives ``k-`` the valid slots
  of all other banks. Each positive stands against all negatives, not against the other positives. The mean is over the
  queries that have at least one positive and one negative; the loss is 0, with zero gradient, when none has. Gradients
  reach the centers and the temperature; the bank is a constant.

  Args:
    centers: vectors ``[B,N,C]`` of unit length, present ``[B,N]``.
    bank: the bank *before* these centers enter it: queues, or a slot for each image. Any float dtype; similarities are
      float32.
    temperature: ``tau``, positive; a number or a traced scalar. The paper is silent; 0.2 is from the authors' code.

  Returns:
    The loss, a float32 scalar, and statistics, float32 without gradient: ``queries``, the number that entered the
    mean; ``positive_similarity`` and ``negative_similarity``, the mean ``q.k+`` and ``q.k-``, each averaged over a
    query's keys and then over those queries (0 when there are none); and ``positive_similarity_by_class`` and
    ``negative_similarity_by_class``, ``[N]``, the same means over the queries of each class (NaN when it has none).

  Raises:
    ValueError: the centers' classes or dimension are not the bank's, or the temperature is not positive.

  Source: RegionContrast, Eq. 4.
  """
  check_shapes(centers, bank.keys)
  known = not isinstance(temperature, jax.core.Tracer)
  bounded = known and bool(np.asarray(temperature) >= LEAST_BOUNDED_TEMPERATURE)
  temperature = _as_temperature(temperature)
  queries = jnp.asarray(centers.vectors, jnp.float32)
  present = jnp.asarray(centers.present, bool)
  return _mean_over_queries(streamed_contrast(queries, present, bank, temperature, bounded), temperature)


def batch_contrast_loss(
  centers: RegionCenters, scope: str = "image", temperature: ArrayLike = 0.2
) -> tuple[Array, dict[str, Array]]:
  """Mean over queries of Equation 4, with the batch's own centers, detached, as keys.

  Args:
    centers: vectors ``[B,N,C]`` of unit length, present ``[B,N]``.
    scope: ``"image"``: the keys of a query are the centers of its image, so its one positive is its own copy
      (the paper's intra-image contrast; Table 3, "w/o MB"). ``"batch"``: they are the centers of all images,
      so its positives are those of its class, its own copy included.
    temperature: ``tau``, positive; a number or a traced scalar.

  Returns:
    The loss and its statistics, as `region_contrast_loss`.

  Raises:
    ValueError: the scope is unknown, the shapes do not belong together, or the temperature is not positive.

  Source: RegionContrast, Eq. 4, Tables 1 and 3.
  """
  if scope not in BATCH_SCOPES:
    raise ValueError(
      f"scope: unknown {scope!r}; choose one of {', '.join(BATCH_SCOPES)}; "
      "for scope bank call region_contrast_loss"
    )
  check_shapes(centers)
  temperature = _as_temperature(temperature)
  vectors, present = jnp.asarray(centers.vectors), jnp.asarray(centers.present)
  if scope == "batch":
    # One bank whose slots are the images of the batch: [B,N,C] -> [N,M=B,C].
    terms = equation_4(vectors, present, vectors.swapaxes(0, 1), present.swapaxes(0, 1), temperature)
  else:
    # A bank for each image, with one slot for each class: [B,N,C] -> B times [N,M=1,C].
    terms = jax.vmap(equation_4, in_axes=(0, 0, 0, 0, None))(
      vectors[:, None], present[:, None], vectors[:, :, None], present[:, :, None], temperature
    )
  return _mean_over_queries(terms, temperature)


def equation_4(
  queries: ArrayLike, present: ArrayLike, keys: ArrayLike, valid: ArrayLike, temperature: Array
) -> Terms:
  """Computes ``l(q)`` of every query as one dense product of queries and keys.

  ``l(q) = mean over k+ of -log( e^p / (e^p + S) ) = mean over k+ of softplus(log S - p)``, where ``p = q.k+/tau`` and
  ``S = sum over k- of exp(q.k-/tau)``.

  Args:
    queries: ``q [B,N,C]``.
    present: ``[B,N]`` bool, the queries that exist.
    keys: ``k [N,M,C]``, constants.
    valid: ``[N,M]`` bool, the slots that hold a key.
    temperature: ``tau``, a float32 scalar.

  Source: RegionContrast, Eq. 4.
  """
  # Rows that must not be read become zero before the product. A mask behind it would not keep them out of the
  # gradient, which holds 0 times their values, and these may be NaN.
  present, valid = jnp.asarray(present, bool), jnp.asarray(valid, bool)
  queries = jnp.where(present[..., None], queries, 0).astype(jnp.float32) / temperature
  keys = jnp.where(valid[..., None], jax.lax.stop_gradient(keys), 0).astype(jnp.float32)

  is_positive = valid  # [N,M]: the slots of bank i are positives of the queries of class i
  other_class = ~jnp.eye(keys.shape[0], dtype=bool)  # [N,N]: class of the query, class of the key
  is_negative = valid & other_class[:, :, None]  # [N,N,M]: class of the query, class of the key, slot
  positives = is_positive.sum(axis=-1)  # [N]
  negatives = is_negative.sum(axis=(-2, -1))  # [N]
  counted = present & (positives > 0) & (negatives > 0)  # [B,N]

  highest = jax.lax.Precision.HIGHEST  # a TPU would otherwise round the operands to bfloat16
  positive_logits = jnp.einsum("bnc,nmc->bnm", queries, keys, precision=highest)  # q.k+ / tau
  logits = jnp.einsum("bnc,kmc->bnkm", queries, keys, precision=highest)  # q.k / tau

  # log S, relative to the largest logit so that no temperature overflows the exponentials.
  largest = jax.lax.stop_gradient(jnp.where(is_negative, logits, -jnp.inf).max(axis=(-2, -1)))  # [B,N]
  largest = jnp.where(negatives > 0, largest, 0)
  exps = jnp.exp(jnp.where(is_negative, logits - largest[..., None, None], -jnp.inf))  # [B,N,N,M]
  log_s = jnp.log(jnp.where(negatives > 0, exps.sum(axis=(-2, -1)), 1)) + largest  # [B,N]

  pair_losses = jax.nn.softplus(log_s[..., None] - positive_logits)  # [B,N,M]

  def mean(values: Array, mask: Array, number: Array) -> Array:
    axes = tuple(range(2, values.ndim))
    return jnp.where(counted, jnp.where(mask, values, 0).sum(axis=axes) / jnp.maximum(number, 1), 0)

  return Terms(
    loss=mean(pair_losses, is_positive, positives),
    counted=counted,
    positive_logits=mean(positive_logits, is_positive, positives),
    negative_logits=mean(logits, is_negative, negatives),
  )


def _mean_over_queries(terms: Terms, temperature: Array) -> tuple[Array, dict[str, Array]]:
  """Returns ``L_RC = sum of l(q) / number of counted queries``, 0 when there is none, and the statistics."""
  queries = terms.counted.sum().astype(jnp.float32)
  number = jnp.maximum(queries, 1)

  def mean_by_class(values: Array) -> Array:  # [...,N] -> [N]
    images = tuple(range(values.ndim - 1))
    number = terms.counted.sum(axis=images).astype(jnp.float32)
    return jnp.where(number > 0, values.sum(axis=images) / jnp.maximum(number, 1), jnp.nan)

  stats = {
    "queries": queries,
    "positive_similarity": terms.positive_logits.sum() / number * temperature,
    "negative_similarity": terms.negative_logits.sum() / number * temperature,
    "positive_similarity_by_class": mean_by_class(terms.positive_logits) * temperature,
    "negative_similarity_by_class": mean_by_class(terms.negative_logits) * temperature,
  }
  return terms.loss.sum() / number, jax.lax.stop_gradient(stats)


def _as_temperature(temperature: ArrayLike) -> Array:
  # A traced temperature has no value that could be checked.
  if not isinstance(temperature, jax.core.Tracer) and not np.asarray(temperature) > 0:
    raise ValueError(f"temperature must be positive, got {temperature}")
  return jnp.asarray(temperature, jnp.float32)
