"""Draws one street scene and its labels: a camera on a street, houses and trees along it, traffic and people.

Everything stands on a ground plane in metres: ``x`` to the right of the lane, ``y`` up, ``z`` ahead. Pictures are
drawn from far to near at twice the size, with a label for every coloured polygon, then shrunk, lit and blurred.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rc_jax.data.source import IGNORE_LABEL

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
_IDS = {name: i for i, name in enumerate(CLASSES)}
# How much of the fine texture a surface shows: leaves and grass much, sky little.
_ROUGHNESS = {
  "vegetation": 0.38,
  "terrain": 0.25,
  "building": 0.12,
  "road": 0.12,
  "sidewalk": 0.13,
  "sky": 0.03,
}
_CAMERA_HEIGHT = 1.6
_NEAREST = 2.0
_FARTHEST = 90.0
_SUPERSAMPLING = 2

Color = tuple[float, float, float] | np.ndarray
Point = tuple[float, float, float]


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Draws a scene.

  Args:
    rng: decides everything.
    size: ``(H,W)``.

  Returns:
    The picture uint8 ``[H,W,3]`` and the labels uint8 ``[H,W]``: an index into ``CLASSES``, or 255.
  """
  scene = _Scene(rng, size)
  _draw_sky(scene)
  _draw_skyline(scene)
  left, right = _draw_ground(scene)
  # The painter's algorithm: what is farther is drawn first.
  things: list[tuple[float, Callable[[], None]]] = []
  for side, edge in ((-1, left), (1, right)):
    things += _street_side(scene, side, edge)
  things += _traffic(scene, left, right)
  for _, draw_thing in sorted(things, key=lambda thing: -thing[0]):
    draw_thing()
  _draw_bonnet(scene)
  return _photograph(scene)


class _Scene:
  """Two canvases of the same shapes, one of colours and one of labels, and the camera and weather between them."""

  def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
    self.rng = rng
    self.size = size
    self.height, self.width = size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING
    self.picture = Image.new("RGB", (self.width, self.height))
    self.labels = Image.new("L", (self.width, self.height), _IDS["sky"])
    self.color_pen = ImageDraw.Draw(self.picture)
    self.label_pen = ImageDraw.Draw(self.labels)
    self.vanishing_x = self.width * rng.uniform(0.3, 0.7)
    self.horizon = self.height * rng.uniform(0.36, 0.5)
    self.focal = self.width * rng.uniform(0.55, 0.85)
    self.curve = rng.normal() * 0.0012
    self.sun_side = rng.choice((-1, 1))
    self.night = rng.random() < 0.15
    self.fog = rng.exponential(0.35) * 0.02
    sky = rng.choice(("blue", "grey", "sunset", "white"))
    self.sky_top, self.sky_bottom = {
      "blue": ((80, 130, 205), (190, 210, 230)),
      "grey": ((135, 140, 148), (185, 187, 190)),
      "sunset": ((95, 95, 150), (240, 180, 130)),
      "white": ((205, 210, 215), (235, 235, 235)),
    }[str(sky)]
    # A scene's cars share their colours with its houses and signs, so a colour is no clue to the class.
    self.paints = [
      np.array(_hsv(rng.random(), rng.beta(1.0, 1.6), rng.uniform(0.15, 0.98))) for _ in range(6)
    ]
    self.greys = [np.full(3, rng.uniform(60, 190)) + rng.normal(0, 6, 3) for _ in range(4)]

  def project(self, point: Point) -> tuple[float, float]:
    x, y, z = point
    z = max(z, 0.7)
    return (
      self.vanishing_x + self.focal * (x / z + self.curve * z),
      self.horizon + self.focal * (_CAMERA_HEIGHT - y) / z,
    )

  def scale(self, z: float) -> float:
    return self.focal / z

  def haze(self, color: Color, z: float) -> tuple[int, int, int]:
    clear = np.exp(-self.fog * z)
    mixed = np.asarray(color, float) * clear + np.asarray(self.sky_bottom, float) * (1 - clear)
    r, g, b = np.clip(mixed, 0, 255).astype(int).tolist()
    return r, g, b

  def polygon(self, points: Sequence[Point], color: Color, label: str | None) -> None:
    """Fills a polygon of the world; ``label=None`` paints without labelling (shadows, windows, lane marks)."""
    self.flat(
      [self.project(point) for point in points],
      self.haze(color, float(np.mean([p[2] for p in points]))),
      label,
    )

  def flat(
    self, points: Sequence[tuple[float, float]], color: tuple[int, int, int], label: str | None
  ) -> None:
    self.color_pen.polygon(points, fill=color)
    if label is not None:
      self.label_pen.polygon(points, fill=_IDS.get(label, IGNORE_LABEL))

  def ellipse(self, center: Point, radius_x: float, radius_y: float, color: Color, label: str | None) -> None:
    """Fills an upright ellipse that faces the camera."""
    x, y = self.project(center)
    scale = self.scale(center[2])
    box = (x - radius_x * scale, y - radius_y * scale, x + radius_x * scale, y + radius_y * scale)
    self.color_pen.ellipse(box, fill=self.haze(color, center[2]))
    if label is not None:
      self.label_pen.ellipse(box, fill=_IDS[label])

  def upright(
    self, x: float, width: float, low: float, high: float, z: float, color: Color, label: str | None
  ) -> None:
    """Fills an upright rectangle that faces the camera, ``width`` wide around ``x``; at least a pixel wide."""
    half = max(width / 2, 0.55 * _SUPERSAMPLING / self.scale(z))
    self.polygon(
      [(x - half, low, z), (x + half, low, z), (x + half, high, z), (x - half, high, z)], color, label
    )

  def any_color(self) -> np.ndarray:
    pool = self.paints + self.greys
    return pool[self.rng.integers(len(pool))] * self.rng.uniform(0.85, 1.15)


