"""The structs of the engine, as in kernels/engine.h."""

from __future__ import annotations

import ctypes
from enum import IntEnum


class Kind(IntEnum):
    """Operations of the engine, as in kernels/engine.h."""

    CONV, GATHER, MAXPOOL, AVGPOOL, MEAN, ADD, AFFINE, COPY, IMPORT, EXPORT, DOT, SCALE = range(12)


class Activation(IntEnum):
    """What follows a sum, as in kernels/engine.h."""

    NONE, CLAMP, HARDSWISH, SILU, SIGMOID, HARDSIGMOID, GELU = range(7)


class Plane(ctypes.Structure):
    """The layout of one tensor; kernels/engine.h says what the fields mean."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("channels", "images", "height", "width", "lanes", "row", "image", "channel", "lead", "bytes", "zero")
    ]


class Op(ctypes.Structure):
    """One operation of a program; kernels/engine.h says what the fields mean."""

    _fields_ = [
        ("kind", ctypes.c_int32), ("activation", ctypes.c_int32),
        ("low", ctypes.c_float), ("high", ctypes.c_float),
        ("input", Plane), ("output", Plane),
        ("x", ctypes.c_int64), ("y", ctypes.c_int64), ("other", ctypes.c_int64), ("other_channel", ctypes.c_int64),
        ("words", ctypes.c_void_p), ("start", ctypes.c_void_p), ("rows", ctypes.c_void_p),
        ("bias", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("mask", ctypes.c_void_p),
        ("blocks", ctypes.c_int64), ("block", ctypes.c_int64), ("tile", ctypes.c_int64), ("parts", ctypes.c_int64),
        ("split", ctypes.c_int64),
        ("kernel", ctypes.c_int64 * 2), ("stride", ctypes.c_int64 * 2),
        ("padding", ctypes.c_int64 * 2), ("phases", ctypes.c_int64 * 2),
        ("outer", ctypes.c_int64), ("inner", ctypes.c_int64), ("step", ctypes.c_int64),
        ("after", ctypes.c_int64), ("begin", ctypes.c_void_p),
        ("in_scale", ctypes.c_float), ("out_scale", ctypes.c_float),
        ("other_scale", ctypes.c_float), ("other_shift", ctypes.c_float),
    ]  # fmt: skip
