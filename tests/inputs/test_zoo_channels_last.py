"""Images in the channels-last format: where a network does not take them, the usual one, with a line."""

import pytest
import torch
from torch import nn
from zoo import LINF, SIDE, Twin, Viewing, data, made

from atent.attacks import FGSM
from atent.certify import Smoothed
from atent.data import from_tensors
from atent.evaluate import evaluate
from atent.methods import PGDAT
from atent.precision import refuses_channels_last
from atent.train import TrainSettings, fit


def test_a_network_that_flattens_by_view_gets_the_usual_format_and_says_so():
    net, twin, (x, y) = made(Viewing), made(Twin), data()
    says = "does not support channels-last images .view size"
    with pytest.warns(UserWarning, match=says):
        classes, radii = Smoothed(net, 0.25).certify(x, n0=20, n=100, alpha=0.05)
    expected = Smoothed(twin, 0.25, channels_last=False).certify(x, n0=20, n=100, alpha=0.05)
    assert torch.equal(classes, expected[0])
    assert torch.equal(radii, expected[1])
    assert "view" in refuses_channels_last(net, x)
    assert refuses_channels_last(twin, x) is None
    three = torch.cat([x] * 3, 1)
    colour = nn.Sequential(nn.Conv2d(3, 1, 1), made(Viewing)).eval()
    with pytest.warns(UserWarning, match=says):
        found = evaluate(colour, three, y, [FGSM(LINF)], channels_last=True)
    assert found.outcomes == evaluate(colour, three, y, [FGSM(LINF)]).outcomes
    with pytest.warns(UserWarning, match=says):
        FGSM(LINF).run(colour, three, y, channels_last=True)


def test_smoothing_s_format_can_be_chosen():
    seen = []

    class Looking(Twin):
        def forward(self, z):
            seen.append(len(z) == 100 and z.is_contiguous() and z.stride(1) == SIDE * SIDE)
            return super().forward(z)

    net = made(Looking)
    x = torch.rand(1, 1, SIDE, SIDE)
    for choice, usual in ((None, False), (True, False), (False, True)):
        seen.clear()
        Smoothed(net, 0.25, channels_last=choice).votes(x, 100)
        assert seen[-1] is usual


def test_training_in_channels_last_falls_back_and_says_so():
    lines = []
    x, y = data(12)
    parts = from_tensors(x[:8], y[:8], x[8:], y[8:], validation=3)
    settings = {"epochs": 1, "batch_size": 4, "validate_attack": "none"}
    fitted = [
        fit(made(kind).train(), parts, PGDAT(LINF, steps=1), progress=False, say=lines.append,
            settings=TrainSettings(**settings, channels_last=last))
        for kind, last in ((Viewing, True), (Twin, False))
    ]  # fmt: skip
    assert sum("channels-last" in line for line in lines) == 1
    assert all(map(torch.equal, *(f.model.state_dict().values() for f in fitted)))
