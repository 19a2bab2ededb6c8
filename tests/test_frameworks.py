"""Trainers that people have: each trains with nbopt.torch.AdamW as with torch.optim's, saves, and resumes.

`tox run -e frameworks` installs them. Where one is missing, its tests are skipped.
"""

import importlib
import sys
from unittest import mock

import pytest

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402

# Other people's code warns of other people's affairs.
pytestmark = pytest.mark.filterwarnings("default")

WITH = {"lr": 0.01, "weight_decay": 0.1}
OURS, THEIRS = nbopt.torch.AdamW, torch.optim.AdamW


class Offloaded(nbopt.torch.Offload):
    """AdamW in the host's memory."""

    def __init__(self, params, **options):
        super().__init__(params, OURS, bucket_bytes=100, **options)


EXAMPLES = [
    {"x": x, "labels": x.sum().view(1)}
    for x in torch.randn(32, 6, generator=torch.Generator().manual_seed(0)).unbind()
]


class Model(torch.nn.Module):
    """A small network that returns its loss, as HF Trainer takes it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def forward(self, x, labels):
        return {"loss": torch.nn.functional.mse_loss(self.layers(x), labels)}


def loader():
    return torch.utils.data.DataLoader(EXAMPLES, batch_size=4)


def values(module):
    return [p.detach().clone() for p in module.parameters()]


def check(train, tmp_path, ours=OURS):
    """Check that ours trains as PyTorch's does, and that a run that is resumed goes on with the same bits.

    ``train(kind, folder, stops, resumes)`` returns the parameters at the end. With `stops` it saves in the
    middle and ends there; with `resumes` it starts from there.
    """
    folders = [tmp_path / name for name in ("theirs", "ours", "resumed")]
    expected, found = train(THEIRS, folders[0]), train(ours, folders[1])
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)
    half = train(ours, folders[2], stops=True)
    assert not all(map(torch.equal, half, found))
    resumed = train(ours, folders[2], resumes=True)
    assert all(map(torch.equal, resumed, found))


def test_lightning(tmp_path):
    """Lightning trains, with a scheduler that cycles betas, and with its own norm clip."""
    lightning = pytest.importorskip("lightning", reason="tox run -e frameworks installs Lightning")

    class Module(lightning.LightningModule):
        def __init__(self, kind):
            super().__init__()
            self.model, self.kind = Model(), kind

        def training_step(self, batch, _):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            optimizer = self.kind(self.parameters(), **WITH)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=32)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train(kind, folder, stops=False, resumes=False):
        module = Module(kind)
        trainer = lightning.Trainer(
            max_epochs=2 if stops else 4, accelerator="cpu", devices=1, logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.5,
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, loader(), ckpt_path=folder / "half.ckpt" if resumes else None)
        if stops:
            trainer.save_checkpoint(folder / "half.ckpt")
        return values(module)

    check(train, tmp_path)


@pytest.mark.parametrize("ours", [OURS, Offloaded])
@pytest.mark.parametrize("way", ["class", "instance"])
def test_trainer(way, ours, tmp_path):
    """HF Trainer trains, whether it gets the class or an optimizer, with its own norm clip."""
    transformers = pytest.importorskip("transformers", reason="tox run -e frameworks installs transformers")
    pytest.importorskip("accelerate", reason="HF Trainer needs it: tox run -e frameworks installs it")

    def train(kind, folder, stops=False, resumes=False):
        model = Model()
        given = (
            {"optimizer_cls_and_kwargs": (kind, WITH)}
            if way == "class"
            else {"optimizers": (kind(model.parameters(), **WITH), None)}
        )
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=16, save_steps=8, per_device_train_batch_size=4, learning_rate=0.01,
            use_cpu=True,
            report_to=[], disable_tqdm=True, max_grad_norm=0.5, weight_decay=0.1, logging_strategy="no",
        )  # fmt: skip

        class Stop(transformers.TrainerCallback):
            def on_step_end(self, arguments, state, control, **more):
                control.should_training_stop = stops and state.global_step >= 8

        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=EXAMPLES, callbacks=[Stop()], **given
        )
        trainer.train(resume_from_checkpoint=folder / "checkpoint-8" if resumes else None)
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        assert type(inner) is kind
        return values(model)

    check(train, tmp_path, ours)


@pytest.mark.parametrize("ours", [OURS, Offloaded])
def test_accelerate(ours, tmp_path):
    """Accelerate trains, saves the state of all, and loads it."""
    accelerate = pytest.importorskip("accelerate", reason="tox run -e frameworks installs accelerate")

    def train(kind, folder, stops=False, resumes=False):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = Model()
        optimizer = kind(model.parameters(), **WITH)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(), scheduler)
        if resumes:
            accelerator.load_state(folder)
        for epoch in range(2 if resumes else 0, 2 if stops else 4):
            for batch in batches:
                with accelerator.accumulate(model):
                    accelerator.backward(model(**batch)["loss"])
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
            if stops and epoch == 1:
                accelerator.save_state(folder)
        return values(model)

    check(train, tmp_path, ours)


def import_timm():
    """Import timm. Its models and groups need PyTorch alone, but it looks for torchvision, for pictures."""
    try:
        return pytest.importorskip("timm", reason="tox run -e frameworks installs timm", exc_type=ImportError)
    except pytest.skip.Exception:
        pass
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        del sys.modules[name]
    parts = (
        "ops",
        "ops.misc",
        "models",
        "models.feature_extraction",
        "transforms",
        "transforms.functional",
        "datasets",
    )
    stand_ins = {f"torchvision.{part}": mock.MagicMock(__spec__=None) for part in parts}
    stand_ins["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})
    with mock.patch.dict(sys.modules, {"torchvision": mock.MagicMock(__spec__=None), **stand_ins}):
        timm = pytest.importorskip("timm", reason="tox run -e frameworks installs timm", exc_type=ImportError)
        found = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "timm"}
    sys.modules.update(found)
    return timm


def test_timm(tmp_path):
    """Train timm's groups, whose rates grow from layer to layer, with its schedulers, which scale them."""
    timm = import_timm()
    optim, schedulers = (importlib.import_module(f"timm.{name}") for name in ("optim", "scheduler"))

    def train(kind, folder, stops=False, resumes=False):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224",
            depth=2,
            embed_dim=16,
            num_heads=2,
            img_size=16,
            patch_size=8,
            num_classes=3,
        )
        groups = optim.param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
        optimizer = kind(groups, lr=0.01)
        scheduler = schedulers.CosineLRScheduler(optimizer, t_initial=12, warmup_t=3, warmup_lr_init=1e-4)
        if resumes:
            saved = torch.load(folder / "half.pt", weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        for step in range(6 if resumes else 0, 6 if stops else 12):
            scheduler.step(step)
            inputs = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), torch.arange(4) % 3).backward()
            optimizer.step()
        assert len({group["lr"] for group in optimizer.param_groups}) == 4
        if stops:
            folder.mkdir()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "half.pt")
        return values(model)

    check(train, tmp_path)


