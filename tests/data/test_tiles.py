"""Tiles are lossless for any index, and only the tiles that it touches are decoded."""

import numpy as np
import pyarrow
import pytest

from rc_jax.data.augment import options_of, training_crop
from rc_jax.data.prepared import tiles


@pytest.mark.parametrize("shape", [(1, 1, 3), (33, 47, 3), (16, 16, 3), (40, 31), (5, 70, 3)])
def test_any_window_is_that_of_the_array(shape):
  rng = np.random.default_rng(sum(shape))
  pixels = rng.integers(0, 256, shape, np.uint8)
  tiled = tiles.TiledArray(tiles.encode(pixels, side=16), "record 7")
  assert (
    tiled.shape == shape and tiled.ndim == len(shape) and tiled.dtype == np.uint8 and len(tiled) == shape[0]
  )
  np.testing.assert_array_equal(np.asarray(tiled), pixels)
  for _ in range(40):
    (top, bottom), (left, right) = (np.sort(rng.integers(0, size + 1, 2)) for size in shape[:2])
    np.testing.assert_array_equal(tiled[top:bottom, left:right], pixels[top:bottom, left:right])
  rows, columns = (rng.integers(-size, size, 9) for size in shape[:2])
  for key in (
    (rows[:, None], columns),
    (np.abs(rows)[:, None] // 2, np.abs(columns) // 2),
    (slice(None), slice(None, None, -1)),
    slice(shape[0] // 2, None),
    (slice(-3, None), slice(0, -1)),
  ):
    np.testing.assert_array_equal(tiled[key], pixels[key])
  with pytest.raises(IndexError):
    tiled[np.array([[shape[0]]]), np.array([0])]


def test_a_crop_of_tiles_is_that_of_the_array():
  rng = np.random.default_rng(1)
  image, label = rng.integers(0, 256, (300, 500, 3), np.uint8), rng.integers(0, 20, (300, 500), np.uint8)
  tiled = [tiles.TiledArray(tiles.encode(pixels, side=64), "") for pixels in (image, label)]
  for seed in range(30):
    found, expected = (
      training_crop(*pixels, np.random.default_rng(seed), crop_size=(160, 200), options=options_of())
      for pixels in (tiled, (image, label))
    )
    for one, other in zip(found, expected, strict=True):
      np.testing.assert_array_equal(one, other)


def test_a_window_decodes_the_tiles_that_it_touches(monkeypatch):
  tiled = tiles.TiledArray(tiles.encode(np.zeros((100, 100, 3), np.uint8), side=10), "")
  calls = []
  decompress = pyarrow.decompress
  monkeypatch.setattr(
    pyarrow, "decompress", lambda *given, **named: calls.append(0) or decompress(*given, **named)
  )
  tiled[20:30, 39:51]
  assert len(calls) == 3
  tiled[25, 45:46]
  assert len(calls) == 4


@pytest.mark.parametrize("damage", ["cut", "magic", "tile"])
def test_damage_is_one_line_that_names_the_record(damage):
  content = bytearray(tiles.encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), side=20))
  if damage == "tile":
    content[-400:-380] = bytes(20)
    content[20 + 16 : 20 + 20] = b"\xff" * 4  # the first tile's frame header
  content = bytes(content)
  content = {"cut": content[:-1], "magic": b"RCT9" + content[4:], "tile": content}[damage]
  with pytest.raises(ValueError, match="record 7") as error:
    np.asarray(tiles.TiledArray(content, "record 7"))
  assert "\n" not in str(error.value)
