"""The contrastive loss over region centers: RegionContrast, Eq. 4."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from rc_jax.contrast.memory_bank import MemoryBank, check_belong
from rc_jax.contrast.region_centers import RegionCenters
from rc_jax.contrast.streamed import LEAST_BOUNDED_TEMPERATURE, streamed_contrast

BATCH_SCOPES = ("image", "batch")


def region_contrast_loss(
  centers: RegionCenters, bank: MemoryBank, temperature: ArrayLike = 0.2
) -> tuple[Array, dict[str, Array]]:
  """Pulls region centers towards the keys of their class and away from those of all others.

  A query ``q``, the center of class ``i`` in an image, has as positives ``k+`` the valid slots of bank ``i``
  and as negatives ``k-`` the valid slots of all other banks. With ``tau`` the temperature,

  ``l(q) = mean over k+ of -log( exp(q.k+/tau) / ( exp(q.k+/tau) + sum over k- of exp(q.k-/tau) ) )``

  and the loss is the mean of ``l(q)`` over the queries that have at least one positive and one negative; 0,
  with zero gradient, when none has. Each positive stands against all negatives, not against the other
  positives. Gradients reach the centers; the bank is a constant.

  Args:
    centers: vectors ``[B,N,C]`` of unit length, present ``[B,N]``.
    bank: the bank *before* these centers enter it. Any float dtype; similarities are float32.
    temperature: ``tau``, positive; a number or a traced scalar. The paper is silent; 0.2 is the authors'
      code's.

  Returns:
    The loss, a float32 scalar, and statistics, float32 scalars without gradient: ``queries``, the number that
    entered the mean; ``positive_similarity`` and ``negative_similarity``, the mean ``q.k+`` and ``q.k-``,
    each averaged over a query's keys and then over those queries (0 when there are none).

  Raises:
    ValueError: when the centers' classes or dimension are not the bank's, or the temperature is not positive.

  Source: RegionContrast, Eq. 4.
  """
  check_belong(centers, bank)
  known = not isinstance(temperature, jax.core.Tracer)
  bounded = known and bool(np.asarray(temperature) >= LEAST_BOUNDED_TEMPERATURE)
  temperature = _as_temperature(temperature)
  queries = jnp.asarray(centers.vectors, jnp.float32)
  present = jnp.asarray(centers.present, bool)
  terms = streamed_contrast(queries, present, bank, temperature, bounded)
  return _mean_over_queries(*terms, temperature)


def batch_contrast_loss(
  centers: RegionCenters, scope: str = "image", temperature: ArrayLike = 0.2
) -> tuple[Array, dict[str, Array]]:
  """The loss of `region_contrast_loss` with the batch's own centers, detached, as keys.

  Args:
    centers: vectors ``[B,N,C]`` of unit length, present ``[B,N]``.
    scope: ``"image"``: the keys of a query are the centers of its image, so its one positive is its own copy
      (the paper's intra-image contrast; Table 3, "w/o MB"). ``"batch"``: they are the centers of all images,
      so its positives are those of its class, its own copy included.
    temperature: ``tau``, positive; a number or a traced scalar.

  Returns:
    The loss and its statistics, as `region_contrast_loss`.

  Raises:
    ValueError: for an unknown scope, shapes that do not belong together, or a temperature that is not
      positive.

  Source: RegionContrast, Tables 1 and 3.
  """
  if scope not in BATCH_SCOPES:
    raise ValueError(
      f"scope: unknown {scope!r}; choose one of {', '.join(BATCH_SCOPES)}; "
      "for scope bank call region_contrast_loss"
    )
  check_belong(centers)
  temperature = _as_temperature(temperature)
  vectors, present = jnp.asarray(centers.vectors), jnp.asarray(centers.present)
  if scope == "batch":
    # A bank whose slots are the images of the batch: [B,N,C] -> [N,M=B,C].
    terms = _contrast(vectors, present, vectors.swapaxes(0, 1), present.swapaxes(0, 1), temperature)
  else:
    # A bank for each image, of one slot a class: [B,N,C] -> B times [N,M=1,C].
    terms = jax.vmap(_contrast, in_axes=(0, 0, 0, 0, None))(
      vectors[:, None], present[:, None], vectors[:, :, None], present[:, :, None], temperature
    )
  return _mean_over_queries(*terms, temperature)


def _contrast(
  queries: ArrayLike, present: ArrayLike, keys: ArrayLike, valid: ArrayLike, temperature: Array
) -> tuple[Array, Array, Array, Array]:
  """``l(q)`` of every query.

  Args:
    queries: ``[B,N,C]``; present: ``[B,N]``.
    keys: ``[N,M,C]``; valid: ``[N,M]``, the slots that may be read.
    temperature: scalar.

  Returns:
    ``[B,N]`` float32 each: ``l(q)``; whether it counts (bool); the means of ``q.k+/tau`` and of ``q.k-/tau``.
    What does not count is 0.
  """
  # Rows that must not be read are cleared before the product: what a mask after it hides still comes back in
  # the gradient as 0 times whatever lay there.
  present, valid = jnp.asarray(present, bool), jnp.asarray(valid, bool)
  queries = jnp.where(present[..., None], queries, 0).astype(jnp.float32) / temperature
  keys = jnp.where(valid[..., None], jax.lax.stop_gradient(keys), 0).astype(jnp.float32)

  positives = valid  # [N,M]: the slots of bank i are positives of class i's queries
  # [N,N,M]: class of the query, class of the key, slot
  negatives = valid & ~jnp.eye(keys.shape[0], dtype=bool)[:, :, None]
  num_positives = positives.sum(axis=-1)  # [N]
  num_negatives = negatives.sum(axis=(-2, -1))  # [N]
  counted = present & (num_positives > 0) & (num_negatives > 0)  # [B,N]

  highest = jax.lax.Precision.HIGHEST  # a TPU would otherwise round the operands to bfloat16
  to_positives = jnp.einsum("bnc,nmc->bnm", queries, keys, precision=highest)  # q.k+ / tau
  to_all = jnp.einsum("bnc,kmc->bnkm", queries, keys, precision=highest)  # q.k / tau

  # log S, S = sum over k- of exp(q.k-/tau), shifted by the largest term so that no temperature overflows it.
  largest = jax.lax.stop_gradient(jnp.where(negatives, to_all, -jnp.inf).max(axis=(-2, -1)))  # [B,N]
  largest = jnp.where(num_negatives > 0, largest, 0)
  terms = jnp.exp(jnp.where(negatives, to_all - largest[..., None, None], -jnp.inf))
  log_negatives = jnp.log(jnp.where(num_negatives > 0, terms.sum(axis=(-2, -1)), 1)) + largest  # [B,N]

  # -log(e^p / (e^p + S)) = log(1 + S e^-p) = softplus(log S - p)
  pair_losses = jax.nn.softplus(log_negatives[..., None] - to_positives)  # [B,N,M]

  def mean(values: Array, mask: Array, number: Array) -> Array:
    axes = tuple(range(2, values.ndim))
    return jnp.where(counted, jnp.where(mask, values, 0).sum(axis=axes) / jnp.maximum(number, 1), 0)

  return (
    mean(pair_losses, positives, num_positives),
    counted,
    mean(to_positives, positives, num_positives),
    mean(to_all, negatives, num_negatives),
  )


def _mean_over_queries(
  losses: Array, counted: Array, to_positives: Array, to_negatives: Array, temperature: Array
) -> tuple[Array, dict[str, Array]]:
  """The mean over the queries that count, and the statistics; 0 when none counts."""
  queries = counted.sum().astype(jnp.float32)
  number = jnp.maximum(queries, 1)
  stats = {
    "queries": queries,
    "positive_similarity": to_positives.sum() / number * temperature,
    "negative_similarity": to_negatives.sum() / number * temperature,
  }
  return losses.sum() / number, jax.lax.stop_gradient(stats)


def _as_temperature(temperature: ArrayLike) -> Array:
  # A traced temperature has no value to look at yet.
  if not isinstance(temperature, jax.core.Tracer) and not np.asarray(temperature) > 0:
    raise ValueError(f"temperature must be positive, got {temperature}")
  return jnp.asarray(temperature, jnp.float32)
