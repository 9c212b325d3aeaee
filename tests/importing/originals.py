"""Runs in the original's format, made by the tests, with what their networks compute.

The forward pass is written down from the published formulas in float64 and shares no code with the package: Björck's
iteration by singular values, BCOP by explicit block convolutions, convolutions behind explicit circular padding.
"""

import sys
from types import ModuleType

import torch
import torch.nn.functional as F
import yaml

SMALL = ([(16, 4, 2), (32, 4, 2)], [100])
LARGE = ([(32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)], [512, 512])
CRITIC = ([(64, 4, 2), (128, 4, 2), (256, 4, 2), (512, 4, 2)], [])
LAYOUTS = {"SmallConvNet": SMALL, "LargeConvNet": LARGE, "DCGANDiscriminator": CRITIC}
OPTIONS = {
    "BCOP": {"ortho_mode": "bjorck", "mask_half": True, "projection": False},
    "RKO": {},
    "OSSN": {"n_iters": 10},
    "SVCM": {"num_projections": 50, "orthogonal": False},
    "NonexpansiveConv2d": {},
}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
MAXMIN = {"<type>": "GroupSort", "<init>": True, "group_size": 2, "axis": 1, "new_impl": True}
RELU = {"<type>": "ReLU", "<init>": True}
LINEAR = {"<type>": "BjorckLinear", "<init>": False}


def typed(name, init=False, **arguments):
    return {"<type>": name, "<init>": init, **arguments}


def convnet(name, method, shape, outputs, activation=MAXMIN):
    """The section `net` of a convolutional network."""
    conv = typed("LipschitzConv2d", conv_module=typed(method, **OPTIONS[method]))
    parts = {"conv_module": conv, "linear_module": LINEAR, "activation": activation}
    channels, *sides = shape
    sizes = {"scaling": 1.0, "input_spatial_shape": sides, "in_channels": channels, "out_channels": outputs}
    return typed(name, True, **sizes, **(parts if name == "DCGANDiscriminator" else {"[submodules]": parts}))


def mlp(units, activation=MAXMIN):
    """The section `net` of a dense network."""
    flatten = typed("Rearrange", True, pattern="b c h w -> b (c h w)")
    dense = typed("MLP", True, units=units, dropout_rate=0, dist_scaling=1.0)
    return typed(
        "Sequential", True, **{"<list>": [flatten, dense | {"activation": activation, "linear_module": LINEAR}]}
    )


def classifier(net, dataset="mnist"):
    """A complete configuration around a network."""
    options = {"mini_test_size": 100} | ({"no_scaling": True} if dataset == "cifar10" else {})
    hinge = typed("multi_margin_loss_eps", l_constant=1.0, order=1.0, eps=1.5, p=2)
    trainer = typed("Trainer", True, post_steps=[typed("l2_lipschitz_constant_checker")], net=net)
    trainer |= {"main_step": typed("classification_step", criterion=hinge), "proj_every_n_its": 100}
    trainer |= {"lr_scheduler": typed("ExponentialLR", gamma=0.96235062639), "optimizer": typed("Adam", lr=0.001)}
    steps = [typed("eval_adv_robustness_batch", eps_range=[0.3, 1.58], p=2, mini_eval=False)]
    loaders = typed("default_dataloader", dataset=typed(dataset, True, **options))
    counts = {"num_epochs": 200, "seed": 0, "train_batch_size": 128, "test_batch_size": 100}
    return typed("Experiment", True, post_steps=steps, dataloaders=loaders, trainer=trainer, **counts)


