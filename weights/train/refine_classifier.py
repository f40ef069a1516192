"""Teaches the classifier's head what the network's own outputs look like; nothing else of the network changes.

    refine_classifier.py --checkpoint last.pt --pool DIR --prompts features.npz --out refined.pt [--samples 900]

Training shows the classifier scanner images only. In the cascade it meets restored ones as well, and a denoised slice,
smoother than any scan, is then called noise again until the steps run out. So the pooled latents of single artifacts, of
what their own restoration leaves, and of noise on top of motion or bias before and after the denoising are collected from
the frozen network (averaged weights), and the two-layer head is trained on from where it stands.  Labels: an untouched
artifact: its class; restored: clean; with noise on top: noise; denoised after that: the artifact below.
"""
import argparse
import json
import random

import numpy as np
import torch
import torch.nn.functional as F

from cascade import Restorer
from data import KINDS
from model import ResMAP
from train import Pool, crop, shrunk
from views import field, shrink

MOTION, NOISE, BIAS, CLEAN = range(4)


def view_of(z, threshold):
    """A whole slice, shrunken or native, or a large crop: [2, H, W] float32 (corrupted, clean)."""
    h, w = z.shape[-2:]
    u = random.random()
    if u < 0.5 and h * w <= 70000:
        return z
    if u < 0.8:
        side = random.randint(144, 256)
        return shrunk(z, side) if max(h, w) > side else z
    return crop(z, random.randrange(160, 241, 16), threshold)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--pool", required=True)
    p.add_argument("--prompts", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--samples", type=int, default=900)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(1)
    random.seed(a.seed)
    np.random.seed(a.seed)
    torch.manual_seed(a.seed)
    state = torch.load(a.checkpoint, weights_only=True)
    net = ResMAP(**json.loads(state["config"]))
    net.load_state_dict(state["ema"])
    f = np.load(a.prompts)
    r = Restorer(net, f["features"], f["class"], torch.float32)
    pool = Pool(a.pool)
    features, labels, kinds = [], [], []

    def see(x, label, kind):
        features.append(r.pooled(x))
        labels.append(label)
        kinds.append(kind)

    def rescaled(x):
        """The next step measures its own top, which is about as high or a little lower."""
        return x * random.uniform(0.99, 1.05)

    for i in range(a.samples):
        kind = random.choice((MOTION, MOTION, NOISE, NOISE, BIAS, BIAS, CLEAN))
        if kind == BIAS:
            z, threshold = pool.biased_slice()
        else:
            z, threshold = pool.slices(KINDS[kind], 1)
        z = view_of(z[:, 0, 0], threshold).numpy().astype(np.float64)
        x, y = z
        error = np.mean((x - y) ** 2)
        if kind == CLEAN:
            see(x, CLEAN, "clean")
            continue
        if error < 10 ** (-3.6 if kind == BIAS else -4.3):
            continue
        see(x, kind, KINDS[kind])
        out = r.restore(x, kind, threshold)
        if kind == NOISE or np.mean((out - y) ** 2) < 0.8 * error:
            see(rescaled(out), CLEAN, KINDS[kind] + " restored")
        if kind == NOISE or random.random() < 0.3:
            continue
        noisy = x + np.random.normal(0, np.exp(random.uniform(np.log(0.02), np.log(0.12))), x.shape)
        see(noisy, NOISE, KINDS[kind] + " + noise")
        see(rescaled(r.network(noisy, r.prompts[NOISE])), kind, KINDS[kind] + " + noise, denoised")
        if i % 100 == 0:
            print(i, len(labels), flush=True)

    x, t = torch.stack(features).float(), torch.tensor(labels)
    held = torch.rand(len(t)) < 0.15
    weight = 1 / torch.bincount(t[~held], minlength=4).float()
    weight = weight / weight.sum()
    names = sorted(set(kinds))

    def accuracy(where):
        with torch.no_grad():
            right = (net.logits(x).argmax(1) == t) & where
        of = lambda k: torch.tensor([q == k for q in kinds]) & where
        return ", ".join("%s %.2f" % (k, (right & of(k)).sum() / of(k).sum().clamp(min=1)) for k in names)

    print("%d vectors; held out before: %s" % (len(t), accuracy(held)))
    head = [q for n, q in net.named_parameters() if n.startswith("classifier.")]
    opt = torch.optim.Adam(head, lr=1e-3, weight_decay=1e-4)
    rows = torch.nonzero(~held)[:, 0]
    for step in range(1500):
        pick = rows[torch.randint(len(rows), (128,))]
        # faint changes of scale, and of everything, in place of more samples
        z = x[pick] * (1 + 0.03 * torch.randn(len(pick), 1)) + 0.01 * x.std(0) * torch.randn(len(pick), x.shape[1])
        loss = F.cross_entropy(net.logits(z), t[pick], weight=weight)
        opt.zero_grad()
        loss.backward()
        opt.step()
    print("held out after: %s" % accuracy(held))
    for n, q in net.state_dict().items():
        if n.startswith("classifier."):
            state["ema"][n] = q.detach().clone()
    torch.save(state, a.out)


if __name__ == "__main__":
    main()
