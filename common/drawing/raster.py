"""Which face of which hand is seen at each pixel: a z-buffer in NumPy, exact to the pixel.

The algorithm walks the rows of each triangle. On a row, a triangle is one interval; its ends come from its edges, and
an edge shared by two triangles gives both of them the same floating-point number, so a closed surface has no cracks.
All geometry is float64. A pixel (row r, column c) is sampled at x = c, y = r of the frame `image`, as in `Camera`, and
belongs to a triangle if that point is inside or on its border.

`cv2.triangleRasterize` (OpenCV 5.0, float32) finds practically the same silhouettes, 0.85 to 1.3 times as fast within
the hands' bounding box. But smooth edges need samples of the edge pixels only, which it cannot draw alone: rendering
with it took about three times as long.

Bands of rows within the hands' bounding box are drawn one after another, so memory depends neither on the photo's
size nor on how far a hand reaches beyond it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.utils.camera import Camera, project

# What lies beyond these is a failed prediction, not a hand, and float64 loses its digits. A face of less than the
# smallest area is a line, whose pixels belong to its neighbours.
FARTHEST, NEAREST, FARTHEST_PIXEL, SMALLEST_AREA = 1e6, 1e-6, 1e9, 1e-12  # m, m, px, px^2
BAND_PIXELS = 1 << 17  # pixels worked on at once: as much as fits a CPU cache


@dataclass(frozen=True)
class HandMesh:
    """One hand, placed, with the camera that maps it to the photo.

    Attributes:
        vertices_cam: (V, 3) m, x right, y down, z away from the camera.
        faces: (F, 3) vertex indices, counter-clockwise seen from outside.
        side: RIGHT (0) or LEFT (1).
        camera: to pixels of the photo. Hands that occlude each other need cameras that agree on z.
    """

    vertices_cam: np.ndarray
    faces: np.ndarray
    side: int
    camera: Camera


class Raster(NamedTuple):
    """What is seen at each pixel of an image."""

    hand: np.ndarray  # (H, W) int16, index into the list of hands; -1 where there is none
    face: np.ndarray  # (H, W) int32, index into that hand's faces; -1
    depth: np.ndarray  # (H, W) float32, z in m; inf


class Triangles(NamedTuple):
    """One hand in the image: T of its F faces can be drawn."""

    corners_image: np.ndarray  # (T, 3, 2) px
    depth: np.ndarray  # (T, 3) z of the corners, m
    faces: np.ndarray  # (T,) which of the hand's faces
    orthographic: bool
    side: int
    normals: np.ndarray  # (3, 3, F): component i of the normal at x, y points to [i, 0] x + [i, 1] y + [i, 2]; in `cam`


class Window(NamedTuple):
    """A rectangle of pixels: x0 <= column < x1, y0 <= row < y1."""

    x0: int
    y0: int
    x1: int
    y1: int


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) and (F, 3) -> (V, 3) unit normals, the faces' normals weighted by area; 0 where a vertex has no face."""
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    corners = vertices[faces]
    # The cross product is twice as long as the triangle's area: the weight comes free.
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], face_normals)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)


def project_faces(hand: HandMesh) -> Triangles:
    """The faces of a hand that can be drawn.

    Left out: every face of a hand with a vertex that is not finite or absurdly far; with a pinhole, faces that touch
    the camera's plane or lie behind it; faces without area in the image or absurdly far from it.
    """
    vertices = np.asarray(hand.vertices_cam, np.float64).reshape(-1, 3)
    faces = np.asarray(hand.faces, np.int64).reshape(-1, 3)
    if not (np.abs(vertices) < FARTHEST).all():  # false for NaN, too
        faces = faces[:0]
    pinhole = not hand.camera.orthographic
    with np.errstate(all="ignore"):  # what is not finite here is not drawn
        corners = project(vertices, hand.camera).astype(np.float64)[faces]
    drawn = (np.abs(corners) < FARTHEST_PIXEL).all((1, 2))
    if pinhole:
        drawn &= (vertices[faces, 2] > NEAREST).all(1)
    weights = 1 / np.maximum(vertices[:, 2], NEAREST) if pinhole else np.ones(len(vertices))
    corners[~drawn] = 0
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    drawn &= np.abs(area) > 2 * SMALLEST_AREA
    # Barycentric coordinate i is affine over the image: 1 at corner i, 0 on the opposite edge. So are normals
    # interpolated with it; with perspective they are so up to their length, if each corner has the weight 1/z.
    following, preceding = np.roll(corners, -1, axis=1), np.roll(corners, -2, axis=1)
    x, y = following[..., 1] - preceding[..., 1], preceding[..., 0] - following[..., 0]
    planes = np.stack([x, y, -x * following[..., 0] - y * following[..., 1]], axis=1)  # (F, coefficient, corner)
    planes /= np.where(drawn, area, 1)[:, None, None]
    normals = planes @ (vertex_normals(vertices, faces) * weights[:, None])[faces]
    depth = vertices[:, 2][faces]
    normals = np.ascontiguousarray(normals.transpose(2, 1, 0))
    return Triangles(corners[drawn], depth[drawn], np.flatnonzero(drawn), not pinhole, hand.side, normals)


def rasterize(hands: list[HandMesh], height: int, width: int) -> Raster:
    """What is seen at each pixel of an image of `height` x `width`.

    The smaller z is seen, within a hand and between hands, whatever their cameras. At exactly equal z the later hand
    of the list is.
    """
    raster = empty_raster(height, width)
    triangles = [project_faces(hand) for hand in hands]
    for window in bands(triangles, height, width):
        part = rasterize_window(triangles, window)
        for whole, piece in zip(raster, part, strict=True):
            whole[window.y0 : window.y1, window.x0 : window.x1] = piece
    return raster


