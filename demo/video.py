"""Video files in and out: upright frames with their time stamps, and overlays that keep the stamps and the sound.

PyAV is imported here alone, so photos need no video library. Time is a time stamp in seconds from the first frame,
never a frame number divided by a rate. Frames are turned as the file's display matrix asks.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.error import ArgumentError, FFmpegError, InvalidDataError

from common.errors import UserError

# FFmpeg's names of the containers that are read. Not playlists, which name other files to open.
CONTAINERS = "mov,matroska,avi,gif,mpegts,mpeg,flv,asf,ogg"
MAX_PIXELS = 8192 * 4352  # H.264's largest frame; larger ones are refused before they are decoded
MIN_STEP = 1e-6  # s; equal or falling time stamps are moved to this after the one before
MISSING_SECONDS = 0.25  # a video that ends this much before its declared length is cut short
FALLBACK_RATE = Fraction(30)  # frames / s, where neither stamps nor a rate are given
MISSING_SHARE = 0.05  # ... or with this share less of its declared frames
CRF = 18  # quality of the overlay; lower is better
CUT_THRESHOLD = 30.0  # mean absolute HSV difference of neighbouring thumbnails; shaking cameras stay below 17
THUMBNAIL = (64, 36)  # (w, h)


class Frame(NamedTuple):
    """One upright frame."""

    number: int  # from 0
    time: float  # s from the first frame
    pts: int  # in the video's time base, rising
    image: np.ndarray  # (H, W, 3) uint8 RGB


class VideoReader:
    """The frames of a video file, in order; each iteration decodes the file once.

    Args:
        path: a file with a video track.
        max_pixels: of a frame.

    Raises:
        UserError: the file cannot be opened, holds no video, or frames that are too large.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.max_pixels = path, max_pixels
        try:
            with _open(path) as container:
                if not container.streams.video:
                    raise UserError(f"cannot read {path}: it holds no video" + _what_else(container))
                stream = self._stream(container)
                self.time_base = exact(stream.time_base or 1 / FALLBACK_RATE)
                self.rate = exact(stream.average_rate or stream.guessed_rate or FALLBACK_RATE)
                self.has_sound = bool(container.streams.audio)
                self.declared = _declared_seconds(container, stream)  # s, or None
                self.declared_frames = stream.frames or None
                first = next(container.decode(stream), None)
        except (FFmpegError, OSError, ValueError, StopIteration) as error:
            raise UserError(f"cannot read {path}: {_why_not_read(path, error)}") from None
        if first is None:
            raise UserError(f"cannot read {path}: it holds no frame that can be decoded")
        self.size = upright(first).shape[:2]  # (H, W)
        self.problem: str | None = None  # why the last iteration ended early

    def __iter__(self) -> Iterator[Frame]:
        """Decode the frames. After the last one, `problem` says whether the file was cut short or damaged."""
        self.problem, last_time, last_pts, origin, index = None, -MIN_STEP, -1, None, -1
        try:
            with _open(self.path) as container:
                stream = self._stream(container)
                # Not "AUTO": PyAV 17.1 waits for ever where a frame is refused while others are decoded in threads.
                stream.thread_type = "SLICE"
                for index, decoded in enumerate(container.decode(stream)):
                    image = upright(decoded)
                    if image.shape[:2] != self.size:
                        image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
                    step = max(1, round(1 / (self.rate * self.time_base)))
                    pts = last_pts + step if decoded.pts is None else decoded.pts
                    origin = pts if origin is None else origin
                    time = max(float((pts - origin) * self.time_base), last_time + MIN_STEP)
                    last_pts, last_time = max(pts, last_pts + 1) if index else pts, time
                    yield Frame(index, time, last_pts, image)
        except (FFmpegError, OSError, ValueError) as error:
            self.problem = f"it is damaged after {max(last_time, 0):.2f} s: {_reason(error)}"
            return
        end = last_time + float(1 / self.rate)
        # A cut file may end in silence: compare with what its header declares.
        if self.declared and end < self.declared - max(MISSING_SECONDS, 2 / float(self.rate)):
            self.problem = f"it is cut short: it ends after {end:.2f} s of {self.declared:.2f} s"
        elif self.declared_frames and index + 1 < self.declared_frames * (1 - MISSING_SHARE) - 2:
            self.problem = f"it is cut short: {index + 1} of {self.declared_frames} frames"

    def _stream(self, container: av.container.InputContainer) -> av.VideoStream:
        stream = container.streams.video[0]
        if stream.width * stream.height > self.max_pixels:
            raise UserError(
                f"cannot read {self.path}: its frames have {stream.width} x {stream.height} pixels; at most "
                f"{self.max_pixels / 1e6:.0f} megapixels are read"
            )
        stream.codec_context.options = {"max_pixels": str(self.max_pixels)}  # the header may be wrong
        return stream


