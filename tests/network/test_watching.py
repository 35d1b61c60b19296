"""What is said where a module and its player are used at odds, and that all else says nothing: warnings are errors."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from metasched import MetaschedWarning, MethodConfig, convert, prepare
from metasched.network.playing import Player

X = torch.linspace(-2, 2, 32).reshape(8, 4).sin()
NEVER = r"^player\.step\(\) has not been called, and the weights have changed 100 times: call it after each optimizer"
Run = tuple[nn.Module, Player, torch.optim.Optimizer]


def made(schedule: str | None = "inq_linear", total: int = 20, **method: Any) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    module, player = prepare(model, MethodConfig(**({"name": "inq"} | method)), X, schedule, total)
    return module, player, torch.optim.SGD(module.parameters(), 0.01)


def moved(run: Run, times: int = 1, *, steps: int = 0) -> None:
    """Trains for some steps of the optimizer, each with ``steps`` calls of the player."""
    module, player, optimizer = run
    for _ in range(times):
        optimizer.zero_grad()
        module(X).square().mean().backward()
        optimizer.step()
        for _ in range(steps):
            player.step()


def said(action: Callable[[], object], match: str) -> None:
    """The action warns once, in one line."""
    with pytest.warns(MetaschedWarning, match=match) as found:
        action()
    assert len(found) == 1 and "\n" not in str(found[0].message)


def test_a_player_that_is_never_called_is_said_in_training_once() -> None:
    run = made()
    moved(run, 100)
    said(lambda: moved(run), NEVER)
    moved(run, 220)
    moved(run, steps=1)


def test_a_player_that_is_never_called_is_said_at_convert() -> None:
    run = made()
    moved(run, 3)
    said(lambda: convert(run[0]), r"^player\.step\(\) was not called before convert, though the weights were trained")
    convert(run[0])


def test_learned_scales_without_a_schedule_need_their_player_too() -> None:
    run = made(None, name="ste", scale="learned")
    moved(run, 2)
    said(lambda: convert(run[0]), r"^player\.step\(\) was not called before convert")


def test_steps_without_a_pass_between_are_said() -> None:
    run = made()
    moved(run, 4, steps=2)
    what = (
        r"^player\.step\(\) was called 10 times, 5 of them without a pass in training mode .*; the schedule runs ahead"
    )
    said(lambda: moved(run, steps=2), what)
    moved(run, 4, steps=2)


def test_training_in_eval_mode_is_said() -> None:
    run = made()
    run[0].eval()
    moved(run, 4, steps=1)
    said(lambda: moved(run, steps=1), r"5 of them without a pass in training mode")


@pytest.mark.parametrize("total", [1, 4])
def test_a_run_of_more_than_twice_its_length_is_said(total: int) -> None:
    run = made(total=total)
    moved(run, 2 * total, steps=1)
    said(lambda: moved(run, steps=1), rf"was called {2 * total + 1} times, more than twice total_steps={total}, where")
    moved(run, 2 * total, steps=1)


def test_a_conversion_before_half_of_the_schedule_is_said() -> None:
    run = made()
    moved(run, 9, steps=1)
    said(
        lambda: convert(run[0]),
        r"^player\.step\(\) was called 9 times of total_steps=20 before convert, which hardens",
    )
    moved(run, steps=1)
    convert(run[0])


def test_a_conversion_after_half_of_it_says_nothing() -> None:
    run = made()
    moved(run, 10, steps=1)
    convert(run[0])


def test_accumulated_gradients_say_nothing() -> None:
    run = made()
    module, player, optimizer = run
    for _ in range(2):
        for _ in range(150):
            module(X).square().mean().backward()
        optimizer.step()
        player.step()


def test_many_closures_of_lbfgs_in_the_first_step_say_nothing() -> None:
    module, player, _ = made("ana_cosine", name="ana")  # its noise keeps LBFGS from an early end
    optimizer, evaluations = torch.optim.LBFGS(module.parameters(), 1e-3, max_iter=150, tolerance_change=0), []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = module(X).square().mean() + 1e-3 * len(evaluations)
        evaluations.append(loss)
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    assert len(evaluations) > 110
    player.step()


def test_sam_passes_for_logs_evaluation_and_skipped_steps_say_nothing() -> None:
    run = made()
    module, player, optimizer = run
    for step in range(20):
        module(X).square().mean().backward()
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.01)  # SAM goes up, and comes back
        module(X).square().mean().backward()
        with torch.no_grad():
            for p in module.parameters():
                p.sub_(0.01)
            module(X)
            module.eval()(X)
        module.train()
        if step % 3:  # what a GradScaler leaves out
            optimizer.step()
        optimizer.zero_grad()
        player.step()
    convert(module)


def test_a_player_that_lists_its_values_says_nothing() -> None:
    _, player, _ = made()
    for _ in range(20):
        player.step()


def test_a_module_that_some_steps_leave_out_says_nothing() -> None:
    run = made()
    for _ in range(10):
        moved(run, steps=1)
        moved(run, steps=1)
        run[1].step()  # the batch was for another module


def test_a_resumed_and_longer_run_says_nothing() -> None:
    run = made(total=4)
    moved(run, 4, steps=1)
    states = run[0].state_dict(), run[1].state_dict()
    for total in (4, 8, 1):
        again = made(total=total)
        again[0].load_state_dict(states[0])
        again[1].load_state_dict({**states[1], "step": 4 * total})
        moved(again, 3, steps=1)
        convert(again[0])
    only_weights = made()
    moved(only_weights)
    only_weights[0].load_state_dict(states[0])
    convert(only_weights[0])  # trained elsewhere


def test_without_a_schedule_and_an_update_nothing_is_needed() -> None:
    run = made(None, total=1, name="ste")
    moved(run, 120)
    moved(run, 20, steps=1)
    run[1].step()
    convert(run[0])


def test_a_network_that_is_not_trained_says_nothing() -> None:
    module, *_ = made()
    for _ in range(3):  # for the gradients alone
        module(X).square().mean().backward()
    convert(module)


def test_copies_that_others_have_trained_say_nothing() -> None:
    run = made()
    averaged = AveragedModel(run[0])
    moved(run, 5, steps=1)
    averaged.update_parameters(run[0])
    for copied in (averaged, copy.deepcopy(run[0]), pickle.loads(pickle.dumps(run[0]))):
        convert(copied)
    module, player = copy.deepcopy(run[:2])
    moved((module, player, torch.optim.SGD(module.parameters(), 0.01)), steps=1)
    said(lambda: convert(module), "was called 6 times of total_steps=20 before convert")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_passes_of_a_compiled_module_are_seen() -> None:
    module, player, optimizer = made(live="hard")
    compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
    for _ in range(6):
        compiled(X).square().mean().backward()
        optimizer.step()
        player.step()
    assert player._watch._idle == 0


def test_the_class_leaves_them_out() -> None:
    run = made()
    moved(run, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetaschedWarning)
        convert(run[0])
