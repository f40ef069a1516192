"""What a weights file does on held-out scans through the program: PSNR gain of each artifact's own step, recall of each
class, and what each class's step does to clean scans.  (Mixtures and cascades: bench/mixed.)

    evaluate.py [--split val,test] --resmap ./resmap --model weights/resmap-s.safetensors [--preset moderate] [--slices 6] [--work DIR]

Every volume is corrupted whole, in 3-D, by artifacts.py with a fixed seed; a central slab of the result is written
as NIfTI, restored by `resmap restore --order CLASS --steps 1` and classified by `resmap classify --json`.  PSNR: range 1
on the clean slab's scaled intensities, whole slab; gains are means over volumes.  Bias is restored in the whole volume and
measured there, as a field is one thing: a slab alone does not tell how bright it should be.  Peers for noise: the Gaussian filter
of the best width for each volume, and non-local means slice by slice, told the noise level or measuring it (scikit-image's
estimate_sigma); for bias: N4 as bench/classical.py sets it (SimpleITK), as it is and times the best factor.  Recall is over
the slices whose PSNR the artifact took below 35 dB, and over all of them; of bias and clean scans also over whole volumes and
all their slices that hold some of the head, and over the central ones in them: a field is heard in the whole volume.  The slabs
are classified and restored with --mask, too, measured within the mask: no air shows noise and ghosts then; and by the default
cascade where Rician noise of 0.05 was there before a scan of half the matrix was interpolated to the slab's.  Prints Markdown.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import nibabel
import numpy as np
import scipy.ndimage
from skimage.restoration import denoise_nl_means, estimate_sigma

import artifacts
from data import KINDS, head, load, manifest
from scaling import psnr, scale_numbers

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench"))
import classical                                         # noqa: E402

WIDTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.3)


def run(command):
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode:
        raise SystemExit("%s\nexit %d: %s" % (" ".join(command), r.returncode, r.stderr.strip()[-2000:]))
    return r.stdout


def keep(path, values, affine, note=""):
    image = nibabel.Nifti1Image(np.asarray(values, dtype=np.float32), affine)
    image.header["descrip"] = note
    nibabel.save(image, path)


def corrupted(row, i, kind, preset):
    """(the volume under the artifact, the clean one, its affine, its slice axis), in the volume's own units."""
    v, edge, affine = load(row)
    lo, hi, mean = scale_numbers(v)
    x = (v - lo) / (hi - lo)
    axis = artifacts.plane_axis(affine, v.shape)
    rec = artifacts.draw(9000 + i, preset, [kind], x.shape, axis)
    if kind == "motion":
        y = artifacts.apply_motion(x.astype(np.float32), rec["artifacts"][0], edge)
    else:
        y = artifacts.apply(x, rec, edge, x > (mean - lo) / (hi - lo))
    return y * (hi - lo) + lo, v, affine, axis


