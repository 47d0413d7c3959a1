"""Standard nets on all of CIFAR-10, with the accuracy reported for them and a recipe to reach it.

Select one: `grokkit train cifar10_accuracy:resnet18 --seed 1`; without a variant all nine train, which takes hours even
on a GPU. Targets are for the last step (never the best epoch), as the mean of seeds; the spread between seeds is about
0.13 points. Plain: each test image once. TTA: the mean of the logits for the image and its mirror.

| variant | epochs | target | test images | source of the target |
|---|---|---|---|---|
| resnet9 | 24 | 94.0 % | plain | davidcpage/cifar10-fast, dawn.py: median 94.08 of 50 |
| resnet18 | 26 | 94.0 % | TTA | KellerJordan/cifar10-zoo, airbench ablations: 94.00, mean of 200 |
| resnet18_80 | 80 | 95.3 % | plain | the same, train_resnet18_96.py: 95.3 to 95.55; 95.88 with TTA, mean of 100 |
| resnet34 | 200 | 95.0 % | plain | none found for this recipe; should be no worse than resnet18 |
| resnet50 | 200 | 95.0 % | plain | kuangliu/pytorch-cifar, issue 45: 95.37 and 95.72, other recipe |
| vgg11_bn | 100 | 92.3 % | plain | huyvnphan/PyTorch_CIFAR10: 92.39; chenyaofo/pytorch-cifar-models: 92.79 |
| vgg13_bn | 100 | 93.8 % | plain | the same two: 94.22 and 94.00 |
| vgg16_bn | 100 | 93.7 % | plain | the same two: 94.00 and 94.16 |
| vgg19_bn | 100 | 93.5 % | plain | the same two: 93.95 and 93.91 |

Not yet verified on full CIFAR-10 with the official pixels: the targets are published results, not results of
these recipes. Differences from the sources: rates rise from 0 (resnet18's source starts at a fifth of the peak);
`cutout` paints a black square that is clipped at the border (the sources fill in the mean, and ResNet-18's keeps the
square inside the image); `resnet9` has biases; the smaller last batch of an epoch is used; the published VGGs have
other heads. Weight decay acts on all parameters, BatchNorm's and biases too, as in the sources; VGGs start in He's
fan-out init. The ResNet-9 of the "90 % in 8 epochs" notebooks is in `cifar10_in_minutes`.
"""

from __future__ import annotations

from grokkit.config.run_config import RunConfig, Spec, spec
from grokkit.recipes import cifar10_in_minutes

TRAINING_IMAGES = 50_000


def resnet9() -> RunConfig:
    """Train 24 epochs, batches of 512, peak rate 0.4 after five epochs, crops, flips, 8-pixel cutout, logits / 8."""
    base = _make_recipe("resnet9", epochs=24, batch_size=512, lr=0.4, rise=5 / 24, augment=("crop4", "flip", "cutout8"))
    return base.replace(model=spec("resnet9", head_scale=0.125))


def resnet18() -> RunConfig:
    """Train 26 epochs, batches of 500, peak rate 0.2 after a fifth of them, crops, flips, 12-pixel cutout."""
    return _make_recipe("resnet18", epochs=26, batch_size=500, lr=0.2, rise=0.2, augment=("crop4", "flip", "cutout12"))


def resnet18_80() -> RunConfig:
    """Train as `resnet18`, for 80 epochs."""
    return _lengthen_resnet18("resnet18", "resnet18_80", 80)


def resnet34() -> RunConfig:
    """Train with ResNet-18's recipe for 200 epochs."""
    return _lengthen_resnet18("resnet34", "resnet34", 200)


def resnet50() -> RunConfig:
    """Train with ResNet-18's recipe for 200 epochs."""
    return _lengthen_resnet18("resnet50", "resnet50", 200)


def vgg11_bn() -> RunConfig:
    """Train 100 epochs, batches of 256, peak rate 0.1 after a tenth of them, crops, flips."""
    return _make_vgg_recipe("vgg11_bn")


def vgg13_bn() -> RunConfig:
    """Train as `vgg11_bn`."""
    return _make_vgg_recipe("vgg13_bn")


def vgg16_bn() -> RunConfig:
    """Train as `vgg11_bn`."""
    return _make_vgg_recipe("vgg16_bn")


def vgg19_bn() -> RunConfig:
    """Train as `vgg11_bn`."""
    return _make_vgg_recipe("vgg19_bn")


def _make_vgg_recipe(model: str) -> RunConfig:
    return _make_recipe(model, epochs=100, batch_size=256, lr=0.1, rise=0.1, augment=("crop4", "flip"))


def _lengthen_resnet18(model: str, variant: str, epochs: int) -> RunConfig:
    base = resnet18()
    return base.replace(model=spec(model), variant=variant, steps=_count_steps(epochs, base.batch_size), records=20)


def _make_recipe(
    model: str, *, epochs: int, batch_size: int, lr: float, rise: float, augment: tuple[str, ...]
) -> RunConfig:
    """Return a config with SGD, a triangular schedule, and the data, probes and measures of `cifar10_in_minutes`."""
    return cifar10_in_minutes.resnet9().replace(
        experiment="cifar10_accuracy",
        variant=model,
        model=spec(model),
        optimizer=spec("sgd", lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
        policy=_make_triangle(rise),
        clip=None,
        batch_size=batch_size,
        steps=_count_steps(epochs, batch_size),
        augment=augment,
        records=12 if epochs < 50 else 20,
    )


def _count_steps(epochs: int, batch_size: int) -> int:
    """Return the number of updates in `epochs` epochs, including the smaller last batch of each."""
    return epochs * -(-TRAINING_IMAGES // batch_size)


def _make_triangle(rise: float) -> Spec:
    """Return a schedule from 0 to the optimizer's rate over a share of the updates, then linearly to almost 0."""
    return spec("wsd", warmup=rise, decay_share=1 - rise, final_scale=1e-6, shape="linear")
