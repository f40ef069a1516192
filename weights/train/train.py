"""Trains resmap-s: restoration and classification together, on the CPU, one process.

Each optimizer step sums a few tasks, each repeated as --work says:
  motion  one whole slice or large crop: restoration and classification
  noise   patches, crops and slices under noise drawn afresh: restoration; classification on a large crop
  bias    shrunken 64-pixel views of whole slices under fields drawn afresh: restoration, and classification of the same
          slices with and without the field; one whole slice or large crop: classification
  clean   whole slice or large crop: classification; seldom restoration with another class's prompt (must do nothing)
  masked  a slice that shows no air, with and without noise or motion: classification only
  state   what the cascade meets: a slice under one to three artifacts, or what is left of one after some of the network's
          own steps; classification only, by what helps (see task_state)
Restoration learns one artifact at a time, as in the paper: what a sample is to be restored to differs from it by that
artifact alone, but may itself be shaded, noisy or ghosted, so that a step learns to leave the others to theirs.
Nearly a third of the samples show no air, as behind a mask: else noise and ghosts are looked for there alone.
The classifier always sees two views, the slice or crop and the shrunken whole slice, at all four levels.
--plain is the paper's way: bias steps work at full resolution, and the classifier sees one view's latent.
Started by torchrun, the processes take one step together: each does its own part of --work (parts divided by `/`), then the
task --filler until all are done, and their gradients are summed.
The learning rate follows the time spent (warm-up, then cosine), so a run ends when it must, or the steps done (--steps); state is
kept for resuming, and saved when the process is asked to end (SIGTERM); first.pt is where it began.
"""
import argparse
import collections
import json
import math
import os
import random
import signal
import time

import numpy as np
import scipy.ndimage
import torch
import torch.distributed
import torch.nn.functional as F

from artifacts import bias_terms
from data import KINDS, MADE, head
from export import load
from fast import accelerate
from model import ResMAP, initialise
from views import area_matrix, field, limited, pad8, ratio, view_shape, volume_field

# hidden widths of 2.5 are multiples of 16, on which the CPU kernels of PyTorch are markedly quicker than on 2.66's
CONFIG = dict(dim=16, num_blocks=[1, 3, 4, 8], num_refinement_blocks=6, heads=[1, 2, 4, 8], ffn_expansion_factor=2.5,
              layer_norm="BiasFree", classifier_hidden=64, class_pixels={"bias": 64}, classifier_views=2, classifier_levels=4, field_order=3, field_passes=3)
PLAIN = {k: v for k, v in CONFIG.items() if k not in ("class_pixels", "classifier_views", "classifier_levels", "field_order", "field_passes")}
PIXELS = 64
MASKED = 0.3                     # share of samples
RESAMPLED = 0.25                 # share of the noisy slices that were interpolated to their grid after acquisition
CLASS = {"motion": 0, "noise": 1, "bias": 2, "clean": 3}


class Prompts:
    def __init__(self, path, device):
        z = np.load(path)
        f, c = torch.tensor(z["features"].astype(np.float32)), z["class"]
        self.of = [f[torch.from_numpy(np.flatnonzero(c == i))].to(device) for i in range(len(KINDS))]
        self.centroid = [x.mean(0) for x in self.of]

    def sample(self, cls, n, share=0.4):
        rows = [self.centroid[cls] if random.random() < share else random.choice(self.of[cls]) for _ in range(n)]
        return torch.stack(rows)


def top_of(x):
    """The upper scaling number of a volume by a part of it."""
    return np.percentile(x[x > x.mean()], 99.5)


def with_noise(g, i, sigma, blur, rician=None, others=2):
    """Slice i of the group g [n, H, W] under noise, and how far that moves the scale, by this slice and a few others."""
    pick = [i] + random.sample([k for k in range(len(g)) if k != i], min(others, len(g) - 1))
    x = np.asarray(g[pick], dtype=np.float32)
    noise = lambda: np.random.standard_normal(x.shape).astype(np.float32) * np.float32(sigma)
    y = x + noise()
    if random.random() < 0.15 if rician is None else rician:
        y = np.hypot(y, noise())
    if blur > 0:
        y = scipy.ndimage.gaussian_filter(y, (0, blur, blur), truncate=4.0, mode="reflect")
    return y[0], top_of(y) / top_of(x)


