"""Equation 4 over banks of any size: the keys pass by in tiles, and nothing of size queries x keys exists.

Banks are constants, so the gradient of a query's loss can be summed up while its keys pass by. With logits
``z = q.k/tau``, ``P`` the number of positives and ``S = sum over k- of exp(z-)``,

``l(q) = 1/P sum over k+ of softplus(log S - z+)``
``dl/dq = 1/(tau P) sum over k+ of w+ ( sum over k- of exp(z-)/S k-  -  k+ )``,  ``w+ = sigmoid(log S - z+)``

so one pass over all banks gives ``log S`` and its gradient, the sum over ``k-``, for every query, and a second one over
the banks of the queries' own classes gives the rest. The backward pass multiplies by what came in.

Where the slots are sharded, each device lets its own pass by, and what crosses between devices is of size queries x C.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rc_jax.contrast.memory_bank import MemoryBank

# Up to so many logits on a device are made at once; beyond, keys and queries come in turns.
MATERIALISED = 1 << 24
# Queries that share one pass over the banks. More read the banks less often, but a pass takes as long for one
# query as for all of them.
QUERY_BLOCK = 256
# Keys that pass by at once, over the borders of classes. Each turn of a loop costs some microseconds whatever it
# does, and each key makes QUERY_BLOCK logits.
KEY_TILE = 16_384


class Terms(NamedTuple):
  """What Eq. 4 says of each query, float32 ``[B,N]`` each, 0 where a query does not count.

  Attributes:
    loss: ``l(q)``.
    counted: 1 where a query has a positive and a negative.
    to_positives: mean ``q.k+/tau``; without gradient.
    to_negatives: mean ``q.k-/tau``; without gradient.
  """

  loss: Array
  counted: Array
  to_positives: Array
  to_negatives: Array


def streamed_contrast(queries: Array, present: Array, bank: MemoryBank, temperature: Array) -> Terms:
  """Computes ``l(q)`` of every query against the banks.

  Args:
    queries: ``[B,N,C]`` float32.
    present: ``[B,N]`` bool.
    bank: the banks, constants. Products are of the keys' dtype, sums are float32.
    temperature: ``tau``, a float32 scalar.

  Source: RegionContrast, Eq. 4.
  """
  return _streamed(queries, present, bank, temperature)


@jax.custom_vjp
def _streamed(queries: Array, present: Array, bank: MemoryBank, temperature: Array) -> Terms:
  return _on_all_devices(queries, present, bank, temperature, with_gradient=False)[0]


def _forward(
  queries: Array, present: Array, bank: MemoryBank, temperature: Array
) -> tuple[Terms, tuple[Array, ...]]:
  terms, gradient = _on_all_devices(queries, present, bank, temperature, with_gradient=True)
  # An absent query may hold anything.
  return terms, (jnp.where(present[..., None], queries, 0), gradient, temperature)


def _backward(residuals: tuple[Array, ...], cotangents: Terms) -> tuple[Array | None, ...]:
  queries, gradient, temperature = residuals
  d_queries = cotangents.loss[..., None] * gradient
  # l depends on q / tau alone.
  d_temperature = -jnp.sum(d_queries * queries) / temperature
  return d_queries, None, None, d_temperature


_streamed.defvjp(_forward, _backward)


def _on_all_devices(
  queries: Array, present: Array, bank: MemoryBank, temperature: Array, with_gradient: bool
) -> tuple[Terms, Array]:
  axis = None if bank.mesh is None else bank.axis
  stream = functools.partial(_stream, axis=axis, with_gradient=with_gradient)
  if bank.mesh is None:
    return stream(queries, present, bank.keys, bank.count, temperature)
  whole, slots = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(None, bank.axis)
  # Unchecked: the results are sums over all devices, which no type can show of what a loop has carried.
  sharded = jax.shard_map(
    stream, mesh=bank.mesh, in_specs=(whole, whole, slots, whole, whole), out_specs=whole, check_vma=False
  )
  return sharded(queries, present, bank.keys, bank.count, temperature)


class _Sums(NamedTuple):
  """Of each query over its negatives on this device, ``[Q]`` but for the last.

  Attributes:
    largest: of the logits ``z-``, -inf where there is none.
    exps: sum of ``exp(z- - largest)``.
    logits: sum of ``z-``.
    pull: sum of ``exp(z- - largest) k-``, ``[Q,C]``; ``[Q,0]`` where no gradient is asked for.
  """

  largest: Array
  exps: Array
  logits: Array
  pull: Array


def _stream(
  queries: Array,
  present: Array,
  keys: Array,
  count: Array,
  temperature: Array,
  axis: str | None,
  with_gradient: bool,
) -> tuple[Terms, Array]:
  """Terms, and ``dl/dq [B,N,C]`` of each; ``keys [N,m,C]`` are this device's slots, ``count`` that of all."""
  total = count.sum()
  counted = present & (count > 0) & (total > count)  # [B,N]
  scaled = jnp.where(counted[..., None], queries, 0) / temperature
  first = 0 if axis is None else jax.lax.axis_index(axis) * keys.shape[1]
  here = jnp.clip(count - first, 0, keys.shape[1])  # valid slots on this device, [N]

  sums = _all_negatives(scaled, counted, keys, here, with_gradient)
  if axis is not None:
    largest = jax.lax.pmax(sums.largest, axis)
    factor = jnp.exp(sums.largest - jnp.where(largest > -jnp.inf, largest, 0))
    sums = _Sums(largest, *_add_up((sums.exps * factor, sums.logits, sums.pull * factor[..., None]), axis))
  exps = jnp.where(counted, sums.exps, 1)  # at least the largest's own, 1
  log_sum = jnp.where(counted, jnp.log(exps) + sums.largest, 0)

  parts = _positives(scaled, counted, log_sum, keys, here, with_gradient)
  losses, positive_logits, weight, push = parts if axis is None else _add_up(parts, axis)
  positives = jnp.maximum(count, 1).astype(jnp.float32)
  negatives = jnp.maximum(total - count, 1).astype(jnp.float32)

  def clear(values: Array) -> Array:
    return jnp.where(counted, values, 0)

  terms = Terms(
    clear(losses / positives),
    clear(jnp.ones_like(losses)),
    clear(positive_logits / positives),
    clear(sums.logits / negatives),
  )
  gradient = ((weight / exps)[..., None] * sums.pull - push) / (temperature * positives[:, None])
  return terms, jnp.where(counted[..., None], gradient, 0)


