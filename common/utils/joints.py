"""Names and order of the joints.

A hand has 21 joints, wrist first, then thumb to pinky, base to tip; both hands are right then left (42).
"""

FINGERS = ("Thumb", "Index", "Middle", "Ring", "Pinky")
JOINTS = ("Wrist", *(f"{finger}_{k}" for finger in FINGERS for k in (1, 2, 3, 4)))
WRIST = 0

# MANO's own joints, in the order of its files.
MANO_JOINTS = (
    "Wrist",
    *(f"{finger}_{k}" for finger in ("Index", "Middle", "Pinky", "Ring", "Thumb") for k in (1, 2, 3)),
)
# MANO has no joint at a fingertip; the published system takes these vertices.
FINGERTIP_VERTICES = {"Thumb_4": 745, "Index_4": 317, "Middle_4": 445, "Ring_4": 556, "Pinky_4": 673}

# (parent, child) indices into JOINTS, finger by finger: 4 bones a finger.
BONES = tuple((0 if k == 0 else 4 * f + k, 4 * f + k + 1) for f in range(len(FINGERS)) for k in range(4))
