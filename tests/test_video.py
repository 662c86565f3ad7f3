"""Video files: time stamps, rotation, sound, odd sizes, cuts, and files that are damaged."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from common.errors import UserError
from demo.video import CutDetector, VideoReader, VideoWriter

SIZE = (48, 64)


def painted(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame that says its number in its brightness; bright at the top, so that its turn can be seen."""
    image = np.full((*size, 3), 20 + 5 * (index % 40), np.uint8)
    image[: size[0] // 4] = 250
    return image


def write_clip(
    path: Path,
    count: int = 20,
    size: tuple[int, int] = SIZE,
    stamps: list[int] | None = None,
    rotation: int = 0,
    codec: str = "libx264",
    sound: bool = False,
) -> Path:
    """A clip in ticks of 1/600 s, written without the code under test."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 600)
        if rotation:
            stream.set_display_rotation(rotation)
        tone = container.add_stream("aac", rate=16000) if sound else None
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(painted(index, size), format="rgb24")
            frame.pts, frame.time_base = (stamps or range(0, 20 * count, 20))[index], Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone:
            wave = (np.sin(np.arange(16000 * count // 30) * 0.2) * 9000).astype(np.int16)[None]
            audio = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            audio.rate, audio.pts = 16000, 0
            container.mux(tone.encode(audio))
            container.mux(tone.encode())
    return path


def test_frames_come_with_their_own_time_stamps(tmp_path: Path) -> None:
    stamps = np.cumsum(np.random.default_rng(0).integers(10, 60, 20)).tolist()
    reader = VideoReader(write_clip(tmp_path / "a.mp4", stamps=stamps))
    frames = list(reader)
    assert reader.size == SIZE and reader.problem is None
    np.testing.assert_allclose([frame.time for frame in frames], (np.array(stamps) - stamps[0]) / 600, atol=1e-9)
    assert [frame.number for frame in frames] == list(range(20))
    brightness = [frame.image[30].mean() for frame in frames]
    np.testing.assert_allclose(brightness, 20 + 5 * np.arange(20), atol=2)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_upright(tmp_path: Path, rotation: int) -> None:
    """The side that is bright in the file is where a player shows it."""
    path = write_clip(tmp_path / "a.mp4", rotation=rotation)
    reader = VideoReader(path)
    image = next(iter(reader)).image
    assert reader.size == image.shape[:2] == (SIZE if rotation == 180 else SIZE[::-1])
    bright = {90: image[:, :8], 180: image[-8:], 270: image[:, -8:]}[rotation]
    assert bright.mean() > 200 and image.mean() < 120


def test_an_overlay_keeps_stamps_and_sound(tmp_path: Path) -> None:
    stamps = np.cumsum(np.random.default_rng(1).integers(10, 60, 20)).tolist()
    source = write_clip(tmp_path / "a.mp4", stamps=stamps, sound=True)
    reader = VideoReader(source)
    assert reader.has_sound
    with VideoWriter(tmp_path / "b.mp4", reader.size, reader.time_base, reader.rate, source) as writer:
        for frame in reader:
            writer.write(frame.image, frame.pts)
    assert writer.sound_problem is None
    copy = VideoReader(tmp_path / "b.mp4")
    np.testing.assert_allclose([frame.time for frame in copy], [frame.time for frame in reader], atol=1e-6)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(container.streams.audio[0])]

    assert packets(source) == packets(tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    content = (tmp_path / "b.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the header is in front"


def test_odd_sizes_are_padded_by_a_pixel(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", (47, 63)) as writer:
        for index in range(3):
            writer.write(painted(index, (47, 63)), index * 3000)
    assert VideoReader(tmp_path / "a.mp4").size == (48, 64)


def test_a_video_that_is_closed_early_plays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", SIZE) as writer:
        for index in range(5):
            writer.write(painted(index), index * 3000)
        raise KeyboardInterrupt
    assert len(list(VideoReader(tmp_path / "a.mp4"))) == 5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"text", "not a video"),
        (np.random.default_rng(0).bytes(5000), "not a video"),
        (b"ffconcat version 1.0\nfile whole.mp4\n", "not a video"),  # a playlist: it would open another file
    ],
)
def test_a_file_that_is_not_a_video_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    write_clip(tmp_path / "whole.mp4", 2)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read .*{reason}") as raised:
        VideoReader(path)
    assert "\n" not in str(raised.value)


def test_sound_alone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        audio.rate, audio.pts = 16000, 0
        container.mux(stream.encode(audio))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="holds no video but sound"):
        VideoReader(path)


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.mp4", 60).read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot read .*its index is missing"):
        VideoReader(tmp_path / "b.mp4")


def test_frames_that_are_too_large_are_not_decoded(tmp_path: Path) -> None:
    """Neither at the beginning nor after it."""
    small, large = (write_clip(tmp_path / f"{side}.ts", 12, (side, side)) for side in (64, 256))
    with pytest.raises(UserError, match="256 x 256 pixels; at most"):
        VideoReader(large, 100 * 100)
    small.write_bytes(small.read_bytes() + large.read_bytes())
    reader = VideoReader(small, 100 * 100)
    assert 0 < len(list(reader)) <= 12 and reader.problem and "is damaged after" in reader.problem
    assert len(list(VideoReader(small))) == 24


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
def test_a_cut_file_is_read_as_far_as_it_goes_and_named(tmp_path: Path, suffix: str, codec: str) -> None:
    """Also where the decoder ends without an error."""
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 96, 128, "yuv420p", 5
        noise = np.random.default_rng(0).integers(0, 255, (60, 96, 128, 3), np.uint8)
        for index in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise[index], format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    reader = VideoReader(path)
    frames = list(reader)
    assert 10 < len(frames) < 60 and reader.problem and ("cut short" in reader.problem or "damaged" in reader.problem)


def test_equal_stamps_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files repeat a stamp or step back; times and stamps still rise."""
    path = write_clip(tmp_path / "a.mp4", 10)
    reader = VideoReader(path)
    monkeypatch.setattr(reader, "time_base", Fraction(1, 10**12))  # all stamps fall together
    frames = list(reader)
    assert (np.diff([frame.time for frame in frames]) > 0).all() and (np.diff([f.pts for f in frames]) > 0).all()


def test_one_frame_and_tiny_frames(tmp_path: Path) -> None:
    for size in ((2, 2), (16, 16)):
        assert len(list(VideoReader(write_clip(tmp_path / "a.mp4", 1, size)))) == 1


def test_cuts() -> None:
    """A change of the scene is a cut; noise, brightness and motion are none."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (90, 160, 3), np.uint8)
    other = np.full((90, 160, 3), (200, 30, 40), np.uint8)
    detect = CutDetector()
    steady = [detect(np.roll(scene, index, 1)) for index in range(5)]
    assert not any(steady) and detect(other) and not detect(np.clip(other.astype(int) + 8, 0, 255).astype(np.uint8))
