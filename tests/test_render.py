"""The renderer against a brute-force one, and the promises made to its callers."""

import sys
import types

import numpy as np
import pytest
import torch
import trimesh

from common.drawing import raster, render
from common.drawing.raster import HandMesh, rasterize, vertex_normals
from common.drawing.render import render_hands
from common.errors import UserError
from common.types import LEFT, RIGHT
from common.utils.camera import Camera, project


def tube() -> tuple[np.ndarray, np.ndarray]:
    """A bent tube with a round end and an open one, as a hand has at the wrist; 10 cm long, outward faces."""
    rings, around = 16, 12
    along = np.linspace(0, 1, rings)
    radius = 0.03 * np.sqrt(np.clip(1.02 - along**4, 0, 1))
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    vertices = np.stack(
        [
            (0.1 * along - 0.05)[:, None] + 0 * angle,
            radius[:, None] * np.cos(angle) + (0.04 * along**2)[:, None],
            radius[:, None] * np.sin(angle),
        ],
        axis=-1,
    ).reshape(-1, 3)
    r, a = np.divmod(np.arange((rings - 1) * around), around)
    p, q = r * around + a, r * around + (a + 1) % around
    return vertices, np.concatenate([np.stack([p, p + around, q], 1), np.stack([q, p + around, q + around], 1)])


