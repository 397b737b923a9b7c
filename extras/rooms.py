# SPDX-License-Identifier: MIT
"""Rendered rooms with exact labels of all six tasks, the toy data set; numpy only.

A room is a list of solids that rays are traced against, so its labels are exact. World: metres,
right-handed, y up, x and z along the floor. Camera: x right, y down, z forward. A solid is a unit
shape seen through its frame, q = axes @ (point - centre) / size.
"""

import math

import numpy as np

CLASSES = ("wall", "floor", "ceiling", "door", "window", "picture", "television", "rug",
           "table", "chair", "sofa", "lamp", "cabinet", "ball", "plant", "figure")
HANGING, STANDING = CLASSES[3:7], CLASSES[7:15]  # on the walls, on the floor
UPRIGHT = np.eye(3)
BOX, BALL, CYLINDER = range(3)  # |x|, |y|, |z| <= 1; |q| <= 1; x^2 + z^2 <= 1 and |y| <= 1
ONE, TWO, FOUR = ((1, 1),), ((-1, 1), (1, 1)), ((-1, -1), (-1, 1), (1, -1), (1, 1))  # signs x, z
SOLID = np.dtype([("kind", "u1"), ("centre", "f8", 3), ("size", "f8", 3), ("axes", "f8", (3, 3)),
                  ("paint", "i4"), ("part", "u1"), ("semseg", "u1"), ("instance", "u1")])

# Materials as in life, but of so many colours that colour alone does not tell the class.
PATTERNS = {  # share of the second colour at p (3, n), in units of 0.16 to 0.28 m
    "plain": lambda p: 0,
    "stripes": lambda p: np.floor(2 * p[0]) % 2,
    "checks": lambda p: np.floor(p).sum(0) % 2,
    "tiles": lambda p: abs(p[::2] / 2 % 1 - 0.5).max(0) > 0.46,
    "planks": lambda p: np.maximum(p[0] % 1 < 0.1, 0.45 * (np.sin(99 * np.floor(p[0])) * 999 % 1)),
    "grain": lambda p: 0.25 + 0.25 * np.sin(6 * p[0] + 2 * p[1] + 2 * np.sin(p[2] + np.sin(p[1]))),
    "waves": lambda p: 0.5 + 0.5 * np.sin(3 * p[0] + 2 * np.sin(2.3 * p[2] + 2 * np.sin(3 * p[1]))),
}
WOOD = "c99b66 a87444 8a5a34 6b4429 54331f d8b98a"
DYED = "c43c39 e07b39 e8b93c 4f8a4b 2f7f86 35619c 6b4a8c b2527e 8a5a3c d9d2c5 3b3f4a 7d8a94"
MATERIALS = {  # sRGB colours and patterns to draw from
    "plaster": ("e9e4d8 d9c9a8 b9cfd8 a9c3a0 d8a88a c8b5cf e3cf7a 8fb0c4", "plain plain stripes"),
    "ceiling": ("f4f2ec ece8dc e6ecef", "plain"),
    "boards": (WOOD, "planks"),
    "tiling": ("b8aea0 8f979c c9b49a 6f7c78 a65f48 54606b", "tiles tiles checks"),
    "carpet": ("7d7468 5c6b78 8a4f4a 4f6b55 a39a8c 6a5f80", "plain"),
    "wood": (WOOD, "grain"),
    "lacquer": (WOOD + " f0ede6 e8e4da 3f6a86 5a7d5a a8433c 39404a", "plain plain grain"),
    "fabric": (DYED, "plain plain stripes checks waves"),
    "shirt": (DYED, "plain plain stripes"),
    "trousers": (DYED, "plain plain plain checks"),
    "skin": ("f0c8a8 e0ac84 c68a5e a0683f 7a4a2c 5a3520", "plain"),
    "hair": ("1e1a18 3a2618 6b4526 b98a4a 9a9690 7a2f1c", "plain"),
    "leaf": ("2f7a35 4a9440 1f5a30 7aa83c", "waves"),
    "screen": ("0b0d12 14181f 101a2a", "plain"),
    "shade": ("ffdf90 ffc870 ffecc0", "plain"),
    "sky": ("9fd0f7 b8dcf5 78b4ee e8c89a", "plain"),
}
NAMES, SHINE = list(MATERIALS), {"shade": 0.7, "sky": 0.6}  # SHINE: light of its own


