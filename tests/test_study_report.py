"""The report of a study: its numbers against ones made by hand, its sentences, tables, pictures and page, from made-up rows."""

from __future__ import annotations

import base64
import html
import html.parser
import importlib
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import study_rows

from stprune.study import figures, report, results, table
from stprune.study.results import Change, Setting
from stprune.study.rows import Point
from stprune.study.sentences import headline, sentences
from stprune.study.spec import Spec
from stprune.study.summary import series_names, summarize

LABELS = {
    "full": ("full training", "all"),
    "soft-random": ("soft random", "windows"),
    "st-prune": ("ST-Prune", "windows"),
    "nodes-uniform": ("uniform nodes", "nodes"),
    "nodes-priority": ("nodes by error", "nodes"),
    "pairs": ("single pairs", "both"),
}


def row(family="full", seed=0, *, batch=8, rate=0.01, cost=12.0, **settings):
    """A run made by hand: the short form of these tests, in which families, seeds and batches differ."""
    spec = Spec("flow", "stid", family, batch, rate, cost, seed=seed)
    return study_rows.row(spec, **settings)


def only(rows):
    """The one cell of some rows."""
    (cell,) = summarize(rows, LABELS).cells
    return cell


def seeds(family, maes, **settings):
    return [row(family, seed, mae=mae, **settings) for seed, mae in enumerate(maes)]


# --- which setting is the best ---------------------------------------------------------------------------------------


def test_the_best_setting_has_the_lowest_validation_error_whatever_its_test_error():
    rows = [row(batch=64, mae=1.0, validation=3.0), row(batch=8, mae=5.0, validation=2.0)]
    assert results.best(rows).setting == Setting(8, 0, 1.0, 0.01)
    assert results.best(rows).trials == 2


def test_settings_with_the_most_seeds_are_compared_only():
    rows = [*seeds("full", (3.0, 3.0, 3.0), batch=8), *seeds("full", (4.0, 1.0, 2.5), batch=16), row(batch=64, mae=0.5)]
    best = results.best(rows)
    assert best.setting.batch_size == 16
    assert [one.spec.seed for one in best.runs] == [0, 1, 2]
    assert best.mae == (2.5, pytest.approx(statistics.stdev([4.0, 1.0, 2.5])))


def test_the_first_of_equal_settings_is_the_best():
    rows = [row(batch=16), row(batch=8), row(batch=4)]
    assert results.best(rows).setting.batch_size == 16
    assert results.best(rows[::-1]).setting.batch_size == 4


def test_diverged_runs_are_left_out_and_counted():
    rows = [row(batch=8, mae=0.1, diverged=True), row(batch=8, seed=1, mae=2.0), row(batch=16, mae=3.0)]
    best = results.best(rows)
    assert best.setting.batch_size == 8
    assert [one.mae for one in best.runs] == [2.0]
    assert best.num_diverged == 1
    assert results.best([row(diverged=True)]) is None
    cell = only([row(), row("pairs", diverged=True, best_mae=math.inf)])
    assert cell.find("pairs") is None
    assert cell.diverged == ("single pairs",)
    assert "All runs diverged: single pairs." in sentences(cell)
    assert "1 of 2 runs diverged and are left out." in sentences(cell)


def test_a_spec_that_comes_twice_counts_once_as_its_first_row():
    study = summarize([row(mae=2.0), row(mae=9.0)], LABELS)
    assert [one.mae for one in study.rows] == [2.0]


# --- change over the seeds -------------------------------------------------------------------------------------------


def test_the_change_is_paired_over_seeds_and_has_a_t_interval():
    cell = only([*seeds("full", (1.0, 2.0, 4.0)), *seeds("pairs", (0.9, 1.9, 3.6))])
    change = cell.find("pairs").result.change
    assert change.values == pytest.approx((-10.0, -5.0, -10.0))
    assert change.mean == pytest.approx(-25 / 3)
    # t(0.975, 2) = 4.303, and the deviation of (-10, -5, -10) is the root of 25 / 3.
    assert change.half_width == pytest.approx(4.303 * math.sqrt(25 / 3) / math.sqrt(3), rel=1e-3)
    assert change.outside
    assert not Change((-10.0, 5.0, -10.0)).outside
    assert cell.full.change is None


