"""A checkpoint's averaged weights (or the average of several checkpoints') and the prompts -> a weights file (weights/FORMAT.md), the same bytes every time.

    export.py --checkpoint last.pt --prompts features.npz --name resmap-s --out weights/resmap-s.safetensors
"""
import argparse
import hashlib
import json
import os
import struct

import numpy as np
import safetensors.torch
import torch

from data import KINDS

DTYPES = {"float16": "F16", "float32": "F32", "int32": "I32"}


def write_safetensors(path, tensors, metadata):
    """Tensors in order of name, header padded to 8 bytes: nothing depends on the writer's mood."""
    header, at = {"__metadata__": metadata}, 0
    for name in sorted(tensors):
        t = tensors[name]
        header[name] = {"dtype": DTYPES[str(t.dtype)], "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    h = json.dumps(header, separators=(",", ":")).encode()
    h += b" " * (-len(h) % 8)
    tmp = path + ".tmp"
    with open(tmp, "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h)
        for name in sorted(tensors):
            f.write(np.ascontiguousarray(tensors[name]).tobytes())
    os.replace(tmp, path)


def load(path):
    """A checkpoint, or a weights file as one that has nothing but weights."""
    if not path.endswith(".safetensors"):
        return torch.load(path, weights_only=True)
    tensors = {k: v for k, v in safetensors.torch.load_file(path).items() if not k.startswith("prompts.")}
    return {"ema": tensors, "net": tensors}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, nargs="+", help="checkpoints, or weights files (the last a checkpoint, which "
                   "counts for the record): all are averaged")
    p.add_argument("--prompts", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--name", default="resmap-s")
    p.add_argument("--start", default="random", help="what the run began with, for the training record")
    p.add_argument("--clean", type=float, default=0, help="added to the classifier's logit of clean: chosen on val, where training's mixture "
                   "of classes is not what is met")
    p.add_argument("--evidence", metavar="WEIGHT,SPREAD", help="field_evidence of the file, chosen on val")
    p.add_argument("--raw", action="store_true", help="the last weights instead of their average")
    a = p.parse_args()
    states = [load(path) for path in a.checkpoint]
    s, of = states[-1], "net" if a.raw else "ema"
    z = np.load(a.prompts)
    tensors = {k: (sum(t[of][k].double() for t in states) / len(states)).numpy() for k in s[of]}
    if a.clean:
        tensors["classifier.fc2.bias"][KINDS.index("clean")] += a.clean
    tensors = {k: v.astype(np.float16) for k, v in tensors.items()}
    for k, v in tensors.items():
        if not np.isfinite(v).all():
            raise SystemExit("%s does not fit in F16" % k)
    tensors["prompts.features"] = z["features"].astype(np.float16)
    tensors["prompts.class"] = z["class"].astype(np.int32)
    config = dict(json.loads(s["config"]), name=a.name)
    if a.evidence:
        weight, spread = map(float, a.evidence.split(","))
        config["field_evidence"] = {"weight": weight, "spread": spread}
    config["training"] = {"data": "train split of the project's data set (see the data sheet %s.md)" % a.name,
                          "steps": s["step"], "minutes": round(s["spent"] / 60, 1), "megapixels": round(s["pixels"] / 1e6),
                          "loss": "L1 and squared error, relative to what the artifact did, + cross entropy", "start": a.start,
                          "clean_logit": a.clean, "optimizer": "Muon and Adam, cosine; weights averaged" + ("; of %d sets" % len(states) if len(states) > 1 else ""),
                          "precision": "bfloat16 autocast", "parameters": sum(int(v.numel()) for v in s["ema"].values())}
    write_safetensors(a.out, tensors, {"resmap.config": json.dumps(config, sort_keys=True)})
    data = open(a.out, "rb").read()
    print("%s: %d bytes, sha256 %s, %d steps" % (a.out, len(data), hashlib.sha256(data).hexdigest(), s["step"]))


if __name__ == "__main__":
    main()
