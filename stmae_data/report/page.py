"""The page: one Jinja2 template, autoescaped, no script, nothing loaded from anywhere. Charts are drawn as inline SVG by its macros,
which the other pages share."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from stmae_data.report.style import STYLE
from stmae_data.report.text import human_bytes, human_count, shown

__all__ = ["render", "render_page"]

_MACROS = """
{%- macro histogram(chart) -%}
<figure class="chart">
  <figcaption><b>{{ chart.title }}</b><span>{{ chart.note }}</span></figcaption>
  <svg viewBox="-1 -12 322 140" role="img" aria-label="{{ chart.title }}: {{ chart.note }}">
    <line class="grid" x1="0" x2="320" y1="0.5" y2="0.5"/>
    <line class="grid" x1="0" x2="320" y1="55" y2="55"/>
    <text class="mark" x="320" y="-3" text-anchor="end">{{ chart.top | count }}</text>
    {%- for bar in chart.bars if bar.height %}
    <rect class="bar" x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}"><title>{{ bar.tip }}</title></rect>
    {%- endfor %}
    <line class="axis" x1="0" x2="320" y1="110" y2="110"/>
    {%- for tick in chart.ticks %}
    <text class="mark" x="{{ tick.x }}" y="123" text-anchor="{{ tick.anchor }}">{{ tick.text }}</text>
    {%- endfor %}
  </svg>
</figure>
{%- endmacro -%}
{%- macro lines(rows, total) -%}
<div class="lines">
  {%- for row in rows %}
  <div class="line">
    <span class="name"><bdi>{{ row.name }}</bdi>{% if row.note %}<small>{{ row.note }}</small>{% endif %}</span>
    <svg class="track" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true"><rect class="rail" width="100" height="8"/><rect class="bar {{ row.kind }}" width="{{ row.share }}" height="8"/></svg>
    <span class="count">{{ row.count | count }}{% if total %}<small>{{ "%.1f" | format(100 * row.count / total) }} %</small>{% endif %}</span>
  </div>
  {%- endfor %}
</div>
{%- endmacro -%}
{%- macro still(jpeg_base64, alt) -%}
{%- if jpeg_base64 -%}
<img alt="{{ alt }}" src="data:image/jpeg;base64,{{ jpeg_base64 }}">
{%- else -%}
<div class="blank">cannot be read</div>
{%- endif -%}
{%- endmacro -%}
{%- macro clip_figure(jpeg_base64, title, clip_id) -%}
<figure>
  {{ still(jpeg_base64, title) }}
  <figcaption><b><bdi>{{ title }}</bdi></b><span>{{ caller() }}</span><code title="{{ clip_id }}">{{ clip_id }}</code></figcaption>
</figure>
{%- endmacro -%}
{%- macro pairs(values) -%}
<dl class="pairs">
  {%- for name, value in values %}
  <div><dt>{{ name }}</dt><dd{% if value is hash %} class="hash"{% endif %}><bdi>{{ value }}</bdi></dd></div>
  {%- endfor %}
</dl>
{%- endmacro -%}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ name }} · shard set</title>
<style>{{ style }}</style>
</head>
<body>
<header>
  <p class="kind">Shard set</p>
  <h1>{{ name }}</h1>
  <p class="sub">{{ subtitle }}</p>
  {%- if not is_sealed %}
  <p class="alert">This set is not sealed: its build has not finished. The numbers are those of the shards committed so far.</p>
  {%- endif %}
</header>
<main>
<section class="tiles" aria-label="Headline numbers">
  {%- for tile in tiles %}
  <div class="tile"><b>{{ tile.value }}</b><span>{{ tile.name }}</span><small>{{ tile.note }}</small></div>
  {%- endfor %}
</section>

