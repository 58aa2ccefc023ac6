"""Bundled ONNX models, installed as cv_patchpose.models."""
