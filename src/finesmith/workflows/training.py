"""Train, evaluate, keep the best, stop in time, survive interruption: what every task has in common."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finesmith.errors import DivergenceError
from finesmith.guards.early_stopping import EarlyStopping
from finesmith.workflows.signals import Stopped, Stopping

if TYPE_CHECKING:
    import torch

    from finesmith.models.forward import Network
    from finesmith.recipe import Recipe
    from finesmith.run import Run
    from finesmith.train.adamw import Optimizer
    from finesmith.train.checkpoint import Checkpoint
    from finesmith.train.loop import Plan
    from finesmith.types import Batch

BEST = Path("checkpoints") / "best"


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained and by what it is chosen.

    score: returns the loss and `metric` of the network on validation; fingerprint: what must be the same for a resume;
    where: the place of each example's id, for messages.
    """

    network: Network
    plan: Plan
    loss_sum: Callable[[Batch], tuple[torch.Tensor, int]]
    score: Callable[[], tuple[float, float]]
    metric: str
    learning_rate: float
    evaluations: int
    fingerprint: Mapping[str, str]
    where: Sequence[str]


@dataclass(slots=True)
class Trained:
    """What happened in training: evaluations in order, the best step, and how long it took; the best weights are in."""

    history: list[dict[str, Any]]
    best_step: int
    seconds: float
    stopped_early: bool


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


def train_job(
    recipe: Recipe, run: Run, job: Job, checkpoint: Checkpoint | None, began: float, begun: Callable[[Optimizer], None]
) -> Trained:
    """Train from `checkpoint`, or from the start; `began`: when this sitting did; `begun` is called after a first step,
    whose gradients are still there; it leaves weights and optimiser as they are.

    A first signal that asks to stop is followed when the step is done and saved, a second one at once.
    Raises DivergenceError on a loss or gradient that is not finite; what was saved before stays.
    """
    session = _open(recipe, job, checkpoint)
    session.began = began
    start = checkpoint.step if checkpoint else 0
    if checkpoint is not None:
        run.unmute(cast(int, checkpoint.state["events"]))
        if checkpoint.step == session.stopper.best_step:
            _keep_best(recipe, run, job, session)
    stopped = session.stopper.exhausted and start < job.plan.steps
    if not stopped:
        with naming_rows(job.where):
            stopped = _train(recipe, run, job, session, begun)
    session.optimizer.zero_grad(set_to_none=True)
    _restore_best(run, job, session)
    run.record("trained", best_step=session.stopper.best_step, steps=job.plan.steps, stopped_early=stopped)
    return Trained(session.history, session.stopper.best_step, session.seconds, stopped)


def new_optimizer(recipe: Recipe, network: Network, learning_rate: float) -> Optimizer:
    """Return AdamW over what is trainable, with the recipe's decay and per-layer rates."""
    from finesmith.models.layers import depths
    from finesmith.train.adamw import AdamW
    from finesmith.train.optimiser import layer_scales, parameter_groups

    scales = None
    if recipe.method.layer_decay < 1:
        by_id = {id(p): n for n, p in network.classifier.named_parameters()}
        inner = layer_scales(depths(network.classifier), recipe.method.layer_decay)
        scales = {n: inner[by_id[id(p)]] for n, p in network.module.named_parameters()}
    groups = parameter_groups(
        network.module, learning_rate=learning_rate, weight_decay=recipe.train.weight_decay, scales=scales
    )
    return AdamW(groups)


def _open(recipe: Recipe, job: Job, checkpoint: Checkpoint | None) -> _Session:
    """Return a session, fresh or exactly as the checkpoint left it."""
    import torch

    from finesmith.evaluate.metrics import HIGHER_IS_BETTER
    from finesmith.train.checkpoint import restore_optimizer
    from finesmith.train.optimiser import Schedule

    t, g = recipe.train, recipe.guards
    optimizer = new_optimizer(recipe, job.network, job.learning_rate)
    schedule = Schedule(t.schedule, job.plan.steps, round(t.warmup * job.plan.steps))
    stopper = EarlyStopping(g.patience if g.early_stopping else None, HIGHER_IS_BETTER[job.metric])
    session = _Session(optimizer, schedule, stopper)
    if checkpoint is not None:
        named, state = _trainable(job), cast(dict[str, Any], checkpoint.state)
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


def _trainable(job: Job) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in job.network.module.named_parameters() if p.requires_grad}


