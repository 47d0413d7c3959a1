"""Names that earlier versions used, for one reader only: the loader of the `experiment.py` that a run keeps."""

from __future__ import annotations

import ast

MODULES = {
    "grokkit.analysis.calibration": "grokkit.analysis.radius_choice",
    "grokkit.analysis.companions": "grokkit.analysis.derived_rows",
    "grokkit.analysis.differences": "grokkit.analysis.compare_runs",
    "grokkit.analysis.text_cells": "grokkit.analysis.csv_text",
    "grokkit.analysis.throughput": "grokkit.analysis.bottleneck",
    "grokkit.attribution": "grokkit.attributions",
    "grokkit.borrow": "grokkit.device.preserved_state",
    "grokkit.cli.calibrate": "grokkit.cli.choose_radius",
    "grokkit.cli.company": "grokkit.cli.setup",
    "grokkit.figures.calibration": "grokkit.figures.radius_choice",
    "grokkit.live.study": "grokkit.live.run_browser",
    "grokkit.measures.calibration": "grokkit.measures.radius_sweep",
    "grokkit.measures.take": "grokkit.measures.runner",
    "grokkit.spline.calls": "grokkit.spline.rule_table",
    "grokkit.spline.intervals": "grokkit.stats.intervals",
    "grokkit.spline.kappa": "grokkit.spline.max_projection",
    "grokkit.spline.lent": "grokkit.spline.measurement_mode",
    "grokkit.spline.survey": "grokkit.spline.uncounted",
    "grokkit.spline.sweep": "grokkit.spline.segment_sweep",
    "grokkit.sweep.attempt": "grokkit.sweep.child_process",
    "grokkit.sweep.standing": "grokkit.sweep.run_status",
    "grokkit.training.attempt": "grokkit.recording.attempt",
    "grokkit.training.check": "grokkit.training.validate",
    "grokkit.training.child": "grokkit.ensemble.worker",
    "grokkit.training.choices": "grokkit.config.overrides",
    "grokkit.training.config": "grokkit.config.run_config",
    "grokkit.training.costs": "grokkit.recording.timers",
    "grokkit.training.decay": "grokkit.optim.decay",
    "grokkit.training.device": "grokkit.device.select",
    "grokkit.training.estimate": "grokkit.diagnostics.estimate",
    "grokkit.training.identity": "grokkit.recording.identity",
    "grokkit.training.instruments": "grokkit.recording.instruments",
    "grokkit.training.job": "grokkit.training.trainer",
    "grokkit.training.loader": "grokkit.diagnostics.loader",
    "grokkit.training.lookup": "grokkit.training.required_names",
    "grokkit.training.lr_range": "grokkit.diagnostics.lr_range",
    "grokkit.training.lr_scheduler": "grokkit.optim.policy_lr",
    "grokkit.training.money": "grokkit.recording.budget",
    "grokkit.training.muon": "grokkit.optim.muon",
    "grokkit.training.notify": "grokkit.callbacks.webhook",
    "grokkit.training.observers": "grokkit.callbacks.base",
    "grokkit.training.pace": "grokkit.training.slowdown",
    "grokkit.training.placement": "grokkit.device.placement",
    "grokkit.training.precision": "grokkit.device.precision",
    "grokkit.training.preflight": "grokkit.device.preflight",
    "grokkit.training.range_curve": "grokkit.diagnostics.range_curve",
    "grokkit.training.recorder": "grokkit.recording.recorder",
    "grokkit.training.recording": "grokkit.recording.record",
    "grokkit.training.replicas": "grokkit.ensemble.subprocesses",
    "grokkit.training.schedule": "grokkit.config.schedule",
    "grokkit.training.seeds": "grokkit.ensemble.seeds",
    "grokkit.training.signal": "grokkit.recording.signal",
    "grokkit.training.stack": "grokkit.ensemble.stack",
    "grokkit.training.state": "grokkit.recording.state",
    "grokkit.training.team": "grokkit.training.ranks",
    "grokkit.training.throughput": "grokkit.diagnostics.throughput",
    "grokkit.training.together": "grokkit.ensemble.vmapped",
    "grokkit.trajectory.changes": "grokkit.trajectory.modifications",
    "grokkit.trajectory.sealed": "grokkit.trajectory.checksummed",
    "grokkit.trajectory.series": "grokkit.trajectory.tensor_series",
}
"""Module of an earlier version -> where it is now."""

