"""GRU layers side by side: PyTorch's values and gradients, of several layers at once."""

import torch
from torch import nn

from babble.evaluation.parallel_gru import run_gru

LAYERS, FRAMES, CLIPS, INPUTS, UNITS = 3, 11, 4, 5, 6


def test_layers_side_by_side_equal_those_of_pytorch():
    torch.manual_seed(0)
    layers = [nn.GRU(INPUTS, UNITS).double() for _ in range(LAYERS)]
    inputs = [torch.randn(FRAMES, CLIPS, INPUTS, dtype=torch.double, requires_grad=True) for _ in layers]
    outputs = torch.stack([layer(x)[0] for layer, x in zip(layers, inputs, strict=True)], dim=1)
    x_TNBG = torch.stack(
        [nn.functional.linear(x, y.weight_ih_l0, y.bias_ih_l0) for x, y in zip(inputs, layers, strict=True)], dim=1
    )
    weight_NUG = torch.stack([layer.weight_hh_l0.t() for layer in layers])
    bias_NG = torch.stack([layer.bias_hh_l0 for layer in layers])
    ours = run_gru(x_TNBG, weight_NUG, bias_NG)
    torch.testing.assert_close(ours, outputs)
    weights = [parameter for layer in layers for parameter in layer.parameters()]
    # That of a loss differs from frame to frame and from unit to unit.
    gradient = torch.randn_like(outputs)
    expected = torch.autograd.grad(outputs, [*inputs, *weights], gradient)
    for found, known in zip(torch.autograd.grad(ours, [*inputs, *weights], gradient), expected, strict=True):
        torch.testing.assert_close(found, known)
