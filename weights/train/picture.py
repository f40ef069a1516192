"""Pictures for a data sheet, through the program: what it was given, what it made of it, and both errors.

    picture.py --resmap ./resmap --model FILE --out OUT.png CASE...

A CASE is "label | scan | options of synth | options of restore", each a row of the picture: the scan's middle slice, the
slice corrupted and restored, and what each differs by from the scan (blue: darker, red: brighter; the range is written).
Without options of synth the scan itself is restored.  The whole scan is corrupted and restored; figures are of its three
middle slices.
"""
import argparse
import json
import os
import shlex
import tempfile

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel
import numpy as np

import artifacts
from evaluate import run
from scaling import psnr, scale_numbers

ERROR = 0.1


def middle(path, axis):
    """The three middle slices of a scan, [slices, H, W]."""
    image = nibabel.load(path)
    v = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    n = v.shape[axis]
    first = max(0, n // 2 - 1) if n > 3 else 0
    cut = [slice(None)] * 3
    cut[axis] = slice(first, first + 3)
    return np.moveaxis(v[tuple(cut)], axis, 0).transpose(0, 2, 1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--resmap", default="./resmap")
    p.add_argument("--model", default="resmap-s")
    p.add_argument("--out", required=True)
    p.add_argument("case", nargs="+")
    a = p.parse_args()
    figure, axes = plt.subplots(len(a.case), 5, figsize=(11, 2.5 * len(a.case)), squeeze=False, layout="constrained")
    for row, case in zip(axes, a.case):
        label, scan, synth, restore = (part.strip() for part in case.split("|"))
        with tempfile.TemporaryDirectory(prefix="resmap-picture-") as work:
            corrupted, out, report = (os.path.join(work, f) for f in ("c.nii", "o.nii", "r.json"))
            image = nibabel.load(scan)
            axis = artifacts.plane_axis(image.affine, image.shape[:3])
            if synth:
                run([a.resmap, "synth", "-q", *shlex.split(synth), scan, corrupted])
            given = corrupted if synth else scan
            run([a.resmap, "restore", "-q", "-m", a.model, "--report", report, *shlex.split(restore), given, out])
            clean, given, made = (middle(path, axis) for path in (scan, given, out))
            steps = [s["class"] for s in json.load(open(report))["volumes"][0]["steps"]]
        lo, hi = scale_numbers(clean)[:2]
        clean, given, made = ((v - lo) / (hi - lo) for v in (clean, given, made))
        k = len(clean) // 2
        show = lambda ax, x, title, **how: (ax.imshow(x[::-1], **how), ax.set_title(title, fontsize=8), ax.axis("off"))
        grey, error = dict(cmap="gray", vmin=0, vmax=1.1), dict(cmap="seismic", vmin=-ERROR, vmax=ERROR)
        show(row[0], clean[k], label, **grey)
        show(row[1], given[k], "given, %.1f dB" % psnr(clean, given) if synth else "given: the same", **grey)
        show(row[2], made[k], "restored, %.1f dB\n%s" % (psnr(clean, made), ", ".join(steps)), **grey)
        show(row[3], given[k] - clean[k], "error of the given, \u00b1%g" % ERROR, **error)
        show(row[4], made[k] - clean[k], "error of the restored, \u00b1%g" % ERROR, **error)
    figure.savefig(a.out, dpi=85)


if __name__ == "__main__":
    main()
