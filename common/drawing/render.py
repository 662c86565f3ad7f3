"""Draw hand meshes over a photo: a closed shading formula on the faces that `raster.py` finds, with smooth edges."""

import numpy as np

from common.drawing.raster import (
    HandMesh,
    Nearest,
    Raster,
    Triangles,
    Window,
    bands,
    cut_into_spans,
    project_faces,
    ranges,
    rasterize_window,
)
from common.drawing.render_pytorch3d import rasterize as rasterize_pytorch3d
from common.options import RENDERERS

# Colour of a hand (right, left), RGB in 0..1. Everything that draws or exports a hand takes it from here.
HAND_RGB = ((0.56, 0.30, 0.92), (0.18, 0.70, 0.36))

# The look of the published overlay is `0.25 + 0.3 max(0, n.l) + 0.2 s`: grey light from everywhere, grey light from a
# lamp, and a colour s of the hand. The same formula with less grey and more colour reads better on a photo; the three
# weights sum to 1, so nothing is clipped.
AMBIENT, DIFFUSE, TINT = 0.04, 0.46, 0.50
# Unit vector to the lamp, in `cam`: above the viewer's left shoulder. The published lamp stands 1 m above the camera,
# which looks the same at the usual distance, but makes the look depend on a hand's distance.
TO_LAMP_CAM = np.array([-0.36, -0.60, -0.72]) / np.linalg.norm([-0.36, -0.60, -0.72])

SUBSAMPLES = 3  # an edge pixel's colour is the mean of 3 x 3 samples; odd, so that one is at the pixel center
EDGE_DEPTH = 0.003  # m; a larger step between neighbouring pixels is an edge of one hand before itself


def render_hands(
    image_rgb: np.ndarray, hands: list[HandMesh], renderer: str = "auto", antialias: bool = True
) -> np.ndarray:
    """Draw hands over a photo, opaque, with the nearer surface in front.

    Args:
        image_rgb: (H, W, 3) uint8, left as it is.
        hands: any number, in any order; those that cannot be drawn are skipped (see `project_faces`).
        renderer: "auto" and "numpy" are `raster.py`; "pytorch3d" lets PyTorch3D decide which face is seen, for
            comparison (far slower on a CPU, not anti-aliased).
        antialias: smooth edges. Only pixels beside an edge change, on both of its sides.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UserError: PyTorch3D is chosen and not installed.
        ValueError: an unknown renderer.
    """
    if renderer not in RENDERERS:
        raise ValueError(f"renderer must be one of {', '.join(RENDERERS)}, not {renderer!r}")
    canvas = np.array(image_rgb)
    height, width = canvas.shape[:2]
    triangles = [project_faces(hand) for hand in hands]
    if renderer == "pytorch3d":
        _paint(canvas, rasterize_pytorch3d(hands, height, width), triangles, Window(0, 0, width, height))
        return canvas
    for band in bands(triangles, height, width):
        # One more row on either side, to find edges between bands.
        window = band._replace(y0=max(band.y0 - 1, 0), y1=min(band.y1 + 1, height))
        raster = rasterize_window(triangles, window)
        inner = Raster(*(part[band.y0 - window.y0 : band.y1 - window.y0] for part in raster))
        _paint(canvas, inner, triangles, band)
        if antialias:
            edges = _edge_pixels(raster)[band.y0 - window.y0 : band.y1 - window.y0]
            _paint_edges(canvas, image_rgb, edges, triangles, band)
    return canvas


def _shade(triangles: Triangles, face: np.ndarray, x_image: np.ndarray, y_image: np.ndarray) -> np.ndarray:
    """Colours of a hand's surface points: (N,) faces and px -> (N, 3) RGB in 0..255, float."""
    # One gather per coefficient is several times as fast as gathering whole matrices.
    nx, ny, nz = (k[0][face] * x_image + k[1][face] * y_image + k[2][face] for k in triangles.normals)
    towards_lamp = nx * TO_LAMP_CAM[0] + ny * TO_LAMP_CAM[1] + nz * TO_LAMP_CAM[2]
    facing = np.maximum(towards_lamp, 0) / np.maximum(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-30)
    return (255 * DIFFUSE) * facing[:, None] + 255 * (AMBIENT + TINT * np.asarray(HAND_RGB[triangles.side]))


def _paint(canvas: np.ndarray, raster: Raster, triangles: list[Triangles], window: Window) -> None:
    """Colour the window's pixels in `canvas` where the raster has a hand."""
    for hand, part in enumerate(triangles):
        row, column = np.nonzero(raster.hand == hand)
        x, y = column + window.x0, row + window.y0
        canvas[y, x] = (_shade(part, raster.face[row, column], x, y) + 0.5).astype(np.uint8)


def _edge_pixels(raster: Raster) -> np.ndarray:
    """(H, W) bool: the pixels on both sides of an outline, of one hand before the other or of a hand before itself."""
    hand, depth = raster.hand, np.where(raster.hand < 0, 0, raster.depth)
    edge = np.zeros(hand.shape, bool)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        step = (hand[here] != hand[there]) | (np.abs(depth[here] - depth[there]) > EDGE_DEPTH)
        edge[here] |= step
        edge[there] |= step
    return edge


def _paint_edges(
    canvas: np.ndarray, image_rgb: np.ndarray, edges: np.ndarray, triangles: list[Triangles], window: Window
) -> None:
    """Give the window's edge pixels in `canvas` the mean colour of SUBSAMPLES x SUBSAMPLES samples."""
    n = SUBSAMPLES
    height, width = edges.shape
    pixel_row, pixel_column = np.nonzero(edges)
    before = np.concatenate([[0], np.cumsum(edges)])  # edge pixels before a pixel, in reading order
    nearest = Nearest(len(pixel_row) * n * n)
    for hand, part in enumerate(triangles):
        # A grid n times as fine, with samples at integer coordinates again; of its pixels only edge pixels are kept.
        corners = (part.corners_image - (window.x0, window.y0)) * n + (n - 1) / 2
        spans = cut_into_spans(part, corners, height * n, width * n)
        row_start = spans.row // n * width
        first = before[row_start + spans.start // n]
        span, pixel = ranges(first, before[row_start + (spans.stop - 1) // n + 1] - first)
        for k in range(n):
            column = pixel_column[pixel] * n + k
            inside = (column >= spans.start[span]) & (column < spans.stop[span])
            s, sample = span[inside], (pixel * n + spans.row[span] % n)[inside] * n + k
            nearest.add(sample, spans.depth(s, column[inside]), hand, part.faces[spans.triangle[s]])
    x, y = pixel_column + window.x0, pixel_row + window.y0
    colours = np.repeat(image_rgb[y, x].astype(np.float64), n * n, axis=0)
    for hand, part in enumerate(triangles):
        own = np.flatnonzero(nearest.hand == hand)
        pixel, sample = own // (n * n), own % (n * n)
        x_own, y_own = x[pixel] + (sample % n - (n - 1) / 2) / n, y[pixel] + (sample // n - (n - 1) / 2) / n
        colours[own] = _shade(part, nearest.face[own], x_own, y_own)
    canvas[y, x] = (colours.reshape(-1, n * n, 3).mean(1) + 0.5).astype(np.uint8)
