"""Times the input pipeline against a PyTorch ``DataLoader`` that does the same work, in images per second and core.

JAX_PLATFORMS=cpu python -m benchmarks.input_pipeline [--root=CITYSCAPES] [--workers=2] [--rounds=5] [--cache_gb=1]

Frames of 2048x1024 become batches of 4 crops of 769. Each loader decodes, resizes by 0.5 to 2, crops, flips and
normalises to float32. (In training the device normalises; here the reader of the batches does.) ``--root`` names a raw
Cityscapes. Without it the benchmark draws frames that compress like photographs. Frames are repeated to 24 examples.
Without PyTorch the comparison is skipped.

Loaders:

- ``torch, PNG``: the usual code, in ``DataLoader`` workers. Pillow decodes and resizes the full frame, then the worker
  crops, flips, and converts to a normalised float tensor.
- ``raw PNG``, ``raw JPEG``: ``data.train_batches`` on the files, with as many workers, and the same normalisation.
- ``prepared, original``: ``--mode=prepare --encoding=original``: the same files inside ArrayRecord.
- ``prepared, tiles``: the default of ``--mode=prepare``.
- ``raw PNG, cached``: decoded frames kept in memory (``data.cache_gb``).

Inflating a PNG takes 60 of the 80 ms of a raw frame, and every loader of PNGs must inflate them in full. A crop
touches a quarter of the frame on average. Tiles let the loader decode that quarter alone, and zstd inflates several
times as fast. The rest is resizing: the pipeline computes only the pixels of the crop, the usual code all pixels
(eight million at scale 2).
"""

import argparse
import functools
import importlib.util
import inspect
import os
import pathlib
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from benchmarks import timing
from rc_jax import data
from rc_jax.data.augment import options_of, training_crop
from rc_jax.data.prepared import writer
from rc_jax.data.reading.source import FilePairs, decoded_on_access

CROP = (769, 769)
SIZE = (1024, 2048)
BATCH = 4
EXAMPLES = 24
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
AUGMENT = types.SimpleNamespace(scale=(0.5, 2.0), flip=0.5)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--root", default="")
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--batches", type=int, default=12, help="timed in a round")
  parser.add_argument("--cache_gb", type=float, default=1.0)
  arguments = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  with tempfile.TemporaryDirectory() as scratch:
    compare(arguments, pathlib.Path(scratch))


def compare(arguments: argparse.Namespace, scratch: pathlib.Path) -> None:
  """Prepares the sources, times the loaders in turn, and prints the time of each stage."""
  raw = frames(arguments.root, scratch)
  print(
    f"{len(raw)} examples of {'the Cityscapes in ' + arguments.root if arguments.root else 'drawn frames'}"
  )
  sources: dict[str, data.Source] = {"raw PNG": raw, "raw JPEG": as_jpeg(raw, scratch / "jpeg")}
  for encoding in writer.ENCODINGS:
    folder = scratch / encoding
    with writer.locked(folder):
      shards = writer.plan({"train": raw}, encoding)
      writer.write(writer.begin(shards, folder), folder, 0, lambda count: None)
      writer.finish(shards, folder)
    sources[f"prepared, {encoding}"] = data.load("cityscapes", str(folder), "train")
    size = sum(path.stat().st_size for path in folder.iterdir())
    files = sum(shard.raw_bytes() for shard in shards)
    print(f"prepared, {encoding}: {size / 1e6:.1f} MB on disk, {size / files:.2f} of the raw files")
  print_stages(sources)

  workers = arguments.workers
  openers: dict[str, Callable[[], Any]] = {}
  if importlib.util.find_spec("torch"):
    openers["torch, PNG"] = lambda: torch_batches(raw, workers)
  for name, source in sources.items():
    openers[name] = functools.partial(data.train_batches, source, **options(workers))
  if "cache_gb" in inspect.signature(data.train_batches).parameters:
    openers["raw PNG, cached"] = functools.partial(
      data.train_batches, raw, **options(workers), cache_gb=arguments.cache_gb
    )
  seconds: dict[str, list[float]] = {name: [] for name in openers}
  for number in range(arguments.rounds):
    # One loader at a time, because loaders read ahead; every other round in reverse order.
    for name, opener in list(openers.items())[:: -1 if number % 2 else 1]:
      seconds[name].append(time_batches(opener, arguments.batches, workers, "cached" in name))
  reference = next(iter(openers))
  print(
    f"{arguments.batches} batches of {BATCH} crops of {CROP[0]}, {workers} workers, {os.cpu_count()} cores"
  )
  print(timing.table(seconds, reference))
  cores = min(max(workers, 1), os.cpu_count() or 1)
  for name, values in seconds.items():
    rate = arguments.batches * BATCH / float(np.median(values))
    ratio = float(np.median(np.array(seconds[reference]) / np.array(values)))
    print(f"{name:22s} {rate:6.1f} images/s, {rate / cores:5.1f} a core, {ratio:5.2f} x {reference}")


