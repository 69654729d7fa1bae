"""Tune a network on prepared data: solve or train, evaluate, keep the best, stop in time, survive interruption."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finesmith.errors import DataError, DivergenceError
from finesmith.guards.early_stopping import EarlyStopping
from finesmith.types import Split
from finesmith.workflows.embed import embeddings
from finesmith.workflows.heads import fit_head
from finesmith.workflows.inference import Predictor
from finesmith.workflows.signals import Stopped, Stopping

if TYPE_CHECKING:
    import torch

    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.adamw import Optimizer
    from finesmith.train.checkpoint import Checkpoint
    from finesmith.train.loop import Plan
    from finesmith.types import Batch
    from finesmith.workflows.prepare import Prepared
    from finesmith.workflows.setup import Setup


# For a head that is tuned on: weights so small that dropout and the first steps do not throw its logits about.
HEAD_L2 = (1e-2, 1e-1, 1.0)
HEAD_SPREAD = 0.3
BEST = Path("checkpoints") / "best"


@dataclass(slots=True)
class Fitted:
    """A tuned predictor and what happened: evaluations in order, the best step, and how long it took."""

    predictor: Predictor
    history: list[dict[str, Any]]
    best_step: int
    seconds: float
    stopped_early: bool = False


@dataclass(slots=True)
class _Session:
    """Everything that changes while training and that a checkpoint must hold.

    step: the last one done; due: it is to be evaluated and was not yet; saved: the step of the last checkpoint.
    """

    optimizer: Optimizer
    schedule: Any
    stopper: EarlyStopping
    history: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_steps: int = 0
    step: int = 0
    due: bool = False
    saved: int = 0
    best_seal: str = ""
    earlier: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds spent on training so far, those before an interruption included."""
        return self.earlier + time.perf_counter() - self.began


def fit(
    recipe: Recipe,
    run: Run,
    data: Prepared,
    setup: Setup,
    checkpoint: Checkpoint | None,
    *,
    begun: Callable[[], None] = lambda: None,
) -> Fitted:
    """Tune by the recipe's method, from `checkpoint` where there is one; `begun` is called after the first step.

    A first signal that asks to stop is followed when the step is done and saved, a second one at once.
    Raises DivergenceError on a loss or gradient that is not finite; what was saved before stays.
    """
    began = time.perf_counter()
    if recipe.method.name == "features" or checkpoint is not None:
        begun()
    if recipe.method.name == "features":
        return _features(run, data, setup, began)
    if recipe.method.name == "head_then_full" and checkpoint is None:
        solve_head(run, data, setup)
    plan, loss_sum = plan_of(recipe, data, setup), loss_of(data, setup)
    session = _open(recipe, setup, plan, checkpoint)
    session.began = began
    start = checkpoint.step if checkpoint else 0
    if checkpoint is not None:
        run.unmute(cast(int, checkpoint.state["events"]))
        if checkpoint.step == session.stopper.best_step:
            _keep_best(recipe, run, setup, session)
    stopped = session.stopper.exhausted and start < plan.steps
    if not stopped:
        with naming_rows(data.where):
            stopped = _train(recipe, run, data, setup, session, plan, loss_sum, begun)
    session.optimizer.zero_grad(set_to_none=True)
    _restore_best(run, setup, session)
    run.record("trained", best_step=session.stopper.best_step, steps=plan.steps, stopped_early=stopped)
    return Fitted(Predictor(setup.network), session.history, session.stopper.best_step, session.seconds, stopped)


def plan_of(recipe: Recipe, data: Prepared, setup: Setup) -> Plan:
    """Return the plan of training: a pure function of recipe and data."""
    from finesmith.data import batches
    from finesmith.train.loop import Plan

    t = recipe.train
    train, tokens = data.positions["train"], setup.tokens
    lengths = tokens.lengths()
    targets = targets_by_position(data, setup)
    per_epoch = batches.steps_per_epoch(len(train), t.batch_size)

    def make(step: int) -> tuple[Sequence[Batch], int]:
        chosen = train[batches.batch_positions(len(train), t.batch_size, seed=t.seed, step=step)]
        parts = batches.micro_batches(chosen, lengths, setup.micro_batch_size)
        ids = data.examples.ids
        device = setup.network.device
        return [batches.ragged(tokens, p, ids=ids, targets=targets, device=device) for p in parts], len(chosen)

    return Plan(max(1, round(per_epoch * setup.epochs)), per_epoch, make, t.max_grad_norm, t.seed)


