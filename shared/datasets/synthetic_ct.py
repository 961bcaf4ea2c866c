"""Synthetic abdominal CT: made-up bodies with the 13 BTCV organs, for demonstrations and tests.

A body is drawn in a template frame in millimetres (x to the patient's right, y to the front, z to the head, origin in
front of the first lumbar vertebra) out of ellipsoids and tubes. Every case has its own pose, habitus, organ sizes and
places, contrast phase and scanner grid. The template is never mirrored, so sides are always right.

The volumes teach software, not medicine: no figure measured on them says anything about real scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import ArrayLike
from scipy.interpolate import BSpline, CubicSpline
from scipy.ndimage import find_objects
from scipy.spatial.transform import Rotation

from ..data import SPLITS
from ..utils import atomic_path
from ..utils.values import Whole, check_value
from .ct_cases import BTCV_LABELS
from .dicom_ct import write_ct_series
from .preparation import make_data_set

ORIENTATIONS = ("LPS", "RAS", "LAS", "RPS", "LPI", "RAI", "ASL")
"""Orders and directions in which a volume's axes are stored."""

_STEP = 2.4  # mm, the working grid; finer structures live in the soft edges
_ALL = (slice(None),) * 3
_EDGE = 2.8  # mm, the width over which one tissue turns into the next

# HU of each tissue in the native, arterial and portal-venous phase.
_PHASES: dict[str, tuple[float, float, float]] = {
    "liver": (55, 68, 108),
    "spleen": (46, 105, 118),
    "cortex": (34, 165, 165),
    "medulla": (30, 75, 145),
    "aorta": (42, 270, 150),
    "veins": (40, 85, 160),
    "cava": (40, 75, 135),
    "pancreas": (40, 98, 92),
    "adrenal": (25, 70, 75),
    "wall": (38, 75, 85),
    "muscle": (54, 60, 66),
}


Box = tuple[slice, ...]


@dataclass(frozen=True)
class _Ellipsoid:
    """`centre` and semi-axes in mm; `angles` are intrinsic x, y, z rotations in degrees."""

    centre: ArrayLike
    axes: ArrayLike
    angles: tuple[float, float, float] = (0, 0, 0)

    @cached_property
    def rotation(self) -> np.ndarray:
        return Rotation.from_euler("XYZ", self.angles, degrees=True).as_matrix()

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        reach = np.sqrt(((self.rotation * np.asarray(self.axes)) ** 2).sum(axis=1))
        return np.asarray(self.centre) - reach, np.asarray(self.centre) + reach

    def distance(self, points: Sequence[np.ndarray]) -> np.ndarray:
        """First-order distance to the surface in mm, negative inside."""
        rotation = self.rotation.astype(np.float32)
        x, y, z = (p - np.float32(c) for p, c in zip(points, self.centre, strict=True))
        level, slope = np.zeros_like(x), np.zeros_like(x)
        for k, axis in enumerate(np.asarray(self.axes, np.float32)):
            q = ((rotation[0, k] * x + rotation[1, k] * y + rotation[2, k] * z) / axis) ** 2
            level += q
            slope += q / axis**2
        level = np.sqrt(level)
        return level * (level - 1) / np.sqrt(slope + np.float32(1e-9))


@dataclass(frozen=True)
class _Tube:
    """A tube along the smooth curve through `points` with a radius at each of them; `flat` > 1 thins it in y."""

    points: ArrayLike
    radii: ArrayLike
    flat: float = 1.0

    def _nodes(self) -> tuple[np.ndarray, np.ndarray]:
        points, radii = np.asarray(self.points, float), np.asarray(self.radii, float)
        t = np.arange(len(points))
        fine = np.linspace(0, len(points) - 1, 3 * (len(points) - 1) + 1)
        # The curve may round the corners, the radius must not overshoot.
        return CubicSpline(t, points)(fine), np.interp(fine, t, radii)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        nodes, radii = self._nodes()
        return (nodes - radii[:, None]).min(axis=0), (nodes + radii[:, None]).max(axis=0)

    def distance(self, points: Sequence[np.ndarray]) -> np.ndarray:
        """Distance to the surface in mm, negative inside."""
        nodes, radii = self._nodes()
        scale = np.array([1, self.flat, 1])
        nodes, radii = (nodes * scale).astype(np.float32), radii.astype(np.float32)
        x, y, z = points[0], points[1] * np.float32(self.flat), points[2]
        best = np.full(x.shape, np.inf, np.float32)
        for a, b, ra, rb in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True):
            u, v, w = b - a
            dx, dy, dz = x - a[0], y - a[1], z - a[2]
            t = np.clip((dx * u + dy * v + dz * w) / (u * u + v * v + w * w), 0, 1)
            d = np.sqrt((dx - t * u) ** 2 + (dy - t * v) ** 2 + (dz - t * w) ** 2) - (ra + t * (rb - ra))
            np.minimum(best, d, out=best)
        return best


