# SPDX-License-Identifier: MIT
"""Rendered rooms with exact labels of all six tasks, the toy data set. numpy only.

A room is a list of solids that rays are traced against, so its labels are exact, not estimated. In
order: materials, things, furnishing, tracing, painting, labels; `render_room` stands at the end.

World: metres, right-handed, y up, x and z along the floor. Camera: x right, y down, z forward, the
optical axis. A solid is a unit shape seen through its frame, q = axes @ (point - centre) / size.
"""

import math

import numpy as np

CLASSES = ("wall", "floor", "ceiling", "door", "window", "picture", "television", "rug",
           "table", "chair", "sofa", "lamp", "cabinet", "ball", "plant", "figure")
HANGING, STANDING = CLASSES[3:7], CLASSES[8:15]
UPRIGHT = np.eye(3)
BOX, BALL, CYLINDER = range(3)  # |x|, |y|, |z| <= 1; |q| <= 1; x^2 + z^2 <= 1 and |y| <= 1
SOLID = np.dtype([("kind", "u1"), ("centre", "f8", 3), ("size", "f8", 3), ("axes", "f8", (3, 3)),
                  ("paint", "i4"), ("part", "u1"), ("semseg", "u1"), ("instance", "u1")])

# ----------------------------------------------------------------------------------------- materials
# As in life, but with so many colours each that colour alone does not tell the class.
PATTERNS = {  # share of the second colour at p (3, n), in periods
    "plain": lambda p: 0,
    "stripes": lambda p: np.floor(2 * p[0]) % 2,
    "checks": lambda p: np.floor(p).sum(0) % 2,
    "tiles": lambda p: abs(p[::2] % 1 - 0.5).max(0) > 0.46,
    "planks": lambda p: np.maximum(p[0] % 1 < 0.1, 0.45 * (np.sin(99 * np.floor(p[0])) * 999 % 1)),
    "grain": lambda p: 0.25 + 0.25 * np.sin(6 * p[0] + 2 * p[1] + 2 * np.sin(p[2] + np.sin(p[1]))),
    "waves": lambda p: 0.5 + 0.5 * np.sin(3 * p[0] + 2 * np.sin(2.3 * p[2] + 2 * np.sin(3 * p[1]))),
}
WOOD = "c99b66 a87444 8a5a34 6b4429 54331f d8b98a"
DYED = "c43c39 e07b39 e8b93c 4f8a4b 2f7f86 35619c 6b4a8c b2527e 8a5a3c d9d2c5 3b3f4a 7d8a94"
MATERIALS = {  # sRGB colours and patterns to draw from
    "plaster": ("e9e4d8 d9c9a8 b9cfd8 a9c3a0 d8a88a c8b5cf e3cf7a 8fb0c4 cf8f80", "plain stripes"),
    "ceiling": ("f4f2ec ece8dc e6ecef", "plain"),
    "boards": (WOOD, "planks"),
    "tiling": ("b8aea0 8f979c c9b49a 6f7c78 a65f48 54606b", "tiles tiles checks"),
    "carpet": ("7d7468 5c6b78 8a4f4a 4f6b55 a39a8c 6a5f80", "plain"),
    "wood": (WOOD, "grain"),
    "lacquer": (WOOD + " f0ede6 e8e4da 3f6a86 5a7d5a a8433c 39404a", "plain plain grain"),
    "fabric": (DYED, "plain plain stripes checks waves"),
    "shirt": (DYED, "plain plain stripes"),
    "trousers": (DYED, "plain plain plain checks"),
    "canvas": (DYED, "waves waves checks stripes"),
    "leather": ("1e1a18 3a2618 6b4526 8e8a84 a8433c", "plain"),
    "skin": ("f0c8a8 e0ac84 c68a5e a0683f 7a4a2c 5a3520", "plain"),
    "hair": ("1e1a18 3a2618 6b4526 b98a4a 9a9690 7a2f1c", "plain"),
    "leaf": ("2f7a35 4a9440 1f5a30 7aa83c", "waves"),
    "clay": ("b5623c e8e2d6 3f5f7a 8a4630", "plain"),
    "metal": ("2b2d30 6d7075 b08d4a d8d8d8", "plain"),
    "screen": ("0b0d12 14181f 101a2a", "plain"),
    "shade": ("ffdf90 ffc870 ffecc0", "plain"),
    "sky": ("9fd0f7 b8dcf5 78b4ee e8c89a", "plain"),
}
NAMES = list(MATERIALS)
PERIOD = {"boards": 0.16, "tiling": 0.45}  # of the pattern in metres, else 0.2
SHINE = {"shade": 0.7, "sky": 0.6}  # light of its own


