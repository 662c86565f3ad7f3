"""From photos to results."""

import os

# Threads of OpenMP that wait for work spin by default. On a machine that other programs use, a photo then takes many
# times as long. OpenMP reads this when PyTorch loads it, so it cannot wait for a call.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# What an Apple GPU lacks runs on the CPU, and PyTorch names it in a warning. It reads this when it loads, too.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
