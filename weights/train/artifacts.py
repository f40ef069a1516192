"""The three artifacts of `resmap synth` in NumPy, float64: the reference that the C synthesizer must match.

Drawing parameters and applying them are separate: `draw_*` make the entries of a `synth` record

    {"seed": 7, "preset": "moderate", "artifacts": [{"kind": "motion", ...}, {"kind": "bias", ...}, {"kind": "noise", ...}]}

and `apply(x, record, voxel_mm, foreground)` needs nothing else, one frame's record at a time.  The
decisions taken here, where the definitions leave room:

General
  * x is the clean volume in ITS scaled units, x = (v - lo) / (hi - lo) (scaling.py); 3-D array in NIfTI order
    [i, j, k], i fastest in storage; a 2-D file has shape (ni, nj, 1).  The order is motion, bias, noise.
Random numbers
  * Philox4x32-10 (Salmon et al. 2011), key = (seed low 32 bits, seed high 32 bits),
    counter = (index low 32, index high 32, stream, frame) -> r0..r3.
  * A uniform number in [0, 1): u = r0 * 2^-32.  A pair of normal numbers: u1 = (r0 + 1) * 2^-32, u2 = r1 * 2^-32,
    n1 = sqrt(-2 ln u1) cos(2 pi u2), n2 = sqrt(-2 ln u1) sin(2 pi u2).
  * Streams: 0 the voxels' noise (index = voxel number in storage order), 1 the parameters of the noise, 2 of the
    bias field, 3 of the motion.  Parameters take the indexes 0, 1, 2, ... of their stream, one index a number drawn,
    in the order in which the functions below draw them; a normal parameter is n1 of its index.  frame = the
    4-D file's frame number, 0 otherwise.
Noise  {"kind", "sigma", "blur", "rician", "seed", "axis"}
  * y = blur(x + sigma n1), Rician: y = blur(sqrt((x + sigma n1)^2 + (sigma n2)^2)).
  * blur: Gaussian of `blur` voxels along the two axes other than `axis` (the slice axis), radius
    int(4 blur + 0.5), normalised weights, borders reflected with the edge voxel repeated (d c b a | a b c d | d c b a).
Bias  {"kind", "order", "bound", "low", "coefficients"}
  * f = exp(sum over a, b, d with a + b + d <= order of c_abd X^a Y^b Z^d), listed with a outermost and d fastest;
    X, Y, Z run from -1 at the first voxel centre to 1 at the last, 0 on an axis of length 1; c_000 is drawn as well
    (it cancels).  y = x f / mean of f over the clean foreground.  Coefficients are drawn from U(low, bound),
    low = -bound except in preset `paper`, where it is 0.
Motion  {"kind", "sigma_mm", "sigma_deg", "percent", "frequency_axis", "phase_axis", "runs": [{"start", "count",
         "translation_mm": [3], "rotation_deg": [3]}, ...]}
  * Coordinates are the array axes times the voxel edge in mm, origin at the centre (n - 1) / 2.
  * A moved copy is the object rotated by R = Rx Ry Rz (moved(p) = x(R^T p), trilinear, every neighbour outside the
    array counting as 0), Fourier transformed, times exp(-2 pi i f.t) with f = fftfreq(n) / edge as it stands, the
    Nyquist term of an even length included.
  * The frequency axis is drawn among the axes longer than 1; the phase axis is the longer of the other two, the
    lower-numbered on a tie.  Lines are indexes of the phase axis in fftshifted order (DC at n // 2).
  * k = floor(percent / 100 n + 1/2) lines (before protection) in m runs, m drawn from 1..7; run lengths and the still
    gaps between them are cut from k and n - k in proportion to uniform numbers (empty runs are dropped).
  * The central ceil(0.07 n) lines, from n // 2 - ceil(0.07 n) // 2 on, always come from the still copy.
  * The magnitude of the inverse transform is the result; where nothing moves the input is returned as it is.
  * 2-D (an axis of length 1): rotation about that axis and translations along the two others only.
"""
import math

import numpy as np
import scipy.fft
import scipy.ndimage

KINDS = ("motion", "bias", "noise")            # the order of application
STREAM_VOXELS, STREAM_NOISE, STREAM_BIAS, STREAM_MOTION = 0, 1, 2, 3
MASK32 = np.uint64(0xFFFFFFFF)