def unit(v):
    return v / np.sqrt(np.einsum("...i,...i->...", v, v))[..., None]


# -------------------------------------------------------------------------------------------- things
# Things have their own axes: y up, z to the front, the origin on the floor (or on the wall).
def solid(kind, centre, size, material, part=0, axes=UPRIGHT):
    return kind, centre, size, axes, NAMES.index(material), part, 0, 0


def copies(kind, centre, size, material, signs=((-1, 1), (1, 1))):
    """The solid and its mirror images at +-x; with LEGS at +-x and +-z."""
    x, y, z = centre
    return [solid(kind, (i * x, y, k * z), size, material) for i, k in signs]


def limb(joint, side, spread, bends, bones):
    """Bones (length, radius, material, part) down from `joint`, each a cylinder ending in a ball.

    Radians: spread to the side (-1 left, 1 right), and each bone's bend to the front.
    """
    sin, cos, rows = side * math.sin(spread), math.cos(spread), []
    for (length, radius, material, part), bend in zip(bones, bends):
        s, c = math.sin(bend), math.cos(bend)
        axes = np.array([[cos, sin * c, -sin * s], [-sin, cos * c, -cos * s], [0, s, c]])  # y up it
        rows.append(solid(CYLINDER, joint - length / 2 * axes[1], (radius, length / 2, radius),
                          material, part, axes))
        joint = joint - length * axes[1]
        rows.append(solid(BALL, joint, (1.05 * radius,) * 3, material, part))
    return rows, joint


def figure(rng):
    """A standing person of 1.3 to 1.9 m in PASCAL's six groups of parts, stouter than in life."""
    rows = [solid(BALL, (0, 0.44, 0), (0.075, 0.095, 0.08), "skin", 1),  # hips at 0, one unit tall
            solid(BALL, (0, 0.465, -0.018), (0.082, 0.085, 0.082), "hair", 1),
            solid(CYLINDER, (0, 0.34, 0), (0.035, 0.03, 0.035), "skin", 2),
            solid(BALL, (0, 0.27, 0), (0.135, 0.065, 0.08), "shirt", 2),
            solid(CYLINDER, (0, 0.15, 0), (0.115, 0.12, 0.075), "shirt", 2),
            solid(BALL, (0, 0.02, 0), (0.112, 0.065, 0.08), "trousers", 2)]
    sleeve = "shirt" if rng.random() < 0.3 else "skin"
    shin = "trousers" if rng.random() < 0.6 else "skin"
    for side in (-1, 1):
        spread, swing, bend = rng.uniform((0.3, -0.4, 0), (0.8, 0.5, 1.2))
        spread += 1.5 * (rng.random() < 0.25)  # a raised arm
        arm, hand = limb((side * 0.135, 0.28, 0), side, spread, (swing, swing + bend),
                         ((0.16, 0.045, "shirt", 3), (0.17, 0.04, sleeve, 4)))
        spread, swing, bend = rng.uniform((0.05, -0.35, -0.4), (0.22, 0.4, 0))
        leg, foot = limb((side * 0.06, 0, 0), side, spread, (swing, swing + bend),
                         ((0.25, 0.065, "trousers", 5), (0.23, 0.05, shin, 6)))
        rows += arm + leg + [solid(BALL, hand, (0.046,) * 3, "skin", 4),
                             solid(BALL, foot + (0, -0.02, 0.03), (0.05, 0.04, 0.09), "leather", 6)]
    rows, tall = np.array(rows, SOLID), rng.uniform(1.3, 1.9)
    rows["centre"][:, 1] -= rows["centre"][rows["part"] == 6, 1].min() - 0.04  # feet on the floor
    rows["centre"] *= tall
    rows["size"] *= tall
    return rows


