# SPDX-License-Identifier: MIT
"""Rendered rooms with exact labels of all six tasks: the toy data set. numpy only.

A room is a list of solids, planes, boxes, balls and cylinders, ray traced: the labels are analytic, not
estimated. The order below: primitives, things, furnishing, tracing, painting, labels.

World: metres, right-handed, y up, x and z along the floor. Camera: x right, y down, z forward along the
optical axis. A solid is a unit shape seen through its frame, q = axes @ (point - centre) / size.
"""

import math

import numpy as np

CLASSES = ("wall", "floor", "ceiling", "door", "window", "picture", "television", "rug",
           "table", "chair", "sofa", "lamp", "cabinet", "ball", "plant", "figure")
HANGING, STANDING = CLASSES[3:7], CLASSES[8:15]
UPRIGHT = np.eye(3)
PLANE, BOX, BALL, CYLINDER = range(4)  # y = 0; all |q| <= 1; |q|^2 <= 1; x^2 + z^2 <= 1 and |y| <= 1
SOLID = np.dtype([("kind", "u1"), ("centre", "f8", 3), ("size", "f8", 3), ("axes", "f8", (3, 3)),
                  ("paint", "i4"), ("part", "u1"), ("semseg", "u1"), ("instance", "u1")])

# Materials as in life: sRGB colours to draw from, patterns to draw from, whether it shines by itself.
PATTERNS = ("plain", "stripes", "checks", "tiles", "planks", "grain", "marble")
FABRIC = "c43c39 e07b39 e8b93c 4f8a4b 2f7f86 35619c 6b4a8c b2527e 8a5a3c d9d2c5 3b3f4a 7d8a94"
WOOD = "c99b66 a87444 8a5a34 6b4429 54331f d8b98a"
MATERIALS = {
    "plaster": ("e9e4d8 d9c9a8 b9cfd8 a9c3a0 d8a88a c8b5cf e3cf7a 8fb0c4 b5b8b5 cf8f80", "plain plain plain stripes"),
    "ceiling": ("f4f2ec ece8dc e6ecef", "plain"),
    "flooring": (WOOD, "planks"),
    "tiling": ("b8aea0 8f979c c9b49a 6f7c78 a65f48 54606b", "tiles tiles checks"),
    "carpet": ("7d7468 5c6b78 8a4f4a 4f6b55 a39a8c 6a5f80", "plain"),
    "wood": (WOOD, "grain"),
    "lacquer": (WOOD + " f0ede6 e8e4da 3f6a86 5a7d5a a8433c 39404a", "plain plain grain"),
    "fabric": (FABRIC, "plain plain stripes checks marble"),
    "shirt": (FABRIC, "plain plain stripes"),
    "trousers": (FABRIC, "plain plain plain checks"),
    "leather": ("1e1a18 3a2618 6b4526 8e8a84 a8433c", "plain"),
    "canvas": (FABRIC, "marble marble checks stripes"),
    "rubber": (FABRIC, "plain stripes"),
    "skin": ("f0c8a8 e0ac84 c68a5e a0683f 7a4a2c 5a3520", "plain"),
    "hair": ("1e1a18 3a2618 6b4526 b98a4a 9a9690 7a2f1c", "plain"),
    "leaf": ("2f7a35 4a9440 1f5a30 7aa83c", "marble"),
    "clay": ("b5623c e8e2d6 3f5f7a 8a4630", "plain"),
    "metal": ("2b2d30 6d7075 b08d4a d8d8d8", "plain"),
    "screen": ("0b0d12 14181f 101a2a", "plain"),
    "shade": ("ffdf90 ffc870 ffecc0", "plain"),
    "sky": ("9fd0f7 b8dcf5 78b4ee e8c89a", "plain"),
}
SHINING = {"shade": 0.7, "sky": 0.6}
MATERIAL = {name: i for i, name in enumerate(MATERIALS)}


