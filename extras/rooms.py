# SPDX-License-Identifier: MIT
"""Rendered rooms with exact labels of all six tasks, the toy data set; numpy only.

A room is a list of solids that rays are traced against, so its labels are exact. Sizes, colours,
light and the rest of the look are our choice.

world   metres, right-handed; y up, x and z along the floor
camera  x right, y down, z forward
thing   y up, z to the front; the origin is on the floor, or on the wall that the thing hangs on
solid   a unit shape seen through its frame: q = axes @ (point - centre) / size

The file in order: materials, solids, things (furniture and people), furnishing a room, tracing
rays, painting the image, labels. `render_room` at the end puts it together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

HANGING = ("door", "window", "picture", "television")  # on the walls
STANDING = ("rug", "table", "chair", "sofa", "lamp", "cabinet", "ball", "plant")  # on the floor
CLASSES = ("wall", "floor", "ceiling", *HANGING, *STANDING, "figure")


def unit(v: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of length 1."""
    return v / np.sqrt(np.einsum("...i,...i->...", v, v))[..., None]


# --------------------------------------------------------------------------------------- materials
# A pattern says how much of a material's second colour there is, in [0, 1], at places x, y, z (N,)
# in a solid's own axes, in units of 0.16 to 0.28 m. The formulas are our choice.


def plain(x, y, z):
    return np.zeros_like(x)


def stripes(x, y, z):
    return np.floor(2 * x) % 2


def checks(x, y, z):
    return (np.floor(x) + np.floor(y) + np.floor(z)) % 2


def tiles(x, y, z):
    """Joints along x and z."""
    from_joint_x = abs(x / 2 % 1 - 0.5)
    from_joint_z = abs(z / 2 % 1 - 0.5)
    return np.maximum(from_joint_x, from_joint_z) > 0.46


def planks(x, y, z):
    """Boards along z, each of its own brightness, with dark joints."""
    is_joint = x % 1 < 0.1
    brightness = np.sin(99 * np.floor(x)) * 999 % 1  # hardly predictable, the same all over a board
    return np.maximum(is_joint, 0.45 * brightness)


def grain(x, y, z):
    bend = np.sin(z + np.sin(y))
    return 0.25 + 0.25 * np.sin(6 * x + 2 * y + 2 * bend)


def waves(x, y, z):
    bend = np.sin(2.3 * z + 2 * np.sin(3 * y))
    return 0.5 + 0.5 * np.sin(3 * x + 2 * bend)


PATTERNS = {
    "plain": plain,
    "stripes": stripes,
    "checks": checks,
    "tiles": tiles,
    "planks": planks,
    "grain": grain,
    "waves": waves,
}


@dataclass(frozen=True)
class Material:
    """What a surface is drawn from: as in life, but of so many colours that colour alone does not
    tell the class. A pattern that is listed twice is drawn twice as often.
    """

    colours: tuple[str, ...]  # sRGB
    patterns: tuple[str, ...]
    is_dyed: bool = False  # the second colour is any of the list, else a darker first one
    glow: float = 0.0  # light of its own


# fmt: off
PLASTER = ("e9e4d8", "d9c9a8", "b9cfd8", "a9c3a0", "d8a88a", "c8b5cf", "e3cf7a", "8fb0c4")
WHITE = ("f4f2ec", "ece8dc", "e6ecef")
WOOD = ("c99b66", "a87444", "8a5a34", "6b4429", "54331f", "d8b98a")
STONE = ("b8aea0", "8f979c", "c9b49a", "6f7c78", "a65f48", "54606b")
WOOL = ("7d7468", "5c6b78", "8a4f4a", "4f6b55", "a39a8c", "6a5f80")
LACQUER = ("f0ede6", "e8e4da", "3f6a86", "5a7d5a", "a8433c", "39404a")
DYE = ("c43c39", "e07b39", "e8b93c", "4f8a4b", "2f7f86", "35619c",
       "6b4a8c", "b2527e", "8a5a3c", "d9d2c5", "3b3f4a", "7d8a94")
SKIN = ("f0c8a8", "e0ac84", "c68a5e", "a0683f", "7a4a2c", "5a3520")
HAIR = ("1e1a18", "3a2618", "6b4526", "b98a4a", "9a9690", "7a2f1c")
LEAF = ("2f7a35", "4a9440", "1f5a30", "7aa83c")
GLASS = ("0b0d12", "14181f", "101a2a")
LIGHT = ("ffdf90", "ffc870", "ffecc0")
SKY = ("9fd0f7", "b8dcf5", "78b4ee", "e8c89a")