def time_batches(opener: Callable[[], Any], count: int, workers: int, cached: bool) -> float:
  """Opens a loader, reads some batches, and returns the seconds that ``count`` further batches take."""
  batches = opener()
  try:
    # Batches that were read ahead while the processes started would count as free.
    for _ in range(1 + 3 * max(workers, 1) + (EXAMPLES // BATCH if cached else 0)):
      normalised(next(batches))
    start = time.perf_counter()
    for _ in range(count):
      normalised(next(batches))
    return time.perf_counter() - start
  finally:
    if hasattr(batches, "close"):
      batches.close()
    del batches


def options(workers: int) -> dict[str, Any]:
  """Returns the arguments of ``train_batches``."""
  return {
    "seed": 0,
    "batch_size": BATCH,
    "crop_size": CROP,
    "augment": AUGMENT,
    "workers": workers,
    "threads": 1,
  }


def normalised(batch: Any) -> Any:
  """Normalises a batch as the network does on the device, so that all loaders do the same work."""
  if not isinstance(batch, dict):
    return batch  # PyTorch's workers have normalised it
  image = np.multiply(batch["image"], 1 / (255 * STD), dtype=np.float32)
  image -= MEAN / STD
  return image, batch["label"]


class TorchFrames:
  """The usual data set of PyTorch segmentation codes, which decodes and resizes full frames."""

  def __init__(self, source: FilePairs):
    self.source = source
    self.table = np.full(256, 255, np.uint8)
    for own_id, train_id in source.train_ids.items():
      self.table[own_id] = train_id

  def __len__(self) -> int:
    return 10**6

  def __getitem__(self, index: int) -> Any:
    import torch

    assert self.source.labels is not None
    rng = np.random.default_rng(index)
    place = index % len(self.source)
    image = Image.open(self.source.images[place]).convert("RGB")
    label = Image.open(self.source.labels[place])
    factor = rng.uniform(*AUGMENT.scale)
    size = (round(image.width * factor), round(image.height * factor))
    image = image.resize(size, Image.Resampling.BILINEAR)
    label = label.resize(size, Image.Resampling.NEAREST)
    left = int(rng.integers(max(0, size[0] - CROP[1]) + 1))
    top = int(rng.integers(max(0, size[1] - CROP[0]) + 1))
    box = (left, top, left + CROP[1], top + CROP[0])  # Pillow fills what lies outside
    image, label = image.crop(box), label.crop(box)
    if rng.random() < AUGMENT.flip:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    pixels.sub_(torch.from_numpy(MEAN).view(3, 1, 1)).div_(torch.from_numpy(STD).view(3, 1, 1))
    return pixels, torch.from_numpy(self.table[np.array(label)])


def torch_batches(source: FilePairs, workers: int) -> Iterator[Any]:
  """Returns the batches of a ``DataLoader``."""
  import torch.utils.data

  torch.set_num_threads(1)
  return iter(torch.utils.data.DataLoader(TorchFrames(source), batch_size=BATCH, num_workers=workers))  # type: ignore[arg-type]


def frames(root: str, scratch: pathlib.Path) -> FilePairs:
  """Returns raw frames, repeated to ``EXAMPLES``."""
  if not root:
    root = str(draw_frames(scratch / "drawn"))
  source = data.DATASETS["cityscapes"].load(root, "train")
  assert isinstance(source, FilePairs) and source.labels is not None
  order = [index % len(source) for index in range(EXAMPLES)]
  return FilePairs(
    source.info,
    tuple(source.images[index] for index in order),
    tuple(source.labels[index] for index in order),
    source.train_ids,
  )


def as_jpeg(source: FilePairs, folder: pathlib.Path) -> FilePairs:
  """Writes the same images as JPEG files of quality 95."""
  folder.mkdir()
  made = {path: folder / f"{path.stem}.jpg" for path in source.images}
  for path, jpeg in made.items():
    Image.open(path).save(jpeg, quality=95)
  return FilePairs(source.info, tuple(made[path] for path in source.images), source.labels, source.train_ids)


def draw_frames(root: pathlib.Path) -> pathlib.Path:
  """Draws four frames whose PNGs are about as large as Cityscapes' (2.2 MB): shapes, slopes and a sensor's noise."""
  rng = np.random.default_rng(0)
  for kind in ("leftImg8bit", "gtFine"):
    (root / kind / "train" / "city").mkdir(parents=True)
  for number in range(4):
    coarse = Image.fromarray(rng.integers(0, 256, (16, 32, 3), np.uint8))
    image = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(np.float32)
    ids = Image.fromarray(rng.integers(0, 34, (16, 32), np.uint8)).resize(
      SIZE[::-1], Image.Resampling.NEAREST
    )
    image += np.asarray(ids)[..., None] + rng.normal(0, 0.6, (*SIZE, 1))
    name = f"city_{number:06d}_000019"
    pixels = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    pixels.save(root / "leftImg8bit" / "train" / "city" / f"{name}_leftImg8bit.png")
    ids.save(root / "gtFine" / "train" / "city" / f"{name}_gtFine_labelIds.png")
  return root


def print_stages(sources: dict[str, data.Source]) -> None:
  """Prints the time of each stage of an example on one core, and of copying a batch between processes."""
  print(
    "milliseconds of one core an image: reading and decoding, augmentation (of tiles: with their decoding)"
  )
  fields = options_of(AUGMENT)
  for name, source in sources.items():
    decode, augment = [], []
    tiled = decoded_on_access(source)
    for index in range(2 * EXAMPLES):
      start = time.process_time()
      example = tiled[index % len(source)]
      middle = time.process_time()
      rng = np.random.default_rng(index)
      training_crop(example["image"], example["label"], rng, crop_size=CROP, options=fields)
      decode.append(middle - start)
      augment.append(time.process_time() - middle)
    one, other = 1e3 * float(np.mean(decode)), 1e3 * float(np.mean(augment))
    print(f"{name:22s} {one:6.1f} {other:6.1f}   ({one / (one + other):.0%} reading and decoding)")
  batch = {"image": np.zeros((BATCH, *CROP, 3), np.uint8), "label": np.zeros((BATCH, *CROP), np.uint8)}
  start = time.process_time()
  for _ in range(20):
    {name: np.array(value) for name, value in batch.items()}
  print(
    f"a copy of a batch, as between processes: {(time.process_time() - start) / 20 / BATCH * 1e3:.1f} ms an image"
  )


if __name__ == "__main__":
  main()
