"""The ResMAP network in PyTorch, for training and for making test vectors.

Written from the paper (restoration steps chosen by a classifier, guided by a text prompt) and from the
published description of its backbone, Restormer: multi-Dconv head transposed attention (MDTA), gated-Dconv
feed-forward (GDFN), four levels, pixel (un)shuffle between them.  Tensor names are those that the project's
weights files use (weights/FORMAT.md), so `state_dict()` is the file.

    patch_embed -> encoder_level1..3 -> latent -> classifier
                                               -> tpf.3 -> decoder_level3 -> tpf.2 -> decoder_level2 -> tpf.1
                                               -> decoder_level1 -> refinement -> output (+ input)

A prompt enters as one 384-d feature a sample.  It is spatially constant, so its half of the fusing 1x1
convolution is a bias per channel, and is computed that way here too.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

EXPANSION = 2.66
TEXT_DIM = 384


class LayerNorm(nn.Module):
    """Over the channels of each pixel.  BiasFree: the variance is taken about the mean, the input is not centred."""

    class Body(nn.Module):
        def __init__(self, channels, bias):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(channels))
            if bias:
                self.bias = nn.Parameter(torch.zeros(channels))
            else:
                self.bias = None

    def __init__(self, channels, kind):
        super().__init__()
        if kind not in ("BiasFree", "WithBias"):
            raise ValueError("layer norm %r" % kind)
        self.body = LayerNorm.Body(channels, kind == "WithBias")

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        centred = x - mean
        scale = torch.rsqrt((centred * centred).mean(1, keepdim=True) + 1e-5)
        w = self.body.weight.view(1, -1, 1, 1)
        if self.body.bias is None:
            return x * scale * w
        return centred * scale * w + self.body.bias.view(1, -1, 1, 1)


class Conv1(nn.Module):
    """1x1 convolution without bias as a matrix product, which on CPUs is the quicker way."""

    def __init__(self, cin, cout):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cout, cin, 1, 1))
        nn.init.kaiming_uniform_(self.weight, a=5 ** 0.5)

    def forward(self, x):
        return mix(self.weight, x)


def mix(weight, x):
    b, c, h, w = x.shape
    m = weight.reshape(1, -1, c).expand(b, -1, -1).to(x.dtype)
    return (m @ x.reshape(b, c, h * w)).reshape(b, -1, h, w)


def conv1(cin, cout):
    return Conv1(cin, cout)


def conv3(cin, cout):
    return nn.Conv2d(cin, cout, 3, padding=1, bias=False)


def depthwise(channels):
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


class Attention(nn.Module):
    """MDTA: softmax over channels, (q/|q|)(k/|k|)^T times a temperature per head.

    The small attention matrix is multiplied into project_out first, so that one matrix per image meets v.
    """

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv1(channels, 3 * channels)
        self.qkv_dwconv = depthwise(3 * channels)
        self.project_out = conv1(channels, channels)

    def forward(self, x):
        b, c, h, w = x.shape
        n, d = self.heads, c // self.heads
        t = self.qkv_dwconv(self.qkv(x)).reshape(b, 3 * c, h * w)
        q, k, v = t.split(c, 1)
        q, k = q.reshape(b, n, d, h * w), k.reshape(b, n, d, h * w)
        nq = q.square().sum(-1).sqrt().clamp_min(1e-12)
        nk = k.square().sum(-1).sqrt().clamp_min(1e-12)
        a = (q @ k.transpose(-1, -2)) / (nq.unsqueeze(-1) * nk.unsqueeze(-2))
        a = torch.softmax(a * self.temperature, dim=-1)
        out = self.project_out.weight.view(c, n, d)
        m = torch.einsum("ond,bnde->bone", out, a.to(out.dtype)).reshape(b, c, c)
        return (m @ v).reshape(b, c, h, w)


class FeedForward(nn.Module):
    """GDFN: gelu(x1) * x2, exact (erf) GELU."""

    def __init__(self, channels, expansion):
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = conv1(channels, 2 * hidden)
        self.dwconv = depthwise(2 * hidden)
        self.project_out = conv1(hidden, channels)

    def forward(self, x):
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(a) * b)


class Block(nn.Module):
    def __init__(self, channels, heads, expansion=EXPANSION, norm="BiasFree"):
        super().__init__()
        self.norm1 = LayerNorm(channels, norm)
        self.attn = Attention(channels, heads)
        self.norm2 = LayerNorm(channels, norm)
        self.ffn = FeedForward(channels, expansion)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, cin, dim):
        super().__init__()
        self.proj = conv3(cin, dim)

    def forward(self, x):
        return self.proj(x)


class Down(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(conv3(c, c // 2), nn.PixelUnshuffle(2))

    def forward(self, x):
        return self.body(x)


class Up(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(conv3(c, 2 * c), nn.PixelShuffle(2))

    def forward(self, x):
        return self.body(x)


class TextFusion(nn.Module):
    """Textual prompt fusion: F' = Block(Conv1x1[F ; Conv1x1(t)])."""

    def __init__(self, channels, heads, expansion, norm, text_dim):
        super().__init__()
        self.text = nn.Linear(text_dim, channels)
        self.fuse = conv1(2 * channels, channels)
        self.block = Block(channels, heads, expansion, norm)

    def forward(self, x, t):
        c = x.shape[1]
        w = self.fuse.weight
        bias = self.text(t) @ w[:, c:, 0, 0].t()
        return self.block(mix(w[:, :c], x) + bias[:, :, None, None])


