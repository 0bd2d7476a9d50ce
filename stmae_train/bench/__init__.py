"""Benchmarks of training against the libraries people use today; each gives one value in the shape `bench` of FORMATS."""

from stmae_train.bench.step import DTYPES, SIZES, StepBench, bench_step

__all__ = ["DTYPES", "SIZES", "StepBench", "bench_step"]
