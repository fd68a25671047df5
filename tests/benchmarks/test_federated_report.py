"""The table of hospitals alone, federated and pooled."""

from benchmarks.accuracy.federated_report import federated_table, summary_rows


def case(accuracy: float, epsilon: float | None = None) -> dict:
    figure = {"value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02}
    left_out = {"n": 557, "auroc": figure, "tumours_found": figure, "healthy_called_tumour": None}
    return {
        "test": {"n": 1402, "accuracy": figure}, "left_out": left_out, "by_family": {"br35h": {}, "ms": {}},
        "bytes_sent": 2.5e8, "privacy": epsilon and {"epsilon": epsilon},
    }  # fmt: skip


def test_a_table_has_hospitals_alone_first_and_pooled_last_and_only_what_is_measured() -> None:
    record = {
        "hospitals": ["kaggle", "brats"], "partition": "collection",
        "settings": {"rounds": 5, "slices_per_round": 0.1, "image_size": 128},
        "cases": {"pooled": case(0.9), "federated, FedAvg, private": case(0.3, 11.2345), "kaggle alone": case(0.8)},
    }  # fmt: skip
    record["summary"] = summary_rows(record)
    assert [row[0] for row in record["summary"]] == ["kaggle alone", "federated, FedAvg, private", "pooled"]
    assert record["summary"][1][1:] == [
        "30.0 % (28.0-32.0)",
        "30.0 % (28.0-32.0)",
        "30.0 % (28.0-32.0)",
        "-",
        "250",
        "11.2",
    ]
    text = federated_table([record])
    assert text.startswith(
        "2 hospitals (collection: kaggle, brats), 5 rounds in which each draws 10% of its slices, 128 px. "
        "1402 test slices"
    )
    assert text.count("\n| ") == 4