def test_the_interval_knows_the_number_of_seeds():
    for count, quantile in ((2, 12.706), (3, 4.303), (10, 2.262), (30, 2.262)):
        values = tuple(float(i % 2) for i in range(count))
        width = quantile * statistics.stdev(values) / math.sqrt(count)
        assert Change(values).half_width == pytest.approx(width)
    assert Change((5.0,)).half_width is None


def test_one_seed_tells_apart_what_is_above_the_noise_only():
    assert not Change((0.9,)).outside
    assert Change((-1.1,)).outside


def test_seeds_that_only_one_side_has_do_not_count():
    cell = only([*seeds("full", (1.0, 2.0, 4.0)), row("pairs", 1, mae=1.0), row("pairs", 7, mae=100.0)])
    assert cell.find("pairs").result.change.values == pytest.approx((-50.0,))
    assert only([row(), row("pairs", 3)]).find("pairs").result.change is None


def test_the_change_of_the_hardest_windows_and_nodes_is_told():
    result = only([row(mae=2.0), row("pairs", mae=1.0, hard_windows_mae=9.0, hard_nodes_mae=4.0)]).find("pairs").result
    assert result.hard_windows_change.values == pytest.approx((50.0,))
    assert result.hard_nodes_change.values == pytest.approx((-50.0,))


def test_results_are_compared_at_their_own_cost():
    rows = [row(mae=2.0), row(mae=4.0, cost=3.0), row("pairs", mae=1.0), row("pairs", mae=3.0, cost=3.0)]
    found = {result.cost: result.change.mean for result in only(rows).find("pairs").results}
    assert found == {3.0: pytest.approx(-25.0), 12.0: pytest.approx(-50.0)}


def test_the_budget_is_the_largest_that_full_training_shares():
    assert only([row(cost=24.0), row(), row("pairs"), row("pairs", cost=6.0)]).cost == 12.0
    assert only([row(cost=3.0), row("pairs")]).cost == 12.0
    assert only([row(cost=3.0), row(cost=24.0)]).cost == 24.0


def test_runs_of_other_models_widths_optimizers_schedules_and_devices_are_never_compared():
    others = {"data": "demand", "model": "tsmixer", "dim": 32, "optimizer": "sgd", "rate_schedule": "constant", "device": "gpu"}
    study = summarize([row(), *(row("pairs", **{name: value}) for name, value in others.items())], LABELS)
    assert len(study.cells) == 7
    assert all(cell.find("pairs").result.change is None for cell in study.cells[1:])


def test_a_family_without_the_budget_is_shown_at_its_own_where_full_training_has_it():
    rows = [row(), row(cost=3.0, mae=4.0), row("nodes-uniform"), row("pairs", cost=3.0, mae=2.0), row("st-prune", cost=6.0)]
    cell = only(rows)
    assert cell.find("pairs").result.change.values == pytest.approx((-50.0,))
    assert cell.find("st-prune").result is None
    assert "batch 8, rate 0.01, cost 3" in table.as_text(cell)
    assert "| single pairs | **-50.0%, cost 3** |" in table.markdown(rows, LABELS)


# --- time and cost until full training's best ------------------------------------------------------------------------


def test_reach_is_the_first_validation_at_or_below_full_trainings_best():
    full = row(curve=((0.25, 4.0), (0.75, 2.0), (1.0, 2.1)))
    nodes = row("nodes-uniform", curve=((0.125, 3.0), (0.25, 2.0), (1.0, 1.0)))
    cell = only([full, nodes])
    # Full training has its best after 9 of 12 passes, the nodes are there after 3.
    assert cell.find("nodes-uniform").reach == (pytest.approx(1 / 3), pytest.approx(1 / 3), 1)
    assert cell.find("full").reach == (1.0, 1.0, 1)


def test_reach_in_time_is_measured_on_the_processor_and_on_a_gpu_on_the_wall():
    points = (Point(6.0, 1, 100.0, 3.0, 2.0),)
    cell = only([row(curve=((1.0, 2.0),)), row("pairs", points=points)])
    assert cell.find("pairs").reach == (pytest.approx(0.5), pytest.approx(3 / 120), 1)
    gpu = {"machine": {"device": "H200"}}
    cell = only([row(curve=((1.0, 2.0),), **gpu), row("pairs", points=points, **gpu)])
    assert cell.find("pairs").reach.time == pytest.approx(100 / 240)


