"""Seeded smooth random images in [0,1] (numpy only)."""

import numpy as np


def smooth_image(seed, height=512, width=384):
    """-> float32 (3,height,width) in [0,1]: sum of soft blobs and plane waves."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    img = np.zeros((3, height, width))
    img += rng.uniform(0.2, 0.6, 3)[:, None, None]
    for _ in range(6):
        f = rng.normal(0, 4.0, 2)
        wave = np.sin(2 * np.pi * (f[0] * x + f[1] * y) + rng.uniform(0, 2 * np.pi))
        img += rng.normal(0, 0.06, 3)[:, None, None] * wave
    for _ in range(24):
        cx, cy = rng.uniform(0, 1, 2)
        sx, sy = rng.uniform(0.02, 0.15, 2)
        blob = np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))
        img += rng.normal(0, 0.25, 3)[:, None, None] * blob
    return np.clip(img, 0, 1).astype(np.float32)


def smooth_batch(seed, n, height=512, width=384):
    """-> float32 (n,3,height,width); sample i uses seed*1000+i."""
    return np.stack([smooth_image(seed * 1000 + i, height, width) for i in range(n)])


def smooth_image_uint8(seed, height, width):
    """-> uint8 (height,width,3)."""
    return np.round(smooth_image(seed, height, width).transpose(1, 2, 0) * 255).astype(np.uint8)
