"""A user's story on real frames: CamVid, then merged classes of a folder, scores, and the same labels in PyTorch."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import rc_jax
from rc_jax import main, models
from rc_jax.models.backbones import resnet
from rc_jax.modes import report

IMAGES = {"train": 12, "val": 4}
ID_NAMES = (
  *("sky", "building", "pole", "ground", "ground", "tree", "pole", "fence", "traffic", "traffic", "traffic"),
  "ignore",
)  # of the ids 0 to 11
NAMES = ("sky", "building", "pole", "ground", "tree", "fence", "traffic")

# The smallest network that torchvision's classes build: 64 channels in the stem, and these in the heads.
RECIPE = """
from tests.support import run_tiny

def get_config():
  config = run_tiny.get_config()
  config.model.update({"backbone": "resnet10", "stem": "7x7", "ceil_pool": False, "output_stride": 32})
  config.model.update({"align_corners": False, "aspp_project": True, "aspp_rates": (12, 24, 36)})
  config.model.update({"channels": 256, "aux_channels": 64})
  config.train.update({"steps": 4, "crop_size": (96, 128), "eval_every": 0, "checkpoint_every": 4})
  config.eval.batch_size = 4
  return config
"""

# What the second run has and the first has not.
SECOND_RUN = {
  "dataset.name": "folder",
  "model.pretrained_part": "all",
  "model.freeze": "stem",
  "model.freeze_batch_stats": "stem",
  "loss.class_weighting": "median_frequency",
  "optimizer.name": "adamw",
  "optimizer.learning_rate": 1e-4,
  "optimizer.weight_decay": 0.01,
  "train.ema_decay": 0.9,
}


def frames(shared_dir: pathlib.Path, folder: pathlib.Path) -> None:
  """Links frames of each split of CamVid, evenly spaced, and their labels."""
  for split, number in IMAGES.items():
    sources = sorted((shared_dir / "data" / "camvid" / "images" / split).iterdir())
    for source in sources[:: len(sources) // number][:number]:
      label = shared_dir / "data" / "camvid" / "labels" / split / f"{source.stem}.png"
      for kind, file in (("images", source), ("labels", label)):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
        (folder / kind / split / file.name).symlink_to(file)


def command(*flags: str, **fields: object) -> None:
  """Runs a command line in this process."""
  overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
  assert main.main(["rc_jax", *flags, *overrides]) == 0


def merged(path: pathlib.Path) -> np.ndarray:
  """Returns the classes of a label file, int ``[H,W]``; -1 where it is ignored."""
  classes = [NAMES.index(name) if name in NAMES else -1 for name in ID_NAMES]
  return np.array(classes)[np.asarray(Image.open(path))]


def median_frequency_weights(labels: list[np.ndarray]) -> list[float]:
  """Returns ``median frequency / frequency`` of each class; its frequency is over the images that show it."""
  frequencies = []
  for n in range(len(NAMES)):
    shown = [label for label in labels if (label == n).any()]
    frequencies.append(
      sum((label == n).sum() for label in shown) / sum((label >= 0).sum() for label in shown)
    )
  return [np.median(frequencies) / frequency for frequency in frequencies]


def class_ious(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
  """Returns the IoU of each class over pairs of true and predicted classes."""
  ious = {}
  for n, name in enumerate(NAMES):
    both = sum(((truth == n) & (found == n)).sum() for truth, found in pairs)
    either = sum((((truth == n) | (found == n)) & (truth >= 0)).sum() for truth, found in pairs)
    ious[name] = both / either
  return ious


@pytest.mark.long
def test_from_camvid_to_merged_classes_to_pytorch(
  shared_dir: pathlib.Path,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture[str],
) -> None:
  from tests.support import originals

  torchvision = originals.torchvision()
  import safetensors.torch

  blocks = (1, 1, 1, 1)
  monkeypatch.setitem(
    models.BACKBONES, "resnet10", resnet.backbone(resnet.ResNetSpec(blocks, bottleneck=False))
  )
  monkeypatch.setattr(report, "write", lambda *unused, **also: "none")  # takes longer than the runs
  monkeypatch.chdir(tmp_path)
  pathlib.Path("mine.py").write_text(RECIPE)
  root = tmp_path / "frames"
  frames(shared_dir, root)
  lines = [f"{number},{name}" for number, name in enumerate(ID_NAMES)]
  (root / "classes.csv").write_text("\n".join(["id,name", *lines]) + "\n")

  # CamVid, then the same frames with merged classes, from the weights of the first run.
  fields = {"dataset.root": root}
  command("--config=mine.py", "--workdir=runs/camvid", **fields | {"dataset.name": "camvid"})
  fields |= SECOND_RUN | {"model.pretrained": "runs/camvid"}
  capsys.readouterr()
  second = ("--config=mine.py", "--workdir=runs/merged")
  command(*second, **fields)
  said = " ".join(capsys.readouterr().out.split())
  assert "not taken, because of other classes (11 classes, here 7)" in said
  weights = json.loads(pathlib.Path("runs/merged/class_weights.json").read_text())["classes"]
  assert [entry["name"] for entry in weights] == list(NAMES)
  truths = [merged(path) for path in sorted((root / "labels/train").iterdir())]
  np.testing.assert_allclose(
    [entry["weight"] for entry in weights], median_frequency_weights(truths), rtol=1e-6
  )

  # Labels and scores.
  command(*second, "--mode=predict", f"--images={root / 'images/val'}", "--nooverlays", **fields)
  assert "the moving average of the weights" in capsys.readouterr().out
  command(*second, "--mode=eval", **fields)
  model = rc_jax.load("runs/merged")
  assert model.class_names == NAMES
  photos = sorted((root / "images/val").iterdir())
  labels = np.stack(model.predict(photos))
  assert len(np.unique(labels)) > 1
  for path, found in zip(photos, labels, strict=True):
    ids = np.asarray(Image.open(f"runs/merged/predictions/labels/{path.stem}.png"))
    np.testing.assert_array_equal(model.label_ids[found], ids)
  truths = [merged(root / "labels/val" / f"{path.stem}.png") for path in photos]
  scores = json.loads(pathlib.Path("runs/merged/eval/val.json").read_text())
  expected = class_ious(list(zip(truths, labels, strict=True)))
  assert scores["iou"] == pytest.approx(expected, abs=1e-6)

  # The weights of both runs under torchvision's names: the stem did not move, the rest did.
  command(*second, "--mode=export", "--as=torchvision", **fields)
  first = ("--config=mine.py", "--workdir=runs/camvid", "--mode=export", "--as=torchvision")
  command(*first, **{"dataset.root": root, "dataset.name": "camvid"})
  before, after = (
    safetensors.torch.load_file(f"runs/{run}/weights/torchvision.safetensors") for run in ("camvid", "merged")
  )
  stem = [name for name in after if name.startswith(("backbone.conv1.", "backbone.bn1."))]
  assert len(stem) >= 5 and all(originals.torch.equal(before[name], after[name]) for name in stem)
  assert not originals.torch.equal(
    before["backbone.layer1.0.conv1.weight"], after["backbone.layer1.0.conv1.weight"]
  )

  # PyTorch gives the same labels.
  segmentation = torchvision.models.segmentation
  layers = torchvision.models._utils.IntermediateLayerGetter(
    torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, list(blocks)),
    {"layer4": "out", "layer3": "aux"},
  )
  theirs = segmentation.DeepLabV3(
    layers,
    segmentation.deeplabv3.DeepLabHead(512, len(NAMES)),
    segmentation.fcn.FCNHead(256, len(NAMES)),
  ).eval()
  theirs.load_state_dict(after, strict=True)
  images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in photos])
  with originals.torch.no_grad():
    their_labels = theirs(originals.normalized(images))["out"].argmax(1).numpy()
  assert (their_labels == labels).mean() >= 0.999