MATERIALS = {
    "plaster":  Material(PLASTER, ("plain", "plain", "stripes")),
    "ceiling":  Material(WHITE, ("plain",)),
    "boards":   Material(WOOD, ("planks",)),
    "tiling":   Material(STONE, ("tiles", "tiles", "checks")),
    "carpet":   Material(WOOL, ("plain",)),
    "wood":     Material(WOOD, ("grain",)),
    "lacquer":  Material(WOOD + LACQUER, ("plain", "plain", "grain")),
    "fabric":   Material(DYE, ("plain", "plain", "stripes", "checks", "waves"), is_dyed=True),
    "shirt":    Material(DYE, ("plain", "plain", "stripes"), is_dyed=True),
    "trousers": Material(DYE, ("plain", "plain", "plain", "checks"), is_dyed=True),
    "skin":     Material(SKIN, ("plain",)),
    "hair":     Material(HAIR, ("plain",)),
    "leaf":     Material(LEAF, ("waves",)),
    "screen":   Material(GLASS, ("plain",)),
    "shade":    Material(LIGHT, ("plain",), glow=0.7),
    "sky":      Material(SKY, ("plain",), glow=0.6),
}
# fmt: on
MATERIAL_NAMES = list(MATERIALS)


# ------------------------------------------------------------------------------------------ solids
BOX = 0  # |x|, |y|, |z| <= 1
BALL = 1  # x^2 + y^2 + z^2 <= 1
CYLINDER = 2  # x^2 + z^2 <= 1 and |y| <= 1

# Signs of x and z: copies of a solid on both sides, or in all four corners.
BOTH_SIDES = ((-1, 1), (1, 1))
FOUR_CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
UPRIGHT = (
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
)


@dataclass(frozen=True)
class Solid:
    """A part of a thing, in the thing's axes."""

    kind: int  # BOX, BALL or CYLINDER
    centre: tuple | np.ndarray  # (3,), metres
    size: tuple  # (3,), half its extent along each of its axes, metres
    material: str
    part: int = 0  # of a figure: 1 to 6 as in render_room
    axes: tuple | np.ndarray = UPRIGHT  # (3, 3), one per row


# The same as arrays, one row per solid, for a whole room in the world's axes.
ROW = np.dtype(
    [
        ("kind", "u1"),
        ("centre", "f8", 3),
        ("size", "f8", 3),
        ("axes", "f8", (3, 3)),
        ("paint", "i4"),  # number of the material + materials * number of an instance
        ("part", "u1"),
        ("semseg", "u1"),
        ("instance", "u1"),
    ]
)


def as_rows(solids: list[Solid]) -> np.ndarray:
    """-> (N,) of ROW; class and instance are still 0."""
    rows = np.zeros(len(solids), ROW)
    rows["kind"] = [solid.kind for solid in solids]
    rows["centre"] = [solid.centre for solid in solids]
    rows["size"] = [solid.size for solid in solids]
    rows["axes"] = [solid.axes for solid in solids]
    rows["paint"] = [MATERIAL_NAMES.index(solid.material) for solid in solids]
    rows["part"] = [solid.part for solid in solids]
    return rows


def mirrored(solid: Solid, signs: tuple) -> list[Solid]:
    """Copies of a solid whose centre's x and z are multiplied by each pair of signs."""
    x, y, z = solid.centre
    copies = []
    for sign_x, sign_z in signs:
        centre = (sign_x * x, y, sign_z * z)
        copies.append(replace(solid, centre=centre))
    return copies


# ------------------------------------------------------------------------------------------ things
# Each function builds a piece of furniture from three lengths in metres, which are drawn for each
# thing: x 0.45 to 0.7, y 0.45 to 0.6, z 0.4 to 0.55. They are mostly half its size along an axis.


def framed(x, y, lower_edge, depth, material, frame):
    """A rectangle on the wall, 2x by 2y, in a frame of 7 cm."""
    centre = (0, lower_edge + y, 0)
    return [
        Solid(BOX, centre, (x + 0.07, y + 0.07, depth), frame),
        Solid(BOX, centre, (x, y, depth + 0.01), material),
    ]


def door(x, y, z):
    leaf = framed(x, 1, 0, 0.03, "wood", "lacquer")
    panel = Solid(BOX, (0, 1.2, 0), (0.6 * x, 0.6, 0.045), "lacquer")
    return [*leaf, panel]


def window(x, y, z):
    pane = framed(x, y, 0.9, 0.04, "sky", "lacquer")
    middle = (0, 0.9 + y, 0)
    upright_bar = Solid(BOX, middle, (0.03, y, 0.06), "lacquer")
    level_bar = Solid(BOX, middle, (x, 0.03, 0.06), "lacquer")
    return [*pane, upright_bar, level_bar]


def picture(x, y, z):
    return framed(x - 0.15, y - 0.2, 1.4 - z, 0.02, "fabric", "wood")


def television(x, y, z):
    return framed(x + 0.05, 0.6 * y, 0.4 + z, 0.04, "screen", "lacquer")