NAMES = {
    "grokkit.analysis.comparison.bca_interval": "grokkit.stats.intervals.bca_interval",
    "grokkit.analysis.comparison.cliffs_delta": "grokkit.stats.paired.cliffs_delta",
    "grokkit.analysis.comparison.holm": "grokkit.stats.paired.holm",
    "grokkit.analysis.comparison.signed_rank_p": "grokkit.stats.paired.signed_rank_p",
    "grokkit.policies.signal.Slope": "grokkit.stats.trends.Slope",
    "grokkit.policies.signal.log_mean": "grokkit.stats.trends.log_mean",
    "grokkit.policies.signal.slope": "grokkit.stats.trends.slope",
    "grokkit.policies.signal.theil_sen": "grokkit.stats.trends.theil_sen",
    "grokkit.spline.uncertainty.TwoWay": "grokkit.stats.two_way.TwoWay",
    "grokkit.spline.uncertainty.two_way": "grokkit.stats.two_way.two_way",
    "grokkit.training.build.OPTIMIZERS": "grokkit.optim.build.OPTIMIZERS",
    "grokkit.training.build.build_optimizer": "grokkit.optim.build.build_optimizer",
    "grokkit.training.build.optimizer_class": "grokkit.optim.build.optimizer_class",
}
"""Qualified name in an earlier version, its module spelled as today -> the qualified name today."""


def translate(source: bytes) -> ast.Module:
    """Parse a study, with what it imports from grokkit under earlier names rewritten to today's.

    Imports and dotted names that start at an imported module are rewritten; everything else is kept as it is, and
    names that a `from` import binds keep their spelling.

    Raises:
        SyntaxError: the text is not Python.
    """
    tree = ast.parse(source)
    translator = _Translator(_bound_modules(tree))
    translator.visit(tree)
    start = next((i for i, node in enumerate(tree.body) if not _comes_first(node)), len(tree.body))
    tree.body[start:start] = [ast.Import([ast.alias(module)]) for module in sorted(translator.modules)]
    return ast.fix_missing_locations(tree)


def current_name(dotted: str) -> str:
    """Today's spelling of a dotted name that starts with a module; the name itself if it never changed."""
    for module in sorted(MODULES, key=len, reverse=True):
        if dotted == module or dotted.startswith(f"{module}."):
            dotted = MODULES[module] + dotted.removeprefix(module)
            break
    return NAMES.get(dotted, dotted)


def _bound_modules(tree: ast.Module) -> dict[str, str]:
    """Local name -> the module or object of grokkit that an import binds to it."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "grokkit":
                    bound[alias.asname or "grokkit"] = alias.name if alias.asname else "grokkit"
        elif isinstance(node, ast.ImportFrom) and _is_ours(node):
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


def _is_ours(node: ast.ImportFrom) -> bool:
    return node.level == 0 and (node.module or "").split(".")[0] == "grokkit"


class _Translator(ast.NodeTransformer):
    def __init__(self, bound: dict[str, str]) -> None:
        self.bound = bound
        self.modules: set[str] = set()  # to be imported, since a name has left the module that the study imports

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            alias.name = current_name(alias.name)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | list[ast.ImportFrom]:
        if not _is_ours(node):
            return node
        found = []
        for alias in node.names:
            module, _, name = current_name(f"{node.module}.{alias.name}").rpartition(".")
            local = alias.asname or (alias.name if alias.name != name else None)
            found.append(ast.copy_location(ast.ImportFrom(module, [ast.alias(name, local)], 0), node))
        return found

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        dotted = _dotted(node)
        head, _, rest = (dotted or "").partition(".")
        if head not in self.bound or not rest:
            return self.generic_visit(node)
        before = f"{self.bound[head]}.{rest}"
        after = current_name(before)
        if before == after:
            return node
        return ast.copy_location(_attribute(self._relative(head, after), node.ctx), node)

    def _relative(self, head: str, after: str) -> str:
        """`after` as it is reached from the local name `head`, whose own module may have been renamed, too."""
        start = current_name(self.bound[head])
        if after.startswith(f"{start}."):
            return head + after.removeprefix(start)
        self.modules.add(after.rpartition(".")[0])
        return after


def _comes_first(node: ast.stmt) -> bool:
    """Whether a statement is the docstring or an import from `__future__`."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value)):
        return f"{left}.{node.attr}"
    return None


def _attribute(dotted: str, context: ast.expr_context) -> ast.expr:
    left, _, name = dotted.rpartition(".")
    return ast.Attribute(_attribute(left, ast.Load()), name, context) if left else ast.Name(name, context)
