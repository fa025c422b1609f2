"""Training on another device: every tensor is made there, the numbers are the same, and all state comes home."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretend_device import PLACE, Distant, PretendDevice
from test_generate import random_model
from test_next_item import HISTORY, models, ring
from test_objective import random_batch
from torch.optim import Optimizer

from models import device as devices
from models.device import Device
from models.generate import WAYS
from models.next_item import FitConfig, fit, right_aligned, weigh
from models.next_item_decoder import NextItemDecoder, fit_slates, settle
from models.objective import ObjectiveConfig, objective
from recsys.bench.rank import RankConfig
from recsys.bench.update import Minute, learned, prepared
from recsys.presets import configured
from recsys.trainer import Trainer


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device that is not there, as a setting."""
    monkeypatch.setattr(devices, "NAMES", (*devices.NAMES, PLACE))
    monkeypatch.setitem(Optimizer.__init__.__globals__, "_get_fused_kernels_supported_devices", lambda: ["cpu", PLACE])
    return Device(name=PLACE)


def test_a_stray_tensor_of_the_cpu_is_found() -> None:
    with PretendDevice() as pretend, torch.device(PLACE):
        weights = torch.as_tensor(np.ones(3, np.float32)).requires_grad_()
        torch.autograd.backward((weights * torch.arange(3)).sum())
        assert isinstance(weights.grad, Distant)
        assert weights.grad.cpu().tolist() == [0, 1, 2]
        assert pretend.num_operations > 5
        with pytest.raises(AssertionError, match="one of the CPU"):
            weights + torch.from_numpy(np.ones(3, np.float32))
        with pytest.raises(RuntimeError, match="not supported"):
            weights.detach().numpy()


def worked(levels: int, device: Device, way: str) -> tuple[int, dict[str, torch.Tensor]]:
    """A warm start and an update; how many operations were done there, and all that a checkpoint holds of weights and optimizer."""
    once = ["learner.trainer.passes=1", "learner.trainer.warm_start.epochs=1"]
    config = configured("tiny", [f"model.tokenizer.levels={levels}", "model.decoder.dropout=0.0", *once])
    trainer, given = prepared(config, Minute(decisions=8, catalogue=30, history=12, slots=3), 0)
    trainer = Trainer(replace(trainer.config, device=device), trainer.model, trainer.seeds)
    for lesson in given:
        lesson.decision.way = way
    with PretendDevice() as pretend:
        trainer.warm_start(given[:4])
        learned(trainer, config, given)
    kept = {name: torch.as_tensor(array) for name, array in trainer.arrays().items()}
    return pretend.num_operations, kept | trainer.model.decoder.state_dict()


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_warm_start_and_an_update_there_learn_what_they_learn_here(levels: int, way: str, there: Device) -> None:
    (none, here), (many, home) = worked(levels, Device(), way), worked(levels, there, way)
    assert (none, many > 1000) == (0, True)
    assert here.keys() == home.keys()
    for name, found in home.items():
        assert not isinstance(found, Distant)
        # each kind of device has its own kernel of attention; a moment is of the gradients, a weight may turn on the last bit of one
        moment = name.endswith(("exp_avg", "exp_avg_sq"))
        assert found.numpy() == pytest.approx(here[name].numpy(), rel=1e-3, abs=1e-6 if moment else 2e-3), name


def fitted(name: str, device: Device) -> np.ndarray:
    """Scores after all that a ranking does to a model."""
    torch.manual_seed(5)
    model, train = models()[name], ring(60)
    histories, targets = [rows[:-1] for rows in train[:20]], np.array([rows[-1] for rows in train[:20]])

    def scores() -> np.ndarray:
        return model.scores(right_aligned(histories, HISTORY))[:, 1:]

    with PretendDevice(), device.visit(model.module):
        fit(model, train, FitConfig(batch=32, max_epochs=2, rise_steps=2), 3, lambda: float(scores().max()))
        if isinstance(model, NextItemDecoder):
            settle(model, np.bincount(np.concatenate(train)), lambda: weigh(model, histories, targets, 3, epochs=1))
        weigh(model, histories, targets, 3, epochs=1)
        if name == "two levels":
            fit_slates(model, train[:20], 0, num_slots=2, later=2, epochs=1)
    assert not any(isinstance(weight, Distant) for weight in model.module.state_dict().values())
    return scores()


@pytest.mark.parametrize("name", ["decoder", "two levels", "sasrec", "trunk"])
def test_next_item_training_there_ends_with_the_scores_of_one_here(name: str, there: Device) -> None:
    assert fitted(name, there) == pytest.approx(fitted(name, Device()), abs=0.02)


def test_what_goes_wrong_there_leaves_the_state_at_home(there: Device) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="one of the CPU"), PretendDevice(), there.visit(model):
        model(torch.as_tensor(np.ones(2, np.float32))) + torch.from_numpy(np.ones(2, np.float32))
    assert not isinstance(model.weight, Distant)


def test_the_numbers_of_half_precision_are_near_those_of_full() -> None:
    """What `precision` turns on, where it can be tried: the loss of an update under the autocast of the CPU."""
    model = random_model(3, levels=2, num_items=25)
    batch = random_batch(3, model)
    terms = []
    for enabled in (False, True):
        model.decoder.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = objective(model.scored, batch, ObjectiveConfig(policy_weight=1))
        torch.autograd.backward(found.loss)
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.decoder.parameters())
        terms.append([float(found.loss.detach()), found.policy, found.value, found.likelihood])
    assert terms[0] != terms[1]
    assert terms[1] == pytest.approx(terms[0], rel=0.1, abs=0.05)


def test_a_device_that_is_not_here_or_not_known_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"device.name is 'tpu'; it must be one of cpu, cuda"):
        Device(name="tpu")
    with pytest.raises(ValueError, match=r"device.precision is 'bfloat16'; on cpu it must be float32"):
        Device(precision="bfloat16")
    config = configured("tiny", ["learner.trainer.device.name=cuda"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device.name is 'cuda', but torch .* finds no GPU here; it must be cpu"):
            prepared(config, Minute(decisions=1, catalogue=10, history=2, slots=2), 0)


@pytest.mark.parametrize(("capability", "chosen"), [("avx2", torch.float32), ("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16)])
def test_products_are_of_bfloat16_where_there_are_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, chosen: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": False} | {capability: True})
    assert RankConfig().product_dtype == chosen
    assert RankConfig(device=Device(name="cuda")).product_dtype == torch.bfloat16
    assert RankConfig(dtype="float32").product_dtype == torch.float32