def scene(seed: int, orthographic: bool) -> tuple[list[HandMesh], int, int]:
    """Two hands, close to or through each other, partly outside a small image."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(40, 90, 2))
    distance = rng.uniform(0.3, 6)
    focal = rng.uniform(200, 700, 2) * (1 if orthographic else distance)
    camera = Camera(focal, rng.uniform(0.3, 0.7, 2) * [width, height], orthographic)
    hands = []
    for side in (RIGHT, LEFT):
        vertices, faces = tube()
        rotation = trimesh.transformations.random_rotation_matrix(rng.random(3))[:3, :3]
        vertices = vertices @ rotation.T + rng.uniform(-0.03, 0.03, 3) + [0, 0, distance]
        hands.append(HandMesh(vertices.astype(np.float32), faces, side, camera))
    return hands, height, width


def brute_force(hands: list[HandMesh], height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every face at every pixel, float64 -> hand, depth, and whether a pixel is too close to an edge to call."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    seen, depth, unclear = (
        np.full((height, width), -1),
        np.full((height, width), np.inf),
        np.zeros((height, width), bool),
    )
    for index, hand in enumerate(hands):
        points, z = project(hand.vertices_cam.astype(np.float64), hand.camera), hand.vertices_cam[:, 2].astype(float)
        for face in hand.faces:
            (ax, ay), (bx, by), (cx, cy) = points[face]
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            if area == 0:
                continue
            a = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
            b = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
            c = 1 - a - b
            za, zb, zc = z[face]
            here = a * za + b * zb + c * zc if hand.camera.orthographic else 1 / (a / za + b / zb + c / zc)
            closest = np.minimum(np.minimum(a, b), c)
            nearer = (closest >= 0) & (here < depth)
            seen[nearer], depth[nearer] = index, here[nearer]
            unclear |= np.abs(closest) < 1e-9
    return seen, depth, unclear


@pytest.mark.parametrize("seed", range(24))
def test_equals_brute_force_to_the_pixel(seed):
    """No pixel may differ. Ties would be excused, but with these cameras no pixel centre falls on an edge."""
    hands, height, width = scene(seed, orthographic=seed % 2 == 0)
    hand, depth, unclear = brute_force(hands, height, width)
    raster = rasterize(hands, height, width)
    assert not unclear.any() and {-1, 0, 1} <= set(hand.ravel())
    assert (raster.hand != hand).sum() == 0
    covered = hand >= 0
    assert np.abs(raster.depth[covered] - depth[covered]).max() < 1e-6 * depth[covered].max()
    assert np.isinf(raster.depth[~covered]).all()
    assert ((raster.face >= 0) == covered).all()


@pytest.mark.parametrize("orthographic", [True, False])
def test_bands_do_not_show(monkeypatch, orthographic):
    hands, height, width = scene(5, orthographic)
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    whole, image = rasterize(hands, height, width), render_hands(photo, hands)
    monkeypatch.setattr(raster, "BAND_PIXELS", 3 * width)
    for one, other in zip(whole, rasterize(hands, height, width), strict=True):
        assert (one == other).all()
    assert (render_hands(photo, hands) == image).all()


def test_shared_edges_through_pixel_centres_leave_no_crack():
    """A fan of triangles whose edges and corners all lie on pixel centres covers its square once and wholly."""
    grid = np.stack(np.meshgrid(np.arange(0, 13, 4.0), np.arange(0, 13, 4.0)), -1).reshape(-1, 2)
    corner = np.arange(16).reshape(4, 4)[:3, :3].ravel()
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + 4], 1), np.stack([corner + 1, corner + 5, corner + 4], 1)]
    )
    for swap in (False, True):
        vertices = np.column_stack([grid[:, ::-1] if swap else grid, np.ones(16)])
        camera = Camera(np.array([1.0, 1.0]), np.array([2.0, 1.0]), True)
        hand = rasterize([HandMesh(vertices, faces, RIGHT, camera)], 20, 20).hand
        expected = np.full((20, 20), -1)
        expected[1:14, 2:15] = 0  # borders belong to the triangle
        assert (hand == expected).all()


def ball(centre: tuple[float, float, float], radius: float, side: int, camera: Camera) -> HandMesh:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return HandMesh(np.asarray(mesh.vertices) + centre, np.asarray(mesh.faces), side, camera)


@pytest.mark.parametrize("orthographic", [True, False])
@pytest.mark.parametrize("near_side", [RIGHT, LEFT])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_nearer_hand_is_in_front(orthographic, near_side, reverse):
    camera = Camera(np.array([500.0, 500.0]), np.array([32.0, 32.0]), orthographic)
    z = {near_side: 1.0, 1 - near_side: 1.2}
    hands = [ball((0, 0, z[side]), 0.03 if side == near_side else 0.05, side, camera) for side in (RIGHT, LEFT)]
    hands = hands[::-1] if reverse else hands
    raster = rasterize(hands, 64, 64)
    sides = np.array([hand.side for hand in hands] + [-1])[raster.hand]
    assert sides[32, 32] == near_side and raster.depth[32, 32] == pytest.approx(0.97, abs=1e-3)
    assert sides[32, 51] == 1 - near_side  # the larger one behind shows around it
    assert sides[2, 2] == -1
    red, green, blue = render_hands(np.zeros((64, 64, 3), np.uint8), hands)[32, 32].astype(int)
    assert blue > red > green if near_side == RIGHT else green > max(red, blue)


def test_hands_with_cameras_of_their_own_are_compared_in_metres():
    ortho = Camera(np.array([500.0, 500.0]), np.array([32.0, 32.0]), True)
    pinhole = Camera(np.array([500.0, 500.0]), np.array([32.0, 32.0]), False)
    for z_right, front in ((0.9, RIGHT), (1.1, LEFT)):
        hands = [ball((0, 0, z_right), 0.03, RIGHT, ortho), ball((0, 0, 1.0), 0.03, LEFT, pinhole)]
        assert rasterize(hands, 64, 64).hand[32, 32] == front


@pytest.mark.parametrize("orthographic", [True, False])
def test_silhouette_keeps_the_camera_contract(orthographic):
    """The outermost pixels lie within half a pixel of the outermost projected vertices, on the inside."""
    camera = Camera(np.array([900.0, 1100.0]), np.array([100.3, 90.8]), orthographic)
    hand = ball((0.01, -0.005, 1.0), 0.06, RIGHT, camera)
    points = project(hand.vertices_cam, camera)
    rows, columns = np.nonzero(rasterize([hand], 200, 220).hand == 0)
    for pixels, coordinates in ((columns, points[:, 0]), (rows, points[:, 1])):
        # The outline is round and so sampled densely: a pixel centre within half a pixel of each extreme.
        assert -1e-9 <= pixels.min() - coordinates.min() < 1 and -1e-9 <= coordinates.max() - pixels.max() < 1
        assert abs((pixels.min() + pixels.max()) / 2 - (coordinates.min() + coordinates.max()) / 2) < 0.5
    # Mean over the outline: an image shifted by half a pixel would be off by 0.5 here.
    assert columns.mean() == pytest.approx(project(np.array([0.01, -0.005, 1.0]), camera)[0], abs=0.06)
    assert rows.mean() == pytest.approx(project(np.array([0.01, -0.005, 1.0]), camera)[1], abs=0.06)


def test_only_the_hands_pixels_change():
    hands, height, width = scene(3, orthographic=False)
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    before = photo.copy()
    covered = rasterize(hands, height, width).hand >= 0
    drawn = render_hands(photo, hands, antialias=False)
    assert (photo == before).all() and drawn.dtype == np.uint8
    assert (drawn[~covered] == photo[~covered]).all()
    smooth = render_hands(photo, hands)
    padded = np.pad(covered, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    assert (smooth[~covered & ~beside] == photo[~covered & ~beside]).all()
    assert (smooth != drawn).any()


@pytest.mark.parametrize("orthographic", [True, False])
def test_smooth_edges_equal_an_image_three_times_as_fine(orthographic):
    """Where an edge is smoothed, its pixel is the mean of the 3 x 3 pixels of a finer image."""
    hands, height, width = scene(7, orthographic)
    photo = np.full((height, width, 3), 40, np.uint8)
    fine = []
    for hand in hands:
        camera = Camera(hand.camera.focal * 3, hand.camera.princpt * 3 + 1, hand.camera.orthographic)
        fine.append(HandMesh(hand.vertices_cam, hand.faces, hand.side, camera))
    large = render_hands(np.full((3 * height, 3 * width, 3), 40, np.uint8), fine, antialias=False)
    mean = large.reshape(height, 3, width, 3, 3).mean((1, 3))
    hard, smooth = render_hands(photo, hands, antialias=False), render_hands(photo, hands)
    changed = (smooth != hard).any(-1)
    assert changed.sum() > 50
    assert np.abs(smooth[changed] - mean[changed]).max() < 1.01
    covered = rasterize(hands, height, width).hand >= 0
    padded = np.pad(covered, 1, mode="edge")
    outline = covered & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])
    assert np.abs(smooth[outline] - mean[outline]).max() < 1.01


def test_shading_follows_the_formula():
    """On a ball seen by an orthographic camera the normal of a pixel is known."""
    camera = Camera(np.array([1000.0, 1000.0]), np.array([60.0, 60.0]), True)
    image = render_hands(np.zeros((121, 121, 3), np.uint8), [ball((0, 0, 3), 0.05, RIGHT, camera)])
    for column, row in ((60, 60), (40, 35), (80, 70), (60, 95)):
        x, y = (column - 60) / 50, (row - 60) / 50
        normal = np.array([x, y, -np.sqrt(1 - x * x - y * y)])
        light = render.AMBIENT + render.DIFFUSE * max(0, normal @ render.TO_LAMP_CAM)
        expected = 255 * (light + render.TINT * np.array(render.HAND_RGB[RIGHT]))
        assert np.abs(image[row, column] - expected).max() < 3
    assert render.AMBIENT + render.DIFFUSE + render.TINT == pytest.approx(1)


@pytest.mark.parametrize("orthographic", [True, False])
def test_normals_are_interpolated_on_the_surface(orthographic):
    """Not over the image: close to a pinhole the two differ. Worked out in 3D, where a pixel's ray meets its face."""
    camera = Camera(np.array([60.0, 75.0]), np.array([50.0, 45.0]), orthographic)
    camera = Camera(camera.focal * 12, camera.princpt, True) if orthographic else camera
    mesh = trimesh.creation.icosphere(subdivisions=1, radius=0.05)
    vertices, faces = np.asarray(mesh.vertices) + [0.002, -0.003, 0.075], np.asarray(mesh.faces)
    hand = HandMesh(vertices, faces, LEFT, camera)
    normals = vertex_normals(vertices, faces)
    image = render_hands(np.zeros((90, 100, 3), np.uint8), [hand], antialias=False)
    raster = rasterize([hand], 90, 100)
    rows, columns = np.nonzero(raster.hand == 0)
    for row, column in list(zip(rows, columns, strict=True))[::37]:
        face = faces[raster.face[row, column]]
        x, y = (np.array([column, row]) - camera.princpt) / camera.focal
        origin, ray = ([x, y, 0], [0, 0, 1]) if orthographic else ([0, 0, 0], [x, y, 1])
        a, b, c = vertices[face]
        # a + u (b - a) + v (c - a) = origin + z ray
        u, v, z = np.linalg.solve(np.stack([b - a, c - a, -np.array(ray, float)], 1), np.array(origin, float) - a)
        assert z == pytest.approx(raster.depth[row, column], rel=1e-6)
        normal = np.array([1 - u - v, u, v]) @ normals[face]
        facing = max(0, normal @ render.TO_LAMP_CAM / np.linalg.norm(normal))
        colour = render.AMBIENT + render.DIFFUSE * facing + render.TINT * np.array(render.HAND_RGB[LEFT])
        assert np.abs(image[row, column] - 255 * colour).max() <= 0.5001


