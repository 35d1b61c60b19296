"""Tests mirror the tree: each module with functions has a test file of its name, or is listed here with its tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TESTED_IN: dict[str, str] = {  # test file -> modules, without .py; several test one contract, or one command
    "arena/test_arena.py": """
        arena/arms arena/config arena/page arena/running arena/scores arena/table cli/arena commands/arena
    """,
    "arena/test_tables.py": "arena/per_task",
    "attacks/test_attacks.py": "io/reading io/strict_json",
    "calibration/test_walking.py": """
        calibration/adaround calibration/batches calibration/following calibration/nearest calibration/parts
        calibration/shell calibration/table calibration/unit calibration/walk
    """,
    "calibration/test_bit_split.py": "calibration/moments",
    "cli/test_cli.py": """
        cli/compare cli/dashboard cli/entry cli/experiment cli/export cli/import_ cli/online cli/output cli/parser
        cli/show cli/train cli/tune
    """,
    "commands/test_check.py": "cli/check",
    "commands/test_portfolio.py": "cli/play cli/portfolio commands/play",
    "commands/test_confirming.py": "evaluation/confirm meta/config",
    "config/test_ignored.py": "config/retired",
    "config/test_load.py": """
        config/explaining config/fields config/schema config/writing core/field_types methods/config tasks/config
    """,
    "contrib/kernels/test_transition.py": "contrib/kernels/coefficients contrib/packing",
    "contrib/kernels/test_triton.py": "contrib/kernels/gated_xnor_triton contrib/kernels/transition_triton",
    "core/test_rows.py": "core/lazy estimators/table models/table search/table tasks/table training/optimizers/table",
    "deploy/test_deploy.py": "cli/deploy commands/deploy deploy/files",
    "deploy/test_deployed_reading.py": "contrib/deployed_reading contrib/deployed_shapes",
    "deploy/test_flow.py": "deploy/operations",
    "deploy/test_integer.py": "deploy/agreement deploy/assembling deploy/folding deploy/layers deploy/pooling "
    "deploy/simulator deploy/stages",
    "deploy/test_onnx.py": "deploy/onnx_export",
    "e2e/test_mistakes.py": "cli/run_folders",
    "e2e/test_resume_others.py": "commands/compare commands/tune",
    "e2e/test_sensitivity.py": "cli/sensitivity commands/sensitivity",
    "e2e/test_signals.py": "cli/signals",
    "e2e/test_torchrun.py": "runs/ranks",
    "engines/test_gate.py": "engines/finite_differences",
    "engines/test_quadratic.py": "engines/base engines/higher_unroll engines/unroll",
    "engines/test_sweep.py": "engines/replay",
    "estimators/test_auto.py": "estimators/verdict",
    "estimators/test_contract.py": "estimators/base estimators/reverse",
    "estimators/test_es.py": "estimators/perturbation estimators/smoothed",
    "estimators/test_forward.py": "engines/tangent",
    "estimators/test_guided.py": "estimators/agreement",
    "estimators/test_pes.py": "estimators/nres estimators/particles",
    "evaluation/test_compare.py": "evaluation/comparison evaluation/contenders runs/cells",
    "evaluation/test_floors.py": "evaluation/config evaluation/rates evaluation/tuned_rate",
    "evaluation/test_report.py": """
        evaluation/charts evaluation/figures evaluation/look evaluation/page
    """,
    "exchange/test_quantlab.py": """
        commands/export exchange/quantlab/controllers exchange/quantlab/exporting exchange/quantlab/importing
    """,
    "exchange/test_form.py": "exchange/extras",
    "exchange/test_played.py": "training/features",
    "exchange/test_schedule_file.py": "exchange/export exchange/fields exchange/format exchange/summary",
    "commands/test_train_many.py": "commands/judging_many evaluation/over_tasks families/survey",
    "search/test_surface.py": "arena/proposing cli/propose commands/propose",
    "families/test_family.py": "families/config",
    "integrations/test_brevitas.py": "exchange/integrations/brevitas exchange/integrations/parts",
    "integrations/test_function.py": "exchange/integrations/driven exchange/integrations/function",
    "integrations/test_huggingface.py": "exchange/integrations/huggingface",
    "integrations/test_lightning.py": "exchange/integrations/lightning",
    "integrations/test_stepping.py": "exchange/integrations/stepping",
    "integrations/test_torchao.py": "exchange/integrations/torchao",
    "io/test_files.py": "io/atomic io/environment io/json_lines io/json_text io/lock io/run_folder",
    "methods/test_inq.py": "methods/masks",
    "methods/test_pruning.py": "schedules/pruning",
    "methods/test_quant_noise.py": "schedules/noising",
    "methods/test_admm.py": "schedules/admm",
    "methods/test_rounding.py": "schedules/rounding",
    "methods/test_dpq.py": "schedules/dpq",
    "methods/test_bayesian_bits.py": "network/costs schedules/bayesian_bits",
    "methods/test_adaround.py": "schedules/adaround",
    "meta/test_online.py": "commands/online",
    "commands/test_show.py": "evaluation/drawing",
    "commands/test_train.py": "commands/exporting",
    "methods/test_contract.py": "methods/base methods/ste",
    "methods/test_joint.py": "methods/modifier",
    "methods/test_rates.py": "schedules/rates",
    "methods/test_discrete.py": "methods/gxnor methods/metropolis",
    "methods/test_outside.py": "methods/spec methods/parameters methods/table",
    "methods/test_held.py": "schedules/freezing",
    "methods/test_widths.py": "quantizers/surrogate schedules/widths",
    "methods/test_temperature.py": "quantizers/softmax schedules/tempering",
    "methods/test_trainable.py": "methods/tensors",
    "models/test_models.py": """
        models/convnet models/cutie models/lenet models/mlp models/resnet models/resnet9 models/vanilla_cnn models/vgg16
        models/vgg7 models/vgg8
    """,
    "network/test_own_loops.py": "network/identity network/recomputing network/starts",
    "deploy/test_converted.py": "deploy/writing",
    "network/test_convert_functions.py": "network/exported network/graphs network/inputs",
    "network/test_convert.py": "network/plain network/staircase",
    "network/test_prepare.py": """
        network/damping network/fitting network/hosting network/playing network/sharding network/thawing
    """,
    "network/test_quantize.py": "core/layer network/flat network/quantized network/updating",
    "network/test_inspect.py": "cli/inspect commands/inspect network/operations",
    "network/test_layers.py": "methods/oriented network/kinds network/weights",
    "network/test_recipe.py": "network/choice network/config",
    "network/test_sites.py": "network/choosing network/flow network/tracing",
    "network/test_uses.py": "network/redirecting",
    "quantizers/test_stair.py": "quantizers/constants quantizers/hard quantizers/noise quantizers/straight",
    "runs/test_pool.py": "runs/pooled",
    "runs/test_cluster.py": "runs/by_value runs/where",
    "schedules/test_family.py": "schedules/learnable schedules/space",
    "schedules/test_published.py": "schedules/base schedules/table",
    "methods/test_clip.py": "quantizers/clip",
    "search/test_tuning.py": "search/population search/searchers",
    "search/bits/test_searches.py": """
        search/bits/blind search/bits/ddpg search/bits/greedy search/bits/haq search/bits/knapsack search/bits/problem
        search/bits/table
    """,
    "search/bits/test_allocate.py": "search/bits/rounding",
    "commands/test_allocate.py": "cli/allocate",
    "study/test_study.py": """
        study/comparing study/evolving study/helping study/judging study/learners study/learning
        study/optimizing study/playing study/population study/schedules study/searching study/setup study/storage
        study/trying study/work
    """,
    "commands/test_calibrate.py": "cli/calibrate",
    "tasks/test_digits.py": "tasks/build tasks/classification",
    "tasks/test_batches.py": "tasks/base tasks/supervised",
    "tasks/test_tabular.py": "tasks/csv_table",
    "tasks/test_own_task.py": "api commands/folders core/imports tasks/check tasks/data tasks/fingerprint tasks/live",
    "tracking/test_trackers.py": "tracking/metrics tracking/opening tracking/tracker",
    "tracking/test_wandb.py": "tracking/wandb_tracker",
    "training/test_twice.py": "training/twice_norm",
    "training/optimizers/test_groups.py": "training/optimizers/clipping",
    "training/optimizers/test_outside.py": """
        training/optimizers/base training/optimizers/check training/optimizers/config
    """,
    "training/optimizers/test_rules.py": """
        training/optimizers/adam training/optimizers/adamw training/optimizers/recipe training/optimizers/sgd
    """,
    "training/test_finite.py": "training/faults",
    "training/test_step.py": "training/loss training/state",
    "training/test_stacked.py": "runs/local training/stacked_norm",
}


def has_functions(path: Path) -> bool:
    """Whether there is anything in a file to test."""
    return any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(path.read_text("utf-8"))))


def without_a_test_file() -> set[str]:
    package = ROOT / "metasched"
    paths = [p for p in package.rglob("*.py") if p.name not in ("__init__.py", "__main__.py") and has_functions(p)]
    modules = [p.relative_to(package).with_suffix("") for p in paths]
    return {m.as_posix() for m in modules if not (ROOT / "tests" / m.parent / f"test_{m.name}.py").is_file()}


def test_each_module_has_a_test_file_of_its_name_or_is_listed_with_its_tests() -> None:
    listed = [module for modules in TESTED_IN.values() for module in modules.split()]
    assert len(listed) == len({*listed})
    assert without_a_test_file() - {*listed} == set(), "give it tests/<its folder>/test_<its name>.py"
    assert {*listed} - without_a_test_file() == set(), "is gone, or has a test file: take it out of the list"


@pytest.mark.parametrize("path", TESTED_IN)
def test_the_listed_tests_are_there(path: str) -> None:
    assert "def test_" in (ROOT / "tests" / path).read_text("utf-8")