def _draw_sky(scene: _Scene) -> None:
  rows = np.linspace(0, 1, scene.height)[:, None, None] * scene.height / max(scene.horizon, 1)
  gradient = np.asarray(scene.sky_top) * (1 - rows.clip(0, 1)) + np.asarray(scene.sky_bottom) * rows.clip(
    0, 1
  )
  clouds = _noise(scene.rng, (scene.height, scene.width), (3, 6, 12, 24))[..., None]
  cover = np.clip((clouds - scene.rng.uniform(-0.2, 0.8)) * 1.5, 0, 1) * 0.7
  sky = gradient * (1 - cover) + 238 * cover
  scene.picture.paste(Image.fromarray(sky.clip(0, 255).astype(np.uint8)))


def _draw_skyline(scene: _Scene) -> None:
  # A band of far houses and trees, so that the horizon is never bare.
  rng = scene.rng
  x = -rng.uniform(0, 20)
  while x < scene.width:
    width = rng.uniform(0.03, 0.12) * scene.width
    height = rng.uniform(0.01, 0.09) * scene.height
    box = [(x, scene.horizon - height), (x + width, scene.horizon - height)]
    box += [(x + width, scene.horizon + 3), (x, scene.horizon + 3)]
    if rng.random() < 0.55:
      scene.flat(box, scene.haze(scene.any_color(), 50), "building")
    else:
      leaf = scene.haze(_leaf(scene), 50)
      for shift in np.arange(0, width, max(4.0, height)):
        bounds = (
          x + shift - height,
          scene.horizon - height * rng.uniform(0.7, 1.5),
          x + shift + height,
          scene.horizon + 3,
        )
        scene.color_pen.ellipse(bounds, fill=leaf)
        scene.label_pen.ellipse(bounds, fill=_IDS["vegetation"])
    x += width