<section>
  <h2>What became of every planned clip</h2>
  <p class="lead">{{ stats.planned | count }} planned = {{ stats.written | count }} written + {{ stats.dropped | count }} dropped by a rule + {{ stats.failed | count }} failed.</p>
  <svg class="stack" viewBox="0 0 1000 1" preserveAspectRatio="none" role="img" aria-label="Share of written, dropped and failed clips">
    {%- for bar in outcome_bars %}
    <rect class="{{ bar.kind }}" x="{{ bar.x }}" width="{{ bar.width }}" height="1"><title>{{ bar.tip }}</title></rect>
    {%- endfor %}
  </svg>
  <p class="legend"><span class="written">written</span><span class="dropped">dropped</span><span class="failed">failed</span></p>
  {%- if reasons %}
  <h3>Reasons</h3>
  {{ lines(reasons, stats.planned) }}
  {%- endif %}
  {%- if flags %}
  <h3>Flags on written clips</h3>
  {{ lines(flags, stats.written) }}
  {%- endif %}
  <h3>Splits</h3>
  <div class="wide"><table>
    <thead><tr><th>split</th><th>planned</th><th>written</th><th>dropped</th><th>failed</th><th>classes</th><th>hours</th><th>median s</th><th>shards</th><th>stored</th></tr></thead>
    <tbody>
    {%- for split in stats.splits %}
      <tr><th scope="row">{{ split.split }}</th><td>{{ split.planned | count }}</td><td>{{ split.written | count }}</td><td>{{ split.dropped | count }}</td><td>{{ split.failed | count }}</td><td>{{ split.classes | count }}</td><td>{{ "%.2f" | format(split.hours) }}</td><td>{{ split.durations_seconds.get("median", "–") }}</td><td>{{ split.shards | count }}</td><td>{{ split.stored_bytes | bytes }}</td></tr>
    {%- endfor %}
    </tbody>
  </table></div>
</section>

{%- if reconciled %}
<section>
  <h2>Annotated and found</h2>
  <p class="lead">What the annotations promise against the files that were there. All classes stand in <code>meta/reconciliation.parquet</code>.</p>
  <div class="wide"><table>
    <thead><tr><th>split</th><th>annotated</th><th>present</th><th>missing</th><th>replaced</th><th>not annotated</th><th>failed</th></tr></thead>
    <tbody>
    {%- for line in reconciled %}
      <tr><th scope="row">{{ line.split }}</th><td>{{ line.annotated | count }}</td><td>{{ line.present | count }}</td><td>{{ line.missing | count }}</td><td>{{ line.replaced | count }}</td><td>{{ line.unannotated | count }}</td><td>{{ line.failed | count }}</td></tr>
    {%- endfor %}
    </tbody>
  </table></div>
  {%- if lost %}
  <details><summary>Classes that lost most</summary>
  <div class="wide"><table class="small">
    <thead><tr><th>class</th><th>split</th><th>annotated</th><th>present</th><th>missing</th><th>failed</th></tr></thead>
    <tbody>
    {%- for line in lost %}
      <tr><th scope="row"><bdi>{{ line.label or "no label" }}</bdi></th><td class="word">{{ line.split }}</td><td>{{ line.annotated | count }}</td><td>{{ line.present | count }}</td><td>{{ line.missing | count }}</td><td>{{ line.failed | count }}</td></tr>
    {%- endfor %}
    </tbody>
  </table></div></details>
  {%- endif %}
</section>
{%- endif %}

{%- if pictures %}
<section>
  <h2>A look inside</h2>
  <p class="lead">{{ pictures | length }} clips chosen by the hash of their id: a fair sample, the same on every run. The middle frame of each.</p>
  <div class="pictures">
    {%- for picture in pictures %}
    {% call clip_figure(picture.jpeg_base64, picture.caption, picture.clip_id) %}{{ picture.split }}{% if picture.seconds is not none %} · {{ "%.1f" | format(picture.seconds) }} s{% endif %}{% endcall %}
    {%- endfor %}
  </div>
