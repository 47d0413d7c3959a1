"""Types of arguments that take one of a few words. The words are stored in configs and readings: a format."""

from __future__ import annotations

from typing import Literal

CountingMethod = Literal["vertex", "tangent", "ray", "bound"]
FrameChoice = Literal["shared", "per_point"]
TangentPrecision = Literal["exact", "bfloat16"]
LossName = Literal["cross_entropy", "mse"]
AttackLoss = Literal["cross_entropy", "margin"]
AttackNorm = Literal["linf", "l2"]
BaselineName = Literal["black", "mean"]
NormLayer = Literal["batch", "none"]
DecayShape = Literal["1-sqrt", "linear"]
Precision = Literal["float32", "bfloat16", "float16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]
Execution = Literal["eager", "graph", "compile"]
ExecutionChoice = Literal["auto", "eager", "graph", "compile"]
FinalState = Literal["done", "failed", "interrupted"]
