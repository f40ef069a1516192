#!/usr/bin/env python3
"""Makes the network vectors of this directory: small random networks and what they compute, in float64.

    python3 tests/vectors/make_network.py            (needs weights/train/requirements.txt)

Weights are drawn so that every term matters (norm weights away from 1, temperatures from 0.5 to 3, prompts that
move the result), then rounded to the file's data type; the expected outputs are computed from the rounded weights.
"""
import json
import os
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "weights", "train"))
import model                                             # noqa: E402
from cascade import Restorer                             # noqa: E402

TEXT = 384


def randomise(net, seed):
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(net.named_parameters()):
        n = torch.randn(p.shape, generator=g)
        if "norm" in name:
            v = 1 + 0.3 * n if name.endswith("weight") else 0.3 * n
        elif "temperature" in name:
            v = 0.5 + 2.5 * torch.rand(p.shape, generator=g)
        elif name.endswith("bias"):
            v = 0.2 * n
        else:
            v = n / p[0].numel() ** 0.5
        p.data.copy_(v)
    return net


def rounded(net, dtype):
    for p in net.parameters():
        p.data.copy_(p.data.to(dtype).to(p.dtype))
    return net


def picture(rng, *shape):
    """Smooth blobs on a dark ground and some noise, about 0 to 1."""
    h, w = shape[-2:]
    y, x = np.mgrid[:h, :w]
    out = np.zeros(shape)
    for s in out.reshape(-1, h, w):
        s += np.exp(-((y - h * rng.uniform(.4, .6)) / (h * .33)) ** 4 - ((x - w * rng.uniform(.4, .6)) / (w * .33)) ** 4) \
            * (0.5 + 0.25 * np.sin(x * rng.uniform(.2, .8)) + 0.25 * np.cos(y * rng.uniform(.2, .8)))
        s += rng.normal(0, 0.03, s.shape)
    return out.astype(np.float32)


def write_model(case, net, dtype, prompts=None, **more):
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in net.state_dict().items()}
    if prompts is not None:
        tensors["prompts.features"] = torch.from_numpy(prompts[0]).contiguous()
        tensors["prompts.class"] = torch.from_numpy(prompts[1].astype(np.int32))
    config = dict(net.config, name=case, **more)
    save_torch(tensors, os.path.join(HERE, case + ".safetensors"),
               {"resmap.config": json.dumps(config, sort_keys=True)})


def write_io(case, description, **tensors):
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, os.path.join(HERE, case + ".io.safetensors"),
              {"description": description})


def prompt_set(rng, classes=4, each=3):
    f = rng.normal(0, 1, (classes * each, TEXT)) / 8
    f += np.repeat(rng.normal(0, 1, (classes, TEXT)), each, 0) / 8
    return f.astype(np.float16).astype(np.float32), np.repeat(np.arange(classes), each)