def dot(a, b):
    return np.einsum("...i,...i->...", a, b)[..., None]  # (..., 3), (..., 3) -> (..., 1)


def unit(v):
    return v / np.sqrt(dot(v, v))


# ---------------------------------------------------------------------------------------------------- things
# A thing in its own axes: y up, z to its front, the origin on the floor under it (or on the wall).
def solid(kind, centre, size, material, part=0, axes=UPRIGHT):
    return kind, centre, size, axes, MATERIAL[material], part, 0, 0


def limb(joint, bones, spread, bends, side):
    """Bones (length, radius, material, part) down from `joint`, each a cylinder that ends in a ball.

    spread: angle to the side; bends: each bone's angle to the front; side: -1 left, 1 right.
    """
    sin, cos, rows = side * math.sin(spread), math.cos(spread), []
    for (length, radius, material, part), bend in zip(bones, bends):
        s, c = math.sin(bend), math.cos(bend)
        axes = np.array([[cos, sin * c, -sin * s], [-sin, cos * c, -cos * s], [0, s, c]])  # y up the bone
        middle, joint = joint - length / 2 * axes[1], joint - length * axes[1]
        rows += [solid(CYLINDER, middle, (radius, length / 2, radius), material, part, axes),
                 solid(BALL, joint, (1.05 * radius,) * 3, material, part)]
    return rows, joint


def figure(rng):
    """A standing person, 1.3 to 1.9 m, in PASCAL's six groups of parts; limbs a little stouter than in life."""
    rows = [solid(BALL, (0, 0.44, 0), (0.075, 0.095, 0.08), "skin", 1),
            solid(BALL, (0, 0.465, -0.018), (0.082, 0.085, 0.082), "hair", 1),
            solid(CYLINDER, (0, 0.34, 0), (0.035, 0.03, 0.035), "skin", 2),
            solid(BALL, (0, 0.27, 0), (0.135, 0.065, 0.08), "shirt", 2),
            solid(CYLINDER, (0, 0.15, 0), (0.115, 0.12, 0.075), "shirt", 2),
            solid(BALL, (0, 0.02, 0), (0.112, 0.065, 0.08), "trousers", 2)]
    sleeve, leg = ("skin", "shirt")[rng.random() < 0.3], ("skin", "trousers")[rng.random() < 0.6]
    for side in (-1, 1):
        raised = 1.5 * (rng.random() < 0.25)
        spread, swing, bend = rng.uniform((0.3, -0.4, 0), (0.8, 0.5, 1.2)) + (raised, 0, 0)
        arm, _ = limb(np.array([side * 0.135, 0.28, 0]), ((0.16, 0.045, "shirt", 3), (0.17, 0.04, sleeve, 4)),
                      spread, (swing, swing + bend), side)
        rows += arm + [solid(BALL, arm[-1][1], (0.046,) * 3, "skin", 4)]
        spread, swing, bend = rng.uniform((0.05, -0.35, -0.4), (0.22, 0.4, 0))
        bones, foot = limb(np.array([side * 0.06, 0, 0]), ((0.25, 0.065, "trousers", 5), (0.23, 0.05, leg, 6)),
                           spread, (swing, swing + bend), side)
        rows += bones + [solid(BALL, foot + (0, -0.02, 0.03), (0.05, 0.04, 0.09), "leather", 6)]
    rows, tall = np.array(rows, SOLID), rng.uniform(1.3, 1.9)
    soles = rows["centre"][rows["part"] == 6, 1] - 0.04
    rows["centre"][:, 1] -= soles.min()  # the lower foot stands on the floor
    rows["centre"] *= tall
    rows["size"] *= tall
    return rows


def pane(x, y, above, depth, inner, frame):
    """A framed rectangle on a wall, half sizes x and y, its lower edge at `above`."""
    return [solid(BOX, (0, above + y, 0), (x + 0.07, y + 0.07, depth), frame),
            solid(BOX, (0, above + y, 0), (x, y, depth + 0.01), inner)]