def _open(path: Path) -> av.container.InputContainer:
    return av.open(str(path), options={"format_whitelist": CONTAINERS})


def exact(number: Any) -> Fraction:
    """A rational number of PyAV, which from version 19 has a class of its own that rounds."""
    return Fraction(number.numerator, number.denominator)


def upright(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as the file's display matrix asks."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def _declared_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * exact(stream.time_base))
    return container.duration / av.time_base if container.duration else None


def _what_else(container: av.container.InputContainer) -> str:
    return " but sound" if container.streams.audio else ""


def _why_not_read(path: Path, error: Exception) -> str:
    if not isinstance(error, InvalidDataError | ArgumentError | EOFError):
        return _reason(error)
    with open(path, "rb") as file:
        head = file.read(8)
    if head[4:] == b"ftyp":
        return "it is damaged, or its index is missing: it was cut while it was written"
    return "it is not a video, or it is damaged" if head else "it is empty"


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()


class VideoWriter:
    """An H.264 file in an MP4 container: yuv420p, the header in front, the given time stamps, the source's sound.

    Use as a context manager. The file is whole after `close`, whatever number of frames it was given.

    Args:
        path: where to write; overwritten.
        size: (H, W) of the frames; odd sides are padded by a pixel, which repeats the border.
        time_base: unit of the frames' `pts`, s.
        rate: nominal frames / s, for players that show one.
        sound_from: a file whose first audio track is copied unchanged.

    Raises:
        UserError: the file cannot be written; or the sound cannot be copied into an MP4, see `sound_problem`.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        time_base: Fraction = Fraction(1, 90_000),
        rate: Fraction = FALLBACK_RATE,
        sound_from: Path | None = None,
    ) -> None:
        self.path, self.size = path, size
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height = size[1] + size[1] % 2, size[0] + size[0] % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": str(CRF)}
        self._stream.codec_context.time_base = self._stream.time_base = self._time_base = time_base
        self.sound_problem: str | None = None
        self._sound: _Sound | None = None
        if sound_from is not None:
            try:
                self._sound = _Sound(sound_from, self._container)
            except (FFmpegError, ValueError, OSError) as error:
                self.sound_problem = f"its sound cannot be copied: {_reason(error)}"

    def write(self, image: np.ndarray, pts: int) -> None:
        """Add a frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            pts: its time stamp in the time base, larger than the one before.
        """
        bottom, right = self._stream.height - image.shape[0], self._stream.width - image.shape[1]
        if bottom or right:
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = pts, self._time_base
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        if self._sound:
            self._sound.copy_until(float(pts * self._time_base))

    def close(self, with_all_sound: bool = True) -> None:
        """Write what is still in the encoder, and the header. Only after this the file can be played.

        Args:
            with_all_sound: copy the sound to its end, not only as far as the frames go.
        """
        try:
            for packet in self._stream.encode():
                self._container.mux(packet)
            if self._sound and with_all_sound:
                self._sound.copy_until(float("inf"))
        finally:
            if self._sound:
                self._sound.close()
            self._container.close()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(with_all_sound=kind is None)


class _Sound:
    """Copies the packets of a file's first audio track, a little at a time."""

    def __init__(self, source: Path, target: av.container.OutputContainer) -> None:
        self._source, self._target = _open(source), target
        if not self._source.streams.audio:
            self._source.close()
            raise ValueError("there is none")
        stream = self._source.streams.audio[0]
        self._stream = target.add_stream_from_template(stream)
        self._packets = self._source.demux(stream)
        self._next: av.Packet | None = next(self._packets, None)

    def copy_until(self, time: float) -> None:
        while self._next is not None and self._next.pts is not None and self._next.pts * self._next.time_base <= time:
            self._next.stream = self._stream
            self._target.mux(self._next)
            try:
                self._next = next(self._packets, None)
            except FFmpegError:  # the source is damaged here; the video says so
                self._next = None

    def close(self) -> None:
        self._source.close()


class CutDetector:
    """Says for each frame whether a new shot begins with it."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None

    def __call__(self, image: np.ndarray) -> bool:
        """Compare an (H, W, 3) uint8 RGB frame with the one before; the first frame is no cut."""
        small = cv2.cvtColor(cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2HSV)
        thumbnail = small.astype(np.int16)
        last, self._last = self._last, thumbnail
        return last is not None and float(np.abs(thumbnail - last).mean()) > CUT_THRESHOLD