</section>
{%- elif store %}
<section>
  <h2>A look inside</h2>
  <p class="lead">The clips stand on <code>{{ store }}</code>; a report made where the tars are shows pictures.</p>
</section>
{%- endif %}

<section>
  <h2>Classes</h2>
  {%- if classes.number %}
  <p class="lead">{{ classes.number | count }} classes{% if classes.unlabelled %}; {{ classes.unlabelled | count }} clips have no label{% endif %}.</p>
  {%- if classes.curve %}
  <div class="charts one">{{ histogram(classes.curve) }}</div>
  <div class="two"><div><h3>Largest</h3>{{ lines(classes.lines, 0) }}</div><div><h3>Smallest</h3>{{ lines(classes.smallest, 0) }}</div></div>
  {%- else %}
  {{ lines(classes.lines, 0) }}
  {%- endif %}
  {%- else %}
  <p class="lead">No clip has a label: this set is unlabelled.</p>
  {%- endif %}
  {%- if tags %}
  <h3>Most frequent tags</h3>
  <p class="tags">{% for tag, number in tags %}<span><bdi>{{ tag }}</bdi><small>{{ number | count }}</small></span>{% endfor %}</p>
  {%- endif %}
</section>

{%- if measured %}
<section>
  <h2>Length, size and rate</h2>
  <p class="lead">Measured on decoded frames of the written clips, never taken from a file's header.</p>
  <div class="charts">{% for chart in measured %}{{ histogram(chart) }}{% endfor %}</div>
</section>
{%- endif %}

{%- if signals %}
<section>
  <h2>Signals</h2>
  <p class="lead">Measured in the pass that encoded each clip; every one of them can be filtered on in SQL, as <code>signals['name']</code>.</p>
  <div class="charts">{% for chart in signals %}{{ histogram(chart) }}{% endfor %}</div>
</section>
{%- endif %}

<section>
  <h2>Leaks and duplicates</h2>
  {%- if findings %}
  <p class="lead">What was decided, by level of sameness. Counts are of distinct clips, on both sides.</p>
  <div class="wide"><table>
    <thead><tr><th>level</th><th>reason</th><th>decision</th><th>found against</th><th>clips here</th><th>clips there</th></tr></thead>
    <tbody>
    {%- for each in findings %}
      <tr><th scope="row"><span class="level">{{ each.level or "–" }}</span></th><td class="word">{{ each.reason }}</td><td class="word">{{ each.verb }}</td><td class="word"><bdi>{{ each.other_set }}</bdi></td><td>{{ each.clips | count }}</td><td>{{ each.others | count }}</td></tr>
    {%- endfor %}
    </tbody>
  </table></div>
  <details><summary>Evidence of {{ evidence | length }} decisions</summary>
  <div class="wide"><table class="small">
    <thead><tr><th>clip</th><th>level</th><th>decision</th><th>other clip</th><th>measured</th><th>policy</th></tr></thead>
    <tbody>
    {%- for each in evidence %}
      <tr><th scope="row"><code>{{ each.clip_id }}</code></th><td class="word">{{ each.level }}</td><td class="word">{{ each.verb }}</td><td class="word"><code>{{ each.other }}</code></td><td class="word"><bdi>{{ each.measure }}</bdi></td><td class="word">{{ each.policy }}</td></tr>
    {%- endfor %}
    </tbody>
  </table></div></details>
  {%- elif was_examined %}
  <p class="lead">This set was compared with others; nothing had to be decided.</p>
  {%- else %}
  <p class="lead">Nobody has looked yet. Compare it with the other sets of the workspace: <code>stmae-data dedup {{ name }} --dry-run</code></p>
  {%- endif %}
  {%- if num_groups %}
  <h3>{{ num_groups | count }} {{ "group" if num_groups == 1 else "groups" }} of near-duplicates</h3>
  <div class="groups">
    {%- for group in groups %}
    <div class="group"><p><b>{{ group.size }} clips</b><span class="level">{{ group.kind }}</span></p><ul>
      {%- for clip_id, is_keeper in group.members %}
      <li{% if is_keeper %} class="keeper"{% endif %}><code>{{ clip_id }}</code></li>
      {%- endfor %}
      {%- if group.size > group.members | length %}<li>and {{ group.size - group.members | length }} more</li>{% endif %}
    </ul></div>
    {%- endfor %}
  </div>
  {%- endif %}
