"""Equation 4 of RegionContrast over memory banks of any size, with its gradient, in two passes over the keys.

With logits ``z = q.k/tau``, ``P`` the number of positives ``k+`` and ``S = sum over k- of exp(z-)``,

``l(q)  = mean over k+ of -log( exp(z+) / (exp(z+) + S) ) = 1/P sum over k+ of softplus(log S - z+)``

``dl/dq = 1/(tau P) sum over k+ of w+ ( sum over k- of exp(z-)/S k-  -  k+ )``  with ``w+ = sigmoid(log S - z+)``.

The first pass reads all banks and gives ``log S`` and ``sum over k- of exp(z-) k-`` of every query. The second reads
the banks of the queries' own classes and gives the sums over ``k+``. Banks are constants, so the forward pass already
has the gradient, and the backward pass multiplies it by the cotangent. Each pass sums over tiles (``tiles.py``): its
largest array has the logits of ``QUERY_BLOCK`` queries and one tile of keys. Where the slots are sharded, each device
sums over its own, and devices exchange arrays of the size queries x C.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from rc_jax.contrast.image_bank import Bank, ImageMemoryBank
from rc_jax.contrast.tiles import (
  NEEDED_TILES,
  BankShard,
  Tile,
  sum_over_tiles,
  tile_shape,
)

# Queries that share one pass over the banks. More queries read the banks less often, but on a TPU a pass takes as long
# for one query as for all of them. Beyond 160, the weights of a tile's keys exceed the VMEM of a TPU v5e: 256 queries
# take 1.7 times as long.
QUERY_BLOCK = 160
# A logit of unit vectors is at most 1/tau, which replaces the largest one in the log-sum-exp. Below this tau, all of
# exp(z - 1/tau) may vanish in float32 (z may be -1/tau), and the largest logit is computed.
LEAST_BOUNDED_TEMPERATURE = 0.025


class Terms(NamedTuple):
  """Equation 4 of each query, float32 ``[B,N]`` each, 0 where a query does not count.

  Attributes:
    loss: ``l(q)``.
    counted: 1 where a query is present and has a positive and a negative.
    positive_logits: mean ``z+``; without gradient.
    negative_logits: mean ``z-``; without gradient.
  """

  loss: Array
  counted: Array
  positive_logits: Array
  negative_logits: Array


def streamed_contrast(queries: Array, present: Array, bank: Bank, temperature: Array, bounded: bool) -> Terms:
  """Computes ``l(q)`` of every query against the banks; gradients reach the queries and the temperature.

  Args:
    queries: ``q [B,N,C]`` float32, of unit length where present.
    present: ``[B,N]`` bool.
    bank: the banks, constants. Products are in the keys' dtype, sums are float32.
    temperature: ``tau``, a float32 scalar.
    bounded: whether ``tau`` is known to be at least ``LEAST_BOUNDED_TEMPERATURE``.

  Source: RegionContrast, Eq. 4.
  """
  return _streamed(queries, present, bank, temperature, bounded)


def loop_trips(num_classes: int, slots: int, queries: int) -> dict[str, int]:
  """Returns loop name -> iterations, for cost estimates: a compiled program does not show counts that data decide.

  Args:
    num_classes: ``N``.
    slots: of each class on a device, all of them written.
    queries: number of queries that count.

  Returns:
    The ``jax.named_scope`` around each loop -> its iterations.
  """
  g, t = tile_shape(num_classes, slots)
  return {
    "query_blocks": -(-queries // QUERY_BLOCK),
    NEEDED_TILES: -(-num_classes // g) * -(-slots // t),
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _streamed(queries: Array, present: Array, bank: Bank, temperature: Array, bounded: bool) -> Terms:
  return _on_all_devices(queries, present, bank, temperature, bounded, with_gradient=False)[0]


def _forward(
  queries: Array, present: Array, bank: Bank, temperature: Array, bounded: bool
) -> tuple[Terms, tuple[Array, ...]]:
  computed = _on_all_devices(queries, present, bank, temperature, bounded, with_gradient=True)
  # What waits for the loss then waits for all reads of the bank, which can be written in place.
  terms, gradient = jax.lax.optimization_barrier(computed)
  # An absent query may hold anything.
  return terms, (jnp.where(present[..., None], queries, 0), gradient, temperature)


def _backward(bounded: bool, residuals: tuple[Array, ...], cotangents: Terms) -> tuple[Array | None, ...]:
  queries, gradient, temperature = residuals
  d_queries = cotangents.loss[..., None] * gradient
  # l depends on q / tau alone, so dl/dtau = -q/tau . dl/dq.
  d_temperature = -jnp.sum(d_queries * queries) / temperature
  return d_queries, None, None, d_temperature


_streamed.defvjp(_forward, _backward)


def _on_all_devices(
  queries: Array, present: Array, bank: Bank, temperature: Array, bounded: bool, with_gradient: bool
) -> tuple[Terms, Array]:
  """Runs `_terms_and_gradient` on each device's slots."""
  terms_and_gradient = functools.partial(
    _terms_and_gradient,
    axis=None if bank.mesh is None else bank.axis,
    bounded=bounded,
    with_gradient=with_gradient,
  )
  arguments = (queries, present, bank.keys, bank.count, temperature)
  # The slots of a queue follow from its count.
  mask = (bank.valid,) if isinstance(bank, ImageMemoryBank) else ()
  if bank.mesh is None:
    return terms_and_gradient(*arguments, *mask)
  replicated, slots = PartitionSpec(), PartitionSpec(None, bank.axis)
  # Unchecked: the results are sums over all devices, which the type of a loop's carry cannot show.
  sharded = jax.shard_map(
    terms_and_gradient,
    mesh=bank.mesh,
    in_specs=(replicated, replicated, slots, replicated, replicated, *(slots for _ in mask)),
    out_specs=replicated,
    check_vma=False,
  )
  return sharded(*arguments, *mask)


