"""Run ``python -m cv_patchpose.evaluation BENCHMARK ROOT ...``."""

from cv_patchpose.evaluation.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
