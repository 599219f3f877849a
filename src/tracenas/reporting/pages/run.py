"""One self-contained page per run: no library, no external file, readable without JavaScript and on paper."""

from tracenas.reporting.charts import run as charts
from tracenas.reporting.charts.drawing import UNIT_NAMES, architecture_drawing
from tracenas.reporting.charts.dynamics import Generation, generations
from tracenas.reporting.data.run import Compared, RunData
from tracenas.reporting.data.stages import Stages
from tracenas.reporting.formats import count, data_size, decimal, duration, percent, plural, proxy_label
from tracenas.reporting.pages import tables
from tracenas.reporting.pages.markup import Markup, el, join
from tracenas.reporting.pages.page import Section, asset, document, figure, header, section_head, stat_card, unfinished
from tracenas.reporting.pages.published_model import published_model
from tracenas.reporting.pages.stage_sections import progress_card
from tracenas.reporting.pages.stage_sections import sections as stage_sections
from tracenas.reporting.pages.verdict import Verdict, judge

__all__ = ["render"]


def render(run: RunData) -> str:
    """The page as text."""
    history = generations(run)
    verdict = judge(run)
    stages = Stages.read(run.path)
    sections: list[Section] = [
        ("comparison", "Comparison", _comparison(run, verdict)),
        *stage_sections(stages),
        ("published-model", "Answers", published_model(stages.published)),
        ("architecture", "Architecture", _architecture(run)),
        ("search", "Search", _search(run, history)),
        ("candidates", "Candidates", _candidates(run)),
        ("settings", "Settings", _settings(run)),
    ]
    return document(
        f"{run.model}: tracenas search report",
        header("search report", run.model, _chips(run), sections),
        _cards(run, verdict),
        sections,
        footer=_footer(run),
        script=asset("page.js"),
    )


def _chips(run: RunData) -> list[str | Markup]:
    _, limit = run.budget
    facts: list[str | Markup] = []
    if limit and run.base_params:
        facts.append(f"Budget {count(limit)} parameters ({percent(limit / run.base_params)} of base)")
    elif limit:
        facts.append(f"Budget {count(limit)} parameters")
    strategy = run.setting("strategy")
    facts += [f"Strategy {strategy}"] if strategy else []
    facts.append(f"Proxy {run.proxy}" + (" (Φ)" if run.proxy == "phi" else ""))
    seed = run.setting("seed")
    facts += [] if seed is None else [f"Seed {seed}"]
    if not run.finished:
        facts.append(unfinished("Search"))
    return facts


def _cards(run: RunData, verdict: Verdict) -> Markup:
    cards = [_params_card(run), _perplexity_card(run, verdict), _score_card(run), _depth_card(run)]
    failed = sum(number for _, number in run.failures)
    evaluations = run.number("evaluations")
    number = len(run.candidates) if evaluations is None else round(evaluations)
    duplicates = run.number("duplicates")
    notes = [f"{failed:,} failed"] if failed else []
    notes += [plural(round(duplicates), "duplicate") + " redrawn"] if duplicates else []
    stopped = run.number("stopped")
    notes += [f"{round(stopped):,} stopped early, clearly worse than the elites"] if stopped else []
    cards.append(stat_card("Candidates evaluated", f"{number:,}", ", ".join(notes) or "none failed"))
    if run.seconds is not None:
        memory = run.number("peak_memory_bytes")
        per = f"{duration(run.seconds / number)} per candidate" if number else None
        peak = f"peak memory {data_size(memory)}" if memory else None
        cards.append(stat_card("Search time", duration(run.seconds), ", ".join(filter(None, [per, peak])) or None))
    shown = [card for card in cards if card]
    return el("div", *shown, class_="cards two" if len(shown) == 4 else "cards")


