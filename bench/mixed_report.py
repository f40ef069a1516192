"""report.md, results.csv and the pictures of bench/mixed."""
import csv
import math
import os

import nibabel
import numpy as np

import classical

RESMAP = ("one step", "cascade", "cascade, by slice", "fixed order", "told")
CLASSICAL = ("NLM, 2-D", "NLM", "N4", "N4, rescaled", "NLM, N4", "NLM, N4, rescaled", "BM4D")
CLASSES = ("motion", "noise", "bias", "clean")
FAINT = 35.0   # dB: slices above are not asked about in the second column of recall


# ---- Numbers to text ----

def mean(values):
    values = [v for v in values if v is not None and math.isfinite(v)]
    return sum(values) / len(values) if values else None


def fixed(value, digits=2):
    return "–" if value is None else "%.*f" % (digits, value)


def share(part, whole):
    return "%.0f %% of %d" % (100 * part / whole, whole) if whole else "–"


def label(kinds):
    return " + ".join(kinds)


def table(header, body):
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in body] + [""]


class Rows:
    """The measured cases of a set: [(case, {method: metrics})]."""

    def __init__(self, bench, cases):
        self.all = [(c, bench.methods(c)) for c in cases]

    def of(self, preset=None, kinds=None, mixed=None, scan=None):
        return [(c, m) for c, m in self.all
                if (preset is None or c.label == preset) and (kinds is None or c.kinds == kinds)
                and (mixed is None or (len(c.kinds) > 1) == mixed) and (scan is None or c.scan is scan)]


def methods_in(rows):
    return [m for m in ("corrupted",) + RESMAP + CLASSICAL if any(m in measured for _, measured in rows)]


def cell(rows, method):
    """'PSNR (gain) / SSIM': means over those of the cases that have the method; '–' unless all of them do."""
    having = [m for _, m in rows if method in m]
    if not having or len(having) < len(rows):
        return "–"
    psnr, ssim = (mean(m[method][k] for m in having) for k in ("psnr", "ssim"))
    gain = "" if method == "corrupted" else " (%+.2f)" % (psnr - mean(m["corrupted"]["psnr"] for m in having))
    return "%.2f%s / %s" % (psnr, gain, fixed(ssim, 3))


def comparison(rows, columns):
    """A table of every method against columns [(title, cases)]."""
    return table(["method"] + [title for title, _ in columns],
                 [[m] + [cell(of, m) for _, of in columns] for m in methods_in(rows)])


# ---- Sections ----

