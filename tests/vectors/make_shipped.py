#!/usr/bin/env python3
"""Makes shipped.io.safetensors: what the shipped weights compute on a synthetic picture, in float64.

Run again whenever weights/resmap-s.safetensors changes; `sha256` in the metadata says which file it belongs to.
"""
import hashlib
import json
import os
import sys

import numpy as np
from safetensors import safe_open

import make_network
from make_network import HERE, Restorer, model, picture, write_io

FILE = os.path.join(HERE, "..", "..", "weights", "resmap-s.safetensors")


def read(path):
    """(network in float64, prompt features, prompt classes)."""
    import torch
    with safe_open(path, "pt") as f:
        config = json.loads(f.metadata()["resmap.config"])
        tensors = {k: f.get_tensor(k) for k in f.keys()}
    features, classes = tensors.pop("prompts.features"), tensors.pop("prompts.class")
    net = model.ResMAP(classifier_hidden=tensors["classifier.fc1.weight"].shape[0], **config)
    net.load_state_dict({k: v.to(torch.float64) for k, v in tensors.items()})
    return net, features.double().numpy(), classes.numpy()


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else FILE
    r = Restorer(*read(path))
    x = picture(np.random.default_rng(9), 75, 100).clip(0)
    threshold = float(x.astype(np.float64).mean())
    io = {"input": x, "threshold": np.array([threshold]), "prompt": np.stack(r.prompts), "pooled": r.pooled(x).numpy(),
          "logits": r.logits(x), "probabilities": r.probabilities(x),
          "heard": r.cascade(x[None], steps=1, scale=False)[1][0]["probabilities"][0]}
    y = x.astype(np.float64)
    io["network"] = np.stack([r.network(y, p) for p in r.prompts[:2]]).astype(np.float32)
    up, across = np.linspace(-1, 1, 75)[:, None], np.linspace(-1, 1, 100)
    io["shaded"] = (x * np.exp(0.7 * up - across)).astype(np.float32)      # takes further passes
    for name, image in (("", x), ("_shaded", io["shaded"])):
        out, trace = r.cascade(image[None], scale=False, order=["bias"])
        io["output_bias" + name], io["passes" + name] = out[0].astype(np.float32), np.array([trace[0]["passes"]], np.int32)
    print("passes", io["passes"], io["passes_shaded"])
    with open(path, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    write_io("shipped", "resmap-s, sha256 %s: input [75,100]; heard: its probabilities, the field heard; network[c] one pass with the centroid of class c (motion, noise), "
             "output_bias the field step and the passes it took, output_bias_shaded and passes_shaded those of `shaded`; computed in float64, images stored as F32" % digest, **io)
    print("logits", io["logits"], "sha256", digest)


if __name__ == "__main__":
    make_network.torch.set_num_threads(1)
    main()