PRESETS = {
    "paper": {"noise": {"sigma": (0.0, 0.06), "blur": (0.0, 1.0)}, "bias": {"order": (1, 3), "low": 0.0, "bound": 1.0},
              "motion": {"sigma_mm": 10.0, "sigma_deg": 10.0, "percent": (15.0, 20.0)}},
    "mild": {"noise": {"sigma": 0.02, "blur": 0.0}, "bias": {"order": 3, "low": -0.25, "bound": 0.25},
             "motion": {"sigma_mm": 2.0, "sigma_deg": 2.0, "percent": 20.0}},
    "moderate": {"noise": {"sigma": 0.05, "blur": 0.3}, "bias": {"order": 3, "low": -0.5, "bound": 0.5},
                 "motion": {"sigma_mm": 5.0, "sigma_deg": 5.0, "percent": 30.0}},
    "severe": {"noise": {"sigma": 0.10, "blur": 0.6}, "bias": {"order": 3, "low": -0.9, "bound": 0.9},
               "motion": {"sigma_mm": 10.0, "sigma_deg": 10.0, "percent": 40.0}},
}


# ---------------------------------------------------------------- random numbers

def philox(index, seed, stream, frame=0):
    """Four arrays of uint64 holding 32-bit numbers, for an array of 64-bit indexes."""
    index = np.asarray(index, dtype=np.uint64)
    c0, c1 = index & MASK32, index >> np.uint64(32)
    c2 = np.full_like(index, stream)
    c3 = np.full_like(index, frame)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    s32 = np.uint64(32)
    for _ in range(10):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> s32) ^ c1 ^ np.uint64(k0), p1 & MASK32, (p0 >> s32) ^ c3 ^ np.uint64(k1), p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def normal_pair(index, seed, stream, frame=0):
    r0, r1, _, _ = philox(index, seed, stream, frame)
    radius = np.sqrt(-2.0 * np.log((r0.astype(np.float64) + 1.0) * 2.0 ** -32))
    angle = 2.0 * np.pi * (r1.astype(np.float64) * 2.0 ** -32)
    return radius * np.cos(angle), radius * np.sin(angle)


class Draws:
    """Parameters drawn one after another from a stream."""

    def __init__(self, seed, stream, frame=0):
        self.seed, self.stream, self.frame, self.index = seed, stream, frame, 0

    def uniform(self, low=0.0, high=1.0):
        r0 = philox(np.array([self.index]), self.seed, self.stream, self.frame)[0]
        self.index += 1
        return low + (high - low) * float(r0[0]) * 2.0 ** -32

    def normal(self, sigma):
        n = normal_pair(np.array([self.index]), self.seed, self.stream, self.frame)[0]
        self.index += 1
        return sigma * float(n[0])

    def integer(self, low, high):
        """low..high, both included."""
        return low + min(int(self.uniform() * (high - low + 1)), high - low)

    def number(self, value):
        """A fixed number, or one drawn from a (low, high) pair."""
        return self.uniform(*value) if isinstance(value, (tuple, list)) else float(value)


# ---------------------------------------------------------------- drawing

def draw_noise(seed, axis, sigma, blur=0.0, rician=False, frame=0):
    d = Draws(seed, STREAM_NOISE, frame)
    sigma = d.number(sigma)
    blur = d.number(blur)
    return {"kind": "noise", "sigma": sigma, "blur": blur, "rician": bool(rician), "seed": int(seed), "axis": int(axis)}


def bias_terms(order):
    return [(a, b, d) for a in range(order + 1) for b in range(order + 1 - a) for d in range(order + 1 - a - b)]


def draw_bias(seed, order, bound, low=None, frame=0):
    d = Draws(seed, STREAM_BIAS, frame)
    if isinstance(order, (tuple, list)):
        order = d.integer(*order)
    low = -bound if low is None else low
    return {"kind": "bias", "order": order, "low": float(low), "bound": float(bound),
            "coefficients": [d.uniform(low, bound) for _ in bias_terms(order)]}


def phase_axis(shape, frequency_axis):
    a, b = [i for i in range(3) if i != frequency_axis]
    return b if shape[b] > shape[a] else a