def _interpolate(volume: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation at fractional indices of one axis. No matrix product, so bytes don't depend on threads."""
    positions = np.clip(positions, 0, volume.shape[axis] - 1)
    low = np.minimum(positions.astype(int), max(volume.shape[axis] - 2, 0))
    weight = (positions - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(volume.ndim)])
    start = volume.take(low, axis)
    return start + weight * (volume.take(np.minimum(low + 1, volume.shape[axis] - 1), axis) - start)


def _noise(rng: np.random.Generator, shape: Sequence[int], grain: float) -> np.ndarray:
    """Smooth noise of unit variance on the working grid, with cubic B-splines `grain` mm apart."""
    knots = [int(np.ceil((n - 1) * _STEP / grain)) + 3 for n in shape]
    noise = rng.standard_normal(knots, dtype=np.float32)
    for axis, n in enumerate(shape):
        where = np.arange(n) * _STEP / grain
        basis = BSpline.design_matrix(where, np.arange(-3, knots[axis] + 1), 3).toarray().astype(np.float32)
        basis /= np.sqrt((basis**2).sum(axis=1, keepdims=True))
        noise = np.moveaxis(np.einsum("k...,nk->n...", np.moveaxis(noise, axis, 0), basis), 0, axis)
    return noise


class _Canvas:
    """A working grid on which tissues are painted over one another with soft edges.

    Attributes:
        points: template coordinates (x, y, z) of every grid point.
        image: HU so far.
        share: organ → the share of each grid point that it occupies, 0 to 1.
    """

    def __init__(self, points: Sequence[np.ndarray], rng: np.random.Generator) -> None:
        self.points = points
        self.shape = points[0].shape
        self.image = np.full(self.shape, -1000, np.float32)
        self.share: dict[str, np.ndarray] = {}
        self.bumps = _noise(rng, self.shape, 14)
        self.texture = _noise(rng, self.shape, 5)

    def region(self, low: np.ndarray, high: np.ndarray) -> Box:
        """The grid's box that holds the template's box from `low` to `high`."""
        coarse = 4
        hit = np.ones([-(-n // coarse) for n in self.shape], bool)
        for p, a, b in zip(self.points, low, high, strict=True):
            p = p[::coarse, ::coarse, ::coarse]
            hit &= (p > a - 1.5 * coarse * _STEP) & (p < b + 1.5 * coarse * _STEP)
        if not hit.any():
            return (slice(0, 0),) * 3
        found = zip(find_objects(hit.view(np.uint8))[0], self.shape, strict=True)
        return tuple(slice(max((s.start - 1) * coarse, 0), min((s.stop + 1) * coarse, n)) for s, n in found)

    def fill(
        self, distance: np.ndarray, hu: float, organ: str = "", box: Box = _ALL, texture: float = 0, keep: bool = False
    ) -> None:
        """Paint where `distance` is negative. `keep` leaves the labels as they are: a content, not a structure."""
        cover = np.clip(0.5 - distance / _EDGE, 0, 1)
        self.image[box] += cover * (hu + texture * self.texture[box] - self.image[box])
        if keep:
            return
        for share in self.share.values():
            share[box] *= 1 - cover
        if organ:
            self.share.setdefault(organ, np.zeros(self.shape, np.float32))[box] += cover

    def draw(
        self,
        shape: _Ellipsoid | _Tube,
        hu: float,
        organ: str = "",
        *,
        halo: float = 0,
        rough: float = 0,
        texture: float = 5,
        limit: np.ndarray | None = None,
        keep: bool = False,
    ) -> tuple[Box, np.ndarray]:
        """Paint a shape, with a coat of fat of `halo` mm around it, `rough` mm of bumps, no further than `limit`."""
        low, high = shape.bounds()
        box = self.region(low - halo - 2 * rough, high + halo + 2 * rough)
        distance = shape.distance([p[box] for p in self.points])
        if rough:
            distance += np.float32(rough) * self.bumps[box]
        if limit is not None:
            distance = np.maximum(distance, limit[box])
        if halo:
            self.fill(distance - np.float32(halo), -100, box=box, texture=4, keep=keep)
        self.fill(distance, hu, organ, box=box, texture=texture, keep=keep)
        return box, distance


class _Body(_Canvas):
    """One body: draws its own variation from `rng` and paints itself."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.cavity = np.array([rng.uniform(110, 136), rng.uniform(80, 100)])  # semi-axes inside the abdominal wall
        self.fat = rng.uniform(5, 30)  # under the skin
        self.lean = rng.uniform(-0.5, 0.5, 2)  # more fat on one side, and in front or behind
        self.scale = rng.uniform(0.87, 1.13) * rng.uniform(0.93, 1.07, 3)
        self.turn = Rotation.from_euler("zxy", rng.normal(0, (8, 4, 4)), degrees=True)
        self.shift = rng.normal(0, (8, 5, 13))  # all viscera, breathing above all
        self.bottom, self.top = rng.uniform(-145, -88), rng.uniform(106, 145)
        self.top = float(np.clip(self.top, self.bottom + 206 / self.scale[2], self.bottom + 276 / self.scale[2]))
        phase = rng.integers(3)
        weights = 0.75 * np.eye(3)[phase] + 0.25 * rng.dirichlet(np.ones(3))
        self.hu = {k: float(np.dot(v, weights) * rng.normal(1, 0.1) + rng.normal(0, 5)) for k, v in _PHASES.items()}
        self.hu["liver"] -= rng.choice([0, 0, 0, 30])  # a fatty liver now and then
        self.hu["fat"] = rng.uniform(-112, -85)
        self.hu["bone"] = rng.uniform(180, 300)
        points, self.origin = self.grid()
        super().__init__(points, rng)

    def near(self, centre: ArrayLike, spread: float = 5) -> np.ndarray:
        """A place shifted with the viscera and a little by itself."""
        return np.asarray(centre, float) + self.shift + self.rng.normal(0, spread, 3)

    def size(self, axes: ArrayLike, overall: float = 0.1, each: float = 0.08) -> np.ndarray:
        """Lengths scaled together and one by one."""
        axes = np.asarray(axes, float)
        spread = np.exp(np.clip(self.rng.normal(0, overall), -2 * overall, 2 * overall))
        return axes * spread * np.exp(self.rng.normal(0, each, axes.shape))

    def along(self, points: ArrayLike, spread: float = 3, together: float = 4) -> np.ndarray:
        """A course that is shifted as a whole and wavers."""
        return self.near(points, 0) + self.rng.normal(0, together, 3) + self.rng.normal(0, spread, np.shape(points))

    def angles(self, angles: ArrayLike = (0, 0, 0), spread: float = 10) -> tuple[float, float, float]:
        x, y, z = np.asarray(angles) + self.rng.normal(0, spread, 3)
        return x, y, z

    def grid(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Template coordinates on a working grid around the body, and the scanner's mm of its first point."""
        wall = 14 + self.fat * (1 + np.abs(self.lean))
        half = self.cavity * (1 + wall / self.cavity.mean()) * self.scale[:2]
        roll = self.turn.as_euler("zxy")[0]
        reach = np.hypot(half * np.cos(roll), half[::-1] * np.sin(roll)) + 14
        low = np.array([-reach[0], -reach[1] - 26, self.bottom * self.scale[2]])
        high = np.array([reach[0], reach[1], self.top * self.scale[2]])
        axes = [np.arange(a, b + _STEP, _STEP, dtype=np.float32) for a, b in zip(low, high, strict=True)]
        shape = [len(a) for a in axes]
        inverse = (np.diag(1 / self.scale) @ self.turn.inv().as_matrix()).astype(np.float32)
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        points = []
        for row in inverse:
            bend = _noise(self.rng, shape, 70) * np.float32(6.5) + _noise(self.rng, shape, 35) * np.float32(1.5)
            points.append(row[0] * x + row[1] * y + row[2] * z + bend)
        return points, low

    def paint(self) -> None:
        """The whole body, from the outside to the inside and from large to small."""
        depth = self.paint_trunk()
        dome = self.dome()
        self.paint_chest(depth, dome)
        self.inside = np.maximum(depth + 3, self.points[2] - dome + 4)  # the cavity below the diaphragm
        self.paint_bowel()
        self.paint_liver()
        self.paint_stomach()
        self.paint_spleen()
        right = self.paint_kidney("right_kidney", 1, (64, -38, -20))
        left = self.paint_kidney("left_kidney", -1, (-62, -40, -8))
        self.paint_gallbladder()
        self.paint_vessels()
        self.paint_pancreas()
        self.paint_adrenal("right_adrenal_gland", 1, (31, -34, right[2] + 56))
        self.paint_adrenal("left_adrenal_gland", -1, (-33, -27, left[2] + 46))
        self.paint_table()

    def paint_trunk(self) -> np.ndarray:
        """Skin, fat, wall, spine and ribs. Returns the distance to the cavity's wall, negative inside."""
        x, y, _ = self.points
        a, b = self.cavity.astype(np.float32)
        radius = np.float32(self.cavity.mean())
        depth = (((np.abs(x) / a) ** 2.4 + (np.abs(y) / b) ** 2.4) ** (1 / 2.4) - 1) * radius
        depth += np.float32(1.25) * self.bumps
        cover = 14 + self.fat * (1 + self.lean[0] * x / a) * (1 + self.lean[1] * y / b)
        self.fill(depth - cover, 20)
        self.fill(depth - cover + 2, self.hu["fat"], texture=5)
        self.fill(depth - 12, self.hu["muscle"], texture=8)
        self.fill(np.abs(depth - 6) - 0.5, self.hu["fat"])
        self.fill(depth, self.hu["fat"], texture=8)
        for side in (-1, 1):
            beside_spine = [(side * 34, -78, -200), (side * 34, -78, -60), (side * 34, -78, 200)]
            psoas = [(side * 40 * 1.3, -42, -200), (side * 40, -42, -60), (side * 40 * 0.8, -42, 15)]
            for course, radii in ((beside_spine, [27 * 1.2, 27, 27]), (psoas, [17 * 1.2, 17, 5])):
                self.draw(_Tube(course, radii), self.hu["muscle"], texture=8, limit=depth - 11)
        self.paint_bones(depth)
        return depth

    def paint_bones(self, depth: np.ndarray) -> None:
        spongy, height = self.hu["bone"], self.rng.uniform(30, 36)
        phase = self.rng.uniform(0, height)
        spine = _Tube([(0, -52, -210), (0, -46, -70), (0, -48, 30), (0, -54, 210)], [23, 22, 20, 18], 1.25)
        box, distance = self.draw(spine, self.hu["muscle"] + 30)
        z = (self.points[2][box] + phase) % height
        bone = np.maximum(distance, 4 - z)
        self.fill(bone, spongy + 250, texture=30, box=box)
        self.fill(bone + 3, spongy, texture=30, box=box)
        self.draw(_Tube([(0, -78, -210), (0, -75, 0), (0, -82, 210)], [13, 13, 13]), spongy + 150)
        self.draw(_Tube([(0, -77, -210), (0, -74, 0), (0, -81, 210)], [8, 8, 8]), 25)
        self.draw(_Tube([(0, -92, -210), (0, -90, 0), (0, -96, 210)], [5, 5, 5]), spongy + 200, limit=depth - 10)
        x, y, z = self.points
        # Ribs run in the wall, lower in front: level sets of a slanted height.
        slant = z - np.float32(0.55) * (y + 80) + np.float32(0.12) * np.abs(x) + phase
        pitch = np.float32(28)
        across = np.abs(slant % pitch - pitch / 2)
        rib = np.sqrt(across**2 + np.where(np.abs(depth - 6) < 12, depth - 6, 12) ** 2) - 4.5
        # No ribs below the costal arch and none in the anterior midline.
        arch = np.maximum(-30 + 0.9 * (y + 40) - z, 22 - np.abs(x))
        self.fill(np.maximum(rib, arch * 0.5), spongy + 200, texture=40)

    def dome(self) -> np.ndarray:
        """Height z of the diaphragm above each point."""
        x, y, _ = self.points
        right, left = self.rng.uniform(85, 110), self.rng.uniform(76, 98)
        lift, offset = np.float32(self.shift[2]), np.float32(self.shift[0])
        heights = [
            np.float32(top) + lift - ((x - offset - middle) ** 2 + np.float32(0.55) * (y - 12) ** 2) / np.float32(width)
            for top, middle, width in ((right, 60, 85), (left, -62, 85), (74, 5, 120))
        ]
        return np.maximum.reduce(heights)

    def paint_chest(self, depth: np.ndarray, dome: np.ndarray) -> None:
        x, y, z = self.points
        lung = np.maximum(np.maximum(depth + 2, dome - z), 30 - np.hypot(x, (y + 35) * np.float32(0.6)))
        self.fill(lung - 3, self.hu["muscle"], texture=5)
        self.fill(lung, self.rng.uniform(-880, -780), texture=40)
        heart = _Ellipsoid(self.near((-18, 34, 124), 5), self.size((60, 46, 46)), self.angles((0, 15, 20), 5))
        box, distance = self.draw(heart, self.hu["muscle"] + 30, halo=5, limit=depth + 3)
        self.fill(distance + 10, 0.5 * (self.hu["aorta"] + self.hu["cava"]), box=box)

    def paint_bowel(self) -> None:
        """Colon and small bowel: unlabelled, of every density the organs have."""
        rng = self.rng
        ascending = [(96, -20, -150), (98, -12, -90), (92, 2, -45), (80, 30, -30)]
        transverse = [(80, 30, -30), (45, 68, -45), (0, 76, -55), (-50, 68, -35), (-88, 30, 5)]
        descending = [(-88, 30, 5), (-104, -5, -20), (-102, -18, -90), (-95, -10, -160)]
        for course, radius in ((ascending, 23), (transverse, 18), (descending, 15)):
            tube = _Tube(self.along(course, 6), self.size([radius] * len(course), 0.15, 0.15))
            self.paint_hollow(tube, 0.5, self.inside)
        for _ in range(rng.integers(9, 14)):
            start = np.array([rng.uniform(-75, 75), rng.uniform(0, 70), rng.uniform(-140, -15)])
            points = start + np.cumsum(rng.normal(0, (26, 12, 15), (5, 3)), axis=0)
            tube = _Tube(np.clip(points, (-95, -15, -160), (95, 78, 5)), self.size([13] * 5, 0.12, 0.1))
            self.paint_hollow(tube, 0.15, self.inside)

    def paint_hollow(self, tube: _Tube, gas: float, limit: np.ndarray | None = None) -> None:
        """A piece of bowel: wall, and as content fluid, chyme as dense as an organ, oral contrast or gas."""
        rng = self.rng
        box, distance = self.draw(tube, self.hu["wall"], halo=1.5, rough=2, limit=limit)
        content = rng.choice([rng.uniform(0, 30), rng.uniform(35, 120), rng.uniform(150, 350)], p=[0.35, 0.5, 0.15])
        self.fill(distance + rng.uniform(2, 4), content, texture=rng.choice([5, 25]), box=box)
        if rng.random() < gas:
            level = rng.uniform(-0.5, 0.8)
            self.fill(np.maximum(distance + 3, (level - self.bumps[box]) * 6), -850, box=box)

    def paint_liver(self) -> None:
        hu, look = self.hu["liver"], {"rough": 4, "texture": 7, "limit": self.inside}
        centre = self.near((0, -4, 34), 6)
        centre[0] = 0.62 * self.cavity[0] + self.rng.normal(0, 4)  # along the wall
        right = _Ellipsoid(centre, self.size((60, 82, 82), 0.08), self.angles((0, 8, 8), 6))
        left = _Ellipsoid(self.near((6, 38, 58), 7), self.size((72, 34, 36), 0.14), self.angles((0, -14, 0), 8))
        self.draw(left, hu, "liver", halo=2, **look)
        self.draw(right, hu, "liver", **look)
        hilum = self.near((36, 8, 40), 3)
        for end in ((92, -20, 55), (85, 25, 60), (60, -5, 78), (10, 40, 62)):
            course = [hilum, (hilum + self.near(end)) / 2 + self.rng.normal(0, 5, 3), self.near(end)]
            self.draw(_Tube(course, [5, 4, 2]), self.hu["veins"], keep=True, limit=self.inside)
        for _ in range(self.rng.integers(0, 4)):
            cyst = _Ellipsoid(self.near((75, 0, 35), 28), self.size((8, 8, 8), 0.4))
            box, distance = self.draw(cyst, hu, keep=True, texture=7, limit=self.inside)
            only_liver = np.maximum(distance, (0.6 - self.share["liver"][box]) * 5)
            self.fill(only_liver, self.rng.uniform(0, 90), keep=True, box=box)

    def paint_spleen(self) -> None:
        centre, axes = self.near((0, -26, 36), 6), self.size((40, 53, 58), 0.13)
        centre[0] = -0.72 * self.cavity[0] + self.rng.normal(0, 4)  # along the wall
        spleen = _Ellipsoid(centre, axes, self.angles((15, 0, -15), 9))
        # Hollow towards the stomach and the kidney.
        hollow = _Ellipsoid(centre + (42, 24, 0), axes * (0.8, 0.72, 0.9)).distance(self.points)
        limit = np.maximum(self.inside, -hollow)
        self.draw(spleen, self.hu["spleen"], "spleen", halo=2, rough=3, limit=limit, texture=7)

    def paint_stomach(self) -> None:
        rng = self.rng
        course = [(-58, -12, 78), (-66, 2, 56), (-66, 26, 28), (-42, 48, 4), (-8, 50, -4), (20, 38, 4)]
        radii = self.size([34, 36, 31, 23, 18, 11], 0.16, 0.06)
        tube = _Tube(self.along(course, 4, 6), radii)
        box, distance = self.draw(tube, self.hu["wall"] + 5, "stomach", halo=2, rough=3, limit=self.inside)
        lumen = distance + rng.uniform(4, 7)
        content = rng.choice([rng.uniform(0, 30), rng.uniform(30, 110), rng.uniform(140, 300)], p=[0.4, 0.5, 0.1])
        self.fill(lumen, content, texture=rng.choice([4, 20, 35]), keep=True, box=box)
        if rng.random() < 0.7:
            level = np.float32(rng.uniform(18, 52) + self.shift[1])
            self.fill(np.maximum(lumen, level - self.points[1][box]), -900, keep=True, box=box)
        # The oesophagus comes down beside the aorta. It is led on into the stomach, which covers that part, so that
        # the two also meet where the diaphragm cuts the fundus off.
        top = [(-4, -12, 215), (-6, -10, 130), (-16, -6, 96)]
        gullet = np.concatenate([np.asarray(top) + self.shift * (1, 1, 0), [tube.points[0] + (12, 3, -8)]])
        radii = self.size([7.5, 7.5, 7, 7], 0.1, 0.08)
        gullet = np.concatenate([gullet + rng.normal(0, 2, 3), [tube.points[1]]])
        self.gullet = _Tube(gullet, [*radii, radii[-1]])

    def paint_kidney(self, organ: str, side: int, centre: ArrayLike) -> np.ndarray:
        centre, axes = self.near(centre, 6), self.size((25, 24, 48), 0.11)
        kidney = _Ellipsoid(centre, axes, self.angles((12, side * -12, side * -25), 7))
        box, distance = self.draw(kidney, self.hu["cortex"], organ, halo=self.rng.uniform(2, 8), rough=1.5)
        columns = np.maximum(distance + 7, (np.abs(self.bumps[box]) - 1.1) * 6)
        self.fill(columns, self.hu["medulla"], texture=6, keep=True, box=box)
        sinus = _Ellipsoid(centre + (-side * 17, 8, 0), axes * (0.62, 0.4, 0.45))
        self.draw(sinus, self.hu["fat"] + 20, rough=1)
        pelvis = _Ellipsoid(centre + (-side * 18, 7, -4), axes * (0.35, 0.22, 0.25))
        self.draw(pelvis, self.rng.uniform(5, 30))
        return centre

    def paint_gallbladder(self) -> None:
        axes = self.size((13, 14, 28), 0.18)
        gallbladder = _Ellipsoid(self.near((48, 44, -4), 6), axes, self.angles((28, 10, 0), 14))
        self.draw(gallbladder, self.rng.uniform(0, 45), "gallbladder", halo=1, limit=self.inside, texture=3)

    def paint_vessels(self) -> None:
        def course(points: ArrayLike) -> np.ndarray:
            points = np.array(points, float)
            points += shift + self.rng.normal(0, 3, 3) + self.rng.normal(0, (2.5, 1.5, 0), points.shape)
            return points

        shift = self.shift * (0.5, 0.3, 0)
        aorta = course([(-8, -14, -84), (-12, -16, -40), (-12, -18, 10), (-12, -20, 70), (-18, -28, 215)])
        cava = course([(18, -16, -100), (22, -14, -50), (24, -12, 0), (25, -6, 45), (24, 4, 92), (18, 14, 125)])
        for side in (-1, 1):  # iliac vessels below the fork
            for root, key in ((aorta[0], "aorta"), (cava[0], "cava")):
                iliac = _Tube([root, root + (side * 18, -4, -45), root + (side * 40, -8, -90)], [8, 7, 6])
                self.draw(iliac, self.hu[key])
        radii = self.size([10, 10, 10, 9.5, 9], 0.1, 0.05)
        flat = _Tube(cava, [10, 10.5, 11, 11, 11, 11], self.rng.uniform(1.05, 1.5))
        self.draw(flat, self.hu["cava"], "inferior_vena_cava", halo=1)
        self.draw(_Tube(aorta, radii + 0.7), self.hu["aorta"], "aorta", halo=2)
        mesenteric = [aorta[2], aorta[2] + (2, 24, -5), aorta[1] + (8, 36, -20), aorta[0] + (10, 42, -40)]
        self.draw(_Tube(mesenteric, [4.5, 4, 4, 3]), self.hu["aorta"], halo=2)
        self.draw(_Tube(aorta[1:], radii[1:] + 0.7), self.hu["aorta"], "aorta")
        outside_stomach = (self.share["stomach"] - 0.5) * np.float32(_EDGE)
        self.draw(self.gullet, self.hu["wall"], "oesophagus", limit=outside_stomach)

    def paint_pancreas(self) -> None:
        course = self.along([(32, 14, -26), (26, 20, -8), (2, 28, 4), (-24, 22, 14), (-52, 8, 30), (-76, 0, 44)], 3, 5)
        duodenum = course[[2, 0, 0]] + [(30, 8, 12), (26, -4, 0), (8, -10, -30)]
        self.paint_hollow(_Tube(duodenum, [12, 13, 12]), 0.2)
        pancreas = _Tube(course, self.size([14.5, 14, 9.5, 10.5, 10.5, 8.5], 0.12, 0.08), 1.1)
        self.draw(pancreas, self.hu["pancreas"], "pancreas", halo=2, rough=2.5, texture=12)
        behind = course[1:] + (0, -12, 2)
        confluence = behind[1] + (6, 0, -4)
        splenic = np.concatenate([[confluence], behind[2:]])
        portal = [confluence, confluence + (16, 0, 16), self.near((38, 8, 42), 2), self.near((56, 4, 48), 3)]
        mesenteric = [confluence, confluence + (2, 4, -25), confluence + (0, 12, -70)]
        self.draw(_Tube(mesenteric, [6.5, 6, 5]), self.hu["veins"], halo=1)
        self.draw(_Tube(splenic, [6, 5.5, 5, 4.5]), self.hu["veins"], "portal_and_splenic_veins", halo=1)
        self.draw(_Tube(portal, [8.5, 8.5, 8.5, 5.5]), self.hu["veins"], "portal_and_splenic_veins", halo=1)

    def paint_adrenal(self, organ: str, side: int, centre: ArrayLike) -> None:
        """Two thin limbs that open backwards."""
        centre = np.asarray(centre, float) + self.rng.normal(0, 3, 3)
        spread, length = self.rng.uniform(14, 24), self.size((2.6, 10, 11.5), 0.1)
        for way in (-1, 1):
            limb = _Ellipsoid(centre + (way * 3.2, 0, 0), length, (0, 0, way * spread + side * 8))
            self.draw(limb, self.hu["adrenal"], organ, halo=2 if way == -1 else 0)

    def paint_table(self) -> None:
        x, y = (o + i * _STEP for o, i in zip(self.origin, np.ogrid[: self.shape[0], : self.shape[1]], strict=False))
        air = self.image < -900
        table = np.abs(y - (self.origin[1] + 14) - (x / 60) ** 2 * 0.6)[..., None] - 1.5
        cover = np.clip(0.5 - table / _EDGE, 0, 1) * air
        self.image += cover * np.float32(900)


def synthetic_ct_case(seed: int | np.random.SeedSequence) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """One made-up abdominal CT and its label map, on a grid and in an orientation of its own.

    Returns:
        the image (int16, HU) and the label map (uint8, 0 to 13, see `BTCV_LABELS`) with the same affine. Voxels are
        0.7 to 1.0 mm in plane and 2 to 5 mm between slices; the axes are stored as one of `ORIENTATIONS`.
    """
    rng = np.random.default_rng(seed)
    body = _Body(rng)
    body.paint()
    in_plane, between = rng.uniform(0.7, 1.0), rng.uniform(2.0, 5.0)
    spacing = np.array([in_plane, in_plane, between]).round(4)
    counts = ((np.array(body.shape) - 1) * _STEP / spacing).astype(int)
    where = [np.arange(n) * s / _STEP for n, s in zip(counts, spacing, strict=True)]
    hu = _scan(body.image, where, between, rng)
    label = _label(body.share, where)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = body.origin + rng.uniform(-60, 60, 3)
    code = ORIENTATIONS[rng.integers(len(ORIENTATIONS))]
    return _stored(hu, affine, code), _stored(label, affine, code)


def _scan(hu: np.ndarray, where: Sequence[np.ndarray], thickness: float, rng: np.random.Generator) -> np.ndarray:
    """The image on the native grid: slices have a thickness, and the detector is noisy."""
    offsets = np.array([-1, 0, 1]) * thickness / _STEP / 3
    volume = sum(_interpolate(hu, 2, where[2] + o) for o in offsets) / np.float32(len(offsets))
    volume = _interpolate(_interpolate(volume, 1, where[1]), 0, where[0])
    noise = rng.standard_normal(volume.shape, dtype=np.float32)
    noise[1:] += noise[:-1]
    noise[:, 1:] += noise[:, :-1]
    # Air is quieter than tissue: the few photons that tissue lets through make the noise.
    noise *= np.where(volume < -900, np.float32(2), np.float32(rng.uniform(5, 11)))
    volume += noise
    return np.clip(np.rint(volume, out=volume), -1024, 3071, out=volume).astype(np.int16)


def _label(share: dict[str, np.ndarray], where: Sequence[np.ndarray]) -> np.ndarray:
    """The label map on the native grid: the organ that has more than half of a voxel."""
    label = np.zeros([len(w) for w in where], np.uint8)
    for organ, volume in share.items():
        used = find_objects((volume != 0).view(np.uint8))[0]
        box = tuple(slice(*np.searchsorted(w, (u.start - 1, u.stop))) for w, u in zip(where, used, strict=True))
        for axis in (2, 1, 0):
            volume = _interpolate(volume, axis, where[axis][box[axis]])
        label[box][volume > 0.5] = BTCV_LABELS[organ]
    return label


def _stored(array: np.ndarray, affine: np.ndarray, code: str) -> nib.Nifti1Image:
    """A NIfTI image whose axes run as `code` says, from an array whose axes run to the right, front and head."""
    image = nib.Nifti1Image(array, affine).as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code)))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    return image