def _terms_and_gradient(
  queries: Array,
  present: Array,
  keys: Array,
  count: Array,
  temperature: Array,
  valid: Array | None = None,
  *,
  axis: str | None,
  bounded: bool,
  with_gradient: bool,
) -> tuple[Terms, Array]:
  """Computes the terms and ``dl/dq`` of each query.

  Args:
    queries: ``q [B,N,C]``.
    present: ``[B,N]`` bool.
    keys: ``[N,m,C]``, the slots on this device.
    count: ``[N]``, the keys of each class on all devices.
    temperature: ``tau``.
    valid: ``[N,m]`` bool, the slots on this device that hold a key; None: the first ``count`` of all devices.
    axis: the mesh axis over which the slots are spread; None: this device holds all.
    bounded: as for `streamed_contrast`.
    with_gradient: whether the gradient is needed.

  Returns:
    The terms, and the gradient ``[B,N,C]``; ``[B,N,0]`` where it is not needed.
  """
  total = count.sum()
  counted = present & (count > 0) & (total > count)  # [B,N]: has a positive and a negative
  scaled = jnp.where(counted[..., None], queries, 0) / temperature  # q / tau
  slots = keys.shape[1]
  first = 0 if axis is None else jax.lax.axis_index(axis) * slots
  written = jnp.clip(count - first, 0, slots) if valid is None else valid.sum(axis=1, dtype=jnp.int32)
  shard = BankShard(keys, written, valid)

  bound = 1 / temperature if bounded else None
  negative = _sum_over_negatives(scaled, counted, shard, bound, with_gradient)
  if axis is not None:
    negative = _add_over_devices(negative, axis, bounded)
  exps = jnp.where(counted, negative.exps, 1)
  log_s = jnp.where(counted, jnp.log(exps) + negative.largest, 0)  # [B,N]

  positive = _sum_over_positives(scaled, counted, log_s, shard, with_gradient)
  if axis is not None:
    positive = _PositiveSums(*_psum(positive, axis))
  positives = jnp.maximum(count, 1).astype(jnp.float32)  # [N]: P
  negatives = jnp.maximum(total - count, 1).astype(jnp.float32)  # [N]

  def where_counted(values: Array) -> Array:
    return jnp.where(counted, values, 0)

  terms = Terms(
    where_counted(positive.losses / positives),
    where_counted(jnp.ones_like(positive.losses)),
    where_counted(positive.logits / positives),
    where_counted(negative.logits / negatives),
  )
  gradient = ((positive.weights / exps)[..., None] * negative.weighted_keys - positive.weighted_keys) / (
    temperature * positives[:, None]
  )
  return terms, jnp.where(counted[..., None], gradient, 0)