def targets_by_position(data: Prepared, setup: Setup) -> torch.Tensor:
    """Return the training targets by position among all examples; other rows hold zeros and are never read."""
    import torch

    targets = data.task.tensor(data.targets["train"])
    whole = torch.zeros((len(setup.tokens), *targets.shape[1:]), dtype=targets.dtype)
    whole[torch.from_numpy(data.positions["train"])] = targets
    return whole


def loss_of(data: Prepared, setup: Setup) -> Callable[[Batch], tuple[torch.Tensor, int]]:
    """Return the function that sums the task's loss over a micro-batch."""
    import torch

    from finesmith.models import forward

    network, low = setup.network, setup.device.dtype == "bfloat16"

    def loss_sum(batch: Batch) -> tuple[torch.Tensor, int]:
        if batch.targets is None:
            raise ValueError("a training batch needs targets")
        with torch.autocast(network.device.type, torch.bfloat16, enabled=low):
            logits = forward.logits(network, batch)
        return data.task.loss(logits.float() if low else logits, batch.targets), len(batch.lengths)

    return loss_sum


def new_optimizer(recipe: Recipe, setup: Setup, learning_rate: float) -> Optimizer:
    """Return AdamW over what is trainable, with the recipe's decay and per-layer rates."""
    from finesmith.models.layers import depths
    from finesmith.train.adamw import AdamW
    from finesmith.train.optimiser import layer_scales, parameter_groups

    scales = None
    if recipe.method.layer_decay < 1:
        by_id = {id(p): n for n, p in setup.network.classifier.named_parameters()}
        inner = layer_scales(depths(setup.network.classifier), recipe.method.layer_decay)
        scales = {n: inner[by_id[id(p)]] for n, p in setup.network.module.named_parameters()}
    groups = parameter_groups(
        setup.network.module, learning_rate=learning_rate, weight_decay=recipe.train.weight_decay, scales=scales
    )
    return AdamW(groups)


def _open(recipe: Recipe, setup: Setup, plan: Plan, checkpoint: Checkpoint | None) -> _Session:
    """Return a session, fresh or exactly as the checkpoint left it."""
    import torch

    from finesmith.evaluate.metrics import HIGHER_IS_BETTER
    from finesmith.train.checkpoint import restore_optimizer
    from finesmith.train.optimiser import Schedule

    t, g = recipe.train, recipe.guards
    optimizer = new_optimizer(recipe, setup, setup.learning_rate)
    schedule = Schedule(t.schedule, plan.steps, round(t.warmup * plan.steps))
    stopper = EarlyStopping(g.patience if g.early_stopping else None, HIGHER_IS_BETTER[setup.metric])
    session = _Session(optimizer, schedule, stopper)
    if checkpoint is not None:
        named, state = _trainable(setup), cast(dict[str, Any], checkpoint.state)
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(checkpoint.tensors[f"model.{name}"])
        restore_optimizer(optimizer, named.items(), checkpoint.tensors, state["optimizer"])
        schedule.state.update({k: float(v) for k, v in state["schedule"].items()})
        stopper.restore(state["stopper"])
        session.history = list(state["history"])
        session.loss_sum, session.loss_steps = state["loss_sum"], state["loss_steps"]
        session.best_seal, session.earlier = state["best_seal"], state["seconds"]
        session.step, session.due, session.saved = checkpoint.step, state["due"], checkpoint.step
    return session


@contextmanager
def naming_rows(where: Sequence[str]) -> Iterator[None]:
    """Add the places of the examples to the message of a divergence."""
    try:
        yield
    except DivergenceError as error:
        places = ", ".join(where[i] for i in error.ids[:5])
        raise DivergenceError(f"{error}: {places}{' …' if len(error.ids) > 5 else ''}", error.ids) from None


def _trainable(setup: Setup) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in setup.network.module.named_parameters() if p.requires_grad}