def unit(v):
    return v / np.sqrt(np.einsum("...i,...i->...", v, v))[..., None]


# ------------------------------------------------------------------------------------------- things
def solid(kind, centre, size, material, copies=ONE, part=0, axes=UPRIGHT):
    """SOLID rows: one or its mirror images. A thing has its own axes: y up, z to the front, the
    origin on the floor (or on the wall)."""
    x, y, z = centre
    return [(kind, (i * x, y, k * z), size, axes, NAMES.index(material), part, 0, 0)
            for i, k in copies]


def limb(joint, side, spread, bends, bones):
    """Bones (length, radius, material, part), cylinders that end in balls, down from `joint`."""
    sin, cos, rows = side * math.sin(spread), math.cos(spread), []
    for (length, radius, material, part), bend in zip(bones, bends):
        s, c = math.sin(bend), math.cos(bend)
        axes = np.array([[cos, sin * c, -sin * s], [-sin, cos * c, -cos * s], [0, s, c]])  # y up it
        middle, joint = joint - length / 2 * axes[1], joint - length * axes[1]
        rows += solid(CYLINDER, middle, (radius, length / 2, radius), material, ONE, part, axes)
        rows += solid(BALL, joint, (radius, radius, radius), material, ONE, part)
    return rows, joint


def figure(rng):
    """A standing person of 1.3 to 1.9 m in PASCAL's six groups of parts, stouter than in life."""
    rows = (solid(BALL, (0, 0.43, 0), (0.075, 0.1, 0.08), "skin", part=1)  # hips at 0, 1 tall
            + solid(BALL, (0, 0.465, -0.018), (0.082, 0.085, 0.082), "hair", part=1)
            + solid(BALL, (0, 0.27, 0), (0.135, 0.065, 0.08), "shirt", part=2)
            + solid(CYLINDER, (0, 0.15, 0), (0.115, 0.12, 0.075), "shirt", part=2)
            + solid(BALL, (0, 0.02, 0), (0.112, 0.065, 0.08), "trousers", part=2))
    sleeve, shin = rng.choice(["skin", "skin", "shirt"]), rng.choice(["skin", "trousers"])
    for side in (-1, 1):
        spread, swing, bend = rng.uniform((0.3, -0.4, 0), (rng.choice([0.8, 2.2]), 0.5, 1.2))
        arm, hand = limb((side * 0.135, 0.28, 0), side, spread, (swing, swing + bend),
                         ((0.16, 0.045, "shirt", 3), (0.17, 0.04, sleeve, 4)))
        spread, swing, bend = rng.uniform((0.05, -0.35, -0.4), (0.22, 0.4, 0))
        leg, foot = limb((side * 0.06, 0, 0), side, spread, (swing, swing + bend),
                         ((0.25, 0.065, "trousers", 5), (0.23, 0.05, shin, 6)))
        rows += arm + solid(BALL, hand, (0.046, 0.046, 0.046), "skin", part=4)
        rows += leg + solid(BALL, foot + (0, -0.02, 0.03), (0.05, 0.04, 0.09), "lacquer", part=6)
    rows, tall = np.array(rows, SOLID), rng.uniform(1.3, 1.9)
    rows["centre"][:, 1] -= rows["centre"][rows["part"] == 6, 1].min() - 0.04  # feet on the floor
    rows["centre"], rows["size"] = tall * rows["centre"], tall * rows["size"]
    return rows


def pane(x, y, above, deep, material, frame):
    """A framed rectangle on the wall, half sizes x and y, its lower edge at `above`."""
    return (solid(BOX, (0, above + y, 0), (x + 0.07, y + 0.07, deep), frame)
            + solid(BOX, (0, above + y, 0), (x, y, deep + 0.01), material))


