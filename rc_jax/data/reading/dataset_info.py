"""The classes of a data set: names, colours, ids, and the rules of its benchmark."""

import dataclasses
from typing import Literal

import numpy as np

IGNORE_LABEL = 255

AbsentClass = Literal["unless_predicted", "not_in_truth", "zero"]


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInfo:
  """The classes of a data set, in the order of their train ids ``0..N-1``.

  Attributes:
    name: the data set's name in ``config.dataset.name``.
    class_names: ``N`` names.
    palette: uint8 ``[N,3]``, the RGB colour that pictures give each class.
    label_ids: int ``[N]``, train id -> the data set's own id, in which predictions are written.
    ignore_label: the value of pixels that count nowhere.
    absent_class: what the mean IoU does with a class without true positives in the evaluated images: left out
      unless it was predicted, left out if the ground truth lacks it, or scored 0. Each benchmark has its own rule.
    categories: of each class, where the benchmark also scores groups of classes; otherwise empty.
  """

  name: str
  class_names: tuple[str, ...]
  palette: np.ndarray
  label_ids: np.ndarray
  ignore_label: int = IGNORE_LABEL
  absent_class: AbsentClass = "unless_predicted"
  categories: tuple[str, ...] = ()

  @property
  def num_classes(self) -> int:
    return len(self.class_names)
