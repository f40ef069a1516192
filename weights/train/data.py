"""Training data: clean volumes by the manifest, and a worker that keeps a pool of corrupted groups on disk.

A group is a few slices of one corrupted (or clean) slab with their clean counterparts, both scaled by the
CORRUPTED slab's numbers, as inference will be.  The artifact is always applied to the slab in 3-D, never to a
slice.  Groups are float16 .npy files [2, slices, H, W] (0: input, 1: target) named KIND-NUMBER-THRESHOLD.npy;
threshold is the corrupted slab's mean, scaled.  `small` groups
are clean slabs as make_small makes them.  The pool rolls: old groups are replaced as new ones are made.
"""
import argparse
import csv
import os
import time

import nibabel
import numpy as np
import scipy.fft
import scipy.ndimage
import torch

import artifacts
from scaling import scale_numbers
from views import area_matrix, view_shape

KINDS = ("motion", "noise", "bias", "clean")
MADE = ("motion", "clean", "small")             # what the pool holds; noise and fields are drawn by train.py
HERE = os.path.dirname(os.path.abspath(__file__))


def data_dir():
    d = os.environ.get("RESMAP_DATA") or os.path.join(HERE, "..", "..", "..", "shared", "data")
    if not os.path.exists(os.path.join(d, "MANIFEST.tsv")):
        raise SystemExit("no MANIFEST.tsv in %s: set RESMAP_DATA" % d)
    return d


def manifest(split):
    with open(os.path.join(data_dir(), "MANIFEST.tsv"), newline="") as f:
        return [r for r in csv.DictReader(f, delimiter="\t") if r["split"] == split]


def load(row):
    """(float32 array, voxel edges, affine), a few known blemishes of the files repaired."""
    img = nibabel.load(os.path.join(data_dir(), row["path"]))
    v = np.asarray(img.dataobj, dtype=np.float32)
    v = v.reshape(v.shape[:3])
    if "TCIA10_637" in row["path"] or "TCIA10_639" in row["path"]:
        v = np.minimum(v, np.percentile(v, 99.9))
    if v.min() < 0:
        v = np.maximum(v, 0)
    return v, np.array(img.header.get_zooms()[:3], dtype=np.float64), img.affine


def weight(row):
    """By volume: skull-stripped interpolated volumes less, T2w most."""
    w = {"T2w": 1.0, "FLAIR": 0.6, "T1w": 1.2}[row["modality"]]
    return 0.6 * w if row["path"].startswith("brats18") else w


class Source:
    def __init__(self, split="train"):
        self.rows = manifest(split)
        self.p = np.array([weight(r) for r in self.rows])
        self.p /= self.p.sum()
        self.cache = {}

    def volume(self, rng):
        i = rng.choice(len(self.rows), p=self.p)
        if i not in self.cache:
            v, edge, affine = load(self.rows[i])
            self.cache[i] = (v.astype(np.float16 if v.max() < 6e4 and v.max() > 200 else np.float32), edge,
                             artifacts.plane_axis(affine, v.shape), edge.max() / edge.min() < 1.5)
        return self.cache[i]