def thing(name, rng):
    """SOLID rows of one thing of the class `name`."""
    if name == "figure":
        return figure(rng)
    x, y, z = rng.uniform((0.45, 0.45, 0.4), (0.7, 0.6, 0.55))
    return np.array({
        "door": pane(x, 1, 0, 0.03, "wood", "lacquer")
        + solid(BOX, (0, 1.2, 0), (0.6 * x, 0.6, 0.045), "lacquer"),
        "window": pane(x, y, 0.9, 0.04, "sky", "lacquer")
        + solid(BOX, (0, 0.9 + y, 0), (0.03, y, 0.06), "lacquer")
        + solid(BOX, (0, 0.9 + y, 0), (x, 0.03, 0.06), "lacquer"),
        "picture": pane(x - 0.15, y - 0.2, 1.4 - z, 0.02, "fabric", "wood"),
        "television": pane(x + 0.05, 0.6 * y, 0.4 + z, 0.04, "screen", "lacquer"),
        "rug": solid(BOX if z < 0.5 else CYLINDER, (0, 0, 0), (1.8 * x, 0.008, y + z), "fabric"),
        "table": solid(BOX, (0, y + 0.22, 0), (x + 0.05, 0.045, z), "wood")
        + solid(BOX, (x, y / 2 + 0.11, z - 0.05), (0.05, y / 2 + 0.11, 0.05), "wood", FOUR),
        "chair": solid(BOX, (0, 0.45, 0), (0.25, 0.05, 0.25), "fabric")
        + solid(BOX, (0, 0.5 + z / 2, -0.21), (0.25, z / 2, 0.04), "fabric")
        + solid(BOX, (0.2, 0.22, 0.2), (0.045, 0.22, 0.045), "wood", FOUR),
        "sofa": solid(BOX, (0, 0.21, 0.02), (x + 0.2, 0.21, 0.4), "fabric")
        + solid(BOX, (0, 0.8 * y, -0.32), (x + 0.2, 0.8 * y, 0.12), "fabric")
        + solid(BOX, (x + 0.2, 0.3, 0), (0.11, 0.3, 0.42), "fabric", TWO),
        "lamp": solid(CYLINDER, (0, 0.03, 0), (0.18, 0.03, 0.18), "lacquer")
        + solid(CYLINDER, (0, x + 0.1, 0), (0.035, x + 0.1, 0.035), "lacquer")
        + solid(CYLINDER, (0, 2 * x + 0.2, 0), (y / 2, 0.45 * z, y / 2), "shade"),
        "cabinet": solid(BOX, (0, 1.4 * z, 0), (x, 1.4 * z, 0.24), "wood")
        + solid(BOX, (x / 2, 1.4 * z, 0.02), (0.45 * x, 1.25 * z, 0.24), "lacquer", TWO),
        "ball": solid(BALL, (0, x / 2, 0), (x / 2, x / 2, x / 2), "fabric"),
        "plant": solid(CYLINDER, (0, 0.2, 0), (0.16, 0.2, 0.16), "lacquer")
        + solid(BALL, (0.13, 0.4 + 0.4 * y, 0.1), (y / 2, 0.65 * y, y / 2), "leaf", TWO)
        + solid(BALL, (0, 0.4 + 2 * y * z, 0), (y / 2, 0.65 * y, y / 2), "leaf"),
    }[name], SOLID)


