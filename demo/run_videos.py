"""The demo's work on videos and cameras, one after the other. `demo.run` is for photos, and needs no video library."""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from common.distributed import StopSignal
from common.errors import UserError, one_line
from common.utils.camera import Camera
from demo.camera import open_camera, process_camera
from demo.people import Detector, boxes_of, read_video_boxes
from demo.predictor import HandPredictor
from demo.results import ResultWriter
from demo.show import LiveView
from demo.video import VideoReader
from demo.video_hands import VideoOptions, process_video

Intrinsics = Callable[[tuple[int, int]], Camera | None]  # (h, w) -> the real camera, if it is known


def process_videos(
    videos: Mapping[Path, str],
    predictor: HandPredictor,
    args: argparse.Namespace,
    load_once: Callable[[], Detector],
    intrinsics: Intrinsics,
    make_writer: Callable[[Path], ResultWriter],
) -> set[Path]:
    """Run all videos; `make_writer` is for single frames, below a folder.

    Returns those that failed or are damaged; each is named with its reason.

    Raises:
        SystemExit: after a signal, with the exit code that is usual for it. The files are whole.
    """
    bad: set[Path] = set()
    boxes = read_video_boxes(args.boxes) if args.boxes else None
    with StopSignal() as stop:
        for file, name in videos.items():
            try:
                VideoReader(file)  # before the detector's weights are downloaded
                given = boxes_of(boxes, file) if boxes is not None else None
                detect = args.people != "one" and boxes is None
                options = replace(
                    video_options(args, load_once if detect else None, intrinsics, stop),
                    boxes=given,
                    compare=args.compare,
                    frames_every=args.frames_every,
                    writer=make_writer,
                )
                problems = process_video(file, args.output / name, predictor, options)
            except UserError as error:
                problems = [str(error)]
            except KeyboardInterrupt:
                problems = ["stopped; nothing was written"]
            else:
                print(f"{file.name}: overlay.mp4, hands.npz and summary.json are in {args.output / name}")
            if problems:
                bad.add(file)
                print(*(one_line(f"{file.name}: {problem}") for problem in problems), sep="\n", file=sys.stderr)
            if stop.asked:
                raise SystemExit(128 + stop.number)
    return bad


def run_camera(
    predictor: HandPredictor, args: argparse.Namespace, load_once: Callable[[], Detector], intrinsics: Intrinsics
) -> None:
    """Hands from a camera until --seconds, Ctrl-C, or the camera's end.

    Raises:
        UserError: it cannot be opened, it stopped by itself, or boxes were left out. What was seen before is written.
    """
    capture = open_camera(args.camera)
    folder = args.output / ("camera" + (args.camera if args.camera.isdecimal() else ""))
    with StopSignal() as stop, ExitStack() as stack:
        options = video_options(args, None if args.people == "one" else load_once, intrinsics, stop)
        publish = None
        if args.show is not None:
            view = stack.enter_context(LiveView(args.show))
            publish = view.publish
            print(f"the overlay is at {view.url}")
        print(f"camera {args.camera}: " + (f"{args.seconds:g} s" if args.seconds else "until Ctrl-C"), flush=True)
        problems = process_camera(capture, args.camera, folder, predictor, options, args.delay, args.seconds, publish)
    print(f"camera {args.camera}: overlay.mp4, hands.npz and summary.json are in {folder}")
    if problems:
        raise UserError("; ".join(problems))


def video_options(
    args: argparse.Namespace, load_once: Callable[[], Detector] | None, intrinsics: Intrinsics, stop: StopSignal
) -> VideoOptions:
    """The command line's options for a video or a camera."""
    return VideoOptions(
        detector=load_once() if load_once else None,
        detect_every=args.detect_every,
        min_person=args.min_person,
        max_people=args.max_people,
        smooth=args.smooth,
        hand=args.hand,
        min_confidence=args.min_confidence,
        batch_size=args.batch_size,
        intrinsics=intrinsics,
        draw=tuple(args.draw),
        stop=lambda: stop.asked,
    )
