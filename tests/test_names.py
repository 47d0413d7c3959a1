"""Names: those that were given up stay away, and one public name does not mean two things."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "grokkit"

GIVEN_UP = """
Absent AttributionPlan Bill Costs ENDS FRUITLESS Full Guarded Job Lane Lines Live Observer Pace Part Purse Reach
Recording Replica Silent Slot Slots Stopped Study TOLD Team Verdict _Torchrun _beside _lend _note_decisions _one
adjusted agreed asked_for begin bends beyond_budget borrowed captured changed checked_clip child chosen company
described dotted evaluated facts_of follow hear heard hold how_to_go_on in_force is_taken is_whole iter_checkpoints
judged kappa keep_early_saves_harmless kept labelled lent logits_of machine_of magnified make_folder module nearest
net_and_inputs note open_recorder opened part parts place_of placed poll publish report room run run_file sealed see
set_aside slow survey sync_folder table take take_any team_of tell_apart tensor_of together told told_curve
told_of_the_end told_run train_apart train_together unheard verdict words
"""
KEPT = {
    "Callback.report": "what callbacks of other libraries are asked for, too",
    "BaseCallback.report": "",
    "CallbackList.report": "",
    "LogLines.report": "",
    "ProgressBar.report": "",
    "Webhook.report": "",
    "ReportToParent.report": "",
    "_MeanReporter.report": "",
    "ComplexityWSD.hold": "a parameter of a registered policy: on disk",
    "Recorder.begin": "",
    "Run.follow": "follows a run that is being written",
    "Segments.bends": "a field of a public result",
    "FigureData.table": "the table",
    "analysis.tables.table": "gk.table",
    "cli.note.note": "the command",
    "ProgramStep.run": "run one step of the program",
    "Sweep.run": "",
    "Worker.run": "",
    "LoopBottleneck.run": "the run's name",
    "Attempt.poll": "as in subprocess.Popen",
    "YokedState.told": "a key of a policy's state: on disk",
    "LocalAttempt.poll": "",
    "RayAttempt.poll": "",
}


def definitions() -> Iterator[tuple[str, str]]:
    """Module below grokkit and qualified name of all functions, classes, constants, methods and fields."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            for name in bound(node):
                yield module, name
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    for name in bound(member):
                        yield module, f"{node.name}.{name}"


def bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_names_that_were_given_up_stay_away() -> None:
    found = set()
    for module, name in definitions():
        qualified = name if "." in name else f"{module}.{name}"
        if name.rpartition(".")[2] in GIVEN_UP.split() and qualified not in KEPT:
            found.add(qualified)
    assert found == set()


def test_what_is_kept_is_there() -> None:
    known = {name if "." in name else f"{module}.{name}" for module, name in definitions()}
    assert KEPT.keys() <= known, KEPT.keys() - known


def test_a_public_name_means_one_thing() -> None:
    """Two modules define one public name only if they are of one pattern."""
    places = defaultdict(set)
    for module, name in definitions():
        if not name.startswith("_") and "." not in name:
            places[name].add(module)
    several = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert {name for name, modules in several.items() if not is_pattern(name, modules)} == set()


def is_pattern(name: str, modules: set[str]) -> bool:
    """A command or an experiment next to what it is about; what every module of a kind has."""
    about = {module for module in modules if module.split(".")[0] not in ("cli", "recipes")}
    return (
        len(about) <= 1 or name in ("registry", "T") or (name == "CLASSES" and all("data." in each for each in about))
    )


def test_the_words_of_a_literal_are_those_that_are_accepted() -> None:
    from grokkit import literals
    from grokkit.attributions.methods import BASELINES
    from grokkit.measures.loss import LOSSES
    from grokkit.policies.wsd import SHAPES
    from grokkit.robustness.attacks import ATTACK_LOSSES, NORMS
    from grokkit.spline.complexity import _COUNTS

    accepted = {
        literals.LossName: LOSSES,
        literals.AttackLoss: ATTACK_LOSSES,
        literals.AttackNorm: NORMS,
        literals.BaselineName: BASELINES,
        literals.DecayShape: SHAPES,
        literals.CountingMethod: {*_COUNTS, "tangent"},
    }
    for words, table in accepted.items():
        assert set(get_args(words)) == set(table)
