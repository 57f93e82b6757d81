"""Tables from the tidy results of the family experiment: DataFrames in percent.

Everywhere, ``results`` has a row per run with the columns base, source_family, target, source_seed,
seed and accuracy (a fraction), and ``families`` maps a family's name to its targets. If runs were
selected by macro-F1, it replaces accuracy (see `scored`).
"""

import numpy as np
import pandas as pd

from fusinglib.errors import InputError
from fusinglib.evaluation import reference, statistics, worlds

RUN = ["base", "source_family", "world", "source_seed", "seed", "target"]
VARYING = ["weight_decay", "source_size", "scale", "models", "draw", "norm"]
"""Columns that tell apart the runs of experiments that vary something."""

TRAINED = ("intertrained", "fused")  # base models made from the models of a source family
ALONE = ("pretrained", "random")  # those made without; all others are further arms
STATISTICS = {
    "mean": statistics.mean,
    "std": statistics.std,
    "median": statistics.median,
    "collapse": statistics.collapse_rate,
}
COMPARISONS = [
    ("fused", "pretrained"),
    ("fused", "intertrained"),
    ("intertrained", "pretrained"),
    ("pretrained", "random"),
    ("fused", "scaled single"),
    ("scaled single", "pretrained"),
    ("scaled single", "intertrained"),
    ("placebo", "pretrained"),
]
"""Differences between base models, where both are there. The first four are the paper's."""


class TextTable(pd.DataFrame):
    """A DataFrame of text that prints completely, however wide or long, in a terminal too."""

    def __repr__(self):
        return self.to_string()


class Texts(TextTable):
    """A table of untruncated, left-aligned texts."""

    def _repr_html_(self):
        with pd.option_context("display.max_colwidth", None):
            return self.to_html(border=0).replace("<td>", '<td style="text-align: left">')


def replicates(results):
    """Whether every seed has source models of its own (no ``source_seeds``): the seed is then that
    of the source models as well, of pretrained too."""
    return bool((results["seed"] == results["source_seed"]).all())


def expected_runs(results, targets):
    """Accuracy of every run that the results should hold, NaN if it is missing.

    All targets are expected, with every seed found in the results, from each base model: those of
    Table 1 for every source family in the results, and random and further arms if the results have
    them. What depends on a source family is expected for each source seed found. If they are
    `replicates`, a source seed has a single run, with seed 0, from every base model.

    Returns: a Series indexed by base, source_family, world (0 where there are none), source_seed,
    seed, target.
    """
    if "world" not in results:
        results = results.assign(world=0)
    absent = [name for name in [*RUN, metric_of(results)] if name not in results]
    if absent:
        raise InputError(f"results lack the column(s) {', '.join(absent)}")
    if results.empty or not len(targets):
        raise InputError("there is nothing to show: no results, or no targets")
    runs = results.assign(source_family=results["source_family"].fillna(""))
    twice = runs[runs.duplicated(RUN)]
    if len(twice):
        raise InputError(f"the results contain a run twice: {dict(twice.iloc[0][RUN])}")

    own_sources = replicates(runs)
    runs = runs.assign(seed=0) if own_sources else runs
    trained = runs[~runs["base"].isin(ALONE)]
    sources = list(dict.fromkeys(trained["source_family"]))
    source_seeds = sorted(trained["source_seed"].unique()) or [0]
    made = dict.fromkeys([*TRAINED, *trained["base"]])
    bases = [(base, source, source_seeds) for base in made for source in sources]
    alone = ["pretrained", *(["random"] if (runs["base"] == "random").any() else [])]
    bases += [(base, "", source_seeds if own_sources else [0]) for base in alone]
    worlds, seeds = sorted(runs["world"].unique()), sorted(runs["seed"].unique())
    index = pd.MultiIndex.from_tuples(
        [
            (base, source, world, source_seed, seed, target)
            for base, source, source_seeds in bases
            for world in worlds
            for source_seed in source_seeds
            for seed in seeds
            for target in targets
        ],
        names=RUN,
    )
    return scored(runs.set_index(RUN)).astype(float).reindex(index)