# --------------------------------------------------------------------------------------- furnishing
class Room:
    """things, SOLID rows of each; size (3), metres; camera: eye (3), axes (3, 3), focal / width."""

    def __init__(self, rng):
        self.rng, self.things, self.taken = rng, [], []
        self.size = rng.uniform((3.6, 2.3, 4.2), (5.0, 2.7, 5.6))
        scale = self.size ** (1, 0, 1)  # shares of the room, heights in metres
        eye = scale * rng.uniform((0.3, 1.2, 0.03), (0.7, 1.6, 0.08))
        ahead = scale * rng.uniform((0.25, 0.5, 0.8), (0.75, 0.9, 0.8)) - eye
        right = np.cross(ahead, (rng.uniform(-0.03, 0.03), 1, 0))  # a little roll
        axes = unit(np.stack([right, np.cross(ahead, right), ahead]))
        self.camera = eye, axes, rng.uniform(0.7, 0.85)
        self.build()
        figures = ["figure"] * rng.choice(3, p=(0.12, 0.7, 0.18))
        for name in [*figures, *rng.permutation(STANDING)[: rng.integers(4, 7)]]:
            self.place(name)

    def put(self, name, body, position=(0, 0, 0), yaw=0.0, aside=0.0, paint=None):
        """Move a thing aside, turn and move it; `paint`: the instance whose colours it shares."""
        c, s, number = math.cos(yaw), math.sin(yaw), len(self.things)
        turn, body = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]), np.array(body, SOLID)
        body["centre"] = (body["centre"] + (aside, 0, 0)) @ turn + position
        body["axes"], body["semseg"] = body["axes"] @ turn, CLASSES.index(name)
        body["instance"] = number
        body["paint"] += len(NAMES) * (number if paint is None else paint)
        self.things.append(body)

    def build(self):
        """Slabs for floor, ceiling and the three walls in view, each with two things on it."""
        wide, high, deep = self.size
        floor = self.rng.choice(["boards", "boards", "tiling", "carpet"])
        for name, y, material in (("floor", -0.1, floor), ("ceiling", high + 0.1, "ceiling")):
            self.put(name, solid(BOX, (wide / 2, y, deep / 2), (wide, 0.1, deep), material))
        wall = solid(BOX, (0, high / 2, -0.1), (deep, high, 0.1), "plaster")  # z into the room
        for x, z, yaw in ((0, 0.6, math.pi / 2), (wide, 0.6, -math.pi / 2), (wide / 2, 1, math.pi)):
            self.put("wall", wall, (x, 0, z * deep), yaw, paint=2)
            for aside in (-0.24 * wide, 0.24 * wide):
                name = self.rng.choice(HANGING)
                self.put(name, thing(name, self.rng), (x, 0, z * deep), yaw, aside)

    def place(self, name):
        """Put a thing on a free spot in view, turned to the camera, if 40 tries find one; a figure
        takes 50 to 85 % of a 4:3 picture's height, and nothing comes before its middle."""
        (eye, axes, focal), body = self.camera, thing(name, self.rng)
        wide, tall, _ = (abs(body["centre"]) + body["size"]).max(0)
        reach = {"figure": 0.35, "rug": 0}.get(name, 0.9 * wide)
        near, far, top, clear = 1.6 + reach, 5, 0, (0,)
        if name == "figure":
            near, far, top, clear = 1.57 * focal * tall, 2.67 * focal * tall, tall, (0, 0.3, 0.6)
        for aside, ahead in self.rng.uniform((-0.38, near), (0.38, far), (40, 2)):
            spot = (eye + ahead * (unit(axes[2] * (1, 0, 1)) + aside / focal * axes[0])) * (1, 0, 1)
            _, y, z = axes @ (spot + [(0, 0, 0), (0, top, 0)] - eye).T  # of its foot and head
            if ((abs(y) < 0.36 * z / focal).all()
                    and (abs(spot - self.size / 2) < self.size / 2 - reach)[::2].all()
                    and all(math.dist(spot, other) > reach + r for other, r in self.taken)):
                back = (eye - spot) * (1, 0, 1)
                self.put(name, body, spot, math.atan2(*back[::2]) + self.rng.uniform(-1, 1))
                self.taken += [(spot + t * back, (1 - t) * reach) for t in clear]
                return


# ------------------------------------------------------------------------------------------ tracing
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


def trace(rows, camera, height, width, dtype):
    """Depth along the optical axis and SOLID row that pixel centres see, both (height, width)."""
    eye, axes, focal = camera
    x, y = (((np.arange(n) - (n - 1) / 2) / (focal * width)).astype(dtype) for n in (width, height))
    depth, index = np.full((height, width), np.inf, dtype), np.zeros((height, width), np.int16)
    corners = np.array([(i, j, k) for i in (-1, 1) for j, k in FOUR]) * rows["size"][:, None]
    corners = (corners @ rows["axes"] + (rows["centre"] - eye)[:, None]) @ axes.T
    u, v, z = np.moveaxis(corners, -1, 0)  # (n, 8), in camera axes
    frames = rows["axes"] / rows["size"][..., None]
    origins = np.einsum("nij,nj->ni", frames, eye - rows["centre"]).astype(dtype)
    frames = (frames @ axes.T).astype(dtype)  # (n, 3, 3), from the camera's axes
    left, right = np.searchsorted(x, ((u / z).min(1), (u / z).max(1)))
    top, bottom = np.searchsorted(y, ((v / z).min(1), (v / z).max(1)))
    for i in np.flatnonzero(z.max(1) > 0.05):
        across, down = slice(left[i], right[i]), slice(top[i], bottom[i])  # round its corners
        if z[i].min() < 0.05:  # it reaches behind the camera
            across = down = slice(None)
        near = depth[down, across]
        a, b, c = frames[i].T[..., None, None]
        t = hit(rows["kind"][i], origins[i], a * x[across] + (b * y[down, None] + c))
        index[down, across][t < near] = i
        np.minimum(near, t, out=near)
    return depth, index


