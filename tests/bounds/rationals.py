"""An independent reading of a graph in exact rational arithmetic: values and Jacobians of its nodes as fractions.

It knows the graph as data and the numbers in the state_dict, and nothing of how bounds are made.
"""

from fractions import Fraction
from itertools import chain, product

import torch


def fractions(tensor):
    """Entries as a flat list."""
    return [Fraction(float(v)) for v in tensor.detach().double().flatten()]


def index(shape):
    """Flat positions, shaped."""
    return torch.arange(int(torch.tensor(shape).prod())).reshape(shape)


class Affine:
    """Entries v_i + J_i dx of one tensor: exact values and slopes, flat, with a shape."""

    def __init__(self, shape, values, slopes):
        self.shape, self.values, self.slopes = tuple(shape), values, slopes

    def pick(self, positions):
        """A rearrangement or a part, by flat positions in a tensor."""
        flat = [int(i) for i in positions.flatten()]
        return Affine(positions.shape, [self.values[i] for i in flat], [self.slopes[i] for i in flat])

    def combine(self, rows, biases, shape):
        """Rows are dicts from flat position to coefficient."""
        width = len(self.slopes[0])
        values = [sum((c * self.values[i] for i, c in row.items()), b) for row, b in zip(rows, biases, strict=True)]
        slopes = [
            [sum((c * self.slopes[i][k] for i, c in row.items()), Fraction()) for k in range(width)] for row in rows
        ]
        return Affine(shape, values, slopes)


def linear(node, x, state):
    W, bias = state[node.tensors["weight"]], node.tensors.get("bias")
    rows = [dict(enumerate(fractions(row))) for row in W]
    return x.combine(rows, fractions(state[bias]) if bias else [Fraction()] * len(rows), node.shape)


def convolution(node, x, state):
    """Taps, stride, dilation, groups, zero or circular padding."""
    o, (channels, height, width) = node.options, x.shape
    K, bias = state[node.tensors["weight"]], node.tensors.get("bias")
    circular = "circular_padding" in o or o["padding_mode"] == "circular"
    left, _, top, _ = o.get("circular_padding", [o["padding"][1], 0, o["padding"][0], 0])
    per_group, of_group = channels // o["groups"], K.shape[0] // o["groups"]
    place = index(x.shape)
    rows, biases = [], []
    for c, p, q in product(*map(range, node.shape)):
        row = {}
        for i, a, b in product(range(per_group), range(K.shape[2]), range(K.shape[3])):
            y = o["stride"][0] * p + o["dilation"][0] * a - top
            z = o["stride"][1] * q + o["dilation"][1] * b - left
            if circular:
                y, z = y % height, z % width
            if 0 <= y < height and 0 <= z < width:
                at = int(place[c // of_group * per_group + i, y, z])
                row[at] = row.get(at, Fraction()) + Fraction(float(K[c, i, a, b]))
        rows.append(row)
        biases.append(Fraction(float(state[bias][c])) if bias else Fraction())
    return x.combine(rows, biases, node.shape)


def average(node, x, state):
    k = node.options["kernel_size"]
    place = index(x.shape)
    rows = [
        {int(i): Fraction(1, k * k) for i in place[c, k * p : k * p + k, k * q : k * q + k].flatten()}
        for c, p, q in product(*map(range, node.shape))
    ]
    return x.combine(rows, [Fraction()] * len(rows), node.shape)


def entrywise(x, other, combine):
    values = [combine(a, b) for a, b in zip(x.values, other.values, strict=True)]
    slopes = [[combine(s, t) for s, t in zip(a, b, strict=True)] for a, b in zip(x.slopes, other.slopes, strict=True)]
    return Affine(x.shape, values, slopes)


def scaled(x, factor):
    return x.combine([{i: factor} for i in range(len(x.values))], [Fraction()] * len(x.values), x.shape)


def constant(node, state):
    if "value" in node.options:
        return Fraction(node.options["value"])
    return Fraction(float(state[node.tensors["constant"]]))


def slices(node, x, state):
    at = [slice(None)] * (len(x.shape) + 1)
    for axis, start, stop, step in node.options["slices"]:
        at[axis] = slice(start, stop, step)
    return x.pick(index((1, *x.shape))[tuple(at)].reshape(node.shape))


RULES = {
    "Linear": linear,
    "Conv2d": convolution,
    "AvgPool2d": average,
    "Identity": lambda node, x, state: x,
    "Flatten": lambda node, x, state: x.pick(index(x.shape).flatten()),
    "reshape": lambda node, x, state: x.pick(index(x.shape).reshape(node.shape)),
    "PixelUnshuffle": lambda node, x, state: x.pick(
        torch.nn.functional.pixel_unshuffle(index((1, *x.shape)).double(), node.options["downscale_factor"])[0].long()
    ),
    "Scale": lambda node, x, state: scaled(x, Fraction(node.options["factor"])),
    "multiply": lambda node, x, state: scaled(x, constant(node, state)),
    "divide": lambda node, x, state: scaled(x, 1 / constant(node, state)),
    "negate": lambda node, x, state: scaled(x, Fraction(-1)),
    "shift": lambda node, x, state: Affine(
        x.shape, [v + node.options["sign"] * constant(node, state) for v in x.values], x.slopes
    ),
    "slice": slices,
    "add": lambda node, x, y, state: entrywise(x, y, lambda a, b: a + b),
    "subtract": lambda node, x, y, state: entrywise(x, y, lambda a, b: a - b),
    "concatenate": lambda node, *args: Affine(
        node.shape, list(chain(*(x.values for x in args[:-1]))), list(chain(*(x.slopes for x in args[:-1])))
    ),  # along the channels, which come first
}


def rectify(x, choose):
    kept = [choose(v, i) for i, v in enumerate(x.values)]
    return x.combine([{i: Fraction(k)} for i, k in enumerate(kept)], [Fraction()] * len(kept), x.shape)


def max_min(x, choose):
    """Pairs channel c with c + C/2; the first stays first where choose says 1."""
    place = index(x.shape).reshape(2, -1)
    differences = [x.values[int(a)] - x.values[int(b)] for a, b in place.T]
    kept = [choose(d, i) for i, d in enumerate(differences)]
    order = torch.stack([torch.stack([a, b] if k else [b, a]) for k, (a, b) in zip(kept, place.T, strict=True)]).T
    return x.pick(order.reshape(x.shape))


BENDS = {"ReLU": (rectify, (0, 1)), "Abs": (rectify, (-1, 1)), "MaxMin": (max_min, (0, 1))}


def bends(graph):
    """How many entries of the graph choose between two slopes."""
    halves = {"MaxMin": 2}
    return [
        index(node.shape).numel() // halves.get(node.operation, 1) for node in graph.nodes if node.operation in BENDS
    ]


def evaluate(graph, state, image, pattern=None):
    """Value and Jacobian of the output: at the image, or with the slopes that the pattern (bits) chooses."""
    n = len(image)
    shape = graph.nodes[0].shape
    unit = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
    values = {"input": Affine(shape, list(image), unit)}
    bits = iter(pattern or ())
    for node in graph.nodes[1:]:
        inputs = [values[name] for name in node.inputs]
        if node.operation in BENDS:
            rule, (low, high) = BENDS[node.operation]
            if pattern is None:
                values[node.name] = rule(inputs[0], lambda v, i, low=low, high=high: high if v >= 0 else low)
            else:
                values[node.name] = rule(inputs[0], lambda v, i, low=low, high=high: high if next(bits) else low)
        else:
            values[node.name] = RULES[node.operation](node, *inputs, state)
    return values[graph.output]