def metric_of(results):
    """The metric that runs were selected by and tables show: "accuracy" or "macro_f1"."""
    by_f1 = "metric" in results and (results["metric"] == "macro_f1").all()
    return "macro_f1" if by_f1 else "accuracy"


def scored(results):
    """The metric of every run (see `metric_of`), as a fraction."""
    return results[metric_of(results)]


def run_arrays(results, targets):
    """The expected runs as `arrays`, NaN where missing: a dict from (base, source family) to array,
    in the order of Table 1."""
    runs = expected_runs(results, targets).reset_index(name="accuracy")
    return arrays(runs, ["base", "source_family"], targets)


def arrays_over_seeds(results, targets):
    """`run_arrays` for statistics over seeds: replicates lie on the axis of seeds."""
    found = run_arrays(results, targets)
    if replicates(results):
        found = {base: runs.swapaxes(1, 2) for base, runs in found.items()}
    return found


def arrays(results, keys, targets):
    """Scores by the columns ``keys``: arrays of shape (worlds, source seeds, seeds, targets), NaN
    if there is no run; without worlds there is one.

    Arguments: ``keys``, the columns that distinguish base models. Source seeds are those of a base
    model; worlds and seeds those of all results. Returns: a dict from tuples of their values.
    """
    if "world" not in results:
        results = results.assign(world=0)
    results = results.assign(seed=0) if replicates(results) else results
    worlds, seeds = (sorted(results[name].unique()) for name in ("world", "seed"))
    found = {}
    for key, part in results.groupby(keys, sort=False):
        axes = [worlds, sorted(part["source_seed"].unique()), seeds, targets]
        runs = scored(part.set_index(["world", "source_seed", "seed", "target"]))
        accuracy = runs.reindex(pd.MultiIndex.from_product(axes)).to_numpy(dtype=float)
        found[key] = accuracy.reshape([len(axis) for axis in axes])
    return found


def clustered(results, families, clusters, *columns):
    """Results and families in which the targets of a cluster are one, named like the cluster: a run
    on it has the mean of the runs on its members, NaN if one of them is missing.

    Targets that are variants of one task (five stances in tweets) are not independent; an interval
    over targets is too narrow if it counts each of them. ``clusters`` maps a cluster's name to its
    targets; one that has fewer than two of them in the results is ignored, and one that spans
    families is in each of them as a whole. ``columns`` are those that tell base models apart
    besides base and source_family: in a heatmap of pairs "sources".
    """
    targets = distinct_targets(families)
    there = {name: [one for one in ones if one in targets] for name, ones in clusters.items()}
    name_of = {one: name for name, ones in there.items() if len(ones) > 1 for one in ones}
    units = {
        family: list(dict.fromkeys(name_of.get(target, target) for target in members))
        for family, members in families.items()
    }
    if not name_of:
        return results, units
    sizes = pd.Series([name_of.get(target, target) for target in targets]).value_counts()
    runs = results.assign(target=results["target"].replace(name_of))
    keys = [name for name in [*RUN, *VARYING, *columns, "metric"] if name in runs]
    averaged = ["accuracy", "macro_f1", "majority", "dev", "update"]
    how = dict.fromkeys(averaged, lambda members: members.mean(skipna=False)) | {"n_test": "sum"}
    groups = runs.groupby(keys, sort=False, dropna=False)
    means = groups.agg({name: each for name, each in how.items() if name in runs})
    counts = groups.size()
    means[counts < sizes.reindex(counts.index, level="target")] = np.nan
    return means.reset_index(), units


def missing(results, families):
    """The runs that the results lack, one row each, with what identifies a run.

    A run is missing if it has no row or if its accuracy is NaN.
    """
    runs = expected_runs(results, distinct_targets(families))
    lacking = runs[runs.isna()].index.to_frame(index=False)
    lacking = lacking.assign(seed=lacking["source_seed"]) if replicates(results) else lacking
    return lacking if "world" in results else lacking.drop(columns="world")


def world_count(results) -> int:
    """From how many worlds the results come; one without a column ``world``."""
    return results["world"].nunique() if "world" in results else 1


def distinct_targets(families):
    """The targets of all families, each once."""
    return list(dict.fromkeys(target for targets in families.values() for target in targets))


