"""ONNX files, read as steps of a program."""
