"""The study of this name that ships with grokkit; copy it and change it here."""

from grokkit.recipes.cifar10_accuracy import (
    resnet9,
    resnet18,
    resnet18_80,
    resnet34,
    resnet50,
    vgg11_bn,
    vgg13_bn,
    vgg16_bn,
    vgg19_bn,
)

__all__ = [
    "resnet9",
    "resnet18",
    "resnet18_80",
    "resnet34",
    "resnet50",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
]