def _params_card(run: RunData) -> Markup | None:
    found = run.compared("found")
    params = found.params if found and found.params else (run.best.params if run.best else None)
    if params is None:
        return stat_card("Parameters of the base", count(run.base_params)) if run.base_params else None
    if not run.base_params:
        return stat_card("Parameters found", count(params))
    share = params / run.base_params
    value = join(el("span", count(run.base_params), class_="from"), el("span", "→", class_="arrow"), count(params))
    gauge = el(
        "svg",
        el("rect", width="100%", height="100%", rx=3, class_="track"),
        el("rect", width=f"{100 * share:.1f}%", height="100%", rx=3, class_="fill accent"),
        class_="gauge",
        aria_hidden="true",
    )
    return stat_card("Parameters, base to found", value, join(gauge, f"{percent(share)} of base"))


def _perplexity_card(run: RunData, verdict: Verdict) -> Markup | None:
    base, found = run.compared("base"), run.compared("found")
    if found is None or found.perplexity is None:
        return None
    if found.later and found.later[-1][1] is not None:
        return _later_card(base, found)
    before = base.perplexity if base else None
    parts = [el("span", decimal(before, 3), class_="from"), el("span", "→", class_="arrow")] if before else []
    notes = {
        "won": "lower than uniform and random",
        "tied": "as good as the best rival",
        "lost": f"{verdict.winner.name if verdict.winner else 'a rival'} is better",
        "unknown": "no rival measured",
    }
    return stat_card(
        "Perplexity, base to found",
        join(*parts, decimal(found.perplexity, 3)),
        notes[verdict.outcome],
        verdict.outcome,
    )


def _later_card(base: Compared | None, found: Compared) -> Markup:
    """The perplexity after the last stage, and those on the way there."""
    *before, (name, last) = [("as scored", found.perplexity), *found.later]
    whole = base.perplexity if base else None
    parts = [el("span", decimal(whole, 3), class_="from"), el("span", "→", class_="arrow")] if whole else []
    note = ", ".join(f"{stage} {decimal(value, 3)}" for stage, value in before)
    return stat_card(f"Perplexity, base to {name}", join(*parts, decimal(last, 3)), note)


def _score_card(run: RunData) -> Markup:
    label = proxy_label(run.proxy)
    if run.best is None or run.best.score is None:
        return stat_card(f"Best {label}", "none", "no candidate got a score", "lost")
    if run.proxy != "phi":
        return stat_card(f"Best {label}", decimal(run.best.score))
    blocks = sum(any(u > 0 for u in units) for units in zip(*run.base_units.values(), strict=True))
    keys = sum(1 for key in run.base_units if key != "kv_heads")
    limit = blocks * keys if keys == 2 else None
    return stat_card(f"Best {label}", decimal(run.best.score), f"the base model's is {limit}" if limit else None)


def _depth_card(run: RunData) -> Markup | None:
    if run.best is None:
        return None
    layers = run.best.architecture.layers
    active = sum(not layer.skip for layer in layers)
    notes = []
    for key in run.base_units:
        if key != "kv_heads":
            kept = sum(dict(layer.kept).get(key, 0) for layer in layers)
            units = UNIT_NAMES[key].removeprefix("attention ").removeprefix("MLP ")
            notes.append(f"{percent(kept / max(sum(run.base_units[key]), 1), 0)} of {units}")
    value = join(f"{active}", el("span", f" of {len(layers)}", class_="from"))
    return stat_card("Blocks kept", value, ", ".join(notes))


def _comparison(run: RunData, verdict: Verdict) -> Markup | None:
    if not run.comparison:
        return None
    icon = {"won": "✓", "tied": "=", "lost": "!", "unknown": "?"}[verdict.outcome]
    remarks = [el("p", remark) for remark in verdict.remarks]
    note = el(
        "div",
        el("span", icon, class_="icon", aria_hidden="true"),
        el("div", el("p", el("b", verdict.sentence)), *remarks),
        class_=f"verdict {verdict.outcome}",
    )
    measured = any(row.perplexity is not None and row.perplexity > 0 for row in run.comparison)
    if measured:
        picture = el("div", charts.perplexity_chart(run.comparison, verdict.winner), class_="card")
        note = el("div", note, picture, class_="split")
    table = el("div", tables.comparison_table(run, verdict), class_="card flush")
    lead = f"{_measured_on(run)}; the pruned models right after pruning, within the same budget."
    return join(section_head("Found against base, uniform and random", lead), note, table, progress_card(run))