def make_synthetic_ct(
    output_dir: str | Path,
    cases: int = 12,
    seed: int = 0,
    processes: int | None = None,
    dicom: bool = False,
    test_cases: int | None = None,
) -> Path:
    """Write made-up abdominal CTs as a data set: `dataset.json` (decathlon layout), images and label maps.

    An eighth of the cases (rounded, at least one) is for validation, a sixth for testing, or `test_cases`. The same
    `cases` and `seed` give the same volumes, whatever the number of processes; a case depends on `seed` and its number
    alone.

    Args:
        output_dir: an empty or new folder, or one that holds this very data set, which is then written again.
        cases: how many, 3 at least.
        seed: 0 or above.
        processes: how many work at the same time; by default one for each core.
        dicom: write each image as a DICOM series, a folder of axial slices, and its label map on the same grid.
        test_cases: for testing, the last ones; one at least is left for training.

    Returns:
        the path of `dataset.json`.

    Raises:
        DataError: a wrong number, or a folder that holds something else or cannot be written to.
    """
    check_value("cases", cases, Whole(3))  # one each for training, validation and test
    check_value("seed", seed, Whole(0))
    validations = max(1, round(cases / 8))
    tests = max(1, round(cases / 6)) if test_cases is None else test_cases
    check_value("test_cases", tests, Whole(1, cases - validations - 1))
    datalist = _datalist(cases, validations, tests, seed, "" if dicom else ".nii.gz")
    items = [item for split in SPLITS for item in datalist[split]]
    files = [name for item in items for name in item.values()]
    work = list(zip(items, np.random.SeedSequence(seed).spawn(cases), strict=True))
    write = partial(_write_case, Path(output_dir))
    return make_data_set(output_dir, {"dataset.json": datalist}, files, write, work, processes, "case")


