"""3D files come back as they went out."""

import base64
import io
import json
import re
import struct

import cv2
import numpy as np
import pytest
import trimesh

from common.drawing.export import write_glb, write_html, write_obj, write_ply
from common.drawing.raster import HandMesh
from common.drawing.render import HAND_RGB
from common.types import LEFT, RIGHT
from common.utils.camera import Camera


@pytest.fixture
def hands() -> list[HandMesh]:
    rng = np.random.default_rng(0)
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.08)
    camera = Camera(np.array([1000.0, 1000.0]), np.array([100.0, 100.0]), True)
    made = []
    for side, centre in ((RIGHT, [-0.05, 0.02, 6.1]), (LEFT, [0.06, -0.03, 6.0])):
        vertices = np.asarray(mesh.vertices) * [1, 0.4, 0.7] + rng.normal(0, 1e-3, (162, 3)) + centre
        made.append(HandMesh(vertices.astype(np.float32), np.asarray(mesh.faces), side, camera))
    return made


def glb_json(data: bytes) -> dict:
    magic, version, _, length, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, kind) == (b"glTF", 2, b"JSON")
    return json.loads(data[20 : 20 + length])


def test_obj_comes_back_bit_for_bit(tmp_path, hands):
    write_obj(tmp_path / "a.obj", hands[0].vertices_cam, hands[0].faces)
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert lines[0].startswith("#") and "metre" in lines[0] and "cam" in lines[0]
    assert {line.split(" ")[0] for line in lines[1:]} == {"v", "f"}
    vertices = np.array([line.split()[1:] for line in lines if line[0] == "v"], np.float64).astype(np.float32)
    faces = np.array([line.split()[1:] for line in lines if line[0] == "f"], np.int64)
    assert (vertices == hands[0].vertices_cam).all()
    assert faces.min() == 1 and (faces - 1 == hands[0].faces).all()
    loaded = trimesh.load(tmp_path / "a.obj", process=False)
    assert (loaded.vertices.astype(np.float32) == hands[0].vertices_cam).all()


def test_ply_comes_back_with_its_colour(tmp_path, hands):
    write_ply(tmp_path / "a.ply", hands[1].vertices_cam, hands[1].faces, HAND_RGB[LEFT])
    data = (tmp_path / "a.ply").read_bytes()
    assert re.search(rb"\ncomment frame: cam .*metre\n", data[: data.index(b"end_header")])
    loaded = trimesh.load(io.BytesIO(data), file_type="ply", process=False)
    assert (loaded.vertices.astype(np.float32) == hands[1].vertices_cam).all()
    assert (loaded.faces == hands[1].faces).all()
    assert (loaded.visual.vertex_colors[:, :3] == np.round(np.array(HAND_RGB[LEFT]) * 255)).all()


def test_glb_comes_back_with_both_hands_in_place(tmp_path, hands):
    write_glb(tmp_path / "a.glb", hands)
    content = glb_json((tmp_path / "a.glb").read_bytes())
    centre_cam = np.array(content["scenes"][0]["extras"]["centre_cam"])
    scene = trimesh.load(tmp_path / "a.glb", process=False)
    assert set(scene.graph.nodes_geometry) == {"right_hand", "left_hand"}
    for hand, name in zip(hands, ("right_hand", "left_hand"), strict=True):
        transform, geometry = scene.graph[name]
        assert np.allclose(transform, np.eye(4))
        mesh = scene.geometry[geometry]
        vertices_cam = np.array([1, -1, -1]) * mesh.vertices + centre_cam
        assert np.abs(vertices_cam - hand.vertices_cam).max() < 1e-7
        assert (mesh.faces == hand.faces).all()
        # Outward, as the faces are: the flip of two axes is a rotation and keeps orientation.
        outward = mesh.vertices - mesh.vertices.mean(0)
        assert (np.einsum("ij,ij->i", mesh.vertex_normals, outward) > 0).all()
    assert np.abs(scene.bounds.mean(0)).max() < 1e-6


def test_glb_is_lit_as_skin_not_metal(tmp_path, hands):
    write_glb(tmp_path / "a.glb", hands)
    content = glb_json((tmp_path / "a.glb").read_bytes())
    assert {node["name"] for node in content["nodes"] if "mesh" in node} == {"right_hand", "left_hand"}
    for node in content["nodes"]:
        (primitive,) = content["meshes"][node["mesh"]]["primitives"]
        assert {"POSITION", "NORMAL"} <= set(primitive["attributes"])
        material = content["materials"][primitive["material"]]
        assert material["doubleSided"] is True
        pbr = material["pbrMetallicRoughness"]
        assert pbr["metallicFactor"] == 0 and pbr["roughnessFactor"] == pytest.approx(0.7)
        red, green, blue, alpha = pbr["baseColorFactor"]
        assert alpha == 1 and (blue > red > green if node["name"] == "right_hand" else green > max(red, blue))


def test_hands_of_several_people_keep_names_of_their_own(tmp_path, hands):
    write_glb(tmp_path / "a.glb", [hands[0], hands[1], hands[0]])
    names = [node["name"] for node in glb_json((tmp_path / "a.glb").read_bytes())["nodes"]]
    assert names == ["right_hand", "left_hand", "right_hand_2"]


def test_page_holds_all_it_needs(tmp_path, hands):
    photo = np.zeros((1200, 800, 3), np.uint8)
    write_html(tmp_path / "a.html", hands, "<script>two & hands", photo, ["", "a <note>"])
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    picture = re.search(r'<img alt="photo" src="data:image/jpeg;base64,([^"]+)">', page)
    assert cv2.imdecode(np.frombuffer(base64.b64decode(picture[1]), np.uint8), 1).shape == (480, 320, 3)
    assert "a &lt;note&gt;" in page and "Reset view" in page
    page = page.replace(picture[0], "")
    assert "<title>&lt;script&gt;two &amp; hands</title>" in page and "<script>two" not in page
    tags = re.findall(r"<(?:script|link|img|iframe|a)\b[^>]*>", page)
    assert tags and not [tag for tag in tags if re.search(r"\b(?:src|href)\s*=", tag)]
    assert not re.search(r"@import|url\(\s*['\"]?https?:|fetch\(['\"]https?:", page)
    # The hands inside have their materials and names.
    data = base64.b64decode(re.search(r'base64_data="([^"]+)"', page).group(1))
    content = glb_json(data)
    assert {mesh["name"] for mesh in content["meshes"]} == {"right_hand", "left_hand"}
    assert all(material["pbrMetallicRoughness"]["metallicFactor"] == 0 for material in content["materials"])


def test_nothing_is_written_for_bad_vertices_or_no_hands(tmp_path, hands):
    broken = hands[0].vertices_cam.copy()
    broken[3, 0] = np.nan
    bad = HandMesh(broken, hands[0].faces, RIGHT, hands[0].camera)
    for write in (
        lambda path: write_obj(path, bad.vertices_cam, bad.faces),
        lambda path: write_ply(path, bad.vertices_cam, bad.faces, HAND_RGB[0]),
        lambda path: write_glb(path, [bad, hands[1]]),
        lambda path: write_html(path, [bad, hands[1]], "a"),
        lambda path: write_glb(path, []),
    ):
        with pytest.raises(ValueError):
            write(tmp_path / "a")
    assert not list(tmp_path.iterdir())
