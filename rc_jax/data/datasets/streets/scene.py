"""Draws one street scene and its labels: a camera on a street, houses and trees along it, traffic and people."""

import itertools

import numpy as np
from PIL import Image, ImageFilter

from rc_jax.data.datasets.streets import objects
from rc_jax.data.datasets.streets.canvas import IDS, SUPERSAMPLING, Canvas, hsv, leaf, noise
from rc_jax.data.reading.dataset_info import IGNORE_LABEL

# Strength of the fine texture of a surface: high for leaves and grass, low for sky.
_ROUGHNESS = {
  "vegetation": 0.3,
  "terrain": 0.18,
  "building": 0.08,
  "road": 0.05,
  "sidewalk": 0.07,
  "sky": 0.02,
}
_FARTHEST = 90.0

Thing = tuple[float, objects.Paint]
"""Distance ahead in metres, and the function that paints the object."""


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Draws a scene.

  Args:
    rng: decides everything.
    size: ``(H,W)``.

  Returns:
    The picture uint8 ``[H,W,3]`` and the labels uint8 ``[H,W]``: an index into ``CLASSES``, or 255.
  """
  canvas = Canvas(rng, size)
  _draw_sky(canvas)
  _draw_skyline(canvas)
  kerbs, edges = _draw_ground(canvas)
  # The painter's algorithm: farther objects are drawn first.
  things: list[Thing] = []
  for side, kerb, edge in zip((-1, 1), kerbs, edges, strict=True):
    things += _street_side(canvas, side, kerb, edge)
  things += _traffic(canvas, *kerbs)
  for _, draw_thing in sorted(things, key=lambda thing: -thing[0]):
    draw_thing()
  _draw_bonnet(canvas)
  return _photograph(canvas)


def _draw_sky(canvas: Canvas) -> None:
  # Clouds are smooth: half the size suffices, for a quarter of the work.
  size = (canvas.height // 2, canvas.width // 2)
  down = np.linspace(0, canvas.height / canvas.horizon, size[0], dtype=np.float32).clip(0, 1)[:, None, None]
  top, bottom = np.array(canvas.sky_top, np.float32), np.array(canvas.sky_bottom, np.float32)
  clouds = noise(canvas.rng, size, (3, 6, 12, 24))[..., None]
  cover = np.clip((clouds - np.float32(canvas.rng.uniform(-0.2, 0.8))) * 1.5, 0, 1) * np.float32(0.7)
  sky = (top * (1 - down) + bottom * down) * (1 - cover) + 238 * cover
  picture = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
  canvas.picture.paste(picture.resize((canvas.width, canvas.height), Image.Resampling.BILINEAR))


def _draw_skyline(canvas: Canvas) -> None:
  # A band of distant houses and trees: the horizon is never empty.
  rng = canvas.rng
  x = -rng.uniform(0, 20)
  while x < canvas.width:
    width = rng.uniform(0.1, 0.3) * canvas.width
    height = rng.uniform(0.05, 0.16) * canvas.height
    box = [(x, canvas.horizon - height), (x + width, canvas.horizon - height)]
    box += [(x + width, canvas.horizon + 3), (x, canvas.horizon + 3)]
    if rng.random() < 0.55:
      canvas.flat(box, canvas.haze(canvas.any_color(), 50), "building")
    else:
      color = canvas.haze(leaf(rng), 50)
      for shift in np.arange(0, width, max(4.0, height)):
        bounds = (
          x + shift - height,
          canvas.horizon - height * rng.uniform(0.7, 1.5),
          x + shift + height,
          canvas.horizon + 3,
        )
        canvas.color_pen.ellipse(bounds, fill=color)
        canvas.label_pen.ellipse(bounds, fill=IDS["vegetation"])
    x += width


def _draw_ground(canvas: Canvas) -> tuple[tuple[float, float], tuple[float, float]]:
  """Paints terrain, sidewalks, road and marks; returns both kerbs and both outer edges of the sidewalks in metres."""
  rng = canvas.rng
  left, right = -rng.uniform(1.7, 2.7), rng.uniform(1.7, 2.7)
  asphalt = np.full(3, rng.uniform(70, 115)) + rng.normal(0, 3, 3)
  paving = asphalt * rng.uniform(1.4, 1.8) + np.array((8, 0, -8)) * rng.uniform(0.3, 2)
  grass = hsv(rng.uniform(0.13, 0.26), rng.uniform(0.35, 0.65), rng.uniform(0.5, 0.75))
  depths = np.geomspace(0.7, 400, 24)

  def strip(
    low: float, high: float, color: np.ndarray, label: str | None, first: float = 0.7, last: float = 400
  ) -> None:
    zs = depths[(depths > first) & (depths < last)].tolist()
    zs = [first, *zs, last]
    for near, far in itertools.pairwise(zs):
      canvas.polygon([(low, 0, near), (high, 0, near), (high, 0, far), (low, 0, far)], color, label)

  strip(-400, 400, grass, "terrain")
  widths = {-1: rng.uniform(1.8, 3.2), 1: rng.uniform(1.8, 3.2)}
  paved = {}
  for side, edge in ((-1, left), (1, right)):
    low, high = sorted((edge, edge + side * widths[side]))
    paved[side] = rng.random() < 0.75
    if paved[side]:
      strip(low, high, paving * rng.uniform(0.9, 1.1), "sidewalk")
  strip(left, right, asphalt, "road")
  # Kerbs, slabs and patches: edges that are not borders between classes.
  for edge in (left, right):
    strip(edge - 0.1, edge + 0.1, asphalt * rng.uniform(0.7, 1.6), None)
  for z in np.geomspace(2, 40, 14):
    if paved[-1]:
      strip(left - widths[-1], left, paving * 0.8, None, z, z * 1.02)
    if paved[1]:
      strip(right, right + widths[1], paving * 0.8, None, z, z * 1.02)
  for _ in range(rng.integers(0, 3)):
    x, z = rng.uniform(left, right), rng.uniform(3, 30)
    width = rng.uniform(0.4, 2)
    tone = asphalt * rng.uniform(0.6, 1.3) if rng.random() < 0.7 else np.asarray(canvas.sky_bottom) * 0.8
    low, high = max(left, x - width), min(right, x + width)
    canvas.polygon([(low, 0, z), (high, 0, z), (high, 0, z * 1.25), (low, 0, z * 1.2)], tone, None)
  paint = np.full(3, rng.uniform(170, 240))
  for lane in np.arange(left + 3.2, right - 2, 3.2):
    dash = rng.uniform(2, 6)
    for z in np.arange(1.0, 60, 2 * dash):
      strip(lane - 0.08, lane + 0.08, paint, None, z, z + dash)
  if rng.random() < 0.25:
    z = rng.uniform(6, 25)
    for x in np.arange(left + 0.3, right - 0.3, 0.9):
      strip(x, min(x + 0.45, right), paint, None, z, z + 2.5)
  # Shadows of houses and trees fall on road and sidewalk.
  reach = rng.uniform(0.3, 1) * (right - left)
  shaded = (left - 4, left + reach) if canvas.sun_side < 0 else (right - reach, right + 4)
  for _ in range(rng.integers(0, 3)):
    z = rng.uniform(3, 40)
    corners = [
      (x, 0.0, z * stretch * rng.uniform(0.9, 1.1))
      for x, stretch in zip((*shaded, *shaded[::-1]), (1, 1, 1.3, 1.3), strict=True)
    ]
    canvas.polygon(corners, asphalt * rng.uniform(0.5, 0.7), None)
  return (left, right), (left - widths[-1], right + widths[1])


def _street_side(canvas: Canvas, side: int, kerb: float, edge: float) -> list[Thing]:
  """Places the objects of one side: houses or open land, fences, trees, poles, signs and people on the sidewalk."""
  rng = canvas.rng
  things: list[Thing] = []
  line = edge + side * rng.uniform(0.5, 6)
  z = rng.uniform(-2, 4)
  # A row of houses, or a park: grass with a few houses far apart.
  built = rng.uniform(0.75, 1.0) if rng.random() < 0.65 else rng.uniform(0, 0.3)
  while z < _FARTHEST:
    length = rng.uniform(5, 16)
    if rng.random() < built:
      height, depth, setback = rng.uniform(3.5, 16), rng.uniform(6, 14), rng.uniform(0, 1.5)
      things.append(
        (
          z + 0.4 * length,
          objects.house(canvas, side, line + side * setback, max(z, 0.8), z + length, height, depth),
        )
      )
    elif rng.random() < 0.4:
      things.append((z, objects.hedge(canvas, line + side * 5, z, z + length)))
    z += length + (rng.uniform(0, 6) if rng.random() < 0.4 else 0)
  if rng.random() < 0.75:
    start = rng.uniform(2, 14)
    things += objects.fence(canvas, edge + side * 0.15, start, start + rng.uniform(5, 25))
  for _ in range(rng.integers(0, 3)):
    z = rng.uniform(8, 40)
    things.append((z, objects.tree(canvas, edge + side * rng.uniform(-0.8, 3.5), z)))
  for z in np.arange(canvas.first_visible(kerb) * rng.uniform(1.2, 3.5), 22, rng.uniform(10, 16)):
    things.append((z, objects.lamp(canvas, side, kerb + side * rng.uniform(0.3, 0.8), float(z))))
  for _ in range(rng.integers(0, 2)):
    x = kerb + side * rng.uniform(0.4, 1.2)
    z = canvas.first_visible(x) * rng.uniform(1.15, 2.2)
    things.append((z, objects.sign(canvas, x, z)))
  for _ in range(rng.integers(0, 3)):
    x = kerb + side * rng.uniform(0.3, 2.0)
    z = canvas.first_visible(x) * rng.uniform(1.1, 2.0)
    things.append((z, objects.person(canvas, x, z)))
  return things


def _traffic(canvas: Canvas, left: float, right: float) -> list[Thing]:
  rng = canvas.rng
  things: list[Thing] = []
  taken: list[tuple[float, float]] = []
  for _ in range(rng.integers(1, 7)):
    z = float(rng.triangular(6, 10, 40))
    parked = rng.random() < 0.4
    x = rng.choice((left + 1.0, right - 1.0)) if parked else rng.uniform(left + 0.9, right - 0.9)
    if all(abs(x - other_x) > 2.0 or abs(z - other_z) > 5.5 for other_x, other_z in taken):
      taken.append((x, z))
      things.append((z, objects.car(canvas, float(x), z)))
  if rng.random() < 0.25:
    z = float(rng.uniform(7, 18))
    things.append((z, objects.person(canvas, rng.uniform(left, right), z)))
  return things


def _draw_bonnet(canvas: Canvas) -> None:
  # The bonnet of the camera's car is visible and has no class.
  if canvas.rng.random() < 0.5:
    rise = canvas.height * canvas.rng.uniform(0.02, 0.08)
    box = (-canvas.width * 0.1, canvas.height - rise, canvas.width * 1.1, canvas.height + rise * 3)
    canvas.color_pen.ellipse(box, fill=canvas.haze(canvas.any_color() * 0.6, 1))
    canvas.label_pen.ellipse(box, fill=IGNORE_LABEL)


def _photograph(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
  """Adds texture, light, lens and sensor; labels are those at the centers of the pixels."""
  rng = canvas.rng
  label = np.array(canvas.labels)[1::SUPERSAMPLING, 1::SUPERSAMPLING].copy()
  picture = np.asarray(canvas.picture.reduce(SUPERSAMPLING), np.float32)
  roughness = np.full(256, 0.04, np.float32)
  for name, amount in _ROUGHNESS.items():
    roughness[IDS[name]] = amount
  height, width = canvas.size
  texture = noise(rng, canvas.size, (width // 2, width // 4, width // 8))
  picture *= 1 + (roughness[label] * texture)[..., None]
  # Uneven light: the shadow of a cloud, and darker corners from the lens.
  y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  light = 1 + 0.08 * noise(rng, canvas.size, (2, 4)) - rng.uniform(0, 0.2) * (x**2 + y**2)
  if canvas.night:
    light = light * rng.uniform(0.4, 0.6)
  tint = 1 + rng.normal(0, 0.03, 3)
  picture *= (light[..., None] * tint).astype(np.float32)
  contrast, exposure = rng.uniform(0.9, 1.25), rng.normal(0, 8)
  picture = (picture - 110) * contrast + 110 + exposure
  picture = np.asarray(
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).filter(
      ImageFilter.GaussianBlur(rng.uniform(0.1, 0.5))
    ),
    np.float32,
  )
  picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(1, 4))
  return picture.clip(0, 255).astype(np.uint8), label
