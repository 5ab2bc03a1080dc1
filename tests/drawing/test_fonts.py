"""Names in pictures: a font of the system where Pillow's lacks letters, the ids where no font has them."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from rc_jax.data import DatasetInfo
from rc_jax.drawing import fonts, panels, prediction

NAMES = ("road", "дом", "汽车", "café")


def info(names: tuple[str, ...] = NAMES) -> DatasetInfo:
  colors = np.arange(3 * len(names), dtype=np.uint8).reshape(-1, 3)
  return DatasetInfo("folder", names, colors, np.arange(len(names)) + 7)


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
  caches = (fonts._system_fonts, fonts._path_for, fonts._lacking, fonts._drawable_names)
  for cache in caches:
    cache.cache_clear()
  yield
  for cache in caches:
    cache.cache_clear()


@pytest.fixture
def without_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
  monkeypatch.setattr(fonts, "font_folders", lambda: (tmp_path,))


@pytest.mark.usefixtures("without_fonts")
def test_ids_stand_for_names_that_no_font_has_and_that_is_said_once(
  capsys: pytest.CaptureFixture[str],
) -> None:
  assert fonts.drawable_names(info()) == ("road", "id 8", "id 9", "id 10 cafe")
  picture = prediction.picture(np.zeros((60, 80, 3), np.uint8), np.full((60, 80), 2), info())
  same = prediction.picture(
    np.zeros((60, 80, 3), np.uint8), np.full((60, 80), 2), info(("a", "b", "id 9", "d"))
  )
  assert np.array_equal(picture, same)
  printed = capsys.readouterr().out
  assert printed.count("\n") == 1 and "дом, 汽车, café: pictures show the ids" in printed


@pytest.mark.usefixtures("without_fonts")
def test_captions_show_file_names_as_far_as_a_font_has_them() -> None:
  assert fonts.drawable("caf\udce9 é汽.png") == "caf? e?.png"
  plain, replaced = (
    np.asarray(panels.captioned(Image.new("RGB", (300, 9)), text)) for text in ("e?", "é\udce9")
  )
  assert np.array_equal(plain, replaced)


def test_names_in_english_use_the_font_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(fonts, "font_folders", lambda: pytest.fail("no other font is needed"))
  assert fonts.drawable_names(info(("road", "traffic light"))) == ("road", "traffic light")
  assert fonts.font_of(["road, 12 % …"], 13).getname() == fonts._load(None, 13).getname()  # type: ignore[union-attr]


def test_a_font_of_the_system_writes_the_names(capsys: pytest.CaptureFixture[str]) -> None:
  names = ("Straße", "дом")
  path = fonts._path_for(frozenset("".join(names)))
  if path is None:
    pytest.skip("no font of this system has Cyrillic letters")
  assert fonts.drawable_names(info(names)) == names and capsys.readouterr().out == ""
  written = np.asarray(panels.legend(info(names), [1], 200))
  other = np.asarray(panels.legend(info(("Straße", "дым")), [1], 200))
  boxes = np.asarray(panels.legend(info(("Straße", "???")), [1], 200))
  assert not np.array_equal(written, other) and not np.array_equal(written, boxes)


def test_damaged_fonts_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
  (tmp_path / "dejavusans.ttf").write_bytes(b"no font")
  monkeypatch.setattr(fonts, "font_folders", lambda: (tmp_path,))
  assert fonts.drawable_names(info())[1] == "id 8"