def door(a, b, c):
    x = 0.42 + 0.08 * a
    panels = [solid(BOX, (0, y, 0), (0.65 * x, 0.36, 0.045), "lacquer") for y in (0.5, 1.42)]
    return pane(x, 1, 0, 0.03, "wood", "lacquer") + panels + [
        solid(BALL, (0.85 * x, 0.96, 0.07), (0.045,) * 3, "metal")]


def window(a, b, c):
    x, y = 0.45 + 0.25 * a, 0.45 + 0.15 * b
    bars = [solid(BOX, (0, 0.9 + y, 0), size, "lacquer") for size in ((0.035, y, 0.065), (x, 0.035, 0.065))]
    return pane(x, y, 0.9, 0.04, "sky", "lacquer") + bars


def picture(a, b, c):
    return pane(0.25 + 0.3 * a, 0.25 + 0.2 * b, 1 + 0.3 * c, 0.02, "canvas", "wood")


def television(a, b, c):
    return pane(0.5 + 0.2 * a, 0.32 + 0.08 * b, 0.8 + 0.4 * c, 0.04, "screen", "metal")


def rug(a, b, c):
    return [solid(BOX if c < 0.6 else CYLINDER, (0, 0.004, 0), (0.7 + 0.5 * a, 0.004, 0.6 + 0.4 * b), "fabric")]


def table(a, b, c):
    x, y, z = 0.5 + 0.3 * a, 0.33 + 0.06 * b, 0.4 + 0.15 * c
    if c < 0.3:
        return [solid(CYLINDER, (0, 2 * y, 0), (x, 0.04, x), "wood"),
                solid(CYLINDER, (0, y, 0), (0.08, y, 0.08), "wood"),
                solid(CYLINDER, (0, 0.03, 0), (0.6 * x, 0.03, 0.6 * x), "wood")]
    return [solid(BOX, (0, 2 * y, 0), (x, 0.045, z), "wood")] + legs(x - 0.05, y, z - 0.05, 0.05)


def legs(x, y, z, thick):
    return [solid(BOX, (i * x, y, k * z), (thick, y, thick), "wood") for i in (-1, 1) for k in (-1, 1)]


def chair(a, b, c):
    top = 0.48 + 0.1 * b
    return legs(0.2, 0.22, 0.2, 0.04) + [
        solid(BOX, (0, 0.45, 0), (0.25, 0.05, 0.25), "fabric"),
        solid(BOX, (0, 0.5 + top / 2, -0.21), (0.24, top / 2, 0.04), "fabric" if c < 0.5 else "wood")]


def sofa(a, b, c):
    x = 0.65 + 0.3 * a
    arms = [solid(BOX, (i * x, 0.3, 0), (0.11, 0.3, 0.42), "fabric") for i in (-1, 1)]
    return arms + [solid(BOX, (0, 0.21, 0.02), (x, 0.21, 0.4), "fabric"),
                   solid(BOX, (0, 0.42, -0.32), (x, 0.42 + 0.06 * b, 0.12), "fabric")]


def lamp(a, b, c):
    y, x = 0.6 + 0.2 * a, 0.2 + 0.08 * b
    return [solid(CYLINDER, (0, 0.03, 0), (0.18, 0.03, 0.18), "metal"),
            solid(CYLINDER, (0, y, 0), (0.035, y, 0.035), "metal"),
            solid(CYLINDER, (0, 2 * y, 0), (x, 0.16 + 0.06 * c, x), "shade")]


def cabinet(a, b, c):
    x, y = 0.4 + 0.25 * a, 0.45 + 0.45 * b
    doors = [solid(BOX, (i * x / 2, y + 0.03, 0.02), (0.45 * x, 0.9 * y, 0.24), "lacquer") for i in (-1, 1)]
    knobs = [solid(BALL, (i * 0.13 * x, y, 0.28), (0.035,) * 3, "metal") for i in (-1, 1)]
    return [solid(BOX, (0, y, 0), (x, y, 0.24), "wood")] + doors + knobs


