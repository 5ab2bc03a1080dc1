"""``--mode=predict`` on folders of photos: unusual colour modes, rotated and damaged files, and a kill."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from rc_jax.config import defaults
from rc_jax.data.datasets import synthetic
from rc_jax.inference import predictor
from rc_jax.modes import predict
from tests.support import processes, tiny_predictions
from tests.support.run_tiny import ROOT

INFO = synthetic.INFO
SIZE = (41, 57)


def scene(seed: int = 0) -> np.ndarray:
  """Returns a smooth image, in which random weights predict several classes."""
  coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
  return np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC))


def expected_labels(image: np.ndarray, window: int = 0) -> np.ndarray:
  """Computes the labels of the network without the code that reads and writes files."""
  config = tiny_predictions.tiny_config()
  config.eval.crop_size = (window, window) if window else ()
  predict = predictor.make_predictor(tiny_predictions.color_network(), config.eval)
  return np.asarray(predict(*tiny_predictions.color_variables(), image[None])[0]).argmax(-1)


def read_labels(output: pathlib.Path, name: str) -> np.ndarray:
  with Image.open(output / "labels" / f"{name}.png") as image:
    assert image.mode == "P"
    return np.asarray(image)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file() and path.suffix in (".png", ".jpg", ".npz")
  }


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Returns a folder with one scene in every colour mode, and once rotated by EXIF."""
  folder = tmp_path_factory.mktemp("photos")
  image = Image.fromarray(scene())
  image.save(folder / "plain.png")
  image.convert("RGBA").save(folder / "rgba.png")
  image.convert("L").save(folder / "grey.png")
  image.convert("LA").save(folder / "grey_alpha.png")
  Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
  image.convert("CMYK").save(folder / "cmyk.tif")
  image.convert("P").save(folder / "palette.png")
  exif = Image.Exif()
  exif[0x0112] = 6
  image.rotate(90, expand=True).save(folder / "rotated.png", exif=exif)
  return folder


