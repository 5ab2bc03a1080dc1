"""Equation 4 over banks of any size: the keys pass by in tiles, and nothing of size queries x keys exists.

Banks are constants, so the gradient of a query's loss can be summed up while its keys pass by. With logits
``z = q.k/tau``, ``P`` the number of positives and ``S = sum over k- of exp(z-)``,

``l(q) = 1/P sum over k+ of softplus(log S - z+)``
``dl/dq = 1/(tau P) sum over k+ of w+ ( sum over k- of exp(z-)/S k-  -  k+ )``,  ``w+ = sigmoid(log S - z+)``

so one pass over all banks gives ``log S`` and its gradient, the sum over ``k-``, for every query, and a second one over
the banks of the queries' own classes gives the rest. The backward pass multiplies by what came in.

A small problem is one tile, and then nothing is repeated. Where the slots are sharded, each device lets its own pass
by, and what crosses between devices is of size queries x C.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rc_jax.contrast.memory_bank import MemoryBank

# Queries that share one pass over the banks. More read the banks less often, but a pass takes as long for one query
# as for all of them; and beyond 160, the weights of a tile's keys outgrow what a TPU v5e keeps near its matrix units:
# 256 take 1.7 x as long.
QUERY_BLOCK = 160
# Keys that pass by at once, of as many classes as that takes. Each turn of a loop costs some microseconds whatever it
# does, and each key makes QUERY_BLOCK logits.
KEY_TILE = 32_768
# Up to so many keys on a device are one tile.
ONE_TILE = 65_536
# A logit of unit vectors is at most 1/tau, which replaces the largest one in the log-sum-exp. Below this tau, all of
# exp(z - 1/tau) may vanish in float32 (z may be -1/tau), and the largest is looked for.
LEAST_BOUNDED_TEMPERATURE = 0.025


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


def streamed_contrast(
  queries: Array, present: Array, bank: MemoryBank, temperature: Array, bounded: bool
) -> Terms:
  """Computes ``l(q)`` of every query against the banks.

  Args:
    queries: ``[B,N,C]`` float32, of unit length where present.
    present: ``[B,N]`` bool.
    bank: the banks, constants. Products are of the keys' dtype, sums are float32.
    temperature: ``tau``, a float32 scalar.
    bounded: whether ``tau`` is known to be at least ``LEAST_BOUNDED_TEMPERATURE``.

  Source: RegionContrast, Eq. 4.
  """
  return _streamed(queries, present, bank, temperature, bounded)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _streamed(queries: Array, present: Array, bank: MemoryBank, temperature: Array, bounded: bool) -> Terms:
  return _on_all_devices(queries, present, bank, temperature, bounded, with_gradient=False)[0]


def _forward(
  queries: Array, present: Array, bank: MemoryBank, temperature: Array, bounded: bool
) -> tuple[Terms, tuple[Array, ...]]:
  terms, gradient = _on_all_devices(queries, present, bank, temperature, bounded, with_gradient=True)
  # An absent query may hold anything.
  return terms, (jnp.where(present[..., None], queries, 0), gradient, temperature)


def _backward(bounded: bool, residuals: tuple[Array, ...], cotangents: Terms) -> tuple[Array | None, ...]:
  queries, gradient, temperature = residuals
  d_queries = cotangents.loss[..., None] * gradient
  # l depends on q / tau alone.
  d_temperature = -jnp.sum(d_queries * queries) / temperature
  return d_queries, None, None, d_temperature


_streamed.defvjp(_forward, _backward)


def _on_all_devices(
  queries: Array, present: Array, bank: MemoryBank, temperature: Array, bounded: bool, with_gradient: bool
) -> tuple[Terms, Array]:
  stream = functools.partial(
    _stream,
    capacity=bank.capacity,
    axis=None if bank.mesh is None else bank.axis,
    bounded=bounded,
    with_gradient=with_gradient,
  )
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
    largest: of the logits ``z-``, -inf where there is none; or, instead, a bound on all logits.
    exps: sum of ``exp(z- - largest)``.
    logits: sum of ``z-``.
    pull: sum of ``exp(z- - largest) k-``, ``[Q,C]``; ``[Q,0]`` where no gradient is asked for.
  """

  largest: Array
  exps: Array
  logits: Array
  pull: Array