def _draw_ground(scene: _Scene) -> tuple[float, float]:
  """Paints terrain, sidewalks, road and lane marks; returns where the road ends left and right, in metres."""
  rng = scene.rng
  left, right = -rng.uniform(2.5, 8), rng.uniform(2.5, 8)
  asphalt = np.full(3, rng.uniform(70, 135)) + rng.normal(0, 5, 3)
  paving = asphalt * rng.uniform(0.8, 1.5) + rng.normal(0, 12, 3)
  grass = np.array(_hsv(rng.uniform(0.1, 0.33), rng.uniform(0.15, 0.55), rng.uniform(0.3, 0.65)))
  depths = np.geomspace(0.7, 400, 24)

  def strip(
    low: float, high: float, color: Color, label: str | None, first: float = 0.7, last: float = 400
  ) -> None:
    zs = depths[(depths > first) & (depths < last)].tolist()
    zs = [first, *zs, last]
    for near, far in zip(zs[:-1], zs[1:], strict=True):
      scene.polygon([(low, 0, near), (high, 0, near), (high, 0, far), (low, 0, far)], color, label)

  strip(-400, 400, grass, "terrain")
  widths = {-1: rng.uniform(1.2, 3.5), 1: rng.uniform(1.2, 3.5)}
  strip(left - widths[-1], left, paving, "sidewalk")
  strip(right, right + widths[1], paving * rng.uniform(0.9, 1.1), "sidewalk")
  strip(left, right, asphalt, "road")
  # Kerbs, slabs and patches: edges that are not borders between classes.
  for edge in (left, right):
    strip(edge - 0.1, edge + 0.1, asphalt * rng.uniform(0.7, 1.6), None)
  for z in np.geomspace(2, 40, 14):
    strip(left - widths[-1], left, paving * 0.85, None, z, z * 1.02)
    strip(right, right + widths[1], paving * 0.85, None, z, z * 1.02)
  for _ in range(rng.integers(0, 5)):
    x, z = rng.uniform(left, right), rng.uniform(3, 30)
    width = rng.uniform(0.4, 2)
    tone = asphalt * rng.uniform(0.6, 1.3) if rng.random() < 0.7 else np.asarray(scene.sky_bottom) * 0.8
    low, high = max(left, x - width), min(right, x + width)
    scene.polygon([(low, 0, z), (high, 0, z), (high, 0, z * 1.25), (low, 0, z * 1.2)], tone, None)
  paint = np.full(3, rng.uniform(170, 240))
  for lane in np.arange(left + 3.2, right - 2, 3.2):
    dash = rng.uniform(2, 6)
    for z in np.arange(1.0, 60, 2 * dash):
      strip(lane - 0.08, lane + 0.08, paint, None, z, z + dash)
  if rng.random() < 0.35:
    z = rng.uniform(5, 25)
    for x in np.arange(left + 0.3, right - 0.3, 0.9):
      strip(x, min(x + 0.45, right), paint, None, z, z + 2.5)
  # Shadows of houses and trees lie over road and sidewalk alike.
  for _ in range(rng.integers(0, 4)):
    z = rng.uniform(3, 40)
    reach = rng.uniform(2, right - left)
    low, high = (left - 4, left + reach) if scene.sun_side < 0 else (right - reach, right + 4)
    scene.polygon(
      [(low, 0, z), (high, 0, z * 1.1), (high, 0, z * 1.35), (low, 0, z * 1.3)], asphalt * 0.55, None
    )
  return left - widths[-1], right + widths[1]


def _street_side(scene: _Scene, side: int, edge: float) -> list[tuple[float, Callable[[], None]]]:
  """What stands along one side: houses or open land, fences, trees, poles, signs and people on the sidewalk."""
  rng = scene.rng
  things: list[tuple[float, Callable[[], None]]] = []
  line = edge + side * rng.uniform(0.3, 4)
  z = rng.uniform(-2, 4)
  built = rng.uniform(0.4, 0.98)
  while z < _FARTHEST:
    length = rng.uniform(5, 16)
    if rng.random() < built:
      height, depth, setback = rng.uniform(3.5, 16), rng.uniform(6, 14), rng.uniform(0, 1.5)
      things.append(
        (z + 0.4 * length, _house(scene, side, line + side * setback, max(z, 0.8), z + length, height, depth))
      )
    elif rng.random() < 0.6:
      things.append((z, _hedge(scene, line + side, z, z + length)))
    z += length + (rng.uniform(0, 6) if rng.random() < 0.4 else 0)
  if rng.random() < 0.6:
    start = rng.uniform(2, 25)
    things.append((start + 2, _fence(scene, edge + side * 0.15, start, start + rng.uniform(5, 25))))
  for _ in range(rng.integers(0, 6)):
    z = rng.uniform(4, 45)
    things.append((z, _tree(scene, edge + side * rng.uniform(-0.8, 3.5), z)))
  for z in np.arange(rng.uniform(3, 15), 60, rng.uniform(10, 22)):
    things.append((z, _lamp(scene, side, edge - side * rng.uniform(0.2, 1), float(z))))
  for _ in range(rng.integers(1, 5)):
    z = float(rng.triangular(3.5, 8, 40))
    things.append((z, _sign(scene, edge - side * rng.uniform(0.1, 1.2), z)))
  for _ in range(rng.integers(0, 5)):
    z = float(rng.triangular(3, 8, 40))
    things.append((z, _person(scene, edge - side * rng.uniform(0.1, 1.8), z)))
  return things


