"""A quick look at a checkpoint: gain in dB of each class's own step and recall, on central slices of `val` volumes.

    validate.py --cache DIR --checkpoint last.pt --prompts features.npz [--preset moderate] [--slices 2]

Whole volumes are corrupted in 3-D once and their central slices cached.  Figures to be reported come from
evaluate.py, through the program.
"""
import argparse
import json
import os

import numpy as np
import scipy.ndimage
import torch

import artifacts
from cascade import Restorer
from data import KINDS, load, manifest
from model import ResMAP
from scaling import psnr, scale_numbers


def corrupted(row, preset, seed):
    """{kind: (volume in the clean one's scaled units, slice axis last)}, clean among them, and the mask of use."""
    v, edge, affine = load(row)
    lo, hi, mean = scale_numbers(v)
    x = ((v - lo) / (hi - lo)).astype(np.float32)
    axis = artifacts.plane_axis(affine, v.shape)
    out = {"clean": x}
    for kind in KINDS[:3]:
        rec = artifacts.draw(seed, preset, [kind], x.shape, axis)
        if kind == "motion":                       # in float32, which the transforms keep: quicker, and near enough here
            y = artifacts.apply_motion(x, rec["artifacts"][0], edge)
        else:
            y = artifacts.apply(x, rec, edge, x > (mean - lo) / (hi - lo))
        out[kind] = y.astype(np.float32)
    return {k: np.moveaxis(y, axis, 2) for k, y in out.items()}


def build(cache, preset, slices):
    path = os.path.join(cache, "val-%s-%d.npz" % (preset, slices))
    if not os.path.exists(path):
        store = {}
        for i, row in enumerate(manifest("val")):
            vols = corrupted(row, preset, 5000 + i)
            n = vols["clean"].shape[2]
            pick = np.round(np.linspace(n * 0.42, n * 0.62, slices)).astype(int)
            for k, y in vols.items():
                store["%d.%s.x" % (i, k)] = y[:, :, pick].transpose(2, 1, 0)
                store["%d.%s.numbers" % (i, k)] = np.array(scale_numbers(y))
            print("made", row["path"], flush=True)
        np.savez(path, **store)
    return np.load(path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cache", required=True)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--prompts", required=True)
    p.add_argument("--preset", default="moderate")
    p.add_argument("--slices", type=int, default=2)
    p.add_argument("--every", type=int, default=1, help="only every so many volumes")
    a = p.parse_args()
    torch.set_num_threads(1)
    os.makedirs(a.cache, exist_ok=True)
    z, rows = build(a.cache, a.preset, a.slices), manifest("val")
    s = torch.load(a.checkpoint, weights_only=True)
    net = ResMAP(**json.loads(s["config"]))
    net.load_state_dict(s["ema"])
    f = np.load(a.prompts)
    r = Restorer(net, f["features"], f["class"], torch.float32)
    print("step %d, %.1f minutes, preset %s" % (s["step"], s["spent"] / 60, a.preset))
    gains, votes, flat, confusion = {k: [] for k in KINDS}, {k: [] for k in KINDS}, [], np.zeros((4, 4), int)
    for i, row in list(enumerate(rows))[::a.every]:
        clean = z["%d.clean.x" % i].astype(np.float64)
        line = "%-44s" % os.path.basename(row["path"])[:44]
        for c, kind in enumerate(KINDS):
            x = z["%d.%s.x" % (i, kind)].astype(np.float64)
            lo, hi, mean = z["%d.%s.numbers" % (i, kind)]
            y, threshold = (x - lo) / (hi - lo), (mean - lo) / (hi - lo)
            for sl in y:
                guess = int(r.probabilities(sl).argmax())
                confusion[c, guess] += 1
                votes[kind].append(guess == c)
            if kind == "clean":
                continue
            out = np.stack([r.restore(sl, c, threshold) for sl in y]) * (hi - lo) + lo
            before, after = psnr(clean, x), psnr(clean, out)
            gains[kind].append(after - before)
            line += " %s %.1f%+.2f" % (kind, before, after - before)
            if kind == "noise":
                best = max(psnr(clean, scipy.ndimage.gaussian_filter(x, (0, g, g))) for g in (0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3))
                flat.append(best - before)
                line += " (gauss %+.2f)" % (best - before)
        print(line, flush=True)
    print("GAIN " + " ".join("%s %+.2f" % (k, np.mean(v)) for k, v in gains.items() if v) + " gauss %+.2f" % np.mean(flat))
    print("RECALL " + " ".join("%s %.2f" % (k, np.mean(v)) for k, v in votes.items()) + "  confusion " + str(confusion.tolist()))


if __name__ == "__main__":
    main()
