"""Pages of training: one run as HTML, and the parts that other pages are made of."""

from stmae_train.report.charts import ForestRow, Line, color_of, forest_chart, line_chart
from stmae_train.report.page import human_bytes, human_count, human_seconds, picture_uri, render_page, short_count
from stmae_train.report.run_page import run_report

__all__ = [
    "ForestRow",
    "Line",
    "color_of",
    "forest_chart",
    "human_bytes",
    "human_count",
    "human_seconds",
    "line_chart",
    "picture_uri",
    "render_page",
    "run_report",
    "short_count",
]