def test_runs_with_smaller_budgets_may_be_there_first_on_both_sides():
    full = [row(curve=((0.5, 3.0), (1.0, 2.0))), row(cost=8.0, curve=((1.0, 2.0),))]
    nodes = [row("pairs", curve=((0.5, 3.0), (1.0, 1.5))), row("pairs", cost=4.0, curve=((0.5, 2.5), (1.0, 1.9)))]
    assert only([*full, *nodes]).find("pairs").reach.cost == pytest.approx(4 / 8)
    assert only([full[0], *nodes]).find("pairs").reach.cost == pytest.approx(4 / 12)
    assert only([*full, nodes[0]]).find("pairs").reach.cost == pytest.approx(12 / 8)


def test_reach_is_a_mean_over_seeds_each_with_its_own_target():
    full = [row(seed=0, curve=((1.0, 2.0),)), row(seed=1, curve=((1.0, 3.0),))]
    nodes = [row("pairs", 0, curve=((0.5, 2.0),)), row("pairs", 1, curve=((0.25, 3.0),))]
    assert only([*full, *nodes]).find("pairs").reach == (pytest.approx(0.375), pytest.approx(0.375), 2)


def test_a_smaller_budget_of_one_seed_leaves_one_seed():
    rows = [*seeds("full", (2.0, 2.0, 2.0)), *seeds("pairs", (2.0, 2.0, 2.0)), row("pairs", cost=3.0, curve=((1.0, 2.0),))]
    assert only(rows).find("pairs").reach == (pytest.approx(0.25), pytest.approx(0.25), 1)


def test_a_target_that_one_seed_never_reached_is_never_reached():
    rows = [*seeds("full", (2.0, 2.0)), row("pairs", 0, mae=1.0), row("pairs", 1, mae=2.1)]
    cell = only(rows)
    assert cell.find("pairs").reach is None
    assert table.as_text(cell).splitlines()[3].split()[-4:-2] == ["never", "never"]


# --- equal time, a sixth of the cost, the batch alone ----------------------------------------------------------------


def test_equal_time_is_read_off_between_budgets_on_logarithmic_axes():
    full = row(mae=2.0, cpu_seconds=40.0)
    slow = [row("pairs", mae=4.0, cost=3.0, cpu_seconds=20.0), row("pairs", mae=1.0, cpu_seconds=80.0)]
    # 40 s is half way between 20 s and 80 s, and 2 between 4 and 1.
    assert only([full, *slow]).find("pairs").equal_time.values == pytest.approx((0.0,))
    # A run that took less time stands for itself; one that took more says nothing.
    assert only([full, row("pairs", mae=1.5, cpu_seconds=39.0)]).find("pairs").equal_time.values == pytest.approx((-25.0,))
    assert only([full, row("pairs", mae=1.5, cpu_seconds=41.0)]).find("pairs").equal_time is None


def test_a_sixth_of_the_usual_cost_is_weighed_against_batches_of_64():
    rows = [
        row(mae=2.0, batch=64),
        row(mae=1.5, batch=8),
        row(mae=2.5, batch=8, cost=2.0),
        row("pairs"),
        row("pairs", mae=1.9, cost=2.0),
        row("pairs", mae=1.0, cost=3.0),
        row("st-prune", mae=1.0, cost=3.0),
    ]
    cell = only(rows)
    assert cell.find("full").sixth.values == pytest.approx((25.0,))
    assert cell.find("pairs").sixth.values == pytest.approx((-5.0,))
    assert cell.find("st-prune").sixth is None
    assert only([one for one in rows if one.spec.batch_size == 8]).find("pairs").sixth is None


def test_the_gain_of_the_batch_alone_is_told():
    cell = only([row(mae=2.0, batch=64), row(mae=1.5, batch=8), row("nodes-uniform", mae=1.5)])
    assert cell.batch_gain.values == pytest.approx((-25.0,))
    assert only([row(batch=64), row(batch=8, mae=3.0)]).batch_gain is None
    assert only([row(batch=8)]).batch_gain is None