def surface(rows, camera, depth, index):
    """World points, unit normals, points in the solids' own axes (metres), each (h, w, 3)."""
    (eye, axes, focal), (height, width), dtype = camera, depth.shape, depth.dtype
    x, y = ((np.arange(n) - (n - 1) / 2) / (focal * width) for n in (width, height))
    rays = x[:, None] * axes[0] + (y[:, None, None] * axes[1] + axes[2])
    points = eye.astype(dtype) + depth[..., None] * rays.astype(dtype)
    centre, size, frame = (rows[key].astype(dtype)[index] for key in ("centre", "size", "axes"))
    local, kind = np.einsum("hwij,hwj->hwi", frame, points - centre), rows["kind"][index][..., None]
    q, up = local / size, np.array([False, True, False])
    face = abs(q) == abs(q).max(-1, keepdims=True)
    end = abs(q[..., 1:2]) > np.hypot(q[..., :1], q[..., 2:])  # of a cylinder: normal y, else x, z
    keep = np.where(kind == BOX, face, np.where(kind == CYLINDER, end == up, True))
    return points, unit(np.einsum("hwij,hwi->hwj", frame, q * keep / size)), local


# ----------------------------------------------------------------------------------------- painting
def illuminate(rows, room, points, normals, rng):
    """Light (h, w, 3) at points (h, w, 3): from all round, less in corners; from two soft lamps."""
    off = points + 0.3 * normals
    closed = np.exp(-5 * np.maximum(off, 0)) + np.exp(-5 * np.maximum(np.float32(room) - off, 0))
    aside = np.float32(rng.uniform((-0.25, 0.05, -0.25), (0.25, 0.15, 0)))
    light = (0.27 + normals @ aside)[..., None] * (1 - 0.6 * closed).prod(-1, keepdims=True)
    for power, blur, middle in ((1.9, 2, (0.5, 0.92, 0.2)), (1.2, 4, (0.5, 0.92, 0.5))):
        lamp = np.float32((middle + rng.uniform(-1, 1, 3) * (0.4, 0.03, 0.15)) * room)
        tint = np.float32(power * rng.uniform((0.97, 0.95, 0.8), (1.1, 1, 1.03)))
        to, far = unit(lamp - points), np.linalg.norm(lamp - points, axis=-1)
        facing = np.maximum((to * normals).sum(-1), 0) / (0.6 + (far / 3) ** 2)
        light = light + tint * (facing * visible(rows, lamp, points + 0.1 * normals, blur))[..., None]
    return light


def visible(rows, lamp, points, blur):
    """Share (h, w) of a lamp (3) that points (h, w, 3) see, by its depth map; softer with blur."""
    down = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    depth, _ = trace(rows, (lamp, down, 40 / 180), 180, 180, np.float32)
    x, y, z = np.moveaxis(points - lamp, -1, 0)
    x, z = (np.clip(90 + 40 * p / np.maximum(-y, 0.01), blur, 179 - blur) for p in (x, z))
    around = [(i, j) for i in (-blur, 0, blur) for j in (-blur, 0, blur)]
    return sum(-y <= depth[(z + i).astype(int), (x + j).astype(int)] + 0.06 for i, j in around) / 9