def ball(a, b, c):
    return [solid(BALL, (0, 0.18 + 0.17 * a, 0), (0.18 + 0.17 * a,) * 3, "rubber")]


def plant(a, b, c):
    pot, size = 0.17 + 0.06 * a, 0.2 + 0.06 * b
    crowns = [solid(BALL, (x * size, 2 * pot + (0.9 + y) * size, z * size), (size, 1.3 * size, size), "leaf")
              for x, y, z in ((-0.6, 0, 0.3), (0.6, 0.1, 0.2), (0, 0.3, -0.6), (0, 1.2 + c, 0))]
    return crowns + [solid(CYLINDER, (0, pot, 0), (0.85 * pot, pot, 0.85 * pot), "clay")]


MAKERS = (door, window, picture, television, rug, table, chair, sofa, lamp, cabinet, ball, plant)
MAKE = {maker.__name__: maker for maker in MAKERS}


def thing(name, rng):
    """SOLID rows of one thing of the class `name`."""
    return figure(rng) if name == "figure" else np.array(MAKE[name](*rng.random(3)), SOLID)


# ------------------------------------------------------------------------------------------------ furnishing
class Room:
    """The solids of a room, its size (3) in metres, and the camera = (eye (3), axes (3, 3) in rows, focal / width)."""

    def __init__(self, rng):
        self.rng, self.rows, self.taken, self.people = rng, [], [], []
        self.size = rng.uniform((3.6, 2.3, 4.2), (5.0, 2.7, 5.6))
        eye = rng.uniform((0.3, 0, 0.03), (0.7, 0, 0.08)) * self.size + (0, rng.uniform(1.2, 1.6), 0)
        ahead = rng.uniform((0.25, 0, 0.8), (0.75, 0, 0.8)) * self.size + (0, rng.uniform(0.5, 0.9), 0) - eye
        right = np.cross(ahead, (rng.uniform(-0.03, 0.03), 1, 0))  # a little roll
        axes = unit(np.stack([right, np.cross(ahead, right), ahead]))
        self.camera = eye, axes, rng.uniform(0.7, 0.85)

    def put(self, name, body, position=(0, 0, 0), yaw=0.0, paint=None):
        """Add a thing's rows, turned to `yaw` and moved; `paint`: the instance whose colours it shares."""
        cos, sin, number = math.cos(yaw), math.sin(yaw), len(self.rows)
        turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        body["centre"], body["axes"] = body["centre"] @ turn + position, body["axes"] @ turn
        body["semseg"], body["instance"] = CLASSES.index(name), number
        body["paint"] += len(MATERIALS) * (number if paint is None else paint)
        self.rows.append(body)

    def shell(self):
        """Floor, ceiling and four walls; the frame's y points into the room, a wall's z up."""
        x, y, z = np.eye(3)
        flooring = self.rng.choice(["flooring", "flooring", "tiling", "carpet"])
        along = (x, z)[:: self.rng.choice((1, -1))]  # the planks' direction
        for name, at, axes, material in (
                ("floor", 0 * x, (along[0], y, along[1]), flooring), ("ceiling", self.size * y, (x, -y, z), "ceiling"),
                ("wall", 0 * x, (z, x, y), "plaster"), ("wall", self.size * x, (z, -x, y), "plaster"),
                ("wall", 0 * x, (x, z, y), "plaster"), ("wall", self.size * z, (x, -z, y), "plaster")):
            plane = solid(PLANE, at, (1, 1, 1), material, axes=np.array(axes))
            self.put(name, np.array([plane], SOLID), paint=min(len(self.rows), 2))  # the walls share a paint

    def hang(self):
        """Doors, windows, pictures, televisions: two places at the far wall, two at each side wall."""
        wide, _, deep = self.size
        places = [((share * wide, 0, deep), math.pi) for share in (0.28, 0.72)]
        places += [((x, 0, share * deep), yaw) for x, yaw in ((0, math.pi / 2), (wide, -math.pi / 2))
                   for share in (0.42, 0.78)]
        for place, yaw in places:
            name = self.rng.choice(HANGING)
            if self.rng.random() < 0.85:
                self.put(name, thing(name, self.rng), place + self.rng.uniform(-0.1, 0.1) * (yaw == math.pi) * np.eye(3)[0], yaw)

    def find_place(self, reach, near, far, tall=0.0):
        """A free spot on the floor, `near` to `far` metres ahead, where foot and head are in view, or None."""
        eye, axes, focal = self.camera
        right, ahead = axes[0], unit(axes[2] * (1, 0, 1))
        for side, share in self.rng.uniform((-0.38, 0), (0.38, 1), (40, 2)):
            far_off = near + share * (far - near)
            spot = (eye + far_off * (ahead + side / focal * right)) * (1, 0, 1)
            (_, foot, z), (_, head, back) = ((spot + (0, y, 0) - eye) @ axes.T for y in (0, tall))
            fits = foot < 0.36 * z / focal and head > -0.36 * back / focal
            fits &= ((spot >= reach) | (np.arange(3) == 1)).all() and (spot <= self.size - reach).all()
            hides = any(far_off < z and abs(side - x) < reach * focal / far_off for x, z in self.people)
            if fits and not hides and all(math.dist(spot, other) > reach + r for other, r in self.taken):
                self.taken.append((spot, reach))
                if tall:
                    self.people.append((side, far_off))
                return spot
        return None

    def to_camera(self, spot):
        """A yaw roughly towards the camera, so that things show their front or side."""
        return math.atan2(*(self.camera[0] - spot)[[0, 2]]) + self.rng.uniform(-1, 1)

    def stand(self):
        """A figure or two in most rooms, large in the picture; a few other things on the floor."""
        rng, focal = self.rng, self.camera[2]
        for _ in range(rng.choice(3, p=(0.12, 0.7, 0.18))):
            body = thing("figure", rng)
            tall = (body["centre"] + body["size"])[:, 1].max()
            far = focal / 0.75 * tall  # where it fills a 4:3 picture's height
            spot = self.find_place(0.35, far / 0.85, far / 0.5, tall)
            if spot is not None:
                self.put("figure", body, spot, self.to_camera(spot) + math.pi * (rng.random() < 0.2))
        for name in rng.permutation(STANDING)[: rng.integers(3, 6)]:
            body = thing(name, rng)
            reach = 0.9 * (abs(body["centre"]) + body["size"])[:, ::2].max()
            spot = self.find_place(reach, 1.6 + reach, 5)
            if spot is not None:
                self.put(name, body, spot, self.to_camera(spot))


