"""The paper's Table 2 at resmap-s's size: what the classification, the prompts and the cascade each add, at equal budgets.

    ablation.py train --pool DIR --out DIR [--steps N]            # one weights file a row of ROWS, each from random weights
    ablation.py measure --out DIR --work DIR --resmap ./resmap CLEAN...    # the table, in Markdown

Every row is trained by train.py with the same seed, steps and tasks. Without prompts, one constant feature stands for every
class's, so that the parameters are the same. `measure` takes scans, artifacts and slices as bench/mixed does, and its --work.
"""
import argparse
import importlib.machinery
import importlib.util
import os
import subprocess
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "bench"))

# name: (options of train.py, prompts of their own?, what it is)
ROWS = {
    "none": (["--plain", "--ce", "0"], False, "restoration alone"),
    "classification": (["--plain", "--ce", "0.04"], False, "+ classification"),
    "prompts": (["--plain", "--ce", "0.04"], True, "+ prompts: the paper's method"),
    "views": (["--ce", "0.04"], True, "+ `class_pixels` and two views: as resmap-s"),
}
WORK = "motion=1,noise=1,bias=1,clean=1,state=0"


def constant_prompts(source, path):
    """One feature for all classes: the mean of all."""
    z = np.load(source)
    mean = z["features"].astype(np.float64).mean(0).astype(z["features"].dtype)
    np.savez(path, **{"features": np.stack([mean] * 4), "class": np.arange(4, dtype=z["class"].dtype)})


def train(a):
    features = os.path.join(HERE, "..", "prompts", "features.npz")
    constant = os.path.join(a.out, "constant.npz")
    constant_prompts(features, constant)
    for name in a.rows.split(","):
        options, prompted, _ = ROWS[name]
        prompts, run = features if prompted else constant, os.path.join(a.out, name)
        subprocess.run([sys.executable, os.path.join(HERE, "train.py"), "--fast", "--pool", a.pool, "--out", run, "--prompts", prompts,
                        "--steps", str(a.steps), "--peak", "1e-3", "--work", WORK] + options, check=True)
        subprocess.run([sys.executable, os.path.join(HERE, "export.py"), "--checkpoint", os.path.join(run, "last.pt"),
                        "--prompts", prompts, "--name", name, "--out", run + ".safetensors"], check=True)


def measure(a):
    loader = importlib.machinery.SourceFileLoader("mixed", os.path.join(HERE, "..", "..", "bench", "mixed"))
    mixed = importlib.util.module_from_spec(importlib.util.spec_from_loader("mixed", loader))
    loader.exec_module(mixed)
    scans = [s for s in mixed.find_scans(a.scans, a.splits.split(","), 2, a.each) if s.contrast == "T2w"]
    cases = [mixed.preset_case(s, a.preset, k) for s in scans for k in mixed.COMBINATIONS]
    single, mixture = [c for c in cases if len(c.kinds) == 1], [c for c in cases if len(c.kinds) > 1]

    def line(kind, what, rows):
        mean = lambda k: np.mean([m[k] for m in rows])
        print("| %s | %s | %.2f | %.3f |" % (kind, what, mean("psnr"), mean("ssim")), flush=True)

    print("| artifacts | | PSNR | SSIM |\n| --- | --- | --- | --- |")
    for name, (options, prompted, what) in ROWS.items():
        model = os.path.join(a.out, name + ".safetensors")
        if not os.path.exists(model):
            continue
        bench = mixed.Bench(argparse.Namespace(resmap=os.path.abspath(a.resmap), model=os.path.abspath(model), device=a.device,
                                               out=a.out, work=a.work, without=[], report=False))
        try:
            if name == "none":
                for kind, some in (("one", single), ("mixed", mixture)):
                    line(kind, "as corrupted", [bench.before(c) for c in some])
            # Where the prompts are all one, which class a step is named after changes nothing.
            once = lambda c: bench.order(c, c.kinds[:1])
            if prompted:
                line("one", what + ", the classifier's choice", [bench.cascade(c, "slice", 1)["metrics"] for c in single])
                line("one", what + ", told", [once(c)["metrics"] for c in single])
                line("mixed", what + ", one step", [bench.cascade(c, "slice", 1)["metrics"] for c in mixture])
                line("mixed", what + ", cascade", [bench.cascade(c, "slice", 3)["metrics"] for c in mixture])
            else:
                line("one", what, [once(c)["metrics"] for c in single])
                line("mixed", what + ", one pass", [once(c)["metrics"] for c in mixture])
                line("mixed", what + ", a pass for each artifact", [bench.order(c, c.kinds)["metrics"] for c in mixture])
        finally:
            bench.close()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    t = sub.add_parser("train")
    t.add_argument("--pool", required=True)
    t.add_argument("--steps", type=int, default=1600)
    t.add_argument("--rows", default=",".join(ROWS))
    t.set_defaults(run=train)
    m = sub.add_parser("measure")
    m.add_argument("scans", nargs="+", metavar="CLEAN")
    m.add_argument("--resmap", default="./resmap")
    m.add_argument("--device", default="auto")
    m.add_argument("--work", required=True)
    m.add_argument("--splits", default="val,test")
    m.add_argument("--each", type=int, default=2)
    m.add_argument("--preset", default="moderate")
    m.set_defaults(run=measure)
    for q in (t, m):
        q.add_argument("--out", required=True)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    a.run(a)


if __name__ == "__main__":
    main()