def opening(bench, sets):
    scans, lines = [], []
    for name in ("main", "others", "phantoms"):
        for case in sets[name]:
            if case.scan not in scans:
                scans.append(case.scan)
    lines += [
        "# Restoration of known artifacts",
        "",
        "Made by `bench/mixed` (`bench/README.md`). Weights `%s`, SHA-256 `%s`; %s, device `%s`, classical methods: %s."
        % (os.path.basename(bench.model.get("name") or bench.o.model), bench.model["sha256"], bench.version,
           bench.o.device, "; ".join(bench.peers) or "none"),
        "",
        "Every scan was corrupted whole by `resmap synth`, one draw a preset (the same draw for an artifact alone and in "
        "its mixtures). %d slices, spread over the scan's middle, were restored and compared with the clean ones by "
        "`resmap evaluate`: PSNR in dB over the slices together, SSIM (11x11 Gaussian window) by slice. **Cells: mean "
        "PSNR (mean gain over the corrupted slices) / mean SSIM**, every scan counting once. The clean scans are as "
        "acquired: their own noise and receive field count as truth, which bounds what can be measured; only the phantom is "
        "exact. The slices are a scan of their own to resmap: where there is a bias field, which is defined with mean 1 over "
        "a scan's foreground, they are scaled until it has mean 1 over them, and the other methods' results alike."
        % bench.o.slices,
        "",
        "- **one step**: the first step of the default cascade: the classifier picks one prompt.",
        "- **cascade**: what `resmap restore` does by default: up to three steps, one decision a step for the whole "
        "volume. **By slice**: `--decide slice`, each slice decided by itself, as in the paper.",
        "- **fixed order**: `--order noise,bias,motion` for everything: three steps, the classifier not asked.",
        "- **told**: `--order` with the artifacts that are there, undone in the reverse of the physical order; what the "
        "decoder can do when nothing is mistaken.",
        "- **NLM**: non-local means (scikit-image) with the noise level measured in the corrupted volume; in 3-D where the "
        "voxels' edges differ by less than half, where it was better on training scans, else in 2-D as **NLM, 2-D** always is. "
        "**N4** (SimpleITK) of the whole volume, keeping the foreground's mean; **rescaled**: times the factor that fits the "
        "clean slices best, which only somebody who has them can know. **NLM, N4**: the field that N4 found, taken from "
        "the denoised slices. Each is run where the artifact that it is made for is there. These methods see the whole "
        "volume, resmap only the slices.",
        "",
    ]
    for name, lacks in sorted(bench.missing.items()):
        lines.append("Left out: %s (no Python package %s here)." % (name, ", ".join(lacks)))
    for name in bench.o.without:
        lines.append("Left out: %s (not asked for)." % name)
    lines += ["", "Scans:", ""]
    return lines + table(
        ["scan", "contrast", "field strength", "split", "slices"],
        [[s.name, s.contrast, s.field, s.split or "–", "%d to %d, every %d" % (s.picked.start, s.picked.stop - 1,
                                                                           s.picked.step)] for s in scans])


def singles(bench, rows, singles_of):
    lines = ["## Single artifacts (the paper's Table 1)", ""]
    for preset in bench.o.presets:
        of = rows.of(preset, mixed=False)
        lines += ["Preset `%s`:" % preset, ""]
        lines += comparison(of, [(k, rows.of(preset, (k,))) for k in ("noise", "bias", "motion")] + [("mean", of)])
    return lines + accuracy(bench, rows, singles_of)


def accuracy(bench, rows, clean):
    """Recall of the first decision, by volume and slice, and whom slices were taken for."""
    lines = [
        "Classifier: share of volumes and slices whose class is right, on single artifacts and clean scans. *Under %g dB* "
        "leaves out the slices that the artifact hardly changed." % FAINT, ""]
    header = ["preset", "class", "volumes", "slices", "slices under %g dB" % FAINT] + ["taken for %s" % c for c in CLASSES]
    body, pooled = [], {}
    for preset in bench.o.presets + (["clean"] if clean else []):
        for kind in ("noise", "bias", "motion") if preset != "clean" else ("clean",):
            cases = [c for c, _ in rows.of(preset, (kind,))] if preset != "clean" else clean
            volumes, called, plain = [], [], []
            for case in cases:
                answer = bench.classify(case)
                volumes.append(answer["class"] == kind)
                called += list(answer["slices"].values())
                if kind != "clean":
                    for s in bench.before(case)["slices"]:
                        if s["psnr"] is not None and s["psnr"] < FAINT:
                            plain.append(answer["slices"][str(s["index"])] == kind)
            pooled.setdefault(kind, []).extend(plain)
            body.append([preset, kind, share(sum(volumes), len(volumes)), share(called.count(kind), len(called)),
                         share(sum(plain), len(plain))] + [str(called.count(c)) for c in CLASSES])
    lines += table(header, body)
    plain = {k: sum(v) / len(v) for k, v in pooled.items() if v}
    if plain:
        lines += ["All presets together, slices under %g dB: %s; mean %.3f." % (
            FAINT, ", ".join("%s %.3f of %d" % (k, v, len(pooled[k])) for k, v in plain.items()),
            sum(plain.values()) / len(plain)), ""]
    return lines