def draw_motion(seed, shape, sigma_mm, sigma_deg, percent=(15.0, 20.0), frame=0):
    d = Draws(seed, STREAM_MOTION, frame)
    axes = [i for i in range(3) if shape[i] > 1]
    flat = [i for i in range(3) if shape[i] == 1]
    if len(axes) < 2:
        raise ValueError("motion needs at least two axes longer than 1")
    freq = axes[d.integer(0, len(axes) - 1)]
    phase = phase_axis(shape, freq)
    n = shape[phase]
    percent = d.number(percent)
    k = int(math.floor(percent / 100.0 * n + 0.5))
    m = d.integer(1, 7)
    lengths, gaps = [d.uniform() for _ in range(m)], [d.uniform() for _ in range(m + 1)]

    def cut(total, parts):
        whole = sum(parts) or 1.0
        ends = [int(math.floor(total * sum(parts[:i + 1]) / whole + 0.5)) for i in range(len(parts))]
        return [b - a for a, b in zip([0] + ends[:-1], ends)]

    counts, still = cut(k, lengths), cut(n - k, gaps)
    runs, at = [], 0
    for i in range(m):
        at += still[i]
        t = [d.normal(sigma_mm) for _ in range(3)]
        r = [d.normal(sigma_deg) for _ in range(3)]
        for f in flat:
            t[f] = 0.0
            r = [r[i] if i == f else 0.0 for i in range(3)]
        if counts[i] > 0:
            runs.append({"start": at, "count": counts[i], "translation_mm": t, "rotation_deg": r})
        at += counts[i]
    return {"kind": "motion", "sigma_mm": float(sigma_mm), "sigma_deg": float(sigma_deg), "percent": percent,
            "frequency_axis": freq, "phase_axis": phase, "runs": runs}


def draw(seed, preset, kinds, shape, axis, frame=0):
    """The record of a preset; `axis` is the slice axis (plane_axis)."""
    p = PRESETS[preset]
    out = []
    for kind in KINDS:
        if kind not in kinds:
            continue
        if kind == "noise":
            out.append(draw_noise(seed, axis, frame=frame, **p["noise"]))
        elif kind == "bias":
            out.append(draw_bias(seed, frame=frame, **p["bias"]))
        else:
            out.append(draw_motion(seed, shape, frame=frame, **p["motion"]))
    return {"seed": int(seed), "preset": preset, "artifacts": out}


def plane_axis(affine, shape):
    """The slice axis of `--plane auto`: that of a single slice, else across the largest voxel edge where largest / smallest
    >= 1.5, else axial."""
    if list(shape[:3]).count(1) == 1:
        return list(shape[:3]).index(1)
    m = np.asarray(affine, dtype=np.float64)[:3, :3]
    edge = np.sqrt((m ** 2).sum(0))
    if edge.max() / edge.min() >= 1.5:
        return int(edge.argmax())
    return int(np.abs(m[2] / edge).argmax())


# ---------------------------------------------------------------- applying

def blur_in_plane(x, sigma, axis):
    for a in range(3):
        if a != axis and sigma > 0:
            x = scipy.ndimage.gaussian_filter1d(x, sigma, axis=a, mode="reflect", radius=int(4 * sigma + 0.5))
    return x


def apply_noise(x, record, frame=0):
    x = np.asarray(x, dtype=np.float64)
    n1, n2 = normal_pair(np.arange(x.size, dtype=np.uint64), record["seed"], STREAM_VOXELS, frame)
    n1, n2 = n1.reshape(x.shape, order="F"), n2.reshape(x.shape, order="F")
    y = x + record["sigma"] * n1
    if record.get("rician"):
        y = np.sqrt(y * y + (record["sigma"] * n2) ** 2)
    return blur_in_plane(y, record["blur"], record["axis"])


def ramp(n):
    return np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1)


def bias_field(shape, record):
    """The field before it is normalised."""
    order = record["order"]
    c = np.zeros((order + 1,) * 3)
    for (a, b, d), value in zip(bias_terms(order), record["coefficients"]):
        c[a, b, d] = value
    powers = [np.stack([ramp(n) ** p for p in range(order + 1)], 1) for n in shape]
    e = np.tensordot(powers[0], c, (1, 0))
    e = np.moveaxis(np.tensordot(powers[1], e, (1, 1)), 0, 1)
    return np.exp(np.tensordot(e, powers[2], (2, 1)))


def apply_bias(x, record, foreground):
    f = bias_field(x.shape, record)
    return x * (f / f[foreground].mean())


def rotation(degrees):
    a, b, c = np.deg2rad(degrees)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rx @ ry @ rz


