"""Write toy videos: generated hands in motion, with the true hands of every frame.

    python tool/make_toy_clip.py --output /tmp/clips
    python tool/make_toy_clip.py --output /tmp/clips --clips two,cross --seconds 3 --box_noise 0.02
    python demo/demo.py --input /tmp/clips/two/two.mp4 --boxes /tmp/clips/two/boxes.json

Each clip NAME gets a folder with NAME.mp4, boxes.json (the people's boxes, for demo.py --boxes) and truth.npz, a table
like the demo's hands.npz. A hand of the table whose `state` is 1 is outside the image. Clips:

    two       two people side by side
    cross     one walks before the other
    cut       two shots of other people elsewhere
    gone      a hand leaves the image for 0.3 s, later for 1.2 s
    turned    three files, stored turned by 90, 180 and 270 degrees
    uneven    time stamps 1/60, 1/30 and 1/10 s apart
    sound     with a sound track
    damaged   damaged.mp4: bytes in the middle are overwritten; damaged.webm: cut at 60 % of its length

Motion is a C2 spline through key poses, on SO(3) for rotations. Look and background are constant within a shot.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline
from tqdm import tqdm

from common.nets.mano_files import read_hand_models
from common.options import MANO_FOLDER, MANO_HELP, Parser, fraction, names_from, within
from common.types import LEFT, RIGHT, ManoParams
from common.utils.boxes import xywh_to_xyxy
from common.utils.camera import CaptureCamera
from common.utils.files import atomic_path, atomic_write, make_folder
from common.utils.images import quiet_opencv
from common.utils.joints import WRIST
from demo.video_hands import write_table
from tool.toy.backdrops import sample_backdrop
from tool.toy.formats import box_of, clip_box
from tool.toy.rendering import Skin, build_skin, draw_hands, finish, sample_look
from tool.toy.scene import HandRig, Hands, View, build_rig, sample_betas, sample_hands, scaled_view, to_image

CLIPS = ("two", "cross", "cut", "gone", "turned", "uneven", "sound", "damaged")
SIZE, FOCAL, DEPTH = (360, 640), 800.0, 0.9  # (h, w) px, px, m
TIME_BASE = Fraction(1, 600)  # s, of the stamps
FPS = 30
KEY_SECONDS = 0.7  # between key poses
APART = 0.17  # m from the middle of the image to a person's
GONE = ((0.2, 0.3), (0.45, 1.2))  # a hand is outside: from which share of the clip, for how many seconds
RAMP, OUT = 0.35, 0.4  # s it takes to leave the image, m
LEAST_INSIDE = 0.6  # of a hand's vertices; with less it is outside
NOISE = 0.008  # of the images, which are 0 to 1
ROTATIONS = (90, 180, 270)
SAMPLE_RATE = 16_000  # of the sound, Hz


class Shot(NamedTuple):
    """People in motion before one background."""

    people: list[list[Hands]]  # in `cam`, person by person and frame by frame
    view: View
    seed: int  # of look and background


class Clip(NamedTuple):
    """What is written as a video."""

    ticks: np.ndarray  # (T,) int, time stamps in `TIME_BASE`
    shots: list[Shot]  # their frames follow each other

    @property
    def times(self) -> np.ndarray:
        """(T,) s."""
        return (self.ticks - self.ticks[0]) * float(TIME_BASE)


def main() -> None:
    """The command."""
    args = parse_args()
    quiet_opencv()
    torch.set_num_threads(1)  # one hand at a time is too little work to share
    rig = build_rig(read_hand_models(args.mano))
    skin = build_skin(rig)
    for name in args.clips:
        clip = make_clip(name, rig, args.seconds, args.seed, args.scale, args.variety)
        write_clip(args.output / name, name, clip, rig, skin, args.seed, args.box_noise)
        print(f"wrote {args.output / name}: {len(clip.ticks)} frames of {rig.mano.name}")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--clips", type=names_from(CLIPS), default=CLIPS, help="names, comma-separated (default: all)")
    parser.add_argument("--seconds", type=within(float, 0.1, 30), default=4.0, help="length of a clip, s (default: 4)")
    parser.add_argument("--scale", type=within(float, 0.1, 4), default=1.0, help="factor on 640 x 360 (default: 1)")
    parser.add_argument("--seed", type=within(int, 0), default=0, help="seed of the random numbers (default: 0)")
    parser.add_argument("--variety", type=fraction, default=0.25, help="how much poses vary, 0 to 1 (default: 0.25)")
    parser.add_argument(
        "--box_noise", type=fraction, default=0.0, help="noise on boxes.json, relative to the box's size (default: 0)"
    )
    parser.add_argument("--mano", type=Path, default=MANO_FOLDER, help=MANO_HELP)
    return parser.parse_args()


# ---- What happens ----


def make_clip(
    name: str, rig: HandRig, seconds: float, seed: int = 0, scale: float = 1.0, variety: float = 0.25
) -> Clip:
    """The people of a clip, see the module.

    Args:
        name: of `CLIPS`.
        seconds: its length; for "uneven" nearly.
        scale: of the frames' size.
        variety: of poses, 0 to 1.
    """
    rng = np.random.default_rng([seed, CLIPS.index(name)])
    count = max(2, round(seconds * FPS))
    steps = rng.choice([10, 20, 60], count - 1) if name == "uneven" else np.full(count - 1, 20)
    ticks = np.concatenate(([0], np.cumsum(steps)))
    times = ticks * float(TIME_BASE)
    middle = np.array(SIZE[::-1]) / 2 - 0.5
    view = scaled_view(View(CaptureCamera(np.full(2, FOCAL), middle, np.eye(3), np.zeros(3)), SIZE), scale)

    def person(where: np.ndarray, part: np.ndarray = times) -> list[Hands]:
        return move_person(rng, rig, part, where, variety)

    left, right = np.array([-APART, 0, DEPTH]), np.array([APART, 0, DEPTH])
    if name == "cross":
        way = (times / times[-1])[:, None]
        people = [person(left + (right - left) * way - (0, 0, 0.1)), person(right + (left - right) * way)]
        return Clip(ticks, [Shot(people, view, seed)])
    if name == "cut":
        half = count // 2
        shots = [Shot([person(np.array([x, 0, DEPTH]), part)], view, seed + number)
                 for number, (x, part) in enumerate(((-APART, times[:half]), (APART, times[half:])))]  # fmt: skip
        return Clip(ticks, shots)
    if name == "gone":
        away = np.zeros((count, 2, 3))
        away[:, RIGHT, 1] = OUT * sum(_outside(times - share * times[-1], length) for share, length in GONE)
        middle_of_image = np.array([0, 0, DEPTH])
        return Clip(ticks, [Shot([person(middle_of_image + away)], view, seed)])
    return Clip(ticks, [Shot([person(left), person(right)], view, seed)])


def _outside(times: np.ndarray, length: float) -> np.ndarray:
    """(T,): 0, for `length` seconds from time 0 on above 0.5, then 0, in C2."""

    def step(start: float) -> np.ndarray:
        x = np.clip((times - start) / RAMP + 0.5, 0, 1)
        return x**3 * (10 - 15 * x + 6 * x**2)

    return step(0) - step(length)


def move_person(
    rng: np.random.Generator, rig: HandRig, times: np.ndarray, where: np.ndarray, variety: float
) -> list[Hands]:
    """Two hands that go through random key poses, one `Hands` per frame.

    Args:
        times: (T,) s.
        where: the person's place, m in `cam`: (3,), (T, 3), or (T, 2, 3) for each hand.
    """
    keys = np.arange(times[0] - KEY_SECONDS, times[-1] + 2 * KEY_SECONDS, KEY_SECONDS)
    betas = sample_betas(rng)
    posed = [sample_hands(rng, rig, (True, True), betas, variety) for _ in keys]
    places = CubicSpline(keys, np.stack([hands.pivots + hands.transl for hands in posed]))(times)
    places += where if where.ndim != 2 else where[:, None]
    mean = np.stack([model.hands_mean.reshape(15, 3) for model in rig.models])
    vectors = np.stack([np.concatenate((h.global_orient[:, None], h.hand_pose + mean), 1) for h in posed])
    rotations = np.stack(
        [RotationSpline(keys, Rotation.from_rotvec(track))(times).as_rotvec() for track in np.rollaxis(
            vectors.reshape(len(keys), 32, 3), 1)], 1).reshape(len(times), 2, 16, 3)  # fmt: skip
    orient, pose = rotations[:, :, 0].astype(np.float32), (rotations[:, :, 1:] - mean).astype(np.float32)
    shape = np.repeat(posed[0].betas[None], len(times), 0).astype(np.float32)
    transl = (places - posed[0].pivots).astype(np.float32)
    with torch.inference_mode():
        vertices, joints = rig.mano(ManoParams(*(torch.from_numpy(x) for x in (orient, pose, shape))))
    return [
        Hands(np.ones(2, bool), *row)
        for row in zip(orient, pose, shape, transl, np.repeat(posed[0].pivots[None], len(times), 0),
                       vertices.numpy() + transl[:, :, None], joints.numpy() + transl[:, :, None], strict=True)
    ]  # fmt: skip


# ---- Truth ----


def true_table(clip: Clip) -> dict[str, np.ndarray]:
    """The columns of hands.npz, without those of `_raw`; a row a person, frame and hand.

    The camera is a pinhole. `state` is 0 where the hand is in the image, 1 where it is not.
    """
    rows: list[dict[str, object]] = []
    number = person = 0
    for index, shot in enumerate(clip.shots):
        for frame in range(len(shot.people[0])):
            for offset, hands in enumerate(moment[frame] for moment in shot.people):
                points = to_image(shot.view, hands.vertices)
                box = xywh_to_xyxy(clip_box(box_of(points), shot.view.size))  # around what is in the image
                for side in (RIGHT, LEFT):
                    inside = ((points[side] >= 0) & (points[side] < shot.view.size[::-1])).all(-1).mean()
                    joints = hands.joints[side]
                    rows.append(
                        {
                            "frame": np.int64(number + frame),
                            "time": clip.times[number + frame],
                            "shot": np.int32(index),
                            "person": np.int32(person + offset + 1),
                            "side": np.int32(side),
                            "state": np.int8(inside < LEAST_INSIDE),
                            "confidence": np.float32(1),
                            "box_image": xywh_to_xyxy(box_of(points[side])),
                            "joints_image": to_image(shot.view, joints),
                            "joints_depth_rel": joints[:, 2] - joints[WRIST, 2],
                            "joints_cam": joints,
                            "global_orient": hands.global_orient[side],
                            "hand_pose": hands.hand_pose[side],
                            "betas": hands.betas[side],
                            "transl": hands.transl[side],
                            "focal": shot.view.camera.focal,
                            "princpt": shot.view.camera.princpt,
                            "pair": np.bool_(True),
                            "rel_transl": hands.joints[LEFT, WRIST] - hands.joints[RIGHT, WRIST],
                            "person_box_image": box,
                        }
                    )
        number, person = number + len(shot.people[0]), person + len(shot.people)
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {
        name: values.astype(np.float32) if values.dtype == np.float64 and name != "time" else values
        for name, values in table.items()
    }


def noisy_boxes(truth: dict[str, np.ndarray], noise: float = 0.0, seed: int = 0) -> list[np.ndarray]:
    """What a detector could report: for each frame (P, 4) xyxy px, a row a person.

    Args:
        noise: standard deviation of each side, as a share of the box's size.
    """
    rng = np.random.default_rng(seed)
    boxes = []
    for frame in range(int(truth["frame"].max()) + 1):
        true = truth["person_box_image"][(truth["frame"] == frame) & (truth["side"] == RIGHT)].astype(np.float64)
        boxes.append(true + noise * np.tile(true[:, 2:] - true[:, :2], 2) * rng.standard_normal(true.shape))
    return boxes


# ---- Images and files ----


def draw_clip(clip: Clip, rig: HandRig, skin: Skin) -> Iterator[np.ndarray]:
    """The frames, (H, W, 3) uint8 RGB, upright. The people farther away are drawn first."""
    for shot in clip.shots:
        rng = np.random.default_rng([shot.seed, 77])
        backdrop = sample_backdrop(rng, shot.view.size)
        looks = [sample_look(rng) for _ in shot.people]
        for hands in zip(*shot.people, strict=True):
            image = backdrop
            for person in np.argsort([-h.joints[:, WRIST, 2].mean() for h in hands], kind="stable").tolist():
                image = draw_hands(image, rig, skin, hands[person], shot.view, looks[person])
            yield finish(rng, image, noise=NOISE, blur=0.0)


def write_clip(
    folder: Path, name: str, clip: Clip, rig: HandRig, skin: Skin, seed: int = 0, box_noise: float = 0.0
) -> None:
    """Write a clip's folder: the video, boxes.json and truth.npz.

    Raises:
        UserError: a file cannot be written.
    """
    make_folder(folder)
    truth = true_table(clip)
    frames = list(tqdm(draw_clip(clip, rig, skin), desc=name, total=len(clip.ticks), unit="frame", leave=False))
    files = [f"{name}_{rotation}.mp4" for rotation in ROTATIONS] if name == "turned" else [f"{name}.mp4"]
    for file, rotation in zip(files, ROTATIONS if name == "turned" else (0,), strict=True):
        encode(folder / file, frames, clip.ticks, rotation, sound=name == "sound")
    if name == "damaged":
        content = bytearray((folder / files[0]).read_bytes())
        middle = len(content) // 2
        content[middle : middle + len(content) // 8] = bytes(len(content) // 8)
        atomic_write(folder / files[0], bytes(content))
        files.append("damaged.webm")
        encode(folder / files[1], frames, clip.ticks)
        content = bytearray((folder / files[1]).read_bytes())
        atomic_write(folder / files[1], bytes(content[: len(content) * 6 // 10]))
    boxes = [np.round(people, 2).tolist() for people in noisy_boxes(truth, box_noise, seed)]
    atomic_write(folder / "boxes.json", json.dumps(dict.fromkeys(files, boxes)).encode())
    write_table(folder / "truth.npz", truth, clip.shots[0].view.size, rig.mano.name, virtual=False)


def encode(path: Path, frames: Iterable[np.ndarray], ticks: np.ndarray, rotation: int = 0, sound: bool = False) -> None:
    """Write frames as a video.

    Args:
        path: .mp4 (H.264) or .webm (VP8).
        frames: (H, W, 3) uint8 RGB each.
        ticks: time stamps in `TIME_BASE`.
        rotation: the frames are stored turned by this many degrees, and the file says so.
        sound: add a tone.
    """
    web = path.suffix == ".webm"
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format=path.suffix[1:]) as container:
        stream = container.add_stream("libvpx" if web else "libx264", rate=FPS)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "b": "4M"} if web else {"crf": "12"}
        stream.codec_context.time_base = TIME_BASE
        if rotation:
            stream.set_display_rotation(rotation)
        tone = container.add_stream("aac", rate=SAMPLE_RATE) if sound else None
        if tone:
            seconds = float((ticks[-1] - ticks[0]) * TIME_BASE) + 1 / FPS
            wave = 9000 * np.sin(np.arange(int(seconds * SAMPLE_RATE)) * (2 * np.pi * 440 / SAMPLE_RATE))
            audio = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
            audio.rate, audio.pts = SAMPLE_RATE, 0
        for image, tick in zip(frames, ticks.tolist(), strict=True):
            stored = np.ascontiguousarray(np.rot90(image, -(rotation // 90)))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            if not stream.codec_context.is_open:
                stream.height, stream.width = stored.shape[:2]
            frame.pts, frame.time_base = tick, TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone:
            container.mux([*tone.encode(audio), *tone.encode()])
