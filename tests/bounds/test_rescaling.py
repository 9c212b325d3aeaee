"""Division by the certificate."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from lconvnet import bake, certify, layers, lipschitz_bound, models, rescale, save
from lconvnet.saving import load
from tests.bounds.networks import Branches


def test_a_network_slightly_above_one_ends_at_most_at_one():
    network = bake(models.small_convnet(1, 8, 3))
    before = lipschitz_bound(network, input_shape=(1, 8, 8)).upper
    rescaled = rescale(network, input_shape=(1, 8, 8))
    after = lipschitz_bound(rescaled, input_shape=(1, 8, 8)).upper
    assert 1 < before < 1 + 1e-5
    assert 1 - 2**-23 < after <= 1  # the next float32 would be above 1
    assert list(rescaled._modules)[:-1] == list(network._modules)
    assert rescaled.rescale.factor == float(torch.tensor(rescaled.rescale.factor))  # a float32


def test_answers_and_radii_stay_the_same():
    network = bake(models.small_convnet(1, 8, 3))
    images = torch.rand(5, 1, 8, 8)
    one, other = certify(network, images), certify(rescale(network, input_shape=(1, 8, 8)), images)
    assert torch.equal(one.label, other.label)
    torch.testing.assert_close(one.radius, other.radius, rtol=1e-12, atol=1e-12)  # a few roundings, bounded a priori


@pytest.mark.parametrize("gain", [1.5, 3.0, 1e6, 1e30])
def test_any_graph_and_any_bound(gain):
    network = nn.Sequential(Branches("additive", layers.Scale(gain)), nn.Flatten()).eval()
    found = lipschitz_bound(rescale(network, input_shape=(2, 2, 2)), input_shape=(2, 2, 2)).upper
    assert 1 - 1e-6 < found <= 1
    single = rescale(Branches("additive", layers.Scale(gain)).eval(), input_shape=(2, 2, 2))
    assert list(single._modules) == ["network", "rescale"]
    assert not single.training


def test_networks_that_need_none_keep_their_layers():
    network = nn.Sequential(layers.Scale(0.5), nn.Flatten()).eval()
    assert list(rescale(network)._modules) == ["0", "1"]


def test_a_rescaled_network_can_be_saved(tmp_path):
    rescaled = rescale(bake(models.mlp(4, 2, widths=(4,))), input_shape=(1, 2, 2))
    save(rescaled, tmp_path / "model.safetensors", input_shape=(1, 2, 2))
    assert lipschitz_bound(load(tmp_path / "model.safetensors"), input_shape=(1, 2, 2)).upper <= 1


def test_bounds_without_an_inverse_are_refused():
    with pytest.raises(ValueError, match="bound 1e\\+60, whose inverse is not a float32"):
        rescale(nn.Sequential(layers.Scale(1e60)))
    with pytest.raises(ValueError, match="Sigmoid"):
        rescale(nn.Sequential(nn.Sigmoid()))


def test_a_network_that_was_trained_further_is_divided_again():
    network = rescale(nn.Sequential(layers.Scale(3.0), nn.Flatten()).eval())
    network[0].factor = 9.0
    again = rescale(network)
    assert list(again._modules) == ["0", "1", "rescale", "rescale2"]
    assert lipschitz_bound(again).upper <= 1


def test_a_layer_with_the_name_of_the_factor_stays():
    last = nn.Linear(2, 3)
    network = nn.Sequential(OrderedDict(scale=layers.Scale(9.0), rescale=last)).eval()
    rescaled = rescale(network)
    assert rescaled.rescale is last
    assert rescaled(torch.rand(1, 2)).shape == (1, 3)


def test_a_result_above_one_is_an_incident(monkeypatch):
    monkeypatch.setattr("lconvnet.bounds.network.Scale", lambda factor: layers.Scale(2 * factor))
    with pytest.raises(RuntimeError, match="bound 1.99.* after it was divided by 3.0"):
        rescale(nn.Sequential(layers.Scale(3.0)))


def test_the_default_dtype_does_not_matter():
    network = nn.Sequential(layers.Scale(1.0000003)).eval()
    expected = rescale(network).rescale.factor
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert rescale(network).rescale.factor == expected
    finally:
        torch.set_default_dtype(default)


def test_layers_keep_their_mode():
    """They are shared with the network, whose own mode says nothing about them."""
    network = nn.Sequential(nn.Dropout().eval())
    assert network.training
    rescaled = rescale(network)
    assert rescaled.training
    assert not network[0].training
    assert lipschitz_bound(rescaled).upper == 1
