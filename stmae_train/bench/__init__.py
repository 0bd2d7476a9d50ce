"""Benchmarks of training against the libraries people use today; each gives one value in the shape `bench` of FORMATS."""

from stmae_train.bench.decode import DecodeBench, bench_decode
from stmae_train.bench.loader import LoaderBench, bench_loader
from stmae_train.bench.step import DTYPES, SIZES, StepBench, bench_step

__all__ = [
    "DTYPES",
    "SIZES",
    "DecodeBench",
    "LoaderBench",
    "StepBench",
    "bench_decode",
    "bench_loader",
    "bench_step",
]