class HostAlone:
    """PyTorch, for a module that copies between a device and the host, with the host as its device.

    Streams do at once what they are given.
    """

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty_like(self, tensor, pin_memory=False, **options):
        return torch.empty_like(tensor, **options)

    cuda = mock.MagicMock()


def test_torchao(monkeypatch):
    """Torchao's offload makes an optimizer for each parameter; the bits are those of one for all."""
    pytest.importorskip("torchao", reason="tox run -e frameworks installs torchao")
    offload = importlib.import_module("torchao.optim.cpu_offload")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        monkeypatch.setattr(offload, "torch", HostAlone())
        monkeypatch.setattr(offload, "get_available_devices", lambda: ["cuda"])

    def made(kind):
        model = Model().to(device)
        first, last = ([*model.layers[place].parameters()] for place in (0, 2))
        return model, kind([{"params": first, "lr": 0.02}, {"params": last}])

    def trained(model, optimizer, start, steps):
        for step in range(start, start + steps):
            batch = {name: EXAMPLES[step][name].to(device)[None] for name in ("x", "labels")}
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return [param.detach().cpu() for param in model.parameters()]

    def offloaded(groups):
        return offload.CPUOffloadOptimizer(groups, OURS, minimal_size=2, **WITH)

    expected = trained(*made(lambda groups: OURS(groups, **WITH)), 0, 8)
    model, optimizer = made(offloaded)
    trained(model, optimizer, 0, 4)
    saved = optimizer.state_dict()
    assert len(saved["offloaded"]) == 3 and len(optimizer.param_groups) == 4
    again, resumed = made(offloaded)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(saved)
    for param, host in resumed.param_d2h_map.items():
        host.copy_(param.detach())
    assert all(map(torch.equal, trained(again, resumed, 4, 4), trained(model, optimizer, 4, 4)))
    assert all(map(torch.equal, trained(model, optimizer, 8, 0), expected))