def ablation(bench, rows):
    lines = [
        "## With and without cascade and classification (the paper's Table 2)",
        "",
        "The paper trains a network without classifier and prompts, one with the classifier alone and the full one. One "
        "weights file cannot give the rows of the other two networks; what it can show is what the cascade and the "
        "decisions add in inference: *one step* has no cascade, *fixed order* cascades without classification, *cascade* is "
        "the full method, *told* has no mistaken decision to lose by. Averages over the single artifacts and over the four "
        "mixtures; presets at which all of it was measured.",
        "",
    ]
    paper = {"one step": "no cascade", "fixed order": "cascade, no classification", "cascade": "full",
             "cascade, by slice": "full, decided as in the paper", "told": "full, decisions given", "corrupted": "–"}
    body = []
    for preset in bench.o.presets:
        single, mixed = rows.of(preset, mixed=False), rows.of(preset, mixed=True)
        for m in ("corrupted", "one step", "fixed order", "cascade", "cascade, by slice", "told"):
            if single and m in methods_in(single) and "told" in methods_in(single):
                body.append([preset, m, paper[m], cell(single, m), cell(mixed, m)])
    return lines + table(["preset", "method", "stands for", "single", "mixed"], body)


def mixtures(bench, rows, combinations):
    lines = ["## Mixtures (the paper's Figure 3)", ""]
    mixed = [k for k in combinations if len(k) > 1]
    for preset in bench.o.presets:
        of = rows.of(preset, mixed=True)
        lines += ["Preset `%s`:" % preset, ""] + comparison(of, [(label(k), rows.of(preset, k)) for k in mixed])
    body = []
    for preset in bench.o.presets:
        for k in combinations:
            taken = [" → ".join(bench.cascade(c)["steps"]) or "nothing" for c, _ in rows.of(preset, k)]
            counted = sorted(set(taken), key=lambda t: (-taken.count(t), t))
            body.append([preset, label(k), ", ".join("%s (%d)" % (t, taken.count(t)) for t in counted)])
    return lines + ["Steps that the cascade took (scans):", ""] + table(["preset", "artifacts", "steps"], body)


def contrasts(bench, main, others, combinations):
    lines = ["## Other contrasts and field strengths (the paper's Figure 4)", "",
             "Preset `moderate`, means over the single artifacts and over the mixtures. Nothing here was trained on; the "
             "training set has T1w and FLAIR scans of other subjects. No scan below 1.5 T is among the data.", ""]
    groups = {}
    for rows in (main, others):
        for case, measured in rows.of("moderate"):
            groups.setdefault((case.scan.contrast, case.scan.field), []).append((case, measured))
    for mixed in (False, True):
        body = []
        for (contrast, field), of in sorted(groups.items()):
            of = [(c, m) for c, m in of if (len(c.kinds) > 1) == mixed]
            if of:
                body.append([contrast, field, str(len({c.scan.name for c, _ in of}))]
                            + [cell(of, m) for m in ("corrupted", "one step", "cascade", "told")])
        lines += ["Mixtures:" if mixed else "Single artifacts:", ""]
        lines += table(["contrast", "field strength", "scans", "corrupted", "one step", "cascade", "told"], body)
    return lines


def second(steps, classes):
    """The classes of two decisions: after `clean` nothing is asked."""
    asked = (list(steps) + ["clean"])[:2] if classes is None else list(classes)[:2]
    return asked + ["–"] * (2 - len(asked))


