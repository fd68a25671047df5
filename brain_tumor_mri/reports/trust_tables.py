"""Tables of what ``trust.json`` records, for card and README: calibration, sets, decisions, foreign pictures.

``check_tables`` is of the file that ``calibrate --report`` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..labels import TITLES
from ..trust.decision import COVERAGES, DECISIONS, DEFAULT_COVERAGE
from .tables import markdown_table, percent

PARTS = {"test": "{protocol}, test", "external": "external (Br35H tumours, test)"}
"""Key under ``measured`` -> what stands in a table."""
FOREIGN, FAMILIAR = "foreign", "familiar"


def trust_tables(record: Mapping[str, Any]) -> str:
    """Return every table and note of one ``trust.json``, as Markdown."""
    parts = [calibration_table([record]), coverage_table(record), decision_table([record]), trust_note(record)]
    return "\n".join([*parts, *filter(None, (unseen_table(record), check_tables(record), left_out_table(record)))])


def calibration_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one row a model: calibration error and Brier score before and after temperature scaling."""
    rows = []
    for record in records:
        figures = record["measured"]["test"]["single"]
        rows.append(
            [
                f"{record['protocol']}, test",
                "{familiar:.2f}, unfamiliar {unfamiliar:.2f}".format(**record["calibration"]["single"]["temperature"]),
                *(percent(figures[when]["ece"]) for when in ("before", "after")),
                *(_number(figures[when]["brier"]) for when in ("before", "after")),
            ]
        )
    header = ["calibration", "temperature", "ECE before", "ECE after", "Brier before", "Brier after"]
    return markdown_table(header, rows)


def coverage_table(record: Mapping[str, Any]) -> str:
    """Return one row a part, and a class of the test part: how often the sets hold the true class, and their size."""
    rows = []
    for part, title in _measured_parts(record):
        coverage = record["measured"][part]["single"]["coverage"]
        rows.append([title, *_coverage_cells(coverage, lambda entry: entry)])
        for name in coverage[str(COVERAGES[0])].get("per_class", ()):
            cells = _coverage_cells(coverage, lambda entry, name=name: entry["per_class"][name])
            rows.append([f"- {TITLES[name]}", *cells])
    header = ["prediction sets"]
    for coverage in COVERAGES:
        header += [f"{coverage} % sets: true class in", "mean size"]
    return markdown_table(header, rows)