def furnish(rng):
    """Draw a room. Returns its SOLID rows, the camera and the room's size (3); see Room."""
    room = Room(rng)
    room.shell()
    room.hang()
    if rng.random() < 0.6:
        spot = rng.uniform((0.35, 0, 0.4), (0.65, 0, 0.65)) * room.size
        room.put("rug", thing("rug", rng), spot, rng.uniform(-0.4, 0.4))
    room.stand()
    return np.concatenate(room.rows), room.camera, room.size


# --------------------------------------------------------------------------------------------------- tracing
def hit(kind, o, d):
    """First t > 0 at which the rays o + t d, o (3), d (3, h, w), enter the unit shape, (h, w); inf: none."""
    if kind == PLANE:
        return np.where(d[1] < 0, -o[1] / d[1], np.inf)
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
    """Seen by each pixel centre: depth along the optical axis in metres, row of `solids`; (height, width)."""
    eye, axes, focal = camera
    x, y = ((np.arange(n) - (n - 1) / 2) / (focal * width) for n in (width, height))
    depth, index = np.full((height, width), np.inf, dtype), np.zeros((height, width), np.int16)
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]) * solids["size"][:, None]
    corners = (corners @ solids["axes"] + (solids["centre"] - eye)[:, None]) @ axes.T  # (n, 8, 3) in camera axes
    frames = solids["axes"] / solids["size"][..., None]
    origins = np.einsum("nij,nj->ni", frames, eye - solids["centre"]).astype(dtype)
    frames = (frames @ axes.T).astype(dtype)  # (n, 3, 3) from camera axes
    for i, (kind, (u, v, z)) in enumerate(zip(solids["kind"], corners.transpose(0, 2, 1))):
        rows, columns = slice(None), slice(None)
        if kind != PLANE and z.min() > 0.05:  # in front: only the rectangle round its corners can see it
            columns = slice(*np.searchsorted(x, [(u / z).min(), (u / z).max()]))
            rows = slice(*np.searchsorted(y, [(v / z).min(), (v / z).max()]))
        near, seen = depth[rows, columns], index[rows, columns]
        if near.size and (kind == PLANE or z.max() > 0.05):
            a, b, c = frames[i].T[..., None, None]
            t = hit(kind, origins[i], a * x[columns].astype(dtype) + (b * y[rows, None].astype(dtype) + c))
            nearer = t < near
            np.copyto(near, t, where=nearer)
            np.copyto(seen, i, where=nearer)
    return depth, index


