"""Padding, the shrunken view of a slice, and the field step that works on it (`class_pixels`); NumPy or torch.

The shrunken view: the longer side to `pixels` by exact fractional area averaging, the other to
floor(length pixels / longer + 1/2), at least 1; nothing is shrunk where the longer side is <= pixels.
"""
import math

import numpy as np


def reflect_index(n, multiple=8):
    """Source index of each row of an axis of length n padded on the high side to a multiple of 8."""
    return np.pad(np.arange(n), (0, -n % multiple), mode="reflect")


def pad8(x):
    """Last two axes to multiples of 8 by reflection on the high side."""
    h, w = x.shape[-2:]
    if h % 8:
        x = x[..., reflect_index(h), :]
    if w % 8:
        x = x[..., reflect_index(w)]
    return x


def view_shape(h, w, pixels):
    longer = max(h, w)
    if longer <= pixels:
        return h, w
    return tuple(pixels if n == longer else max(1, int(math.floor(n * pixels / longer + 0.5))) for n in (h, w))


def area_matrix(n, m):
    """[m, n]: row i averages the input over [i n/m, (i+1) n/m)."""
    if n == m:
        return np.eye(n)
    edges = np.arange(m + 1) * (n / m)
    lo, hi = edges[:-1, None], edges[1:, None]
    cell = np.arange(n)[None, :]
    return np.clip(np.minimum(hi, cell + 1) - np.maximum(lo, cell), 0, None) / (n / m)


def shrink(x, pixels):
    """[..., h, w] float64 to the shrunken view."""
    h, w = x.shape[-2:]
    sh, sw = view_shape(h, w, pixels)
    return area_matrix(h, sh) @ x @ area_matrix(w, sw).T


def linear_matrix(n, m):
    """[n, m]: bilinear interpolation from m samples to n, half-pixel centres, edges clamped."""
    p = (np.arange(n) + 0.5) * (m / n) - 0.5
    p = np.clip(p, 0, m - 1)
    i = np.minimum(np.floor(p).astype(int), m - 1)
    j = np.minimum(i + 1, m - 1)
    t = p - i
    out = np.zeros((n, m))
    out[np.arange(n), i] += 1 - t
    out[np.arange(n), j] += t
    return out


def gauss_matrix(n, sigma=2.0):
    """[n, n] unnormalised Gaussian weights, over the whole axis."""
    d = np.arange(n)[:, None] - np.arange(n)[None, :]
    return np.exp(-0.5 * (d / sigma) ** 2)


def field(small_in, small_out, threshold, shape, sigma=2.0):
    """The multiplicative field at full size, from a shrunken slice and the network's output on it (float64).

    Sum w out in / sum w in^2 under a Gaussian of 2 shrunken pixels, w = 1 where the input is above the volume's
    foreground threshold; 1 where the slice has no foreground; clamped to [0.1, 10].
    """
    a, b = np.asarray(small_in, np.float64), np.asarray(small_out, np.float64)
    w = (a > threshold).astype(np.float64)
    if w.sum() == 0:
        return np.ones(shape)
    gh, gw = gauss_matrix(a.shape[0], sigma), gauss_matrix(a.shape[1], sigma)
    num, den = gh @ (w * b * a) @ gw.T, gh @ (w * a * a) @ gw.T
    ok = den > 0
    ratio = np.where(ok, num / np.where(ok, den, 1), 1.0)
    ratio = np.clip(ratio, 0.1, 10.0)
    return linear_matrix(shape[0], a.shape[0]) @ ratio @ linear_matrix(shape[1], a.shape[1]).T