def _measured_on(run: RunData) -> str:
    texts = {(row.text, row.tokens) for row in run.comparison if row.perplexity is not None and row.text}
    if len(texts) > 1:
        return "Attention: the models were not measured on the same text"
    if not texts:
        return "Base, uniform, random and found side by side"
    ((text, tokens),) = texts
    return f"Perplexity on {text}" + (f" ({tokens:,} tokens)" if tokens else "")


def _architecture(run: RunData) -> Markup | None:
    if run.best is None:
        return None
    lead = "What each layer keeps. Hatched: the sub-block is bypassed through the residual stream."
    if run.best.rho:
        lead += " ρ is the trace correlation with the base model."
    if not run.base_units_known:
        lead += " The base model's widths are not recorded; widths are relative to the widest candidate."
    drawing = el("div", architecture_drawing(run, run.best), class_="card")
    return join(section_head("The found architecture", lead), drawing)


def _search(run: RunData, history: list[Generation]) -> Markup | None:
    if not any(g.elites for g in history):
        return None
    label = proxy_label(run.proxy)
    picture, remark = charts.score_chart(history, run.best, label)
    keys = el(
        "div",
        *(
            el("span", el("i", class_=f"swatch-{kind}"), name, class_="key")
            for kind, name in (("best", "best so far"), ("mean", "elites’ mean"), ("band", "elites’ range"))
        ),
        el("span", el("i", class_="swatch-dot"), "candidate", class_="key"),
        el("span", el("i", "★", class_="swatch-star"), "found", class_="key"),
        class_="legend",
    )
    note = f"The {run.elites} best so far are the elites." + (f" {remark}." if remark else "")
    figures = [figure(f"{label} per generation", note, picture, keys)]
    for key in charts.NAMES:
        if key in run.base_units:
            chart = charts.width_chart(history, run, key)
            explained = f"Share of {UNIT_NAMES[key]} kept, elites’ mean. Hatched: elites’ share that skips the layer."
            figures.append(
                figure(f"{charts.NAMES[key]} width", explained, chart, charts.heat_legend(history, run, key))
            )
    lines = el(
        "div",
        *(el("span", el("i", class_=f"swatch-line {k}"), charts.NAMES[k], class_="key") for k in run.base_units),
        class_="legend",
    )
    spread_note = "Of the retention ratios over the population, averaged over layers."
    figures.append(figure("Population variance", spread_note, charts.variance_chart(history), lines))
    lead = f"{plural(len(run.candidates), 'candidate')} over {plural(len(history), 'generation')}."
    if len(history) > charts.COLUMNS:
        lead += f" The width maps show every {-(-len(history) // charts.COLUMNS)}th generation."
    return join(section_head("How the search went", lead), el("div", *figures, class_="figures"))


def _candidates(run: RunData) -> Markup | None:
    if not run.candidates:
        return None
    parts: list[Markup] = []
    if run.scored:
        head = section_head("Best candidates", f"The highest {proxy_label(run.proxy)} of the journal.")
        parts += [head, el("div", tables.candidates_table(run), class_="card flush")]
    if run.failures:
        parts += [el("h2", "Failed candidates"), el("div", tables.failures_table(run), class_="card")]
    return join(*parts)


def _settings(run: RunData) -> Markup | None:
    groups = {
        "Settings": run.config,
        "Checkpoint": run.summary.get("checkpoint"),
        "Provenance": run.provenance,
    }
    cards = tables.settings_cards(groups)
    return join(section_head("Settings and provenance"), cards) if cards else None


def _footer(run: RunData) -> Markup:
    return el("footer", f"Made by tracenas from {run.path}. Φ and ρ are defined in TraceNAS, equations 1 and 2.")