def orders(bench, cases):
    """Figure 5: {strength: facts}."""
    found = {}
    for case in cases:
        f = found.setdefault(case.label, {"volumes": ([], []), "slices": ([], []), "adaptive": [], "reverse": [],
                                          "ran": [], "corrupted": [], "left": 0,
                                          "slice adaptive": [], "slice reverse": [], "slice left": 0})
        volume, by_slice = bench.cascade(case, "volume", 2), bench.cascade(case, "slice", 2)
        for which, asked in [("volumes", second(None, volume["classes"]))] + [
                ("slices", second(steps, None)) for steps in by_slice["slices"]]:
            f[which][0].append(asked[0])
            f[which][1].append(asked[1])
        both = {("motion", "bias"): bench.order(case, ("motion", "bias")),
                ("bias", "motion"): bench.order(case, ("bias", "motion"))}

        def other(kind):
            return "bias" if kind == "motion" else "motion"

        first = volume["classes"][0]
        if first in ("motion", "bias"):
            f["adaptive"].append(both[first, other(first)]["metrics"])
            f["reverse"].append(both[other(first), first]["metrics"])
            f["ran"].append(volume["metrics"])
            f["corrupted"].append(bench.before(case))
        else:
            f["left"] += 1
        by_order = {o: {s["index"]: s for s in r["metrics"]["slices"]} for o, r in both.items()}
        for index, steps in enumerate(by_slice["slices"]):
            if steps and steps[0] in ("motion", "bias"):
                if index in by_order["motion", "bias"]:
                    f["slice adaptive"].append(by_order[steps[0], other(steps[0])][index])
                    f["slice reverse"].append(by_order[other(steps[0]), steps[0]][index])
            else:
                f["slice left"] += 1
    return found


def both_of(metrics):
    psnr, ssim = (mean(m[k] for m in metrics) for k in ("psnr", "ssim"))
    return "%s / %s" % (fixed(psnr), fixed(ssim, 3))


def order_section(bench, found, motion, strengths):
    lines = [
        "## Order of correction (the paper's Figure 5)", "",
        "Motion of %s (mm, degrees, percent of the lines) with a bias field of order 3 and coefficients within ±c, the same "
        "draws at the three strengths. Two steps. First: what the two decisions say, of volumes (`--decide volume`) and of "
        "slices (`--decide slice`); *clean* ends the cascade, – is not asked." % motion, ""]
    body = []
    for which in ("volumes", "slices"):
        for name, bound in strengths:
            f = found.get("bias " + name)
            if f:
                for step in (0, 1):
                    called = f[which][step]
                    body.append([which, "%s (c = %g)" % (name, bound), "first" if step == 0 else "second"]
                                + ["%.0f %%" % (100 * called.count(c) / len(called)) for c in CLASSES + ("–",)])
    lines += table(["of", "bias", "decision"] + list(CLASSES) + ["–"], body)
    lines += ["Then the order: where the first decision is motion or bias, *adaptive* removes that first and the other "
              "one second, *reverse* the other way round; *as it ran* are the two steps that the cascade took, which may "
              "name a class twice. PSNR / SSIM; by slice the order follows each slice's own decision.", ""]
    body = []
    for name, bound in strengths:
        f = found.get("bias " + name)
        if f:
            gain = [a["psnr"] - r["psnr"] for a, r in zip(f["adaptive"], f["reverse"])]
            slice_gain = [a["psnr"] - r["psnr"] for a, r in zip(f["slice adaptive"], f["slice reverse"])]
            body.append(["%s (c = %g)" % (name, bound), "%d (%d left out)" % (len(f["adaptive"]), f["left"]),
                         both_of(f["corrupted"]), both_of(f["adaptive"]), both_of(f["reverse"]), both_of(f["ran"]),
                         "–" if not gain else "%+.2f" % mean(gain),
                         "%d (%d left out)" % (len(slice_gain), f["slice left"]),
                         both_of(f["slice adaptive"]), both_of(f["slice reverse"]),
                         "–" if not slice_gain else "%+.2f" % mean(slice_gain)])
    return lines + table(["bias", "volumes", "corrupted", "adaptive", "reverse", "as it ran", "adaptive − reverse, dB",
                          "slices", "adaptive by slice", "reverse by slice", "adaptive − reverse, dB"], body)


def phantoms(bench, rows, combinations):
    lines = ["## The phantom: exact truth", "",
             "BrainWeb's normal phantom as a T2w spin echo (`bench/phantom.py`): no noise and no field of its own, so nothing "
             "but the artifact is measured.", ""]
    for preset in ("moderate", "severe"):
        of = rows.of(preset)
        if of:
            lines += ["Preset `%s`:" % preset, ""] + comparison(of, [(label(k), rows.of(preset, k)) for k in combinations])
    return lines