class _Part(NamedTuple):
  """The slots of the banks that lie on this device.

  Attributes:
    keys: ``[N,m,C]``.
    here: ``[N]`` int32, how many of a class's slots have been written.
    usable: int32 scalar, how many ever will be; those behind are zeros for good.
  """

  keys: Array
  here: Array
  usable: Array


def _stream(
  queries: Array,
  present: Array,
  keys: Array,
  count: Array,
  temperature: Array,
  capacity: int,
  axis: str | None,
  bounded: bool,
  with_gradient: bool,
) -> tuple[Terms, Array]:
  """Terms, and ``dl/dq [B,N,C]`` of each; ``keys [N,m,C]`` are this device's slots, ``count`` that of all."""
  total = count.sum()
  counted = present & (count > 0) & (total > count)  # [B,N]
  scaled = jnp.where(counted[..., None], queries, 0) / temperature
  first = 0 if axis is None else jax.lax.axis_index(axis) * keys.shape[1]
  slots = keys.shape[1]
  part = _Part(keys, jnp.clip(count - first, 0, slots), jnp.clip(capacity - first, 0, slots))
  if _is_one_tile(keys):
    part = part._replace(keys=_cleared(keys, jnp.arange(slots) < part.here[:, None]))

  bound = 1 / temperature if bounded else None
  sums = _all_negatives(scaled, counted, part, bound, with_gradient)
  if axis is not None:
    if not bounded:
      largest = jax.lax.pmax(sums.largest, axis)
      factor = jnp.exp(sums.largest - jnp.where(largest > -jnp.inf, largest, 0))
      sums = _Sums(largest, sums.exps * factor, sums.logits, sums.pull * factor[..., None])
    sums = _Sums(sums.largest, *_add_up((sums.exps, sums.logits, sums.pull), axis))
  exps = jnp.where(counted, sums.exps, 1)
  log_sum = jnp.where(counted, jnp.log(exps) + sums.largest, 0)

  parts = _positives(scaled, counted, log_sum, part, with_gradient)
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


def _all_negatives(
  queries: Array, counted: Array, part: _Part, bound: Array | None, with_gradient: bool
) -> _Sums:
  """Sums over the negatives of all queries ``[B,N,C]``: ``_Sums`` of ``[B,N]``."""
  batch, num_classes, dim = queries.shape
  size = batch * num_classes
  classes = jnp.arange(size, dtype=jnp.int32) % num_classes
  rows = queries.reshape(size, dim)
  pass_by = functools.partial(_pass_by, part=part, bound=bound, with_gradient=with_gradient)

  if size <= QUERY_BLOCK:
    sums = pass_by(rows, classes)
  else:
    # The queries that count come first, and the loop over blocks ends with them.
    order = jnp.argsort(~counted.reshape(-1), stable=True)
    padded = jnp.pad(order, (0, -size % QUERY_BLOCK))
    rows, classes = rows[padded], classes[padded]

    def one_block(i: Array, found: _Sums) -> _Sums:
      start = i * QUERY_BLOCK
      some, theirs = (jax.lax.dynamic_slice_in_dim(x, start, QUERY_BLOCK) for x in (rows, classes))
      return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0),
        found,
        pass_by(some, theirs),
      )

    blocks = (counted.sum() + QUERY_BLOCK - 1) // QUERY_BLOCK
    with jax.named_scope("query_blocks"):
      sums = jax.lax.fori_loop(0, blocks, one_block, _no_sums(padded.size, dim, bound, with_gradient))
    back = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32), unique_indices=True)
    sums = jax.tree.map(lambda x: x[back], sums)
  return jax.tree.map(lambda x: x.reshape(batch, num_classes, *x.shape[1:]), sums)


def _no_sums(queries: int, dim: int, bound: Array | None, with_gradient: bool) -> _Sums:
  largest = jnp.full(queries, -jnp.inf if bound is None else bound, jnp.float32)
  zeros = jnp.zeros(queries)
  return _Sums(largest, zeros, zeros, jnp.zeros((queries, dim if with_gradient else 0)))