def rotate(x, degrees, voxel_mm):
    """The object turned about the volume's centre."""
    edge = np.asarray(voxel_mm, dtype=np.float64)
    m = rotation(degrees).T * edge[None, :] / edge[:, None]      # output voxel -> input voxel, about the centre
    centre = (np.array(x.shape) - 1) / 2.0
    return scipy.ndimage.affine_transform(x, m, centre - m @ centre, order=1, mode="grid-constant", cval=0.0,
                                          output=x.dtype)


def protected(n):
    count = math.ceil(0.07 * n)
    start = n // 2 - count // 2
    return start, count


def motion_kspace(x, record, voxel_mm):
    """The assembled k-space, not shifted (complex)."""
    k = scipy.fft.fftn(x)
    axis = record["phase_axis"]
    n = x.shape[axis]
    first, keep = protected(n)
    for run in record["runs"]:
        lines = [(i - n // 2) % n for i in range(run["start"], run["start"] + run["count"])
                 if not first <= i < first + keep]
        if not lines or not (any(run["translation_mm"]) or any(run["rotation_deg"])):
            continue
        moved = rotate(x, run["rotation_deg"], voxel_mm) if any(run["rotation_deg"]) else x
        m = scipy.fft.fftn(moved)
        select = [slice(None)] * 3
        select[axis] = lines
        m = m[tuple(select)]
        for a in range(3):
            f = scipy.fft.fftfreq(x.shape[a], d=voxel_mm[a])
            f = f[lines] if a == axis else f
            shape = [1, 1, 1]
            shape[a] = len(f)
            m = m * np.exp(-2j * np.pi * f * run["translation_mm"][a]).reshape(shape).astype(m.dtype)
        k[tuple(select)] = m
    return k


def apply_motion(x, record, voxel_mm):
    if not any(any(r["translation_mm"]) or any(r["rotation_deg"]) for r in record["runs"]):
        return np.array(x)
    return np.abs(scipy.fft.ifftn(motion_kspace(x, record, voxel_mm)))


def apply(x, record, voxel_mm, foreground, frame=0):
    """All artifacts of a record, on a clean scaled volume; `foreground`: boolean, from the clean volume."""
    y = np.asarray(x, dtype=np.float64)
    for a in record["artifacts"]:
        if a["kind"] == "motion":
            y = apply_motion(y, a, voxel_mm)
        elif a["kind"] == "bias":
            y = apply_bias(y, a, foreground)
        elif a["kind"] == "noise":
            y = apply_noise(y, a, frame)
        else:
            raise ValueError("artifact kind %r" % a["kind"])
    return y


def foreground(x):
    return x > np.mean(np.asarray(x, dtype=np.float64))


if __name__ == "__main__":
    # the known-answer tests of Random123: counter and key all zeros, all ones
    got = [int(r[0]) for r in philox(np.array([0]), 0, 0, 0)]
    assert got == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], [hex(g) for g in got]
    got = [int(r[0]) for r in philox(np.array([2 ** 64 - 1], dtype=np.uint64), 2 ** 64 - 1, 0xFFFFFFFF, 0xFFFFFFFF)]
    assert got == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD], [hex(g) for g in got]
    n1, n2 = normal_pair(np.arange(1000000), 7, 0)
    print("philox agrees; a million normal numbers: mean %.5f sd %.5f, mean %.5f sd %.5f" %
          (n1.mean(), n1.std(), n2.mean(), n2.std()))
    rng = np.random.default_rng(0)
    x = scipy.ndimage.gaussian_filter(rng.random((13, 11, 7)), 1.0)
    for preset in PRESETS:
        rec = draw(3, preset, KINDS, x.shape, 2)
        y = apply(x, rec, (1.0, 1.2, 2.5), foreground(x))
        assert np.isfinite(y).all()
    zero = {"artifacts": [draw_motion(3, x.shape, 0.0, 0.0)]}
    assert np.array_equal(apply(x, zero, (1, 1, 1), foreground(x)), x)
    rec = draw_motion(5, x.shape, 3.0, 0.0, 100.0)
    k0, k1 = scipy.fft.fftn(x), motion_kspace(x, rec, (1.0, 1.2, 2.5))
    print("moved lines of %d: %s" % (x.shape[rec["phase_axis"]], [(r["start"], r["count"]) for r in rec["runs"]]))
    print("apply works; k-space changed in %d of %d" % ((abs(k0 - k1) > 1e-9).sum(), k0.size))