def clean_section(bench, cases):
    lines = ["## Clean scans", "",
             "What happens to a scan without artifacts, against the scan itself. *Left alone*: the cascade's first decision is "
             "clean. The last columns: one step is forced on it.", ""]
    body, psnrs = [], {k: [] for k in CLASSES[:3]}
    for case in cases:
        made = bench.cascade(case)
        slices = bench.cascade(case, "slice")["slices"]
        row = [case.scan.name, " → ".join(made["steps"]) or "left alone",
               "inf" if not made["steps"] else fixed(made["metrics"]["psnr"]),
               "%d of %d" % (sum(not s for s in slices), len(slices))]
        for k in psnrs:
            psnrs[k].append(bench.order(case, (k,))["metrics"]["psnr"])
            row.append(fixed(psnrs[k][-1]))
        body.append(row)
    body.append(["mean", "", "", ""] + [fixed(mean(v)) for v in psnrs.values()])
    return lines + table(["scan", "cascade", "PSNR", "slices left alone", "forced: motion", "noise", "bias"], body)


def by_scan(bench, rows, combinations):
    lines = ["## Scan by scan", "", "Gain of the cascade in PSNR at `moderate`, dB (told: in brackets).", ""]
    scans = []
    for case, _ in rows.of("moderate"):
        if case.scan not in scans:
            scans.append(case.scan)
    body = []
    for scan in scans:
        row = [scan.name]
        for k in combinations:
            (_, m), = rows.of("moderate", k, scan=scan)
            row.append("%+.2f (%+.2f)" % tuple(m[x]["psnr"] - m["corrupted"]["psnr"] for x in ("cascade", "told")))
        body.append(row)
    return lines + table(["scan"] + [label(k) for k in combinations], body)


# ---- Pictures ----

def save(bench, figure, name):
    """A PNG of few colours: grey levels and one colour map need no more."""
    from PIL import Image
    import matplotlib.pyplot as plt
    figure.savefig(bench.tmp / name, dpi=100)
    plt.close(figure)
    Image.open(bench.tmp / name).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(bench.out / name, optimize=True)


def gains_plot(bench, rows, combinations):
    import matplotlib.pyplot as plt
    shown = ("one step", "cascade", "told", "NLM", "N4", "NLM, N4")
    figure, axes = plt.subplots(len(bench.o.presets), 1, figsize=(10, 1 + 2.4 * len(bench.o.presets)), sharex=True,
                                squeeze=False)
    colours = dict(zip(shown, ("#9ecae1", "#08519c", "#bdbdbd", "#fdae6b", "#a1d99b", "#31a354")))
    for axis, preset in zip(axes[:, 0], bench.o.presets):
        for i, m in enumerate(shown):
            heights = []
            for k in combinations:
                of = [x for _, x in rows.of(preset, k) if m in x]
                heights.append(mean(x[m]["psnr"] - x["corrupted"]["psnr"] for x in of) if of else None)
            at = [(j + (i - 2.5) * 0.14, h) for j, h in enumerate(heights) if h is not None]
            axis.bar([x for x, _ in at], [h for _, h in at], 0.14, label=m, color=colours[m])
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_ylabel("gain in PSNR, dB")
        axis.set_title("preset " + preset, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    axes[-1, 0].set_xticks(range(len(combinations)))
    axes[-1, 0].set_xticklabels([" +\n".join(k) for k in combinations])
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, ncol=6, loc="upper center")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    save(bench, figure, "gains.png")
    return [("gains.png", "Mean gain in PSNR of every method on every combination; a missing bar was not measured")]