def decision_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one row a model and part: share of each decision, and of right answers among those that are given."""
    known = [(r, part, title) for r in records for part, title in _measured_parts(r)]
    shown = {
        name: title
        for name, title in DECISIONS.items()
        if any(name in record["measured"][part]["single"]["decisions"] for record, part, _ in known)
    }
    rows = []
    for record, part, title in known:
        figures = record["measured"][part]["single"]
        shares = [percent(figures["decisions"].get(name)) for name in shown]
        right = [percent(figures["correct"][which]) for which in ("answer", "uncertain", "all")]
        rows.append([title, str(figures["n"]), *shares, *right])
    for record in records:
        for name, figures in record["measured"].get("collections", {}).items():
            shares = [percent(figures["decisions"].get(decision)) for decision in shown]
            right = [percent(figures["correct"][which]) for which in ("answer", "uncertain", "all")]
            rows.append([f"{name}, test part of a collection that trained", str(figures["n"]), *shares, *right])
    header = ["decisions", "slices", *shown.values(), "right when answered", "right when uncertain", "right of all"]
    return markdown_table(header, rows)


def trust_note(record: Mapping[str, Any]) -> str:
    """Say what was fitted on what, what foreign pictures get, and where coverage is broken."""
    fitted, measured = record["fitted_on"], record["measured"]
    lines = [
        f"Fitted on the {sum(fitted['validation'].values()):,} validation slices of all collections that were given, "
        f"under `{record['protocol']}`; decisions at {DEFAULT_COVERAGE} % coverage. 95 % intervals: percentile "
        "bootstrap over groups."
    ]
    by_class = measured["test"]["single"]["coverage"][str(DEFAULT_COVERAGE)]["per_class"]
    short = [
        f"{TITLES[name].lower()} ({percent({'value': entry['covered']['value']})})"
        for name, entry in by_class.items()
        if entry["covered"] and entry["covered"]["value"] < DEFAULT_COVERAGE / 100
    ]
    if short:
        lines.append(
            f"On the test part {DEFAULT_COVERAGE} % sets hold the true class less often than that for "
            f"{', '.join(short)}: "
            "test patients differ from those that validated."
        )
    if "external" in measured:
        covered = measured["external"]["single"]["coverage"][str(DEFAULT_COVERAGE)]["covered"]
        promise = DEFAULT_COVERAGE / 100
        verdict = "below what they promise" if covered["value"] < promise else "as often as they promise"
        lines.append(
            f"For `external` a set is right when it holds any tumour class; {DEFAULT_COVERAGE} % sets are so "
            f"{percent(covered)} of the time, {verdict}. Sets promise nothing for slices unlike the validation slices."
        )
    return "\n".join(lines) + "\n"


def check_tables(report: Mapping[str, Any]) -> str:
    """Return what ``calibrate --report`` measured of the check: foreign pictures by kind, slices by collection."""
    measured = report["measured"]
    text = []
    if FOREIGN in measured:
        figures = measured[FOREIGN]
        text.append(_refusal_table("pictures that are no brain MRI", "to be refused", figures))
        lines = [f"AUROC against {figures['n_known']:,} held-out slices {100 * figures['auroc']:.2f} %."]
        if figures["n_without_faults"]:
            lines.append(
                f"Of the {figures['n_without_faults']} pictures that are not tiny, blank or in colour "
                f"{100 * figures['refused_without_faults']:.1f} % are refused; their AUROC is "
                f"{100 * figures['auroc_without_faults']:.2f} %."
            )
        text.append(" ".join(lines) + _let_through(figures) + "\n")
    if FAMILIAR in measured:
        text.append(_refusal_table("brain MRI of other collections", "to be let through", measured[FAMILIAR]))
    return "\n".join(text)


def unseen_table(record: Mapping[str, Any]) -> str:
    """Return what the sets are worth on collections that no training and no fit saw; empty where not recorded."""
    figures = record["measured"].get("unseen")
    if not figures:
        return ""
    rows = [
        [kind, str(row["n"]), percent(row["covered"]), f"{row['size']['value']:.2f}", *map(percent, rest)]
        for kind, row in {"all, collections alike": figures["pooled"], **figures["collections"]}.items()
        for rest in [[row[key] for key in ("unfamiliar", "answered", "right", "ece_before", "ece")]]
    ]
    header = ["never seen: neither trained nor fitted", "slices", f"{DEFAULT_COVERAGE} % sets hold", "size"]
    header += ["unfamiliar", "answered", "right of these", "ECE before", "ECE after"]
    return markdown_table(header, rows)


def left_out_table(record: Mapping[str, Any]) -> str:
    """Return how many are refused of each kind that a fit of the check did not see; empty where not recorded."""
    left_out = record["measured"].get("left_out", {})
    titles = {"foreign": "no brain MRI, to be refused", "brain": "brain MRI, to be let through"}
    rows = [
        [kind.replace("-", " "), title, str(row["n"]), f"{100 * row['refused']:.1f} %"]
        for side, title in titles.items()
        for kind, row in left_out.get(side, {}).items()
    ]
    return markdown_table(["left out of the fit", "is", "pictures", "refused"], rows) if rows else ""


def _refusal_table(title: str, wanted: str, figures: Mapping[str, Any]) -> str:
    rows = [
        [f"- {kind.replace('-', ' ')}", str(row["n"]), f"{100 * row['refused']:.1f} %", str(row["faults"])]
        for kind, row in figures["refused_by_kind"].items()
    ]
    faults = sum(row["faults"] for row in figures["refused_by_kind"].values())
    rows.insert(0, [f"all, {wanted}", str(figures["n"]), f"{100 * figures['refused']:.1f} %", str(faults)])
    return markdown_table([title, "pictures", "refused", "tiny, blank or in colour"], rows)


def _let_through(figures: Mapping[str, Any]) -> str:
    passed = [f"`{row['name']}` ({row['foreign']:.2f})" for row in figures["let_through"]]
    return f" Let through: {', '.join(passed[:6])}{', ...' if len(passed) > 6 else ''}." if passed else ""


def _measured_parts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (part, title.format(protocol=record["protocol"])) for part, title in PARTS.items() if part in record["measured"]
    ]


def _coverage_cells(coverage: Mapping[str, Any], pick: Callable[[Any], Any]) -> list[str]:
    cells = []
    for percentage in COVERAGES:
        entry = pick(coverage[str(percentage)])
        size = entry["size"]
        cells += [percent(entry["covered"]), f"{size['value']:.2f}" if size else "-"]
    return cells


def _number(figure: Mapping[str, float] | None) -> str:
    return "-" if figure is None else "{value:.3f} ({low:.3f}-{high:.3f})".format(**figure)