class Classifier(nn.Module):
    def __init__(self, features, hidden, classes):
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def stage(count, channels, heads, expansion, norm):
    return nn.Sequential(*[Block(channels, heads, expansion, norm) for _ in range(count)])


class ResMAP(nn.Module):
    def __init__(self, arch="resmap", dim=48, num_blocks=(4, 6, 6, 8), num_refinement_blocks=4, heads=(1, 2, 4, 8),
                 ffn_expansion_factor=EXPANSION, layer_norm="BiasFree", in_channels=1, out_channels=1,
                 text_dim=TEXT_DIM, classes=("motion", "noise", "bias", "clean"), classifier_hidden=64,
                 class_pixels=None, classifier_views=1, classifier_levels=1, field_order=0, field_passes=1, field_evidence=None, **ignored):
        super().__init__()
        if arch not in ("resmap", "restormer"):
            raise ValueError("arch %r" % arch)
        self.config = {"arch": arch, "dim": dim, "num_blocks": list(num_blocks),
                       "num_refinement_blocks": num_refinement_blocks, "heads": list(heads),
                       "ffn_expansion_factor": ffn_expansion_factor, "layer_norm": layer_norm,
                       "in_channels": in_channels, "out_channels": out_channels}
        if arch == "resmap":
            self.config.update(text_dim=text_dim, classes=list(classes))
            if class_pixels:
                self.config["class_pixels"] = dict(class_pixels)
            if classifier_views != 1:
                self.config["classifier_views"] = classifier_views
            if classifier_levels != 1:
                self.config["classifier_levels"] = classifier_levels
            if field_order:
                self.config["field_order"] = field_order
            if field_passes != 1:
                self.config["field_passes"] = field_passes
            if field_evidence:
                self.config["field_evidence"] = dict(field_evidence)
        self.arch, self.classes = arch, list(classes)
        self.class_pixels, self.views, self.levels = dict(class_pixels or {}), classifier_views, classifier_levels
        self.field_order, self.field_passes, self.field_evidence = field_order, field_passes, field_evidence
        b, h, e, n = num_blocks, heads, ffn_expansion_factor, layer_norm
        self.patch_embed = PatchEmbed(in_channels, dim)
        self.encoder_level1 = stage(b[0], dim, h[0], e, n)
        self.down1_2 = Down(dim)
        self.encoder_level2 = stage(b[1], 2 * dim, h[1], e, n)
        self.down2_3 = Down(2 * dim)
        self.encoder_level3 = stage(b[2], 4 * dim, h[2], e, n)
        self.down3_4 = Down(4 * dim)
        self.latent = stage(b[3], 8 * dim, h[3], e, n)
        self.up4_3 = Up(8 * dim)
        self.reduce_chan_level3 = conv1(8 * dim, 4 * dim)
        self.decoder_level3 = stage(b[2], 4 * dim, h[2], e, n)
        self.up3_2 = Up(4 * dim)
        self.reduce_chan_level2 = conv1(4 * dim, 2 * dim)
        self.decoder_level2 = stage(b[1], 2 * dim, h[1], e, n)
        self.up2_1 = Up(2 * dim)
        self.decoder_level1 = stage(b[0], 2 * dim, h[0], e, n)
        self.refinement = stage(num_refinement_blocks, 2 * dim, h[0], e, n)
        self.output = conv3(2 * dim, out_channels)
        if arch == "resmap":
            self.classifier = Classifier((15 if classifier_levels == 4 else 8) * dim * classifier_views, classifier_hidden, len(classes))
            self.tpf = nn.ModuleDict({"3": TextFusion(8 * dim, h[3], e, n, text_dim),
                                      "2": TextFusion(4 * dim, h[2], e, n, text_dim),
                                      "1": TextFusion(2 * dim, h[1], e, n, text_dim)})

    def encode(self, x):
        """The three skip levels and the latent."""
        e1 = self.encoder_level1(self.patch_embed(x))
        e2 = self.encoder_level2(self.down1_2(e1))
        e3 = self.encoder_level3(self.down2_3(e2))
        return e1, e2, e3, self.latent(self.down3_4(e3))

    def pool(self, codes):
        """What the classifier sees of an encoding: the latent's means, and with four levels the root mean squares of the others."""
        seen = [codes[3].mean((2, 3))]
        if self.levels == 4:
            seen += [torch.linalg.vector_norm(c, dim=(2, 3)) / math.sqrt(c[0, 0].numel()) for c in codes[:3]]
        return torch.cat(seen, 1)

    def logits(self, pooled):
        return self.classifier(pooled)

    def decode(self, x, codes, prompt=None):
        e1, e2, e3, z = codes
        if prompt is not None:
            z = self.tpf["3"](z, prompt)
        d = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(z), e3], 1)))
        if prompt is not None:
            d = self.tpf["2"](d, prompt)
        d = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(d), e2], 1)))
        if prompt is not None:
            d = self.tpf["1"](d, prompt)
        d = self.decoder_level1(torch.cat([self.up2_1(d), e1], 1))
        return self.output(self.refinement(d)) + x

    def forward(self, x, prompt=None):
        return self.decode(x, self.encode(x), prompt)