def order_plot(bench, found, strengths):
    import matplotlib.pyplot as plt
    names = [n for n, _ in strengths if "bias " + n in found]
    facts = [found["bias " + n] for n in names]
    colours = dict(zip(CLASSES + ("–",), ("#d95f02", "#7570b3", "#1b9e77", "#dddddd", "#ffffff")))
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4))
    x = np.arange(len(names))
    for axis, step in zip(axes, (0, 1)):
        for offset, which, hatch in ((-0.2, "volumes", None), (0.2, "slices", "//")):
            bottom = np.zeros(len(names))
            for c in CLASSES + ("–",):
                part = np.array([100 * f[which][step].count(c) / len(f[which][step]) for f in facts])
                axis.bar(x + offset, part, 0.38, bottom=bottom, color=colours[c], hatch=hatch, edgecolor="black",
                         linewidth=0.5, label=("not asked" if c == "–" else c) if which == "volumes" else None)
                bottom += part
        axis.set_title("%s decision, %%" % ("first" if step == 0 else "second"), fontsize=10)
        axis.set_ylim(0, 100)
    handles, called = axes[0].get_legend_handles_labels()
    figure.legend(handles, called, fontsize=8, ncol=5, loc="upper left", bbox_to_anchor=(0.05, 1))
    for axis, key, title in ((axes[2], "psnr", "PSNR, dB"), (axes[3], "ssim", "SSIM")):
        everything = []
        for i, (which, text, colour) in enumerate((("corrupted", "corrupted", "#bdbdbd"),
                                                   ("adaptive", "adaptive", "#08519c"),
                                                   ("reverse", "reverse", "#fdae6b"))):
            values = [mean(m[key] for m in f[which]) or 0 for f in facts]
            everything += [v for v in values if v]
            axis.bar(x + (i - 1) * 0.27, values, 0.27, label=text, color=colour)
        if everything:
            low, high = min(everything), max(everything)
            axis.set_ylim(low - 0.4 * (high - low) - 1e-3, high + 0.25 * (high - low) + 1e-3)
        axis.set_title(title + " (axis cut)", fontsize=10)
    handles, called = axes[2].get_legend_handles_labels()
    figure.legend(handles, called, fontsize=8, ncol=3, loc="upper right", bbox_to_anchor=(0.95, 1))
    for axis in axes:
        axis.set_xticks(x)
        axis.set_xticklabels(["%s bias" % n for n in names], fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.91))
    save(bench, figure, "order.png")
    return [("order.png", "What is called first and second (plain: volumes, hatched: slices), and what the order is worth")]