def rug(x, y, z):
    kind = BOX if z < 0.5 else CYLINDER
    size = (1.8 * x, 0.008, y + z)
    return [Solid(kind, (0, 0, 0), size, "fabric")]


def table(x, y, z):
    top = Solid(BOX, (0, y + 0.22, 0), (x + 0.05, 0.045, z), "wood")
    half_leg = y / 2 + 0.11
    leg = Solid(BOX, (x, half_leg, z - 0.05), (0.05, half_leg, 0.05), "wood")
    return [top, *mirrored(leg, FOUR_CORNERS)]


def chair(x, y, z):
    seat = Solid(BOX, (0, 0.45, 0), (0.25, 0.05, 0.25), "fabric")
    back = Solid(BOX, (0, 0.5 + z / 2, -0.21), (0.25, z / 2, 0.04), "fabric")
    leg = Solid(BOX, (0.2, 0.22, 0.2), (0.045, 0.22, 0.045), "wood")
    return [seat, back, *mirrored(leg, FOUR_CORNERS)]


def sofa(x, y, z):
    seat = Solid(BOX, (0, 0.21, 0.02), (x + 0.2, 0.21, 0.4), "fabric")
    half_back = 0.8 * y
    back = Solid(BOX, (0, half_back, -0.32), (x + 0.2, half_back, 0.12), "fabric")
    arm = Solid(BOX, (x + 0.2, 0.3, 0), (0.11, 0.3, 0.42), "fabric")
    return [seat, back, *mirrored(arm, BOTH_SIDES)]


def lamp(x, y, z):
    foot = Solid(CYLINDER, (0, 0.03, 0), (0.18, 0.03, 0.18), "lacquer")
    half_pole = x + 0.1
    pole = Solid(CYLINDER, (0, half_pole, 0), (0.035, half_pole, 0.035), "lacquer")
    radius = y / 2
    shade = Solid(CYLINDER, (0, 2 * x + 0.2, 0), (radius, 0.45 * z, radius), "shade")
    return [foot, pole, shade]


def cabinet(x, y, z):
    half_height = 1.4 * z
    body = Solid(BOX, (0, half_height, 0), (x, half_height, 0.24), "wood")
    leaf = Solid(BOX, (x / 2, half_height, 0.02), (0.45 * x, 1.25 * z, 0.24), "lacquer")
    return [body, *mirrored(leaf, BOTH_SIDES)]


def ball(x, y, z):
    radius = x / 2
    return [Solid(BALL, (0, radius, 0), (radius, radius, radius), "fabric")]


def plant(x, y, z):
    pot = Solid(CYLINDER, (0, 0.2, 0), (0.16, 0.2, 0.16), "lacquer")
    bush = (y / 2, 0.65 * y, y / 2)
    low = Solid(BALL, (0.13, 0.4 + 0.4 * y, 0.1), bush, "leaf")
    high = Solid(BALL, (0, 0.4 + 2 * y * z, 0), bush, "leaf")
    return [pot, *mirrored(low, BOTH_SIDES), high]


FURNITURE = {
    "door": door,
    "window": window,
    "picture": picture,
    "television": television,
    "rug": rug,
    "table": table,
    "chair": chair,
    "sofa": sofa,
    "lamp": lamp,
    "cabinet": cabinet,
    "ball": ball,
    "plant": plant,
}


@dataclass(frozen=True)
class Bone:
    length: float  # in a figure's unit, like all that it is made of
    radius: float
    material: str
    part: int


def limb(joint, side, spread, bends, bones):
    """Cylinders that end in balls, down from a joint (3,) -> solids, where the last ends (3,).

    side: -1 or 1, times x; spread: angle to that side; bends: angle of each bone to the back.
    """
    spread_sin = side * math.sin(spread)
    spread_cos = math.cos(spread)
    solids = []
    for bone, bend in zip(bones, bends):
        bend_sin = math.sin(bend)
        bend_cos = math.cos(bend)
        axes = np.array(
            [
                [spread_cos, spread_sin * bend_cos, -spread_sin * bend_sin],
                [-spread_sin, spread_cos * bend_cos, -spread_cos * bend_sin],
                [0, bend_sin, bend_cos],
            ]
        )
        up = axes[1]  # along the bone
        middle = joint - bone.length / 2 * up
        joint = joint - bone.length * up

        radius = bone.radius
        shaft = (radius, bone.length / 2, radius)
        knob = (radius, radius, radius)
        solids.append(Solid(CYLINDER, middle, shaft, bone.material, bone.part, axes))
        solids.append(Solid(BALL, joint, knob, bone.material, bone.part))
    return solids, joint


