"""The fused kernels give what the plain network gives, computed in float64, and its gradients.

On a CUDA device as they are; everywhere in Triton's interpreter, which wants its variable set before the import: so in
a process of its own, which runs this file again.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.fused_kernel import FusedSRCNN, fused_available, group_matrices
from srcnn.srcnn_model import SRCNN, ModelConfig
from srcnn.weights_io import initialize

pytestmark = pytest.mark.slow  # of what is measured once, not of the product
pytest.importorskip("triton")
IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
HERE = Path(__file__)


@pytest.fixture
def device():
    if IN_INTERPRETER:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.skip("no CUDA device; test_all_of_this_in_the_interpreter runs it")


@pytest.mark.slow
@pytest.mark.skipif(IN_INTERPRETER, reason="this is the interpreter")
def test_all_of_this_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-m", "pytest", str(HERE), "-p", "no:cacheprovider", "-p", "no:xdist", "-rs"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], env=environment, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "CUDA" not in result.stdout  # nothing skipped for want of it


def network(device, residual=False, centred=False, how="kaiming"):
    model = SRCNN(ModelConfig(residual=residual), centred)
    initialize(model, how, 3)
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.conv3):
            layer.bias.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(5))
    return model.to(device)


def photos(shape, device, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def error(found, expected):
    """Relative, of the whole tensor."""
    expected = expected.detach()
    return float((found.detach().double() - expected).norm() / expected.norm())


def errors(module, exact, degraded, loss):
    """Of the output, and of each parameter's gradient by name, against `exact` in float64."""
    expected = exact(degraded.double())
    loss(expected).backward()
    module.zero_grad(set_to_none=True)
    restored = module(degraded)
    loss(restored.float()).backward()
    reference = dict(exact.named_parameters())
    assert set(dict(module.named_parameters())) == set(reference)
    return {"output": error(restored, expected)} | {
        name: error(parameter.grad, reference[name].grad) for name, parameter in module.named_parameters()
    }


def squares(restored):
    return restored.square().sum()


def at_random(restored):
    """Gradients that nearly cancel out, so that any rounding is a large share of their sums."""
    grads = torch.randn(restored.shape, generator=torch.Generator().manual_seed(2))
    return (restored * grads.to(restored.device)).sum()


ROWS, COLUMNS = 15, 17  # the same in most tests: a GPU compiles for each size
CASES = [((2, 1, ROWS, COLUMNS), True, squares), ((2, 1, ROWS, COLUMNS), True, at_random)]
if IN_INTERPRETER:  # which has small blocks
    CASES += [((1, 1, 5, 5), False, squares), ((1, 1, 6, 31), False, squares), ((3, 1, 18, 7), True, squares)]
else:
    CASES += [(shape, False, loss) for shape in ((3, 1, 128, 128), (1, 1, 131, 263)) for loss in (squares, at_random)]


@pytest.mark.parametrize("shape, residual, loss", CASES)
def test_in_float32_output_and_gradients_are_the_plain_networks(shape, residual, loss, device):
    model = network(device, residual, how="pytorch")
    found = errors(FusedSRCNN(model, "fp32"), copy.deepcopy(model).double(), photos(shape, device), loss)
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("shape, residual, loss", CASES)
def test_in_bfloat16_output_and_gradients_are_as_good_as_those_of_autocast(shape, residual, loss, device):
    """Or nearly. A value rounded to the other side of a ReLU takes its gradient along: that error is the network's."""
    model, degraded = network(device, residual, how="pytorch"), photos(shape, device)
    plain = copy.deepcopy(model)
    plain.forward = torch.autocast(device.type, torch.bfloat16)(plain.forward)
    of_autocast = errors(plain, copy.deepcopy(model).double(), degraded, loss)
    found = errors(FusedSRCNN(model, "bf16"), copy.deepcopy(model).double(), degraded, loss)
    assert found["output"] < 1e-2
    for name, relative in found.items():
        assert relative < max(2e-2, 3 * of_autocast[name]), (name, relative, of_autocast)


