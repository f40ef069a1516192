"""Fits the classifier's two layers anew to what they see of a finished network (train.py --gather): every class as often as every other.

    train.py --gather --start runs/s/last.pt --out runs/seen ...; head.py --checkpoint runs/s/last.pt --seen runs/seen/seen*.npz --out head.pt
"""
import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F

from data import KINDS
from model import ResMAP
from train import CONFIG, begin


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--seen", required=True, nargs="+")
    p.add_argument("--out", required=True)
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--rate", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(1)
    s = torch.load(a.checkpoint, weights_only=True)
    net = ResMAP(**CONFIG)
    begin(net, s["ema"])
    seen = [np.load(f) for f in a.seen]
    x, y = (torch.from_numpy(np.concatenate([z[k] for z in seen])) for k in ("features", "classes"))
    kinds = np.concatenate([z["kinds"] for z in seen])
    # of a pair with and without a field ten slices are put to it at a time, with a full view that says nothing
    weights = torch.tensor([0.2 if k.startswith("pair") else 1.0 for k in kinds])
    weights *= (weights.sum() / len(KINDS) / torch.bincount(y, weights, len(KINDS)))[y]
    # As differences from the mean in units of their spread, which the first layer takes over afterwards
    mean, spread = x.mean(0), x.std(0) + 1e-4
    x = (x - mean) / spread
    first, second = net.classifier.fc1, net.classifier.fc2
    with torch.no_grad():
        first.bias += first.weight @ mean
        first.weight *= spread
    # a twentieth is held back, to be looked at only: other slices, but of the same volumes
    order = torch.randperm(len(y))
    held, rest = order[:len(y) // 20], order[len(y) // 20:]
    logits = lambda rows: second(F.gelu(first(x[rows])))
    right = lambda rows: logits(rows).argmax(1) == y[rows]
    report = lambda: " ".join("%s %.2f" % (k, right(held)[kinds[held] == k].float().mean()) for k in sorted(set(kinds)))
    print("%d samples; held back, before: %s" % (len(y), report()))
    steps = a.epochs * (len(rest) // 256 + 1)
    optimizer = torch.optim.AdamW(net.classifier.parameters(), lr=a.rate, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(a.epochs):
        for rows in rest[torch.randperm(len(rest))].split(256):
            optimizer.zero_grad()
            hidden = F.dropout(F.gelu(first(x[rows])), 0.2)
            (F.cross_entropy(second(hidden), y[rows], reduction="none") * weights[rows]).mean().backward()
            optimizer.step()
            rates.step()
    print("after: %s; of the others: %.3f" % (report(), right(rest).float().mean()))
    with torch.no_grad():
        first.weight /= spread
        first.bias -= first.weight @ mean
    s["config"] = json.dumps(net.config)
    for k in ("ema", "net"):
        s[k].update({"classifier." + n: v.detach() for n, v in net.classifier.state_dict().items()})
    torch.save(s, a.out)


if __name__ == "__main__":
    main()
