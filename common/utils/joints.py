"""Names and order of the joints.

A hand has 21 joints: the wrist, then thumb to pinky, each from base to tip. Both hands are right then left (42).
"""

from collections.abc import Sequence

import numpy as np

FINGERS = ("Thumb", "Index", "Middle", "Ring", "Pinky")
JOINTS = ("Wrist", *(f"{finger}_{k}" for finger in FINGERS for k in (1, 2, 3, 4)))
WRIST = 0

# MANO's own joints, in the order of its files.
MANO_JOINTS = (
    "Wrist",
    *(f"{finger}_{k}" for finger in ("Index", "Middle", "Pinky", "Ring", "Thumb") for k in (1, 2, 3)),
)
# MANO has no joints at the fingertips; the published system takes these vertices.
FINGERTIP_VERTICES = {"Thumb_4": 745, "Index_4": 317, "Middle_4": 445, "Ring_4": 556, "Pinky_4": 673}

# (parent, child) indices into JOINTS, finger by finger, 4 bones each.
BONES = tuple((0 if k == 0 else 4 * f + k, 4 * f + k + 1) for f in range(len(FINGERS)) for k in range(4))

# The joints of one hand in the order of each dataset's files.
INTERHAND_JOINTS = (*(f"{finger}_{k}" for finger in FINGERS for k in (4, 3, 2, 1)), "Wrist")
COCO_JOINTS = JOINTS
REINTERHAND_JOINTS = (
    *("Wrist", "Thumb_0", "Thumb_1", "Thumb_2", "Thumb_3", "Thumb_4"),
    *(f"{finger}_{k}" for finger in ("Index", "Middle", "Ring") for k in (1, 2, 3, 4)),
    *("Pinky_0", "Pinky_1", "Pinky_2", "Pinky_3", "Pinky_4", "Forearm_Stub"),
)


def reorder_index(names: Sequence[str]) -> np.ndarray:
    """(21,) indices that reorder the joints of one hand from `names` to JOINTS: `joints[..., index, :]`.

    Raises:
        ValueError: `names` lacks one of JOINTS.
    """
    return np.array([names.index(name) for name in JOINTS])