def _datalist(cases: int, validations: int, tests: int, seed: int, ending: str) -> dict:
    first_test = cases - tests
    items = [
        {"image": f"images{folder}/ct_{k:03d}{ending}", "label": f"labels{folder}/ct_{k:03d}.nii.gz"}
        for k in range(cases)
        for folder in ["Tr" if k < first_test else "Ts"]
    ]
    return {
        "name": "synthetic_abdominal_ct",
        "description": f"Made-up abdominal CTs to try the software on: {cases} cases, seed {seed}. Not for real scans.",
        "synthetic": True,
        "seed": seed,
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(value): name for name, value in BTCV_LABELS.items()},
        "training": items[: first_test - validations],
        "validation": items[first_test - validations : first_test],
        "test": items[first_test:],
    }


def _write_case(output_dir: Path, case: tuple[dict[str, str], np.random.SeedSequence]) -> None:
    item, seed = case
    image, label = synthetic_ct_case(seed)
    if not item["image"].endswith(".nii.gz"):
        # as scanners store them: axial slices, from the feet to the head
        image, label = (_stored(*_to_right_front_head(volume), "LPS") for volume in (image, label))
        folder = output_dir / item["image"]
        write_ct_series(folder, np.asanyarray(image.dataobj), image.affine, f"SYNTHETIC-{folder.name}")
    for name, volume in zip((item["image"], item["label"]), (image, label), strict=True):
        if name.endswith(".nii.gz"):
            with atomic_path(output_dir / name) as temporary:
                nib.save(volume, temporary)


def _to_right_front_head(volume: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine with the axes to the right, front and head."""
    canonical = nib.as_closest_canonical(volume)
    return np.asanyarray(canonical.dataobj), canonical.affine
