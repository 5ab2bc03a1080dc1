"""The sizes of tiles and query blocks in which the loss reads memory banks, made small for small banks."""

import contextlib
import unittest.mock
from collections.abc import Iterator

from rc_jax.contrast import streamed, tiles

# How banks are read: as one tile, or in tiles that divide neither the queries nor the classes nor the slots. Of banks
# with 5 slots, 16 slots are three classes and a part of the next.
FORMS = {
  "one tile": {"one_tile": 1 << 24},
  "one tile, on a GPU": {"one_tile": 1 << 24, "as_on_gpus": True},
  "three classes": {"one_tile": 0, "query_block": 5, "key_tile": 16},
  "three slots": {"one_tile": 0, "query_block": 5, "key_tile": 3},
  "all keys, on a GPU": {"one_tile": 0, "query_block": 5, "key_tile": 1 << 24, "as_on_gpus": True},
  "three classes, on a GPU": {"one_tile": 0, "query_block": 5, "key_tile": 16, "as_on_gpus": True},
  "three slots, on a GPU": {"one_tile": 0, "query_block": 5, "key_tile": 3, "as_on_gpus": True},
}


@contextlib.contextmanager
def tile_sizes(
  one_tile: int = tiles.ONE_TILE,
  key_tile: int = tiles.KEY_TILE,
  query_block: int = streamed.QUERY_BLOCK,
  as_on_gpus: bool = False,
) -> Iterator[None]:
  """Within the block, functions are traced with these sizes; with ``as_on_gpus`` in the form of GPUs."""

  def over_every_tile(shard, wanted, add, zeros):
    return tiles.over_every_tile(shard, add, zeros, key_tile)

  with (
    unittest.mock.patch.object(
      tiles, "_over_needed_tiles", over_every_tile if as_on_gpus else tiles._over_needed_tiles
    ),
    unittest.mock.patch.object(
      streamed, "_sums_apart", streamed._sums_at_once if as_on_gpus else streamed._sums_apart
    ),
    unittest.mock.patch.multiple(tiles, ONE_TILE=one_tile, KEY_TILE=key_tile),
    unittest.mock.patch.object(streamed, "QUERY_BLOCK", query_block),
  ):
    yield
