"""A small network of digits, random images of that size, and its weights as one vector."""

import torch

from secateur.recipes import zoo


def batches(count=3):
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(count)]


def network(seed=0, widths=(4, 4, 4)):
    torch.manual_seed(seed)
    return zoo.digits_resnet(widths=widths)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])