class _NegativeSums(NamedTuple):
  """Sums over the negatives of each query, ``[...]`` but for the last.

  Attributes:
    largest: the largest ``z-``, -inf where there is no negative; or a bound on all logits in its place.
    exps: sum of ``exp(z- - largest)``.
    logits: sum of ``z-``.
    weighted_keys: sum of ``exp(z- - largest) k-``, ``[...,C]``; ``[...,0]`` where no gradient is needed.
  """

  largest: Array
  exps: Array
  logits: Array
  weighted_keys: Array

  @classmethod
  def zeros(cls, queries: int, dim: int, bound: Array | None, with_gradient: bool) -> "_NegativeSums":
    """Returns the sums over no negative."""
    largest = jnp.full(queries, -jnp.inf if bound is None else bound, jnp.float32)
    # The dtype is stated: under x64 it would be float64.
    zeros = jnp.zeros(queries, jnp.float32)
    return cls(largest, zeros, zeros, jnp.zeros((queries, dim if with_gradient else 0), jnp.float32))


class _PositiveSums(NamedTuple):
  """Sums over the positives of each query, ``[B,N]`` but for the last.

  Attributes:
    losses: sum of ``softplus(log S - z+)``.
    logits: sum of ``z+``.
    weights: sum of ``w+ = sigmoid(log S - z+)``.
    weighted_keys: sum of ``w+ k+``, ``[B,N,C]``; ``[B,N,0]`` where no gradient is needed.
  """

  losses: Array
  logits: Array
  weights: Array
  weighted_keys: Array


def _add_over_devices(sums: _NegativeSums, axis: str, bounded: bool) -> _NegativeSums:
  """Adds the sums of all devices, after bringing them to one ``largest``."""
  largest = sums.largest
  if not bounded:
    largest = jax.lax.pmax(sums.largest, axis)
    factor = jnp.exp(sums.largest - jnp.where(largest > -jnp.inf, largest, 0))
    sums = _NegativeSums(largest, sums.exps * factor, sums.logits, sums.weighted_keys * factor[..., None])
  return _NegativeSums(largest, *_psum((sums.exps, sums.logits, sums.weighted_keys), axis))


def _psum(arrays: tuple[Array, ...], axis: str) -> tuple[Array, ...]:
  """Sums ``[B,N]`` and ``[B,N,C]`` arrays over devices, in one message."""
  widths = [array.shape[2] if array.ndim == 3 else 1 for array in arrays]
  joined = jnp.concatenate([array.reshape(*array.shape[:2], -1) for array in arrays], axis=-1)
  cuts = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
  summed = jnp.split(jax.lax.psum(joined, axis), cuts, axis=-1)
  return tuple(part.reshape(array.shape) for part, array in zip(summed, arrays, strict=True))