def test_overhead_is_weighed_against_the_plain_loss_of_as_many_pairs_a_step():
    full = [
        row(batch=64, loss_seconds=10.0, steps=100, pairs=640_000),
        row(batch=8, loss_seconds=10.0, steps=1000, pairs=80_000),
    ]
    # 80 pairs a step are nearer to 80 of 1,000 steps at 10 ms than to 6,400 of 100 steps at 100 ms.
    mine = row("pairs", plan_seconds=2.0, loss_seconds=7.0, steps=500, pairs=40_000, seconds=50.0)
    assert only([*full, mine]).find("pairs").result.overhead == pytest.approx(100 * (2.0 + 7.0 - 0.01 * 500) / 50.0)
    assert only([mine]).find("pairs").result.overhead is None


# --- sentences -------------------------------------------------------------------------------------------------------


def text_of(*rows):
    return "\n".join(sentences(only(rows)))


def test_sentences_weigh_against_the_best_full_run_and_not_against_batch_64():
    rows = [row(batch=64, mae=4.0), *seeds("full", (2.0, 2.0)), *seeds("nodes-uniform", (3.0, 3.0), batch=64, num_drawn=10)]
    rows += [row(batch=64, seed=1, mae=4.0)]
    text = text_of(*rows)
    assert "Full training is best with batch 8, rate 0.01" in text
    assert "Against batches of 64 at the same cost that is -50.0% ±0.0, by the batch alone." in text
    assert "worse: uniform nodes (+50.0% ±0.0)" in text
    assert "At equal cost a smaller batch does better than drawing nodes (uniform nodes, +50.0% ±0.0)" in text


@pytest.mark.parametrize(
    ("maes", "words"),
    [
        ((1.0, 1.0), "drawing nodes (uniform nodes) gains beyond a smaller batch: -50.0% ±0.0."),
        ((2.0, 2.008), "a smaller batch does the same as drawing nodes (uniform nodes, +0.2% ±2.5)."),
    ],
)
def test_sentences_say_where_a_smaller_batch_does_the_same(maes, words):
    assert words in text_of(*seeds("full", (2.0, 2.0)), *seeds("nodes-uniform", maes))


def test_sentences_say_where_no_choice_of_windows_beats_soft_random_at_equal_steps():
    kept = {"keep_ratio": 0.5}
    soft = [*seeds("full", (2.0, 2.0)), *seeds("soft-random", (2.5, 2.5), **kept)]
    text = text_of(*soft, *seeds("st-prune", (2.5, 2.52), **kept))
    assert "Against soft random with as many optimizer steps - no different within the seeds: ST-Prune (+0.4% ±5.1)." in text
    assert "no choice of windows beats keeping them at random" in text
    text = text_of(*soft, *seeds("st-prune", (2.0, 2.0), **kept))
    assert "better: ST-Prune (-20.0% ±0.0)." in text
    assert "no choice of windows" not in text
    # A rule that keeps all windows does not choose among them.
    assert "Against soft random" not in text_of(*soft, *seeds("st-prune", (2.0, 2.0)))
    # The better soft random has other steps, and says nothing here.
    text = text_of(*soft, *seeds("soft-random", (1.0, 1.0), batch=64, **kept), *seeds("st-prune", (2.0, 2.0), **kept))
    assert "steps - better: ST-Prune (-20.0% ±0.0)." in text


def test_sentences_say_whether_another_way_of_drawing_nodes_beats_uniform_draws():
    rows = [*seeds("full", (2.0, 2.0)), *seeds("nodes-uniform", (1.5, 1.5))]
    assert "None of them beats it." in text_of(*rows, *seeds("nodes-priority", (1.5, 1.5)))
    assert "None of them" not in text_of(*rows, *seeds("nodes-priority", (1.4, 1.4)))