def kcrop(x, n0, n1):
    """In-plane resampling to n0 x n1 (smaller) by cropping k-space, magnitude."""
    k = scipy.fft.fft2(x, axes=(0, 1))
    for a, (n, m) in enumerate(zip(x.shape[:2], (n0, n1))):
        f = np.r_[0:(m + 1) // 2, n - m // 2:n]
        k = np.take(k, f, axis=a)
    return np.abs(scipy.fft.ifft2(k, axes=(0, 1))) * (n0 * n1 / (x.shape[0] * x.shape[1]))


def coil_shading(shape, rng):
    """Shading as scanners leave it in scans that are called clean, for x [w, h, slices]: brighter towards a ring of coils, or in
    the middle (dielectric effect).  Nearly the same left and right and along the slices, unlike the fields of the bias class."""
    w, h, n = shape
    px, py, pz = np.meshgrid(*(np.linspace(-1, 1, s, dtype=np.float32) for s in (w, h, n)), indexing="ij", sparse=True)
    cx, cy, cz = rng.normal(0, 0.06), rng.normal(0, 0.15), rng.normal(0, 0.3)
    if rng.random() < 0.6:
        count, reach, ring = int(rng.integers(4, 13)), rng.uniform(0.5, 1.2), rng.uniform(0.9, 1.5)
        f = np.zeros(shape, dtype=np.float32)
        for k in range(count):
            angle = 2 * np.pi * (k + 0.5) / count + rng.normal(0, 0.05)
            d = (px - cx - ring * np.cos(angle)) ** 2 + (py - cy - ring * np.sin(angle)) ** 2 + (0.5 * (pz - cz)) ** 2
            f += rng.lognormal(0, 0.08) * (1 + d / np.float32(reach ** 2)) ** -3
        f = np.sqrt(f)
    else:
        d = (px - cx) ** 2 + (py - cy) ** 2 + rng.uniform(0, 0.6) * (pz - cz) ** 2
        f = 1 + rng.uniform(0.5, 3) * np.exp(-d / np.float32(rng.uniform(0.3, 1.5)))
    f = np.log(f)
    span = np.percentile(f, 95) - np.percentile(f, 5)
    return np.exp(f * np.float32(rng.uniform(0.05, 0.6) / span))         # scanners correct most of it, and none all of it


def warped(x, rng):
    """x [w, h, slices] stretched, turned, sheared and bent in the plane, smoothly along the slices: another head of the same tissues."""
    w, h, n = x.shape
    turn = np.eye(2) + rng.normal(0, 1, (2, 2)) * [[0.07, 0.05], [0.05, 0.07]]
    angle = rng.normal(0, 0.1)
    turn = turn @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    u, v = (np.linspace(-1, 1, s, dtype=np.float32) for s in (h, w))
    z = np.linspace(-1, 1, n)
    # bending: cosines of up to two periods across, weaker the quicker they vary
    waves = lambda c, count: np.stack([np.cos(0.5 * np.pi * k * (c + 1) + p) for k, p in enumerate(rng.uniform(0, 2 * np.pi, count))])
    size = 0.08 / (1 + np.add.outer(np.arange(5) ** 2, np.arange(5) ** 2))
    bend = [np.einsum("kl,lv,ku,nkl->nvu", size, waves(v, 5), waves(u, 5),
                      rng.normal(0, 1, (5, 5)) + 0.6 * z[:, None, None] * rng.normal(0, 1, (5, 5)), optimize=True) for _ in (0, 1)]
    at = np.stack([turn[0, 0] * u + turn[0, 1] * v[:, None] + bend[0], turn[1, 0] * u + turn[1, 1] * v[:, None] + bend[1]], -1)
    y = torch.nn.functional.grid_sample(torch.from_numpy(x.transpose(2, 0, 1).copy())[:, None], torch.from_numpy(at.astype(np.float32)),
                                        mode="bicubic", align_corners=True)
    return np.maximum(y[:, 0].numpy().transpose(1, 2, 0), 0)


def scanned(x, edge, rng):
    """As other scanners and their software would leave x: thick slices, or k-space that ends early (interpolated to the matrix,
    with or without ringing), or blurred, or sharpened."""
    if edge[2] < 2 and rng.random() < 0.3:
        x = scipy.ndimage.uniform_filter1d(x, int(rng.integers(2, 6)), axis=2, mode="nearest")
    u = rng.random()
    if u < 0.2:
        k = scipy.fft.fft2(x, axes=(0, 1))
        window, soft = rng.random() < 0.4, rng.uniform(0.1, 0.6)
        for a in (0, 1):
            f = np.abs(scipy.fft.fftfreq(x.shape[a])) * 2 / rng.uniform(0.5, 1.0)
            keep = np.clip((1 - f) / soft, 0, 1) if window else f <= 1
            k *= np.expand_dims(keep.astype(np.float32), (1 - a, 2))
        x = np.abs(scipy.fft.ifft2(k, axes=(0, 1)))
    elif u < 0.35:
        x = scipy.ndimage.gaussian_filter(x, (*rng.uniform(0.3, 0.9, 2), 0))
    elif u < 0.5:
        x = np.maximum(x + np.float32(rng.uniform(0.3, 1.2)) * (x - scipy.ndimage.gaussian_filter(x, (0.8, 0.8, 0))), 0)
    return x.astype(np.float32)


def head(x, threshold):
    """A mask of the head in a slice [H, W], its holes filled."""
    return scipy.ndimage.binary_fill_holes(scipy.ndimage.gaussian_filter(x, 2) > threshold)


def cut_out(x, edge, rng):
    """The head without its rim and with nothing around, roughly as after skull stripping, or with all air set to zero."""
    threshold = rng.uniform(0.04, 0.1)
    inside = np.stack([head(x[:, :, i], threshold) for i in range(x.shape[2])], 2)
    if rng.random() < 0.6:
        rim = rng.uniform(8, 18)
        inside = np.stack([scipy.ndimage.distance_transform_edt(inside[:, :, i], edge[:2]) > rim for i in range(x.shape[2])], 2)
    return x * inside if inside.mean() > 0.1 else x


def clean_slab(src, rng, kind, whole=False):
    """A clean slab, slice axis last, scaled roughly; in-plane edges; indexes of slices that may be used."""
    v, edge, axis, isotropic = src.volume(rng)
    if isotropic and rng.random() < 0.15:
        axis = rng.integers(3)
    v = np.moveaxis(v, axis, 2)
    edge = np.r_[np.delete(edge, axis), edge[axis]]
    n = v.shape[2]
    # slab and, for motion, a margin for what rotates in from outside
    if whole:
        margin, z0, z1 = 0, 0, n
    elif n > 60:
        thick = int(rng.integers(24, 72))
        margin = int(rng.integers(0, 20)) if kind == "motion" else 0
        centre = int(np.clip(rng.normal(n * 0.5, n * 0.15), thick / 2, n - thick / 2))
        z0, z1 = max(0, centre - thick // 2 - margin), min(n, centre + thick // 2 + margin)
    else:
        margin, z0, z1 = 0, 0, n
        if rng.random() < 0.3 and n > 30:
            z0 = int(rng.integers(0, n - 24))
            z1 = min(n, z0 + int(rng.integers(16, 30)))
    x = v[:, :, z0:z1].astype(np.float32)
    lo, hi, mean = scale_numbers(x)
    x = x / np.float32(hi)
    # field of view
    if rng.random() < 0.5:
        on = x > 0.1
        for a in (0, 1):
            idx = np.flatnonzero(on.any(axis=(1 - a, 2)))
            m = rng.integers(4, 24, 2)
            s = slice(max(0, idx[0] - m[0]), min(x.shape[a], idx[-1] + m[1]))
            x, on = (x[s], on[s]) if a == 0 else (x[:, s], on[:, s])
    # in-plane resolution
    e = edge[:2].mean()
    u = rng.random()
    target = e
    if u < 0.5:
        target = np.exp(rng.uniform(np.log(max(e, 0.5)), np.log(max(1.25, 1.1 * e))))
    elif u < 0.75:
        target = np.exp(rng.uniform(np.log(1.2), np.log(2.0)))
    if target > 1.03 * e:
        n0, n1 = (max(64, int(round(s * e / target))) for s in x.shape[:2])
        if n0 < x.shape[0] and n1 < x.shape[1]:
            edge[:2] *= [x.shape[0] / n0, x.shape[1] / n1]
            if rng.random() < 0.5:
                x = kcrop(x, n0, n1)
            else:
                x = np.einsum("ai,ijk,bj->abk", area_matrix(x.shape[0], n0).astype(np.float32), x,
                              area_matrix(x.shape[1], n1).astype(np.float32), optimize=True)
    if rng.random() < 0.7:
        x = warped(x, rng)
    # contrast
    u = rng.random()
    if u < 0.5:
        x = np.clip(x, 0, None) ** np.float32(rng.uniform(0.75, 1.35))
    elif u < 0.75:                      # tissues trade places, as between T1w, T2w and what was never seen
        knots = np.r_[0, 0.12, np.sort(rng.uniform(0.2, 0.9, 3)), 1, 2]
        x = np.interp(x, knots, np.r_[0, rng.uniform(0.02, 0.3), rng.uniform(0.15, 1, 5)]).astype(np.float32)
    x = scanned(x, edge, rng)
    if rng.random() < 0.08:
        x = cut_out(x, edge, rng)
    if rng.random() < 0.3:
        x = x * coil_shading(x.shape, rng)
    lo, hi, mean = scale_numbers(x)
    x = (x / hi).astype(np.float32)
    if rng.random() < 0.5:
        x = x[::-1]
    if rng.random() < 0.5:
        x = x[:, :, ::-1]
    x = np.ascontiguousarray(x)
    fg = x > mean / hi
    share = fg.mean(axis=(0, 1))
    ok = [i for i in range(margin, x.shape[2] - margin) if share[i] > 0.06 or (share[i] > 0.005 and rng.random() < 0.1)]
    return x, edge, fg, ok


def corrupt(x, edge, kind, rng):
    if kind == "clean":
        return x
    seed = int(rng.integers(2 ** 62))
    s = rng.uniform(3, 7) if rng.random() < 0.5 else np.exp(rng.uniform(np.log(0.5), np.log(14)))
    rec = artifacts.draw_motion(seed, x.shape, s, s * rng.uniform(0.5, 1.4), (15.0, 45.0))
    return artifacts.apply_motion(x, rec, edge).astype(np.float32)


def make_group(src, rng, kind, slices=8):
    for _ in range(20):
        x, edge, fg, ok = clean_slab(src, rng, kind)
        if len(ok) < 2 or min(x.shape[:2]) < 64:
            continue
        y = corrupt(x, edge, kind, rng)
        lo, hi, mean = scale_numbers(y)
        pick = rng.permutation(ok)[:slices]
        out = np.stack([y[:, :, pick], x[:, :, pick]]).transpose(0, 3, 2, 1)       # [2, n, H, W], W the lower axis
        out = (out - np.float32(lo)) / np.float32(hi - lo)
        return out.astype(np.float16), (mean - lo) / (hi - lo)
    raise RuntimeError("no usable slab")


def make_small(src, rng, pixels=64):
    """A clean slab whose slices are all area-averaged to 64 pixels: [slices, h, w], its full-size scale 1.

    Bias fields are smooth, so training draws them afresh on these (train.py), as many as it wants.
    """
    x, edge, fg, ok = clean_slab(src, rng, "bias", rng.random() < 0.5)
    h, w = view_shape(x.shape[1], x.shape[0], pixels)
    y = np.einsum("ai,ijk,bj->kba", area_matrix(x.shape[0], w).astype(np.float32), x,
                  area_matrix(x.shape[1], h).astype(np.float32), optimize=True)
    return y.astype(np.float16)


def worker(pool, split, seed, sizes, pause, once=False, slices=8):
    os.makedirs(pool, exist_ok=True)
    rng, made = np.random.default_rng([seed] if once else [seed, int(time.time())]), MADE
    src = Source(split)
    serial = 1 + max([int(f.split("-")[1]) for f in os.listdir(pool) if f.endswith(".npy")] or [0])
    while True:
        have = {k: sorted((f for f in os.listdir(pool) if f.startswith(k)), key=lambda f: int(f.split("-")[1])) for k in made}
        fill = [len(have[k]) / sizes[k] for k in made]
        if once and min(fill) >= 1:
            return
        kind = made[int(np.argmin(fill))] if min(fill) < 1 else rng.choice(made, p=[0.6, 0.2, 0.2])
        try:
            g, threshold = (make_small(src, rng), 0.0) if kind == "small" else make_group(src, rng, kind, slices)
        except (RuntimeError, ValueError, IndexError) as e:
            print("group left out:", kind, repr(e), flush=True)
            continue
        name = "%s-%d-%.5f.npy" % (kind, serial, threshold)
        tmp = os.path.join(pool, ".tmp")
        with open(tmp, "wb") as f:
            np.save(f, g)
        os.rename(tmp, os.path.join(pool, name))
        serial += 1
        for f in have[kind][:max(0, len(have[kind]) + 1 - sizes[kind])]:
            os.remove(os.path.join(pool, f))
        if min(fill) >= 1:
            time.sleep(pause)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pool", required=True)
    p.add_argument("--split", default="train")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--groups", type=int, default=100, help="groups kept of a kind (motion: twice as many)")
    p.add_argument("--slices", type=int, default=8, help="slices of a group: more cost little beside the moving of a slab, but are alike")
    p.add_argument("--once", action="store_true", help="fill an empty directory, the same for the same seed, and end")
    p.add_argument("--pause", type=float, default=0.5)
    a = p.parse_args()
    worker(a.pool, a.split, a.seed, {k: a.groups * (2 if k == "motion" else 1) for k in MADE}, a.pause, a.once, a.slices)
