"""The tables that card and README show of trust.json."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.render_tables import render_results
from brain_tumor_mri.evaluation.trust import foreign_figures, trust_figures
from brain_tumor_mri.labels import ANY_TUMOR, TITLES
from brain_tumor_mri.reports.plots import plot_unseen
from brain_tumor_mri.reports.trust_tables import check_tables, trust_tables
from brain_tumor_mri.trust import calibration
from brain_tumor_mri.trust.calibration import Outputs


@pytest.fixture
def record() -> dict:
    """A trust.json as the command writes it, of simulated answers."""
    rng = np.random.default_rng(0)

    def part(labels: np.ndarray) -> Outputs:
        n = len(labels)
        logits = rng.normal(0, 1, (n, 2, 4)) + 3 * np.eye(4)[np.maximum(labels, 0)][:, None]
        return Outputs(
            logits, rng.normal(size=(n, 6)), [None] * n, labels, [str(i // 3) for i in range(n)], ["page"] * n, "x" * n
        )

    validation, test, external = part(np.arange(300) % 4), part(np.arange(200) % 4), part(np.full(60, ANY_TUMOR))
    foreign = part(np.zeros(9, int))
    known = part(np.arange(200) % 4)
    trust, _ = calibration.fit_trust("f" * 64, "layer3", validation=validation, known=known, foreign=foreign)
    measured = {
        name: {"single": trust_figures(trust, outputs)} for name, outputs in (("test", test), ("external", external))
    }
    measured["foreign"] = foreign_figures(trust, part(np.zeros(9, int)), [test])
    fitted_on = {"validation": {"kaggle": 250, "br35h": 50}}
    more = {"protocol": "patient-disjoint fold 1", "fitted_on": fitted_on, "measured": measured}
    return json.loads(json.dumps(trust.to_dict() | more))


def test_the_tables_show_the_recorded_figures(record: dict):
    text = trust_tables(record)
    figures = record["measured"]["test"]["single"]
    for figure in (figures["after"]["ece"], figures["coverage"]["95"]["covered"], figures["decisions"]["uncertain"]):
        assert f"{100 * figure['value']:.1f} % ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})" in text
    assert (
        "{familiar:.2f}, unfamiliar {unfamiliar:.2f}".format(**record["calibration"]["single"]["temperature"]) in text
    )
    for title in TITLES.values():
        assert f"| - {title} |" in text


def test_collections_that_no_fit_saw_have_a_table_where_they_were_measured(record: dict):
    assert "neither trained nor fitted" not in trust_tables(record)
    figure = {"value": 0.8, "low": 0.7, "high": 0.9}
    row = dict.fromkeys(("covered", "unfamiliar", "answered", "ece_before", "ece"), figure)
    row |= {"size": {"value": 1.5}, "right": None, "n": 40}
    record["measured"]["unseen"] = {"pooled": row | {"n": 80}, "collections": {"a": row, "b": row}}
    text = trust_tables(record)
    for name, n in (("all, collections alike", 80), ("a", 40), ("b", 40)):
        assert f"| {name} | {n} | 80.0 % (70.0-90.0) | 1.50 | 80.0 %" in text


def test_the_note_says_whether_coverage_holds_for_the_other_collection(record: dict):
    entry = record["measured"]["external"]["single"]["coverage"]["95"]["covered"]
    assert "as often as they promise" in trust_tables(record) or entry["value"] < 0.95
    entry["value"] = 0.81
    assert "81.0 %" in trust_tables(record) and "below what they promise" in trust_tables(record)


def test_classes_that_are_covered_too_rarely_are_named(record: dict):
    by_class = record["measured"]["test"]["single"]["coverage"]["95"]["per_class"]
    for entry in by_class.values():
        entry["covered"]["value"] = 0.96
    assert "less often than that" not in trust_tables(record)
    by_class["notumor"]["covered"]["value"] = 0.911
    assert "less often than that for no tumour (91.1 %)" in trust_tables(record)


def test_foreign_pictures_that_pass_are_named(record: dict):
    passed = record["measured"]["foreign"]["let_through"]
    assert passed and f"`x` ({passed[0]['foreign']:.2f})" in trust_tables(record)


def test_a_block_of_a_markdown_file_is_rendered(record: dict, tmp_path: Path):
    (tmp_path / "trust.json").write_text(json.dumps(record))
    text = render_results("# A\n<!-- trust: trust.json -->\nstale text\n<!-- /trust -->\nend\n", tmp_path)
    assert "stale text" not in text and trust_tables(record) in text and text.endswith("<!-- /trust -->\nend\n")
    assert render_results(text, tmp_path) == text


def test_the_tables_of_a_report_name_kinds_collections_and_what_is_let_through():
    kinds = {"head-CT": {"n": 4, "refused": 0.5, "faults": 0}, "page": {"n": 4, "refused": 1.0, "faults": 3}}
    passed = [{"name": f"head-CT/{i}.png", "foreign": 0.4} for i in range(2)]
    foreign = {"n": 8, "refused": 0.75, "refused_by_kind": kinds, "let_through": passed, "n_known": 1577}
    foreign |= {"n_without_faults": 5, "refused_without_faults": 0.6, "auroc": 0.9, "auroc_without_faults": 0.8}
    familiar = {"n": 3, "refused": 1 / 3, "refused_by_kind": {"ITK-T1": {"n": 3, "refused": 1 / 3, "faults": 0}}}
    text = check_tables({"measured": {"foreign": foreign, "familiar": familiar}})
    assert "| all, to be refused | 8 | 75.0 % | 3 |" in text and "| - head CT | 4 | 50.0 % | 0 |" in text
    assert "Of the 5 pictures that" in text and "60.0 % are refused; their AUROC is 80.00 %" in text
    assert "against 1,577 held-out slices 90.00 %." in text
    assert "`head-CT/1.png` (0.40)." in text and "| all, to be let through | 3 | 33.3 % | 0 |" in text
    assert "ITK" not in check_tables({"measured": {"foreign": foreign}})
    assert "no brain MRI" not in check_tables({"measured": {"familiar": familiar}})
    faulty = foreign | {"n_without_faults": 0, "refused_without_faults": None, "auroc_without_faults": None}
    assert "Of the 0" not in check_tables({"measured": {"foreign": faulty}})


def test_kinds_left_out_of_the_fit_have_a_table(record: dict):
    assert "left out of the fit" not in trust_tables(record)
    record["measured"]["left_out"] = {
        "foreign": {"head-ct": {"n": 4, "refused": 0.75}},
        "brain": {"kaggle": {"n": 9, "refused": 0}},
    }
    text = trust_tables(record)
    assert "| head ct | no brain MRI, to be refused | 4 | 75.0 % |" in text
    assert "| kaggle | brain MRI, to be let through | 9 | 0.0 % |" in text


def test_collections_that_no_fit_saw_have_a_plot(tmp_path: Path):
    figure, none = {"value": 0.8, "low": 0.7, "high": 0.9}, {"value": 0.0, "low": 0.0, "high": 0.0}
    row = {"n": 40, "covered": figure, "unfamiliar": figure, "answered": {"value": 0.1}, "right": figure}
    sizes = []
    for figures in ({"a": row}, {"a": row, "b": row | {"unfamiliar": {"value": 1.0}, "answered": none, "right": None}}):
        plot_unseen(figures, tmp_path / "unseen.png", "a model")
        with Image.open(tmp_path / "unseen.png") as image:
            sizes.append(image.height)
            assert len(image.convert("RGB").getcolors(10**6)) > 50
    assert sizes[1] > sizes[0]  # a row a collection