def changed_pixels(hands: list[HandMesh], size: tuple[int, int] = (48, 64)) -> int:
    """Draw, with every floating-point warning an error; how many pixels changed."""
    with np.errstate(all="raise", under="ignore"):
        image = render_hands(np.zeros((*size, 3), np.uint8), hands)
        raster = rasterize(hands, *size)
    assert image.shape == (*size, 3) and raster.hand.shape == size and not np.isnan(raster.depth).any()
    return int((image != 0).any(-1).sum())


def camera_of(focal: float = 500.0, orthographic: bool = True) -> Camera:
    return Camera(np.array([focal, focal]), np.array([32.0, 24.0]), orthographic)


@pytest.mark.parametrize("orthographic", [True, False])
def test_degenerate_hands_are_survived(orthographic):
    good = ball((0, 0, 1), 0.03, LEFT, camera_of(orthographic=orthographic))
    alone = changed_pixels([good])
    assert alone > 500 and changed_pixels([]) == 0

    def changed(vertices=good.vertices_cam, camera=good.camera, faces=good.faces) -> HandMesh:
        return HandMesh(vertices, faces, RIGHT, camera)

    not_finite = good.vertices_cam.copy()
    not_finite[5, 1] = np.nan
    endless = good.vertices_cam.copy()
    endless[7] = [1e300, -np.inf, 1]
    invisible = [
        changed(not_finite),
        changed(endless),
        changed(good.vertices_cam + [100, 0, 0]),
        changed(good.vertices_cam * 0 + [0, 0, 1]),
        changed(faces=good.faces[:0]),
        changed(np.zeros((0, 3)), faces=good.faces[:0]),
        changed(camera=camera_of(0.0, orthographic)),
        changed(camera=camera_of(np.nan, orthographic)),
        changed(camera=camera_of(1e300, orthographic)),
    ]
    for hand in invisible:
        assert changed_pixels([hand, good]) == alone
    assert changed_pixels([changed(camera=camera_of(-500.0, orthographic))]) == pytest.approx(
        alone, rel=0.02
    )  # mirrored
    assert changed_pixels([good], (1, 1)) in (0, 1) and changed_pixels([good], (0, 5)) == 0