</section>

<section>
  <h2>Where it comes from</h2>
  <div class="two">
    <div><h3>Made from</h3>{{ pairs(provenance) }}</div>
    <div><h3>Recipe</h3>{{ pairs(recipe) }}</div>
  </div>
  <div class="two">
    <div><h3>Sources and rights</h3>{{ pairs(sources) }}</div>
    <div><h3>Versions</h3>{{ pairs(versions) }}</div>
  </div>
  {%- if shards %}
  <details><summary>{{ num_shards | count }} {{ "shard and its checksum" if num_shards == 1 else "shards and their checksums" }}</summary>
  <div class="wide"><table class="small">
    <thead><tr><th>shard</th><th>samples</th><th>seconds</th><th>bytes</th><th>sha256</th></tr></thead>
    <tbody>
    {%- for shard in shards %}
      <tr><th scope="row"><code>{{ shard.name }}.tar</code></th><td>{{ shard.samples | count }}</td><td>{{ shard.seconds | count }}</td><td>{{ shard.bytes | count }}</td><td class="word"><code>{{ shard.sha256 }}</code></td></tr>
    {%- endfor %}
    </tbody>
  </table></div>
  {%- if num_shards > shards | length %}<p class="lead">The rest stands in <code>meta/set.json</code>.</p>{% endif %}
  </details>
  {%- endif %}
</section>

<section>
  <h2>How to read it</h2>
  <div class="two">
    <div><h3>stmae-train</h3>
<pre><code>stmae-train pretrain --shards {{ name }}:{{ first_split }} --recipe demo

# is it whole, and what is in it?
stmae-data verify {{ name }}
stmae-data stats {{ name }}
stmae-data sql "SELECT outcome, reason, count(*) AS n
  FROM clip WHERE set_name = '{{ name }}' GROUP BY ALL"</code></pre></div>
    <div><h3>Plain webdataset</h3>
<pre><code>import webdataset as wds

shards = "{{ name }}/{{ brace }}"
data = wds.WebDataset(shards, shardshuffle=False)
for sample in data:
    sample["__key__"]  # the clip id
    sample["json"]     # label, times, size, source
    sample["{{ extension }}"]      # the {{ "picture" if extension == "jpg" else "video" }}, as bytes</code></pre></div>
  </div>
  <p class="lead">Every sample is <code>&lt;clip id&gt;.json</code>, then <code>&lt;clip id&gt;.{{ extension }}</code>. What did not become a sample stands with its reason in <code>meta/ledger/*.parquet</code>.</p>
</section>
</main>
<footer>{{ name }} version {{ version }} · digest <code>{{ digest }}</code></footer>
</body>
</html>
"""


def _finalize(value: Any) -> Any:
    """Every text that is printed passes here: control characters and direction overrides become visible."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(**facts: Any) -> str:
    """The page of a set as text; a missing value is an error."""
    return render_page(_PAGE, **facts)


def render_page(template: str, **facts: Any) -> str:
    """A page as text; every value is escaped where it is printed, a missing one is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_finalize, keep_trailing_newline=True
    )
    environment.filters["count"] = human_count
    environment.filters["bytes"] = human_bytes
    environment.tests["hash"] = lambda value: re.fullmatch(r"[0-9a-f]{32,}", str(value)) is not None
    return environment.from_string(_MACROS + template).render(style=Markup(STYLE), **facts).lstrip()  # noqa: S704
