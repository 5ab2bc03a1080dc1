"""An image with its ground truth and its prediction, and the panels that show them side by side."""

import dataclasses

import numpy as np

from rc_jax.data import DatasetInfo
from rc_jax.drawing.panels import colorize, differences, shrunk

PANELS = ("Image", "Ground truth", "Prediction", "Differences")


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """An image of the split with its prediction.

  Attributes:
    name: of the image.
    image: uint8 ``[H,W,3]``.
    truth: uint8 ``[H,W]``, train ids, 255 where ignored.
    prediction: ``[H,W]``, train ids.
    pixel_accuracy: in 0..1; None where all pixels are ignored.
    miou: mean IoU of the classes in this image, in 0..1; None likewise.
  """

  name: str
  image: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray
  pixel_accuracy: float | None
  miou: float | None


def panels_of(
  picture: Picture, info: DatasetInfo, height: int, width: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns the panels that ``PANELS`` names, uint8 ``[h,w,3]`` each.

  Args:
    picture: of any size.
    info: colours of the classes.
    height: the largest of a panel, in pixels; larger pictures are shrunk.
    width: likewise; None: any.
  """
  image, truth, prediction = (
    shrunk(array, height, width)
    for array in (picture.image, picture.truth, picture.prediction.astype(np.uint8))
  )
  return (
    image,
    colorize(truth, info.palette),
    colorize(prediction, info.palette),
    differences(image, truth, prediction),
  )