def _pass_by(queries: Array, classes: Array, part: _Part, bound: Array | None, with_gradient: bool) -> _Sums:
  """Lets all keys pass by some queries.

  Args:
    queries: ``[Q,C]``, divided by ``tau``; classes: ``[Q]``.
    part: the keys.
    bound: on all logits; None: the largest is looked for.
    with_gradient: whether ``pull`` is asked for.
  """

  def add_tile(tile: _Tile, sums: _Sums) -> _Sums:
    logits = _product(queries, tile.keys, (1, 2))  # [Q,g,t]
    # In two steps, of which none is of size Q g t: 0 for negatives, -inf for all else.
    not_own = jnp.where(tile.classes == classes[:, None], -jnp.inf, 0)[..., None]  # [Q,g,1]
    written = jnp.where(tile.valid, 0, -jnp.inf)  # [g,t]
    largest, exps, pull = sums.largest, sums.exps, sums.pull
    shift = largest
    if bound is None:
      largest = jnp.maximum(largest, (logits + not_own + written).max(axis=(1, 2)))
      shift = jnp.where(largest > -jnp.inf, largest, 0)
      before = jnp.exp(sums.largest - shift)
      exps, pull = exps * before, pull * before[:, None]
    weights = jnp.exp(logits + (not_own - shift[:, None, None]) + written)
    if with_gradient:
      pull += _product(weights, tile.keys, (1, 0), (2, 1))
    per_class = jnp.where(tile.valid, logits, 0).sum(axis=2)
    added = jnp.where(not_own[..., 0] == 0, per_class, 0).sum(axis=1)
    return _Sums(largest, exps + weights.sum(axis=(1, 2)), sums.logits + added, pull)

  start = _no_sums(queries.shape[0], queries.shape[1], bound, with_gradient)
  return _for_each_tile(part, part.here > 0, add_tile, start)


class _Tile(NamedTuple):
  """Neighbouring slots of neighbouring classes.

  Attributes:
    classes: ``[g]`` int32.
    keys: ``[g,t,C]``; what is not valid is finite.
    valid: ``[g,t]`` bool.
    start: int32 scalar, the first of the classes.
  """

  classes: Array
  keys: Array
  valid: Array
  start: Array