def pane(x, y, above, deep, material, frame):
    """A framed rectangle on the wall, half sizes x and y, its lower edge at `above`."""
    return [solid(BOX, (0, above + y, 0), (x + 0.07, y + 0.07, deep), frame),
            solid(BOX, (0, above + y, 0), (x, y, deep + 0.01), material)]


LEGS = (-1, -1), (-1, 1), (1, -1), (1, 1)


def thing(name, rng):
    """SOLID rows of one thing of the class `name`."""
    if name == "figure":
        return figure(rng)
    x, y, z = rng.uniform((0.45, 0.45, 0.4), (0.7, 0.6, 0.55))
    return np.array({
        "door": pane(x, 1, 0, 0.03, "wood", "lacquer")
        + [solid(BOX, (0, up, 0), (0.65 * x, 0.36, 0.045), "lacquer") for up in (0.5, 1.42)]
        + [solid(BALL, (0.85 * x, 0.96, 0.07), (0.045, 0.045, 0.045), "metal")],
        "window": pane(x, y, 0.9, 0.04, "sky", "lacquer")
        + [solid(BOX, (0, 0.9 + y, 0), (0.03, y, 0.06), "lacquer"),
           solid(BOX, (0, 0.9 + y, 0), (x, 0.03, 0.06), "lacquer")],
        "picture": pane(x - 0.15, y - 0.2, 1.4 - z, 0.02, "canvas", "wood"),
        "television": pane(x + 0.05, 0.6 * y, 0.4 + z, 0.04, "screen", "metal"),
        "rug": [solid(BOX if z < 0.5 else CYLINDER, (0, 0.004, 0), (2 * x, 0.004, 1.7 * y), "fabric")],
        "table": copies(BOX, (x, y / 2 + 0.11, z - 0.05), (0.05, y / 2 + 0.11, 0.05), "wood", LEGS)
        + [solid(BOX, (0, y + 0.22, 0), (x + 0.05, 0.045, z), "wood")],
        "chair": copies(BOX, (0.2, 0.22, 0.2), (0.045, 0.22, 0.045), "wood", LEGS)
        + [solid(BOX, (0, 0.45, 0), (0.25, 0.05, 0.25), "fabric"),
           solid(BOX, (0, 0.5 + z / 2, -0.21), (0.25, z / 2, 0.04), "fabric")],
        "sofa": copies(BOX, (x + 0.2, 0.3, 0), (0.11, 0.3, 0.42), "fabric")
        + [solid(BOX, (0, 0.21, 0.02), (x + 0.2, 0.21, 0.4), "fabric"),
           solid(BOX, (0, 0.8 * y, -0.32), (x + 0.2, 0.8 * y, 0.12), "fabric")],
        "lamp": [solid(CYLINDER, (0, 0.03, 0), (0.18, 0.03, 0.18), "metal"),
                 solid(CYLINDER, (0, x + 0.1, 0), (0.035, x + 0.1, 0.035), "metal"),
                 solid(CYLINDER, (0, 2 * x + 0.2, 0), (y / 2, 0.45 * z, y / 2), "shade")],
        "cabinet": [solid(BOX, (0, 1.4 * z, 0), (x, 1.4 * z, 0.24), "wood")]
        + copies(BOX, (x / 2, 1.4 * z, 0.02), (0.45 * x, 1.25 * z, 0.24), "lacquer")
        + copies(BALL, (0.13 * x, 1.4 * z, 0.28), (0.035, 0.035, 0.035), "metal"),
        "ball": [solid(BALL, (0, x / 2, 0), (x / 2, x / 2, x / 2), "fabric")],
        "plant": [solid(CYLINDER, (0, 0.2, 0), (0.16, 0.2, 0.16), "clay")]
        + copies(BALL, (0.13, 0.4 + 0.4 * y, 0.1), (y / 2, 0.65 * y, y / 2), "leaf")
        + [solid(BALL, (0, 0.4 + up * y, 0), (y / 2, 0.65 * y, y / 2), "leaf") for up in (0.5, 2 * z)],
    }[name], SOLID)


