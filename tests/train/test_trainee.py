"""How a model is trained changes neither what it learns nor how it resumes: recomputed, compiled, in fp16, in micro-batches, averaged."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stmae_train.checkpoint import Trainee, load_weights, newest_checkpoint
from stmae_train.config import OptimConfig, Recipe, override
from stmae_train.distributed import compile_blocks, recompute_activations, start_world
from stmae_train.errors import CheckpointError, TrainingStopped
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.model import MaskedAutoencoder
from stmae_train.optim import WeightMean, parameter_groups, set_learning_rate
from stmae_train.pretrain import PretrainRequest, RunResult, pretrain
from stmae_train.runlog import Guard, LossScale, StepRecord, Update


@pytest.fixture
def request_(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> PretrainRequest:
    return PretrainRequest(
        small_world,
        ("tiny",),
        small_recipe,
        tmp_path / "run",
        checkpoint_every=1,
        log_every=1,
        device="cpu",
        pictures=0,
    )


def clips_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 4, 16, 16, generator=generator), torch.rand(count, 8, generator=generator)


def trainee_of(recipe: Recipe, *changes: str) -> tuple[Trainee, MaskedAutoencoder]:
    changed = override(recipe, list(changes))
    model = MaskedAutoencoder(changed.model, seed=1)
    groups = parameter_groups(model, weight_decay=0.05)
    trainee = Trainee(model, start_world("cpu"), changed.optim, groups=lambda: groups)
    set_learning_rate(trainee.optimizer, 1e-3)
    return trainee, model


def step(trainee: Trainee, clips: torch.Tensor, noise: torch.Tensor, *, parts: int = 1, number: int = 1) -> Update:
    losses = []
    for place, (few, drawn) in enumerate(zip(clips.chunk(parts), noise.chunk(parts), strict=True), start=1):
        with trainee.micro_batch(is_last=place == parts):
            with trainee.autocast():
                loss = trainee.wrapped(few, noise=drawn).loss
            trainee.backward(loss / parts)
        losses.append(loss)
    return trainee.update(step=number, losses=losses, clip_ids=("a", "b"))


def test_micro_batches_are_one_large_batch_within_a_millionth(small_recipe: Recipe) -> None:
    clips, noise = clips_of(8, seed=0)
    ends = []
    for parts in (1, 2, 4, 8):
        trainee, model = trainee_of(small_recipe, "optim.grad_clip=0.5")
        losses = []
        for place in range(0, 8, 8 // parts):
            loss = model(clips[place : place + 8 // parts], noise=noise[place : place + 8 // parts]).loss
            trainee.backward(loss / parts)
            losses.append(loss)
        # The gradients themselves: Adam would divide their rounding by itself.
        gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        update = trainee.update(step=1, losses=losses, clip_ids=())
        ends.append((float(update.loss), float(update.grad_norm), gradients))
    for loss, norm, gradients in ends[1:]:
        assert loss == pytest.approx(ends[0][0], abs=1e-6) and norm == pytest.approx(ends[0][1], abs=1e-6)
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, ends[0][2][name], rtol=0, atol=1e-6), name


def test_the_rate_follows_the_whole_batch_however_it_is_cut(small_recipe: Recipe) -> None:
    for rule in ("absolute", "per-256-videos", "per-256-clips"):
        config = OptimConfig(batch_videos=512, base_lr=1e-3, lr_rule=rule)  # type: ignore[arg-type]
        cut = replace(config, accumulate=8)
        assert cut.peak_lr(repeats=4) == config.peak_lr(repeats=4)
        assert replace(config, batch_videos=256).peak_lr(repeats=4) == config.peak_lr(repeats=4) * (
            1 if rule == "absolute" else 0.5
        )


def test_recomputed_activations_give_the_same_loss_and_gradients_and_keep_less(small_recipe: Recipe) -> None:
    clips, noise = clips_of(4, seed=0)
    found = []
    for recomputes in (False, True):
        model = MaskedAutoencoder(small_recipe.model, seed=1)
        if recomputes:
            recompute_activations(model)
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(clips, noise=noise).loss
        loss.backward()
        found.append((loss.item(), [each.grad for each in model.parameters()], kept, list(model.state_dict())))
    (loss, gradients, kept, names), (again, same, less, same_names) = found
    assert again == loss and names == same_names and less < kept / 2
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradients, same, strict=True))


def test_recomputed_drop_path_draws_the_same_again(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    changes = ["finetune.batch_videos=6", "finetune.epochs=1", "finetune.drop_path=0.5"]
    ends = []
    for name, extra in (("plain", []), ("recomputed", ["finetune.recompute_activations=true"])):
        recipe = override(small_recipe, [*changes, *extra])
        request = FinetuneRequest(
            small_world, "random", ("tiny",), "tiny:val", recipe, tmp_path / name, log_every=1, device="cpu"
        )
        metrics = finetune(request)
        ends.append((metrics, load_weights(tmp_path / name / "weights.safetensors").tensors))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(each, ends[1][1][name]) for name, each in ends[0][1].items())


# torch's compiler looks at gradients of its own example inputs.
LOOKS_AT_GRADIENTS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@LOOKS_AT_GRADIENTS
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.battery)])
def test_compiled_blocks_train_the_same_model(
    small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    honest = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: honest(function, backend=backend, **options))
    clips, noise = clips_of(4, seed=0)
    plain, _ = trainee_of(small_recipe)
    compiled, model = trainee_of(small_recipe, "optim.compile_blocks=true", "optim.recompute_activations=true")
    ours, theirs = step(plain, clips, noise), step(compiled, clips, noise)
    assert compiled.facts()["compiled"] is True and compiled.facts()["compile_failure"] is None
    assert float(ours.loss) == pytest.approx(float(theirs.loss), rel=1e-5)
    assert list(model.state_dict()) == list(plain.model.state_dict())
    assert float(ours.grad_norm) == pytest.approx(float(theirs.grad_norm), rel=1e-4)


@LOOKS_AT_GRADIENTS
def test_where_nothing_can_be_compiled_a_warning_says_so_and_training_goes_on(
    small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("no compiler on this machine")

    honest = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: honest(function, backend=broken))
    clips, noise = clips_of(4, seed=0)
    plain = MaskedAutoencoder(small_recipe.model, seed=1)
    model = MaskedAutoencoder(small_recipe.model, seed=1)
    state = compile_blocks(model)
    with caplog.at_level(logging.WARNING, logger="stmae.train"):
        assert torch.equal(model(clips, noise=noise).loss, plain(clips, noise=noise).loss)
    assert state.failure is not None
    (message,) = [each.getMessage() for each in caplog.records if "torch.compile" in each.getMessage()]
    assert "no compiler on this machine" in message and "compile_blocks=false" in message


def test_fp16_trains_resumes_to_the_bit_and_keeps_its_scale(request_: PretrainRequest) -> None:
    request = replace(request_, recipe=override(request_.recipe, ["optim.precision=fp16"]))
    straight = pretrain(request)
    first, *_, last = [json.loads(line)["loss"] for line in (straight.run_dir / "log.jsonl").read_text().splitlines()]
    assert last < first
    stopped = replace(request, run_dir=request.run_dir.with_name("stopped"))
    again = stop_and_resume(stopped, 4)
    assert again.weights.read_bytes() == straight.weights.read_bytes()
    found = newest_checkpoint(straight.run_dir / "checkpoints")
    assert found is not None and found.state["loss_scale"] == {"value": 65536.0, "good_steps": 10}


def stop_and_resume(request: PretrainRequest, last_step: int) -> RunResult:
    def watch(record: StepRecord) -> None:
        if record.step == last_step:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        pretrain(request, watch=watch)
    return pretrain(replace(request, resume=True))


def test_an_overflow_in_fp16_halves_the_scale_and_is_no_bad_step(small_recipe: Recipe) -> None:
    trainee, model = trainee_of(small_recipe, "optim.precision=fp16")
    assert trainee.scale is not None
    before = {name: each.clone() for name, each in model.state_dict().items()}
    clips, noise = clips_of(2, seed=0)
    trainee.scale.value = torch.tensor(2.0**127)
    guard = Guard()
    for number in range(1, 5):  # more in a row than a run may have that are really bad
        update = step(trainee, clips, noise, number=number)
        guard.add(update)
        assert not bool(update.is_finite) and float(trainee.scale.value) == 2.0 ** (127 - number)
    assert guard.skipped == [] and all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    trainee.scale.value = torch.tensor(2.0**16)
    guard.add(step(trainee, clips, noise, number=5))
    assert any(not torch.equal(before[name], each) for name, each in model.state_dict().items())
    for number in (6, 7):
        guard.add(step(trainee, clips * float("nan"), noise, number=number))
    assert guard.skipped == [6, 7]  # a loss that is not finite is bad at any scale
    with pytest.raises(TrainingStopped, match="3 updates"):
        guard.add(step(trainee, clips * float("nan"), noise, number=8))


def test_a_scale_grows_after_many_good_steps_and_never_falls_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stmae_train.runlog.scaling.GROWS_AFTER", 3)
    scale = LossScale(torch.device("cpu"))
    good, bad = torch.tensor(True), torch.tensor(False)
    for _ in range(3):
        scale.settle(good)
    assert scale.state() == {"value": 2.0**17, "good_steps": 0}
    for _ in range(40):
        scale.settle(bad)
    assert scale.state() == {"value": 1.0, "good_steps": 0}


def test_the_mean_of_weights_is_its_formula_and_skips_what_is_skipped() -> None:
    model = torch.nn.Linear(2, 1)
    mean = WeightMean(model, decay=0.75)
    wanted = model.weight.detach().clone()
    for is_used in (True, False, True):
        with torch.no_grad():
            model.weight += 1
        mean.add(torch.tensor(is_used))
        if is_used:
            wanted = 0.75 * wanted + 0.25 * model.weight.detach()
    assert torch.allclose(mean.tensors()["weight"], wanted, atol=1e-6)


def test_mean_weights_are_saved_beside_the_weights_and_resume_to_the_bit(request_: PretrainRequest) -> None:
    request = replace(request_, recipe=override(request_.recipe, ["optim.ema_decay=0.9"]))
    straight = pretrain(request)
    averaged = straight.weights.with_name("weights-ema.safetensors")
    mean, last = load_weights(averaged), load_weights(straight.weights)
    assert list(mean.tensors) == list(last.tensors) and mean.metadata["ema_decay"] == "0.9"
    name = "encoder.blocks.0.mlp.fc1.weight"
    assert not torch.equal(mean.tensors[name], last.tensors[name])
    plain = pretrain(replace(request_, run_dir=request_.run_dir.with_name("plain")))
    without = load_weights(plain.weights).tensors  # averaging changes nothing of what is averaged
    assert all(torch.equal(each, without[name]) for name, each in last.tensors.items())
    assert not plain.weights.with_name("weights-ema.safetensors").exists()
    again = stop_and_resume(replace(request, run_dir=request.run_dir.with_name("stopped")), 6)
    assert again.weights.with_name("weights-ema.safetensors").read_bytes() == averaged.read_bytes()


def test_a_checkpoint_without_the_mean_is_refused_where_one_is_wanted(request_: PretrainRequest) -> None:
    trainee, _ = trainee_of(request_.recipe, "optim.ema_decay=0.9")
    pretrain(request_)
    found = newest_checkpoint(request_.run_dir / "checkpoints")
    assert found is not None
    with pytest.raises(CheckpointError, match=r"holds no running mean of the weights, but ema_decay is 0\.9"):
        trainee.restore(found, where="Checkpoint 10")


def test_fine_tuning_with_a_mean_scores_the_mean(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    changes = ["finetune.batch_videos=6", "finetune.epochs=1", "finetune.ema_decay=0.5", "finetune.accumulate=3"]
    request = FinetuneRequest(
        small_world, "random", ("tiny",), "tiny:val", override(small_recipe, changes), tmp_path / "run", device="cpu"
    )
    metrics = finetune(request)
    assert metrics["weights"] == "weights-ema.safetensors"
    assert (tmp_path / "run" / "weights.safetensors").is_file() and (tmp_path / "run" / metrics["weights"]).is_file()
    execution = json.loads((tmp_path / "run" / "run.json").read_text())["execution"]
    assert execution["ema_decay"] == 0.5 and execution["sharding"] is None