def _sum_over_negatives(
  queries: Array, counted: Array, shard: BankShard, bound: Array | None, with_gradient: bool
) -> _NegativeSums:
  """Sums over the negatives of all queries, in blocks of queries.

  Args:
    queries: ``q / tau [B,N,C]``.
    counted: ``[B,N]`` bool.
    shard: the keys.
    bound: on all logits; None: the largest logit is computed.
    with_gradient: whether ``weighted_keys`` is needed.

  Returns:
    The sums, ``[B,N]``.
  """
  batch, num_classes, dim = queries.shape
  size = batch * num_classes
  classes = jnp.arange(size, dtype=jnp.int32) % num_classes
  rows = queries.reshape(size, dim)  # [B,N,C] -> [BN,C]
  sum_block = functools.partial(
    _sum_block_over_negatives, shard=shard, bound=bound, with_gradient=with_gradient
  )

  if size <= QUERY_BLOCK:
    sums = sum_block(rows, classes)
  else:
    # The queries that count come first, so that the loop over blocks ends with them.
    order = jnp.argsort(~counted.reshape(-1), stable=True)
    padded = jnp.pad(order, (0, -size % QUERY_BLOCK))
    rows, classes = rows[padded], classes[padded]

    def one_block(i: Array, sums: _NegativeSums) -> _NegativeSums:
      start = i * QUERY_BLOCK
      block = sum_block(*(jax.lax.dynamic_slice_in_dim(x, start, QUERY_BLOCK) for x in (rows, classes)))
      return jax.tree.map(lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, start, 0), sums, block)

    blocks = (counted.sum() + QUERY_BLOCK - 1) // QUERY_BLOCK
    with jax.named_scope("query_blocks"):
      zeros = _NegativeSums.zeros(padded.size, dim, bound, with_gradient)
      sums = jax.lax.fori_loop(0, blocks, one_block, zeros)
    place = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32), unique_indices=True)
    sums = jax.tree.map(lambda x: x[place], sums)
  return jax.tree.map(lambda x: x.reshape(batch, num_classes, *x.shape[1:]), sums)


def _sum_block_over_negatives(
  queries: Array, classes: Array, shard: BankShard, bound: Array | None, with_gradient: bool
) -> _NegativeSums:
  """Sums over the negatives of ``Q`` queries, in one pass over the keys.

  Args:
    queries: ``q / tau [Q,C]``.
    classes: ``[Q]`` int32, the class of each query.
    shard, bound, with_gradient: as for `_sum_over_negatives`.

  Returns:
    The sums, ``[Q]``.
  """

  def add_tile(tile: Tile, sums: _NegativeSums) -> _NegativeSums:
    logits = _product(queries, tile.keys, (1, 2))  # [Q,g,t]
    # Two masks in place of one of size Q g t: 0 for negatives, -inf for the query's own class and for empty slots.
    own_class = jnp.where(tile.classes == classes[:, None], -jnp.inf, 0)[..., None]  # [Q,g,1]
    empty = jnp.where(tile.valid, 0, -jnp.inf)  # [g,t]
    largest, exps, weighted_keys = sums.largest, sums.exps, sums.weighted_keys
    shift = largest
    if bound is None:
      largest = jnp.maximum(largest, (logits + own_class + empty).max(axis=(1, 2)))
      shift = jnp.where(largest > -jnp.inf, largest, 0)
      factor = jnp.exp(sums.largest - shift)
      exps, weighted_keys = exps * factor, weighted_keys * factor[:, None]
    weights = jnp.exp(logits + (own_class - shift[:, None, None]) + empty)  # [Q,g,t]
    if with_gradient:
      weighted_keys += _product(weights, tile.keys, (1, 0), (2, 1))
    added, per_class = jax.lax.platform_dependent(
      weights,
      jnp.where(tile.valid, logits, 0),
      cuda=_sums_at_once,
      rocm=_sums_at_once,
      default=_sums_apart,
    )
    logit_sum = jnp.where(own_class[..., 0] == 0, per_class, 0).sum(axis=1)
    return _NegativeSums(largest, exps + added, sums.logits + logit_sum, weighted_keys)

  zeros = _NegativeSums.zeros(queries.shape[0], queries.shape[1], bound, with_gradient)
  sums: _NegativeSums = sum_over_tiles(shard, shard.written > 0, add_tile, zeros)
  return sums


