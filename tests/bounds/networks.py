"""Random networks of every layer, padding, stride, group, dilation, residual form, pooling and dtype."""

import math
import random

import torch
from torch import nn

from lconvnet import layers


class Branches(nn.Module):
    """Base of what joins branches; ``form`` says how."""

    def __init__(self, form, *branches):
        super().__init__()
        self.form, self.branches = form, nn.ModuleList(branches)

    def forward(self, x):
        return getattr(self, self.form)(x, *self.branches)

    def additive(self, x, f):
        return x + f(x)

    def difference(self, x, f, g):
        return f(x) - g(x)

    def halved(self, x, f):
        return (x + f(x)) / 2

    def convex(self, x, f):
        return 0.3 * x + f(x) * 0.7

    def l2(self, x, f):
        return torch.hypot(x, f(x)) / 2**0.5

    def concatenated(self, x, f, g):
        return torch.cat([f(x), g(x)], dim=1)

    def dense(self, x, f, g):
        """As DenseNet: what is read is kept."""
        y = torch.cat([x, f(x)], 1)
        return torch.cat([y, g(x)], dim=-3)

    def split(self, x, f):
        first, second = x.chunk(2, dim=1)
        return torch.cat([first, f(second)], 1)

    def sliced(self, x, f):
        half = x.shape[1] // 2
        return torch.cat([f(x[:, half:]), x[:, :half]], 1)

    def beside(self, x, f):
        """A tensor and its own pieces."""
        first, second = x.chunk(2, dim=1)
        return torch.cat([x, second, f(x), first], 1)

    def woven(self, x, f):
        """Pieces of what pieces were joined to, and the whole."""
        y = torch.cat([f(x), x[:, 1:], x[:, :1]], 1)
        return torch.cat([y[:, ::2], y[:, 1::2] - y[:, ::2], x], 1)

    def overlapping(self, x):
        return torch.cat([x[:, :-1], x[:, 1:]], 1)

    def halves_added(self, x):
        first, second = x.split(x.shape[1] // 2, dim=1)
        return first + 2 * second

    def twice(self, x, f):
        return f(f(x))

    def reused(self, x, f):
        return f(x) + f(-x)

    def centered(self, x):
        return x - x.mean(dim=(2, 3), keepdim=True)

    def spread(self, x):
        """Broadcasting: the mean of every channel is added to all of its pixels."""
        return x + x.mean((-1, -2), keepdim=True)

    def cropped(self, x):
        return x[..., 1:, ::2].transpose(2, 3)

    def turned(self, x):
        return x.permute(0, 1, 3, 2).contiguous()


class Normalise(nn.Module):
    """(x - mean) / std, channel by channel, then a learned gain."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.rand(channels, 1, 1))
        self.register_buffer("std", 0.2 + torch.rand(channels, 1, 1))
        self.gain = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std * self.gain


def _fresh(module, rng):
    """Weights of several scales, and statistics that batches could have left."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data = 0.1 + torch.rand_like(tensor)
        elif tensor.is_floating_point() and tensor.ndim > 1:
            tensor.data *= rng.choice((0.3, 1.0, 3.0))
        elif tensor.is_floating_point():
            tensor.data = torch.randn_like(tensor)
    return module


def convolution(rng, channels, size):
    k, dilation = rng.choice((1, 2, 3)), rng.choice((1, 1, 2))
    reach = dilation * (k - 1)
    groups = rng.choice([g for g in (1, 2, 4) if channels % g == 0])
    out = groups * rng.choice((1, 2))
    mode = rng.choice(("zeros", "circular", "before", "reflect", "replicate", "none"))
    stride = rng.choice((1, 1, 2, (1, 2)))
    options = {"dilation": dilation, "groups": groups, "stride": stride, "bias": rng.random() < 0.5}
    if min(size) < reach + 1:
        return nn.Conv2d(channels, out, 1)
    if mode == "circular" and reach % 2 == 0 and reach:
        return nn.Conv2d(channels, out, k, padding=reach // 2, padding_mode="circular", **options)
    if mode == "before" and reach:
        pad = nn.CircularPad2d((reach // 2, reach - reach // 2, reach, 0))
        return nn.Sequential(pad, nn.Conv2d(channels, out, k, **options))
    if mode == "zeros":
        return nn.Conv2d(channels, out, k, padding=rng.choice((0, 1, 2)), **options)
    if mode in ("reflect", "replicate") and min(size) > 1:
        pad = (nn.ReflectionPad2d if mode == "reflect" else nn.ReplicationPad2d)((1, 1, 0, 1))
        return nn.Sequential(pad, nn.Conv2d(channels, out, k, **options))
    return nn.Sequential(nn.ZeroPad2d((reach, 0, 0, 1)), nn.Conv2d(channels, out, k, **options))


def transposed(rng, channels, size):
    groups = rng.choice([g for g in (1, 2) if channels % g == 0])
    k, stride = rng.choice((1, 2, 3)), rng.choice((1, 2, (2, 1)))
    more = 1 if stride == 2 and rng.random() < 0.3 else 0
    padding = rng.choice((0, min(1, k - 1)))
    out = groups * rng.choice((1, 2))
    return nn.ConvTranspose2d(channels, out, k, stride, padding, more, groups=groups, dilation=rng.choice((1, 1, 2)))


def pooling(rng, channels, size):
    options = [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((size[0], 1))]
    if min(size) >= 3:
        options += [
            nn.AvgPool2d(2),
            nn.AvgPool2d(3, 2, 1),
            nn.AvgPool2d((2, 3), (1, 2)),
            nn.AvgPool2d(2, divisor_override=3),
            nn.MaxPool2d(2),
            nn.MaxPool2d(2, 3, 1),
            nn.MaxPool2d((1, 2), ceil_mode=True),
            nn.LPPool2d(2, 2),
            nn.LPPool2d(2, 3, 1),
        ]
    return rng.choice(options)


def activation(rng, channels, size):
    even = [layers.MaxMin(), layers.GroupSort(2), layers.MaxMin(-3)] if channels % 2 == 0 else []
    return rng.choice([nn.ReLU(), layers.Abs(), layers.FullSort(), *even])


def shape_changes(rng, channels, size):
    options = [layers.Scale(rng.choice((-2.0, 0.5))), nn.ZeroPad2d((1, 0, 0, 1)), nn.Dropout(), nn.Identity()]
    if max(size) <= 4:
        options.append(layers.NearestUpsampling(2))
    if size[0] % 2 == 0 and size[1] % 2 == 0:
        options += [layers.InvertibleDownsampling(2), nn.PixelUnshuffle(2)]
    if channels % 4 == 0:
        options += [layers.InvertibleUpsampling(2), nn.PixelShuffle(2)]
    return rng.choice(options)


def normalisation(rng, channels, size):
    return _fresh(
        rng.choice([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels, affine=False), Normalise(channels)]), rng
    )


def _same(rng, channels):
    """A branch that keeps the shape."""
    mode = rng.choice(("zeros", "circular"))
    conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=mode)
    return _fresh(rng.choice([conv, nn.Sequential(conv, nn.ReLU()), nn.Sequential(conv, layers.Abs())]), rng)


def residual(rng, channels, size):
    halves = ["split", "sliced", "halves_added", "beside", "woven"] if channels % 2 == 0 else []
    crops = ["cropped"] if size[0] > 1 else []
    more = ["overlapping"] if channels > 1 else []
    one = ["additive", "halved", "convex", "l2", "twice", "reused"]
    none = ["centered", "spread", "turned", *crops, *more]
    form = rng.choice([*one, "difference", "concatenated", "dense", *none, *halves])
    if form in ("split", "sliced"):
        return Branches(form, _same(rng, channels // 2 if form == "split" else channels - channels // 2))
    if form in ("halves_added", *none):
        return Branches(form)
    return Branches(form, *[_same(rng, channels) for _ in range(1 if form in (*one, "beside", "woven") else 2)])


PARTS = (
    convolution,
    convolution,
    transposed,
    pooling,
    activation,
    activation,
    shape_changes,
    normalisation,
    residual,
    residual,
)
LARGEST = 256
"""Entries of any tensor: what a dense Jacobian can afford."""


def random_network(seed):
    """A network, and the shape of its images; the same for the same seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shape = channels, *size = rng.choice((1, 2, 3, 4)), rng.randint(3, 6), rng.randint(3, 6)
    x, parts = torch.rand(2, *shape), []
    for _ in range(rng.randint(1, 5)):
        part = _fresh(rng.choice(PARTS)(rng, channels, tuple(size)), rng).eval()
        with torch.no_grad():
            y = part(x)
        if y[0].numel() > LARGEST or min(y.shape) < 1:
            continue
        parts.append(part)
        x, (channels, *size) = y, y.shape[1:]
    if rng.random() < 0.5:
        parts += [nn.Flatten(), _fresh(nn.Linear(math.prod((channels, *size)), rng.randint(1, 6)), rng)]
    network = nn.Sequential(*parts).eval().requires_grad_(False)
    return network.to(rng.choice((torch.float32, torch.float64))), shape


class Program(nn.Module):
    """A random acyclic graph over vectors: any earlier tensor may be read again, whole or in pieces."""

    def __init__(self, rng, width, steps):
        super().__init__()
        self.layers, self.steps, sizes = nn.ModuleList(), [], [width]
        for _ in range(steps):
            self._extend(rng, sizes)
        last = rng.sample(range(len(sizes)), min(3, len(sizes)))
        self.steps.append(("cat", last, None))

    def _extend(self, rng, sizes):
        kind = rng.choice(("linear", "linear", "relu", "pair", "pair", "cat", "cut", "cut", "scale", "centre"))
        a, b = rng.randrange(len(sizes)), rng.randrange(len(sizes))
        if kind == "linear":
            layer = nn.Linear(sizes[a], rng.randint(1, 5))
            layer.weight.data *= rng.choice((0.3, 1.0, 3.0))
            self.layers.append(layer)
            self._step(sizes, kind, [a], len(self.layers) - 1, layer.out_features)
        elif kind == "pair":
            size = min(sizes[a], sizes[b])
            self._step(sizes, rng.choice(("add", "subtract", "hypot")), [a, b], size, size)
        elif kind == "cat":
            self._step(sizes, kind, [a, b], None, sizes[a] + sizes[b])
        elif kind == "cut" and sizes[a] > 1:
            cut = rng.randint(1, sizes[a] - 1)
            self._step(sizes, kind, [a], (0, cut), cut)
            self._step(sizes, kind, [a], (cut, sizes[a]), sizes[a] - cut)
        elif kind == "scale":
            self._step(sizes, kind, [a], rng.choice((-2.0, 0.25)), sizes[a])
        elif kind in ("relu", "centre"):
            self._step(sizes, kind, [a], None, sizes[a])

    def _step(self, sizes, kind, reads, option, size):
        if size <= 12:
            self.steps.append((kind, reads, option))
            sizes.append(size)

    def forward(self, x):
        tensors = [x]
        for kind, reads, option in self.steps:
            tensors.append(getattr(self, f"_{kind}")(option, *(tensors[i] for i in reads)))
        return tensors[-1]

    def _linear(self, which, x):
        return self.layers[which](x)

    def _relu(self, _, x):
        return torch.relu(x)

    def _add(self, size, x, y):
        return x[:, :size] + y[:, :size]

    def _subtract(self, size, x, y):
        return x[:, :size] - y[:, :size]

    def _hypot(self, size, x, y):
        return torch.hypot(x[:, :size], y[:, :size])

    def _cat(self, _, *tensors):
        return torch.cat(tensors, 1)

    def _cut(self, ends, x):
        return x[:, ends[0] : ends[1]]

    def _scale(self, factor, x):
        return factor * x

    def _centre(self, _, x):
        return x - x.mean(1, keepdim=True)


def random_program(seed):
    """A network over vectors, and their shape."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    width = rng.randint(2, 5)
    return Program(rng, width, rng.randint(3, 10)).eval().requires_grad_(False), (width,)
