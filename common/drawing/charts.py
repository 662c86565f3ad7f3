"""Histograms of errors, by matplotlib."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLUMNS, PANEL, DPI = 3, (4.0, 2.6), 100  # panels beside each other; w, h of one, inches
BINS = 40
SHOWN_QUANTILE = 0.99  # values beyond are in the last bar, so that an outlier does not compress the others


def histograms(values: dict[str, np.ndarray], units: dict[str, str]) -> np.ndarray:
    """Draw one histogram per set of numbers.

    Args:
        values: title -> numbers; NaN is left out, and so are sets without a number.
        units: title -> label of the axis.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    arrays = {title: np.asarray(numbers, np.float64).ravel() for title, numbers in values.items()}
    finite = {title: array[np.isfinite(array)] for title, array in arrays.items()}
    shown = {title: numbers for title, numbers in finite.items() if len(numbers)}
    columns = min(COLUMNS, max(len(shown), 1))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure((columns * PANEL[0], rows * PANEL[1]), DPI, layout="constrained")
    for index, (title, numbers) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        end, median = float(np.quantile(numbers, SHOWN_QUANTILE)) * 1.02 or 1.0, float(np.median(numbers))
        axes.hist(np.clip(numbers, 0, end), bins=BINS, range=(0, end), color="#6e96d7")
        axes.axvline(median, color="#d7503c", label=f"median {median:.3g}, mean {numbers.mean():.3g}")
        axes.set(title=title, xlabel=units[title], ylabel=f"count of {len(numbers)}", xlim=(0, end))
        axes.legend(fontsize="small", frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
