"""Kernels in C++: one library for every CPU, found, built where it is missing, and called through ctypes."""