def ops():
    """Single operations; weights in ops.safetensors under CASE.<tensor>, inputs and outputs in ops.io.safetensors."""
    weights, io, about = {}, {}, {}
    cases = [("layernorm_biasfree", model.LayerNorm(24, "BiasFree"), (24, 5, 7)),
             ("layernorm_withbias", model.LayerNorm(24, "WithBias"), (24, 5, 7)),
             ("mdta_1head", model.Attention(16, 1), (16, 9, 13)), ("mdta_4heads", model.Attention(32, 4), (32, 7, 5)),
             ("mdta_one_pixel", model.Attention(16, 2), (16, 1, 1)),
             ("gdfn", model.FeedForward(16, 2.66), (16, 9, 13)), ("gdfn_24", model.FeedForward(24, 2.5), (24, 6, 5)),
             ("block_biasfree", model.Block(16, 2), (16, 11, 6)), ("block_withbias", model.Block(16, 2, norm="WithBias"), (16, 11, 6)),
             ("down", model.Down(16), (16, 10, 14)), ("up", model.Up(16), (16, 5, 7)),
             ("tpf_biasfree", model.TextFusion(16, 2, 2.66, "BiasFree", TEXT), (16, 6, 9)),
             ("tpf_withbias", model.TextFusion(16, 2, 2.66, "WithBias", TEXT), (16, 6, 9)),
             ("patch_embed", model.PatchEmbed(1, 16), (1, 9, 11)), ("output_conv", model.nn.Conv2d(16, 1, 3, padding=1, bias=False), (16, 9, 11)),
             ("classifier", model.Classifier(48, 20, 4), (48,))]
    for i, (name, m, shape) in enumerate(cases):
        m = randomise(m, 100 + i).double()
        rng = np.random.default_rng(200 + i)
        x = rng.normal(0.3, 1, shape).astype(np.float32)
        args = [torch.from_numpy(x).double()[None]]
        if name.startswith("tpf"):
            t = (rng.normal(0, 1, TEXT) / 8).astype(np.float32)
            io[name + ".prompt"] = t
            args.append(torch.from_numpy(t).double()[None])
        with torch.no_grad():
            io[name + ".input"], io[name + ".output"] = x, m(*args)[0].numpy()
        for k, v in m.state_dict().items():
            weights["%s.%s" % (name, k)] = v.float().contiguous()
        about[name] = list(shape)
    save_torch(weights, os.path.join(HERE, "ops.safetensors"), {"description": "weights of the single operations of ops.io.safetensors"})
    write_io("ops", "CASE.input (F32) -> CASE.output (F64), channels first, no batch axis; shapes: " + json.dumps(about), **io)


def restormer(case, seed, dtype, shapes, description, inner=True, **config):
    net = rounded(randomise(model.ResMAP(arch="restormer", **config), seed), dtype)
    net.output.weight.data.mul_(0.5)
    write_model(case, net, dtype)
    rng, io = np.random.default_rng(seed), {}
    seen = {}
    if inner:
        for name in ("patch_embed", "encoder_level1", "down1_2", "encoder_level2", "encoder_level3", "latent", "decoder_level3",
                     "decoder_level2", "decoder_level1", "refinement"):
            getattr(net, name).register_forward_hook(lambda m, i, o, n=name: seen.__setitem__(n, o[0].numpy().astype(np.float32)))
    for i, shape in enumerate(shapes):
        x = picture(rng, *shape)
        r = Restorer(net, np.zeros((0, TEXT)), [])if net.classes == [] else Restorer.__new__(Restorer)
        r.net, r.dtype = net.double().eval(), torch.float64
        suffix = "" if i == 0 else "_%d" % (i + 1)
        io["input" + suffix] = x
        io["output" + suffix] = r.network(x, None)
        if i == 0:
            io.update({"inner." + k: v for k, v in seen.items()})
    write_io(case, description, **io)


def resmap(case, seed, dtype, shapes, description, **config):
    net = rounded(randomise(model.ResMAP(**config), seed), dtype)
    rng = np.random.default_rng(seed)
    prompts = prompt_set(rng)
    write_model(case, net, dtype, prompts)
    r, io = Restorer(net, *prompts), {"prompt": np.zeros(0)}
    io["prompt"] = np.stack(r.prompts)
    for i, shape in enumerate(shapes):
        x = picture(rng, *shape).astype(np.float64).astype(np.float32)
        suffix = "" if i == 0 else "_%d" % (i + 1)
        threshold = float(x.astype(np.float64).mean())
        io["input" + suffix] = x
        io["pooled" + suffix] = r.pooled(x).numpy()
        io["logits" + suffix] = r.logits(x)
        io["probabilities" + suffix] = r.probabilities(x)
        io["network" + suffix] = np.stack([r.network(x, p) for p in r.prompts])
        io["output" + suffix] = np.stack([r.restore(x.astype(np.float64), c, threshold) for c in range(4)])
        io["threshold" + suffix] = np.array([threshold])
    write_io(case, description, **io)