def empty_raster(height: int, width: int) -> Raster:
    """An image without hands."""
    return Raster(
        np.full((height, width), -1, np.int16),
        np.full((height, width), -1, np.int32),
        np.full((height, width), np.inf, np.float32),
    )


def bands(triangles: list[Triangles], height: int, width: int) -> Iterator[Window]:
    """Cut the hands' common bounding box, one pixel wider for smooth edges, into bands of rows."""
    corners = np.concatenate([part.corners_image.reshape(-1, 2) for part in triangles] or [np.zeros((0, 2))])
    if not len(corners) or not height or not width:
        return
    x0, y0 = np.clip(np.floor(corners.min(0)) - 1, 0, [width, height]).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(corners.max(0)) + 2, 0, [width, height]).astype(int).tolist()
    if x0 >= x1:
        return
    rows = max(1, BAND_PIXELS // (x1 - x0))
    for top in range(y0, y1, rows):
        yield Window(x0, top, x1, min(top + rows, y1))


def ranges(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All of first[i], ..., first[i] + count[i] - 1, for every i -> (i of each, the values)."""
    end = np.cumsum(count)
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + np.repeat(first - (end - count), count)


class Spans(NamedTuple):
    """Rows of triangles: the samples start <= column < stop of a row are inside."""

    triangle: np.ndarray
    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    key: np.ndarray  # at `start`; depth as something affine over the image: z, or -1/z for a pinhole
    key_step: np.ndarray  # per sample
    orthographic: bool

    def depth(self, span: np.ndarray, column: np.ndarray) -> np.ndarray:
        """z in m at columns of spans."""
        key = self.key[span] + (column - self.start[span]) * self.key_step[span]
        return key if self.orthographic else -1 / key


def cut_into_spans(triangles: Triangles, corners: np.ndarray, height: int, width: int) -> Spans:
    """Cut triangles into rows of a grid of samples at integer coordinates; `corners`, (T, 3, 2), in its units."""
    keys = triangles.depth if triangles.orthographic else -1 / triangles.depth
    x_min, x_max = corners[..., 0].min(1), corners[..., 0].max(1)
    by_y = np.argsort(corners[..., 1], axis=1)[..., None]
    top, middle, bottom = np.take_along_axis(np.dstack([corners, keys]), by_y, axis=1).transpose(1, 0, 2)
    first = np.clip(np.ceil(top[:, 1]), 0, height).astype(np.int64)
    last = np.clip(np.floor(bottom[:, 1]), -1, height - 1).astype(np.int64)
    beside = (x_max < 0) | (x_min > width - 1)
    triangle, row = ranges(first, np.where(beside, 0, np.maximum(last - first + 1, 0)))

    # A row crosses the edge from top to bottom, and one of the two by way of the middle. Edges are always followed
    # downwards, so that both of their triangles compute the same numbers.
    x_a, key_a = _edges_at(top, bottom, triangle, row)
    short = np.where(row < middle[triangle, 1], triangle, triangle + len(middle))
    x_b, key_b = _edges_at(np.concatenate([top, middle]), np.concatenate([middle, bottom]), short, row)
    swap = x_a > x_b
    left, right = np.where(swap, x_b, x_a), np.where(swap, x_a, x_b)
    key, difference = np.where(swap, key_b, key_a), np.where(swap, key_a - key_b, key_b - key_a)
    start = np.clip(np.ceil(left), 0, width).astype(np.int64)
    stop = np.clip(np.floor(right) + 1, 0, width).astype(np.int64)
    step = difference / np.where(right > left, right - left, 1)
    key += (start - left) * step
    return Spans(triangle, row, start, np.maximum(stop, start), key, step, triangles.orthographic)


def _edges_at(upper: np.ndarray, lower: np.ndarray, edge: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and key where edges cross rows; edges go from `upper` to `lower`, (E, [x, y, key]), `edge` indexes them."""
    height = lower[:, 1] - upper[:, 1]
    steps = (lower - upper) / np.where(height > 0, height, 1)[:, None]
    down = row - upper[edge, 1]
    return upper[edge, 0] + down * steps[edge, 0], upper[edge, 2] + down * steps[edge, 2]


class Nearest:
    """A z-buffer over a flat list of samples."""

    def __init__(self, size: int) -> None:
        self.hand = np.full(size, -1, np.int16)
        self.face = np.full(size, -1, np.int32)
        self.depth = np.full(size, np.inf)

    def add(self, sample: np.ndarray, depth: np.ndarray, hand: int, face: np.ndarray) -> None:
        """Offer surface points of one hand: their samples (any number of points per sample), z in m, and faces."""
        np.minimum.at(self.depth, sample, depth)
        seen = depth == self.depth[sample]
        sample = sample[seen]
        self.hand[sample] = hand
        self.face[sample] = face[seen]


def rasterize_window(triangles: list[Triangles], window: Window) -> Raster:
    """`rasterize` for a part of the image."""
    height, width = window.y1 - window.y0, window.x1 - window.x0
    nearest = Nearest(height * width)
    for hand, part in enumerate(triangles):
        spans = cut_into_spans(part, part.corners_image - (window.x0, window.y0), height, width)
        span, column = ranges(spans.start, spans.stop - spans.start)
        face = part.faces[spans.triangle[span]]
        nearest.add(spans.row[span] * width + column, spans.depth(span, column), hand, face)
    return Raster(*(flat.reshape(height, width) for flat in (nearest.hand, nearest.face, nearest.depth)))