def random_noise():
    """sigma, blur: white noise of middling strength, strong white noise (as it is to a brain that is dark and flat beside bright
    fat), strong blurred noise (which is easily taken for texture), and anything."""
    u = random.random()
    if u < 0.65:
        sigma = random.uniform(0.02, 0.09) if u < 0.55 else math.exp(random.uniform(math.log(0.07), math.log(0.15)))
        return sigma, random.choice((0.0, random.uniform(0.2, 0.5)))
    if u < 0.82:
        return random.uniform(0.05, 0.14), random.uniform(0.4, 0.85)
    return math.exp(random.uniform(math.log(0.001), math.log(0.15))), random.uniform(0, 1)


def flat(x):
    """A slice [H, W] of few tissues without texture, as phantoms are: levels of the smoothed slice, edges softened or not."""
    levels = np.quantile(x[x > x.mean()], np.sort(np.random.uniform(0, 1, random.randint(2, 7))))
    levels = np.unique(np.r_[0, random.uniform(0, 0.3) * levels[0], levels])
    if len(levels) < 3:
        return x
    x = scipy.ndimage.gaussian_filter(x, random.uniform(0.7, 1.5))
    x = levels[np.digitize(x, (levels[1:] + levels[:-1]) / 2)].astype(np.float32)
    soft = random.choice((0, 0, random.uniform(0.2, 0.6)))
    return scipy.ndimage.gaussian_filter(x, soft) if soft else x


def masked(z):
    """A sample [2, 1, 1, H, W] as a mask or skull stripping leaves it, or cut so close that nothing of the air is left: what air shows of
    noise and ghosts is not there then.  In the scale that the program would find."""
    x = z[0, 0, 0].numpy()
    inside = head(z[1, 0, 0].numpy(), random.uniform(0.04, 0.12))
    if random.random() < 0.5:               # without the rim, as after skull stripping
        inside = scipy.ndimage.distance_transform_edt(inside) > random.uniform(0.02, 0.08) * max(x.shape)
    if inside.mean() < 0.08:
        return z
    if random.random() < 0.3:
        rows, columns = (np.flatnonzero(inside.any(a)) for a in (1, 0))
        trim = lambda k: slice(*(int(k[0] + (k[-1] - k[0]) * c) for c in (random.uniform(0.1, 0.25), random.uniform(0.75, 0.9))))
        cut = trim(rows), trim(columns)
        if min(c.stop - c.start for c in cut) < 72:
            return z
        seen, values = z[..., cut[0], cut[1]], x[cut]
    else:
        seen = z * torch.from_numpy(inside)
        values = x[inside] if random.random() < 0.5 else seen[0, 0, 0].numpy()
    return (seen / float(top_of(values) / top_of(x))).contiguous()


def sometimes_masked(z):
    return masked(z) if random.random() < MASKED else z