def surface(solids, camera, depth, index):
    """World points, their unit normals, and the points in the solids' own axes (metres), each (h, w, 3)."""
    (eye, axes, focal), (height, width), dtype = camera, depth.shape, depth.dtype
    x, y = ((np.arange(n) - (n - 1) / 2) / (focal * width) for n in (width, height))
    rays = x[:, None] * axes[0] + (y[:, None, None] * axes[1] + axes[2])
    points = eye.astype(dtype) + depth[..., None] * rays.astype(dtype)
    centre, size, frame = (solids[key].astype(dtype)[index] for key in ("centre", "size", "axes"))
    local, kind = np.einsum("hwij,hwj->hwi", frame, points - centre), solids["kind"][index][..., None]
    q, up = local / size, np.array([False, True, False])
    face = abs(q) == abs(q).max(-1, keepdims=True)
    end = abs(q[..., 1:2]) > np.hypot(q[..., :1], q[..., 2:])  # a cylinder's ends have normal y, its side x and z
    keep = np.where(kind == BOX, face, np.where(kind == CYLINDER, end == up, True))
    gradient = np.where(kind == PLANE, up, q * keep) / size
    return points, unit(np.einsum("hwij,hwi->hwj", frame, gradient)), local


# -------------------------------------------------------------------------------------------------- painting
def planks(p):
    """Boards of random tone with dark joints, one unit wide, six long."""
    row = np.floor(p[0])
    end = p[2] / 6 + 0.37 * row
    tone = np.sin(12.9898 * row + 78.233 * np.floor(end)) * 43758.5 % 1
    return np.where((p[0] % 1 < 0.1) | (end % 1 < 0.015), 1, 0.45 * tone)


def texture(pattern, q):
    """A pattern's share of the second colour in [0, 1], (n), at q (3, n); the patterns by number."""
    value = np.zeros(pattern.shape, q.dtype)
    for i, draw in enumerate((
            lambda p: 0,
            lambda p: np.floor(2 * p[0]) % 2,
            lambda p: np.floor(p).sum(0) % 2,
            lambda p: abs(p[::2] % 1 - 0.5).max(0) > 0.46,
            planks,
            lambda p: 0.25 + 0.25 * np.sin(6 * p[0] + 2 * p[1] + 2 * np.sin(p[2] + np.sin(p[1]))),
            lambda p: 0.5 + 0.5 * np.sin(3 * p[0] + 2 * np.sin(2.3 * p[2] + p[0] + 2 * np.sin(3.1 * p[1] + p[0]))))):
        value[pattern == i] = draw(q[:, pattern == i])
    return value