EVIDENCE = {"weight": 3.0, "spread": 0.6}


def cascade(case, dtype, **config):
    """Searches a seed whose decisions vary over slices and steps and are not close calls, and whose field is strong enough for
    further passes, but not so wild that rounding is magnified."""
    best = None
    for seed in range(400):
        net = randomise(model.ResMAP(**config), 1000 + seed)
        net.classifier.fc2.weight.data.mul_(4)
        net.classifier.fc1.weight.data.mul_(3)
        net.output.weight.data.mul_(0.12)  # near the identity, as trained weights are: rounding is not magnified over the steps
        net = rounded(net, dtype)
        rng = np.random.default_rng(seed)
        prompts = prompt_set(rng)
        v = picture(rng, 3, 29, 40)
        v[1] *= 0.6
        v[2] = np.clip(v[2] * 1.3 + np.linspace(-.2, .2, 40), 0, None)
        r = Restorer(net, *prompts)
        with torch.no_grad():
            out, tv = r.cascade(v, 3, "slice", scale=False)
        d = [tuple(t["decisions"]) for t in tv]
        margin = min(np.sort(p)[-1] - np.sort(p)[-2] for t in tv for p in t["probabilities"])
        kinds = len({c for t in d for c in t})
        score = kinds + (len(set(d[0])) > 1) * 2 + len(d) + (2 in {c for t in d for c in t}) * 2
        if margin > 0.1 and np.abs(out).max() < 5:
            out2, tw = r.cascade(v * 900.0, 2, "volume", scale=True)
            score += len({tuple(t["decisions"]) for t in tw}) + (2 in tw[0]["decisions"])
            wm = min(1.0 if len(t["decisions"]) == 0 else float(np.ptp(np.sort(t["probabilities"].mean(0))[-2:])) for t in tw)
            tame, again = np.abs(out2).max() < 2500, 0
            for order, passes in ((0, 1), (3, 1), (3, 3)):
                net.field_order, net.field_passes = order, passes
                for x, decide, scale, forced in ((v, "volume", False, ["bias", "noise"]), (v * 900.0, "slice", True, None)):
                    out, trace = r.cascade(x, 3, decide, scale, forced)
                    tame &= bool(np.abs(out).max() < 2.8 * np.abs(x).max())
                    again = max(again, *(t["passes"] for t in trace)) if forced and passes == 3 else again
            net.field_order, net.field_passes = 0, 1
            if wm > 0.05 and tame and again == 3 and (best is None or score > best[0]):
                best = (score, seed, net, prompts, v, d)
    score, seed, net, prompts, v, d = best
    print("cascade seed", seed, "score", score, "slice decisions", d)
    write_model(case, net, dtype, prompts, field_order=3, field_passes=3, field_evidence=dict(EVIDENCE, spread=0.05))
    r, io = Restorer(net, *prompts), {}
    runs = {"slice": (v, 3, "slice", False, None), "volume": (v, 3, "volume", False, None),
            "forced": (v, 3, "volume", False, ["bias", "noise"]),
            "scaled_volume": (np.round(v * 900).astype(np.float32), 2, "volume", True, None),
            "scaled_slice": (np.round(v * 900).astype(np.float32), 3, "slice", True, None),
            "fitted_forced": (v, 3, "volume", False, ["bias", "noise"]),
            "fitted_slice": (np.round(v * 900).astype(np.float32), 3, "slice", True, None)}
    runs.update({"again" + k[6:]: x for k, x in runs.items() if k.startswith("fitted_")})
    x = runs["scaled_slice"][0]
    runs.update(heard_volume=(x, 2, "volume", True, None), heard_slice=(x, 4, "slice", True, None))
    for name, (x, steps, decide, scale, order) in runs.items():
        net.field_order = 3 if name.startswith(("fitted_", "again_", "heard_")) else 0
        net.field_passes = 3 if name.startswith("again_") else 1
        net.field_evidence = EVIDENCE if name.startswith("heard_") else None
        out, trace = r.cascade(x, steps, decide, scale, order)
        io[name + ".input"], io[name + ".output"] = np.asarray(x, np.float32), out
        io[name + ".decisions"] = np.stack([t["decisions"] for t in trace]).astype(np.int32)
        io[name + ".passes"] = np.array([t["passes"] for t in trace]).astype(np.int32)
        io[name + ".numbers"] = np.array([t["numbers"] for t in trace])
        if order is None:
            io[name + ".probabilities"] = np.stack([t["probabilities"] for t in trace])
            print(name, [np.round(t["probabilities"], 2).tolist() for t in trace])
        d = io[name + ".decisions"]
        print(name, d.tolist(), "max", np.abs(out).max())
        if name.startswith("heard_"):            # no close calls; and a step after a slice has stopped, which is heard no more
            assert all(np.ptp(np.sort(p)[-2:]) > 0.05 for t in trace for p in (t["probabilities"] if decide == "slice" else t["probabilities"].mean(0)[None]))
            assert decide == "volume" or (d[-2] < 0).any() and (d[-1] >= 0).any()
    write_io(case, "RUN.input [slices,H,W], RUN.output F64, RUN.decisions [steps,slices] (class index, -1: stopped), RUN.passes [steps], "
                   "RUN.probabilities [steps,slices,classes], RUN.numbers [steps,3] lo, hi, mean; runs: slice and volume "
                   "(--steps 3 --decide ..., --no-scale), forced (--order bias,noise --no-scale), scaled_volume (--steps 2), "
                   "scaled_slice (--steps 3), fitted_forced and fitted_slice as forced and scaled_slice with field_order 3, again_… as those with field_passes 3, "
                   "heard_… as scaled_… with field_order 3 and field_evidence, heard_slice with --steps 4; the file's own configuration is "
                   "heard_…'s with field_passes 3, and a spread of 0.05, by which more is restored", **io)