class Slices:
    """Middle slices of a case's files, all scaled by the clean slices' numbers, turned upright."""

    def __init__(self, case, clean):
        self.case = case
        v = nibabel.load(clean).get_fdata()
        self.top = np.percentile(v[v > v.mean()], 99.5)
        codes = nibabel.aff2axcodes(nibabel.load(clean).affine)
        rest = [a for a in range(3) if a != case.scan.axis]
        self.flips = [codes[a] in "RSA" for a in rest]
        self.turn = codes[rest[1]] in "LR"    # left and right lie across

    def get(self, v):
        if not isinstance(v, np.ndarray):
            v = nibabel.load(v).get_fdata()
        s = np.take(v, v.shape[self.case.scan.axis] // 2, self.case.scan.axis) / self.top
        for a, flip in enumerate(self.flips):
            if flip:
                s = np.flip(s, a)
        return s if self.turn else s.T


def score(reference, image):
    return 10 * math.log10(1 / max(1e-12, float(np.mean((reference - image) ** 2))))


def panels(bench, name, title, lines_of_panels):
    """lines_of_panels: [(row label, [(title, slice, is it an error)])]"""
    import matplotlib.pyplot as plt
    columns = max(len(p) for _, p in lines_of_panels)
    figure, axes = plt.subplots(len(lines_of_panels), columns, squeeze=False,
                                figsize=(1.75 * columns, 0.35 + 2.15 * len(lines_of_panels)))
    for row, (text, parts) in zip(axes, lines_of_panels):
        for axis in row:
            axis.axis("off")
        for axis, (caption, image, error) in zip(row, parts):
            axis.imshow(image, cmap="inferno" if error else "gray", vmin=0, vmax=0.3 if error else 1.0)
            axis.set_title(caption, fontsize=6.5, pad=2)
        row[0].text(-0.04, 0.5, text, rotation=90, va="center", ha="right", fontsize=7, transform=row[0].transAxes)
    figure.suptitle(title, fontsize=9)
    figure.subplots_adjust(left=0.035, right=0.997, bottom=0.005, top=1 - 0.45 / (0.35 + 2.15 * len(lines_of_panels)),
                           wspace=0.03, hspace=0.14)
    save(bench, figure, name)


def before_and_after(bench, case):
    """(its slices, the cascade's steps, the clean values, panels, panels of errors) of a case restored by the cascade."""
    at = Slices(case, bench.clean(case))
    clean, bad = at.get(bench.clean(case)), at.get(bench.corrupted(case))
    steps = bench.restore(case)["steps"]
    restored = at.get(bench.tmp / "restored.nii")
    parts = [("clean", clean, False), ("corrupted %.1f dB" % score(clean, bad), bad, False),
             ("resmap %.1f dB" % score(clean, restored), restored, False)]
    return at, " → ".join(steps), clean, parts, [
        ("error, corrupted", abs(bad - clean), True), ("error, resmap", abs(restored - clean), True)]


def mixture_pictures(bench, cases):
    """One picture a scan: its mixtures, restored by the cascade and by the classical methods."""
    shown, by_scan = [], {}
    for case in cases:
        by_scan.setdefault(case.scan.name, []).append(case)
    for name, of in by_scan.items():
        lines = []
        for case in of:
            at, steps, clean, parts, errors = before_and_after(bench, case)
            names = [n for n in bench.peers if classical.METHODS[n][0] <= set(case.kinds) and n != "BM4D"]
            best = next((n for n in ("NLM, N4", "NLM", "N4") if n in names), None)
            if best:
                peer = at.get(bench.peer_slabs(case, names)[best])
                parts.append(("%s %.1f dB" % (best, score(clean, peer)), peer, False))
                errors.append(("error, " + best, abs(peer - clean), True))
            lines.append((label(case.kinds) + "\n" + steps, parts + errors))
        file = "mixtures-%s.png" % name
        panels(bench, file, "%s, preset %s; errors from 0 (black) to 0.3 of the white level (bright); PSNR of this slice"
               % (name, of[0].label), lines)
        shown.append((file, "Mixtures of %s at preset %s, restored by the cascade (steps beside each row) and by the "
                      "classical method" % (name, of[0].label)))
    return shown


def contrast_picture(bench, cases):
    lines = []
    for case in cases:
        _, steps, _, parts, errors = before_and_after(bench, case)
        lines.append(("%s\n%s" % (case.scan.contrast, steps), parts + errors))
    if not lines:
        return []
    panels(bench, "contrasts.png", "Other contrasts: %s at preset moderate" % label(cases[0].kinds), lines)
    return [("contrasts.png", "Other contrasts with all three artifacts at `moderate`: " + ", ".join(
        "%s (%s)" % (c.scan.name, c.scan.contrast) for c in cases))]


def acquired_picture(bench, cases):
    """Scans as they came from the scanner, with no reference: what the cascade and a forced bias step change."""
    lines = []
    for case in cases:
        at = Slices(case, bench.clean(case))
        scan = at.get(bench.clean(case))
        steps = bench.restore(case)["steps"]
        restored = at.get(bench.tmp / "restored.nii")
        bench.restore(case, "--order", "bias")
        forced = at.get(bench.tmp / "restored.nii")
        lines.append(("%s\n%s" % (case.scan.contrast, " → ".join(steps) or "left alone"), [
            ("as acquired", scan, False), ("cascade", restored, False), ("change", abs(restored - scan), True),
            ("bias step, forced", forced, False), ("change", abs(forced - scan), True)]))
    if not lines:
        return []
    panels(bench, "acquired.png", "Scans as acquired, no reference; changes from 0 to 0.3 of the white level", lines)
    return [("acquired.png", "As acquired, with the scanner's own receive field and noise and nothing to compare with: "
             + ", ".join(c.scan.name for c in cases))]


# ---- All of it ----

def write_csv(bench, sets):
    with open(bench.out / "results.csv", "w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["scan", "contrast", "split", "strength", "artifacts", "seed", "method", "steps", "psnr",
                         "psnr_slices", "ssim", "ssim_skimage", "nrmse"])

        def row(case, method, steps, m):
            writer.writerow([case.scan.name, case.scan.contrast, case.scan.split, case.label, "+".join(case.kinds),
                             case.seed, method, steps]
                            + ["" if m[k] is None else "%.6g" % m[k]
                               for k in ("psnr", "psnr_slices", "ssim", "ssim_skimage", "nrmse")])

        for name in ("main", "others", "phantoms"):
            for case in sets[name]:
                steps = bench.cascade(case)["steps"]
                of = {"one step": ">".join(steps[:1]), "cascade": ">".join(steps)}
                for method, m in bench.methods(case).items():
                    row(case, method, of.get(method, ""), m)
        for case in sets["order"]:
            row(case, "corrupted", "", bench.before(case))
            made = bench.cascade(case, "volume", 2)
            row(case, "cascade, two steps", ">".join(made["steps"]), made["metrics"])
            for order in (("motion", "bias"), ("bias", "motion")):
                row(case, "forced order", ">".join(order), bench.order(case, order)["metrics"])
        for case in sets["clean"]:
            made = bench.cascade(case)
            row(case, "cascade", ">".join(made["steps"]), made["metrics"])


