"""The camera of a street scene, and two canvases, of colours and of labels, on which it paints the same shapes.

The world is in metres: ``x`` to the right of the camera, ``y`` up from the ground, ``z`` ahead.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

CLASSES = {
  "road": (128, 64, 128),
  "sidewalk": (244, 35, 232),
  "building": (70, 70, 70),
  "fence": (190, 153, 153),
  "pole": (153, 153, 153),
  "sign": (220, 220, 0),
  "vegetation": (107, 142, 35),
  "terrain": (152, 251, 152),
  "sky": (70, 130, 180),
  "person": (220, 20, 60),
  "car": (0, 0, 142),
}
IDS = {name: i for i, name in enumerate(CLASSES)}
# Both canvases are larger than the result by this factor: averaging smooths the edges of the picture.
SUPERSAMPLING = 2
_CAMERA_HEIGHT = 1.6

Point = tuple[float, float, float]
"""``(x, y, z)`` in metres."""


class Canvas:
  """Two images of the same strokes, colours and labels, with the camera, light and weather of one scene.

  Args:
    rng: draws camera, weather and paints, and the properties of all objects.
    size: ``(H,W)`` of the final picture.
  """

  def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
    self.rng = rng
    self.size = size
    self.height, self.width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    self.picture = Image.new("RGB", (self.width, self.height))
    self.labels = Image.new("L", (self.width, self.height), IDS["sky"])
    self.color_pen = ImageDraw.Draw(self.picture)
    self.label_pen = ImageDraw.Draw(self.labels)
    self.vanishing_x = self.width * rng.uniform(0.38, 0.62)
    self.horizon = self.height * rng.uniform(0.44, 0.58)
    self.focal = self.width * rng.uniform(1.1, 1.45)
    self.bend = rng.normal() * 0.0007
    self.sun_side = rng.choice((-1, 1))
    self.night = rng.random() < 0.06
    self.fog = rng.exponential(0.35) * 0.007
    sky = rng.choice(("blue", "grey", "sunset", "white"))
    self.sky_top, self.sky_bottom = {
      "blue": ((80, 130, 205), (190, 210, 230)),
      "grey": ((135, 140, 148), (185, 187, 190)),
      "sunset": ((95, 95, 150), (240, 180, 130)),
      "white": ((205, 210, 215), (235, 235, 235)),
    }[str(sky)]
    # Cars, houses and signs of a scene share colours: a colour does not reveal the class.
    self.paints = [hsv(rng.random(), rng.beta(1.0, 1.6), rng.uniform(0.15, 0.98)) for _ in range(6)]
    # Dark paint or galvanised steel.
    brightness = rng.uniform(0.1, 0.3) if rng.random() < 0.5 else rng.uniform(0.45, 0.75)
    self.pole_color = hsv(rng.random(), rng.uniform(0, 0.2), brightness)
    self.greys = [np.full(3, rng.uniform(60, 190)) + rng.normal(0, 6, 3) for _ in range(4)]

  def project(self, point: Point) -> tuple[float, float]:
    """Returns the position of a point of the world on the enlarged canvas: ``(column, row)``."""
    x, y, z = point
    z = max(z, 0.7)
    # A bent street shifts with the square of the distance.
    column = self.vanishing_x + self.focal * (x / z + self.bend * z)
    return column, self.horizon + self.focal * (_CAMERA_HEIGHT - y) / z

  def first_visible(self, x: float) -> float:
    """Returns the distance ahead, in metres, from which on the picture shows things at ``x``."""
    return self.focal * abs(x) / (self.vanishing_x if x < 0 else self.width - self.vanishing_x)

  def haze(self, color: np.ndarray, z: float) -> tuple[int, int, int]:
    """Returns ``color`` after ``z`` metres of fog."""
    clear = math.exp(-self.fog * z)
    r, g, b = (
      min(255, max(0, int(own * clear + far * (1 - clear))))
      for own, far in zip(color.tolist(), self.sky_bottom, strict=True)
    )
    return r, g, b

  def polygon(self, points: Sequence[Point], color: np.ndarray, label: str | None) -> None:
    """Fills a polygon of the world; ``label=None`` paints without labelling (shadows, windows, lane marks)."""
    middle = sum(point[2] for point in points) / len(points)
    self.flat([self.project(point) for point in points], self.haze(color, middle), label)

  def flat(
    self, points: Sequence[tuple[float, float]], color: tuple[int, int, int], label: str | None
  ) -> None:
    """Fills a polygon of the canvas."""
    self.color_pen.polygon(points, fill=color)
    if label is not None:
      self.label_pen.polygon(points, fill=IDS[label])

  def line(self, start: Point, end: Point, color: np.ndarray, label: str | None, width: int = 1) -> None:
    """Draws a line between two points of the world, ``width`` wide on the enlarged canvas."""
    ends = [self.project(start), self.project(end)]
    self.color_pen.line(ends, fill=self.haze(color, start[2]), width=width)
    if label is not None:
      self.label_pen.line(ends, fill=IDS[label], width=width)

  def ellipse(
    self, center: Point, radius_x: float, radius_y: float, color: np.ndarray, label: str | None
  ) -> None:
    """Fills an upright ellipse that faces the camera."""
    x, y = self.project(center)
    scale = self.focal / center[2]
    box = (x - radius_x * scale, y - radius_y * scale, x + radius_x * scale, y + radius_y * scale)
    self.color_pen.ellipse(box, fill=self.haze(color, center[2]))
    if label is not None:
      self.label_pen.ellipse(box, fill=IDS[label])

  def upright(
    self, x: float, width: float, low: float, high: float, z: float, color: np.ndarray, label: str | None
  ) -> None:
    """Fills an upright rectangle that faces the camera, ``width`` wide around ``x``; at least a pixel wide."""
    half = max(width / 2, 0.55 * SUPERSAMPLING * z / self.focal)
    self.polygon(
      [(x - half, low, z), (x + half, low, z), (x + half, high, z), (x - half, high, z)], color, label
    )

  def any_color(self) -> np.ndarray:
    """Returns a paint of this scene, RGB."""
    pool = self.paints + self.greys
    return pool[self.rng.integers(len(pool))] * self.rng.uniform(0.85, 1.15)


def noise(rng: np.random.Generator, size: tuple[int, int], cells: Sequence[int]) -> np.ndarray:
  """Smooth noise ``[H,W]`` of about unit variance: octaves of ``cells`` random values across, enlarged."""
  total = np.zeros(size, np.float32)
  for across in cells:
    down = max(2, across * size[0] // size[1])
    values = rng.standard_normal((down, max(2, across)), np.float32)
    total += np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))
  return total / np.sqrt(len(cells) * 0.6)


def leaf(rng: np.random.Generator) -> np.ndarray:
  """Returns a colour of leaves or grass, from straw to dark green, RGB."""
  if rng.random() < 0.12:
    return hsv(rng.uniform(0.05, 0.15), rng.uniform(0.4, 0.7), rng.uniform(0.35, 0.65))
  return hsv(rng.uniform(0.22, 0.38), rng.uniform(0.35, 0.7), rng.uniform(0.2, 0.48))


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
  """Turns HSV in 0..1 into RGB ``[3]`` in 0..255."""
  shifts = (hue * 6 + np.array((5.0, 3.0, 1.0))) % 6
  return 255 * value * (1 - saturation * np.clip(np.minimum(shifts, 4 - shifts), 0, 1))
