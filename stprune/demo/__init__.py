"""`stprune demo`: full training against pruned training on one series, with a table and a report."""

from stprune.demo.main import run_demo
from stprune.demo.options import DemoOptions

__all__ = ["DemoOptions", "run_demo"]