def _train(
    recipe: Recipe,
    run: Run,
    data: Prepared,
    setup: Setup,
    session: _Session,
    plan: Plan,
    loss_sum: Callable[[Batch], tuple[torch.Tensor, int]],
    begun: Callable[[], None],
) -> bool:
    """Run the loop, evaluating, saving and stopping between its steps; return whether it stopped early."""
    from finesmith.train.loop import train

    every = max(1, round(plan.steps_per_epoch / setup.evaluations))
    stopping = Stopping(lambda number: _say_stopping(run, number))
    steps = train(setup.network.module, loss_sum, session.optimizer, session.schedule, plan, start=session.step)
    with stopping.listening(patience=1):
        try:
            if session.due and _between(recipe, run, data, setup, session, plan, stopping):
                return True
            saved = time.perf_counter()
            for step in steps:
                session.loss_sum, session.loss_steps = session.loss_sum + step.loss, session.loss_steps + 1
                session.step, session.due = step.step, step.step % every == 0 or step.step == plan.steps
                run.record("step", total=plan.steps, **asdict(step))
                if step.step == 1:
                    begun()
                stopping.here()
                if session.due and _between(recipe, run, data, setup, session, plan, stopping):
                    return True
                if session.saved == step.step:
                    saved = time.perf_counter()
                elif time.perf_counter() - saved > recipe.output.checkpoint_minutes * 60:
                    _save(recipe, run, setup, session)
                    saved = time.perf_counter()
                stopping.here()
        except Stopped as stop:
            if not stop.hurried and session.saved != session.step:
                _save(recipe, run, setup, session, recorded=False)
            raise
    return False


def _say_stopping(run: Run, number: int) -> None:
    again = "press Ctrl-C again to leave at once" if number == signal.SIGINT else "a second signal leaves at once"
    run.record_live("stopping", message=f"stopping: finishing the step and saving; {again}")


def _between(
    recipe: Recipe, run: Run, data: Prepared, setup: Setup, session: _Session, plan: Plan, stopping: Stopping
) -> bool:
    """Evaluate after a step, keep the best and save; return whether to stop early."""
    if _evaluate(run, data, setup, session, session.step / plan.steps_per_epoch, stopping):
        _keep_best(recipe, run, setup, session)
        run.record("best", step=session.step, value=session.stopper.best)
    stopper = session.stopper
    enough = stopper.exhausted and session.step < plan.steps
    if enough:
        message = f"no better {setup.metric} in {stopper.bad} evaluations; best at step {stopper.best_step}"
        run.record("early_stop", step=session.step, message=message)
    _save(recipe, run, setup, session)
    stopping.here()
    return enough


def _evaluate(run: Run, data: Prepared, setup: Setup, session: _Session, epoch: float, stopping: Stopping) -> bool:
    """Score the validation split, record it, tell schedule and stopper; return whether it is the best so far.

    It takes long, so it can be left: the checkpoint then says that it is still due.
    """
    targets, step = data.targets["validation"], session.step
    with stopping.at_once():
        outputs = data.task.outputs(Predictor(setup.network).logits(setup.tokens, data.positions["validation"]))
    loss, value = data.task.plain_loss(outputs, targets), _validation_score(data, setup, outputs)
    session.due = False
    entry = {
        "step": step,
        "epoch": epoch,
        "train_loss": session.loss_sum / max(1, session.loss_steps),
        "validation_loss": loss,
        "metric": setup.metric,
        "value": value,
    }
    session.loss_sum, session.loss_steps = 0.0, 0
    session.history.append(entry)
    run.record("evaluation", **entry)
    if session.schedule.observe(loss):
        run.record("note", message=f"validation loss is on a plateau; learning rate halved after step {step}")
    return session.stopper.observe(value, loss, step)


def _validation_score(data: Prepared, setup: Setup, outputs: Any) -> float:
    """Return the metric that selects, on validation.

    Raises DataError where it is undefined there.
    """
    targets = data.targets["validation"]
    value = data.task.scores(targets, outputs).get(setup.metric)
    if value is None:
        others = ", ".join(name for name in data.task.metrics if name != setup.metric)
        raise DataError(
            f"evaluate.metric is {setup.metric}, which is undefined on the {len(targets):,} validation rows (only one "
            f"class there, or all answers equal); choose another ({others}), or give validation more rows"
        )
    return value


def _keep_best(recipe: Recipe, run: Run, setup: Setup, session: _Session) -> None:
    """Keep the trainable weights as the best so far; their seal tells them from any others."""
    from finesmith.train import checkpoint

    tensors = {f"model.{name}": p.detach() for name, p in _trainable(setup).items()}
    # Each checkpoint that is kept may know another best, and none of them knows this one yet.
    keep = recipe.output.keep_checkpoints + 1
    step = session.step
    path = checkpoint.save(run.folder / BEST, step, tensors, {"step": step}, fingerprint={}, keep=keep)
    session.best_seal = checkpoint.seal(path)