def test_a_centred_network_gives_its_own_output(device):
    model = network(device, residual=True, centred=True)
    degraded = photos((1, 1, ROWS, COLUMNS), device)
    with torch.no_grad():
        found = FusedSRCNN(model, "fp32")(degraded)
        assert error(found, copy.deepcopy(model).double()(degraded.double())) < 1e-5


@pytest.mark.parametrize("precision, bound", [("fp32", 1e-4), ("bf16", 2e-2)])
def test_training_goes_the_plain_networks_way(precision, bound, device):
    degraded = photos((1, 1, ROWS, COLUMNS), device)
    models = [network(device, residual=True) for _ in range(2)]
    modules = [models[0].double(), FusedSRCNN(models[1], precision)]
    losses = [[], []]
    for module, found, dtype in zip(modules, losses, (torch.float64, torch.float32), strict=True):
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for _ in range(4):
            optimizer.zero_grad()
            loss = (module(degraded.to(dtype)) - 0.8 * degraded.to(dtype)).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert losses[0][-1] < 0.9 * losses[0][0]  # something was learnt
    assert losses[1] == pytest.approx(losses[0], rel=bound)


def test_a_pixel_changes_no_output_further_than_6_pixels_away(device):
    """Whatever is multiplied by the zeros that fill up the matrices."""
    model, degraded = FusedSRCNN(network(device), "fp32"), photos((2, 1, ROWS, COLUMNS), device)
    changed = degraded.clone()
    changed[0, 0, 7, 8] += 100
    with torch.no_grad():
        near = model(changed) != model(degraded)
    rows, columns = near[0, 0].nonzero().t()
    assert not near[1].any()
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (1, 13, 2, 14)


def test_no_photos_give_none(device):
    model = FusedSRCNN(network(device))
    restored = model(torch.zeros(0, 1, ROWS, COLUMNS, device=device))
    assert restored.shape == (0, 1, ROWS, COLUMNS)
    restored.sum().backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_it_is_available_where_the_kernels_run(device):
    assert fused_available(device)
    assert not fused_available(torch.device("meta"))


def test_matrix_of_groups_spreads_four_pixels_as_a_convolution_does():
    """Its rows of a group in the middle, and of one whose first pixel is repeated before it."""
    weight = torch.randn(1, 32, 5, 5, dtype=torch.float64)
    mapped = torch.randn(32, 4, dtype=torch.float64)
    flat = mapped.t().reshape(1, 128)
    own, passed, edge = (flat @ matrix for matrix in group_matrices(weight, torch.float64))
    for before, found in ((torch.zeros(32, 4), own), (mapped[:, :1].expand(32, 4), own + edge)):
        row = torch.cat([before, mapped, torch.zeros(32, 4)], 1)[None, :, None]  # columns -4..7 of the padded maps
        for line in range(5):
            expected = torch.nn.functional.conv2d(row.double(), weight[:, :, line : line + 1])[0, 0, 0]
            torch.testing.assert_close(found.view(8, 4)[line], expected[:4])
            torch.testing.assert_close(passed.view(8, 4)[line], expected[4:])


@pytest.mark.parametrize("config", [ModelConfig((9, 3, 5)), ModelConfig(filters=(32, 16)), ModelConfig(channels=3)])
def test_another_network_is_refused(config):
    with pytest.raises(ValueError, match="9, 1, 5"):
        FusedSRCNN(SRCNN(config))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="precision"):
        FusedSRCNN(SRCNN(), "fp16")
    model = FusedSRCNN(SRCNN())
    for refused in (torch.zeros(1, 1, 4, 9), torch.zeros(1, 3, 9, 9), torch.zeros(1, 1, 9, 9).double()):
        with pytest.raises(ValueError, match="at least 5"):
            model(refused)
    with pytest.raises(ValueError, match="gradient"):
        model(torch.zeros(1, 1, 9, 9, requires_grad=True))