def loop_trips(num_classes: int, slots: int, queries: int) -> dict[str, int]:
  """Tells how often the loops go round: for estimates of a compiled program, which shows no trips that data decide.

  Args:
    num_classes: ``N``.
    slots: of each class on a device, all of them written.
    queries: how many count.

  Returns:
    The name of a ``jax.named_scope`` around a loop -> trips.
  """
  g, t = _tile_shape(num_classes, slots)
  tiles = -(-num_classes // g) * -(-slots // t)
  return {"query_blocks": -(-queries // QUERY_BLOCK), "whole_tiles": tiles, "other_tiles": 0}


def _tile_shape(num_classes: int, slots: int) -> tuple[int, int]:
  t = min(slots, KEY_TILE)
  return min(num_classes, max(1, KEY_TILE // t)), t


def _is_one_tile(keys: Array) -> bool:
  return keys.shape[0] * keys.shape[1] <= ONE_TILE


def _cleared(keys: Array, written: Array) -> Array:
  """Zeros where no key was ever written, which may hold anything: 0 x anything is not always 0."""
  # Behind the barrier it is done once, not inside each product.
  cleared: Array = jax.lax.optimization_barrier(jnp.where(written[..., None], keys, 0))
  return cleared


def _for_each_tile(part: _Part, wanted: Array, add: Callable[[_Tile, Any], Any], sums: Any) -> Any:
  """Adds up tiles, those without a key or without a class that is ``wanted [N]`` left out.

  On a TPU, clearing what was never written takes as long as the products, and in full banks nothing is to clear: such
  tiles have a loop of their own.

  Args:
    part: the keys on this device, cleared where they are one tile.
    wanted: ``[N]`` bool.
    add: ``(tile, sums) -> sums``.
    sums: before the first tile.
  """
  num_classes, slots, dim = part.keys.shape
  if _is_one_tile(part.keys):
    everything = jnp.arange(num_classes, dtype=jnp.int32), part.keys, jnp.arange(slots) < part.here[:, None]
    return add(_Tile(*everything, start=jnp.int32(0)), sums)
  g, t = _tile_shape(num_classes, slots)
  rows, columns = -(-num_classes // g), -(-slots // t)
  # The last tiles start early to be as large as the others, and leave out what was there before.
  row_of, column_of = jnp.arange(rows) * g, jnp.arange(columns) * t
  starts = jnp.minimum(row_of, num_classes - g)[:, None]
  classes = jnp.arange(num_classes)
  inside = (classes >= starts) & (classes < starts + g)  # [rows,N]
  new_here = inside & (classes >= row_of[:, None])
  asked = wanted & (part.here > column_of[:, None])  # [columns,N]
  visited = (new_here[:, None] & asked).any(axis=2).reshape(-1)
  whole = (~inside | (part.here >= part.usable)).all(axis=1).repeat(columns)

  def body(clear: bool, order: Array) -> Callable[[Array, Any], Any]:
    def one(i: Array, sums: Any) -> Any:
      # Tied to the loop: a CPU would otherwise turn all of a bfloat16 bank into float32 before it.
      bank, _ = jax.lax.optimization_barrier((part.keys, i))
      corner = row_of[order[i] // columns], column_of[order[i] % columns]
      row, column = jnp.minimum(corner[0], num_classes - g), jnp.minimum(corner[1], slots - t)
      classes, at = row + jnp.arange(g, dtype=jnp.int32), column + jnp.arange(t)
      keys = jax.lax.dynamic_slice(bank, (row, column, 0), (g, t, dim))
      written = at < jax.lax.dynamic_slice_in_dim(part.here, row, g)[:, None]
      if clear:
        keys = _cleared(keys, written)
      new = (classes >= corner[0])[:, None] & (at >= corner[1])
      return add(_Tile(classes, keys, written & new, row), sums)

    return one

  for name, clear, chosen in (
    ("whole_tiles", False, visited & whole),
    ("other_tiles", True, visited & ~whole),
  ):
    order = jnp.argsort(~chosen, stable=True)
    with jax.named_scope(name):
      sums = jax.lax.fori_loop(0, chosen.sum(), body(clear, order), sums)
  return sums


def _product(a: Array, b: Array, *contract: tuple[int, int], shared: int = 0) -> Array:
  """A product in the dtype of ``b``, summed in float32 over pairs of axes; the first ``shared`` axes are shared."""
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


def _positives(
  queries: Array, counted: Array, log_sum: Array, part: _Part, with_gradient: bool
) -> tuple[Array, Array, Array, Array]:
  """Sums over each query's positives: each class's queries against its own bank, at most one from an image.

  Args:
    queries: ``[B,N,C]``, divided by ``tau``; counted: ``[B,N]``; log_sum: ``log S [B,N]``.
    part: the keys.
    with_gradient: whether the last result is asked for; otherwise it is ``[B,N,0]``.

  Returns:
    Sums of ``softplus(log S - z+)``, of ``z+`` and of ``w+``, ``[B,N]`` each, and of ``w+ k+ [B,N,C]``.
  """
  batch, num_classes, dim = queries.shape
  queries, log_sum = queries.swapaxes(0, 1), log_sum.swapaxes(0, 1)  # classes first

  def add_tile(tile: _Tile, sums: tuple[Array, ...]) -> tuple[Array, ...]:
    def of_tile(x: Array) -> Array:
      return jax.lax.dynamic_slice_in_dim(x, tile.start, tile.classes.size)

    valid = tile.valid[:, None]  # [g,1,t]
    logits = _product(of_tile(queries), tile.keys, (2, 2), shared=1)  # [g,B,t]
    margins = of_tile(log_sum)[..., None] - logits
    weights = jnp.where(valid, jax.nn.sigmoid(margins), 0)
    added = [
      jnp.where(valid, jax.nn.softplus(margins), 0).sum(axis=2),
      jnp.where(valid, logits, 0).sum(axis=2),
      weights.sum(axis=2),
      _product(weights, tile.keys, (2, 1), shared=1) if with_gradient else jnp.zeros((*weights.shape[:2], 0)),
    ]
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(whole, of_tile(whole) + one, tile.start, 0)
      for whole, one in zip(sums, added, strict=True)
    )

  zeros = jnp.zeros((num_classes, batch))
  start = (zeros, zeros, zeros, jnp.zeros((num_classes, batch, dim if with_gradient else 0)))
  with jax.named_scope("positives"):
    sums = _for_each_tile(part, counted.any(axis=0), add_tile, start)
  losses, logits, weights, push = (x.swapaxes(0, 1) for x in sums)
  return losses, logits, weights, push
