"""What `resmap restore` does to a volume, in PyTorch and NumPy: the reference for its vectors and for validation.

A volume is a stack of network slices [slices, H, W] in its own units.
"""
import numpy as np
import torch

from scaling import scale_numbers
from views import field, pad8, ratio, shrink, volume_field


class Restorer:
    """A network with its prompts (features [N, text_dim], classes [N]); every class's prompt is its centroid."""

    def __init__(self, net, features, classes, dtype=torch.float64):
        self.net, self.dtype = net.to(dtype).eval(), dtype
        f, c = np.asarray(features, dtype=np.float64), np.asarray(classes)
        self.prompts = [f[c == i].mean(0) for i in range(len(net.classes))]

    def tensor(self, x):
        """[H, W] to the network's input, padded; replicated where it takes three channels."""
        t = torch.from_numpy(np.ascontiguousarray(pad8(np.asarray(x, np.float64)))).to(self.dtype)
        return t[None, None].expand(1, self.net.config["in_channels"], -1, -1)

    @torch.no_grad()
    def pooled(self, x):
        """What the classifier sees of a slice."""
        full = self.net.pool(self.net.encode(self.tensor(x))[3])[0]
        if self.net.views == 2:
            pixels = next(iter(self.net.class_pixels.values()))
            small = self.net.pool(self.net.encode(self.tensor(shrink(x, pixels)))[3])[0]
            full = torch.cat([full, small])
        return full

    @torch.no_grad()
    def logits(self, x):
        return self.net.logits(self.pooled(x)[None])[0].double().numpy()

    def probabilities(self, x):
        z = np.exp((lambda l: l - l.max())(self.logits(x)))
        return z / z.sum()

    @torch.no_grad()
    def network(self, x, prompt):
        """One pass, cropped back, channels averaged."""
        t = None if prompt is None else torch.from_numpy(np.asarray(prompt)).to(self.dtype)[None]
        out = self.net(self.tensor(x), t)[0].mean(0).double().numpy()
        return out[:x.shape[0], :x.shape[1]]

    def restore(self, x, cls, threshold):
        """One step on one scaled slice; threshold: the volume's foreground threshold, scaled."""
        pixels = self.net.class_pixels.get(self.net.classes[cls])
        if pixels is None:
            return self.network(x, self.prompts[cls])
        small = shrink(x, pixels)
        return x * field(small, self.network(small, self.prompts[cls]), threshold, x.shape)

    def cascade(self, volume, steps=3, decide="volume", scale=True, order=None):
        """(restored volume, trace): trace has for each step probabilities [slices, classes], decisions [slices]
        (index into classes, -1: this slice has stopped), the scaling numbers and the volume after it."""
        v = np.array(volume, dtype=np.float64)
        clean = self.net.classes.index("clean")
        stopped, trace = np.zeros(len(v), bool), []
        for step in range(len(order) if order else steps):
            if scale:
                lo, hi, mean = scale_numbers(v)
            else:
                lo, hi, mean = 0.0, 1.0, v.mean()
            x = (v - lo) / (hi - lo)
            threshold = (mean - lo) / (hi - lo)
            p = None
            if order:
                choice = np.full(len(v), self.net.classes.index(order[step]))
            else:
                p = np.stack([self.probabilities(s) for s in x])
                if decide == "volume":
                    w = np.array([(s > threshold).sum() for s in x], dtype=np.float64)
                    choice = np.full(len(v), ((w[:, None] * p).sum(0) / w.sum()).argmax())
                else:
                    choice = p.argmax(1)
                stopped |= choice == clean
                choice = np.where(stopped, -1, choice)
            ratios = {}
            for i, c in enumerate(choice):
                pixels = self.net.class_pixels.get(self.net.classes[c]) if c >= 0 else None
                if pixels and self.net.field_order:
                    small = shrink(x[i], pixels)
                    r = ratio(small, self.network(small, self.prompts[c]), threshold)
                    if (small > threshold).any():
                        ratios[i] = np.where(small > threshold, r, 0)
                elif c >= 0:
                    v[i] = lo + (hi - lo) * self.restore(x[i], c, threshold)
            if ratios:
                for i, f in volume_field(ratios, len(v), v.shape[1:], self.net.field_order).items():
                    v[i] = lo + (v[i] - lo) * f
            trace.append({"probabilities": p, "decisions": choice, "numbers": (lo, hi, mean), "volume": v.copy()})
            if stopped.all():
                break
        return v, trace
