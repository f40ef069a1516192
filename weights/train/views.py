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


def ratio(small_in, small_out, threshold, sigma=2.0):
    """The multiplicative field of a shrunken slice and the network's output on it (float64).

    Sum w out in / sum w in^2 under a Gaussian of 2 shrunken pixels, w = 1 where the input is above the volume's
    foreground threshold; 1 where the slice has no foreground.
    """
    a, b = np.asarray(small_in, np.float64), np.asarray(small_out, np.float64)
    w = (a > threshold).astype(np.float64)
    gh, gw = gauss_matrix(a.shape[0], sigma), gauss_matrix(a.shape[1], sigma)
    num, den = gh @ (w * b * a) @ gw.T, gh @ (w * a * a) @ gw.T
    ok = den > 0
    return np.where(ok, num / np.where(ok, den, 1), 1.0)


def limited(factor):
    """What a volume's one field is fitted to, and that field, keep within."""
    return np.clip(factor, 0.1, 10.0)


def field(small_in, small_out, threshold, shape):
    """The same at full size."""
    r = ratio(small_in, small_out, threshold)
    return linear_matrix(shape[0], r.shape[0]) @ r @ linear_matrix(shape[1], r.shape[1]).T


def volume_field(ratios, slices, shape, order):
    """({slice: factor [H, W]}, spread, spread within slices) from {slice: limited ratio [h, w], 0 off the foreground}: exp P,
    clamped to [0.1, 10], times the mean of its reciprocal over the foreground samples; P: the polynomial of total degree <= order in the array coordinates
    ([-1, 1] from first to last voxel centre) that fits log ratio best, its coefficients (of Legendre polynomials) damped by 1e-6
    a sample; spread: the standard deviation of the factor's logarithm over the foreground samples; within slices: about the
    means of the slices."""
    centres = lambda n: 2 * np.arange(n) / (n - 1) - 1 if n > 1 else np.zeros(1)
    def small(n, length):
        at = (np.arange(n) + 0.5) * length / n - 0.5
        return 2 * at / (length - 1) - 1 if length > 1 else np.zeros(n)
    terms = [(a, b, c) for a in range(order + 1) for b in range(order + 1 - a) for c in range(order + 1 - a - b)]
    h, w = next(iter(ratios.values())).shape
    z, y, x = (np.polynomial.legendre.legvander(t, order) for t in (centres(slices), small(h, shape[0]), small(w, shape[1])))
    rows, values = [], []
    for s, r in ratios.items():
        i, j = np.nonzero(r > 0)
        rows.append(np.stack([z[s, a] * y[i, b] * x[j, c] for a, b, c in terms], 1))
        values.append(np.log(r[i, j]))
    A, g = np.concatenate(rows), np.concatenate(values)
    p = np.linalg.solve(A.T @ A + 1e-6 * len(g) * np.eye(len(terms)), A.T @ g)
    at = limited(np.exp(A @ p))
    factor = (1 / at).mean()
    y, x = (np.polynomial.legendre.legvander(centres(n), order) for n in shape)
    fields = {s: factor * limited(np.exp(sum(k * z[s, a] * np.outer(y[:, b], x[:, c]) for k, (a, b, c) in zip(p, terms)))) for s in ratios}
    logs = np.log(at)
    each = np.split(logs, np.cumsum([len(r) for r in rows])[:-1])
    return fields, logs.std(), np.sqrt(sum(((l - l.mean()) ** 2).sum() for l in each if len(l)) / len(logs))
