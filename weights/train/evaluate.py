"""What a weights file does on held-out scans through the program: PSNR gain of each artifact's own step, recall of each
class, and what each class's step does to clean scans.  (Mixtures and cascades: bench/mixed.)

    evaluate.py [--split val,test] --resmap ./resmap --model weights/resmap-s.safetensors [--preset moderate] [--slices 6] [--work DIR]

Every volume is corrupted whole, in 3-D, by artifacts.py with a fixed seed; a central slab of the result is written
as NIfTI, restored by `resmap restore --order CLASS --steps 1` and classified by `resmap classify --json`.  PSNR: range 1
on the clean slab's scaled intensities, whole slab; gains are means over volumes.  Peers for noise: the Gaussian filter
of the best width for each volume, and non-local means with the noise level known.  Recall is over the slices whose PSNR
the artifact took below 35 dB, and over all of them.  Prints Markdown.
"""
import argparse
import json
import os
import subprocess
import tempfile

import nibabel
import numpy as np
import scipy.ndimage
from skimage.restoration import denoise_nl_means

import artifacts
from data import KINDS, load, manifest
from scaling import psnr, scale_numbers

WIDTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.3)


def run(command):
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode:
        raise SystemExit("%s\nexit %d: %s" % (" ".join(command), r.returncode, r.stderr.strip()[-2000:]))
    return r.stdout


