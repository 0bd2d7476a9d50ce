"""The study page: what stands between <body> and </body>. Table first, then why to believe it."""

from __future__ import annotations

__all__ = ["TEMPLATE"]

TEMPLATE = """
<header>
  <p class="kind">Study · scale “{{ scale.name }}”</p>
  <h1>{{ study.name }}</h1>
  {% if study.question %}<p class="sub">{{ study.question }}</p>{% endif %}
  {% if not results.is_complete %}<p class="alert">{{ results.cells_done }} of {{ results.cells }} cells are done. Arms with missing seeds say "incomplete" and are compared with nothing.</p>{% endif %}
  {% for note in warnings %}<p class="alert">{{ note }}</p>{% endfor %}
</header>
<main>
<section class="tiles">
{% for value, what, detail in tiles %}  <div class="tile"><b>{{ value }}</b><span>{{ what }}</span><small>{{ detail }}</small></div>
{% endfor %}</section>

<section>
  <h2>Influence of the data</h2>
  <p class="lead">Every arm sees the same number of clips{% if study.alpha %}; only the data differ{% endif %}. Top-1 accuracy in %, ± standard deviation over {{ scale.seeds | length }} seeds;
  below it the difference to <b>{{ baseline }}</b> in points with its {{ confidence }} interval, and the verdict.</p>
  <div class="wide"><table class="big">
  <thead><tr><th>pre-training data</th><th>videos</th><th>clips</th><th>clips seen</th><th>repeats</th>
  {% for task in tasks %}<th>{{ task.name }}<small>{{ task.detail }}</small></th>{% endfor %}</tr></thead>
  <tbody>
  {% for row in rows %}<tr><th><span class="swatch" style="background:{{ row.color }}"></span>{{ row.name }}<small>{{ row.data }}</small></th>
    <td>{{ row.videos }}</td><td>{{ row.clips }}</td><td>{{ row.seen }}</td><td>{{ row.repeats }}</td>
    {% for cell in row.cells %}<td>
      {%- if cell.word %}<span class="{{ cell.kind }}">{{ cell.word }}</span>
      {%- else %}<span class="score{{ ' best' if cell.best }}">{{ cell.score }}{{ '†' if cell.tainted }}</span><span class="spread">{{ cell.spread }}</span>
      {%- if cell.delta %}<span class="delta"><b class="{{ cell.verdict if cell.verdict in ('better', 'worse') }}">{{ cell.delta }}</b> {{ cell.range }} · {{ cell.verdict }}</span>{% endif %}
      {%- endif %}</td>
    {% endfor %}</tr>
  {% endfor %}</tbody></table></div>
  <ul class="notes">{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
</section>

{% if forests %}
<section>
  <h2>Differences and verdicts</h2>
  <p class="lead">Filled points are told apart from their baseline after Holm's correction over all pairs of a task; open ones are not.</p>
  <div class="two">
  {% for title, chart in forests %}<figure class="chart"><figcaption><b>{{ title }}</b></figcaption>{{ chart }}</figure>
  {% endfor %}</div>
  <details><summary>All pairs as a table</summary><div class="wide"><table>
  <thead><tr>{% for column in pair_table.columns %}<th{% if loop.index <= 3 or column == "verdict" %} class="word"{% endif %}>{{ column }}</th>{% endfor %}</tr></thead>
  <tbody>{% for row in pair_table.rows %}<tr>{% for cell in row %}{% if loop.first %}<th>{{ cell }}</th>{% else %}<td{% if loop.index <= 3 or loop.index == 9 %} class="word"{% endif %}>{{ cell }}</td>{% endif %}{% endfor %}</tr>
  {% endfor %}</tbody></table></div>
  <ul class="notes"><li>Differences in percentage points. "Detectable difference": what this pair would have shown with 80 % power, from its own scatter.</li></ul></details>
</section>
{% endif %}

{% if curves %}
<section>
  <h2>Accuracy against clips seen</h2>
  <p class="lead">Bars are {{ confidence }} intervals of single arms; differences between arms are sharper, because seeds and test clips are shared. Every point is a pre-training of its own length with its whole learning-rate schedule, not a checkpoint of a longer one. The bars of few seeds may run out of the picture.</p>
  {% for title, chart in curves %}<figure class="chart"><figcaption><b>{{ title }}</b></figcaption>{{ chart }}</figure>
  {% endfor %}
</section>
{% endif %}

{% if losses %}
<section>
  <h2>Loss while pre-training</h2>
  <p class="lead">Reconstruction loss of the longest runs: the mean over seeds, and each seed thin behind it. Losses of different data are not scores: easier video reads lower.</p>
  <figure class="chart">{{ losses }}</figure>
</section>
{% endif %}

{% if pictures %}
<section>
  <h2>Reconstructions</h2>
  <p class="lead">The same held-out clip through the longest run of every arm: what went in, what the encoder saw, what the decoder made of it.</p>
  <div class="pictures">
  {% for caption, uri in pictures %}<figure><img src="{{ uri }}" alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
  {% endfor %}</div>
</section>
{% endif %}

<section>
  <h2>Leak guard</h2>
  {% if leak_rows %}
  <p class="lead">Clips that training data shares with a test split, counted as distinct clips on either side. An arm with any of them is shown as n/a†.</p>
  <div class="wide"><table>
  <thead><tr><th>arm</th><th class="word">training data</th><th class="word">test split</th>{% for level in levels %}<th>{{ level }}</th>{% endfor %}<th>leaked test clips</th></tr></thead>
  <tbody>{% for row in leak_rows %}<tr><th>{{ row.arm }}</th><td class="word">{{ row.train }}</td><td class="word">{{ row.test }}</td>
  {% for count in row.counts %}<td>{{ count }}</td>{% endfor %}<td class="bad">{{ row.total }}</td></tr>{% endfor %}</tbody></table></div>
  {% else %}<p class="lead">No training data shares a clip with a test split at the levels {{ study.leaks.check | join(", ") }}.</p>{% endif %}
  {% if leak_notes %}<ul class="notes">{% for note in leak_notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
  {% if evidence and evidence.leaks %}
  <h3>What dedup found of what was planted</h3>
  <div class="wide"><table>
  <thead><tr><th>level</th><th class="word">planted as</th><th>planted</th><th>found</th><th>missed</th><th>invented</th></tr></thead>
  <tbody>{% for each in evidence.leaks %}<tr><th>{{ each.level }}</th><td class="word">{{ each.kinds | join(", ") | replace("_", " ") }}</td><td>{{ each.planted }}</td><td class="{{ 'ok' if each.found == each.planted else 'bad' }}">{{ each.found }}</td>
  <td>{{ each.planted - each.found }}</td><td class="{{ 'ok' if not each.false else 'bad' }}">{{ each.false }}</td></tr>{% endfor %}</tbody></table></div>
  {% endif %}
  {% if evidence and evidence.broken_planted %}
  <h3>Broken files</h3>
  <p class="lead"><b class="{{ 'ok' if evidence.broken_rejected == evidence.broken_planted else 'bad' }}">{{ evidence.broken_rejected }} of {{ evidence.broken_planted }}</b> planted broken files were rejected with a reason{% if evidence.reasons %}: {% for reason, count in evidence.reasons.items() %}{{ count }} {{ reason }}{{ ", " if not loop.last }}{% endfor %}{% endif %}.</p>
  {% endif %}
</section>

<section>
  <h2>Time and cost</h2>
  {% if stages %}<h3>How long each stage took</h3><table class="narrow tight"><tbody>
  {% for name, seconds, share in stages %}<tr><th>{{ name }}</th><td style="width:50%"><span class="track"><i style="width:{{ share }}%"></i></span></td><td>{{ seconds | seconds }}</td></tr>
  {% endfor %}</tbody></table>{% endif %}
  {% if costs %}<h3>What each arm cost, all seeds and lengths together</h3><div class="wide"><table class="tight">
  <thead><tr><th>arm</th><th>clips seen</th><th>pre-training</th><th>clips per second</th><th>tasks</th><th>waiting for data</th><th>peak memory</th></tr></thead><tbody>
  {% for each in costs %}<tr><th>{{ each.arm }}</th><td>{{ each.clips_seen | count }}</td><td>{{ each.pretrain_seconds | seconds if each.clips_seen else "–" }}</td>
  <td>{{ (each.clips_seen / each.pretrain_seconds) | count if each.pretrain_seconds else "–" }}</td><td>{{ each.task_seconds | seconds }}</td>
  <td>{{ "%.0f" | format(100 * each.stall_seconds / (each.pretrain_seconds + each.task_seconds)) }} %</td><td>{{ each.peak_memory_bytes | bytes if each.peak_memory_bytes else "–" }}</td></tr>
  {% endfor %}</tbody></table></div>{% endif %}
</section>

<section>
  <h2>How these numbers were made</h2>
  <dl class="pairs">
  {% for key, value in methods %}<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>
  {% endfor %}</dl>
  <details><summary>Data by digest</summary><div class="wide"><table>
  <thead><tr><th>reference</th><th>clips</th><th class="word">set digest</th><th class="word">selection digest</th></tr></thead>
  <tbody>{% for each in data %}<tr><th>{{ each.reference }}</th><td>{{ each.num_clips | count }}</td><td class="word"><code>{{ each.set_digest[:16] }}</code></td><td class="word"><code>{{ (each.selection_digest or "–")[:16] }}</code></td></tr>{% endfor %}
  </tbody></table></div></details>
  <details><summary>The study file</summary><pre>{{ study.text }}</pre></details>
</section>
</main>
<footer><p>{% for key, value in versions.items() %}{{ key }} {{ value }}{{ " · " if not loop.last }}{% endfor %}</p></footer>
"""