# ---------------------------------------------------------------------------------------- furnishing
class Room:
    """Drawn by `rng`. things: SOLID rows, an array per instance; size (3), metres; camera: eye (3),
    axes (3, 3) in rows, focal length / width."""

    def __init__(self, rng):
        self.rng, self.things, self.taken, self.figures = rng, [], [], []
        self.size = rng.uniform((3.6, 2.3, 4.2), (5.0, 2.7, 5.6))
        eye = rng.uniform((0.3, 0, 0.03), (0.7, 0, 0.08)) * self.size
        aim = rng.uniform((0.25, 0, 0.8), (0.75, 0, 0.8)) * self.size
        eye[1], aim[1] = rng.uniform((1.2, 0.5), (1.6, 0.9))
        right = np.cross(aim - eye, (rng.uniform(-0.03, 0.03), 1, 0))  # a little roll
        axes = unit(np.stack([right, np.cross(aim - eye, right), aim - eye]))
        self.camera = eye, axes, rng.uniform(0.7, 0.85)
        self.build()
        self.stand()

    def put(self, name, body, position, yaw=0.0, paint=None):
        """Add a thing, turned and moved; `paint`: the instance whose colours it shares."""
        cos, sin, number = math.cos(yaw), math.sin(yaw), len(self.things)
        turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        body = np.array(body, SOLID)
        body["centre"], body["axes"] = body["centre"] @ turn + position, body["axes"] @ turn
        body["semseg"], body["instance"] = CLASSES.index(name), number
        body["paint"] += len(NAMES) * (number if paint is None else paint)
        self.things.append(body)

    def build(self):
        """Floor, ceiling and walls, all slabs; things on three walls; a rug."""
        rng, (wide, high, deep) = self.rng, self.size
        floor = rng.choice(["boards", "boards", "tiling", "carpet"])
        middle = (wide / 2, 0, deep / 2)
        self.put("floor", [solid(BOX, (0, -0.1, 0), (wide, 0.1, deep), floor)], middle)
        self.put("ceiling", [solid(BOX, (0, high + 0.1, 0), (wide, 0.1, deep), "ceiling")], middle)
        wall = [solid(BOX, (0, high / 2, -0.1), (deep, high, 0.1), "plaster")]  # z into the room
        places = (((0, 0, 0.6 * deep), math.pi / 2), ((wide, 0, 0.6 * deep), -math.pi / 2),
                  ((wide / 2, 0, deep), math.pi), ((wide / 2, 0, 0), 0))
        for place, yaw in places:
            self.put("wall", wall, place, yaw, paint=2)
        for place, yaw in places[:3] * 2:
            name, aside = rng.choice(HANGING), 0.24 if len(self.things) < 9 else -0.24
            body = thing(name, rng)
            body["centre"][:, 0] += aside * wide
            self.put(name, body, place, yaw)
        if rng.random() < 0.6:
            spot = rng.uniform((0.35, 0, 0.4), (0.65, 0, 0.65)) * self.size
            self.put("rug", thing("rug", rng), spot, rng.uniform(-0.4, 0.4))

    def find_place(self, reach, near, far, tall=0.0):
        """A free spot on the floor that is in view, `near` to `far` metres ahead, or None.

        tall: the height of a figure, all of which is in view, and whose middle nothing else hides.
        """
        eye, axes, focal = self.camera
        forward = unit(axes[2] * (1, 0, 1))
        for aside, ahead in self.rng.uniform((-0.38, near), (0.38, far), (40, 2)):
            spot = (eye + ahead * (forward + aside / focal * axes[0])) * (1, 0, 1)
            ends = (spot + [(0, 0, 0), (0, tall, 0)] - eye) @ axes.T  # (2, 3): foot, head
            good = (abs(ends[:, 1]) < 0.36 * ends[:, 2] / focal).all()
            good &= (abs(spot - self.size / 2) <= self.size / 2 - reach)[::2].all()
            good &= all(math.dist(spot, other) > reach + r for other, r in self.taken)
            if good and all(ahead > z or abs(aside - x) > reach * focal / ahead
                            for x, z in self.figures):
                self.taken.append((spot, reach))
                self.figures += [(aside, ahead)] if tall else []
                return spot
        return None

    def stand(self):
        """One or two figures in most rooms, large in the picture; three to five other things."""
        rng, (eye, _, focal) = self.rng, self.camera
        figures = ["figure"] * rng.choice(3, p=(0.12, 0.7, 0.18))
        for name in [*figures, *rng.permutation(STANDING)[: rng.integers(3, 6)]]:
            body, tall = thing(name, rng), 0.0
            reach = 0.9 * (abs(body["centre"]) + body["size"])[:, ::2].max()
            near, far = 1.6 + reach, 5.0
            if name == "figure":
                reach, tall = 0.35, (body["centre"] + body["size"])[:, 1].max()
                near, far = (4 / 3 * focal * tall / share for share in (0.85, 0.5))  # of 4:3
            spot = self.find_place(reach, near, far, tall)
            if spot is not None:  # it faces the camera more or less
                self.put(name, body, spot, math.atan2(*(eye - spot)[::2]) + rng.uniform(-1, 1))