def cases(split, preset, slices, work, limit=None):
    """(row, {kind: slab in the volume's own units}, slice axis); the files i-KIND.nii in `work` are made, or taken as found."""
    for i, row in enumerate([r for part in split.split(",") for r in manifest(part)][:limit]):
        paths = {k: os.path.join(work, "%d-%s.nii" % (i, k)) for k in KINDS}
        if all(os.path.exists(p) for p in paths.values()):
            images = {k: nibabel.load(p) for k, p in paths.items()}
            axis = int(images["clean"].header["descrip"].item().decode().split()[-1])
            yield row, {k: m.get_fdata(dtype=np.float32) for k, m in images.items()}, axis
            continue
        v, edge, affine = load(row)
        lo, hi, mean = scale_numbers(v)
        x = (v - lo) / (hi - lo)
        axis = artifacts.plane_axis(affine, v.shape)
        n = v.shape[axis]
        first = max(0, n // 2 - slices // 2)
        cut = [slice(None)] * 3
        cut[axis] = slice(first, first + slices)
        out = {"clean": v[tuple(cut)]}
        for kind in KINDS[:3]:
            rec = artifacts.draw(9000 + i, preset, [kind], x.shape, axis)
            if kind == "motion":
                y = artifacts.apply_motion(x.astype(np.float32), rec["artifacts"][0], edge)
            else:
                y = artifacts.apply(x, rec, edge, x > (mean - lo) / (hi - lo))
            out[kind] = (y[tuple(cut)] * (hi - lo) + lo).astype(np.float32)
        shift = np.eye(4)
        shift[axis, 3] = first
        for k, y in out.items():
            image = nibabel.Nifti1Image(np.asarray(y, dtype=np.float32), affine @ shift)
            image.header["descrip"] = "slice axis %d" % axis
            nibabel.save(image, paths[k])
        yield row, out, axis


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--resmap", default="./resmap")
    p.add_argument("--model", default="resmap-s")
    p.add_argument("--preset", default="moderate")
    p.add_argument("--split", default="val", help="of the manifest; several with commas")
    p.add_argument("--slices", type=int, default=6)
    p.add_argument("--device", default="auto")
    p.add_argument("--limit", type=int, help="only the first few volumes")
    p.add_argument("--prepare", action="store_true", help="only make the corrupted slabs in --work")
    p.add_argument("--work", help="directory for the files (default: a temporary one)")
    a = p.parse_args()
    work = a.work or tempfile.mkdtemp(prefix="resmap-val-")
    os.makedirs(work, exist_ok=True)
    common = ["-m", a.model, "-d", a.device]
    gains = {k: [] for k in KINDS[:3]}
    before_all = {k: [] for k in KINDS[:3]}
    gauss, nlm, confusion, lines = [], [], np.zeros((4, 4), int), []
    hits, clear, volumes, forced = ({k: [] for k in KINDS} for _ in range(4))
    for i, (row, slabs, axis) in enumerate(cases(a.split, a.preset, a.slices, work, a.limit)):
        if a.prepare:
            continue
        numbers = scale_numbers(slabs["clean"])
        scaled = lambda v: (np.asarray(v, np.float64) - numbers[0]) / (numbers[1] - numbers[0])
        clean = scaled(slabs["clean"])
        cells = [os.path.basename(row["path"]).replace(".nii.gz", "")]
        for kind in KINDS:
            src, dst = os.path.join(work, "%d-%s.nii" % (i, kind)), os.path.join(work, "%d-%s-restored.nii" % (i, kind))
            answer = json.loads(run([a.resmap, "classify", "--json"] + common + [src]))["volumes"][0]
            volumes[kind].append(answer["class"] == kind)
            x = scaled(slabs[kind])
            for s, ours, ref in zip(answer["slices"], np.moveaxis(x, axis, 0), np.moveaxis(clean, axis, 0)):
                hits[kind].append(s["class"] == kind)
                if kind == "clean" or psnr(ref, ours) < 35:
                    clear[kind].append(s["class"] == kind)
                confusion[KINDS.index(kind), KINDS.index(s["class"])] += 1
            if kind == "clean":
                for c in KINDS[:3]:
                    run([a.resmap, "restore", "-f", "--order", c, "--steps", "1"] + common + [src, dst])
                    forced[c].append(psnr(clean, scaled(nibabel.load(dst).get_fdata())))
                continue
            run([a.resmap, "restore", "-f", "--order", kind, "--steps", "1"] + common + [src, dst])
            y = scaled(nibabel.load(dst).get_fdata())
            before, after = psnr(clean, x), psnr(clean, y)
            gains[kind].append(after - before)
            before_all[kind].append(before)
            cells.append("%.2f → %.2f (%+.2f)" % (before, after, after - before))
            if kind == "noise":
                widths = lambda g: tuple(0 if d == axis else g for d in range(3))
                gauss.append(max(psnr(clean, scipy.ndimage.gaussian_filter(x, widths(g))) for g in WIDTHS) - before)
                sigma = np.std(x - clean)
                z = np.stack([denoise_nl_means(s, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True)
                              for s in np.moveaxis(x, axis, 0)])
                nlm.append(psnr(clean, np.moveaxis(z, 0, axis)) - before)
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if a.prepare:
        return
    print("\npreset `%s`, %d volumes, %d central slices each\n" % (a.preset, len(lines), a.slices))
    print("| class | PSNR before | mean gain, dB | worst | recall of slices below 35 dB (how many) | of all slices | of volumes "
          "| clean scans after that class's step: PSNR, worst |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for k in KINDS:
        g = "| %.2f | %+.2f | %+.2f " % (np.mean(before_all[k]), np.mean(gains[k]), np.min(gains[k])) if k != "clean" else "| | | "
        f = "%.1f, %.1f" % (np.mean(forced[k]), np.min(forced[k])) if k != "clean" else ""
        print("| %s %s| %.2f (%d) | %.2f | %.2f | %s |" %
              (k, g, np.mean(clear[k] or [np.nan]), len(clear[k]), np.mean(hits[k]), np.mean(volumes[k]), f))
    print("\nPeers for noise: best Gaussian filter %+.2f dB, non-local means with known noise level %+.2f dB" % (np.mean(gauss), np.mean(nlm)))
    print("\nSlices by class (rows: true; columns: called %s): %s" % (", ".join(KINDS), confusion.tolist()))
    print("\n| volume | motion | noise | bias |\n| --- | --- | --- | --- |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
