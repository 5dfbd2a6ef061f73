"""Repairs: after a cut, only values of the smaller model change."""

from secateur.repair.batchnorm import batchnorm
from secateur.repair.bias import mean_bias
from secateur.repair.chain import chain
from secateur.repair.compensation import compensation
from secateur.repair.distil import distil
from secateur.repair.least_squares import least_squares
from secateur.repair.two_sided import two_sided
from secateur.repair.whitened import whitened

__all__ = ["batchnorm", "chain", "compensation", "distil", "least_squares", "mean_bias", "two_sided", "whitened"]