def _train(
    recipe: Recipe,
    run: Run,
    job: Job,
    session: _Session,
    begun: Callable[[Optimizer], None],
) -> bool:
    """Run the loop, evaluating, saving and stopping between its steps; return whether it stopped early."""
    from finesmith.train.loop import train

    every = max(1, round(job.plan.steps_per_epoch / job.evaluations))
    stopping = Stopping(lambda number: _say_stopping(run, number))
    steps = train(job.network.module, job.loss_sum, session.optimizer, session.schedule, job.plan, start=session.step)
    with stopping.listening(patience=1):
        try:
            if session.due and _between(recipe, run, job, session, stopping):
                return True
            saved = time.perf_counter()
            for step in steps:
                session.loss_sum, session.loss_steps = session.loss_sum + step.loss, session.loss_steps + 1
                session.step, session.due = step.step, step.step % every == 0 or step.step == job.plan.steps
                run.record("step", total=job.plan.steps, **asdict(step))
                if step.step == 1:
                    begun(session.optimizer)
                stopping.here()
                if session.due and _between(recipe, run, job, session, stopping):
                    return True
                if session.saved == step.step:
                    saved = time.perf_counter()
                elif time.perf_counter() - saved > recipe.output.checkpoint_minutes * 60:
                    _save(recipe, run, job, session)
                    saved = time.perf_counter()
                stopping.here()
        except Stopped as stop:
            if not stop.hurried and session.saved != session.step:
                _save(recipe, run, job, session, recorded=False)
            raise
    return False


def _say_stopping(run: Run, number: int) -> None:
    again = "press Ctrl-C again to leave at once" if number == signal.SIGINT else "a second signal leaves at once"
    run.record_live("stopping", message=f"stopping: finishing the step and saving; {again}")


def _between(recipe: Recipe, run: Run, job: Job, session: _Session, stopping: Stopping) -> bool:
    """Evaluate after a step, keep the best and save; return whether to stop early."""
    if _evaluate(run, job, session, stopping):
        _keep_best(recipe, run, job, session)
        run.record("best", step=session.step, value=session.stopper.best)
    stopper = session.stopper
    enough = stopper.exhausted and session.step < job.plan.steps
    if enough:
        message = f"no better {job.metric} in {stopper.bad} evaluations; best at step {stopper.best_step}"
        run.record("early_stop", step=session.step, message=message)
    _save(recipe, run, job, session)
    stopping.here()
    return enough


def _evaluate(run: Run, job: Job, session: _Session, stopping: Stopping) -> bool:
    """Score the validation split, record it, tell schedule and stopper; return whether it is the best so far.

    It takes long, so it can be left: the checkpoint then says that it is still due.
    """
    step = session.step
    with stopping.at_once():
        loss, value = job.score()
    session.due = False
    entry = {
        "step": step,
        "epoch": step / job.plan.steps_per_epoch,
        "train_loss": session.loss_sum / max(1, session.loss_steps),
        "validation_loss": loss,
        "metric": job.metric,
        "value": value,
    }
    session.loss_sum, session.loss_steps = 0.0, 0
    session.history.append(entry)
    run.record("evaluation", **entry)
    if session.schedule.observe(loss):
        run.record("note", message=f"validation loss is on a plateau; learning rate halved after step {step}")
    return session.stopper.observe(value, loss, step)


def _keep_best(recipe: Recipe, run: Run, job: Job, session: _Session) -> None:
    """Keep the trainable weights as the best so far; their seal tells them from any others."""
    from finesmith.train import checkpoint

    tensors = {f"model.{name}": p.detach() for name, p in _trainable(job).items()}
    # Each checkpoint that is kept may know another best, and none of them knows this one yet.
    keep = recipe.output.keep_checkpoints + 1
    step = session.step
    path = checkpoint.save(run.folder / BEST, step, tensors, {"step": step}, fingerprint={}, keep=keep)
    session.best_seal = checkpoint.seal(path)


def _save(recipe: Recipe, run: Run, job: Job, session: _Session, *, recorded: bool = True) -> None:
    """Publish a checkpoint with all that `_open` needs.

    One that only an interruption asked for is not recorded: the events of a run are those of one that never stopped.
    """
    from finesmith.train import checkpoint

    if recorded:
        run.record("checkpoint", step=session.step)
    named = _trainable(job)
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
        fingerprint=job.fingerprint,
        keep=recipe.output.keep_checkpoints,
        # The best step's own checkpoint holds the weights itself.
        needs={f"best/step-{best:08d}": session.best_seal} if best not in {0, session.step} else {},
    )
    session.saved = session.step


def _restore_best(run: Run, job: Job, session: _Session) -> None:
    """Load the weights of the best evaluation."""
    import torch

    from finesmith.train import checkpoint

    places = {run.folder / BEST: session.best_seal, run.folder / BEST.parent: None}
    best = checkpoint.of_step(session.stopper.best_step, places)
    with torch.no_grad():
        for name, parameter in _trainable(job).items():
            parameter.copy_(best.tensors[f"model.{name}"])


def find_rate(
    recipe: Recipe,
    run: Run,
    network: Network,
    loss_sum: Callable[[Batch], tuple[torch.Tensor, int]],
    around: float,
    plan: Plan,
) -> tuple[float, str]:
    """Run the learning-rate range test; return its suggestion and the reason."""
    from finesmith.train.lr_range import range_test

    found = range_test(network.module, loss_sum, new_optimizer(recipe, network, around), plan)
    run.record("lr_range", learning_rates=found.learning_rates, losses=found.losses, suggestion=found.suggestion)
    return found.suggestion, "the range test's suggestion: a third of the rate where the loss was lowest"
