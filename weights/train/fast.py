"""Quicker CPU kernels for training (fast.cpp): `accelerate(net)` puts them under a ResMAP network.

The network stays the same, tensors and names too; where the kernels can't be used (types other than
bfloat16 and float32, WithBias layer norms) the usual operations run.  Needs a C++ compiler and the package ninja.  `python3 fast.py` compares with PyTorch's.
"""
import itertools
import os
import time

import torch
import torch.nn.functional as F
from torch.utils.cpp_extension import load

HERE = os.path.dirname(os.path.abspath(__file__))
_native = None


def native():
    global _native
    if _native is None:
        _native = load("resmap_fast", [os.path.join(HERE, "fast.cpp")], extra_cflags=["-O3", "-march=native", "-ffast-math"])
    return _native


def operation(name):
    """`NAME` of the native kernels with its gradient, in whichever of the two types x has."""
    kernels = {torch.bfloat16: native().bfloat16, torch.float32: native().float32}

    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            x, w = x.contiguous(), w.contiguous()
            ctx.save_for_backward(x, w)
            return getattr(kernels[x.dtype], name + "_forward")(x, w)

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return tuple(getattr(kernels[x.dtype], name + "_backward")(g.to(x.dtype).contiguous(), x, w))

    return Operation.apply


def accelerate(net):
    import model
    dw, gate, norm = (operation(name) for name in ("dw", "gate", "norm"))
    have = lambda x: x.dtype in (torch.bfloat16, torch.float32)

    def depthwise(conv, usual):
        return lambda x: dw(x, conv.weight) if have(x) else usual(x)

    def feed_forward(m, usual):
        def forward(x):
            y = m.project_in(x)
            return m.project_out(gate(y, m.dwconv.weight)) if have(y) else usual(x)
        return forward

    def layer_norm(m, usual):
        return lambda x: norm(x, m.body.weight) if have(x) else usual(x)

    for m in net.modules():
        if isinstance(m, model.Attention):
            m.qkv_dwconv.forward = depthwise(m.qkv_dwconv, m.qkv_dwconv.forward)
        elif isinstance(m, model.FeedForward):
            m.forward = feed_forward(m, m.forward)
        elif isinstance(m, model.LayerNorm) and m.body.bias is None:
            m.forward = layer_norm(m, m.forward)
    return net


def check():
    torch.manual_seed(1)
    for dtype, (b, c, h, w) in itertools.product((torch.bfloat16, torch.float32), ((1, 6, 5, 7), (2, 16, 33, 40), (3, 4, 1, 9))):
        x = torch.randn(b, c, h, w).to(dtype)
        k, v = torch.randn(c, 1, 3, 3), torch.randn(c)

        def usual_norm(x, v):
            m = x.mean(1, keepdim=True)
            return x * torch.rsqrt((x - m).square().mean(1, keepdim=True) + 1e-5) * v.view(1, -1, 1, 1)

        def usual_gate(x, k):
            p, q = F.conv2d(x, k, padding=1, groups=c).chunk(2, 1)
            return F.gelu(p) * q

        for name, usual, weight in (("dw", lambda x, k: F.conv2d(x, k, padding=1, groups=c), k), ("gate", usual_gate, k),
                                    ("norm", usual_norm, v)):
            xd, wd = x.double().requires_grad_(), weight.double().requires_grad_()
            y = usual(xd, wd)
            g = torch.randn(y.shape).to(dtype)
            y.backward(g.double())
            xf, wf = x.clone().requires_grad_(), weight.clone().requires_grad_()
            z = operation(name)(xf, wf)
            z.backward(g)
            for what, a, r in (("value", z, y), ("input's gradient", xf.grad, xd.grad), ("weight's gradient", wf.grad, wd.grad)):
                e = ((a.double() - r).abs().max() / r.abs().max()).item()
                print("%s %s %s: %.1e" % (dtype, name, what, e))
                assert e < (1e-4 if what.startswith("w") else 1e-5 if dtype == torch.float32 else 8e-3), (name, what, e)


if __name__ == "__main__":
    check()