def _sums_apart(weights: Array, logits: Array) -> tuple[Array, Array]:
  """Returns the sum of ``[Q,g,t]`` weights for each query, and that of ``[Q,g,t]`` logits for each query and class."""
  return weights.sum(axis=(1, 2)), logits.sum(axis=2)


def _sums_at_once(weights: Array, logits: Array) -> tuple[Array, Array]:
  """Returns the sums of `_sums_apart`, by one reduction: for a second one, a GPU reads all logits again."""
  zero = jnp.zeros((), jnp.float32)
  of_weights, of_logits = jax.lax.reduce(
    (weights, logits), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (2,)
  )
  return of_weights.sum(axis=1), of_logits


def _sum_over_positives(
  queries: Array, counted: Array, log_s: Array, shard: BankShard, with_gradient: bool
) -> _PositiveSums:
  """Sums over the positives of all queries: the queries of each class, one from an image, against its own bank.

  Args:
    queries: ``q / tau [B,N,C]``.
    counted: ``[B,N]`` bool.
    log_s: ``log S [B,N]``.
    shard: the keys.
    with_gradient: whether ``weighted_keys`` is needed.
  """
  batch, num_classes, dim = queries.shape
  queries, log_s = queries.swapaxes(0, 1), log_s.swapaxes(0, 1)  # [B,N,...] -> [N,B,...]

  def add_tile(tile: Tile, sums: tuple[Array, Array]) -> tuple[Array, Array]:
    def of_tile(x: Array, axis: int = 0) -> Array:
      return jax.lax.dynamic_slice_in_dim(x, tile.start, tile.classes.size, axis)

    def plus(x: Array, added: Array, axis: int) -> Array:
      return jax.lax.dynamic_update_slice_in_dim(x, of_tile(x, axis) + added, tile.start, axis)

    valid = tile.valid[:, None]  # [g,1,t]
    logits = _product(of_tile(queries), tile.keys, (2, 2), shared=1)  # [g,B,t]
    margins = of_tile(log_s)[..., None] - logits  # log S - z+
    weights = jnp.where(valid, jax.nn.sigmoid(margins), 0)
    losses = jnp.where(valid, jax.nn.softplus(margins), 0)
    numbers = jnp.stack([x.sum(axis=2) for x in (losses, jnp.where(valid, logits, 0), weights)])  # [3,g,B]
    weighted_keys = sums[1]
    if with_gradient:
      weighted_keys = plus(weighted_keys, _product(weights, tile.keys, (2, 1), shared=1), 0)
    return plus(sums[0], numbers, 1), weighted_keys

  # One array for the three sums of numbers: each array costs a loop several small operations.
  numbers = jnp.zeros((3, num_classes, batch), jnp.float32)
  weighted_keys = jnp.zeros((num_classes, batch, dim if with_gradient else 0), jnp.float32)
  with jax.named_scope("positives"):
    numbers, weighted_keys = sum_over_tiles(shard, counted.any(axis=0), add_tile, (numbers, weighted_keys))
  losses, logits, weights = numbers.swapaxes(1, 2)
  return _PositiveSums(losses, logits, weights, weighted_keys.swapaxes(0, 1))


def _product(a: Array, b: Array, *contract: tuple[int, int], shared: int = 0) -> Array:
  """Multiplies in the dtype of ``b`` and sums in float32 over pairs of axes; the first ``shared`` axes are shared."""
  # Otherwise a TPU, and a GPU with TensorFloat-32, would round float32 keys.
  precision = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
  common = tuple(range(shared))
  product: Array = jax.lax.dot_general(
    a.astype(b.dtype),
    b,
    ((tuple(pair[0] for pair in contract), tuple(pair[1] for pair in contract)), (common, common)),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return product
