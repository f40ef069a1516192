#!/usr/bin/env python3
"""Turns a PyTorch checkpoint of Restormer (.pth) into a weights file of resmap.

    convert.py CHECKPOINT.pth OUT.safetensors [--f16]

The checkpoint is a state dict with Restormer's published tensor names, bare or under the key "params". Nothing is
renamed; what the program must know besides (sizes, heads, kind of layer norm) is read off the shapes and written into
the file's metadata (FORMAT.md). The checkpoint is read with weights_only, so it cannot run code. Needs torch and numpy.
"""
import argparse
import hashlib
import json
import os
import struct
import sys

import numpy as np
import torch

STAGES = ("encoder_level1", "encoder_level2", "encoder_level3", "latent", "decoder_level3", "decoder_level2",
          "decoder_level1", "refinement")
LEVEL = (0, 1, 2, 3, 2, 1, 0, 0)        # whose block count (refinement apart) and heads a stage shares
WIDTH = (1, 2, 4, 8, 4, 2, 2, 2)        # channels in units of dim


def read(path):
    if not os.path.isfile(path):
        sys.exit("%s: no such file" % path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:      # torch raises many kinds for a file that is none of its own
        sys.exit("%s: not a PyTorch checkpoint of tensors alone (%s)" % (path, type(e).__name__))
    if isinstance(state, dict) and isinstance(state.get("params"), dict):
        state = state["params"]
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        sys.exit("%s: neither a state dict nor one under the key \"params\"" % path)
    return {name[7:] if name.startswith("module.") else name: t for name, t in state.items()}


def factor(dim, hidden):
    """The expansion factor f with int(C * f) == hidden[i] for C = dim, 2 dim, 4 dim, 8 dim; 2.66 where it fits."""
    widths = [dim << i for i in range(4)]
    low = max(h / c for h, c in zip(hidden, widths))
    candidates = [2.66] + [np.ceil(low * 10 ** k) / 10 ** k for k in range(10)] + [low]
    for f in candidates:
        if [int(c * f) for c in widths] == hidden:
            return float(f)
    sys.exit("no expansion factor gives the feed-forward's hidden channels %s" % hidden)


def infer(state):
    def shape(name):
        if name not in state:
            sys.exit("not a Restormer: tensor %s is missing" % name)
        return tuple(state[name].shape)

    if "skip_conv.weight" in state:
        sys.exit("a dual-pixel Restormer (skip_conv.weight) takes two images and cannot be used")
    dim, channels = shape("patch_embed.proj.weight")[:2]
    counts = [len({name.split(".")[1] for name in state if name.startswith(stage + ".")}) for stage in STAGES]
    heads = [shape(stage + ".0.attn.temperature")[0] for stage in STAGES]
    hidden = [shape(stage + ".0.ffn.project_out.weight")[1] for stage in STAGES[:4]]
    return {"arch": "restormer", "dim": dim, "num_blocks": counts[:4], "num_refinement_blocks": counts[7],
            "heads": heads[:4], "ffn_expansion_factor": factor(dim, hidden),
            "layer_norm": "WithBias" if "encoder_level1.0.norm1.body.bias" in state else "BiasFree",
            "in_channels": channels, "out_channels": shape("output.weight")[0]}


def expected(config):
    """Names and shapes of every tensor of this configuration."""
    d, shapes = config["dim"], {}
    for stage, level, width in zip(STAGES, LEVEL, WIDTH):
        c, h = width * d, config["heads"][level]
        hidden = int(c * config["ffn_expansion_factor"])
        n = config["num_refinement_blocks"] if stage == "refinement" else config["num_blocks"][level]
        for i in range(n):
            p = "%s.%d." % (stage, i)
            for norm in ("norm1", "norm2"):
                shapes[p + norm + ".body.weight"] = (c,)
                if config["layer_norm"] == "WithBias":
                    shapes[p + norm + ".body.bias"] = (c,)
            shapes[p + "attn.temperature"] = (h, 1, 1)
            shapes[p + "attn.qkv.weight"] = (3 * c, c, 1, 1)
            shapes[p + "attn.qkv_dwconv.weight"] = (3 * c, 1, 3, 3)
            shapes[p + "attn.project_out.weight"] = (c, c, 1, 1)
            shapes[p + "ffn.project_in.weight"] = (2 * hidden, c, 1, 1)
            shapes[p + "ffn.dwconv.weight"] = (2 * hidden, 1, 3, 3)
            shapes[p + "ffn.project_out.weight"] = (c, hidden, 1, 1)
    for name, out, into, k in (("down1_2.body.0", d // 2, d, 3), ("down2_3.body.0", d, 2 * d, 3),
                               ("down3_4.body.0", 2 * d, 4 * d, 3), ("up4_3.body.0", 16 * d, 8 * d, 3),
                               ("up3_2.body.0", 8 * d, 4 * d, 3), ("up2_1.body.0", 4 * d, 2 * d, 3),
                               ("reduce_chan_level3", 4 * d, 8 * d, 1), ("reduce_chan_level2", 2 * d, 4 * d, 1),
                               ("patch_embed.proj", d, config["in_channels"], 3),
                               ("output", config["out_channels"], 2 * d, 3)):
        shapes[name + ".weight"] = (out, into, k, k)
    return shapes


def check(state, config):
    shapes = expected(config)
    for name in shapes:
        if name not in state:
            sys.exit("tensor %s is missing" % name)
        if tuple(state[name].shape) != shapes[name]:
            sys.exit("tensor %s is %s and should be %s" % (name, tuple(state[name].shape), shapes[name]))
    for name in state:
        if name not in shapes:
            sys.exit("tensor %s is none of Restormer's%s" % (name, ", whose convolutions have no bias"
                                                             if name.endswith("bias") else ""))
    if config["in_channels"] != config["out_channels"] or config["in_channels"] not in (1, 3):
        sys.exit("%d channels in and %d out cannot be fed with a scan: only 1 and 1, or 3 and 3"
                 % (config["in_channels"], config["out_channels"]))


def write(path, state, config, f16):
    """The safetensors container: length of the header, JSON header, tensors without gaps."""
    header = {"__metadata__": {"resmap.config": json.dumps(config), "format": "pt"}}
    data, offset = [], 0
    for name in sorted(state):
        values = state[name].detach().to(torch.float32).contiguous().numpy().astype("<f2" if f16 else "<f4")
        if not np.isfinite(values).all():
            sys.exit("tensor %s holds numbers that are not finite%s" % (name, " in half precision" if f16 else ""))
        header[name] = {"dtype": "F16" if f16 else "F32", "shape": list(values.shape),
                        "data_offsets": [offset, offset + values.nbytes]}
        data.append(values.tobytes())
        offset += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = path + ".part"
    try:
        with open(part, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for block in data:
                f.write(block)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def main():
    p = argparse.ArgumentParser(description="Turns a PyTorch checkpoint of Restormer into a weights file of resmap.")
    p.add_argument("checkpoint")
    p.add_argument("out")
    p.add_argument("--f16", action="store_true", help="store half precision: half the size")
    a = p.parse_args()
    if not a.out.endswith(".safetensors"):
        p.error("OUT must end in .safetensors")
    state = read(a.checkpoint)
    config = infer(state)
    check(state, config)
    with open(a.checkpoint, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    config["training"] = {"converted_from": os.path.basename(a.checkpoint), "sha256": digest}
    with np.errstate(over="ignore"):
        write(a.out, state, config, a.f16)
    print("%s: %d tensors, %d parameters" % (a.out, len(state), sum(t.numel() for t in state.values())))


if __name__ == "__main__":
    main()