# ----------------------------------------------------------------------------------------- tracing
def hit(kind, o, d):
    """First t > 0 where rays o + t d, o (3), d (3, h, w), enter the unit shape, (h, w), or inf."""
    near, far = 0, np.inf
    if kind != BALL:  # between opposite faces: all three pairs, or the cylinder's ends
        pairs = slice(None) if kind == BOX else slice(1, 2)
        one, two = (-1 - o[pairs, None, None]) / d[pairs], (1 - o[pairs, None, None]) / d[pairs]
        near, far = np.minimum(one, two).max(0), np.maximum(one, two).min(0)
    if kind != BOX:  # and inside the round
        o, d = (o, d) if kind == BALL else (o[::2], d[::2])
        a, b = np.einsum("ihw,ihw->hw", d, d), np.einsum("i,ihw->hw", o, d)
        root = np.sqrt(b * b - a * (o @ o - 1))  # NaN, hence never near < far, where the ray misses
        near, far = np.maximum(near, (-b - root) / a), np.minimum(far, (root - b) / a)
    return np.where((near < far) & (near > 0), near, np.inf)


def trace(solids, camera, height, width, dtype):
    """What pixel centres see: depth along the optical axis, row of `solids`; (height, width)."""
    eye, axes, focal = camera
    x, y = ((np.arange(n) - (n - 1) / 2) / (focal * width) for n in (width, height))
    depth, index = np.full((height, width), np.inf, dtype), np.zeros((height, width), np.int16)
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    corners = corners * solids["size"][:, None] @ solids["axes"] + (solids["centre"] - eye)[:, None]
    corners = corners @ axes.T  # (n, 8, 3) in camera axes
    frames = solids["axes"] / solids["size"][..., None]
    origins = np.einsum("nij,nj->ni", frames, eye - solids["centre"]).astype(dtype)
    frames = (frames @ axes.T).astype(dtype)  # (n, 3, 3) from camera axes
    for i, (kind, (u, v, z)) in enumerate(zip(solids["kind"], corners.transpose(0, 2, 1))):
        rows, columns = slice(None), slice(None)
        if z.min() > 0.05:  # only the rectangle round its corners can see it
            columns = slice(*np.searchsorted(x, [(u / z).min(), (u / z).max()]))
            rows = slice(*np.searchsorted(y, [(v / z).min(), (v / z).max()]))
        near, seen = depth[rows, columns], index[rows, columns]
        if near.size and z.max() > 0.05:
            a, b, c = frames[i].T[..., None, None]
            rays = a * x[columns].astype(dtype) + (b * y[rows, None].astype(dtype) + c)
            t = hit(kind, origins[i], rays)
            nearer = t < near
            np.copyto(near, t, where=nearer)
            np.copyto(seen, i, where=nearer)
    return depth, index