def draw_paints(rng, materials):
    """Per paint, of material number materials (n): first and second colour (n, 3), pattern (n), period (n, 1) in
    metres, light that it gives off (n, 1)."""
    first, second, pattern, period, glow = [], [], [], [], []
    for name in np.array(list(MATERIALS))[materials]:
        colours, patterns = (text.split() for text in MATERIALS[name])
        pair = [np.frombuffer(bytes.fromhex(rng.choice(colours)), np.uint8) / 255 for _ in range(2)]
        pair = [np.clip(c * rng.uniform(0.85, 1.12) * rng.uniform(0.93, 1.07, 3), 0, 1) ** 2.2 for c in pair]
        pattern.append(PATTERNS.index(rng.choice(patterns)))
        first.append(pair[0])
        textile = name in ("fabric", "shirt", "trousers", "canvas", "rubber")
        second.append(pair[1] if textile else pair[0] * rng.uniform(0.45, 0.7))
        period.append({"flooring": 0.16, "tiling": 0.45}.get(name, 0.2) * rng.uniform(0.8, 1.4))
        glow.append(SHINING.get(name, 0))
    f = np.float32
    return f(first), f(second), np.array(pattern), f(period)[:, None], f(glow)[:, None]


def visible(solids, lamp, points, blur):
    """Share of a soft lamp at lamp (3) that points (h, w, 3) see, (h, w, 1), by the depth map that it takes."""
    size, focal, down = 180, 0.22, np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
    depth, _ = trace(solids, (lamp, down, focal), size, size, np.float32)
    x, y, z = np.moveaxis((points - lamp) @ down.T, -1, 0)
    x, y = (np.clip(p / np.maximum(z, 0.01) * focal * size + size / 2, blur, size - 1 - blur) for p in (x, y))
    lit = np.zeros_like(z)
    for k in range(12):  # compare along a spiral
        r, turn = blur * math.sqrt((k + 0.5) / 12), 2.4 * k
        at = (y + r * math.sin(turn)).astype(np.int32) * size + (x + r * math.cos(turn)).astype(np.int32)
        lit += z <= depth.ravel()[at] + 0.03
    return lit[..., None] / 12


def illuminate(solids, room, points, normals, rng):
    """Light (h, w, 3) that arrives at points: sky-like ambience, darker in corners, a lamp aside, one above."""
    off = points + 0.3 * normals
    closed = np.exp(-5 * np.maximum(off, 0)) + np.exp(-5 * np.maximum(np.float32(room) - off, 0))
    from_side = normals @ np.float32(rng.uniform((-0.25, 0.05, -0.25), (0.25, 0.15, 0.0)))
    light = (0.27 + from_side[..., None]) * (1 - 0.6 * closed).prod(-1, keepdims=True)
    for power, blur, low, high in ((1.9, 2.0, (0.1, 1, 0.05), (0.9, 1, 0.35)), (1.2, 5.0, (0.4, 1, 0.4), (0.6, 1, 0.6))):
        lamp = np.float32(rng.uniform(low, high) * room - (0, rng.uniform(0.1, 0.3), 0))
        tint = np.float32(rng.uniform((0.97, 0.95, 0.8), (1.1, 1, 1.03)))
        far = np.sqrt(dot(lamp - points, lamp - points))
        facing = np.maximum(dot((lamp - points) / far, normals), 0)
        light = light + power * tint * facing / (0.6 + (far / 3) ** 2) * visible(
            solids, lamp, points + 0.04 * normals, blur)
    return light


