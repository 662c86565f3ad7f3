"""PyTorch3D decides which face is seen, for comparison with images made by the published code.

The rest is `render.py`'s, so the two differ only where PyTorch3D decides otherwise. On a CPU it tests every face at
every pixel and is 35 to 230 times slower.
"""

import numpy as np
import torch

from common.drawing.raster import HandMesh, Raster, empty_raster, project_faces
from common.errors import UserError


def rasterize(hands: list[HandMesh], height: int, width: int) -> Raster:
    """`raster.rasterize` by PyTorch3D, on the CPU and in float32: same cameras, same pixel centres.

    Raises:
        UserError: PyTorch3D is not installed.
    """
    try:
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise UserError(
            f"--renderer pytorch3d needs PyTorch3D, which cannot be imported ({error}): install it or use auto"
        ) from error
    raster = empty_raster(height, width)
    for index, hand in enumerate(hands):
        triangles = project_faces(hand)
        if not len(triangles.faces) or not height or not width:
            continue
        corners = torch.from_numpy(_to_ndc(triangles.corners_image, triangles.depth, height, width)).float()
        face, depth, _, _ = rasterize_meshes(
            Meshes([corners.reshape(-1, 3)], [torch.arange(3 * len(corners)).reshape(-1, 3)]),
            image_size=(height, width),
            blur_radius=0.0,
            faces_per_pixel=1,
            bin_size=0,  # without bins, which can overflow and lose faces
            perspective_correct=not triangles.orthographic,
            cull_backfaces=False,
        )
        face, depth = face[0, ..., 0].numpy(), depth[0, ..., 0].numpy()
        seen = (face >= 0) & (depth <= raster.depth)
        raster.hand[seen], raster.face[seen], raster.depth[seen] = index, triangles.faces[face[seen]], depth[seen]
    return raster


def _to_ndc(corners_image: np.ndarray, depth: np.ndarray, height: int, width: int) -> np.ndarray:
    """(T, 3, 2) px and (T, 3) m -> (T, 3, 3) in PyTorch3D's normalized device coordinates.

    x points left, y up; the shorter side of the image spans -1..1, and its center is 0. An image of `width` columns
    reaches from -0.5 to width - 0.5 in our pixels, whose centers are integers.
    """
    shorter = min(height, width)
    x = (width - 1 - 2 * corners_image[..., 0]) / shorter
    y = (height - 1 - 2 * corners_image[..., 1]) / shorter
    return np.stack([x, y, depth], axis=-1)
