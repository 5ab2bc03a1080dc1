"""One HTML file with sections: its styles and script are part of it, and it needs no other file and no network."""

import base64
import html
import importlib.resources
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

_LARGEST_PNG = 100_000  # bytes; photographs above it are stored as JPEG
_JPEG_QUALITY = 88
_ENLARGED_BELOW = 340  # pixels; the page shows narrower pictures enlarged, without blurring them


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    anchor: its id.
    title: plain text.
    body: HTML.
    half: takes half of the width where the screen is wide.
  """

  anchor: str
  title: str
  body: str
  half: bool = False


def document(title: str, header: str, sections: Sequence[Section], footer: str) -> str:
  """Returns a page.

  Args:
    title: plain text.
    header: HTML above the sections.
    sections: in their order.
    footer: HTML below them.
  """
  links = "".join(f'<a href="#{part.anchor}">{html.escape(part.title)}</a>' for part in sections)
  bodies = "\n".join(
    f'<section id="{part.anchor}" class="{"half" if part.half else "full"}">'
    f"<h2>{html.escape(part.title)}</h2>\n{part.body}\n</section>"
    for part in sections
  )
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{_text("page.css")}</style>
</head>
<body>
<header>
{header}
</header>
<nav aria-label="Sections">{links}</nav>
<main>
{bodies}
</main>
<footer>{footer}</footer>
<dialog id="enlarged" aria-label="Enlarged picture"><figure><img alt=""><figcaption></figcaption></figure>\
<button type="button" class="close" aria-label="Close">×</button></dialog>
<div id="tip" role="status" hidden></div>
<script>
{_text("page.js")}</script>
</body>
</html>
"""


def _text(name: str) -> str:
  return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def picture_button(panel: np.ndarray, title: str, description: str, photograph: bool) -> str:
  """Returns a picture that a click enlarges, with its title.

  Args:
    panel: uint8 ``[H,W,3]``.
    title: below the picture.
    description: of the enlarged picture, and for readers who do not see it.
    photograph: whether a lossy format will do; class colours must stay exact.
  """
  small = ' class="pixelated"' if panel.shape[1] < _ENLARGED_BELOW else ""
  text = html.escape(description, quote=True)
  return (
    f'<button type="button" class="picture" data-caption="{text}">'
    f'<img{small} src="{data_uri(panel, photograph)}" width="{panel.shape[1]}" height="{panel.shape[0]}" alt="{text}">'
    f"<span>{html.escape(title)}</span></button>"
  )


def data_uri(panel: np.ndarray, photograph: bool) -> str:
  """Returns a picture ``[H,W,3]`` uint8 as a data URI: PNG, or JPEG for large photographs."""
  image, kind, file = Image.fromarray(panel), "png", io.BytesIO()
  if not photograph and (colors := image.getcolors(256)):
    # Fewer bytes, and the same colours.
    image = image.quantize(len(colors), dither=Image.Dither.NONE)
  image.save(file, "PNG")
  if photograph and file.tell() > _LARGEST_PNG:
    kind, file = "jpeg", io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
  return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
