"""Times scoring against mmsegmentation's DeepLabV3 on ResNet-50: full images and sliding windows.

python -m benchmarks.evaluation

Both score the same images of one size from memory, with the same random weights in float32, and count the pixels of
each class. mmsegmentation runs the functions of its ``test`` loop: ``inference``, ``argmax``, ``intersect_and_union``.
Needs the extra ``parity``; runs on the CPU.
"""

import argparse
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from benchmarks.timing import in_turn, table
from rc_jax.config import defaults
from rc_jax.data import Example
from rc_jax.data.datasets import cityscapes
from rc_jax.evaluation.evaluator import make_evaluator
from tests.support import originals
from tests.support.mmsegmentation import COMMON, auxiliary, resnet_v1c

torch = originals.torch
CLASSES = cityscapes.INFO.num_classes


class InMemory:
  """Random images and labels of one size."""

  info = cityscapes.INFO
  labelled = True

  def __init__(self, count: int, size: tuple[int, int]):
    self.images = originals.images(size, count)
    rng = np.random.default_rng(1)
    self.labels = rng.integers(0, CLASSES, (count, *size)).astype(np.uint8)

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int, /) -> Example:
    return {"image": self.images[index], "label": self.labels[index], "name": str(index)}


def original():
  """Builds mmsegmentation's network of its config ``deeplabv3_r50-d8``."""
  common = COMMON | {"num_classes": CLASSES}
  head = common | {"type": "ASPPHead", "dilations": (1, 12, 24, 36), "in_channels": 2048, "channels": 512}
  network = {
    "type": "EncoderDecoder",
    "backbone": resnet_v1c(50),
    "decode_head": head | {"in_index": 3},
    "auxiliary_head": auxiliary(1024) | {"num_classes": CLASSES, "channels": 256},
  }
  return originals.randomize(originals.mmsegmentation().build(network), seed=0).eval()


def scores_of_original(model, source: InMemory) -> np.ndarray:
  """Returns areas of intersection, union, prediction and label ``[4,N]``, summed over the images."""
  from mmseg.evaluation import IoUMetric

  areas = []
  for image, label in zip(source.images, source.labels, strict=True):
    with torch.no_grad():
      size = label.shape
      meta = {"ori_shape": size, "img_shape": size, "pad_shape": size, "padding_size": [0] * 4}
      prediction = model.inference(originals.normalized(image[None]), [meta])[0].argmax(dim=0)
    areas.append(IoUMetric.intersect_and_union(prediction, torch.tensor(label), CLASSES, 255))
  return np.array([[part.numpy() for part in of_image] for of_image in areas]).sum(axis=0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--height", type=int, default=256)
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--window", type=int, default=192)
  parser.add_argument("--images", type=int, default=2)
  parser.add_argument(
    "--batch_size", type=int, default=1, help="images or windows that rc_jax computes at a time"
  )
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  theirs = original()
  from mmengine.config import ConfigDict

  size, window = (arguments.height, arguments.width), arguments.window
  source = InMemory(arguments.images, size)
  fields = {"align_corners": False, "ceil_pool": False, "channels": 512, "stem": "32-32-64"}
  with tempfile.TemporaryDirectory() as folder:
    saved = {"state_dict": theirs.state_dict()}
    network, _, variables, _ = originals.imported(
      saved, pathlib.Path(folder), CLASSES, multi_grid=(1, 1, 1), **fields
    )
  stride = -(-window * 2 // 3)
  print(
    f"{arguments.images} images of {size[0]} x {size[1]}, windows of {window} every {stride} pixels, rc_jax's batch "
    f"{arguments.batch_size}, float32, on {os.cpu_count()} CPU cores, jax {jax.__version__}, "
    f"torch {torch.__version__}"
  )
  for mode in ("whole", "slide"):
    config = defaults()
    config.eval.batch_size = arguments.batch_size
    if mode == "slide":
      config.eval.crop_size = (window, window)
    evaluator = make_evaluator(network, source, config)
    theirs.test_cfg = ConfigDict(mode=mode, crop_size=(window, window), stride=(stride, stride))
    _, counts = evaluator(*variables, None)
    areas = scores_of_original(theirs, source)
    union = counts.true_positives + counts.false_positives + counts.false_negatives
    ours = np.stack([counts.true_positives.sum(0), union.sum(0)])
    apart = np.abs(ours - areas[:2]).sum() / areas[1].sum()
    candidates = {
      "mmsegmentation": lambda: scores_of_original(theirs, source),
      "rc_jax": lambda evaluator=evaluator: evaluator(*variables, None)[1].confusion,
    }
    seconds = in_turn(candidates, arguments.rounds)
    print(f"\n{mode}: seconds for all images; areas differ by {apart:.1e} of their sum\n")
    print(table(seconds, "mmsegmentation"))
    rates = {name: arguments.images / float(np.median(values)) for name, values in seconds.items()}
    print("\nimages per second: " + ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))


if __name__ == "__main__":
  main()
