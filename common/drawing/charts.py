"""Histograms of errors and curves of a training, by matplotlib."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLUMNS, PANEL, DPI = 3, (4.0, 2.6), 100  # panels beside each other; w, h of one, inches
BINS = 40
SMOOTHED = 20  # losses, at most, that a point of the training curve averages
BLUE, RED = "#6e96d7", "#d7503c"
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
        axes.hist(np.clip(numbers, 0, end), bins=BINS, range=(0, end), color=BLUE)
        axes.axvline(median, color=RED, label=f"median {median:.3g}, mean {numbers.mean():.3g}")
        axes.set(title=title, xlabel=units[title], ylabel=f"count (of {len(numbers)})", xlim=(0, end))
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.margins(y=0.2)  # room for the legend
        axes.legend(fontsize="small", frameon=False)
    return _draw(figure)


def training_curve(training: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Draw the losses of a training, and the errors on held-out samples.

    Args:
        training: (2, N) step and total loss.
        validation: (3, M) step, total loss, MPVPE in mm.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    figure = Figure((2 * PANEL[0], PANEL[1] * 1.2), DPI, layout="constrained")
    loss, error = figure.subplots(1, 2)
    window = max(1, min(SMOOTHED, training.shape[1] // 10))
    steps, totals = (np.convolve(row, np.full(window, 1 / window), "valid") for row in training)
    loss.plot(steps, totals, color=BLUE, label="training" + (f", mean of {window} steps" if window > 1 else ""))
    loss.plot(validation[0], validation[1], "o-", color=RED, markersize=3, label="held-out samples")
    loss.set(title="loss", xlabel="step", ylabel="total loss", yscale="log")
    loss.legend(fontsize="small", frameon=False)
    error.plot(validation[0], validation[2], "o-", color=RED, markersize=3)
    error.set(title="MPVPE of held-out samples", xlabel="step", ylabel="mm", ylim=(0, None))
    return _draw(figure)


def _draw(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
