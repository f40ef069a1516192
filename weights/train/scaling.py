"""Intensity scaling of a volume: the numbers `lo` and `hi` of resmap, computed as the program does.

Foreground: voxels above the mean.  top: its 99.5th percentile.  lo: 0 for magnitude images (0.1th percentile of
all voxels >= -0.5 top), else the median of the voxels below the mean.  hi: top.  All in float64, percentiles
with linear interpolation.
"""
import numpy as np


def scale_numbers(volume, mask=None):
    """(lo, hi, mean): the scaling numbers and the foreground threshold, in the volume's own units."""
    v = np.asarray(volume, dtype=np.float64)
    v = v[mask] if mask is not None else v.ravel()
    v = v[np.isfinite(v)]
    if v.size == 0:
        raise ValueError("no finite voxel")
    mean = v.mean()
    fg = v[v > mean]
    if fg.size == 0:
        raise ValueError("constant volume")
    top = np.percentile(fg, 99.5)
    if np.percentile(v, 0.1) >= -0.5 * top:
        lo = 0.0
    else:
        lo = float(np.median(v[v < mean]))
    if top <= lo:
        raise ValueError("no range: lo %g, hi %g" % (lo, top))
    return lo, float(top), float(mean)


def scaled(volume, numbers=None):
    lo, hi = (numbers or scale_numbers(volume))[:2]
    return (np.asarray(volume, dtype=np.float64) - lo) / (hi - lo)


def psnr(ref, test):
    """Range 1; both already in the reference's scaled units."""
    e = np.mean((np.asarray(ref, np.float64) - np.asarray(test, np.float64)) ** 2)
    return float("inf") if e == 0 else -10 * np.log10(e)
