"""The exported network's stage of tool/benchmark.py: time on one thread, memory and start-up beside PyTorch."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.checkpoint import save_checkpoint
from common.options import ROOT
from common.utils.files import write_image, write_json
from common.weights import file_sha256
from main.build import LoadedModel, prepare_inference
from main.config import config_to_dict
from main.export import FlatNetwork, describe, open_onnx, write_onnx
from tool.benchmarks.core import Bench, Measurement
from tool.benchmarks.network import random_images, untrained

SPEED_LIMIT = 0.65  # of PyTorch's processor time, with onnxruntime and these batches
LIMITED_BATCHES, BATCHES = (1, 4), (1, 4, 16)
MEMORY_LIMIT = 0.6  # of PyTorch's peak memory, without PyTorch

# Each in a process of its own.
PREDICTOR = """
import json, sys, time
from demo.predictor import HandPredictor
predictor = HandPredictor.load(sys.argv[1], sys.argv[2], ["cpu"])
ready = time.process_time()
predictor(sys.argv[3])
"""
EXAMPLE = """
import json, runpy, sys, time
sys.modules["torch"] = None
example = runpy.run_path("docs/onnx_example.py")
ready = time.process_time()
example["main"](*sys.argv[1:], sys.argv[3] + "_hands")
"""
# CPU seconds until it is ready and until the first answer, peak memory in KiB: see `store.process_peak`.
PRINT = """
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(json.dumps([ready, time.process_time(), int(peak)]))
"""


def exported(bench: Bench) -> list[Measurement]:
    """onnxruntime, and `torch.compile`, against PyTorch, all without the hand model and on one thread of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network, file = export_untrained(bench, bench.args.work)
        compiled, run_file = torch.compile(network), open_onnx(file)
        rows = []
        for batch in BATCHES:
            crops = random_images(network.network, batch, 3, *bench.config.frames.crop)
            for name, call in (("onnxruntime", run_file), ("compiled", compiled)):
                limited = name == "onnxruntime" and batch in LIMITED_BATCHES
                with torch.inference_mode():
                    row = bench.clock.compare(
                        "exported",
                        f"{name} / PyTorch, processor time, batch {batch}",
                        partial(call, crops),
                        partial(network, crops),
                        limit=bench.limit(SPEED_LIMIT) if limited else None,
                        detail="one thread, without the hand model",
                    )
                rows.append(replace(row, value=row.parts["processor_time_ratio"], low=None, high=None))
        return rows + start_up(bench, bench.args.work, bench.args.mano)
    finally:
        torch.set_num_threads(threads)


def export_untrained(bench: Bench, work: Path) -> tuple[FlatNetwork, Path]:
    """The benchmark's network; network.pth, network.onnx and network.json in `work` are the same."""
    model = untrained(bench)
    network, file, checkpoint = FlatNetwork(model, with_hands=False).eval(), work / "network.onnx", work / "network.pth"
    save_checkpoint(checkpoint, model, epoch=0, config=config_to_dict(bench.config))
    write_onnx(network, file, None)
    record = describe(network, LoadedModel(model, bench.config, 0, [], ""), checkpoint)
    write_json(file.with_suffix(".json"), record | {"sha256": file_sha256(file)})
    return prepare_inference(network, torch.device("cpu")), file


def start_up(bench: Bench, work: Path, mano: Path) -> list[Measurement]:
    """Processes that load the network and answer for one photo: processor time until then, and peak memory."""
    photo = work / "photo.png"
    write_image(photo, np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8))
    results = {}
    for name, program, file in (
        ("HandPredictor, PyTorch", PREDICTOR, "network.pth"),
        ("HandPredictor, onnxruntime", PREDICTOR, "network.onnx"),
        ("docs/onnx_example.py", EXAMPLE, "network.onnx"),
    ):
        command = [sys.executable, "-c", program + PRINT, *(str(path.resolve()) for path in (work / file, mano, photo))]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        results[name] = dict(zip(("ready_s", "answer_s", "peak_KiB"), json.loads(output.splitlines()[-1]), strict=True))
    reference, *others = results
    return [
        Measurement(
            "exported",
            f"{name} / {reference}, {what} of a first photo",
            results[name][key] / results[reference][key],
            limit=bench.limit(MEMORY_LIMIT) if key == "peak_KiB" and "example" in name else None,
            parts={"measured": results[name], "reference": results[reference]},
        )
        for name in others
        for key, what in (("peak_KiB", "peak memory"), ("answer_s", "processor time"))
    ]
