"""PSMNet's forward pass written as plain functions over a state of the original's names.

An independent statement of the architecture (PSMNet, tables 1 and section 3) to hold ours to: it
shares no code with the package.
"""

import math

import torch
from torch.nn import functional as F


class OriginalState(dict):
    """Creates random float32 tensors for the names the forward pass asks for, or serves given."""

    def __init__(self, *args):
        super().__init__(*args)
        self.generator = torch.Generator().manual_seed(6)

    def tensor(self, name, shape, low, high):
        if name not in self:
            noise = torch.rand(shape, generator=self.generator)
            self[name] = low + (high - low) * noise
        assert self[name].shape == torch.Size(shape), name
        return self[name]

    def conv(self, name, x, out, kernel=3, stride=1, padding=1, dilation=1, transposed=False):
        dims = x.dim() - 2
        shape = (x.shape[1], out) if transposed else (out, x.shape[1])
        bound = math.sqrt(1.5 / (x.shape[1] * kernel**dims))
        weight = self.tensor(f"{name}.weight", shape + (kernel,) * dims, -bound, bound)
        if transposed:
            return F.conv_transpose3d(x, weight, None, stride, padding, output_padding=1)
        return (F.conv2d if dims == 2 else F.conv3d)(x, weight, None, stride, padding, dilation)

    def norm(self, name, x):
        c = x.shape[1]
        mean = self.tensor(f"{name}.running_mean", (c,), -0.2, 0.2)
        variance = self.tensor(f"{name}.running_var", (c,), 0.5, 1.5)
        gain = self.tensor(f"{name}.weight", (c,), 0.5, 1.5)
        bias = self.tensor(f"{name}.bias", (c,), -0.2, 0.2)
        self.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, variance, gain, bias)

    def convbn(self, name, x, out, kernel=3, stride=1, dilation=1, transposed=False):
        padding = dilation if kernel == 3 else 0
        x = self.conv(f"{name}.0", x, out, kernel, stride, padding, dilation, transposed)
        return self.norm(f"{name}.1", x)


def block(s, name, x, out, stride=1, dilation=1):
    y = F.relu(s.convbn(f"{name}.conv1.0", x, out, 3, stride, dilation))
    y = s.convbn(f"{name}.conv2", y, out, 3, 1, dilation)
    if stride != 1 or x.shape[1] != out:
        x = s.convbn(f"{name}.downsample", x, out, 1, stride)
    return y + x


def features(s, x, align):
    p = "feature_extraction"
    for i, stride in ((0, 2), (2, 1), (4, 1)):
        x = F.relu(s.convbn(f"{p}.firstconv.{i}", x, 32, stride=stride))
    kept = []
    for layer, (out, blocks, stride, dilation) in enumerate(
        ((32, 3, 1, 1), (64, 16, 2, 1), (128, 3, 1, 1), (128, 3, 1, 2)), start=1
    ):
        for i in range(blocks):
            x = block(s, f"{p}.layer{layer}.{i}", x, out, stride if i == 0 else 1, dilation)
        kept.append(x)
    branches = []
    for i, window in enumerate((64, 32, 16, 8), start=1):
        y = F.relu(s.convbn(f"{p}.branch{i}.1", F.avg_pool2d(x, window, window), 32, 1))
        branches.append(F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=align))
    raw = kept[1]
    y = torch.cat((raw, x, branches[3], branches[2], branches[1], branches[0]), 1)
    y = F.relu(s.convbn(f"{p}.lastconv.0", y, 128))
    return s.conv(f"{p}.lastconv.2", y, 32, 1, 1, 0)


def volume(left, right, disparities):
    b, c, h, w = left.shape
    cost = left.new_zeros(b, 2 * c, disparities, h, w)
    for i in range(disparities):
        cost[:, :c, i, :, i:] = left[:, :, :, i:]
        cost[:, c:, i, :, i:] = right[:, :, :, : w - i]
    return cost


def two(s, name, x, out=32):
    return s.convbn(f"{name}.2", F.relu(s.convbn(f"{name}.0", x, out)), out)


def hourglass(s, name, x, presqu, postsqu):
    out = F.relu(s.convbn(f"{name}.conv1.0", x, 64, stride=2))
    pre = s.convbn(f"{name}.conv2", out, 64)
    pre = F.relu(pre if postsqu is None else pre + postsqu)
    out = F.relu(s.convbn(f"{name}.conv3.0", pre, 64, stride=2))
    out = F.relu(s.convbn(f"{name}.conv4.0", out, 64))
    up = s.convbn(f"{name}.conv5", out, 64, stride=2, transposed=True)
    post = F.relu(up + (pre if presqu is None else presqu))
    return s.convbn(f"{name}.conv6", post, 32, stride=2, transposed=True), pre, post


def classify(s, name, x):
    return s.conv(f"{name}.2", F.relu(s.convbn(f"{name}.0", x, 32)), 1)


def head(cost, size, align):
    cost = F.interpolate(cost, size, mode="trilinear", align_corners=align)
    disparities = torch.arange(size[0], dtype=cost.dtype).view(1, -1, 1, 1)
    return (F.softmax(cost.squeeze(1), 1) * disparities).sum(1)


def psmnet(s, left, right, max_disparity, *, basic=False, align=False):
    """Normalised images (B, 3, H, W) to disparity (B, H, W), in evaluation mode."""
    cost = volume(features(s, left, align), features(s, right, align), max_disparity // 4)
    cost = F.relu(s.convbn("dres0.0", cost, 32))
    cost = F.relu(s.convbn("dres0.2", cost, 32))
    cost0 = two(s, "dres1", cost) + cost
    size = (max_disparity, *left.shape[2:])
    if basic:
        for name in ("dres2", "dres3", "dres4"):
            cost0 = two(s, name, cost0) + cost0
        return head(classify(s, "classify", cost0), size, align)
    out1, pre1, post1 = hourglass(s, "dres2", cost0, None, None)
    out1 = out1 + cost0
    out2, _, post2 = hourglass(s, "dres3", out1, pre1, post1)
    out2 = out2 + cost0
    out3, _, _ = hourglass(s, "dres4", out2, pre1, post2)
    out3 = out3 + cost0
    cost1 = classify(s, "classif1", out1)
    cost2 = classify(s, "classif2", out2) + cost1
    return head(classify(s, "classif3", out3) + cost2, size, align)
