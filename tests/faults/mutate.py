"""Breaks what is kept from the published system, one line at a time, and checks that a test notices.

    python -m tests.faults.mutate [WORD ...]

Each mutation changes one line in a temporary copy of the working tree and runs the tests named beside it; WORD picks
the mutations with this word in their name. docs/design.md explains what each one would change.
Exit code: 0 if all are caught, 1 if one is not, 2 if a pattern is not found exactly once, or if a test fails unchanged.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT = 600  # s, of one run of the tests


class Mutation(NamedTuple):
    """One line of code, what replaces it, and the tests that must fail then."""

    name: str
    files: str  # a file or a pattern of files, below the root
    old: str  # found exactly once in them
    new: str
    test: str  # fails then; FILE::FUNCTION for tests/test_FILE.py


class PatternError(ValueError):
    """A mutation's pattern is not found exactly once."""


SAMPLES = "data_targets::test_every_recorded_sample_is_reproduced"
METRICS = "metrics::test_recorded_metrics_are_reproduced"
LOSSES = "criterion::test_every_term_is_what_its_description_says"

# fmt: off
MUTATIONS = tuple(Mutation(*row) for row in (
    ("pure-ratio resize", "common/utils/frames.py",
     "points[..., 1:2] / height_a * height_b", "(points[..., 1:2] + 0.5) / height_a * height_b - 0.5",
     "recorded_functions::test_pair_heatmaps"),
    ("mirror W - 1 - x", "common/utils/mirror.py",
     "torch.cat((width - 1 - points", "torch.cat((width - points",
     "geometry::test_projecting_a_mirrored_point_mirrors_its_projection"),
    ("principal point W / 2", "common/utils/frames.py",
     "return self.hand[1] / 2, self.hand[0] / 2", "return (self.hand[1] - 1) / 2, (self.hand[0] - 1) / 2",
     "geometry::test_the_virtual_camera_looks_at_w_half"),
    ("means over all entries", "common/criterion.py",
     "values.mean() for name", "values.sum() / values.count_nonzero().clamp(min=1) for name", LOSSES),
    ("metric terms x 10", "common/criterion.py", "METRIC_WEIGHT = 10.0", "METRIC_WEIGHT = 1.0", LOSSES),
    ("align_corners with w - 1", "common/utils/heatmaps.py",
     "x / (width - 1) * 2 - 1", "x / width * 2 - 1", "recorded_functions::test_sample_features"),
    ("6D rotations by rows", "common/utils/rotations.py",
     "torch.linalg.cross(b1, b2)), -2)", "torch.linalg.cross(b1, b2)), -1)", "recorded_functions::test_rotations"),
    ("left shape directions", "common/nets/mano_files.py",
     "left.shapedirs[:, 0] *= -1", "left.shapedirs[:, 0] *= 1",
     "mano::test_mirrored_parameters_give_mirrored_hands"),
    ("mean pose", "common/nets/mano.py",
     "params.hand_pose + self.hands_mean", "params.hand_pose + 0 * self.hands_mean",
     "mano::test_layer_equals_independent_skinning"),
    ("regressed joints", "common/metrics.py",
     '(true_joints="mesh", by_hand', '(true_joints="keypoints", by_hand', METRICS),
    ("MPJPE of joint means", "common/metrics.py",
     "(totals[found] / numbers[found]).mean()", "totals.sum() / numbers.sum()", METRICS),
    ("MPVPE pooled over hands", "common/metrics.py",
     "_by_class(single | interacting, single, interacting)", "_by_class(single, single, interacting)", METRICS),
    ("all = mean of single and interacting", "common/metrics.py",
     "_by_class([single, interacting], [single], [interacting])",
     "_by_class([single | interacting], [single], [interacting])", METRICS),
    ("relative translation under a flip", "common/targets.py",
     "valid[::-1], cam[::-1] * (-1, 1, 1)", "valid[::-1], cam * (-1, 1, 1)", SAMPLES),
    ("3D and 2D in equal parts", "data/dataset.py",
     "longest, start = max(counts), 0", "longest, start = min(counts), 0",
     "data_mixing::test_groups_are_made_equally_long"),
    ("order of augmentation", "common/targets.py",
     "augmentation.scale, augmentation.rot)", "augmentation.scale, augmentation.rot * (-1) ** augmentation.flip)",
     SAMPLES),
    ("integer body boxes", "common/utils/boxes.py",
     "np.trunc if truncate", "np.floor if truncate", "recorded_functions::test_body_boxes_of_integers"),
    ("wrist at the origin for a missing mesh", "common/targets.py",
     "from_file.any(1, keepdim=True)", "from_file.all(1, keepdim=True)",
     "data_targets::test_hic_counts_a_missing_hand_as_one_at_the_origin"),
    ("batch norm per device", "main/*.py", "broadcast_buffers=False", "broadcast_buffers=True",
     "distributed::test_each_process_keeps_the_statistics_of_its_own_samples"),
))
# fmt: on


def find(mutation: Mutation, root: Path) -> Path:
    """The file to change. Raises PatternError if the pattern is not found exactly once."""
    counts = {path: path.read_text().count(mutation.old) for path in root.glob(mutation.files)}
    if sum(counts.values()) != 1:
        where = f"{sum(counts.values())} times in {mutation.files}, expected once"
        raise PatternError(f"{mutation.name}: {mutation.old!r} is found {where}")
    return max(counts, key=lambda path: counts[path])


def copy_tree(target: Path) -> None:
    """The files that git would commit, and those it tracks."""
    listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(root: Path, tests: set[str]) -> subprocess.CompletedProcess[str]:
    """pytest's exit code is 0 if they pass, 1 if one fails; anything else says that they did not run."""
    paths = ["tests/test_" + test.replace("::", ".py::") for test in sorted(tests)]
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *paths]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)


def main(words: list[str]) -> int:
    chosen = [mutation for mutation in MUTATIONS if not words or any(word in mutation.name for word in words)]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        copy_tree(root)
        try:
            paths = [find(mutation, root) for mutation in chosen]
        except PatternError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        unchanged = run_tests(root, {mutation.test for mutation in chosen})
        if unchanged.returncode:
            print(f"{unchanged.stdout}\nerror: the tests fail without any mutation", file=sys.stderr)
            return 2
        caught = 0
        for mutation, path in zip(chosen, paths, strict=True):
            text = path.read_text()
            path.write_text(text.replace(mutation.old, mutation.new))
            code = run_tests(root, {mutation.test}).returncode
            path.write_text(text)
            caught += code == 1
            verdict = {0: "NOT CAUGHT", 1: "caught"}.get(code, f"NOT CAUGHT: pytest ended with {code}")
            print(f"{mutation.name:40} {verdict}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