def surface(solids, camera, depth, index):
    """World points, unit normals, points in the solids' own axes (metres), each (h, w, 3)."""
    (eye, axes, focal), (height, width), dtype = camera, depth.shape, depth.dtype
    x, y = ((np.arange(n) - (n - 1) / 2) / (focal * width) for n in (width, height))
    rays = x[:, None] * axes[0] + (y[:, None, None] * axes[1] + axes[2])
    points = eye.astype(dtype) + depth[..., None] * rays.astype(dtype)
    centre, size, frame = (solids[key].astype(dtype)[index] for key in ("centre", "size", "axes"))
    local = np.einsum("hwij,hwj->hwi", frame, points - centre)
    q, up, kind = local / size, np.array([False, True, False]), solids["kind"][index][..., None]
    face = abs(q) == abs(q).max(-1, keepdims=True)
    end = abs(q[..., 1:2]) > np.hypot(q[..., :1], q[..., 2:])  # of a cylinder: normal y, else x, z
    keep = np.where(kind == BOX, face, np.where(kind == CYLINDER, end == up, True))
    return points, unit(np.einsum("hwij,hwi->hwj", frame, q * keep / size)), local


# ---------------------------------------------------------------------------------------- painting
def visible(solids, lamp, points, blur):
    """Share (h, w, 1) of the soft lamp (3) that points (h, w, 3) see, by the lamp's depth map."""
    size, focal, down = 180, 0.22, np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
    depth, _ = trace(solids, (lamp, down, focal), size, size, np.float32)
    x, y, z = np.moveaxis((points - lamp) @ down.T, -1, 0)
    x, y = (np.clip(p / np.maximum(z, 0.01) * focal * size + size / 2, blur, size - 1 - blur)
            for p in (x, y))
    lit = np.zeros_like(z)
    for k in range(12):  # compare along a spiral
        r, turn = blur * math.sqrt((k + 0.5) / 12), 2.4 * k
        row, column = (y + r * math.sin(turn)).astype(int), (x + r * math.cos(turn)).astype(int)
        lit += z <= depth[row, column] + 0.03
    return lit[..., None] / 12


def illuminate(solids, room, points, normals, rng):
    """Light (h, w, 3) at points: from all round, less in corners; from two lamps, one aside."""
    off = points + 0.3 * normals
    closed = np.exp(-5 * np.maximum(off, 0)) + np.exp(-5 * np.maximum(np.float32(room) - off, 0))
    aside = np.float32(rng.uniform((-0.25, 0.05, -0.25), (0.25, 0.15, 0)))
    light = (0.27 + normals @ aside)[..., None] * (1 - 0.6 * closed).prod(-1, keepdims=True)
    for power, blur, low, high in ((1.9, 2, (0.1, 1, 0.05), (0.9, 1, 0.35)),
                                   (1.2, 5, (0.4, 1, 0.4), (0.6, 1, 0.6))):
        lamp = np.float32(rng.uniform(low, high) * room - (0, rng.uniform(0.1, 0.3), 0))
        tint = np.float32(power * rng.uniform((0.97, 0.95, 0.8), (1.1, 1, 1.03)))
        to, far = unit(lamp - points), np.linalg.norm(lamp - points, axis=-1)
        facing = np.maximum((to * normals).sum(-1), 0) / (0.6 + (far / 3) ** 2)
        seen = visible(solids, lamp, points + 0.1 * normals, blur)
        light = light + tint * facing[..., None] * seen
    return light


def draw_paints(rng, materials):
    """Per material: two colours (n, 2, 3), linear RGB, pattern (n), period (n, 1), shine (n, 1)."""
    colours, others = [], []
    for name in materials:
        choices, patterns = MATERIALS[name]
        pair = [list(bytes.fromhex(colour)) for colour in rng.choice(choices.split(), 2)]
        if choices != DYED:
            pair[1] = 0.8 * np.array(pair[0])
        colours.append(np.clip(rng.uniform(0.9, 1.1, (2, 3)) * pair / np.float32(255), 0, 1) ** 2.2)
        others.append((list(PATTERNS).index(rng.choice(patterns.split())),
                       rng.uniform(0.8, 1.4) * PERIOD.get(name, 0.2), SHINE.get(name, 0)))
    pattern, period, shine = np.float32(others).T
    return np.float32(colours), pattern, period[:, None], shine[:, None]