class Pool:
    """Random groups of the rolling pool; a file may vanish between listing and loading."""

    def __init__(self, path):
        self.path, self.listed, self.names = path, 0, {}

    def group(self, kind):
        while True:
            if time.time() - self.listed > 15:
                names = sorted(f for f in os.listdir(self.path) if f.endswith(".npy"))
                self.names = {k: [f for f in names if f.startswith(k)] for k in MADE}
                self.listed = time.time()
            try:
                name = random.choice(self.names[kind])
                g = np.load(os.path.join(self.path, name), mmap_mode="r")
                return g, float(name[:-4].split("-")[2])
            except (FileNotFoundError, IndexError, ValueError):
                time.sleep(0.2)
                self.listed = 0

    def slices(self, kind, n):
        """n slices of one group: [2, n, 1, H, W] float32, turned and flipped at random."""
        g, threshold = self.group(kind)
        x = torch.from_numpy(np.array(g[:, np.random.permutation(g.shape[1])[:n]], dtype=np.float32))
        if random.random() < 0.3:
            x = torch.rot90(x, random.choice((1, 2, 3)), (2, 3))
        if random.random() < 0.5:
            x = x.flip(3)
        return x.unsqueeze(2).contiguous(), threshold


    def fields(self, count, n):
        """`count` bias fields drawn afresh, each over n shrunken slices of one clean slab: [2, count * n, 1, h, w], scaled by
        the biased slab; what each of the second half is to be multiplied by to be in its own scale; each slice's number in
        the slab, and how many there are."""
        while True:
            x = np.array(self.group("small")[0], dtype=np.float32)
            if random.random() < 0.2:          # flat brains, whose tissues hardly differ: contrast drawn in towards its mean
                level, top = x[x > x.mean()].mean(), top_of(x)
                x = np.where(x > 0.4 * level, level + (x - level) * np.float32(random.uniform(0.25, 0.8)), x)
                x *= top / top_of(x)
            k, parts, own, at = x.shape[0], [], [], []
            for _ in range(count):
                strength = random.uniform(*random.choices(((0.3, 0.7), (0.7, 1.1), (0.05, 1.1)), (0.35, 0.25, 0.4))[0])
                y, fg, hi = biased(x, np.arange(k) / (k - 1) * 2 - 1, strength, 2, 4)
                ok = np.flatnonzero(fg.mean((1, 2)) > 0.06)
                if len(ok) < n:
                    break
                pick = np.random.permutation(ok)[:n]
                z = np.stack([y[pick], x[pick]]) / np.float32(hi)
                if random.random() < 0.4:          # what is left of noise in a shrunken view
                    z += np.random.standard_normal(z.shape[1:]).astype(np.float32) * np.float32(random.uniform(0, 0.02))
                parts.append(z)
                own += [float(hi)] * n
                at += list(pick)
            if len(parts) < count:
                continue
            z = torch.from_numpy(np.concatenate(parts, 1)).unsqueeze(2)
            if random.random() < 0.3:
                z = torch.rot90(z, random.choice((1, 2, 3)), (3, 4))
            return (z.flip(4) if random.random() < 0.5 else z).contiguous(), torch.tensor(own), at, k

    def turned(self, v):
        """[2, H, W] as a sample [2, 1, 1, H, W], turned and flipped at random."""
        v = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32))[:, None, None]
        if random.random() < 0.3:
            v = torch.rot90(v, random.choice((1, 2, 3)), (3, 4))
        return (v.flip(4) if random.random() < 0.5 else v).contiguous()

    def made(self, base, bias=None, noise=None):
        """A slice of a group `base`, a field of strength `bias` over it, `noise` (sigma, blur) upon that:
        ([stages, H, W] from the group's target to the last artifact, all in the last one's scale; threshold)."""
        g, threshold = self.group(base)
        i = random.randrange(g.shape[1])
        last = np.array(g[0], dtype=np.float32)
        stages, top = [np.array(g[1, i], dtype=np.float32)], 1.0
        if base == "motion":
            stages.append(last[i])
        if bias:
            z = np.sort(np.random.uniform(-1, 1, len(last))) * random.choice((0.4, 1.0))
            last, fg, hi = biased(last, z, bias, 4)
            stages.append(last[i])
            top *= hi
        stages = np.stack(stages)
        if noise:
            size, grown = stages.shape[1:], random.random() < RESAMPLED
            if grown:                          # acquired at fewer pixels: what registration and reformatting leave of noise
                side = int(max(size) * random.uniform(0.45, 0.85))
                pick = [i] + [k for k in np.random.permutation(len(last))[:2] if k != i]
                stages, last = (shrunk(torch.from_numpy(v), side).numpy() for v in (stages, last[pick]))
                i = 0
            y, hi = with_noise(last, i, *noise)
            stages = np.concatenate([stages, y[None]])
            if grown:
                times, order = [n / m for n, m in zip(size, stages.shape[1:])], random.choice((1, 3, 3))
                stages = np.stack([scipy.ndimage.zoom(v, times, order=order, mode="nearest", grid_mode=True) for v in stages])
            top *= hi
        return stages.astype(np.float32) / np.float32(top), threshold

    def sample(self, kind):
        """One slice with one artifact, and what it is to be restored to: [2, 1, 1, H, W] input, target; threshold.
        The target may be shaded by a field or be ghosted itself, both may be masked."""
        z, th = self.slices("clean", 1) if kind == "clean" else self.corrupted(kind)
        return sometimes_masked(z), th

    def corrupted(self, kind):
        """The same with air, of the kinds that are artifacts."""
        if kind == "noise":
            if random.random() < 0.12:
                g, th = self.group("clean")
                x = flat(np.array(random.choice(g[0]), dtype=np.float32))
                y, hi = with_noise(x[None], 0, *random_noise())
                return self.turned(np.stack([y, x]) / np.float32(hi)), th
            base = "motion" if random.random() < 0.15 else "clean"
            s, th = self.made(base, random.uniform(0.2, 0.9) if random.random() < 0.15 else None, random_noise())
            return self.turned(s[[-1, -2]]), th
        if kind == "bias":
            s, th = self.made("clean", random.uniform(0.25, 1.0))
            return self.turned(s[[-1, -2]]), th
        g, th = self.group("motion")
        i = random.randrange(g.shape[1])
        v = np.array(g[:, i], dtype=np.float32)
        if random.random() < 0.15:             # the same field over both: a change of contrast
            y, fg, hi = biased(v, np.zeros(2), random.uniform(0.2, 0.9), 4)
            v = y / np.float32(hi)
        if random.random() < 0.3:              # what a denoising leaves, or a scanner adds
            v += np.random.standard_normal(v.shape[1:]).astype(np.float32) * np.float32(random.uniform(0, 0.015))
        return self.turned(v), th


