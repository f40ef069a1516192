"""What `resmap restore` does to a volume, in PyTorch and NumPy: the reference for its vectors and for validation.

A volume is a stack of network slices [slices, H, W] in its own units.
"""
import numpy as np
import torch

from scaling import scale_numbers
from views import field, limited, pad8, ratio, shrink, volume_field


FIELD_STRONG = 0.15              # spread of the first pass's field from which there are further ones
LEAST_SPREAD = 1e-3              # what field_evidence takes for no field at all


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
        full = self.net.pool(self.net.encode(self.tensor(x)))[0]
        if self.net.views == 2:
            pixels = next(iter(self.net.class_pixels.values()))
            small = self.net.pool(self.net.encode(self.tensor(shrink(x, pixels))))[0]
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

    def fitted(self, cls):
        return bool(self.net.field_order) and self.net.classes[cls] in self.net.class_pixels

    def volume_field(self, v, taken, choice, numbers):
        """views.volume_field of the slices `taken` of volume v, by the steps of their classes."""
        lo, hi, mean = numbers
        ratios, threshold = {}, (mean - lo) / (hi - lo)
        for i in taken:
            small = shrink((v[i] - lo) / (hi - lo), self.net.class_pixels[self.net.classes[choice[i]]])
            r = ratio(small, self.network(small, self.prompts[choice[i]]), threshold)
            if (small > threshold).any():
                ratios[i] = np.where(small > threshold, limited(r), 0)
        return volume_field(ratios, len(v), v.shape[1:], self.net.field_order) if ratios else ({}, 0.0, 0.0)

    def multiply(self, v, taken, choice, numbers):
        """Multiplies the slices `taken` of volume v by the one field fitted to theirs; its spread."""
        lo = numbers[0]
        fields, spread, _ = self.volume_field(v, taken, choice, numbers)
        for i, f in fields.items():
            v[i] = lo + (v[i] - lo) * f
        return spread

    def heard(self, v, p, asked, numbers):
        """Probabilities p [slices, classes] with the volume's field heard (field_evidence); asked: the slices classified."""
        says, clean = self.net.field_evidence, self.net.classes.index("clean")
        if not says:
            return p
        c = self.net.classes.index(next(iter(self.net.class_pixels)))
        _, _, within = self.volume_field(v, asked, np.full(len(v), c), numbers)
        both = p[:, c] + p[:, clean]
        with np.errstate(all="ignore"):
            x = np.log(p[:, c] / p[:, clean]) + says["weight"] * np.log(max(within, LEAST_SPREAD) / says["spread"])
            share = np.where(both > 0, both / (1 + np.exp(-x)), 0)
        out = p.copy()
        out[:, c], out[:, clean] = share, both - share
        return out

    def cascade(self, volume, steps=3, decide="volume", scale=True, order=None):
        """(restored volume, trace): trace has for each step probabilities [slices, classes], decisions [slices]
        (index into classes, -1: this slice has stopped), the scaling numbers and the volume after it."""
        v = np.array(volume, dtype=np.float64)
        clean = self.net.classes.index("clean")
        stopped, trace = np.zeros(len(v), bool), []
        numbers = lambda: scale_numbers(v) if scale else (0.0, 1.0, v.mean())
        for step in range(len(order) if order else steps):
            lo, hi, mean = numbers()
            x = (v - lo) / (hi - lo)
            threshold = (mean - lo) / (hi - lo)
            p = None
            if order:
                choice = np.full(len(v), self.net.classes.index(order[step]))
            else:
                p = self.heard(v, np.stack([self.probabilities(s) for s in x]), np.flatnonzero(~stopped), (lo, hi, mean))
                if decide == "volume":
                    w = np.array([(s > threshold).sum() for s in x], dtype=np.float64)
                    choice = np.full(len(v), ((w[:, None] * p).sum(0) / w.sum()).argmax())
                else:
                    choice = p.argmax(1)
                stopped |= choice == clean
                choice = np.where(stopped, -1, choice)
            for i, c in enumerate(choice):
                if c >= 0 and not self.fitted(c):
                    v[i] = lo + (hi - lo) * self.restore(x[i], c, threshold)
            taken = [i for i, c in enumerate(choice) if c >= 0 and self.fitted(c)]
            passes = int((choice >= 0).any())
            if taken and self.multiply(v, taken, choice, (lo, hi, mean)) >= FIELD_STRONG:
                while passes < self.net.field_passes:
                    self.multiply(v, taken, choice, numbers())
                    passes += 1
            trace.append({"probabilities": p, "decisions": choice, "numbers": (lo, hi, mean), "passes": passes,
                          "volume": v.copy()})
            if stopped.all():
                break
        return v, trace
