"""Measurements on real photographs: accuracy of poses and of the matches they give.

Each benchmark is one file with a frozen protocol, ``run_benchmark(root, protocol, jobs)`` and
rows of named numbers; :mod:`cv_patchpose.evaluation.cli` is the command around them.
"""