def biased(x, z, c, stride, shrink=1):
    """Slices x [k, h, w] at depths z under a random field of strength c: (y, foreground, how far the scale moved).
    Each pixel stands for `shrink` voxels of the slice's edges."""
    k, h, w = x.shape
    order = random.choices((1, 2, 3), (0.15, 0.2, 0.65))[0]
    low = 0.0 if random.random() < 0.2 else -c
    coef = np.zeros((order + 1,) * 3, dtype=np.float32)
    for a, b, d in bias_terms(order):
        coef[a, b, d] = random.uniform(low, c)
    px, py, pz = (np.stack([u ** p for p in range(order + 1)], 1).astype(np.float32)
                  for u in (*(((np.arange(n) + 0.5) * shrink - 0.5) * 2 / (n * shrink - 1) - 1 for n in (w, h)), z))
    plane = np.tensordot(pz, coef, (1, 2))                                   # [k, a, b]
    f = np.exp(py @ plane.transpose(0, 2, 1) @ px.T)
    mean = x.mean()
    fg = x > mean
    f /= f[fg].mean()
    y = x * f
    ys, xs = y[:, ::stride, ::stride], x[:, ::stride, ::stride]
    # the clean slab's scale is 1 at full size; what averaging or picking slices does to the top, it does to both
    return y, fg, np.percentile(ys[ys > ys.mean()], 99.5) / np.percentile(xs[xs > mean], 99.5)


def shrunk(x, pixels):
    h, w = x.shape[-2:]
    sh, sw = view_shape(h, w, pixels)
    a = torch.tensor(area_matrix(h, sh), dtype=x.dtype)
    b = torch.tensor(area_matrix(w, sw), dtype=x.dtype)
    with torch.autocast("cpu", enabled=False):             # bfloat16 would drown a faint field
        return a @ x @ b.T


def crop(x, size, threshold, tries=4):
    """A random window of [.., H, W], the one of a few tries that holds most foreground, or whole where smaller."""
    h, w = x.shape[-2:]
    ch, cw = min(size, h), min(size, w)
    best = None
    for _ in range(tries):
        i, j = random.randint(0, h - ch), random.randint(0, w - cw)
        c = x[..., i:i + ch, j:j + cw]
        share = (c[0] > threshold).float().mean().item()
        if best is None or share > best[0]:
            best = (share, c)
        if share > 0.2:
            break
    return best[1]


def large(x, threshold, progress, whole=1.0, shrink=0.5):
    """A whole slice, shrunken or not, or a crop of at least 128; small ones first, native whole ones as training goes."""
    h, w = x.shape[-2:]
    u = random.random()
    if u < whole * (0.05 + 0.45 * progress ** 2) and h * w <= 64000 or u < whole * 0.15 * progress ** 2:
        return x
    if random.random() < shrink:
        side = random.randint(96, int(136 + 64 * progress))
        return shrunk(x, side) if max(h, w) > side else x
    return crop(x, random.randrange(128, int(145 + 64 * progress), 16), threshold)


