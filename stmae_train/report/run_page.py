"""The page of one run: what it read, how the loss fell, what came out, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stmae_train.errors import StmaeTrainError
from stmae_train.report.charts import Line, color_of, line_chart
from stmae_train.report.page import human_bytes, human_count, human_seconds, picture_uri, render_page, short_count
from stmae_train.runlog import commit

__all__ = ["run_report"]

_TEMPLATE = """
<header>
  <p class="kind">Run · {{ run.command }}</p>
  <h1>{{ name }}</h1>
  <p class="sub">{{ run.status }}, seed {{ run.seeds | join(", ") }}, started {{ run.started }}{% if run.ended %}, ended {{ run.ended }}{% endif %}</p>
  {% if run.status != "done" %}<p class="alert">This run is not done; what stands here is what it has written so far.</p>{% endif %}
  {% if leaks %}<p class="alert">Its training data holds clips of the evaluation set: {{ leaks }}.</p>{% endif %}
</header>
<main>
{% if tiles %}
<section class="tiles">
{% for value, what in tiles %}  <div class="tile"><b>{{ value }}</b><span>{{ what }}</span></div>
{% endfor %}</section>
{% endif %}
{% if charts %}
<section><h2>Training</h2><p class="lead">One point per logged interval.</p><div class="two">
{% for chart in charts %}<figure class="chart">{{ chart }}</figure>
{% endfor %}</div></section>
{% endif %}
{% if pictures %}
<section><h2>Pictures</h2><p class="lead">Input, what the encoder saw, and the reconstruction.</p><div class="pictures">
{% for name, uri in pictures %}<figure><img src="{{ uri }}" alt="{{ name }}"><figcaption>{{ name }}</figcaption></figure>
{% endfor %}</div></section>
{% endif %}
{% if data %}
<section><h2>Data</h2><p class="lead">What the run read, by digest.</p><div class="wide"><table>
<thead><tr><th>reference</th><th class="word">role</th><th>clips</th><th>videos</th><th>repeats per video</th><th class="word">digest</th></tr></thead>
<tbody>
{% for each in data %}<tr><th>{{ each.reference }}</th><td class="word">{{ each.role }}</td><td>{{ each.clips | count }}</td><td>{{ each.unique_videos | count }}</td>
<td>{{ "%.1f" | format(each.repeats_per_video) if each.repeats_per_video else "–" }}</td><td class="word"><code>{{ each.digest[:12] }}</code></td></tr>
{% endfor %}</tbody></table></div></section>
{% endif %}
<section><h2>Settings</h2><details><summary>config.toml, everything resolved</summary><pre>{{ config }}</pre></details>
<h3>Versions</h3><dl class="pairs">{% for key, value in run.versions.items() %}<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl></section>
</main>
<footer><p>{{ run.argv | join(" ") }}</p></footer>
"""


def run_report(run_dir: Path, *, html: Path | None = None) -> Path:
    """Write the page of one run folder: `report.html` in it, or `html`.

    Raises:
        StmaeTrainError: the folder holds no run, or a picture in it is no PNG.
    """
    if not (run_dir / "run.json").is_file():
        raise StmaeTrainError(f"{run_dir} holds no run (no run.json); give the folder of a run, such as runs/first.")
    run: dict[str, Any] = {
        "status": "?",
        "seeds": [],
        "versions": {},
        "argv": [],
        "started": "?",
        "ended": None,
        "command": "run",
    }
    run |= _read(run_dir / "run.json")
    config = run_dir / "config.toml"
    values = {
        "name": run_dir.name,
        "run": run,
        "leaks": json.dumps(run["leaks"]) if run.get("leaks") else "",
        "tiles": _tiles(_read(run_dir / "cost.json"), _read(run_dir / "metrics.json")),
        "charts": _charts(_records(run_dir / "log.jsonl")),
        "pictures": [(each.stem, picture_uri(each)) for each in sorted((run_dir / "pictures").glob("*.png"))],
        "data": _read(run_dir / "data.json").get("sets", []),
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
    }
    target = html or run_dir / "report.html"
    with commit(target) as stream:
        stream.write(render_page(_TEMPLATE, values, title=f"{run_dir.name} · run").encode())
    return target


def _tiles(cost: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The facts that stand at the top, those that are known."""
    tiles = []
    if "top1" in metrics:
        tiles.append((f"{100 * metrics['top1']:.1f} %", "top-1 accuracy"))
    if metrics.get("num_clips"):
        tiles.append((human_count(metrics["num_clips"]), "test clips"))
    if cost.get("clips"):
        tiles.append((human_count(cost["clips"]), "clips seen"))
    if cost.get("seconds"):
        tiles.append((human_seconds(cost["seconds"]), "wall time"))
        tiles.append((f"{cost.get('stall_seconds', 0) / cost['seconds']:.0%}", "of it waiting for data"))
    if cost.get("bytes_read"):
        tiles.append((human_bytes(cost["bytes_read"]), "read"))
    if cost.get("memory_bytes"):
        tiles.append((human_bytes(cost["memory_bytes"]), "peak memory"))
    return tiles


def _charts(records: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Loss and learning rate against clips seen; speed where it was logged."""
    charts: list[Markup] = []
    for key, title, text in (
        ("loss", "loss", lambda value: f"{value:.3g}"),
        ("lr", "learning rate", lambda value: f"{value:.1e}"),
        ("clips_per_second", "clips per second", human_count),
        ("grad_norm", "gradient norm", lambda value: f"{value:.3g}"),
    ):
        points = tuple((float(each["clips"]), float(each[key])) for each in records if each.get(key) is not None)
        if len(points) < 2:
            continue
        charts.append(
            line_chart(
                [Line("", color_of(len(charts)), points)],
                title=f"{title} against clips seen",
                x_label="clips seen",
                y_label=title,
                x_text=short_count,
                y_text=text,
                width=460,
                height=260,
            )
        )
    return charts


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of the run, or nothing where it is missing."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise StmaeTrainError(f"{path} is not JSON ({error}); restore it or run the command again.") from error
    return dict(value)


def _records(path: Path) -> list[dict[str, Any]]:
    """Records of log.jsonl; a torn last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