def test_from_one_seed_nothing_is_concluded():
    kept = {"keep_ratio": 0.5}
    rows = [row(), row("nodes-uniform", mae=1.5), row("pairs", mae=2.01), row("nodes-priority", mae=3.0)]
    rows += [row("soft-random", mae=2.0, **kept), row("st-prune", mae=2.0, **kept)]
    first, _, *more = sentences(only(rows))
    assert first == "One seed proves nothing: differences below about 1% of the MAE can be chance."
    assert more[0] == (
        "Test MAE against it at the same cost - lower by more than 1% on one seed: uniform nodes (-25.0%); "
        "within 1% on one seed: soft random (+0.0%), ST-Prune (+0.0%), single pairs (+0.5%); "
        "higher by more than 1% on one seed: nodes by error (+50.0%)."
    )
    assert more[1].startswith("At equal cost drawing nodes (uniform nodes) gave -25.0% against a smaller batch on one seed.")
    for word in ("better", "worse", "gains", "beats", "no different", "the same as"):
        assert not any(re.search(rf"\b{word}\b", text) for text in more), word
    assert headline(summarize(rows, LABELS))[0].endswith("over the training part. From one seed nothing can be concluded.")
    two = [*seeds("full", (2.0, 2.1)), *seeds("pairs", (2.0, 2.1))]
    assert "one seed" not in text_of(*two) + "".join(headline(summarize(two, LABELS)))


def test_of_runs_that_prove_nothing_no_sentence_compares_anything():
    rows = [*seeds("full", (2.0, 2.0)), *seeds("nodes-uniform", (1.0, 1.0))]
    (text,) = sentences(only(rows), firm=False)
    assert text == "Deciding and scoring took 0.0% (uniform nodes) of a run's time beyond the plain loss."
    more = [row(data="other"), row("pairs", data="other")]
    for found in (rows, rows + more):
        text = table.markdown(found, LABELS, doubt="A trial.")
        assert text.startswith(f"**A trial.**\n\n{len(found)} runs")
        html_text = report.render(found, LABELS, note="A trial.", firm=False)
        for each in (text, html_text):
            assert "A trial." in each
            assert not re.search("gains beyond|lower in|It reached|Full training is best|by the batch alone", each)
        assert 'class="card"' not in html_text


@pytest.mark.parametrize(
    ("cost", "time", "words"),
    [
        (0.5, 0.4, "validation MAE for 2.0 times less cost and 2.5 times less time."),
        (0.5, 1.55, "validation MAE for 2.0 times less cost, but that took longer: 1.55 times as much time."),
        (1.2, 0.8, "validation MAE in 1.2 times less time, but for more: 1.20 times as much cost."),
        (1.2, 1.1, "validation MAE but only for more: 1.20 times as much cost and 1.10 times as much time."),
    ],
)
def test_more_time_or_cost_is_not_told_as_a_gain(cost, time, words):
    points = [Point(12.0 * cost, 100, 1.0, 120.0 * time, 1.9)]
    rows = [*seeds("full", (2.0, 2.0), curve=((1.0, 2.0),)), *seeds("nodes-uniform", (1.9, 1.9), points=points)]
    assert words in text_of(*rows)


def test_what_runs_spent_beyond_their_budget_is_told():
    rows = [*seeds("full", (2.0, 2.0)), row(batch=64, mae=3.0)]
    rows = [replace(each, cost=each.spec.cost * (1.08 if each.spec.batch_size == 64 else 1.01)) for each in rows]
    rows.append(row("pairs"))
    assert only(rows).full.overspent == pytest.approx(1.0)
    assert "full training 1.00% (8.0%); single pairs 0.00% (0.0%)." in table.markdown(rows, LABELS)
    head, _, full, pairs = table.as_text(only(rows)).splitlines()
    assert "over budget" in head
    assert "  1.0%" in full
    assert pairs.count("0.0%") == 3  # change, overhead, equal time
    assert "over budget" not in table.as_text(only([row(), row("pairs")]))
    assert "single pairs 0.00% (0.0%)" in report.render(rows, LABELS)


def test_a_best_batch_at_the_edge_of_what_was_tried_is_said():
    rows = [row(batch=64, mae=3.0), row(batch=8), row("pairs", batch=1)]
    assert "No smaller batch was tried, and one may be better still." in text_of(*rows)
    assert "| its batch | 8, the smallest tried |" in table.markdown(rows, LABELS)
    assert headline(summarize(rows, LABELS))[-1].startswith("In 1 of 1 comparison the smallest batch tried")
    for inner in (row(batch=4, mae=3.0), row(batch=1, mae=1.0)):
        assert "No smaller batch" not in text_of(*rows, inner)
        assert "the smallest" not in "".join(
            [table.markdown([*rows, inner], LABELS), *headline(summarize([*rows, inner], LABELS))]
        )


