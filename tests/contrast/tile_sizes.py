"""The sizes of tiles and query blocks in which the loss reads memory banks, made small for small banks."""

import contextlib
import unittest.mock
from collections.abc import Iterator

from rc_jax.contrast import streamed, tiles


@contextlib.contextmanager
def tile_sizes(
  one_tile: int = tiles.ONE_TILE,
  key_tile: int = tiles.KEY_TILE,
  query_block: int = streamed.QUERY_BLOCK,
  every_tile: bool = False,
) -> Iterator[None]:
  """Within the block, functions are traced with these sizes; with ``every_tile`` in the form of GPUs."""

  def over_every_tile(shard, wanted, add, zeros):
    return tiles.over_every_tile(shard, add, zeros, key_tile)

  with (
    unittest.mock.patch.object(
      tiles, "_over_needed_tiles", over_every_tile if every_tile else tiles._over_needed_tiles
    ),
    unittest.mock.patch.multiple(tiles, ONE_TILE=one_tile, KEY_TILE=key_tile),
    unittest.mock.patch.object(streamed, "QUERY_BLOCK", query_block),
  ):
    yield