def tasks_table(families, sizes):
    """The available tasks, one row each, with target families and the examples per split."""
    rows = {
        task: {"target of": ", ".join(f for f in families if task in families[f]), **splits}
        for task, splits in sizes.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def accuracy_table(results, families, statistic="mean"):
    """Tables 1 and 3 of the paper: a row per base model, a column per target family, and average.

    Arguments: ``statistic``: "mean", "std" (over seeds), "median" (over seeds) or "collapse"
    (share of collapsed runs); see `fusinglib.evaluation.statistics`.

    Returns: a DataFrame in percent or points, indexed by base and source. ``average`` is the plain
    mean of the family columns. A cell with a missing run is NaN, and a column "missing runs" then
    counts them.
    """
    if statistic not in STATISTICS:
        raise InputError(f"statistic {statistic!r} is none of {', '.join(STATISTICS)}")
    targets = distinct_targets(families)
    rows = {
        base: {
            family: 100 * STATISTICS[statistic](runs[..., positions(targets, members)])
            for family, members in families.items()
        }
        for base, runs in arrays_over_seeds(results, targets).items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["base", "source"])
    table["average"] = table.mean(axis="columns", skipna=False)
    holes = missing(results, families).groupby(["base", "source_family"]).size()
    if len(holes):
        table["missing runs"] = [int(holes.get(base, 0)) for base in rows]
    return table


def with_interval(table, results, families):
    """A table of `accuracy_table` with ``low`` and ``high``, the 95 % interval of the mean over all
    distinct targets (see `worlds.difference` for what it covers)."""
    runs = run_arrays(results, distinct_targets(families))
    found = [100 * np.array(worlds.difference(array, 0.0)) for array in runs.values()]
    return table.assign(low=[one[1] for one in found], high=[one[2] for one in found])


def positions(targets, members):
    """The positions of a family's members among the targets."""
    return [targets.index(member) for member in members]


def differences(results, families):
    """Differences between base models with 95 % intervals, in points: a tidy row per comparison.

    Returns: a DataFrame with the columns

    - ``comparison`` ("fused - pretrained");
    - ``source_family`` ("all": the mean over several source families; "" if neither base has one);
    - ``target_family`` ("all": every distinct target once);
    - ``estimate``, ``low``, ``high``: see `worlds.difference` for what the interval covers;
    - with many worlds ``worlds``, how many; ``low``, ``high`` then cover other worlds and other
      tasks, ``low_same``, ``high_same`` other worlds with these tasks (see `worlds`);
    - ``targets``, ``seeds``, ``source_seeds``: how many of each;
    - ``improved``: on how many targets the mean difference is above zero;
    - ``missing``: the runs missing on either side; one is enough for a row of NaN.
    """
    if "all" in families:
        raise InputError('a family cannot be called "all": the name stands for all of them')
    targets = distinct_targets(families)
    arrays = run_arrays(results, targets)
    sources = list(dict.fromkeys(source for _, source in arrays if source))
    sources += ["all"] * (len(sources) > 1)
    rows = []
    for better, worse in compared(arrays):
        for source in sources if better not in ALONE else [""]:
            for family, members in {**families, "all": targets}.items():
                names = {
                    "comparison": f"{better} - {worse}",
                    "source_family": source,
                    "target_family": family,
                }
                columns = positions(targets, members)
                a = by_source(arrays, better, source)[..., columns]
                b = by_source(arrays, worse, source)[..., columns]
                counts = {"seeds": results["seed"].nunique()}
                rows.append(names | compare(a, b) | counts)
    return pd.DataFrame(rows).astype({"improved": "Int64"})


def taught(results, families, scope=worlds.SCOPES[1]):
    """The sanity check: pretrained minus random weights on all targets, in points, a `Difference`
    in a scope; None without runs from random weights. Where a column varies, the mean over its
    values."""
    keys = ["base", *(name for name in VARYING if name in results)]
    alone = arrays(results[results["base"].isin(ALONE)], keys, distinct_targets(families))
    runs = {base: [array for key, array in alone.items() if key[0] == base] for base in ALONE}
    if not runs["random"]:
        return None
    pretrained, random = (np.mean(runs[base], axis=0) for base in ALONE)
    found = worlds.difference(pretrained, random, scope)
    return statistics.Difference(*(100 * number for number in found))


def sane(results, families, scope=worlds.SCOPES[1]):
    """Whether differences between base models mean anything in a scope: pretrained is clearly above
    random weights, or that was not checked."""
    found = taught(results, families, scope)
    return found is None or found.low > 0


def by_source(arrays, base, source):
    """Stack the runs of a base model for one source family, or for "all" of them."""
    return np.stack(
        [
            runs
            for (name, family), runs in arrays.items()
            if name == base and (base in ALONE or source in (family, "all"))
        ]
    )


def paired(results, families):
    """Differences between base models run by run, the mean of source families: for each comparison
    an array (worlds, source seeds, seeds, targets), as fractions."""
    arrays = run_arrays(results, distinct_targets(families))
    return {
        f"{better} - {worse}": by_source(arrays, better, "all").mean(axis=0)
        - by_source(arrays, worse, "all").mean(axis=0)
        for better, worse in compared(arrays)
    }


def compared(arrays):
    """The `COMPARISONS` of base models that are both there (the paper's own always, but for
    random), then every other arm with fused."""
    there = dict.fromkeys(["pretrained", *TRAINED, *(base for base, _ in arrays)])
    known = {base for pair in COMPARISONS for base in pair}
    pairs = [pair for pair in COMPARISONS if set(pair) <= set(there)]
    return pairs + [(base, "fused") for base in there if base not in known]


def compare(a, b):
    """One row of `differences`: arrays (source families, worlds, source seeds, seeds, targets)."""
    lacking = int(np.isnan(a).sum() + np.isnan(b).sum())
    a, b = a.mean(axis=0), b.mean(axis=0)
    difference = a - b
    interval = worlds.difference(a, b)
    count, source_seeds, seeds, targets = difference.shape
    gains = difference.mean(axis=(0, 1, 2))
    same = worlds.difference(a, b, worlds.SCOPES[0])
    own = {"worlds": count, "low_same": 100 * same.low, "high_same": 100 * same.high}
    return {
        **{name: 100 * value for name, value in interval._asdict().items()},
        **(own if count > 1 else {}),
        "targets": targets,
        "seeds": seeds,
        "source_seeds": source_seeds,
        "improved": pd.NA if lacking else int((gains > 0).sum()),
        "missing": lacking,
    }


def targets_table(results, families):
    """One row per target, in percent, means over all runs of a base model.

    Returns: a DataFrame indexed by target with the columns

    - ``majority``: the accuracy of always choosing the most frequent label;
    - for each base model its accuracy ("fused") and its macro-F1 ("F1 fused");
    - ``signal``: "none" where `without_signal` names the target.

    What the results lack is NaN (older runs have neither macro-F1 nor majority).
    """
    targets = distinct_targets(families)
    known = results.reindex(columns=[*results.columns.union(["majority", "macro_f1"], sort=False)])
    bases = list(dict.fromkeys(known["base"]))
    table = pd.DataFrame({"majority": 100 * known.groupby("target")["majority"].mean()})
    for name, column in (("", "accuracy"), ("F1 ", "macro_f1")):
        means = known.groupby(["target", "base"])[column].agg(lambda runs: runs.mean(skipna=False))
        table = table.join(100 * means.unstack("base")[bases].add_prefix(name))
    silent = without_signal(results)
    table["signal"] = ["none" if target in silent else "" for target in table.index]
    return table.reindex(targets)


def without_signal(results):
    """The targets on which pretrained is less than two binomial standard errors of the test split
    above always choosing the most frequent label, so that accuracy says little there.

    Older runs did not record the majority; they name none.
    """
    if "majority" not in results:
        return []
    start = results.query("base == 'pretrained'").groupby("target", sort=False)
    means = start[["accuracy", "majority", "n_test"]].mean()
    error = np.sqrt(means["majority"] * (1 - means["majority"]) / means["n_test"])
    return list(means.index[means["accuracy"] < means["majority"] + 2 * error])


def still_improving(results):
    """The percentage of each base model's runs that did best at their last evaluation, when they
    ran out of batches: a Series. Empty if the results do not say."""
    if "best_step" not in results:
        return pd.Series(dtype=float)
    cut = (results["best_step"] == results["steps"]) & (results["stopped"] == "max_steps")
    return 100 * cut.groupby(results["base"], sort=False).mean()


def caveats(results, families):
    """What a reader of these results should know, as sentences to print below the tables."""
    runs = expected_runs(results, distinct_targets(families))
    seeds = {name: runs.index.unique(name).size for name in ("source_seed", "world")}
    seeds["seed"] = results["seed"].nunique()
    lacking = int(runs.isna().sum())
    cut = 100 * results["truncated"].mean() if "truncated" in results else 0
    silent = ", ".join(without_signal(results))
    improving = [
        (share > 50, f"{share:.0f} % of the runs from {base} did best at their last evaluation: "
                     "they may have stopped too early; raise target_max_steps.")
        for base, share in still_improving(results).items()
    ]  # fmt: skip
    sentences = [
        (lacking, f"{lacking} of {len(runs)} runs are missing; their cells show –."),
        (seeds["seed"] == 1, "One seed: standard deviations and collapses cannot be computed."),
        (
            seeds["source_seed"] == seeds["world"] == 1,  # every world has its own source models
            "One source seed: the intervals do not cover the randomness of the source models.",
        ),
        (cut > 0, f"{cut:.1f} % of the texts were longer than the model can read and were "
                  "truncated."),
        (metric_of(results) == "macro_f1", "All scores are macro-F1, in percent, not accuracies."),
        (silent, f"Pretrained does not beat the majority label on {silent}: accuracy tells little "
                 f"there (see macro-F1)."),
        *improving,
    ]  # fmt: skip
    return [sentence for holds, sentence in sentences if holds]


def of_the_paper(families):
    """Whether the families have the paper's names and sizes."""
    return {family: len(members) for family, members in families.items()} == reference.FAMILY_SIZES


def beside_paper(table, paper, families):
    """Each column of an accuracy table beside the paper's, e.g. ``reference.TABLE_1``.

    Only families with the paper's names and sizes are compared; otherwise the table is returned
    unchanged.
    """
    if not of_the_paper(families):
        return table
    columns = {}
    for name in table.columns:
        columns[name, "ours"] = table[name]
        if name in paper:
            columns[name, "paper"] = paper[name].reindex(table.index)
    return pd.DataFrame(columns)


def show(table, decimals=1, best=()):
    """The table as readable text: rounded, p-values to two digits, "–" for what cannot be computed;
    leading text columns become row labels. In the columns `best` the largest number is starred.

    The result looks the same in a notebook and, as plain text, in a terminal.
    """
    is_text = [not pd.api.types.is_numeric_dtype(table[name]) for name in table]
    labels = list(table.columns[: (is_text + [False]).index(False)])
    if labels:
        named = any(name is not None for name in table.index.names)
        table = table.set_index(labels, append=named)
    text = table.apply(lambda column: column.map(lambda value: cell(value, decimals)))
    for name in {"p", "p adjusted"} & set(table):
        text[name] = [cell(p if pd.isna(p) else f"{p:.2g}", 0) for p in table[name]]
    for name in [one for one in table if one in best or one in [(each, "ours") for each in best]]:
        top = text[name][table[name] == table[name].max()]
        text[name] = text[name].where(~text.index.isin(top.index), text[name] + "*")
    text = text.rename(columns=spaced)
    return TextTable(text.rename_axis(index=spaced))


def cell(value, decimals):
    """One number as text."""
    if pd.isna(value):
        return "–"
    return str(value) if isinstance(value, str | int | np.integer) else f"{value:z.{decimals}f}"


def spaced(name):
    """A column's name as words; anything but text is unchanged."""
    return name.replace("_", " ") if isinstance(name, str) else name


def record(results) -> None:
    """Keep the tidy results in the notebook itself, in its last cell, for the command line."""
    from IPython.display import display

    missing = int(scored(results).isna().sum()) if "accuracy" in results else 0
    text = f"{len(results)} rows recorded" + (f", {missing} missing" if missing else "")
    if "sources" in results and results["sources"].map(lambda names: type(names) is tuple).all():
        results = results.assign(sources=results["sources"].map(" ".join))
    content = {"text/csv": results.to_csv(index=False), "text/plain": text}
    display(content, raw=True, metadata={"missing": missing})