def test_without_full_training_nothing_is_weighed():
    cell = only([row("pairs"), row("nodes-uniform")])
    assert sentences(cell) == ["There is no run of full training at this budget, so that nothing can be weighed against it."]
    assert cell.full is None
    assert cell.find("pairs").reach is None
    assert headline(summarize(cell.rows, LABELS)) == [
        "2 runs: 1 series, 1 model, 2 families of methods, each at its best setting, 1 seed, budgets of 12 passes "
        "over the training part. From one seed nothing can be concluded."
    ]


def test_the_headline_tells_many_from_few_nodes():
    rows = []
    for nodes, mae in ((100, 2.01), (675, 1.8), (900, 1.6)):
        rows += [row(data=f"s{nodes}", nodes=nodes, batch=1), row("nodes-uniform", data=f"s{nodes}", nodes=nodes, mae=mae)]
    _, many, few = headline(summarize(rows, LABELS))
    assert many.startswith(
        "With 600 nodes or more: drawing nodes changed the test MAE by -15.0% on the mean (-20.0% to -10.0%)"
    )
    assert "lower in 2, higher in 0, no different in 0 of 2 comparisons. It reached" in many
    assert "in 2 of 2" in many
    assert few.startswith("With fewer than 600 nodes: drawing nodes changed the test MAE by +0.5% against")
    assert "It never reached" in few


def test_the_headline_counts_what_leaving_out_windows_gave():
    """Of windows that are left out only: a rule that keeps all of them is not counted."""
    rows = [row(), row("st-prune", mae=1.9, keep_ratio=0.5), row("soft-random", mae=2.2, keep_ratio=1.0)]
    rows += [row(data="other"), row("st-prune", data="other", mae=2.01, keep_ratio=0.5)]
    assert headline(summarize(rows, LABELS))[1:2] == [
        "Leaving out windows, at random or by score, changed the test MAE by -2.3% on the mean (-5.0% to +0.5%) against the "
        "best full training at equal cost: lower in 1, higher in 0, no different in 1 of 2 comparisons."
    ]


PAGE = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_study_report import LABELS, report, row
rows = []
for nodes, name in ((900, "a"), (100, "b"), (300, "c"), (2700, "d?r=1"), (500, "d?r=1&nodes=500")):
    rows += [row(data=name, nodes=nodes), row("nodes-uniform", data=name, nodes=nodes, mae=1.5)]