def begin(net, tensors):
    """Takes over weights.  Blocks that they lack begin as the identity: what they add is zero at first; so are levels that the
    classifier did not see."""
    old = tensors.get("classifier.fc1.weight")
    if old is not None and old.shape != net.classifier.fc1.weight.shape:
        wide = torch.zeros_like(net.classifier.fc1.weight).unflatten(1, (net.views, -1))
        wide[..., :old.shape[1] // net.views] = old.unflatten(1, (net.views, -1))
        tensors = dict(tensors, **{"classifier.fc1.weight": wide.flatten(1)})
    lacking, strange = net.load_state_dict(tensors, strict=False)
    stages = ("encoder_level", "latent.", "decoder_level", "refinement.")
    wrong = strange + [k for k in lacking if not k.startswith(stages)]
    if wrong:
        raise SystemExit("--start lacks, or has what this network has not: " + ", ".join(wrong))
    with torch.no_grad():
        for k in lacking:
            if k.endswith("project_out.weight"):
                net.state_dict()[k].zero_()


class Optimizers:
    """Muon for matrices, which are the convolutions but depthwise ones (a row an output channel; queries, keys and values apart),
    its steps about as long as Adam's; Adam for the rest."""

    def __init__(self, net, rate):
        self.matrices, rest = [], []
        for name, q in net.named_parameters():
            if q.ndim == 4 and q.shape[1] > 1 and min(len(q), q[0].numel()) >= 8:
                parts = 3 if name.endswith("qkv.weight") else 1
                self.matrices += [(q, parts, i, v) for i, v in enumerate(q.detach().flatten(1).chunk(parts))]
            else:
                rest.append(q)
        self.both = [torch.optim.Muon([v for *_, v in self.matrices], lr=rate, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
                     torch.optim.Adam(rest, lr=rate, betas=(0.9, 0.999))]

    def step(self, rate):
        for q, parts, i, v in self.matrices:
            v.grad = None if q.grad is None else q.grad.flatten(1).chunk(parts)[i]
        for o in self.both:
            for group in o.param_groups:
                group["lr"] = rate
            o.step()

    def state_dict(self):
        return [o.state_dict() for o in self.both]

    def load_state_dict(self, states):
        for o, state in zip(self.both, states):
            o.load_state_dict(state)


def lr_at(t, peak, floor=0.01):
    """t: the share of the run that is over."""
    warm = min(1.0, t / 0.015 + 0.02)
    return peak * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pool", required=True, help="directory kept filled by data.py")
    p.add_argument("--out", required=True, help="directory of checkpoints and log")
    p.add_argument("--prompts", required=True, help="features.npz")
    p.add_argument("--minutes", type=float, default=100, help="the whole run, resumed parts included")
    p.add_argument("--steps", type=int, help="the whole run in steps instead: with a pool that does not change the same weights every time")
    p.add_argument("--peak", type=float, default=1e-3)
    p.add_argument("--average", type=float, default=0.998, help="of the weights, a step")
    p.add_argument("--ce", type=float, default=0.02, help="weight of the cross entropy (0: no classification at all)")
    p.add_argument("--plain", action="store_true", help="without class_pixels and the classifier's second view")
    p.add_argument("--pairs", type=float, default=0.15, help="weight of the cross entropy on pairs with and without a field")
    p.add_argument("--ask", type=float, default=1, help="most samples of a task in a step that are put to the classifier: it comes to "
                   "name what it is asked about most")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--weights", default="motion=1,noise=1,bias=1", help="loss weights; a task's work follows --work")
    p.add_argument("--work", default="noise=1,bias=1,motion=1,clean=1,state=1,masked=1", help="repetitions of a task in a step (may be < 1)")
    p.add_argument("--filler", help="a task that a process goes on with until the other processes are done with theirs")
    p.add_argument("--fast", action="store_true", help="the kernels of fast.cpp, which needs a C++ compiler and ninja")
    p.add_argument("--fp32", action="store_true", help="float32 instead of bfloat16, for processors without instructions for the latter")
    p.add_argument("--start", help="a weights file, or a checkpoint's averaged weights, to start from")
    p.add_argument("--ready", type=float, default=0, help="share of a run's growth of slices that is behind at its start")
    p.add_argument("--save-every", type=float, default=180, help="seconds")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    os.makedirs(a.out, exist_ok=True)
    pairs = lambda s: {k: float(v) for k, v in (q.split("=") for q in s.split(","))}
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    parts = a.work.split("/")
    if len(parts) != ranks:
        raise SystemExit("--work has %d parts for %d processes" % (len(parts), ranks))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    weights, work = pairs(a.weights), pairs(parts[rank])

    torch.manual_seed(a.seed)
    net = initialise(ResMAP(**(PLAIN if a.plain else CONFIG)))
    ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
    optimizers = Optimizers(net, a.peak)
    step, spent, seen = 0, 0.0, 0
    if a.start:
        begin(net, {k: v.float() for k, v in load(a.start)["ema"].items()})
        ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
    last = os.path.join(a.out, "last.pt")
    if os.path.exists(last):
        s = torch.load(last, weights_only=True)
        net.load_state_dict(s["net"])
        optimizers.load_state_dict(s["optimizers"])
        ema, step, spent, seen = s["ema"], s["step"], s["spent"], 0 if rank else s["pixels"]
        print("resumed at step %d, %.1f minutes" % (step, spent / 60), flush=True)

    def save(path, pixels):
        state = {"net": net.state_dict(), "optimizers": optimizers.state_dict(), "ema": ema, "step": step, "spent": spent,
                 "pixels": pixels, "config": json.dumps(net.config)}
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)

    if rank == 0 and step == 0:             # what the run began with, to be averaged with its end (export.py)
        save(os.path.join(a.out, "first.pt"), 0)
    random.seed(a.seed * 1000003 + step + 500009 * rank)
    np.random.seed((a.seed * 1000003 + step + 500009 * rank) % 2 ** 32)
    prompts, pool = Prompts(a.prompts, "cpu"), Pool(a.pool)
    if a.fast:
        accelerate(net)
    params = [q for q in net.parameters()]
    log = open(os.path.join(a.out, "log%s.txt" % (rank or "")), "a")
    sums, count = {}, {}

    def note(k, v):
        sums[k], count[k] = sums.get(k, 0.0) + float(v.detach()), count.get(k, 0) + 1

    def seen_of(codes):
        with torch.autocast("cpu", enabled=False):
            return net.pool([c.float() for c in codes])

    def restore(x, cls):
        """What came out, and what the classifier sees."""
        nonlocal seen
        h, w = x.shape[-2:]
        xp = pad8(x)
        seen += xp.numel()
        codes = net.encode(xp)
        out = net.decode(xp, codes, prompts.sample(cls, x.shape[0]))[..., :h, :w]
        return out.float(), seen_of(codes)

    def pooled(x):
        nonlocal seen
        xp = pad8(x)
        seen += xp.numel() // 3
        return seen_of(net.encode(xp))

    def views(full, g):
        """What the classifier sees: the slice or crop, and with two views the shrunken whole slice."""
        return full if a.plain else torch.cat([full, pooled(shrunk(g, PIXELS))], 1)

    def classify(features, cls, kind):
        with torch.autocast("cpu", enabled=False):
            l = net.logits(features)
        note("acc_" + kind, (l.argmax(1) == cls).float().mean())
        return F.cross_entropy(l, torch.full((l.shape[0],), cls))

    def gain(out, x, y):
        e0, e1 = (x - y).square().mean((1, 2, 3)), (out - y).square().mean((1, 2, 3))
        return (10 * torch.log10((e0 + 1e-9) / (e1 + 1e-9))).mean()

    def visible(g, db=43):
        """Too faint an artifact is not called one: the classifier is not asked there."""
        return a.ce > 0 and (g[0] - g[1]).square().mean().item() > 10 ** (-db / 10)

    def reps(kind):
        r = work.get(kind, 0.0)
        return int(r) + (random.random() < r - int(r))

    def loss_of(out, z, kind):
        """L1 and the squared error, each relative to what the artifact did, or the strong ones would be all that is learned.
        L1 alone (the paper's) smooths away what is more likely absent than there, which costs PSNR in fine texture."""
        e, did = out - z[1], (z[0] - z[1]).square().mean((1, 2, 3)).sqrt()
        l1, l2 = e.abs().mean((1, 2, 3)), e.square().mean((1, 2, 3))
        note("l1_" + kind, l1.mean())
        note("gain_" + kind, gain(out.detach(), z[0], z[1]))
        return ((l1 + l2 / (0.01 + 0.3 * did)) * (0.06 / (0.02 + did))).mean() * weights.get(kind, 1.0)

    def task_whole(kind, db=43, shrink=0.8):
        g, th = pool.sample(kind)
        z = large(g, th, progress, shrink=shrink)       # ghosts and fields come from afar: crops do not show from where
        out, full = restore(z[0], CLASS[kind])
        loss = loss_of(out, z, kind)
        if visible(g, db) and random.random() < a.ask / max(a.ask, work[kind]):
            loss = loss + a.ce * classify(views(full, g[0]), CLASS[kind], kind)
        return loss

    def task_noise():
        if random.random() < 0.35:
            return task_whole("noise", shrink=0.5)
        size, parts = random.randrange(80, 177, 16), []
        while len(parts) < max(2, 65000 // ranks // size ** 2):          # one product of several crops is quicker than one for each
            g, th = pool.sample("noise")
            if min(g.shape[-2:]) >= size:
                parts.append(crop(g, size, th))
        z = torch.cat(parts, 1)
        out, full = restore(z[0], CLASS["noise"])
        return loss_of(out, z, "noise")

    recent = collections.deque(maxlen=24)           # pooled full views of biased and clean slices

    def ask_large(g, th, cls, kind, whole):
        full = pooled(large(g, th, progress, whole)[0])
        recent.append(full.detach())
        return a.ce * classify(views(full, g[0]), cls, kind)

    def after_pass(z, own, at, depth, each):
        """What the network's own pass leaves of the fields, as the program does it (field_passes)."""
        with torch.no_grad():
            out, _ = restore(z[0], CLASS["bias"])
        z, own = z.clone(), own.clone()
        for i in range(0, len(at), each):
            x, y = z[0, i:i + each, 0].numpy(), out[i:i + each, 0].numpy()
            threshold = x.mean()
            ratios = {s: np.where(a > threshold, limited(ratio(a, b, threshold)), 0) for s, a, b in zip(at[i:i + each], x, y)}
            fields, *_ = volume_field(ratios, depth, x.shape[1:], CONFIG["field_order"])
            x1 = x * np.stack([fields[s] for s in at[i:i + each]]).astype(np.float32)
            scale = top_of(x1) / top_of(x)
            z[0, i:i + each, 0] = torch.from_numpy(x1 / scale)
            z[1, i:i + each] /= scale
            own[i:i + each] *= scale
        return z, own

    def task_bias():
        if a.plain:
            return task_whole("bias", 36)
        each = 5
        z, own, at, depth = pool.fields(2, each)
        if random.random() < 0.35:
            z, own = after_pass(z, own, at, depth, each)
        out, small = restore(z[0], CLASS["bias"])
        # One factor for all slices of a field is the program's to find (field_order): what counts is mostly the shape
        groups = lambda v: v.reshape(-1, each * v[0].numel())
        r, x = groups(out), groups(z[1])
        fit = (r * x).sum(1) / ((r * r).sum(1) + 1e-6)
        fitted = out * fit.repeat_interleave(each)[:, None, None, None]
        total = 2 * loss_of(fitted, z, "bias") + 0.5 * loss_of(out, z, "bias_as_is")
        # The same slices with and without the field, the full view taken from whatever biased or clean slice was
        # last seen: only the shrunken view can tell, and it has to
        seen_at = (z[0] - z[1]).square().mean((1, 2, 3)) > 10 ** -3.4
        if seen_at.any() and recent and a.ce > 0:
            full = torch.cat([random.choice(recent) for _ in range(int(seen_at.sum()))])
            plain = pooled((z[1] * own[:, None, None, None])[seen_at])
            total = total + a.pairs / 2 * (classify(torch.cat([full, small[seen_at]], 1), 2, "pair_bias") +
                                           classify(torch.cat([full, plain], 1), 3, "pair_clean"))
        g, th = pool.sample("bias")
        if visible(g, 36):
            total = total + ask_large(g, th, 2, "bias", 0.3)
        return total

    def task_clean():
        g, th = pool.sample("clean")
        loss = ask_large(g, th, 3, "clean", 0.6) if a.ce else torch.zeros((), requires_grad=True)
        if random.random() < 0.2:
            z = large(g, th, progress, 0)
            out, full = restore(z[0], random.choice((0, 1, 2) if a.plain else (0, 1)))
            extra = F.l1_loss(out, z[1])
            note("l1_clean", extra)
            loss = loss + 0.5 * extra
        return loss

    def task_masked():
        """A slice that shows no air, with and without noise or motion: classification alone, of differences."""
        kind = random.choice(("motion", "noise"))
        s, th = pool.made("motion") if kind == "motion" else pool.made("clean", noise=random_noise())
        z = masked(pool.turned(s[[-1, 0]]))
        if not visible(z, 40):
            return torch.zeros((), requires_grad=True)
        z[1] *= float(top_of(z[0].numpy()) / top_of(z[1].numpy()))          # each in its own scale
        shrink = 0.1 if kind == "noise" else 0.5                            # which takes noise away
        p = views(pooled(large(z, th, progress, 0.6, shrink)[:, 0]), z[:, 0])
        return a.ce / 2 * (classify(p[:1], CLASS[kind], "masked_" + kind) + classify(p[1:], CLASS["clean"], "masked_clean"))

    def step_of(x, cls, codes=None):
        """One of the network's own steps on a scaled slice [1, 1, H, W], as the program does it."""
        h, w = x.shape[-2:]
        if cls == CLASS["bias"] and not a.plain:
            small = shrunk(x, PIXELS)
            sh, sw = small.shape[-2:]
            sp = pad8(small)
            out = net.decode(sp, net.encode(sp), prompts.centroid[cls][None])[0, 0, :sh, :sw].float().numpy()
            f = field(small[0, 0].numpy(), out, x.mean().item(), (h, w))
            return x * torch.from_numpy(f.astype(np.float32))
        xp = pad8(x)
        return net.decode(xp, codes or net.encode(xp), prompts.centroid[cls][None])[..., :h, :w].float()

    def task_state():
        """The class to name is the one whose step helps most, by the network as it is, or clean where none helps."""
        nonlocal seen
        some = random.choice(((1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1)))
        s, th = pool.made("motion" if some[0] else "clean", random.uniform(0.2, 0.9) if some[1] else None,
                          random_noise() if some[2] else None)
        z = sometimes_masked(pool.turned(s[[-1, 0]]))
        if max(z.shape[-2:]) > 160 and random.random() < 0.75:
            z = shrunk(z, random.randint(112, 160))
        x, y = z[0], z[1]
        single = sum(some) == 1
        for _ in range(random.choice((1, 1, 2)) if single else random.choice((0, 0, 1, 1, 2))):
            with torch.no_grad():
                v = net.logits(views(pooled(x), x)).float()[0, :3]
                ok = [i for i in range(3) if some[i]]
                # the step that the classifier would take, or one that makes sense
                cls = int(v.argmax()) if random.random() < 0.6 else random.choice(ok)
                out = step_of(x, cls)
                top = top_of(out.numpy()) / top_of(x.numpy())
                x, y = out / top, y / top
                seen += x.numel() // 3
        xp = pad8(x)
        codes = net.encode(xp)
        full = seen_of(codes)
        seen += xp.numel()
        with torch.no_grad():
            gains = [gain(step_of(x, c, codes), x, y).item() for c in range(3)]
            seen += xp.numel() // 2
        best = int(np.argmax(gains))
        if gains[best] < 0.15 or not visible((x, y), 45):
            best = CLASS["clean"]
        note("state_clean", torch.tensor(float(best == 3)))
        return a.ce * classify(views(full, x), best, "state")

    tasks = {"motion": lambda: task_whole("motion"), "noise": task_noise, "bias": task_bias, "clean": task_clean, "state": task_state,
             "masked": task_masked}

    def once(task):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not a.fp32):
            loss = task()
        loss.backward()

    store = torch.distributed.distributed_c10d._get_default_store() if ranks > 1 else None
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    saved = reported = time.time()
    t0 = time.time()
    progress = 0.0
    over = lambda: min(1.0, step / a.steps if a.steps else spent / (a.minutes * 60))
    while over() < 1:
        progress = a.ready + (1 - a.ready) * over()
        rate = lr_at(over(), a.peak)
        net.zero_grad(set_to_none=True)
        for kind, task in tasks.items():
            for _ in range(reps(kind)):
                once(task)
        if a.filler and ranks > 1:
            done = "done %d" % step
            ready = store.add(done, 1)
            while ready < ranks:
                once(tasks[a.filler])
                ready = store.add(done, 0)
        now = time.time()
        spent += now - t0
        t0 = now
        stop = bool(ending)
        total = seen
        if ranks > 1:                       # besides gradients: the time by the first process's clock, pixels, whether any is to end
            grads = torch.cat([(torch.zeros_like(q) if q.grad is None else q.grad).flatten() for q in params] +
                              [torch.tensor([0.0 if rank else spent, float(seen), float(stop)])])
            torch.distributed.all_reduce(grads)
            spent, total, stop = grads[-3].item(), grads[-2].item(), grads[-1].item() > 0
            for q, g in zip(params, grads[:-3].split([q.numel() for q in params])):
                q.grad = g.view_as(q)
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        note("norm", norm)
        if torch.isfinite(norm):
            optimizers.step(rate)
        step += 1
        decay = min(a.average, (1 + step) / (20 + step))
        with torch.no_grad():
            for k, v in net.state_dict().items():
                ema[k].lerp_(v, 1 - decay)
        if now - reported > 30:
            line = "%6.1f min step %d lr %.2e %.1f Mpx " % (spent / 60, step, rate, seen / 1e6)
            line += " ".join("%s %.4g" % (k, sums[k] / count[k]) for k in sorted(sums))
            print(line, flush=True)
            log.write(line + "\n")
            log.flush()
            sums.clear()
            count.clear()
            reported = now
        if rank == 0 and (now - saved > a.save_every or over() >= 1 or stop):
            save(last, total)
            saved = time.time()
        if stop:
            break


if __name__ == "__main__":
    main()