def figure(rng: np.random.Generator) -> np.ndarray:
    """Rows of a standing person of 1.3 to 2.1 m, stouter than in life; parts as in render_room."""
    # The hips are at the origin. Lengths are in units of 1.3 to 1.9 m.
    solids = [
        Solid(BALL, (0, 0.43, 0), (0.075, 0.1, 0.08), "skin", part=1),
        Solid(BALL, (0, 0.465, -0.018), (0.082, 0.085, 0.082), "hair", part=1),
        Solid(BALL, (0, 0.27, 0), (0.135, 0.065, 0.08), "shirt", part=2),
        Solid(CYLINDER, (0, 0.15, 0), (0.115, 0.12, 0.075), "shirt", part=2),
        Solid(BALL, (0, 0.02, 0), (0.112, 0.065, 0.08), "trousers", part=2),
    ]
    sleeve = rng.choice(["skin", "skin", "shirt"])
    shin = rng.choice(["skin", "trousers"])
    arm_bones = (Bone(0.16, 0.045, "shirt", part=3), Bone(0.17, 0.04, sleeve, part=4))
    leg_bones = (Bone(0.25, 0.065, "trousers", part=5), Bone(0.23, 0.05, shin, part=6))

    for side in (-1, 1):
        most_spread = rng.choice([0.8, 2.2])  # radians: the arm hangs, or may be lifted
        spread, swing, bend = rng.uniform((0.3, -0.4, 0), (most_spread, 0.5, 1.2))
        shoulder = (side * 0.135, 0.28, 0)
        arm, end = limb(shoulder, side, spread, (swing, swing + bend), arm_bones)
        hand = Solid(BALL, end, (0.046, 0.046, 0.046), "skin", part=4)
        solids += [*arm, hand]

        spread, swing, bend = rng.uniform((0.05, -0.35, -0.4), (0.22, 0.4, 0))
        hip = (side * 0.06, 0, 0)
        leg, end = limb(hip, side, spread, (swing, swing + bend), leg_bones)
        foot = Solid(BALL, end + (0, -0.02, 0.03), (0.05, 0.04, 0.09), "lacquer", part=6)
        solids += [*leg, foot]

    rows = as_rows(solids)
    lowest_foot = rows["centre"][rows["part"] == 6, 1].min()
    rows["centre"][:, 1] -= lowest_foot - 0.04  # on the floor
    scale = rng.uniform(1.3, 1.9)
    rows["centre"] *= scale
    rows["size"] *= scale
    return rows


def thing(name: str, rng: np.random.Generator) -> np.ndarray:
    """Rows of one thing of a class, in its own axes."""
    if name == "figure":
        return figure(rng)
    x, y, z = rng.uniform((0.45, 0.45, 0.4), (0.7, 0.6, 0.55))
    return as_rows(FURNITURE[name](x, y, z))