def paint(solids, camera, room, height, width, look, noise):
    """The picture, uint8 (height, width, 3), from 2 x 2 rays a pixel."""
    depth, index = trace(solids, camera, 2 * height, 2 * width, np.float32)
    points, normals, local = surface(solids, camera, depth, index)
    paints, p = np.unique(solids["paint"], return_inverse=True)
    first, second, pattern, period, glow = draw_paints(look, paints % len(MATERIALS))
    shift = np.float32(look.uniform(0.2, 0.8, (len(paints), 3)))
    p = p[index]  # (2 height, 2 width), number of the paint

    value = texture(pattern[p].ravel(), (local / period[p] + shift[p]).reshape(-1, 3).T).reshape(*p.shape, 1)
    slant = np.maximum(-dot(unit(points - camera[0].astype(np.float32)), normals), 0.1)
    rays = 2 * width * camera[2] * period[p] * slant / depth[..., None]  # a period
    value = 0.35 + (value - 0.35) * np.clip(1.3 - 2.5 / rays, 0, 1) * (pattern[p] > 0)[..., None]  # what is too fine fades
    albedo = first[p] + value * (second[p] - first[p])
    colour = albedo * (illuminate(solids, room, points, normals, look) + glow[p])
    colour = 1 - np.exp(-1.4 * look.uniform(0.9, 1.15) * colour)
    colour = colour.reshape(height, 2, width, 2, 3).mean((1, 3)) ** (1 / 2.2)
    colour += noise.uniform(0.002, 0.006) * noise.standard_normal(colour.shape)
    return (255 * np.clip(colour, 0, 1) + 0.5).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- labels
def salient(instance, semseg):
    """What a viewer looks at first, uint8 {0, 1} (H, W), by our rule; see render_room."""
    figures, things = semseg == CLASSES.index("figure"), semseg >= CLASSES.index("table")
    ids, pixels = np.unique(instance[figures if figures.mean() >= 0.01 else things], return_counts=True)
    if not len(ids) or pixels.max() < 0.01 * instance.size:
        return np.zeros(instance.shape, np.uint8)
    chosen = ids[pixels >= pixels.max() / 3] if figures.mean() >= 0.01 else ids[pixels.argmax()]
    return np.isin(instance, chosen).astype(np.uint8)


def render_room(seed, height, width):
    """One room. seed (int or ints) fixes the scene at any size; labels are of pixel centres, the image is smoothed.

    image (H, W, 3) uint8; semseg (H, W), index into CLASSES; parsing (H, W), 1 head 2 torso 3 upper arm 4 lower arm
    and hand 5 upper leg 6 lower leg and foot, all 255 if nobody is seen; boundary (H, W) {0, 1}, the last pixel before
    another instance (every wall is one) to the right or below; depth (H, W) float32, metres along the optical axis;
    normal (H, W, 3) float16 in camera axes, x right, y down, z forward, towards the camera: a floor has y about -1;
    focal in pixels, the principal point is ((W - 1) / 2, (H - 1) / 2).
    saliency (H, W) {0, 1}, by our rule
    """
    geometry, look, noise = (np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        solids, camera, room = furnish(geometry)
        image = paint(solids, camera, room, height, width, look, noise)
        depth, index = trace(solids, camera, height, width, np.float64)
        _, normals, _ = surface(solids, camera, depth, index)
    instance, semseg, parsing = (solids[key][index] for key in ("instance", "semseg", "part"))
    parsing[:] = parsing if parsing.any() else 255
    boundary = np.zeros((height, width), np.uint8)
    boundary[:, :-1] |= instance[:, :-1] != instance[:, 1:]
    boundary[:-1] |= instance[:-1] != instance[1:]
    return {"image": image, "semseg": semseg, "parsing": parsing, "saliency": salient(instance, semseg),
            "boundary": boundary, "depth": depth.astype(np.float32),
            "normal": (normals @ camera[1].T).astype(np.float16), "focal": camera[2] * width}
