"""Repairs: after a cut, only values of the smaller model change."""

from secateur.repair.batchnorm import batchnorm

__all__ = ["batchnorm"]