def draw_paint(name, rng):
    """Of a material: two colours (2, 3), linear RGB; pattern; its unit in metres; own light."""
    choices, patterns = (text.split() for text in MATERIALS[name])
    pair = np.array([list(bytes.fromhex(colour)) for colour in rng.choice(choices, 2)]) / 255
    if MATERIALS[name][0] != DYED:
        pair[1] = 0.8 * pair[0]  # the second colour is a darker first
    pair, pattern = (pair * rng.uniform(0.8, 1, (2, 3))) ** 2.2, rng.choice(patterns)
    return pair, list(PATTERNS).index(pattern), rng.uniform(0.16, 0.28), SHINE.get(name, 0)


def paint(rows, camera, room, height, width, rng):
    """The picture, uint8 (height, width, 3), from 2 x 2 rays per pixel."""
    depth, index = trace(rows, camera, 2 * height, 2 * width, np.float32)
    points, normals, local = surface(rows, camera, depth, index)
    paints, p = np.unique(rows["paint"], return_inverse=True)
    colours, pattern, length, shine = map(np.float32, zip(*(
        draw_paint(NAMES[i % len(NAMES)], rng) for i in paints)))
    p = p[index]  # (2 height, 2 width), a paint per ray
    at, value = local / length[p][..., None] + np.float32(0.5), np.zeros_like(depth)
    for i, draw in enumerate(PATTERNS.values()):
        value[pattern[p] == i] = draw(at[pattern[p] == i].T)
    value *= np.clip(camera[2] * width / depth / 30, 0, 1)  # what is far is too fine, and fades
    albedo = colours[p, 0] + value[..., None] * (colours[p, 1] - colours[p, 0])
    light = illuminate(rows, room, points, normals, rng) + shine[p][..., None]
    colour = 1 - np.exp(-rng.uniform(1.25, 1.6) * albedo * light)
    colour = colour.reshape(height, 2, width, 2, 3).mean((1, 3)) ** (1 / 2.2)
    return (255 * colour + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------- labels
def salient(instance, semseg):
    """What a viewer looks at first, uint8 {0, 1} (H, W), by our rule, see render_room."""
    ids, pixels = np.unique(instance[semseg >= CLASSES.index("table")], return_counts=True)
    ids = ids[pixels.argsort()][np.sort(pixels) >= 0.01 * instance.size]
    people = np.intersect1d(ids, instance[semseg == CLASSES.index("figure")])
    return np.isin(instance, people if people.size else ids[-1:]).astype(np.uint8)


def render_room(seed, height, width):
    """One room. seed (int or ints) fixes the scene at any size. Labels are of the pixels' centres.

    image (H, W, 3) uint8; semseg (H, W) uint8, index into CLASSES; parsing (H, W) uint8, 1 head
    2 torso 3 upper arm 4 lower arm and hand 5 upper leg 6 lower leg and foot 0 all else, or 255
    everywhere if nobody is seen; saliency (H, W) uint8 {0, 1}, by our rule the figures, or without
    any the largest thing on the floor, each of 1 % of the pixels or more; boundary (H, W) uint8
    {0, 1}, the last pixel before another instance (a wall is one) to the right or below; depth
    (H, W) float32, metres along the optical axis; normal (H, W, 3) float16 in camera axes, towards
    the camera: a floor has y about -1; focal, in pixels from ((W - 1) / 2, (H - 1) / 2).
    """
    geometry, look = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
    room = Room(geometry)
    rows, camera = np.concatenate(room.things), room.camera
    with np.errstate(divide="ignore", invalid="ignore"):
        image = paint(rows, camera, room.size, height, width, look)
        depth, index = trace(rows, camera, height, width, np.float64)
        _, normals, _ = surface(rows, camera, depth, index)
    instance, semseg, parsing = (rows[key][index] for key in ("instance", "semseg", "part"))
    parsing[:] = parsing if parsing.any() else 255
    boundary = np.zeros((height, width), np.uint8)
    boundary[:, :-1] |= instance[:, :-1] != instance[:, 1:]
    boundary[:-1] |= instance[:-1] != instance[1:]
    return {"image": image, "semseg": semseg, "parsing": parsing, "boundary": boundary,
            "saliency": salient(instance, semseg), "depth": depth.astype(np.float32),
            "normal": (normals @ camera[1].T).astype(np.float16), "focal": camera[2] * width}