def _add_up(parts: tuple[Array, ...], axis: str) -> tuple[Array, ...]:
  """Sums ``[B,N]`` and ``[B,N,C]`` arrays over devices, in one message."""
  widths = [part.shape[2] if part.ndim == 3 else 1 for part in parts]
  joined = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)
  cuts = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
  apart = jnp.split(jax.lax.psum(joined, axis), cuts, axis=-1)
  return tuple(one.reshape(part.shape) for one, part in zip(apart, parts, strict=True))


def _all_negatives(queries: Array, counted: Array, keys: Array, count: Array, with_gradient: bool) -> _Sums:
  """Sums over the negatives of all queries ``[B,N,C]``: ``_Sums`` of ``[B,N]``."""
  batch, num_classes, dim = queries.shape
  valid = jnp.arange(keys.shape[1]) < count[:, None]  # [N,m]
  owner = jnp.where(valid, jnp.arange(num_classes, dtype=jnp.int32)[:, None], -1).reshape(-1)
  keys = keys.reshape(-1, dim)
  size = batch * num_classes
  classes = jnp.arange(size, dtype=jnp.int32) % num_classes
  rows = queries.reshape(size, dim)

  if size * keys.shape[0] <= MATERIALISED:
    sums = _add_tile(_no_sums(size, dim, with_gradient), rows, classes, keys, owner)
  else:
    # The queries that count come first, and the loop over blocks ends with them.
    block = min(QUERY_BLOCK, size)
    order = jnp.argsort(~counted.reshape(-1), stable=True)
    padded = jnp.pad(order, (0, -size % block))
    rows, classes = rows[padded], classes[padded]

    def one_block(i: Array, found: _Sums) -> _Sums:
      start = i * block
      some, theirs = (jax.lax.dynamic_slice_in_dim(x, start, block) for x in (rows, classes))
      sums = _pass_by(some, theirs, keys, owner, with_gradient)
      return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0), found, sums
      )

    blocks = (counted.sum() + block - 1) // block
    sums = jax.lax.fori_loop(0, blocks, one_block, _no_sums(padded.size, dim, with_gradient))
    back = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32), unique_indices=True)
    sums = jax.tree.map(lambda x: x[back], sums)
  return jax.tree.map(lambda x: x.reshape(batch, num_classes, *x.shape[1:]), sums)


def _no_sums(queries: int, dim: int, with_gradient: bool) -> _Sums:
  zeros = jnp.zeros(queries)
  return _Sums(zeros - jnp.inf, zeros, zeros, jnp.zeros((queries, dim if with_gradient else 0)))