def critic(net, dataset="cifar10"):
    """A complete configuration around a critic."""
    path = f"checkpoints/GAN_training_WGAN_GP_{dataset}/hparams/hparams.json"
    munch = typed("Munch", True, gan_config_json_path=path, sample_size=64, test_sample_size=4096, dim="None")
    sampler = typed("DistributionGANLoader", gan_sampler_module=typed("GANSampler", config=munch))
    step = typed("wasserstein_distance_estimation_step", criterion=typed("diff_loss"))
    trainer = typed("Trainer", True, main_step=step, net=net, proj_every_n_its=100)
    trainer |= {"lr_scheduler": typed("ExponentialLR", gamma=0.96235062639), "optimizer": typed("RMSprop", lr=0.0001)}
    counts = {"num_epochs": 256, "seed": 0, "train_batch_size": 64, "test_batch_size": 64}
    loaders = typed("repeated_loaders", loader_init=sampler)
    judged = {"best_metrics_comparator": typed("default_loss_comparator")}
    return typed("Experiment", True, dataloaders=loaders, trainer=trainer, **counts, **judged)


class Original:
    """Random weights of a network with the original's names, and the network as a function."""

    def __init__(self, net, seed=0):
        self.net, self.generator = net, torch.Generator().manual_seed(seed)
        dense = "<list>" in net
        self.activation = (net["<list>"][1] if dense else net.get("[submodules]", net))["activation"]
        self.weights = {}
        if dense:
            units = net["<list>"][1]["units"]
            self.dense = [f"1.linear{i}" for i in range(len(units) - 1)]
            self.convs = []
            for name, before, after in zip(self.dense, units, units[1:], strict=False):
                self.add_dense(name, before, after)
        else:
            self.add_convnet()

    def add_convnet(self):
        layout, widths = LAYOUTS[self.net["<type>"]]
        channels, (height, width) = self.net["in_channels"], self.net["input_spatial_shape"]
        self.convs = []
        for i, (out, k, s) in enumerate(layout, start=1):
            height, width = height // s, width // s
            self.add_conv(f"conv{i}.conv", channels * s * s, out, k // s, (height, width))
            self.convs.append((f"conv{i}.conv", s))
            channels = out
        sizes = [channels * height * width, *widths, self.net["out_channels"]]
        self.dense = ["linear"] if not widths else [f"linear{i}" for i in range(1, len(sizes))]
        for name, before, after in zip(self.dense, sizes, sizes[1:], strict=False):
            self.add_dense(name, before, after)

    @property
    def method(self):
        conv = self.net.get("[submodules]", self.net)["conv_module"]
        return conv["conv_module"]["<type>"]

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def add_dense(self, name, before, after):
        self.weights[f"{name}.weight"] = self.random(after, before) / after**0.5
        self.weights[f"{name}.bias"] = self.random(after) / 10

    def add_conv(self, name, ci, co, k, size):
        if self.method == "BCOP":
            n = max(ci, co)
            self.weights[f"{name}.param_matrices"] = self.random(2 * (k - 1) + 1, n, n)
            self.weights[f"{name}.mask"] = (torch.arange(n) < n // 2).float().repeat(2 * (k - 1), 1, 1)
        else:
            weight = self.random(co, ci, k, k) / (k * (ci + co) ** 0.5)
            self.weights[f"{name}.weight"] = weight.flatten(1) if self.method == "RKO" else weight
        self.weights[f"{name}.bias"] = self.random(co) / 10
        if self.method == "OSSN":
            self.weights[f"{name}.factor"] = torch.tensor(1.25)
            self.weights[f"{name}.u"] = self.random(1, co, *size)
        if self.method == "SVCM":
            self.weights[f"{name}.buffer_weight"] = self.weights[f"{name}.weight"].clone()

    def __call__(self, x):
        """The outputs for float64 images."""
        for name, stride in self.convs:
            K = self.kernel(name)
            before, after = K.shape[-1] // 2, K.shape[-1] // 2 - (K.shape[-1] + 1) % 2
            x = F.pad(F.pixel_unshuffle(x, stride), (before, after, before, after), mode="circular")
            x = self.activate(F.conv2d(x, K, self.weights[f"{name}.bias"].double()))
        x = x.flatten(1)
        for name in self.dense:
            x = x @ bjorck(self.weights[f"{name}.weight"]).mT + self.weights[f"{name}.bias"].double()
            x = self.activate(x) if name != self.dense[-1] else x
        return x

    def activate(self, x):
        """Pairs of halves, the larger first, where GroupSort is the fast one of two; else groups sorted upwards."""
        if self.activation["<type>"] == "ReLU":
            return x.relu()
        if self.activation != MAXMIN:
            groups = x.unflatten(1, (self.activation["group_size"], -1))
            return groups.sort(1).values.flatten(1, 2)
        a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)

    def kernel(self, name):
        if self.method == "BCOP":
            K, bias = self.weights[f"{name}.param_matrices"], self.weights[f"{name}.bias"]
            return bcop(K, self.in_channels(name), len(bias))
        W = self.weights[f"{name}.weight"].double()
        if self.method == "RKO":
            ci = self.in_channels(name)
            k = round((W.shape[1] / ci) ** 0.5)
            return bjorck(W).reshape(len(W), ci, k, k) / k
        k = W.shape[-1]
        if self.method == "OSSN":
            return W / self.weights[f"{name}.factor"].double()
        if self.method == "SVCM":
            return W
        flat = W.flatten(1)
        sums = [(gram.abs().sum(1)).max() for gram in (flat @ flat.T, flat.T @ flat)]
        return W / (k * min(sums) ** 0.5)

    def in_channels(self, name):
        layout, _ = LAYOUTS[self.net["<type>"]]
        index = int(name.removeprefix("conv").removesuffix(".conv")) - 1
        before = self.net["in_channels"] if index == 0 else layout[index - 1][0]
        return before * layout[index][2] ** 2


def power_iterated(W, generator):
    """The largest singular value as ten power iterations from a random vector find it, never more than it is."""
    v = torch.randn(W.shape[-1], dtype=torch.float64, generator=generator)
    for _ in range(10):
        u = W @ v / (W @ v).norm()
        v = W.mT @ u / (W.mT @ u).norm()
    return (W @ v).norm()


def bjorck(W, scale=None):
    """Twenty steps s -> 1.5 s - 0.5 s^3 on the singular values, from a largest one of 1, or divided by a number."""
    U, s, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    s = s / (s.amax(-1, keepdim=True) if scale is None else scale)
    for _ in range(20):
        s = 1.5 * s - 0.5 * s**3
    return (U * s.unsqueeze(-2)) @ Vh


def bcop(matrices, ci, co):
    """Block convolutions tap by tap, the exchange of the two axes included."""
    U = bjorck(matrices)
    n = U.shape[-1]
    identity = torch.eye(n, dtype=torch.float64)
    taps = {(0, 0): identity}
    for j in range(1, len(U), 2):
        P, Q = (U[i][:, : n // 2] @ U[i][:, : n // 2].T for i in (j, j + 1))
        block = {(0, 0): P @ Q, (0, 1): P @ (identity - Q), (1, 0): (identity - P) @ Q}
        block[1, 1] = (identity - P) @ (identity - Q)
        product = {}
        for (a, b), left in taps.items():
            for (c, d), right in block.items():
                product[a + c, b + d] = product.get((a + c, b + d), 0) + left @ right
        taps = product
    k = (len(U) + 1) // 2
    H = U[0][:ci, :co]
    K = torch.empty(co, ci, k, k, dtype=torch.float64)
    for (b, a), T in taps.items():
        K[:, :, a, b] = (H @ T).T if ci <= co else H.T @ T
    return K


def write(folder, config, weights, monkeypatch, *, epoch=7, legacy=False, name=None):
    """A run folder of the original, its metrics an object of a class that exists nowhere else."""
    module = ModuleType("lconvnet.utils")

    class Accumulator:
        def __init__(self):
            self.data = {"accuracy": [0.5], "loss": 0.1}

    Accumulator.__module__, Accumulator.__qualname__ = "lconvnet.utils", "Accumulator"
    vars(module)["Accumulator"] = Accumulator
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "cfg.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    path = folder / "checkpoints" / f"{name or config['trainer']['net']['<type>']}.pth"
    content = {"trainer": {"net": weights}, "best_metrics": Accumulator(), "epoch": epoch}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lconvnet.utils", module)
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return folder