# -------------------------------------------------------------------------------------- furnishing
@dataclass(frozen=True)
class Camera:
    eye: np.ndarray  # (3,), world
    axes: np.ndarray  # (3, 3): right, down and ahead, in world axes
    focal: float  # in widths of the picture

    def pixel_centres(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """x (W,) and y (H,) on the plane z = 1."""
        focal = self.focal * width  # in pixels
        x = np.arange(width) - (width - 1) / 2
        y = np.arange(height) - (height - 1) / 2
        return x / focal, y / focal


def draw_camera(room_size: np.ndarray, rng: np.random.Generator) -> Camera:
    """Near the wall that is not built, at a person's height, with a view of the other three."""
    wide, _, deep = room_size
    scale = np.array([wide, 1, deep])  # x and z are shares of the room, y is in metres
    eye = scale * rng.uniform((0.3, 1.2, 0.03), (0.7, 1.6, 0.08))
    ahead = scale * rng.uniform((0.25, 0.5, 0.8), (0.75, 0.9, 0.8)) - eye

    roll = rng.uniform(-0.03, 0.03)
    right = np.cross(ahead, (roll, 1, 0))
    down = np.cross(ahead, right)
    axes = unit(np.stack([right, down, ahead]))
    return Camera(eye, axes, focal=rng.uniform(0.7, 0.85))


TRIES = 40  # places that are tried for a thing
FIRST_WALL = 2  # its instance: floor and ceiling are 0 and 1


class Room:
    """A furnished room. things: a list of rows, one array per instance; size (3,) in metres."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.things = []
        self.taken = []  # (spot (3,), radius) on the floor
        self.size = rng.uniform((3.6, 2.3, 4.2), (5.0, 2.7, 5.6))
        self.camera = draw_camera(self.size, rng)
        self.build_shell()

        figures = rng.choice(3, p=(0.12, 0.7, 0.18))
        furniture = rng.permutation(STANDING)
        furniture = furniture[: rng.integers(4, 7)]
        for _ in range(figures):
            self.place("figure")
        for name in furniture:
            self.place(name)

    def put(self, name, rows, position=(0, 0, 0), yaw=0, aside=0, paint_of=None):
        """Add a thing as the next instance: moved aside along its x, turned about y, then moved.

        paint_of: the instance whose colours it shares; by default it has its own.
        """
        instance = len(self.things)
        if paint_of is None:
            paint_of = instance
        cos = math.cos(yaw)
        sin = math.sin(yaw)
        turn = np.array(
            [
                [cos, 0, -sin],
                [0, 1, 0],
                [sin, 0, cos],
            ]
        )

        rows = rows.copy()
        rows["centre"] = (rows["centre"] + (aside, 0, 0)) @ turn + position
        rows["axes"] = rows["axes"] @ turn
        rows["paint"] += len(MATERIALS) * paint_of
        rows["semseg"] = CLASSES.index(name)
        rows["instance"] = instance
        self.things.append(rows)

    def build_shell(self):
        """Slabs for the floor, the ceiling and the three walls in view."""
        wide, high, deep = self.size
        slab = (wide, 0.1, deep)
        below = (wide / 2, -0.1, deep / 2)
        above = (wide / 2, high + 0.1, deep / 2)

        material = self.rng.choice(["boards", "boards", "tiling", "carpet"])
        self.put("floor", as_rows([Solid(BOX, below, slab, material)]))
        self.put("ceiling", as_rows([Solid(BOX, above, slab, "ceiling")]))
        self.build_wall((0, 0, 0.6 * deep), math.pi / 2)  # on the picture's right
        self.build_wall((wide, 0, 0.6 * deep), -math.pi / 2)  # on its left
        self.build_wall((wide / 2, 0, deep), math.pi)  # ahead

    def build_wall(self, position, yaw):
        """A slab whose z points into the room, with two things on it. All walls share a paint."""
        wide, high, deep = self.size
        slab = Solid(BOX, (0, high / 2, -0.1), (deep, high, 0.1), "plaster")
        self.put("wall", as_rows([slab]), position, yaw, paint_of=FIRST_WALL)
        for aside in (-0.24 * wide, 0.24 * wide):
            name = self.rng.choice(HANGING)
            rows = thing(name, self.rng)
            self.put(name, rows, position, yaw, aside)

    def is_in_view(self, spot: np.ndarray, height: float) -> bool:
        """Whether a 4:3 picture holds a spot on the floor and the place `height` above it.

        Half such a picture is 0.375 widths high; 0.36 leaves a margin.
        """
        foot_and_head = spot + [(0, 0, 0), (0, height, 0)]
        _, y, z = self.camera.axes @ (foot_and_head - self.camera.eye).T
        return (abs(y) < 0.36 * z / self.camera.focal).all()

    def is_free(self, spot: np.ndarray, radius: float) -> bool:
        """Whether a disc on the floor lies inside the room and touches none that is taken."""
        from_middle = abs(spot - self.size / 2)
        inside = from_middle < self.size / 2 - radius
        if not (inside[0] and inside[2]):
            return False
        return all(math.dist(spot, other) > radius + r for other, r in self.taken)

    def find_spot(self, height, radius, near, far):
        """A free place on the floor (3,), in view up to `height`, or None.

        It is sought at random, `near` to `far` metres ahead.
        """
        ahead_on_floor = unit(self.camera.axes[2] * (1, 0, 1))
        right = self.camera.axes[0]
        for aside, ahead in self.rng.uniform((-0.38, near), (0.38, far), (TRIES, 2)):
            direction = ahead_on_floor + aside / self.camera.focal * right
            spot = self.camera.eye + ahead * direction
            spot = spot * (1, 0, 1)
            if self.is_in_view(spot, height) and self.is_free(spot, radius):
                return spot
        return None

    def place(self, name):
        """Put a thing on the floor where there is room for it, turned to the camera more or less.

        A figure takes 50 to 85 % of a 4:3 picture's height, and nothing comes before its middle.
        """
        rows = thing(name, self.rng)
        half_width, height, _ = (abs(rows["centre"]) + rows["size"]).max(0)
        if name == "figure":
            radius = 0.35
            near = 1.57 * self.camera.focal * height  # 1 / (0.85 * 0.75): 85 % of 0.75 widths
            far = 2.67 * self.camera.focal * height  # 1 / (0.5 * 0.75)
            spot = self.find_spot(height, radius, near, far)
        else:
            radius = 0 if name == "rug" else 0.9 * half_width
            spot = self.find_spot(0, radius, near=1.6 + radius, far=5)
        if spot is None:
            return

        to_camera = (self.camera.eye - spot) * (1, 0, 1)
        yaw = math.atan2(to_camera[0], to_camera[2])
        yaw += self.rng.uniform(-1, 1)
        self.put(name, rows, spot, yaw)

        self.taken.append((spot, radius))
        if name == "figure":  # keep the way to the camera free, ever narrower
            for share in (0.3, 0.6):
                on_the_way = spot + share * to_camera
                self.taken.append((on_the_way, (1 - share) * radius))


# ----------------------------------------------------------------------------------------- tracing
# A ray is o + t d. It is given in a solid's frame, o (3,) and d (3, H, W). In the camera's axes d is
# (x, y, 1), so t is the depth, and the same in all frames.

CUBE = np.array(list(product((-1, 1), repeat=3)))  # (8, 3): its corners


def between_faces(o, d):
    """t where rays enter and leave the space between opposite faces; o (k,), d (k, H, W): k axes."""
    o = o[:, None, None]
    one = (-1 - o) / d
    other = (1 - o) / d
    enter = np.minimum(one, other).max(0)
    leave = np.maximum(one, other).min(0)
    return enter, leave


def inside_round(o, d):
    """t where rays enter and leave the unit ball or circle: roots of |o + t d|^2 = 1, else NaN."""
    a = np.einsum("ihw,ihw->hw", d, d)
    b = np.einsum("i,ihw->hw", o, d)
    root = np.sqrt(b * b - a * (o @ o - 1))
    enter = (-b - root) / a
    leave = (root - b) / a
    return enter, leave


def hit(kind, o, d):
    """t > 0 where rays from outside enter a unit shape, inf where they do not; (H, W)."""
    if kind == BOX:
        enter, leave = between_faces(o, d)
    elif kind == BALL:
        enter, leave = inside_round(o, d)
    else:
        enter_ends, leave_ends = between_faces(o[1:2], d[1:2])
        enter_round, leave_round = inside_round(o[::2], d[::2])
        enter = np.maximum(enter_ends, enter_round)
        leave = np.minimum(leave_ends, leave_round)
    is_hit = (enter < leave) & (enter > 0)  # never where NaN
    return np.where(is_hit, enter, np.inf)


def trace(rows, camera, height, width, dtype):
    """What the pixels' centres see: depth along the optical axis and row of `rows`, both (H, W)."""
    x, y = camera.pixel_centres(height, width)
    x = x.astype(dtype)
    y = y.astype(dtype)
    depth = np.full((height, width), np.inf, dtype)
    index = np.zeros((height, width), np.int16)

    # A solid is seen inside the rectangle of pixels that holds its 8 corners.
    corners = CUBE * rows["size"][:, None] @ rows["axes"]  # (N, 8, 3), from its centre
    from_eye = rows["centre"] - camera.eye  # (N, 3)
    corners = (corners + from_eye[:, None]) @ camera.axes.T
    corner_x, corner_y, corner_z = np.moveaxis(corners, -1, 0)  # (N, 8), camera axes
    nearest = corner_z.min(1)
    farthest = corner_z.max(1)

    seen_x = corner_x / corner_z
    seen_y = corner_y / corner_z
    left = np.searchsorted(x, seen_x.min(1))
    right = np.searchsorted(x, seen_x.max(1))
    top = np.searchsorted(y, seen_y.min(1))
    bottom = np.searchsorted(y, seen_y.max(1))

    # The camera and its axes as each solid's frame sees them.
    frames = rows["axes"] / rows["size"][..., None]  # (N, 3, 3), from the world
    origins = np.einsum("nij,nj->ni", frames, -from_eye).astype(dtype)
    frames = (frames @ camera.axes.T).astype(dtype)  # (N, 3, 3), from the camera's axes

    for i in np.flatnonzero(farthest > 0.05):
        across = slice(left[i], right[i])
        down = slice(top[i], bottom[i])
        if nearest[i] < 0.05:  # some of it is behind the camera: no such rectangle
            across = slice(None)
            down = slice(None)

        right_axis, down_axis, ahead_axis = frames[i].T[..., None, None]  # (3, 1, 1) each
        d = right_axis * x[across] + (down_axis * y[down, None] + ahead_axis)  # (3, h, w)
        t = hit(rows["kind"][i], origins[i], d)
        so_far = depth[down, across]
        index[down, across][t < so_far] = i
        np.minimum(so_far, t, out=so_far)
    return depth, index


def surface(rows, camera, depth, index):
    """World points, unit normals, points in the solids' own axes (metres): (H, W, 3) each."""
    dtype = depth.dtype
    x, y = camera.pixel_centres(*depth.shape)
    right, down, ahead = camera.axes
    rays = x[:, None] * right + (y[:, None, None] * down + ahead)  # (H, W, 3)
    points = camera.eye.astype(dtype) + depth[..., None] * rays.astype(dtype)

    centre = rows["centre"].astype(dtype)[index]
    size = rows["size"].astype(dtype)[index]
    axes = rows["axes"].astype(dtype)[index]  # (H, W, 3, 3)
    kind = rows["kind"][index][..., None]
    local = np.einsum("hwij,hwj->hwi", axes, points - centre)

    # In its frame a ball's normal is q. A box has the normal of the face that is hit: q where it
    # is largest, else 0. A cylinder has the y of q at its ends, the x and z round it.
    q = local / size
    x, y, z = np.moveaxis(q, -1, 0)
    is_face = abs(q) == abs(q).max(-1, keepdims=True)
    is_end = abs(y) > np.hypot(x, z)  # (H, W)
    is_y = np.array([False, True, False])
    is_end_or_round = is_end[..., None] == is_y  # (H, W, 3)
    keep = np.select([kind == BOX, kind == CYLINDER], [is_face, is_end_or_round], default=True)
    normals = unit(np.einsum("hwij,hwi->hwj", axes, q * keep / size))
    return points, normals, local


# ---------------------------------------------------------------------------------------- painting
GAMMA = 2.2  # of sRGB, nearly
SHADOW_SIZE = 180  # pixels per side of a lamp's depth map
SHADOW_FOCAL = 40  # pixels
LOOKING_DOWN = np.array(
    [
        [1, 0, 0],
        [0, 0, 1],
        [0, -1, 0],
    ]
)


@dataclass(frozen=True)
class Lamp:
    power: float
    blur: int  # pixels of the depth map: soft shadows
    place: tuple[float, float, float]  # shares of the room


LAMPS = (
    Lamp(power=1.9, blur=2, place=(0.5, 0.92, 0.2)),
    Lamp(power=1.2, blur=4, place=(0.5, 0.92, 0.5)),
)


def visible(rows, lamp, points, blur):
    """Share (H, W) of a lamp at (3,) that points (H, W, 3) see, by the depth map of its view down.

    It is the mean of 9 places, `blur` pixels of the map apart.
    """
    view = Camera(lamp, LOOKING_DOWN, SHADOW_FOCAL / SHADOW_SIZE)
    depth, _ = trace(rows, view, SHADOW_SIZE, SHADOW_SIZE, np.float32)

    x, y, z = np.moveaxis(points - lamp, -1, 0)
    below = np.maximum(-y, 0.01)
    middle = SHADOW_SIZE // 2
    last = SHADOW_SIZE - 1 - blur
    column = np.clip(middle + SHADOW_FOCAL * x / below, blur, last)
    row = np.clip(middle + SHADOW_FOCAL * z / below, blur, last)

    seen = 0
    for i, j in product((-blur, 0, blur), repeat=2):
        map_row = (row + i).astype(int)
        map_column = (column + j).astype(int)
        nearest = depth[map_row, map_column]
        seen = seen + (-y <= nearest + 0.06)  # 6 cm, lest a surface shade itself
    return seen / 9


def illuminate(rows, room_size, points, normals, rng):
    """Light (H, W, 3) at points (H, W, 3): from all round, less in corners; from two soft lamps."""
    # Light from all round. It fades within 20 cm of walls, floor and ceiling.
    off = points + 0.3 * normals
    near_low = np.exp(-5 * np.maximum(off, 0))
    near_high = np.exp(-5 * np.maximum(np.float32(room_size) - off, 0))
    openness = (1 - 0.6 * (near_low + near_high)).prod(-1, keepdims=True)
    brightest = np.float32(rng.uniform((-0.25, 0.05, -0.25), (0.25, 0.15, 0)))
    light = (0.27 + normals @ brightest)[..., None] * openness

    for lamp in LAMPS:
        shift = rng.uniform(-1, 1, 3) * (0.4, 0.03, 0.15)
        position = np.float32((lamp.place + shift) * room_size)
        colour = np.float32(lamp.power * rng.uniform((0.97, 0.95, 0.8), (1.1, 1, 1.03)))

        # Lambert's law, with a fall-off that is milder than the inverse square.
        direction = unit(position - points)
        distance = np.linalg.norm(position - points, axis=-1)
        lambert = np.maximum((direction * normals).sum(-1), 0)
        strength = lambert / (0.6 + (distance / 3) ** 2)
        share = visible(rows, position, points + 0.1 * normals, lamp.blur)
        light = light + colour * (strength * share)[..., None]
    return light


@dataclass(frozen=True)
class Paint:
    """A material as one instance has it."""

    colours: np.ndarray  # (2, 3), linear RGB
    pattern: Callable
    scale: float  # metres per unit of the pattern
    glow: float


def draw_paint(material: Material, rng: np.random.Generator) -> Paint:
    """Draw what a material leaves open."""
    chosen = rng.choice(material.colours, 2)
    colours = np.array([tuple(bytes.fromhex(colour)) for colour in chosen]) / 255  # sRGB
    if not material.is_dyed:
        colours[1] = 0.8 * colours[0]
    colours *= rng.uniform(0.8, 1, (2, 3))
    linear = colours**GAMMA
    pattern = PATTERNS[rng.choice(material.patterns)]
    scale = rng.uniform(0.16, 0.28)
    return Paint(linear, pattern, scale, material.glow)


def paint_image(rows, camera, room_size, height, width, rng):
    """The picture, uint8 (H, W, 3), from 2 x 2 rays per pixel. Below, h = 2 H and w = 2 W."""
    depth, index = trace(rows, camera, 2 * height, 2 * width, np.float32)  # (h, w)
    points, normals, local = surface(rows, camera, depth, index)

    # The paint of each ray.
    numbers, paint_of_row = np.unique(rows["paint"], return_inverse=True)
    paints = []
    for number in numbers:
        name = MATERIAL_NAMES[number % len(MATERIALS)]
        paints.append(draw_paint(MATERIALS[name], rng))
    paint = paint_of_row[index]  # (h, w)
    colours = np.float32([p.colours for p in paints])  # (paints, 2, 3)
    scale = np.float32([p.scale for p in paints])
    glow = np.float32([p.glow for p in paints])

    # How much of its second colour a ray sees. Far away a pattern is too fine, and fades.
    place = local / scale[paint][..., None] + np.float32(0.5)  # (h, w, 3)
    share = np.zeros_like(depth)  # (h, w)
    for pattern in PATTERNS.values():
        has_pattern = np.array([p.pattern is pattern for p in paints])[paint]
        share[has_pattern] = pattern(*place[has_pattern].T)
    share *= np.clip(camera.focal * width / depth / 30, 0, 1)
    first = colours[paint, 0]
    second = colours[paint, 1]
    albedo = first + share[..., None] * (second - first)  # (h, w, 3)

    # Light that saturates as on film, then the mean of 2 x 2 rays.
    light = illuminate(rows, room_size, points, normals, rng) + glow[paint][..., None]
    exposure = rng.uniform(1.25, 1.6)
    colour = 1 - np.exp(-exposure * albedo * light)
    colour = colour.reshape(height, 2, width, 2, 3).mean((1, 3))  # (H, W, 3)
    return (255 * colour ** (1 / GAMMA) + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------ labels
def salient(instance: np.ndarray, semseg: np.ndarray) -> np.ndarray:
    """What a viewer looks at first, uint8 {0, 1} (H, W): our rule, see render_room."""
    stands = semseg >= CLASSES.index("table")
    instances, pixels = np.unique(instance[stands], return_counts=True)
    by_size = pixels.argsort()
    large = instances[by_size][pixels[by_size] >= 0.01 * instance.size]

    figures = np.intersect1d(large, instance[semseg == CLASSES.index("figure")])
    largest = large[-1:]
    chosen = figures if figures.size else largest
    return np.isin(instance, chosen).astype(np.uint8)


def boundaries(instance: np.ndarray) -> np.ndarray:
    """uint8 {0, 1} (H, W): the last pixel before another instance to the right or below."""
    boundary = np.zeros(instance.shape, np.uint8)
    boundary[:, :-1] |= instance[:, :-1] != instance[:, 1:]
    boundary[:-1] |= instance[:-1] != instance[1:]
    return boundary


def render_room(seed, height: int, width: int) -> dict:
    """One room: its image and exact labels of the pixels' centres.

    seed (int or ints) fixes the scene, which is the same at any size.

    image     (H, W, 3) uint8, RGB
    semseg    (H, W) uint8, index into CLASSES
    parsing   (H, W) uint8: 1 head, 2 torso, 3 upper arm, 4 lower arm and hand, 5 upper leg, 6 lower
              leg and foot, 0 all else; 255 everywhere if nobody is seen
    saliency  (H, W) uint8 {0, 1}, by our rule: the figures, or without any the largest thing that
              stands on the floor, each of 1 % of the pixels or more
    boundary  (H, W) uint8 {0, 1}, the last pixel before another instance (a wall is one) to the
              right or below
    depth     (H, W) float32, metres along the optical axis
    normal    (H, W, 3) float16 in camera axes, towards the camera: a floor has y about -1
    focal     in pixels, from the middle ((W - 1) / 2, (H - 1) / 2)
    """
    geometry_seed, look_seed = np.random.SeedSequence(seed).spawn(2)
    room = Room(np.random.default_rng(geometry_seed))
    camera = room.camera
    rows = np.concatenate(room.things)

    with np.errstate(divide="ignore", invalid="ignore"):  # rays along a face, rays that miss
        look = np.random.default_rng(look_seed)
        image = paint_image(rows, camera, room.size, height, width, look)
        depth, index = trace(rows, camera, height, width, np.float64)
        _, normals, _ = surface(rows, camera, depth, index)

    semseg = rows["semseg"][index]
    instance = rows["instance"][index]
    parsing = rows["part"][index]
    if not parsing.any():
        parsing[:] = 255
    return {
        "image": image,
        "semseg": semseg,
        "parsing": parsing,
        "boundary": boundaries(instance),
        "saliency": salient(instance, semseg),
        "depth": depth.astype(np.float32),
        "normal": (normals @ camera.axes.T).astype(np.float16),
        "focal": camera.focal * width,
    }