def _pass_by(queries: Array, classes: Array, keys: Array, owner: Array, with_gradient: bool) -> _Sums:
  """Lets all keys pass by some queries, tile by tile.

  Args:
    queries: ``[Q,C]``, divided by ``tau``; classes: ``[Q]``.
    keys: ``[K,C]``, the banks end to end; owner: ``[K]``, the class of a key, -1 where there is none.
    with_gradient: whether ``pull`` is asked for.
  """
  total, dim = keys.shape
  tile = min(KEY_TILE, total)
  tiles = -(-total // tile)
  filled = jnp.pad(owner, (0, tiles * tile - total), constant_values=-1).reshape(tiles, tile).max(axis=1) >= 0
  visited = jnp.argsort(~filled, stable=True)  # tiles with no key in them come last, and are not visited

  def one_tile(i: Array, sums: _Sums) -> _Sums:
    # Tied to the loop: a CPU would otherwise turn all of a bfloat16 bank into float32 before it.
    bank, _ = jax.lax.optimization_barrier((keys, i))
    first = visited[i] * tile
    start = jnp.minimum(first, total - tile)  # the last tile starts early, and skips what was there before
    some = jax.lax.dynamic_slice(bank, (start, 0), (tile, dim))
    theirs = jax.lax.dynamic_slice(owner, (start,), (tile,))
    theirs = jnp.where(start + jnp.arange(tile) >= first, theirs, -1)
    return _add_tile(sums, queries, classes, some, theirs)

  return jax.lax.fori_loop(0, filled.sum(), one_tile, _no_sums(queries.shape[0], dim, with_gradient))


def _add_tile(sums: _Sums, queries: Array, classes: Array, keys: Array, owner: Array) -> _Sums:
  """Adds the negatives among some keys, as an online log-sum-exp."""
  # A slot that was never written may hold anything, and 0 x anything is not always 0.
  keys = jnp.where((owner >= 0)[:, None], keys, 0)
  logits = _product(queries, keys, (1, 1))  # [Q,T]
  negative = (owner >= 0) & (owner != classes[:, None])
  largest = jnp.maximum(sums.largest, jnp.where(negative, logits, -jnp.inf).max(axis=1))
  shift = jnp.where(largest > -jnp.inf, largest, 0)
  exps = jnp.where(negative, jnp.exp(logits - shift[:, None]), 0)
  before = jnp.exp(sums.largest - shift)
  pull = sums.pull
  if pull.shape[1]:
    pull = pull * before[:, None] + _product(exps, keys, (1, 0))
  return _Sums(
    largest,
    sums.exps * before + exps.sum(axis=1),
    sums.logits + jnp.where(negative, logits, 0).sum(axis=1),
    pull,
  )


def _product(a: Array, b: Array, contract: tuple[int, int], over_classes: bool = False) -> Array:
  """A product in the dtype of ``b``, summed in float32 over one axis of each; axis 0 is shared if ``over_classes``."""
  # Otherwise a TPU, and a GPU with TensorFloat-32, would round float32 keys.
  precision = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
  shared = ((0,), (0,)) if over_classes else ((), ())
  product: Array = jax.lax.dot_general(
    a.astype(b.dtype),
    b,
    (((contract[0],), (contract[1],)), shared),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return product


def _positives(
  queries: Array, counted: Array, log_sum: Array, keys: Array, count: Array, with_gradient: bool
) -> tuple[Array, Array, Array, Array]:
  """Sums over each query's positives, class by class, of the classes that have a query.

  Args:
    queries: ``[B,N,C]``, divided by ``tau``; counted: ``[B,N]``; log_sum: ``log S [B,N]``.
    keys: ``[N,M,C]``; count: ``[N]``, valid slots.
    with_gradient: whether the last two results are asked for.

  Returns:
    Sums of ``softplus(log S - z+)``, of ``z+`` and of ``w+``, ``[B,N]`` each, and of ``w+ k+ [B,N,C]``.
  """
  batch, num_classes, dim = queries.shape

  def of_classes(queries: Array, log_sum: Array, keys: Array, count: Array) -> tuple[Array, ...]:
    """The sums of some classes, which lead every shape: ``[n,B,C]``, ``[n,B]``, ``[n,m,C]``, ``[n]``."""
    valid = (jnp.arange(keys.shape[1]) < count[:, None])[:, None]  # [n,1,m]
    keys = jnp.where(valid.swapaxes(1, 2), keys, 0)
    logits = _product(queries, keys, (2, 2), over_classes=True)  # [n,B,m]
    margins = log_sum[..., None] - logits
    weights = jnp.where(valid, jax.nn.sigmoid(margins), 0)
    return (
      jnp.where(valid, jax.nn.softplus(margins), 0).sum(axis=2),
      jnp.where(valid, logits, 0).sum(axis=2),
      weights.sum(axis=2),
      _product(weights, keys, (2, 1), over_classes=True)
      if with_gradient
      else jnp.zeros((*weights.shape[:2], 0)),
    )

  queries, log_sum = queries.swapaxes(0, 1), log_sum.swapaxes(0, 1)
  if batch * num_classes * keys.shape[1] <= MATERIALISED:
    sums = of_classes(queries, log_sum, keys, count)
  else:
    # At most one query of a class comes from an image, so one class's logits are few.
    asked = counted.any(axis=0)
    visited = jnp.argsort(~asked, stable=True)

    def one_class(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
      n = visited[i]
      bank, _ = jax.lax.optimization_barrier((keys, i))
      own = (jax.lax.dynamic_slice_in_dim(x, n, 1) for x in (queries, log_sum, bank, count))
      parts = of_classes(*own)
      return tuple(
        jax.lax.dynamic_update_slice_in_dim(whole, part, n, 0)
        for whole, part in zip(sums, parts, strict=True)
      )

    zeros = jnp.zeros((num_classes, batch))
    start = (zeros, zeros, zeros, jnp.zeros((num_classes, batch, dim if with_gradient else 0)))
    sums = jax.lax.fori_loop(0, asked.sum(), one_class, start)
  losses, logits, weights, push = (x.swapaxes(0, 1) for x in sums)
  return losses, logits, weights, push
