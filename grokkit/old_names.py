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
    "grokkit.models.profile": "grokkit.measures.profile",
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
    "grokkit.Method": "grokkit.AttributionMethod",
    "grokkit.analysis.arms.arms_of": "grokkit.analysis.arms.parse_arms",
    "grokkit.analysis.arms.best_baselines": "grokkit.analysis.arms.find_best_baselines",
    "grokkit.analysis.arms.families": "grokkit.analysis.arms.group_arms",
    "grokkit.analysis.arms.usual_pairs": "grokkit.analysis.arms.default_pairs",
    "grokkit.analysis.arms.with_best": "grokkit.analysis.arms.add_best_baseline",
    "grokkit.analysis.comparison.KEYS": "grokkit.analysis.comparison.PAIR_KEYS",
    "grokkit.analysis.comparison.LEAST": "grokkit.analysis.comparison.MIN_PAIRS",
    "grokkit.analysis.comparison.bca_interval": "grokkit.stats.intervals.bca_interval",
    "grokkit.analysis.comparison.cliffs_delta": "grokkit.stats.paired.cliffs_delta",
    "grokkit.analysis.comparison.comparisons": "grokkit.analysis.comparison.compare_all",
    "grokkit.analysis.comparison.holm": "grokkit.stats.paired.adjust_holm",
    "grokkit.analysis.comparison.signed_rank_p": "grokkit.stats.paired.signed_rank_p",
    "grokkit.analysis.comparison.verdict": "grokkit.analysis.comparison.claim",
    "grokkit.analysis.outcomes.CHARGED": "grokkit.analysis.outcomes.CHARGED_SHARE",
    "grokkit.analysis.outcomes.first_crossing": "grokkit.analysis.outcomes.find_first_crossing",
    "grokkit.analysis.outcomes.outcomes": "grokkit.analysis.outcomes.compute_outcomes",
    "grokkit.analysis.outcomes.robust_rows": "grokkit.analysis.outcomes.select_robust_rows",
    "grokkit.analysis.outcomes.same_rates": "grokkit.analysis.outcomes.find_same_rates",
    "grokkit.analysis.tables.reason_of": "grokkit.analysis.tables.describe_error",
    "grokkit.attributions.Method": "grokkit.attributions.AttributionMethod",
    "grokkit.attributions.borrowed": "grokkit.attributions.preserved_state",
    "grokkit.attributions.completeness": "grokkit.attributions.completeness_sums",
    "grokkit.attributions.methods.CONVOLUTIONS": "grokkit.attributions.layers.CONVOLUTION_TYPES",
    "grokkit.attributions.poll": "grokkit.attributions.check_interrupt",
    "grokkit.attributions.prepare.WAY_OUT": "grokkit.attributions.prepare.ALTERNATIVES",
    "grokkit.attributions.prepare.max_pools": "grokkit.attributions.prepare.find_max_pools",
    "grokkit.attributions.prepare.with_relu_modules": "grokkit.attributions.prepare.insert_rules",
    "grokkit.attributions.verdict": "grokkit.attributions.check_completeness",
    "grokkit.callbacks.base.ENDS": "grokkit.callbacks.base.FINAL_EVENTS",
    "grokkit.callbacks.base.Guarded": "grokkit.callbacks.base.CallbackList",
    "grokkit.callbacks.base.Lines": "grokkit.callbacks.base.LogLines",
    "grokkit.callbacks.base.Live": "grokkit.callbacks.base.ProgressBar",
    "grokkit.callbacks.base.Observer": "grokkit.callbacks.base.Callback",
    "grokkit.callbacks.base.Silent": "grokkit.callbacks.base.BaseCallback",
    "grokkit.callbacks.base.TOLD": "grokkit.callbacks.base.NOTABLE_EVENTS",
    "grokkit.callbacks.base.for_terminal": "grokkit.callbacks.base.make_terminal_callback",
    "grokkit.callbacks.base.guarded": "grokkit.callbacks.base.as_callback_list",
    "grokkit.callbacks.base.shown": "grokkit.callbacks.base.format_values",
    "grokkit.config.overrides.adjusted": "grokkit.config.overrides.apply_cli_overrides",
    "grokkit.config.overrides.changed": "grokkit.config.overrides.with_overrides",
    "grokkit.config.overrides.dotted": "grokkit.config.overrides.flatten",
    "grokkit.config.overrides.seed_list": "grokkit.config.overrides.parse_seeds",
    "grokkit.config.run_config.Part": "grokkit.config.run_config.Spec",
    "grokkit.config.run_config.part": "grokkit.config.run_config.spec",
    "grokkit.config.schedule.checked": "grokkit.config.schedule.validate_steps",
    "grokkit.data.base.as_images": "grokkit.data.base.to_images",
    "grokkit.data.base.as_labels": "grokkit.data.base.to_labels",
    "grokkit.data.base.available": "grokkit.data.base.limit_to_available",
    "grokkit.data.base.check_count": "grokkit.data.base.validate_count",
    "grokkit.data.base.stratified": "grokkit.data.base.sample_stratified",
    "grokkit.data.check": "grokkit.data.check_dataset_options",
    "grokkit.data.find": "grokkit.data.find_dataset",
    "grokkit.data.load": "grokkit.data.load_data",
    "grokkit.data.nearest": "grokkit.data.did_you_mean",
    "grokkit.data.read_path": "grokkit.data.read_images",
    "grokkit.data.resident.pixels": "grokkit.data.resident.to_pixels",
    "grokkit.data.resident.stacked_at": "grokkit.data.resident.stack_batches",
    "grokkit.device.preserved_state.borrowed": "grokkit.device.preserved_state.preserved_state",
    "grokkit.figures.curves.at_radius": "grokkit.figures.curves.select_radius",
    "grokkit.figures.curves.averaged": "grokkit.figures.curves.average_seeds",
    "grokkit.figures.curves.by_probe_set": "grokkit.figures.curves.draw_by_probe_set",
    "grokkit.figures.curves.draw": "grokkit.figures.curves.draw_band",
    "grokkit.figures.curves.log_steps": "grokkit.figures.curves.set_log_steps",
    "grokkit.figures.curves.one_recording": "grokkit.figures.curves.select_recording",
    "grokkit.figures.curves.pixels": "grokkit.figures.curves.format_epsilon",
    "grokkit.figures.curves.rows_of": "grokkit.figures.curves.require_rows",
    "grokkit.figures.curves.totals": "grokkit.figures.curves.sum_layers",
    "grokkit.figures.forest.forest": "grokkit.figures.forest.draw_forest",
    "grokkit.figures.layers.NAMED": "grokkit.figures.layers.MAX_NAMED_LAYERS",
    "grokkit.figures.lr_range.WIDE": "grokkit.figures.lr_range.LOG_AXIS_RATIO",
    "grokkit.figures.radius_choice.FEW": "grokkit.figures.radius_choice.MAX_HALF_WIDTH",
    "grokkit.figures.save": "grokkit.figures.save_figure",
    "grokkit.figures.theme.probe_colour": "grokkit.figures.theme.get_probe_colour",
    "grokkit.figures.theme.save": "grokkit.figures.theme.save_figure",
    "grokkit.heard": "grokkit.signal_history",
    "grokkit.measures.base.BATCH": "grokkit.measures.base.BATCH_SIZE",
    "grokkit.measures.base.chosen": "grokkit.measures.base.select_probes",
    "grokkit.measures.base.labelled": "grokkit.measures.base.select_labelled",
    "grokkit.measures.base.logits_of": "grokkit.measures.base.predict_logits",
    "grokkit.measures.base.net_and_inputs": "grokkit.measures.base.unwrap_normalisation",
    "grokkit.measures.base.settings_of": "grokkit.measures.base.get_settings",
    "grokkit.measures.base.tensor_of": "grokkit.measures.base.to_tensor",
    "grokkit.measures.base.wilson": "grokkit.measures.base.wilson_interval",
    "grokkit.measures.local_complexity.Complexity": "grokkit.measures.local_complexity.LocalComplexityMeasure",
    "grokkit.measures.loss.loss_function": "grokkit.measures.loss.get_loss",
    "grokkit.measures.radius_sweep.Calibration": "grokkit.measures.radius_sweep.RadiusSweep",
    "grokkit.measures.radius_sweep.RADII": "grokkit.measures.radius_sweep.N_RADII",
    "grokkit.measures.radius_sweep.agreement": "grokkit.measures.radius_sweep.compare_methods",
    "grokkit.measures.radius_sweep.slopes": "grokkit.measures.radius_sweep.fit_slopes",
    "grokkit.measures.radius_sweep.usual_radii": "grokkit.measures.radius_sweep.default_radii",
    "grokkit.measures.runner.AttributionPlan": "grokkit.measures.runner.AttributionSpec",
    "grokkit.measures.runner.is_taken": "grokkit.measures.runner.is_stored",
    "grokkit.measures.runner.name_of": "grokkit.measures.runner.instrument_name",
    "grokkit.measures.runner.place_of": "grokkit.measures.runner.result_dir",
    "grokkit.measures.runner.take": "grokkit.measures.runner.measure_and_store",
    "grokkit.measures.runner.take_any": "grokkit.measures.runner.run_instrument",
    "grokkit.measures.runner.take_attribution": "grokkit.measures.runner.attribute_and_store",
    "grokkit.models.parts.check_input": "grokkit.models.parts.validate_input",
    "grokkit.models.parts.check_positive": "grokkit.models.parts.validate_positive",
    "grokkit.models.parts.norm_layer": "grokkit.models.parts.make_norm",
    "grokkit.models.receptive_field.FollowField": "grokkit.models.receptive_field.FieldTracker",
    "grokkit.models.resnet.projection": "grokkit.models.resnet.make_projection",
    "grokkit.models.speednet.identity_conv": "grokkit.models.speednet.make_identity_conv",
    "grokkit.models.vgg.CONVOLUTIONS": "grokkit.models.vgg.CONVOLUTION_COUNTS",
    "grokkit.optim.decay.KEY": "grokkit.optim.decay.FIXED_DECAY",
    "grokkit.optim.decay.MARKS": "grokkit.optim.decay.DECAY_KEYS",
    "grokkit.optim.decay.check_keys": "grokkit.optim.decay.validate_keys",
    "grokkit.optim.decay.hold_decay": "grokkit.optim.decay.apply_fixed_decay",
    "grokkit.optim.decay.keep": "grokkit.optim.decay.mark_fixed_decay",
    "grokkit.optim.muon.orthogonalised": "grokkit.optim.muon.orthogonalize",
    "grokkit.optim.policy_lr.LEAST_NEWS": "grokkit.optim.policy_lr.MIN_UPDATES_FOR_READINGS",
    "grokkit.part": "grokkit.spec",
    "grokkit.policies.base.followed": "grokkit.policies.base.get_followed_readings",
    "grokkit.policies.base.reading_of": "grokkit.policies.base.get_reading",
    "grokkit.policies.controls.News": "grokkit.policies.controls.SignalHistory",
    "grokkit.policies.find": "grokkit.policies.get_policy_class",
    "grokkit.policies.followed": "grokkit.policies.get_followed_readings",
    "grokkit.policies.nearest": "grokkit.policies.did_you_mean",
    "grokkit.policies.signal.Slope": "grokkit.stats.trends.Slope",
    "grokkit.policies.signal.log_mean": "grokkit.stats.trends.log_mean",
    "grokkit.policies.signal.slope": "grokkit.stats.trends.fit_slope",
    "grokkit.policies.signal.theil_sen": "grokkit.stats.trends.theil_sen",
    "grokkit.policies.wsd.require_floor": "grokkit.policies.wsd.require_min_scale",
    "grokkit.policies.wsd.share_of": "grokkit.policies.wsd.share_to_steps",
    "grokkit.recording.signal.check_listener": "grokkit.recording.signal.check_policy_readings",
    "grokkit.recording.signal.heard": "grokkit.recording.signal.signal_history",
    "grokkit.registry.nearest": "grokkit.registry.did_you_mean",
    "grokkit.registry.run_file": "grokkit.registry.import_study",
    "grokkit.registry.run_source": "grokkit.registry.import_source",
    "grokkit.spline.affine.Facet": "grokkit.spline.affine.MapForm",
    "grokkit.spline.bounds.bound_counts": "grokkit.spline.bounds.bound_crossings",
    "grokkit.spline.dual.refuse_hidden_write": "grokkit.spline.dual.make_hidden_write_error",
    "grokkit.spline.frames.TOLERANCE": "grokkit.spline.frames.ORTHONORMAL_TOLERANCE",
    "grokkit.spline.frames.frames_for": "grokkit.spline.frames.make_frames",
    "grokkit.spline.frames.orthonormal_frame": "grokkit.spline.frames.draw_orthonormal_frame",
    "grokkit.spline.knots.Refined": "grokkit.spline.knots.RefinedGrid",
    "grokkit.spline.knots.zero_tolerance": "grokkit.spline.knots.compute_zero_tolerance",
    "grokkit.spline.max_projection.kappa": "grokkit.spline.max_projection.expected_max_projection",
    "grokkit.spline.measurement_mode.check_images": "grokkit.spline.measurement_mode.validate_images",
    "grokkit.spline.measurement_mode.lent": "grokkit.spline.measurement_mode.measurement_mode",
    "grokkit.spline.orthonormal_frame": "grokkit.spline.draw_orthonormal_frame",
    "grokkit.spline.passes.OTHER_LAYERS": "grokkit.spline.passes.DATA_DEPENDENT_LAYERS",
    "grokkit.spline.passes.extremes": "grokkit.spline.passes.reduce_min_max",
    "grokkit.spline.ray.ray_counts": "grokkit.spline.ray.count_ray_crossings",
    "grokkit.spline.rule_table.leaves": "grokkit.units.list_leaves",
    "grokkit.spline.rule_table.map_leaves": "grokkit.spline.rule_table.tree_map",
    "grokkit.spline.rule_table.rule_table": "grokkit.spline.rule_table.build_rule_table",
    "grokkit.spline.segment_sweep.Seen": "grokkit.spline.segment_sweep.OnCall",
    "grokkit.spline.spectrum.SAMPLED": "grokkit.spline.spectrum.SAMPLED_POINTS",
    "grokkit.spline.tangent.tangent_counts": "grokkit.spline.tangent.count_tangent_crossings",
    "grokkit.spline.tape.BatchRows": "grokkit.spline.tape.BatchMultiple",
    "grokkit.spline.tape.record_once": "grokkit.spline.call_recorder.record_once",
    "grokkit.spline.tape.record_tape": "grokkit.spline.record_tape.record_tape",
    "grokkit.spline.uncertainty.TwoWay": "grokkit.stats.two_way.TwoWay",
    "grokkit.spline.uncertainty.two_way": "grokkit.stats.two_way.fit_two_way",
    "grokkit.spline.vertex.vertex_counts": "grokkit.spline.vertex.count_vertex_crossings",
    "grokkit.stats.trends.RESAMPLES": "grokkit.stats.trends.SLOPE_RESAMPLES",
    "grokkit.training.build.OPTIMIZERS": "grokkit.optim.build.OPTIMIZERS",
    "grokkit.training.build.build_optimizer": "grokkit.optim.build.build_optimizer",
    "grokkit.training.build.checked_clip": "grokkit.training.build.validate_clip",
    "grokkit.training.build.config_of": "grokkit.training.build.load_config",
    "grokkit.training.build.facts_of": "grokkit.training.build.dataset_metadata",
    "grokkit.training.build.macs_of": "grokkit.training.build.count_macs",
    "grokkit.training.build.optimizer_class": "grokkit.optim.build.get_optimizer_class",
    "grokkit.training.build.place_of_data": "grokkit.training.build.locate_data",
    "grokkit.training.build.placed": "grokkit.training.build.to_device",
    "grokkit.trajectory.run.effective_events": "grokkit.trajectory.log.effective_events",
    "grokkit.units.GELU_ZONE": "grokkit.operations.GELU_ZONE",
    "grokkit.units.RELU": "grokkit.operations.RELU",
    "grokkit.units.SILU_ZONE": "grokkit.operations.SILU_ZONE",
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