print(hashlib.md5(report.render(rows, LABELS).encode()).hexdigest())
"""


def test_a_page_does_not_depend_on_the_order_of_sets():
    line = [sys.executable, "-c", PAGE, str(pathlib.Path(__file__).parent)]
    made = set()
    for seed in ("1", "2"):
        done = subprocess.run(line, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        made.add(done.stdout)
    assert len(made) == 1


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_text_table_is_aligned_and_leaves_out_what_nobody_has():
    cell = only([row(mae=2.0), row("pairs", mae=1.0, batch=4, plan_seconds=24.0)])
    head, rule, full, pairs = table.as_text(cell).splitlines()
    assert len(rule) == len(head) == len(pairs)
    assert "a sixth" not in head
    assert full.split("  ")[0] == "full training"
    for text in ("batch 4, rate 0.01", "1.000", "-50.0%", "3,000", "  120  ", "9.6%"):
        assert text in pairs, text
    assert "test mean absolute error" in table.legend(table.columns(cell))


def test_the_markdown_table_has_a_line_a_family_a_column_a_series_and_marks_what_the_seeds_tell_apart():
    rows = [*seeds("full", (2.0, 2.2), batch=8), *seeds("full", (4.0, 4.4), batch=64), *seeds("pairs", (1.0, 1.1))]
    rows += [
        row(data="demand?nodes=900", nodes=900, batch=64),
        row("nodes-uniform", data="demand?nodes=900", nodes=900, mae=1.99),
    ]
    text = table.markdown(rows, LABELS)
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["STID of width 16, Adam, cosine schedule", "flow<br>100 nodes", "demand<br>900 nodes"]
    found = {line[0]: line[1:] for line in lines[2:]}
    assert found["full training at its best: test MAE"] == ["2.100", "2.000"]
    assert found["passes over the training part"] == ["12", "12"]
    assert found["its batch"] == ["8, the smallest tried", "64, the smallest tried"]
    assert found["full training, batch 64"] == ["**+100.0%**", "the best"]
    assert found["single pairs"] == ["**-50.0%**", ""]
    assert found["uniform nodes"] == ["", "-0.5%"]
    assert found["cost to full training's best, drawing nodes"] == ["", "100%"]
    assert "ST-Prune" not in text
    assert table.markdown(rows, LABELS) == text


def test_a_line_without_any_text_is_left_out():
    text = table.markdown([*seeds("full", (2.0, 2.2), batch=8), *seeds("pairs", (1.0, 1.1))], LABELS)
    assert "| its batch |" in text
    assert "full training, batch 64" not in text


def test_there_is_a_markdown_table_per_model():
    text = table.markdown([row(), row(model="tsmixer")], LABELS)
    assert text.count("| --- |") == 2
    assert "TSMixer of width 16" in text


def test_series_have_short_names_without_paths_and_all_settings_where_two_look_alike():
    names = series_names(
        ["/a/b/flow/data.npz?steps=9", "traffic?nodes=90&r=0.1&days=9", "traffic?nodes=90&r=0.1&days=20", "x.npz"]
    )
    assert list(names.values()) == ["flow", "traffic nodes 90 r 0.1 days 9", "traffic nodes 90 r 0.1 days 20", "x"]


def test_labels_and_rows_are_needed():
    for make in (table.markdown, report.render, summarize):
        with pytest.raises(ValueError, match="summarize: rows must hold at least one run, got none"):
            make([], LABELS)
        with pytest.raises(ValueError, match=r"summarize: labels must name every family of the rows, got none for \['new'\]"):
            make([row("new")], LABELS)


def test_the_targets_are_met_or_missed_by_the_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
    targets = importlib.import_module("study_targets").targets
    rows = []
    for nodes, mae, cost in ((100, 2.0, 12.0), (900, 1.5, 1.5), (8600, 1.0, 1.5)):
        at = {"data": f"s{nodes}", "nodes": nodes}
        rows += [row(seed=seed, batch=64, curve=((1.0, 2.0),), **at) for seed in range(3)]
        rows += [row("nodes-uniform", seed, mae=mae, curve=((cost / 12, 2.0),), **at) for seed in range(3)]
        rows += [row("nodes-priority", seed, mae=1.1 * mae, plan_seconds=120.0, **at) for seed in range(3)]
    found = {claim: (verdict, numbers) for claim, verdict, numbers in targets(summarize(rows, LABELS))}
    verdicts = [verdict for verdict, _ in found.values()]
    assert verdicts[:4] == ["met", "met", "met", "met"]
    numbers = [numbers for _, numbers in found.values()]
    assert numbers[0] == "mean 8.00x; s900 900 stid 8.00x; s8600 8,600 stid 8.00x"
    assert numbers[2] == "mean 1.00x; s100 100 stid 1.00x"
    assert found["a sixth of the usual cost: within 3%"][0] == "not run"
    assert [verdict for verdict, _ in found.values()][6:9] == ["uniform stays the default", "met", "met"]
    assert found["overhead of nodes-priority: <= 0"] == ("missed", "mean 47.1%, 47.1% to 47.1% of the run")
    # One series whose target was never reached misses the target of the mean, whatever the others gave.
    rows += [row(data="late", nodes=700, mae=2.0), row("nodes-uniform", data="late", nodes=700, mae=2.1)]
    (_, verdict, numbers), *_ = targets(summarize(rows, LABELS))
    assert (verdict, numbers.split("; ")[-1]) == ("missed", "late 700 stid never")


# --- pictures and page -----------------------------------------------------------------------------------------------


def several_rows():
    """Two series, two models, three seeds, several budgets; the first series is full of what can go wrong."""
    rows = []
    for model in ("stid", "graph-wavenet"):
        for data, nodes in (("flow", 85), ("traffic?nodes=900&r=0.1", 900), ("traffic?nodes=2700&r=0.1", 2700)):
            at = {"data": data, "nodes": nodes, "model": model}
            for seed in range(3):
                for cost in (3.0, 12.0):
                    noise = 1 + 0.003 * ((seed * 7 + nodes) % 5) + 1 / cost
                    rows += [row(seed=seed, batch=batch, mae=2 * noise + batch / 100, cost=cost, **at) for batch in (64, 8)]
                    rows.append(row("nodes-uniform", seed, mae=1.9 * noise, cost=cost, num_drawn=10, **at))
                rows.append(row("st-prune", seed, mae=9.0, keep_ratio=0.5, **at))
    rows += [row("pairs", diverged=True), row("soft-random", mae=2.5, keep_ratio=0.5)]
    return rows


class Page(html.parser.HTMLParser):
    """Collects references and checks that every tag is closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.images = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.references += [values[name] for name in ("src", "href", "srcset", "action") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def study_page():
    return report.render(several_rows(), LABELS, note="Only a <test>.", sources=["A & B"])


def test_the_page_is_well_formed_stands_alone_and_holds_its_pictures(study_page):
    text = study_page
    page = Page(text)
    assert len(page.references) == len(page.images) == 1 + 3 * 2
    for image in page.images:
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert image["alt"]
        svg = base64.b64decode(data).decode()
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(r'href="(?!#|data:)', svg)
    outside = re.findall(r"(?:https?:)?//[\w.]+", re.sub(r'src="data:[^"]*"', "", text))
    assert not outside
    assert "<script" not in text
    assert "Only a &lt;test&gt;." in text
    assert "A &amp; B" in text
    assert "@import" not in text


def test_the_page_holds_every_label_sentence_and_condition(study_page):
    study = summarize(several_rows(), LABELS)
    text = study_page
    plain = html.unescape(text)
    for sentence in [*headline(study), *(one for cell in study.cells for one in sentences(cell))]:
        assert sentence in plain
    for words in (
        "full training, batch 64",
        "ST-Prune",
        "processor test",
        "torch 2.13",
        "2026-01-02",
        "<td>0.01</td>",
        "<td>8, 64</td>",
    ):
        assert words in text, words


def test_a_page_of_one_cell_says_its_sentences_once_and_first():
    rows = [row(batch=64, mae=3.0), row(), row("nodes-uniform", mae=1.5)]
    text = report.render(rows, LABELS)
    Page(text)
    (sentence, *_) = sentences(only(rows))
    assert text.count(sentence) == 1
    assert "All series at a glance" not in text
    assert "-25.0% MAE" in text


def two_sizes(**drawn):
    """Full training and drawn nodes on two series that differ in size."""
    sizes = [{"data": f"{nodes}", "nodes": nodes} for nodes in (50, 100)]
    return [each for size in sizes for each in (row(**size), row("nodes-uniform", **size, **drawn))]


@pytest.mark.parametrize(
    "rows",
    [
        [row()],
        [row("pairs")],
        [row(), row("st-prune", cost=3.0)],
        [row("pairs", diverged=True)],
        [row(mape=math.nan), row("pairs")],
        two_sizes(mae=9.0),
    ],
    ids=["full only", "no full", "other cost", "all diverged", "no mape", "never reached"],
)
def test_a_study_with_gaps_has_a_page(rows):
    Page(report.render(rows, LABELS))
    table.markdown(rows, LABELS)
    [table.as_text(cell) for cell in summarize(rows, LABELS).cells]


def test_the_same_rows_give_the_same_picture():
    cells = summarize(several_rows(), LABELS).cells[:2]
    assert figures.costs(cells) == figures.costs(cells)


def test_tuning_shows_the_best_rate_of_every_number_of_pairs_on_the_first_seed():
    rows = [
        row(batch=8, mae=2.0),
        row(batch=8, rate=0.1, mae=1.5),
        row(batch=64, mae=3.0),
        row(batch=8, seed=1, rate=0.2, mae=0.1),
    ]
    assert figures.tuning_points(only(rows), "full") == [(800.0, 1.5), (6400.0, 3.0)]


def test_the_template_lies_in_the_package():
    folder = pathlib.Path(report.__file__).parent / "templates"
    assert [path.name for path in folder.iterdir()] == ["report.html.j2"]