def test_a_pinhole_does_not_draw_what_is_behind_or_at_the_camera():
    camera = camera_of(orthographic=False)
    assert changed_pixels([ball((0, 0, -1), 0.03, RIGHT, camera)]) == 0
    assert changed_pixels([ball((0, 0, 0), 0.03, RIGHT, camera)]) > 0  # around the camera: its far half is seen
    mesh = HandMesh(np.array([[0, 0, 0.0], [0.1, 0, 1], [0, 0.1, 1]]), np.array([[0, 1, 2]]), RIGHT, camera)
    assert changed_pixels([mesh]) == 0  # touches the camera's plane


@pytest.mark.parametrize("orthographic", [True, False])
def test_a_hand_far_larger_than_the_image_fills_it(orthographic):
    hand = ball((0.013, 0.007, 1), 0.03, RIGHT, camera_of(3e6, orthographic))
    assert changed_pixels([hand]) == 48 * 64


def test_pytorch3d_is_asked_for_by_name(monkeypatch):
    photo = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setitem(sys.modules, "pytorch3d", None)  # as if it were not installed
    with pytest.raises(UserError, match="pytorch3d"):
        render_hands(photo, [], renderer="pytorch3d")
    with pytest.raises(ValueError, match="renderer"):
        render_hands(photo, [], renderer="opengl")


