"""Operators of our own for ONNX Runtime, in C++, and what compiles them."""
