"""Watch how a network carves up its input space while it learns: train, record, measure, explain and steer.

The public names below are loaded when first used, so that `import grokkit` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Classifier": "grokkit.models.classifier",
    "Normalise": "grokkit.models.classifier",
    "Observation": "grokkit.policies",
    "PolicyLR": "grokkit.optim.policy_lr",
    "ProbeSet": "grokkit.names",
    "Reading": "grokkit.names",
    "RunConfig": "grokkit.config.run_config",
    "Signal": "grokkit.recording.signal",
    "LocalComplexitySignal": "grokkit.recording.signal",
    "signal_history": "grokkit.recording.signal",
    "attribute": "grokkit.attributions",
    "complexity_interval": "grokkit.spline",
    "complexity_spectrum": "grokkit.spline",
    "exact_integrated_gradients": "grokkit.spline",
    "figure_data": "grokkit.analysis.tables",
    "import_checkpoints": "grokkit.replay",
    "load_data": "grokkit.data:load",
    "local_complexity": "grokkit.spline",
    "log_spaced": "grokkit.config.schedule",
    "lr_range_test": "grokkit.diagnostics.lr_range",
    "open_run": "grokkit.trajectory",
    "spec": "grokkit.config.run_config",
    "partition_segment": "grokkit.spline",
    "pgd": "grokkit.robustness",
    "preset": "grokkit.spline",
    "probe_sets": "grokkit.data.probes",
    "profile": "grokkit.models.profile",
    "record": "grokkit.recording.record",
    "replay_run": "grokkit.replay",
    "resume": "grokkit.training.loop",
    "table": "grokkit.analysis.tables",
    "train": "grokkit.training.loop",
    "train_seeds": "grokkit.ensemble.seeds",
}
_ROOMS = {
    "attributions": "grokkit.attributions",
    "figures": "grokkit.figures",
    "measures": "grokkit.measures",
    "models": "grokkit.models",
    "policies": "grokkit.policies",
}

__all__ = sorted([*_HOME, *_ROOMS])
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value: Any = importlib.import_module(_ROOMS[name])
    elif name in _HOME:
        module, _, attribute = _HOME[name].partition(":")
        value = getattr(importlib.import_module(module), attribute or name)
    else:
        raise AttributeError(f"module 'grokkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from grokkit import attributions  # noqa: F401
    from grokkit import figures as figures
    from grokkit import measures as measures
    from grokkit import models as models
    from grokkit import policies as policies
    from grokkit.analysis.tables import figure_data as figure_data
    from grokkit.analysis.tables import table as table
    from grokkit.attributions import attribute as attribute
    from grokkit.config.run_config import RunConfig as RunConfig
    from grokkit.config.run_config import spec as spec
    from grokkit.config.schedule import log_spaced as log_spaced
    from grokkit.data import load as load_data  # noqa: F401
    from grokkit.data.probes import probe_sets as probe_sets
    from grokkit.diagnostics.lr_range import lr_range_test as lr_range_test
    from grokkit.ensemble.seeds import train_seeds as train_seeds
    from grokkit.models.classifier import Classifier as Classifier
    from grokkit.models.classifier import Normalise as Normalise
    from grokkit.models.profile import profile as profile
    from grokkit.names import ProbeSet as ProbeSet
    from grokkit.names import Reading as Reading
    from grokkit.optim.policy_lr import PolicyLR as PolicyLR
    from grokkit.policies import Observation as Observation
    from grokkit.recording.record import record as record
    from grokkit.recording.signal import LocalComplexitySignal as LocalComplexitySignal
    from grokkit.recording.signal import Signal as Signal
    from grokkit.recording.signal import signal_history as signal_history
    from grokkit.replay import import_checkpoints as import_checkpoints
    from grokkit.replay import replay_run as replay_run
    from grokkit.robustness import pgd as pgd
    from grokkit.spline import complexity_interval as complexity_interval
    from grokkit.spline import complexity_spectrum as complexity_spectrum
    from grokkit.spline import exact_integrated_gradients as exact_integrated_gradients
    from grokkit.spline import local_complexity as local_complexity
    from grokkit.spline import partition_segment as partition_segment
    from grokkit.spline import preset as preset
    from grokkit.training.loop import resume as resume
    from grokkit.training.loop import train as train
    from grokkit.trajectory import open_run as open_run