def stand_in_for_pytorch3d(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch3D's documented contract, by brute force.

    Its documentation: vertices in NDC with x left, y up; the shorter side of the image spans [-1, 1]; pixel i of n
    has its centre at (2 i + 1) / n - 1 of its side's range; pix_to_face and zbuf are (N, H, W, K), -1 where empty.
    """

    class Meshes:
        def __init__(self, verts: list[torch.Tensor], faces: list[torch.Tensor]) -> None:
            self.corners = verts[0][faces[0]].double().numpy()

    def rasterize_meshes(
        meshes, image_size, blur_radius, faces_per_pixel, bin_size, perspective_correct, cull_backfaces
    ):
        assert (blur_radius, faces_per_pixel, cull_backfaces) == (0, 1, False)
        height, width = image_size
        half_x, half_y = width / min(image_size), height / min(image_size)
        # In NDC a pinhole of focal 1 would divide by z again; an orthographic camera leaves x and y as they are.
        x = half_x * (1 - (2 * np.arange(width) + 1) / width)
        y = half_y * (1 - (2 * np.arange(height) + 1) / height)
        x, y = np.meshgrid(x, y)
        face, zbuf = np.full((height, width), -1), np.full((height, width), np.inf)
        for index, ((ax, ay, az), (bx, by, bz), (cx, cy, cz)) in enumerate(meshes.corners):
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            a = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
            b = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
            c = 1 - a - b
            z = 1 / (a / az + b / bz + c / cz) if perspective_correct else a * az + b * bz + c * cz
            nearer = (a >= 0) & (b >= 0) & (c >= 0) & (z < zbuf)
            face[nearer], zbuf[nearer] = index, z[nearer]
        zbuf[face < 0] = -1
        return torch.from_numpy(face)[None, ..., None], torch.from_numpy(zbuf).float()[None, ..., None], None, None

    for name in ("pytorch3d", "pytorch3d.renderer", "pytorch3d.renderer.mesh"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.ModuleType("rasterize_meshes")
    module.rasterize_meshes = rasterize_meshes
    monkeypatch.setitem(sys.modules, "pytorch3d.renderer.mesh.rasterize_meshes", module)
    structures = types.ModuleType("structures")
    structures.Meshes = Meshes
    monkeypatch.setitem(sys.modules, "pytorch3d.structures", structures)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_pytorch3d_gets_the_same_image(monkeypatch, seed):
    stand_in_for_pytorch3d(monkeypatch)
    hands, height, width = scene(seed, orthographic=seed % 2 == 0)
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    ours, theirs = (render_hands(photo, hands, renderer, antialias=False) for renderer in ("numpy", "pytorch3d"))
    # float32 there, so a pixel close to an edge may go to another face.
    assert (ours != theirs).any(-1).sum() <= 1