def _save(recipe: Recipe, run: Run, setup: Setup, session: _Session, *, recorded: bool = True) -> None:
    """Publish a checkpoint with all that `_open` needs.

    One that only an interruption asked for is not recorded: the events of a run are those of one that never stopped.
    """
    from finesmith.train import checkpoint

    if recorded:
        run.record("checkpoint", step=session.step)
    named = _trainable(setup)
    tensors, optimizer = checkpoint.flatten_optimizer(session.optimizer, named.items())
    tensors = {**tensors, **{f"model.{name}": p.detach() for name, p in named.items()}}
    state = {
        "optimizer": optimizer,
        "schedule": session.schedule.state,
        "stopper": session.stopper.state(),
        "history": session.history,
        "loss_sum": session.loss_sum,
        "loss_steps": session.loss_steps,
        "due": session.due,
        "best_seal": session.best_seal,
        "seconds": session.seconds,
        "events": run.sync_events(),
    }
    best = session.stopper.best_step
    checkpoint.save(
        run.folder / "checkpoints",
        session.step,
        tensors,
        state,
        fingerprint=setup.fingerprint,
        keep=recipe.output.keep_checkpoints,
        # The best step's own checkpoint holds the weights itself.
        needs={f"best/step-{best:08d}": session.best_seal} if best not in {0, session.step} else {},
    )
    session.saved = session.step


def _restore_best(run: Run, setup: Setup, session: _Session) -> None:
    """Load the weights of the best evaluation."""
    import torch

    from finesmith.train import checkpoint

    places = {run.folder / BEST: session.best_seal, run.folder / BEST.parent: None}
    best = checkpoint.of_step(session.stopper.best_step, places)
    with torch.no_grad():
        for name, parameter in _trainable(setup).items():
            parameter.copy_(best.tensors[f"model.{name}"])


def _features(run: Run, data: Prepared, setup: Setup, began: float) -> Fitted:
    """Compute every embedding once, then solve a linear head on them."""
    import torch

    network, pooling = setup.network, setup.pooling
    embedded = embeddings(run, data, setup)
    run.record("note", message=f"embeddings {'taken from the cache' if embedded.cached else 'computed'}")
    features = torch.from_numpy(embedded.values)
    names: tuple[Split, ...] = ("train", "validation")
    parts = {name: features[torch.from_numpy(data.positions[name])] for name in names}
    task = data.task
    head = fit_head(data, parts)
    outputs = {name: task.outputs(head.logits(part).numpy()) for name, part in parts.items()}
    entry = {
        "step": 1,
        "epoch": 1.0,
        "train_loss": task.plain_loss(outputs["train"], data.targets["train"]),
        "validation_loss": task.plain_loss(outputs["validation"], data.targets["validation"]),
        "metric": setup.metric,
        "value": _validation_score(data, setup, outputs["validation"]),
    }
    run.record("evaluation", **entry)
    run.record("note", message=f"linear head solved; L2 penalty {head.l2:g} chosen on validation loss")
    seconds = time.perf_counter() - began + embedded.saved
    known = (setup.tokens, embedded.values)
    return Fitted(Predictor(network, head, pooling, known), [entry], 1, seconds)


def solve_head(run: Run, data: Prepared, setup: Setup) -> None:
    """Solve the head's last linear layer on frozen features and write it into the network (LP-FT).

    Kumar et al. 2022 (arXiv:2202.10054): a head that fits before the body moves distorts the features less.
    """
    import torch

    from finesmith.models import forward
    from finesmith.models.layers import capture_input, final_linear
    from finesmith.workflows.inference import run as run_network

    network, last = setup.network, final_linear(setup.network.classifier)

    def into_head(batch: Batch) -> torch.Tensor:
        with capture_input(last) as seen:
            forward.logits(network, batch)
        return seen[0]

    names: tuple[Split, ...] = ("train", "validation")
    parts = {
        name: torch.from_numpy(run_network(network, setup.tokens, data.positions[name], into_head)) for name in names
    }
    task = data.task
    head = fit_head(data, parts, bias=last.bias is not None, l2_grid=HEAD_L2, least_spread=HEAD_SPREAD)
    with torch.no_grad():
        last.weight.copy_(head.weight)
        if last.bias is not None:
            last.bias.copy_(head.bias)
    outputs = task.outputs(head.logits(parts["validation"]).numpy())
    value = _validation_score(data, setup, outputs)
    run.record("note", message=f"head solved on frozen features: validation {setup.metric} {value:.4f}")
