"""What is taken from PyTorch beside its public interface means what srcnn takes it for."""

import io

import pytest
import torch

from srcnn.runtime import torch_internals
from srcnn.runtime.torch_internals import (
    cpu_has,
    set_state_note,
    sizes_of_one_are_dynamic,
    skip_update_if,
    state_note,
    zero_where_not_positive,
)


def flags_of_this_cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].split() for line in file if line.startswith("flags")), None)


def test_the_features_of_the_cpu_are_those_that_linux_sees():
    if (flags := flags_of_this_cpu()) is None:
        pytest.skip("not an x86 CPU under Linux")
    assert cpu_has("avx512_bf16") == ("avx512_bf16" in flags)
    assert cpu_has("amx_tile") <= ("amx_tile" in flags)  # the system may withhold it from a process


def test_other_processors_are_asked_by_onednn(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert torch_internals.cpu_has_bf16() in (True, False)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimizer_skips_the_update_that_it_is_told_to(optimizer):
    weights = torch.nn.Parameter(torch.ones(3))
    steps = optimizer([weights], lr=0.1, fused=True)
    changed = []
    for is_skipped in (0.0, 1.0, 0.0):
        before, weights.grad = weights.detach().clone(), torch.ones(3)
        skip_update_if(steps, torch.tensor(is_skipped))
        steps.step()
        changed.append(not torch.equal(before, weights))
    assert changed == [True, False, True]


def test_zeros_stand_where_a_value_is_not_positive():
    of = torch.tensor([-32768, -1, 0, 1, 32767], dtype=torch.int16)
    values = torch.arange(5, dtype=torch.int16) - 9
    assert zero_where_not_positive(values, of).tolist() == [0, 0, 0, -6, -5]


def test_a_note_travels_with_the_weights_and_disturbs_no_one():
    module, other, buffer = torch.nn.Conv2d(1, 1, 3), torch.nn.Conv2d(1, 1, 3), io.BytesIO()
    state = module.state_dict()
    assert state_note(state) is None
    set_state_note(state, "told")
    torch.save(state, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert state_note(loaded) == "told" and state_note(dict(loaded)) is None
    other.load_state_dict(loaded)
    assert torch.equal(other.weight, module.weight)


def test_a_map_of_a_single_pixel_is_allowed_after_exporting():
    def exported():
        sizes = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2, stride=2), torch.nn.ConvTranspose2d(2, 1, 2, stride=2))
        return torch.export.export(network, (torch.rand(2, 1, 14, 18),), dynamic_shapes=(sizes,)).module()

    with sizes_of_one_are_dynamic():
        network = exported()
    assert network(torch.rand(2, 1, 2, 3)).shape == (2, 1, 2, 2)
    with pytest.raises(Exception, match="height"):  # else the setting is no longer needed
        exported()