def paint(solids, camera, room, height, width, look, noise):
    """The picture, uint8 (height, width, 3), from 2 x 2 rays a pixel."""
    depth, index = trace(solids, camera, 2 * height, 2 * width, np.float32)
    points, normals, local = surface(solids, camera, depth, index)
    paints, p = np.unique(solids["paint"], return_inverse=True)
    colours, pattern, period, shine = draw_paints(look, [NAMES[i % len(NAMES)] for i in paints])
    shift = np.float32(look.uniform(0.2, 0.8, (len(paints), 3)))
    p = p[index]  # (2 height, 2 width), number of the paint

    at, value = local / period[p] + shift[p], np.zeros_like(depth)
    for i, draw in enumerate(PATTERNS.values()):
        value[pattern[p] == i] = draw(at[pattern[p] == i].T)
    slant = -(unit(points - camera[0].astype(np.float32)) * normals).sum(-1)
    rays = 2 * width * camera[2] * period[p, 0] * np.maximum(slant, 0.1) / depth  # per period
    value = (value * np.clip(1.3 - 2.5 / rays, 0, 1))[..., None]  # what is too fine fades
    albedo = (1 - value) * colours[p, 0] + value * colours[p, 1]
    light = illuminate(solids, room, points, normals, look) + shine[p]
    colour = 1 - np.exp(-look.uniform(1.25, 1.6) * albedo * light)
    colour = colour.reshape(height, 2, width, 2, 3).mean((1, 3)) ** (1 / 2.2)
    colour += noise.uniform(0.002, 0.006) * noise.standard_normal(colour.shape)
    return (255 * np.clip(colour, 0, 1) + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------ labels
def salient(instance, semseg):
    """What a viewer looks at first, uint8 {0, 1} (H, W); our choice of a rule, see render_room."""
    ids, pixels = np.unique(instance[semseg >= CLASSES.index("table")], return_counts=True)
    large = pixels >= 0.01 * instance.size
    ids, pixels = ids[large], pixels[large]
    people = np.intersect1d(ids, instance[semseg == CLASSES.index("figure")])
    return np.isin(instance, people if people.size else ids[pixels.argsort()[-1:]]).astype(np.uint8)


def render_room(seed, height, width):
    """One room. seed (int or ints) fixes the scene at any size. Labels are of the pixels' centres.

    image (H, W, 3) uint8, smoothed; semseg (H, W) uint8, index into CLASSES;
    parsing (H, W) uint8, 1 head 2 torso 3 upper arm 4 lower arm and hand 5 upper leg 6 lower leg
    and foot, 0 all else; 255 everywhere if nobody is seen;
    saliency (H, W) uint8 {0, 1}, by our rule: the figures, or in a room without any the largest of
    the things that stand on the floor, if they take 1 % of the pixels;
    boundary (H, W) uint8 {0, 1}, the last pixel before another instance (each wall is one) to the
    right or below; depth (H, W) float32, metres along the optical axis;
    normal (H, W, 3) float16 in camera axes, towards the camera: a floor has y about -1;
    focal, in pixels; the principal point is ((W - 1) / 2, (H - 1) / 2).
    """
    streams = np.random.SeedSequence(seed).spawn(3)
    geometry, look, noise = (np.random.Generator(np.random.PCG64(stream)) for stream in streams)
    with np.errstate(divide="ignore", invalid="ignore"):
        room = Room(geometry)
        solids, camera = np.concatenate(room.things), room.camera
        image = paint(solids, camera, room.size, height, width, look, noise)
        depth, index = trace(solids, camera, height, width, np.float64)
        _, normals, _ = surface(solids, camera, depth, index)
    instance, semseg, parsing = (solids[key][index] for key in ("instance", "semseg", "part"))
    parsing[:] = parsing if parsing.any() else 255
    boundary = np.zeros((height, width), np.uint8)
    boundary[:, :-1] |= instance[:, :-1] != instance[:, 1:]
    boundary[:-1] |= instance[:-1] != instance[1:]
    return {"image": image, "semseg": semseg, "parsing": parsing,
            "saliency": salient(instance, semseg), "boundary": boundary,
            "depth": depth.astype(np.float32), "normal": (normals @ camera[1].T).astype(np.float16),
            "focal": camera[2] * width}