def write(bench, sets, partly, combinations, motion, strengths):
    main, others, exact = (Rows(bench, sets[n]) for n in ("main", "others", "phantoms"))
    found = orders(bench, sets["order"])
    pictures = {"gains": [], "mixtures": [], "contrasts": [], "order": []}
    drawn = classical.module("matplotlib") and classical.module("PIL")
    if drawn:
        import matplotlib
        matplotlib.use("Agg")
        free = [s for s in {c.scan.name: c.scan for c in sets["main"] + sets["others"]}.values() if s.licence == "A"]
        named = [s for s in free if s.name in bench.o.picture] or free[:2]
        preset = "moderate" if "moderate" in bench.o.presets else bench.o.presets[0]
        pictures["gains"] = gains_plot(bench, main, combinations)
        pictures["mixtures"] = mixture_pictures(bench, [
            c for s in named for c in sets["main"] if c.scan is s and c.label == preset and len(c.kinds) > 1])
        one_each = {c.scan.contrast: c for c in sets["others"] if c.scan in named and len(c.kinds) == 3}
        pictures["contrasts"] = contrast_picture(bench, list(one_each.values())) + acquired_picture(
            bench, [c for c in sets["clean"] if c.scan in named])
        pictures["order"] = order_plot(bench, found, strengths) if found else []

    def shown(which):
        return [line for path, text in pictures[which] for line in ("![%s](%s)" % (text, path), "", text + ".", "")]

    lines = opening(bench, sets)
    if partly:
        lines += ["Measured in part only when this was written, and left out: %s." % ", ".join(partly), ""]
    if not drawn:
        lines += ["Pictures are left out: no Python package matplotlib or Pillow.", ""]
    lines += singles(bench, main, sets["clean"]) + ablation(bench, main)
    lines += mixtures(bench, main, combinations) + shown("gains") + shown("mixtures")
    lines += contrasts(bench, main, others, combinations) + shown("contrasts")
    if found:
        lines += order_section(bench, found, motion, strengths) + shown("order")
    if exact.all:
        lines += phantoms(bench, exact, combinations)
    if sets["clean"]:
        lines += clean_section(bench, sets["clean"])
    if "moderate" in bench.o.presets:
        lines += by_scan(bench, main, combinations)
    (bench.out / "report.md").write_text("\n".join(lines).rstrip() + "\n")
    write_csv(bench, sets)
