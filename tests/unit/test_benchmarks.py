"""The statistics of the benchmarks, their rows, their records and their arguments; nothing is measured here."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import llama_peer

from benchmarks import engine, prompts, table
from benchmarks.cells import Cell, Comparison, Wanted, all_cells
from benchmarks.contestants import ONE_THREAD, OURS, SERVER
from benchmarks.intervals import median, p95, ratio
from benchmarks.label_walk import inner_nodes
from benchmarks.measurement import _order, append, read


def cell(*rows: Comparison, sides=(OURS, SERVER)) -> Cell:
    return Cell("stream-1", "one client", None, sides, rows)


def samples(**figures):
    names = {"ours": OURS, "server": SERVER, "one": ONE_THREAD}
    return {names[side]: [{"x": value} for value in values] for side, values in figures.items()}


def only_row(comparison, found):
    (row,) = table.rows_of(cell(comparison), found)
    return row


def test_a_ratio_is_that_of_the_medians_and_lies_in_its_interval():
    found = ratio([10, 12, 11, 30], [5, 6, 5.5, 6])
    assert found.value == pytest.approx(11.5 / 5.75)
    assert found.low <= found.value <= found.high


def test_rounds_are_resampled_as_pairs():
    # Both sides share what disturbs a round: always twice as fast, so the interval has no width.
    assert ratio([2, 20, 200], [1, 10, 100])[1:] == (2, 2)


def test_sides_with_unequal_numbers_of_rounds_can_be_compared():
    found = ratio([10, 10, 10], [5, 5, 5, 5, 5])
    assert found == (2, 2, 2)


def test_p95_is_a_value_that_was_measured():
    assert p95(list(range(1, 101))) == 95
    assert p95([7.0]) == 7.0
    with pytest.raises(ValueError, match="no values"):
        p95([])


@pytest.mark.parametrize(
    ("less_is_better", "ours", "peer", "expected"), [(False, [20], [10], 2.0), (True, [20], [10], 0.5)]
)
def test_above_one_is_better_whatever_the_unit(less_is_better, ours, peer, expected):
    row = only_row(Comparison("x", "units", (SERVER,), less_is_better=less_is_better), samples(ours=ours, server=peer))
    assert row.ratio == expected
    assert row.ok is None


@pytest.mark.parametrize(
    ("wanted", "ok"),
    [
        (Wanted(ratio=1.1), False),
        (Wanted(ratio=1.0), True),
        (Wanted(reaches=1.0), True),
        (Wanted(reaches=1.3), False),
        (Wanted(at_most=10), True),
        (Wanted(at_most=9), False),
    ],
)
def test_what_is_wanted_is_held_against_the_figures(wanted, ok):
    found = samples(ours=[9, 10, 12], server=[10, 10, 10])
    row = only_row(Comparison("x", "units", (SERVER,), wanted), found)
    assert row.ok is ok
    assert str(wanted) == row.wanted


def test_the_best_fixed_setting_is_the_one_that_did_best_in_the_cell():
    comparison = Comparison("x", "units", (SERVER, ONE_THREAD))
    row = only_row(comparison, samples(ours=[9], server=[10], one=[12]))
    assert (row.peer, row.peer_name) == (12, f"the best of several, {ONE_THREAD}")


def test_a_row_in_json_has_the_agreed_fields():
    row = only_row(Comparison("x", "units", (SERVER,), Wanted(ratio=2)), samples(ours=[1], server=[1]))
    told = table.as_json(row)
    assert {"name", "ours", "peer", "ratio", "wanted", "ok"} <= told.keys()
    assert told["ok"] is False  # misses are rows like others
    json.dumps(told)


def test_a_cell_without_its_figures_gives_no_row():
    assert list(table.rows_of(cell(Comparison("x", "units", (SERVER,))), samples(ours=[1]))) == []


def test_a_table_goes_between_the_marks_of_a_document(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    rows = [only_row(Comparison("x", "units", (SERVER,), Wanted(ratio=2)), samples(ours=[1], server=[1]))]
    table.put_into(document, rows)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "**missed**" in text
    document.write_text("no marks")
    with pytest.raises(ValueError, match="has no"):
        table.put_into(document, rows)


def test_everybody_is_first_equally_often():
    firsts = [_order(("a", "b", "c"), number)[0] for number in range(6)]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]
    assert all(sorted(_order(("a", "b", "c"), number)) == ["a", "b", "c"] for number in range(6))


def test_pieces_of_one_cell_are_joined(tmp_path):
    record = tmp_path / "deep" / "record.jsonl"
    for value in (1, 2):
        append(record, cell(), samples(ours=[value], server=[value]))
    found, about = read(record)
    assert [figures["x"] for figures in found["stream-1"][OURS]] == [1, 2]
    assert len(about["commits"]) == 1
    record.write_text(record.read_text() + "nonsense\n")
    with pytest.raises(ValueError, match="line 3"):
        read(record)


def test_the_tree_of_labels_has_each_inner_node_once():
    nodes = inner_nodes([(1, 2), (1, 3), (4,)])
    assert nodes == {(): [1, 4], (1,): [2, 3]}
    assert next(iter(nodes)) == ()


def test_prompts_are_new_with_each_key_and_the_same_for_all():
    assert prompts.of_words(50, "a") == prompts.of_words(50, "a") != prompts.of_words(50, "b")
    assert len(prompts.of_words(50, "a").split()) == 50
    assert (len(set(prompts.LABELS_10)), len(set(prompts.LABELS_77))) == (10, 77)


def test_every_cell_compares_those_who_are_there():
    for name, found in all_cells().items():
        assert found.name == name
        assert all({row.ours, *row.peers} <= set(found.sides) for row in found.rows)
    assert any(found.quick_rounds for found in all_cells().values())


def test_cells_can_be_named_and_an_unknown_one_is_refused(capsys):
    assert [found.name for found in engine._cells("schema-*,memory")] == ["schema-1", "schema-4", "memory"]
    for arguments in (["--cells", "nonsense"], ["--rounds", "0"], ["--write", "x.md"]):
        with pytest.raises(SystemExit) as ended:
            engine.main(arguments)
        assert ended.value.code == 2
    assert "there is no cell 'nonsense'; --list prints them" in capsys.readouterr().err


def test_without_its_peers_it_says_how_to_build_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine.main(["--quick", "--json"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert llama_peer.COMMAND in told.err


def test_a_record_of_cells_that_are_gone_is_refused(tmp_path, capsys):
    record = tmp_path / "record.jsonl"
    append(record, Cell("gone", "x", None, (OURS,), ()), samples(ours=[1]))
    assert engine.main(["--report", str(record)]) == 1
    assert "there is no cell gone any more" in capsys.readouterr().err


def test_statistics_need_values():
    with pytest.raises(ValueError, match="no values"):
        median([])