def initialise(net):
    """For training: prompt fusion starts as the identity on the image half, the residual output small."""
    if net.arch == "resmap":
        with torch.no_grad():
            for f in net.tpf.values():
                c = f.fuse.weight.shape[0]
                f.fuse.weight[:, :c, 0, 0] = torch.eye(c)
                f.fuse.weight[:, c:] *= 2
                nn.init.normal_(f.text.weight, std=1.0)
                nn.init.zeros_(f.text.bias)
            net.output.weight *= 0.3
    return net


def macs(net, height, width):
    """Multiply-accumulates of one restormer pass, counted from the layer shapes (attention's two products too)."""
    total, handles = [0], []

    def conv_hook(m, inp, out):
        o = out.shape
        total[0] += m.weight.numel() * o[2] * o[3] * o[0]

    def attn_hook(m, inp, out):
        b, c, h, w = inp[0].shape
        # q k^T, attention times v, and project_out (which is not called as a module)
        total[0] += b * h * w * (2 * c * c // m.heads + c * c)

    for m in net.modules():
        if isinstance(m, (nn.Conv2d, Conv1)):
            handles.append(m.register_forward_hook(conv_hook))
        elif isinstance(m, Attention):
            handles.append(m.register_forward_hook(attn_hook))
    with torch.no_grad():
        net(torch.zeros(1, net.config["in_channels"], height, width))
    for h in handles:
        h.remove()
    return total[0]


def check():
    """Counts that the backbone's publication and independent ports agree on."""
    want = {(3, "WithBias"): (494, 26126644), (3, "BiasFree"): (406, 26111668),
            (1, "WithBias"): (494, 26124052), (1, "BiasFree"): (406, 26109076)}
    for (ch, norm), (tensors, params) in want.items():
        net = ResMAP(arch="restormer", layer_norm=norm, in_channels=ch, out_channels=ch)
        got = (len(net.state_dict()), sum(p.numel() for p in net.parameters()))
        print("%d channels %s: %d tensors, %d parameters" % (ch, norm, *got))
        assert got == (tensors, params), got
        if (ch, norm) == (1, "BiasFree"):
            g = macs(net, 256, 256) / 1e9
            print("  %.3f GMAC at 256x256" % g)
            assert abs(g - 154.712) < 5e-4, g


if __name__ == "__main__":
    check()