def main():
    torch.set_num_threads(1)
    ops()
    restormer("restormer_biasfree", 1, torch.float16, [(24, 40), (19, 13)], "BiasFree, dim 8, F16 weights; input_2 needs padding",
              dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, layer_norm="BiasFree")
    restormer("restormer_withbias", 2, torch.float32, [(24, 16), (19, 13), (1, 1), (3, 40)],
              "WithBias, dim 4, F32 weights; input_2, _3, _4 need padding (19x13, 1x1, 3x40)",
              dim=4, num_blocks=[2, 1, 1, 1], num_refinement_blocks=2, layer_norm="WithBias")
    restormer("restormer_rgb", 3, torch.float32, [(16, 24)], "three channels in and out: the slice replicated, outputs averaged",
              dim=4, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, in_channels=3, out_channels=3, inner=False)
    note = "prompt [4,384]: the classes' centroids; network[c]: one pass with class c's prompt, cropped; output[c]: the step of class c"
    resmap("resmap_biasfree", 4, torch.bfloat16, [(24, 40), (19, 13)], "one view, BF16 weights; " + note,
           dim=4, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, classifier_hidden=12)
    # by this seed a network that fp16 storage suits, which tests need
    resmap("resmap_withbias", 12, torch.float16, [(19, 13)], "one view, all levels classified, WithBias, F16 weights; " + note,
           dim=4, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, classifier_hidden=12, layer_norm="WithBias", classifier_levels=4)
    views = dict(dim=4, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, classifier_hidden=12, class_pixels={"bias": 24}, classifier_views=2)
    resmap("resmap_views", 6, torch.float16, [(29, 40), (45, 31), (20, 17)],
           "two views, class_pixels {bias: 24}: output[2] is the slice times the field; input_3 is not shrunken; " + note, **views)
    cascade("cascade", torch.float16, **views)


if __name__ == "__main__":
    main()