@pytest.fixture(scope="module")
def labelled(photos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  output = tmp_path_factory.mktemp("labelled") / "out"
  assert tiny_predictions.label(photos, output, probabilities=True) == 0
  return output


def test_labels_are_those_of_the_network_for_every_colour_mode(labelled: pathlib.Path) -> None:
  ids = INFO.label_ids
  colour = ids[expected_labels(scene())]
  assert len(np.unique(colour)) > 1
  for name in ("plain", "rgba", "rotated", "cmyk"):
    np.testing.assert_array_equal(read_labels(labelled, name), colour, err_msg=name)
  grey = np.asarray(Image.fromarray(scene()).convert("L").convert("RGB"))
  for name in ("grey", "grey_alpha", "sixteen"):
    np.testing.assert_array_equal(read_labels(labelled, name), ids[expected_labels(grey)], err_msg=name)
  assert read_labels(labelled, "palette").shape == SIZE


def test_probabilities_and_overlays_are_written(labelled: pathlib.Path) -> None:
  with np.load(labelled / "probabilities" / "plain.npz") as stored:
    probabilities = stored["probabilities"]
    assert stored["class_names"].tolist() == list(INFO.class_names)
    np.testing.assert_array_equal(stored["label_ids"], INFO.label_ids)
  assert probabilities.dtype == np.uint8 and probabilities.shape == (INFO.num_classes, *SIZE)
  # Rounding changes the value of a class by at most half a unit.
  assert np.abs(probabilities.sum(axis=0, dtype=int) - 255).max() <= INFO.num_classes / 2
  ids = read_labels(labelled, "plain")
  likeliest = np.take_along_axis(probabilities, ids[None].astype(int), axis=0)[0]
  assert (likeliest == probabilities.max(axis=0)).all()
  with Image.open(labelled / "overlays" / "rotated.jpg") as overlay:
    assert overlay.width > overlay.height


@pytest.mark.long
def test_sliding_windows_compile_one_network_for_images_of_all_sizes(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  images, output = tmp_path / "images", tmp_path / "out"
  images.mkdir()
  seen = [Image.fromarray(scene(n)).resize((57 + 9 * n, 41 + 5 * n)) for n in range(6)]
  for number, image in enumerate(seen):
    image.save(images / f"{number}.png")
  traced = []
  network = tiny_predictions.color_network()

  def predict(params, batch_stats, pixels):
    traced.append(pixels.shape)
    return network.predict(params, batch_stats, pixels)

  counting = dataclasses.replace(network, predict=predict)
  monkeypatch.setattr(tiny_predictions, "color_network", lambda classes: counting)
  assert tiny_predictions.label(images, output, window=33, probabilities=True) == 0
  assert traced == [(1, 33, 33, 3)]
  monkeypatch.undo()
  for number, image in enumerate(seen):
    expected = INFO.label_ids[expected_labels(np.asarray(image), window=33)]
    np.testing.assert_array_equal(read_labels(output, str(number)), expected)
  # A resumed run gives the same labels, although fewer images share its batches.
  before = contents(output)
  for name in ("1", "4"):
    (output / "labels" / f"{name}.png").unlink()
  assert tiny_predictions.label(images, output, window=33, probabilities=True) == 0
  assert contents(output) == before


def test_labelled_images_are_not_labelled_again(
  photos: pathlib.Path, labelled: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  before = contents(labelled)
  (labelled / "overlays" / "grey.jpg").unlink()
  assert tiny_predictions.label(photos, labelled, probabilities=True) == 0
  assert "7 of 8 images are labelled already" in capsys.readouterr().out
  assert contents(labelled) == before


def test_other_weights_are_refused_without_overwrite(photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
  images = tmp_path / "images"
  images.mkdir()
  (images / "a.png").write_bytes((photos / "plain.png").read_bytes())
  output = tmp_path / "out"
  assert tiny_predictions.label(images, output, overlays=False) == 0
  before = contents(output)
  with pytest.raises(ValueError, match=r"step: 8, there 7.*--overwrite.*--output=DIR"):
    tiny_predictions.label(images, output, overlays=False, seed=1)
  assert contents(output) == before
  assert tiny_predictions.label(images, output, overlays=False, seed=1, overwrite=True) == 0
  assert contents(output) != before and contents(output).keys() == before.keys()


def test_damaged_images_are_named_and_all_others_are_labelled(
  photos: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
  for name in ("a", "c"):
    (tmp_path / f"{name}.png").write_bytes((photos / "plain.png").read_bytes())
  (tmp_path / "b.png").write_bytes((photos / "plain.png").read_bytes()[:700])
  (tmp_path / "d.jpg").write_bytes(b"no image")
  (tmp_path / "e.heic").write_bytes(b"\0\0\0\x18ftypheic")
  (tmp_path / "f.png").symlink_to(tmp_path / "gone.png")
  output = tmp_path / "out"
  assert tiny_predictions.label(tmp_path, output) == 1
  errors = capsys.readouterr().err.splitlines()
  named = sorted(line.split(":")[1].strip() for line in errors[:4])
  assert named == [str(tmp_path / name) for name in ("b.png", "d.jpg", "e.heic", "f.png")]
  assert errors[4] == "4 of 6 images could not be read"
  assert sorted(path.stem for path in (output / "labels").iterdir()) == ["a", "c"]
  # Once the image is repaired, the same command labels it.
  (tmp_path / "b.png").write_bytes((photos / "plain.png").read_bytes())
  for name in ("d.jpg", "e.heic", "f.png"):
    (tmp_path / name).unlink()
  assert tiny_predictions.label(tmp_path, output) == 0
  assert sorted(path.stem for path in (output / "labels").iterdir()) == ["a", "b", "c"]


@pytest.mark.long
@pytest.mark.run
def test_a_killed_and_resumed_run_leaves_the_same_files(tmp_path: pathlib.Path) -> None:
  images = tmp_path / "images"
  (images / "night").mkdir(parents=True)
  for number in range(60):
    Image.fromarray(scene(number)).save(images / f"{number:02}.png")
  undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
  assert tiny_predictions.label(images, undisturbed, probabilities=True) == 0

  process = subprocess.Popen(
    [sys.executable, "-m", "tests.support.tiny_predictions", str(images), str(killed)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    if len(list(killed.glob("labels/[0-9]*.png"))) >= 5:
      break
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  before = contents(killed)
  assert 0 < len(list(killed.glob("labels/[0-9]*.png"))) < 60, "the kill came too late"
  assert tiny_predictions.label(images, killed, probabilities=True) == 0
  after = contents(killed)
  assert after == contents(undisturbed)
  assert all(
    content == after[name] for name, content in before.items() if not name.split("/")[-1].startswith(".")
  )


@pytest.mark.long
@pytest.mark.run
def test_two_processes_label_every_image_and_write_one_submission(tmp_path: pathlib.Path) -> None:
  images = tmp_path / "images"
  images.mkdir()
  for number in range(9):
    Image.fromarray(scene(number)).resize((57, 41 + number % 2)).save(images / f"{number}.png")
  content = (images / "5.png").read_bytes()
  alone, together = tmp_path / "alone", tmp_path / "together"
  options = {"dataset": "ade20k", "format": "ade20k"}
  assert tiny_predictions.label(images, alone, probabilities=True, **options) == 0
  command = ["-m", "tests.support.tiny_predictions", str(images), str(together)]
  command += [f"{name}={value}" for name, value in options.items()]

  # The second process reads a damaged file, so the first writes no submission, and both exit with status 1.
  (images / "5.png").write_bytes(content[: len(content) // 2])
  started = processes.start(command, processes=2)
  first, second = (process.communicate(timeout=200)[0] for process in started)
  assert [process.returncode for process in started] == [1, 1], first + second
  assert "not labelled: " not in first and "5.png" in second
  for printed in (first, second):
    assert "ValueError: --format=ade20k: no submission was written, because 1 of 9 images" in printed
  assert not list(together.glob("*.zip")) and len(list((together / "labels").iterdir())) == 8

  (images / "5.png").write_bytes(content)
  (printed, _) = processes.run(*command, processes=2)
  assert "8 of 9 images are labelled already" in printed and "9 label images" in printed
  assert contents(together) == contents(alone)
  zips = [folder / "ade20k_images.zip" for folder in (alone, together)]
  assert zips[0].read_bytes() == zips[1].read_bytes()


def test_recursive_without_a_folder_is_refused(tmp_path: pathlib.Path) -> None:
  with pytest.raises(ValueError, match="--recursive: is read with --images=FOLDER alone"):
    predict.run(defaults(), tmp_path, recursive=True)
