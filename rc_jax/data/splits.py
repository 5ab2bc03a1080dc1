"""Which splits a raw data set may have, and which of them are there."""

from rc_jax.data import ade20k, camvid, cityscapes, coco_stuff, folder
from rc_jax.data.source import check_root

_SPLITS = {
  "ade20k": tuple(ade20k.SPLITS),
  "camvid": camvid.SPLITS,
  "cityscapes": tuple(cityscapes.SPLITS),
  "coco_stuff_10k": coco_stuff.SPLITS_10K,
  "coco_stuff_164k": tuple(coco_stuff.SPLITS_164K),
}


def possible(name: str, root: str) -> tuple[str, ...]:
  """Returns the splits that a data set of files may have; those of ``folder`` are the folders in ``images/``.

  Raises:
    ValueError: the data set does not lie in files.
    FileNotFoundError: ``root`` is missing, or is no such folder.
  """
  if name == "folder":
    images = check_root(root, name, folder.LAYOUT, ("images",)) / "images"
    return tuple(sorted(path.name for path in images.iterdir() if path.is_dir() and path.name[0] != "."))
  if name not in _SPLITS:
    raise ValueError(
      f"dataset.name is {name!r}, expected one that lies in files ({', '.join(sorted([*_SPLITS, 'folder']))}): "
      "change it"
    )
  return _SPLITS[name]