def _traffic(scene: _Scene, left: float, right: float) -> list[tuple[float, Callable[[], None]]]:
  rng = scene.rng
  things: list[tuple[float, Callable[[], None]]] = []
  taken: list[tuple[float, float]] = []
  for _ in range(rng.integers(1, 10)):
    z = float(rng.triangular(5, 9, 60))
    parked = rng.random() < 0.5
    x = rng.choice((left + 2.8, right - 2.8)) if parked else rng.uniform(left + 3, right - 3)
    if all(abs(x - other_x) > 2.0 or abs(z - other_z) > 5.5 for other_x, other_z in taken):
      taken.append((x, z))
      things.append((z, _car(scene, float(x), z)))
  if rng.random() < 0.4:
    z = float(rng.uniform(5, 30))
    things.append((z, _person(scene, rng.uniform(left, right), z)))
  return things


def _house(
  scene: _Scene, side: int, x: float, near: float, far: float, height: float, depth: float
) -> Callable[[], None]:
  rng = scene.rng
  wall = scene.any_color() * 0.6 + np.full(3, rng.uniform(60, 190)) * 0.4
  if rng.random() < 0.3:
    wall = np.array(_hsv(rng.uniform(0.0, 0.08), rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.6)))
  lit = 1.12 if side == scene.sun_side else 0.78
  glass = np.array((60, 70, 85)) * rng.uniform(0.5, 1.6)
  lit_glass = np.array((250, 215, 130))
  floors = max(1, int(height // 3))
  bays = max(1, int((far - near) // rng.uniform(1.8, 3.5)))
  bricks = rng.random() < 0.4
  roof = rng.random() < 0.4
  window_high, window_wide = rng.uniform(0.35, 0.7), rng.uniform(0.3, 0.75)
  glowing = rng.random((floors, bays)) < (0.4 if scene.night else 0.04)
  shop = scene.any_color() if rng.random() < 0.4 else None
  billboard = scene.any_color() if rng.random() < 0.2 else None

  def paint() -> None:
    out = x + side * depth
    front = wall * (0.95 if lit < 1 else 0.85)
    scene.polygon([(x, 0, near), (out, 0, near), (out, height, near), (x, height, near)], front, "building")
    if roof:
      ridge = (x + out) / 2
      gable = [(x, height, near), (out, height, near), (ridge, height * 1.25, near)]
      scene.polygon(gable, front * 0.9, "building")
      slope = [(x, height, near), (x, height, far), (ridge, height * 1.25, far), (ridge, height * 1.25, near)]
      scene.polygon(slope, np.array((120, 75, 60)) * lit, "building")
    facade = [(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)]
    scene.polygon(facade, wall * lit, "building")
    if bricks and near < 25:
      for level in np.arange(0.3, height, 0.6):
        ends = [scene.project((x, level, near)), scene.project((x, level, far))]
        scene.color_pen.line(ends, fill=scene.haze(wall * lit * 0.85, near))
    bay = (far - near) / bays
    for floor in range(floors):
      low = floor * height / floors + 0.9
      high = low + window_high * height / floors
      for i in range(bays):
        z0 = near + (i + 0.5 - window_wide / 2) * bay
        z1 = z0 + window_wide * bay
        pane = lit_glass if glowing[floor, i] else glass * (1.2 if (i + floor) % 3 else 0.9)
        scene.polygon([(x, low, z0), (x, low, z1), (x, high, z1), (x, high, z0)], pane, None)
      for j in range(2):
        across = x + side * depth * (0.25 + 0.45 * j)
        scene.upright(across, depth * 0.18, low, high, near, glass, None)
    if shop is not None:
      scene.polygon([(x, 2.4, near), (x, 2.4, far), (x, 3.1, far), (x, 3.1, near)], shop, None)
    if billboard is not None:
      middle = (near + far) / 2
      low, high = height * 0.5, height * 0.5 + 1.5
      scene.polygon(
        [(x, low, middle), (x, low, middle + 2), (x, high, middle + 2), (x, high, middle)], billboard, None
      )

  return paint


def _hedge(scene: _Scene, x: float, near: float, far: float) -> Callable[[], None]:
  rng = scene.rng
  balls = [
    (x + rng.normal(0, 0.8), rng.uniform(0.2, 1.2), z, rng.uniform(0.5, 1.4), _leaf(scene))
    for z in sorted(np.arange(max(near, 2.5), max(far, 3.5), 0.9), reverse=True)
  ]

  def paint() -> None:
    for ball_x, y, z, radius, color in balls:
      scene.ellipse((ball_x, y, z), radius, radius, color, "vegetation")

  return paint


def _fence(scene: _Scene, x: float, near: float, far: float) -> Callable[[], None]:
  rng = scene.rng
  height = rng.uniform(0.9, 1.8)
  color, gap = scene.any_color(), scene.any_color() * 0.6
  solid = rng.random() < 0.4

  def paint() -> None:
    quad = [(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)]
    if solid:
      scene.polygon(quad, color, "fence")
    else:
      # One sees through the bars, but the label is the fence's, as annotators draw it.
      scene.label_pen.polygon([scene.project(p) for p in quad], fill=_IDS["fence"])
      for level in (0.1, height * 0.5, height - 0.1):
        scene.polygon(
          [(x, level, near), (x, level, far), (x, level + 0.1, far), (x, level + 0.1, near)], color, None
        )
    for z in np.arange(near, far, 0.35):
      ends = [scene.project((x, 0, z)), scene.project((x, height, z))]
      scene.color_pen.line(ends, fill=scene.haze(gap if solid else color, z))

  return paint


def _tree(scene: _Scene, x: float, z: float) -> Callable[[], None]:
  rng = scene.rng
  stem, crown = rng.uniform(1.2, 3), rng.uniform(1.0, 2.4)
  color = _leaf(scene)
  leaves = [
    (
      rng.normal(0, 0.5) * crown,
      rng.normal(0.6, 0.5) * crown,
      rng.uniform(0.3, 0.65) * crown,
      rng.uniform(0.7, 1.3),
    )
    for _ in range(14)
  ]
  bare = rng.random() < 0.12

  def paint() -> None:
    scene.upright(x, 0.3, 0, stem + crown * 0.4, z, np.array((85, 65, 50)), "vegetation")
    for dx, dy, radius, tone in leaves:
      if bare:
        ends = [scene.project((x, stem, z)), scene.project((x + dx, stem + dy + crown * 0.3, z))]
        scene.color_pen.line(ends, fill=scene.haze((80, 65, 55), z), width=2)
        scene.label_pen.line(ends, fill=_IDS["vegetation"], width=2)
      else:
        scene.ellipse((x + dx, stem + dy, z), radius, radius * 0.9, color * tone, "vegetation")

  return paint


def _lamp(scene: _Scene, side: int, x: float, z: float) -> Callable[[], None]:
  rng = scene.rng
  height = rng.uniform(4, 7.5)
  color = scene.greys[rng.integers(4)] * rng.uniform(0.4, 1.1)
  arm = rng.random() < 0.7

  def paint() -> None:
    scene.upright(x, 0.14, 0, height, z, color, "pole")
    if arm:
      ends = [scene.project((x, height, z)), scene.project((x - side * 1.6, height + 0.3, z))]
      scene.color_pen.line(ends, fill=scene.haze(color, z), width=2)
      scene.label_pen.line(ends, fill=_IDS["pole"], width=2)
      glow = np.array((255, 235, 170)) if scene.night else color * 0.9
      scene.ellipse((x - side * 1.6, height + 0.25, z), 0.3, 0.12, glow, "pole")

  return paint


def _sign(scene: _Scene, x: float, z: float) -> Callable[[], None]:
  rng = scene.rng
  y, radius = rng.uniform(2.0, 3.2), rng.uniform(0.28, 0.5)
  shape = str(rng.choice(("disk", "triangle", "square", "board", "light")))
  rim = scene.any_color() if rng.random() < 0.4 else np.array((205, 30, 35))
  face = np.array((240, 240, 235)) if rng.random() < 0.6 else scene.any_color()
  grey = scene.greys[rng.integers(4)] * rng.uniform(0.5, 1)

  def plate(r: float, color: Color, label: str | None) -> None:
    if shape == "disk":
      scene.ellipse((x, y, z), r, r, color, label)
    elif shape == "triangle":
      scene.polygon(
        [(x - r * 1.1, y - r * 0.8, z), (x + r * 1.1, y - r * 0.8, z), (x, y + r * 1.1, z)], color, label
      )
    elif shape == "light":
      scene.upright(x, r * 0.9, y - r * 1.2, y + r * 1.2, z, color, label)
    else:
      scene.upright(x, 2 * r * (1.5 if shape == "board" else 1), y - r, y + r, z, color, label)

  def paint() -> None:
    scene.upright(x, 0.09, 0, y, z, grey, "pole")
    if shape == "light":
      plate(radius, np.array((35, 35, 38)), "sign")
      lamps = ((0.75, (230, 40, 30)), (0, (90, 80, 30)), (-0.75, (30, 80, 60)))
      for shift, color in lamps:
        scene.ellipse((x, y + shift * radius, z), radius * 0.3, radius * 0.3, color, None)
    else:
      plate(radius, rim, "sign")
      plate(radius * 0.68, face, None)
      scene.upright(x, radius * 0.5, y - radius * 0.15, y + radius * 0.15, z, np.asarray(rim) * 0.5, None)

  return paint


def _person(scene: _Scene, x: float, z: float) -> Callable[[], None]:
  rng = scene.rng
  tall = rng.uniform(1.2, 1.9)
  coat, trousers = scene.any_color(), scene.any_color() * 0.7
  skin = np.array((225, 180, 150)) * rng.uniform(0.35, 1.05)
  hair = np.array((70, 50, 35)) * rng.uniform(0.3, 2)
  stride, broad = rng.uniform(0.02, 0.25), rng.uniform(0.2, 0.28)

  def paint() -> None:
    scene.ellipse((x, 0.02, z), 0.35, 0.06, (45, 45, 48), None)
    hip, neck = tall * 0.48, tall * 0.84
    for foot in (-stride, stride):
      leg = [(x - 0.1, hip, z), (x + 0.1, hip, z), (x + foot + 0.08, 0, z), (x + foot - 0.08, 0, z)]
      scene.polygon(leg, trousers, "person")
    torso = [(x - broad, neck, z), (x + broad, neck, z), (x + broad * 0.8, hip, z), (x - broad * 0.8, hip, z)]
    scene.polygon(torso, coat, "person")
    for arm in (-1, 1):
      limb = [(x + arm * broad, neck, z), (x + arm * (broad + 0.1), neck, z)]
      limb += [(x + arm * (broad + stride), hip, z), (x + arm * (broad + stride - 0.1), hip, z)]
      scene.polygon(limb, coat * 0.85, "person")
    scene.ellipse((x, tall * 0.92, z), 0.11, tall * 0.08, skin, "person")
    scene.ellipse((x, tall * 0.965, z), 0.11, tall * 0.045, hair, "person")

  return paint


def _car(scene: _Scene, x: float, z: float) -> Callable[[], None]:
  rng = scene.rng
  wide, long = rng.uniform(1.65, 1.95), rng.uniform(3.6, 4.8)
  body, top = rng.uniform(0.75, 1.0), rng.uniform(1.35, 1.6)
  if rng.random() < 0.18:
    wide, long, body, top = 2.3, rng.uniform(5, 9), rng.uniform(1.2, 1.8), rng.uniform(2.3, 3.2)
  color = scene.any_color()
  oncoming = rng.random() < 0.4

  def paint() -> None:
    near, far = z, z + long
    low, high = x - wide / 2, x + wide / 2
    # The flank that the camera sees is the one towards it.
    flank = high if high < 0 else low if low > 0 else None
    shadow = [
      (low - 0.15, 0, near - 0.2),
      (high + 0.15, 0, near - 0.2),
      (high + 0.15, 0, far),
      (low - 0.15, 0, far),
    ]
    scene.polygon(shadow, (38, 38, 42), None)
    in_front, in_back = near + long * 0.2, far - long * 0.15
    inset = wide * 0.08
    glass = np.array((45, 55, 65)) if color.mean() > 60 else np.array((110, 120, 130))
    roof = [
      (low + inset, top, in_front),
      (high - inset, top, in_front),
      (high - inset, top, in_back),
      (low + inset, top, in_back),
    ]
    if flank is not None:
      inner = flank - np.sign(flank - x) * inset
      side = [(flank, 0.25, near), (flank, 0.25, far), (flank, body, far), (flank, body, near)]
      scene.polygon(side, color * 0.75, "car")
      cabin = [(flank, body, near), (flank, body, far), (inner, top, in_back), (inner, top, in_front)]
      scene.polygon(cabin, color * 0.8, "car")
      pane = [(flank, body + 0.05, near + long * 0.15), (flank, body + 0.05, far - long * 0.15)]
      pane += [(inner, top - 0.1, in_back), (inner, top - 0.1, in_front)]
      scene.polygon(pane, glass, None)
    scene.polygon(roof, color * 1.1, "car")
    rear = [(low, 0.22, near), (high, 0.22, near), (high, body, near), (low, body, near)]
    scene.polygon(rear, color, "car")
    screen = [
      (low, body, near),
      (high, body, near),
      (high - inset, top, in_front),
      (low + inset, top, in_front),
    ]
    scene.polygon(screen, color * 0.9, "car")
    window = [(low + 0.15, body + 0.04, near + 0.05), (high - 0.15, body + 0.04, near + 0.05)]
    window += [(high - inset - 0.1, top - 0.08, in_front), (low + inset + 0.1, top - 0.08, in_front)]
    scene.polygon(window, glass, None)
    light = np.array((250, 245, 215)) if oncoming else np.array((190, 25, 25))
    for lamp in (low + 0.22, high - 0.22):
      scene.ellipse((lamp, body * 0.75, near), 0.15, 0.1, light, None)
    scene.upright(x, 0.5, 0.42, 0.54, near, (225, 225, 215), None)
    for wheel in (low + 0.15, high - 0.15):
      scene.upright(wheel, 0.24, 0, 0.32, near, (25, 25, 27), "car")
    if flank is not None:
      for axle in (near + long * 0.18, far - long * 0.18):
        scene.ellipse((flank, 0.3, axle), 0.14, 0.3, (25, 25, 27), "car")

  return paint


def _draw_bonnet(scene: _Scene) -> None:
  # The camera's own car: in the picture, and of no class.
  if scene.rng.random() < 0.5:
    rise = scene.height * scene.rng.uniform(0.02, 0.08)
    box = (-scene.width * 0.1, scene.height - rise, scene.width * 1.1, scene.height + rise * 3)
    scene.color_pen.ellipse(box, fill=scene.haze(scene.any_color() * 0.6, 1))
    scene.label_pen.ellipse(box, fill=IGNORE_LABEL)


def _photograph(scene: _Scene) -> tuple[np.ndarray, np.ndarray]:
  """Texture, light, lens and sensor; the labels are those of the pixels' centers."""
  rng = scene.rng
  label = np.array(scene.labels)[1::_SUPERSAMPLING, 1::_SUPERSAMPLING].copy()
  picture = np.asarray(scene.picture.reduce(_SUPERSAMPLING), np.float32)
  roughness = np.full(256, 0.07, np.float32)
  for name, amount in _ROUGHNESS.items():
    roughness[_IDS[name]] = amount
  height, width = scene.size
  texture = _noise(rng, scene.size, (width // 2, width // 4, width // 8))
  picture *= 1 + (roughness[label] * texture)[..., None]
  # Uneven light: a cloud's shadow, the lens's dark corners.
  y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  light = 1 + 0.12 * _noise(rng, scene.size, (2, 4)) - rng.uniform(0, 0.2) * (x**2 + y**2)
  if scene.night:
    light = light * rng.uniform(0.3, 0.5)
  tint = 1 + rng.normal(0, 0.06, 3)
  picture *= (light[..., None] * tint).astype(np.float32)
  contrast, exposure = rng.uniform(0.7, 1.25), rng.normal(0, 12)
  picture = (picture - 110) * contrast + 110 + exposure
  picture = np.asarray(
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).filter(
      ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7))
    ),
    np.float32,
  )
  picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(1.5, 8))
  return picture.clip(0, 255).astype(np.uint8), label


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: Sequence[int]) -> np.ndarray:
  """Smooth noise ``[H,W]`` of about unit variance: octaves of ``cells`` random values across, enlarged."""
  total = np.zeros(size, np.float32)
  for across in cells:
    down = max(2, across * size[0] // size[1])
    values = rng.standard_normal((down, max(2, across)), np.float32)
    total += np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))
  return total / np.sqrt(len(cells) * 0.6)


def _leaf(scene: _Scene) -> np.ndarray:
  rng = scene.rng
  return np.array(_hsv(rng.uniform(0.1, 0.38), rng.uniform(0.2, 0.65), rng.uniform(0.2, 0.6)))


def _hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
  """HSV in 0..1 -> RGB in 0..255."""
  shifts = (hue * 6 + np.array((5.0, 3.0, 1.0))) % 6
  r, g, b = 255 * value * (1 - saturation * np.clip(np.minimum(shifts, 4 - shifts), 0, 1))
  return float(r), float(g), float(b)
