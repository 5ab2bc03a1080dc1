"""The objects of a street. Each function draws an object's random properties and returns the function that paints it.

Properties are drawn before painting, because objects are painted from far to near, not in the order of their placement.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np

from rc_jax.data.datasets.streets.canvas import IDS, Canvas, hsv, leaf

Paint = Callable[[], None]

_SHADOW = np.array((40, 40, 44))
_TYRE = np.array((25, 25, 27))


def house(canvas: Canvas, side: int, x: float, near: float, far: float, height: float, depth: float) -> Paint:
  """A house with its facade along the street at ``x``: windows, bricks, a shop or a billboard."""
  rng = canvas.rng
  wall = hsv(rng.uniform(0.04, 0.16), rng.uniform(0.1, 0.4), rng.uniform(0.45, 0.85))  # plaster
  material = rng.random()
  if material < 0.35:
    wall = hsv(rng.uniform(0.0, 0.07), rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65))  # bricks
  elif material < 0.5:
    wall = canvas.any_color() * 0.5 + np.full(3, rng.uniform(80, 190)) * 0.5
  lit = 1.12 if side == canvas.sun_side else 0.78
  glass = np.array((60, 70, 85)) * rng.uniform(0.5, 1.6)
  lit_glass = np.array((250, 215, 130))
  floors = max(1, int(height // 3))
  bays = max(1, int((far - near) // rng.uniform(1.8, 3.5)))
  bricks = rng.random() < 0.4
  roof = rng.random() < 0.4
  window_high, window_wide = rng.uniform(0.35, 0.7), rng.uniform(0.3, 0.75)
  glowing = rng.random((floors, bays)) < (0.4 if canvas.night else 0.04)
  shop = canvas.any_color() if rng.random() < 0.4 else None
  billboard = canvas.any_color() if rng.random() < 0.2 else None

  def paint() -> None:
    out = x + side * depth
    front = wall * (0.95 if lit < 1 else 0.85)
    canvas.polygon([(x, 0, near), (out, 0, near), (out, height, near), (x, height, near)], front, "building")
    if roof:
      ridge = (x + out) / 2
      gable = [(x, height, near), (out, height, near), (ridge, height * 1.25, near)]
      canvas.polygon(gable, front * 0.9, "building")
      slope = [(x, height, near), (x, height, far), (ridge, height * 1.25, far), (ridge, height * 1.25, near)]
      canvas.polygon(slope, np.array((120, 75, 60)) * lit, "building")
    facade = [(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)]
    canvas.polygon(facade, wall * lit, "building")
    if bricks and near < 25:
      for level in np.arange(0.3, height, 0.6):
        canvas.line((x, level, near), (x, level, far), wall * lit * 0.85, None)
    bay = (far - near) / bays
    for floor in range(floors):
      low = floor * height / floors + 0.9
      high = low + window_high * height / floors
      for i in range(bays):
        z0 = near + (i + 0.5 - window_wide / 2) * bay
        z1 = z0 + window_wide * bay
        pane = lit_glass if glowing[floor, i] else glass * (1.2 if (i + floor) % 3 else 0.9)
        canvas.polygon([(x, low, z0), (x, low, z1), (x, high, z1), (x, high, z0)], pane, None)
      for j in range(2):
        across = x + side * depth * (0.25 + 0.45 * j)
        canvas.upright(across, depth * 0.18, low, high, near, glass, None)
    if shop is not None:
      canvas.polygon([(x, 2.4, near), (x, 2.4, far), (x, 3.1, far), (x, 3.1, near)], shop, None)
    if billboard is not None:
      middle = (near + far) / 2
      low, high = height * 0.5, height * 0.5 + 1.5
      canvas.polygon(
        [(x, low, middle), (x, low, middle + 2), (x, high, middle + 2), (x, high, middle)], billboard, None
      )

  return paint


def hedge(canvas: Canvas, x: float, near: float, far: float) -> Paint:
  """Bushes along the street from ``near`` to ``far``."""
  rng = canvas.rng
  balls = [
    (x + rng.normal(0, 0.8), rng.uniform(0.2, 1.2), z, rng.uniform(0.5, 1.4), leaf(rng))
    for z in sorted(np.arange(max(near, 2.5), max(far, 3.5), 0.9), reverse=True)
  ]

  def paint() -> None:
    for ball_x, y, z, radius, color in balls:
      canvas.ellipse((ball_x, y, z), radius, radius, color, "vegetation")

  return paint


def fence(canvas: Canvas, x: float, near: float, far: float) -> list[tuple[float, Paint]]:
  """A fence along the street, of boards or of transparent bars: its sections, each with its distance."""
  rng = canvas.rng
  height = rng.uniform(1.5, 2.4)
  wood = hsv(rng.uniform(0.05, 0.12), rng.uniform(0.2, 0.6), rng.uniform(0.35, 0.75))
  color = wood if rng.random() < 0.6 else canvas.any_color()
  gap = color * rng.uniform(0.35, 0.65)
  solid = rng.random() < 0.8

  def paint(near: float, far: float) -> None:
    quad = [(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)]
    if solid:
      canvas.polygon(quad, color, "fence")
    else:
      # The gaps between the bars have the label of the fence too, as annotators draw it.
      canvas.label_pen.polygon([canvas.project(p) for p in quad], fill=IDS["fence"])
      for level in (0.1, height * 0.5, height - 0.1):
        canvas.polygon(
          [(x, level, near), (x, level, far), (x, level + 0.1, far), (x, level + 0.1, near)], color, None
        )
    for z in np.arange(near, far, 0.35).tolist():
      canvas.line((x, 0, z), (x, height, z), gap if solid else color, None, width=1 if z > 9 else 2)

  # Sections, because a car or a tree beside a long fence is behind one part of it and in front of another.
  ends = [*np.arange(near, far, 2.1).tolist(), far]
  return [(low + 1, functools.partial(paint, low, high)) for low, high in itertools.pairwise(ends)]


def tree(canvas: Canvas, x: float, z: float) -> Paint:
  """A tree: a trunk and a crown of leaves or of bare branches."""
  rng = canvas.rng
  stem, crown = rng.uniform(2.0, 3.2), rng.uniform(1.4, 2.6)
  color = leaf(rng)
  leaves = [
    (
      rng.uniform(-0.7, 0.7) * crown,
      rng.uniform(0, 1.3) * crown,
      rng.uniform(0.4, 0.65) * crown,
      rng.uniform(0.7, 1.3),
    )
    for _ in range(14)
  ]
  bare = rng.random() < 0.05

  def paint() -> None:
    canvas.upright(x, 0.3, 0, stem + crown * 0.4, z, np.array((85, 65, 50)), "vegetation")
    for dx, dy, radius, tone in leaves:
      if bare:
        tip = (x + dx, stem + dy + crown * 0.3, z)
        canvas.line((x, stem, z), tip, np.array((80, 65, 55)), "vegetation", width=2)
      else:
        canvas.ellipse((x + dx, stem + dy, z), radius, radius * 0.9, color * tone, "vegetation")

  return paint


def lamp(canvas: Canvas, side: int, x: float, z: float) -> Paint:
  """A street lamp, whose arm reaches over the road."""
  rng = canvas.rng
  height = rng.uniform(4, 7.5)
  color = canvas.pole_color * rng.uniform(0.85, 1.15)
  arm = rng.random() < 0.7
  thick = rng.uniform(0.32, 0.48)

  def paint() -> None:
    canvas.upright(x, thick, 0, height, z, color, "pole")
    if arm:
      tip = x - side * 1.6
      canvas.polygon(
        [(x, height - 0.3, z), (tip, height + 0.2, z), (tip, height + 0.45, z), (x, height, z)], color, "pole"
      )
      glow = np.array((255, 235, 170)) if canvas.night else color * 0.9
      canvas.ellipse((x - side * 1.6, height + 0.25, z), 0.3, 0.12, glow, "pole")

  return paint


def sign(canvas: Canvas, x: float, z: float) -> Paint:
  """A pole with a traffic sign, a board or a traffic light."""
  rng = canvas.rng
  y, radius = rng.uniform(1.8, 2.6), rng.uniform(0.45, 0.75)
  shape = str(rng.choice(("disk", "triangle", "square", "board", "light")))
  red, blue, yellow, white = ((205, 30, 35), (25, 75, 175), (240, 195, 20), (240, 240, 235))
  pairs = ((red, white), (red, white), (red, yellow), (white, blue), (blue, blue))
  rim, face = (np.array(color) for color in pairs[rng.integers(len(pairs))])
  if rng.random() < 0.2:
    rim, face = canvas.any_color(), canvas.any_color()
  grey = canvas.pole_color * rng.uniform(0.85, 1.15)

  def plate(r: float, color: np.ndarray, label: str | None) -> None:
    if shape == "disk":
      canvas.ellipse((x, y, z), r, r, color, label)
    elif shape == "triangle":
      canvas.polygon(
        [(x - r * 1.1, y - r * 0.8, z), (x + r * 1.1, y - r * 0.8, z), (x, y + r * 1.1, z)], color, label
      )
    elif shape == "light":
      canvas.upright(x, r * 0.9, y - r * 1.2, y + r * 1.2, z, color, label)
    else:
      canvas.upright(x, 2 * r * (1.5 if shape == "board" else 1), y - r, y + r, z, color, label)

  def paint() -> None:
    canvas.upright(x, 0.24, 0, y, z, grey, "pole")
    if shape == "light":
      plate(radius, np.array((35, 35, 38)), "sign")
      for shift, color in ((0.75, (230, 40, 30)), (0, (90, 80, 30)), (-0.75, (30, 80, 60))):
        canvas.ellipse((x, y + shift * radius, z), radius * 0.3, radius * 0.3, np.array(color), None)
    else:
      plate(radius, rim, "sign")
      plate(radius * 0.68, face, None)
      canvas.upright(x, radius * 0.5, y - radius * 0.15, y + radius * 0.15, z, rim * 0.5, None)

  return paint


def person(canvas: Canvas, x: float, z: float) -> Paint:
  """A standing or walking person."""
  rng = canvas.rng
  tall = rng.uniform(1.4, 1.95)
  coat, trousers = canvas.any_color(), canvas.any_color() * 0.7
  skin = np.array((225, 180, 150)) * rng.uniform(0.35, 1.05)
  hair = np.array((70, 50, 35)) * rng.uniform(0.3, 2)
  stride, broad = rng.uniform(0.02, 0.22), rng.uniform(0.27, 0.36)

  def paint() -> None:
    canvas.ellipse((x, 0.02, z), 0.35, 0.06, _SHADOW, None)
    hip, neck = tall * 0.48, tall * 0.84
    for foot in (-stride, stride):
      leg = [(x - 0.16, hip, z), (x + 0.16, hip, z), (x + foot + 0.12, 0, z), (x + foot - 0.12, 0, z)]
      canvas.polygon(leg, trousers, "person")
    torso = [(x - broad, neck, z), (x + broad, neck, z), (x + broad * 0.8, hip, z), (x - broad * 0.8, hip, z)]
    canvas.polygon(torso, coat, "person")
    for arm in (-1, 1):
      limb = [(x + arm * broad, neck, z), (x + arm * (broad + 0.1), neck, z)]
      limb += [(x + arm * (broad + stride), hip, z), (x + arm * (broad + stride - 0.1), hip, z)]
      canvas.polygon(limb, coat * 0.85, "person")
    canvas.ellipse((x, tall * 0.91, z), 0.14, tall * 0.09, skin, "person")
    canvas.ellipse((x, tall * 0.965, z), 0.14, tall * 0.05, hair, "person")

  return paint


def car(canvas: Canvas, x: float, z: float) -> Paint:
  """A car, van or lorry seen from behind or, oncoming, from the front; ``z`` is its nearer end."""
  rng = canvas.rng
  wide, long = rng.uniform(1.65, 1.95), rng.uniform(3.6, 4.8)
  body, top = rng.uniform(0.75, 1.0), rng.uniform(1.35, 1.6)
  if rng.random() < 0.18:
    wide, long, body, top = 2.3, rng.uniform(5, 9), rng.uniform(1.2, 1.8), rng.uniform(2.3, 3.2)
  color = canvas.any_color()
  oncoming = rng.random() < 0.4

  def paint() -> None:
    near, far = z, z + long
    low, high = x - wide / 2, x + wide / 2
    # The visible side is the one towards the camera.
    flank = high if high < 0 else low if low > 0 else None
    shadow = [
      (low - 0.15, 0, near - 0.2),
      (high + 0.15, 0, near - 0.2),
      (high + 0.15, 0, far),
      (low - 0.15, 0, far),
    ]
    canvas.polygon(shadow, _SHADOW, None)
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
      canvas.polygon(side, color * 0.75, "car")
      cabin = [(flank, body, near), (flank, body, far), (inner, top, in_back), (inner, top, in_front)]
      canvas.polygon(cabin, color * 0.8, "car")
      pane = [(flank, body + 0.05, near + long * 0.15), (flank, body + 0.05, far - long * 0.15)]
      pane += [(inner, top - 0.1, in_back), (inner, top - 0.1, in_front)]
      canvas.polygon(pane, glass, None)
    canvas.polygon(roof, color * 1.1, "car")
    rear = [(low, 0.22, near), (high, 0.22, near), (high, body, near), (low, body, near)]
    canvas.polygon(rear, color, "car")
    screen = [
      (low, body, near),
      (high, body, near),
      (high - inset, top, in_front),
      (low + inset, top, in_front),
    ]
    canvas.polygon(screen, color * 0.9, "car")
    window = [(low + 0.15, body + 0.04, near + 0.05), (high - 0.15, body + 0.04, near + 0.05)]
    window += [(high - inset - 0.1, top - 0.08, in_front), (low + inset + 0.1, top - 0.08, in_front)]
    canvas.polygon(window, glass, None)
    light = np.array((250, 245, 215)) if oncoming else np.array((190, 25, 25))
    for lamp_x in (low + 0.22, high - 0.22):
      canvas.ellipse((lamp_x, body * 0.75, near), 0.15, 0.1, light, None)
    canvas.upright(x, 0.5, 0.42, 0.54, near, np.array((225, 225, 215)), None)
    for wheel in (low + 0.15, high - 0.15):
      canvas.upright(wheel, 0.24, 0, 0.32, near, _TYRE, "car")
    if flank is not None:
      for axle in (near + long * 0.18, far - long * 0.18):
        canvas.ellipse((flank, 0.3, axle), 0.14, 0.3, _TYRE, "car")

  return paint