def first_central(length, count):
    """Where the `count` central ones of `length` slices begin."""
    return max(0, length // 2 - count // 2)


def resampled(slab, axis, seed):
    """(under noise, without) of a slab at half its matrix, enlarged to it by cubic splines afterwards."""
    x = np.moveaxis(slab, axis, 0)
    x = x[:, :x.shape[1] // 2 * 2, :x.shape[2] // 2 * 2]
    x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean((2, 4))
    sigma, rng = 0.05 * scale_numbers(x)[1], np.random.default_rng(seed)
    noisy = np.hypot(x + sigma * rng.standard_normal(x.shape), sigma * rng.standard_normal(x.shape))
    return [np.moveaxis(scipy.ndimage.zoom(v, (1, 2, 2), order=3, mode="nearest", grid_mode=True), 0, axis) for v in (noisy, x)]


def cases(split, preset, slices, work, limit=None):
    """(row, {kind: slab}, slice axis, paths of the whole clean volume and of that under the bias field); the files in `work`,
    i-KIND.nii and i-whole-KIND.nii, are made, or taken as found."""
    for i, row in enumerate([r for part in split.split(",") for r in manifest(part)][:limit]):
        paths = {k: os.path.join(work, "%d-%s.nii" % (i, k)) for k in KINDS}
        wholes = [os.path.join(work, "%d-whole-%s.nii" % (i, k)) for k in ("clean", "bias")]
        if not all(os.path.exists(p) for p in [*paths.values(), *wholes]):
            for kind in KINDS[:3]:
                y, v, affine, axis = corrupted(row, i, kind, preset)
                first, shift = first_central(v.shape[axis], slices), np.eye(4)
                shift[axis, 3] = first
                cut = tuple(slice(first, first + slices) if a == axis else slice(None) for a in range(3))
                keep(paths[kind], y[cut], affine @ shift, "slice axis %d" % axis)
            keep(paths["clean"], v[cut], affine @ shift, "slice axis %d" % axis)
            keep(wholes[0], v, affine)
            keep(wholes[1], y, affine)                                           # bias, the last of the kinds
        images = {k: nibabel.load(p) for k, p in paths.items()}
        axis = int(images["clean"].header["descrip"].item().decode().split()[-1])
        yield row, {k: m.get_fdata(dtype=np.float32) for k, m in images.items()}, axis, wholes


def scaler(clean):
    """What maps volumes by the clean one's numbers."""
    lo, hi = scale_numbers(clean)[:2]
    return lambda v: (np.asarray(v, np.float64) - lo) / (hi - lo)


def calls(answer, scan, clean, axis, kind, central):
    """Of a whole volume: whether it is called `kind`, and each slice that holds some of the head, an artifact's under 35 dB; and
    the `central` ones of these."""
    show = lambda v: np.moveaxis(v, axis, 0)
    share = (show(clean) > clean.mean()).mean((1, 2))
    some = [i for i, (x, y) in enumerate(zip(show(scan), show(clean))) if share[i] >= 0.05 and (kind == "clean" or psnr(y, x) < 35)]
    first = first_central(len(share), central)
    right = lambda of: [answer["slices"][i]["class"] == kind for i in of]
    return answer["class"] == kind, right(some), right([i for i in some if first <= i < first + central])


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
    volumes = []
    for i, (row, slabs, axis, paths) in enumerate(cases(a.split, a.preset, a.slices, work, a.limit)):
        if a.prepare:
            continue
        scaled = scaler(slabs["clean"])
        clean = scaled(slabs["clean"])
        of = {"split": row["split"], "called": {}, "clear": {}, "before": {}, "gain": {}, "forced": {}, "whole": {}, "masked": {}, "inside": {}}
        cells = [os.path.basename(row["path"]).replace(".nii.gz", "")]
        clean_whole, biased_whole = (nibabel.load(p).get_fdata(dtype=np.float32) for p in paths)
        scaled_whole = scaler(clean_whole)
        whole = {"clean": scaled_whole(clean_whole), "bias": scaled_whole(biased_whole)}
        inside = np.moveaxis(np.stack([head(s, 0.06) for s in np.moveaxis(clean, axis, 0)]), 0, axis)
        mask = os.path.join(work, "%d-mask.nii" % i)
        keep(mask, inside, nibabel.load(os.path.join(work, "%d-clean.nii" % i)).affine)
        classify = lambda path, *more: json.loads(run([a.resmap, "classify", "--json", *more] + common + [path]))["volumes"][0]
        for kind, path in zip(("clean", "bias"), paths):
            of["whole"][kind] = calls(classify(path), whole[kind], whole["clean"], axis, kind, a.slices)
        for kind in KINDS:
            src, dst = os.path.join(work, "%d-%s.nii" % (i, kind)), os.path.join(work, "%d-%s-restored.nii" % (i, kind))
            answer = classify(src)
            of["masked"][kind] = [s["class"] for s in classify(src, "--mask", mask)["slices"]]
            x = scaled(slabs[kind])
            of["called"][kind] = [s["class"] for s in answer["slices"]]
            of["clear"][kind] = [kind == "clean" or psnr(ref, ours) < 35
                                 for ours, ref in zip(np.moveaxis(x, axis, 0), np.moveaxis(clean, axis, 0))]
            if kind == "clean":
                for c in KINDS[:2]:
                    run([a.resmap, "restore", "-f", "--order", c, "--steps", "1"] + common + [src, dst])
                    of["forced"][c] = psnr(clean, scaled(nibabel.load(dst).get_fdata()))
                run([a.resmap, "restore", "-f", "--order", "bias", "--steps", "1"] + common + [paths[0], dst])
                of["forced"]["bias"] = psnr(whole["clean"], scaled_whole(nibabel.load(dst).get_fdata()))
                continue
            now, scale = (clean, scaled)
            if kind == "bias":
                src, now, x, scale = paths[1], whole["clean"], whole["bias"], scaled_whole
            run([a.resmap, "restore", "-f", "--order", kind, "--steps", "1"] + common + [src, dst])
            restored = scale(nibabel.load(dst).get_fdata())
            before, after = psnr(now, x), psnr(now, restored)
            of["before"][kind], of["gain"][kind] = before, after - before
            cells.append("%.2f → %.2f (%+.2f)" % (before, after, after - before))
            if kind == "bias":
                of["fitted"] = psnr(now, classical.fitted(now, restored)) - before
                if "N4" not in classical.missing():
                    z = scaled_whole(classical.restore(src, axis, slice(None), ["N4"])["N4"])
                    of["n4"], of["n4 fitted"] = psnr(now, z) - before, psnr(now, classical.fitted(now, z)) - before
                continue
            run([a.resmap, "restore", "-f", "--mask", mask, "--order", kind, "--steps", "1"] + common + [src, dst])
            within = lambda v: psnr(clean[inside], v[inside])
            of["inside"][kind] = [within(v) - within(x) for v in (restored, scaled(nibabel.load(dst).get_fdata()))]
            if kind == "noise":
                widths = lambda g: tuple(0 if d == axis else g for d in range(3))
                of["gauss"] = max(psnr(clean, scipy.ndimage.gaussian_filter(x, widths(g))) for g in WIDTHS) - before
                for name, level in (("told", lambda s: np.std(x - clean)), ("measured", lambda s: max(estimate_sigma(s), 1e-5))):
                    z = np.stack([denoise_nl_means(s, 5, 6, 0.8 * level(s), sigma=level(s)) for s in np.moveaxis(x, axis, 0)])
                    of[name] = psnr(clean, np.moveaxis(z, 0, axis)) - before
                noisy, plain = resampled(slabs["clean"], axis, 100 + i)
                enlarged, report = (os.path.join(work, "%d-%s" % (i, n)) for n in ("enlarged.nii", "report.json"))
                keep(enlarged, noisy, nibabel.load(src).affine)
                run([a.resmap, "restore", "-f", "--report", report] + common + [enlarged, dst])
                taken = [s["class"] for s in json.load(open(report))["volumes"][0]["steps"] if s["restored"]]
                own = scaler(plain)
                of["enlarged"] = [psnr(own(plain), own(v)) for v in (noisy, nibabel.load(dst).get_fdata())]
                of["taken"] = "+".join(taken) or "none"
        of["line"] = "| " + " | ".join(cells) + " |"
        print(of["line"], flush=True)
        volumes.append(of)
    if a.prepare:
        return
    print("\npreset `%s`, %d central slices each, for bias whole volumes\n" % (a.preset, a.slices))
    print("| split, volumes | class | PSNR before | mean gain, dB | worst | recall of slices below 35 dB (how many) | of all slices "
          "| clean scans after that class's step: PSNR, worst |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    splits = a.split.split(",")
    groups = [(s, [v for v in volumes if v["split"] == s]) for s in splits]
    groups = [(s, some) for s, some in groups if some] + ([("all", volumes)] if len(splits) > 1 else [])
    for split, some in groups:
        for k in KINDS:
            g = f = ""
            if k != "clean":
                each = lambda what: [v[what][k] for v in some]
                g = "%.2f | %+.2f | %+.2f" % (np.mean(each("before")), np.mean(each("gain")), np.min(each("gain")))
                f = "%.1f, %.1f" % (np.mean(each("forced")), np.min(each("forced")))
            hits = np.array([c == k for v in some for c in v["called"][k]])
            clear = np.array([c for v in some for c in v["clear"][k]])
            print("| %s, %d | %s | %s | %.2f (%d) | %.2f | %s |" % (split, len(some), k, g or " | | ",
                  hits[clear].mean() if clear.any() else np.nan, clear.sum(), hits.mean(), f))
    for k in ("bias", "clean"):
        slices = lambda some, n: sum((v["whole"][k][n] for v in some), [])
        print("\nWhole volumes, %s: " % k + "; ".join("%s: %d of %d recognised, of their slices %.3f (%d), of the central ones %.3f (%d)" % (
              split, sum(v["whole"][k][0] for v in some), len(some), *(f(slices(some, n)) for n in (1, 2) for f in (np.mean, len)))
              for split, some in groups))
    print("\nWith --mask (the head): " + "; ".join(
          split + ", " + ", ".join("%s: %.2f recognised" % (k, np.mean([c == k for v in some for c, clear in zip(v["masked"][k], v["clear"][k]) if clear]))
                                   for k in KINDS) +
          ", gain within it without and with the mask: " + ", ".join("%s %+.2f and %+.2f" % (k, *np.mean([v["inside"][k] for v in some], 0))
                                                                     for k in KINDS[:2]) for split, some in groups))
    enlarged = [(split, np.array([v["enlarged"] for v in some])) for split, some in groups]
    taken = [v["taken"] for v in volumes]
    print("\nNoise before interpolation, default cascade, PSNR before and after: " + "; ".join(
          "%s: %.2f, %.2f (%+.2f, worst %+.2f)" % (split, *e.mean(0), np.diff(e).mean(), np.diff(e).min()) for split, e in enlarged) +
          "; steps: " + ", ".join("%d %s" % (taken.count(t), t) for t in sorted(set(taken))))
    print("\nPeers for noise, gain in dB: " + "; ".join(
          "%s: best Gaussian filter %+.2f, non-local means told the level %+.2f, with the level measured %+.2f" % (split, *(np.mean([v[n] for v in some]) for n in ("gauss", "told", "measured"))) for split, some in groups))
    if all("n4" in v for v in volumes):
        print("\nBias, gain in dB times the best factor, and N4 as it is and times the best factor: " + "; ".join(
              "%s: %+.2f, %+.2f, %+.2f" % (split, *(np.mean([v[n] for v in some]) for n in ("fitted", "n4", "n4 fitted"))) for split, some in groups))
    table = [[sum(c == b for v in volumes for c in v["called"][k]) for b in KINDS] for k in KINDS]
    print("\nSlices by class (rows: true; columns: called %s): %s" % (", ".join(KINDS), table))
    print("\n| volume | motion | noise | bias |\n| --- | --- | --- | --- |")
    print("\n".join(v["line"] for v in volumes))


if __name__ == "__main__":
    main()
