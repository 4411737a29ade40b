"""What a GPU must share with the CPU; and that no other test asks one."""

import kit
import pytest
import torch

from atent import Threat
from atent.attacks import PGD
from atent.methods import ATENT, PGDAT
from atent.rng import PerSample
from atent.train.settings import pick_device

LINF = Threat("linf", 0.2)


def test_tests_run_on_the_cpu():
    """Also where there is a GPU: `auto` is what most of them leave the device at."""
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("method", [PGDAT(LINF, steps=2, start="zero"), ATENT(LINF, steps=2, start="zero", noise=0.0)])
def test_a_step_agrees_in_float64(method):
    """Without draws, loss and gradient agree to some sums' rounding, 1e-9 of their size."""
    found = []
    for device in ("cpu", "cuda"):
        model, (x, y) = kit.network().to(device), kit.batch()
        rng = torch.Generator(device).manual_seed(11)
        metrics = method.backward(model, x.to(device), y.to(device), rng=rng)
        found.append((float(metrics["loss"]), kit.gradient(model).cpu()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert kit.distance(found[1][1], found[0][1]) < 1e-9


@pytest.mark.cuda
def test_streams_have_the_cpus_words():
    x = torch.empty(50, 7, dtype=torch.float64)
    cpu, gpu = (PerSample(3, torch.arange(50, device=d), "test").uniform(x.to(d)) for d in ("cpu", "cuda"))
    assert torch.equal(cpu, gpu.cpu())


@pytest.mark.cuda
def test_an_attack_agrees_in_float64(conv_net, batch):
    x, y = batch(40)
    attack = PGD(Threat("linf", 0.1), steps=5)
    a = attack.run(conv_net(), x, y)
    b = attack.run(conv_net().cuda(), x.cuda(), y.cuda())
    assert torch.equal(a.success, b.success.cpu())
    assert float((a.x_adv - b.x_adv.cpu()).abs().max()) < 1e-9
