"""Compilers of C++ and CUDA, and their cache."""
