"""The paper's numbers as data (Choshen, Venezian, Slonim, Katz 2022, arXiv:2204.03044): Tables 1, 2
and 3, and where they contradict the text.

Numbers are percentages. Rows and columns have fusinglib's names, in the order of Table 1.
"""

import pandas as pd

#: How many tasks each of the paper's families has (section 3.1 and Appendix A).
FAMILY_SIZES = {"general": 14, "nli": 6, "twitter": 11}

_COLUMNS = ["general", "nli", "twitter", "average"]
_ROWS = pd.MultiIndex.from_tuples(
    [
        ("intertrained", "general"),
        ("intertrained", "nli"),
        ("intertrained", "twitter"),
        ("fused", "general"),
        ("fused", "nli"),
        ("fused", "twitter"),
        ("pretrained", ""),
    ],
    names=["base", "source"],
)

#: Table 1: mean accuracy over five seeds and the targets of a family (columns), after finetuning
#: from a base model made of the models of a source family (rows). T5 v1.1 small.
TABLE_1 = pd.DataFrame(
    [
        [72.76, 70.29, 56.39, 66.48],
        [71.18, 71.11, 56.36, 66.22],
        [69.67, 67.38, 57.18, 64.74],
        [68.12, 67.95, 54.71, 63.59],
        [68.96, 70.65, 54.54, 64.72],
        [64.17, 66.74, 52.86, 61.26],
        [63.81, 67.66, 55.73, 62.40],
    ],
    index=_ROWS,
    columns=_COLUMNS,
)

#: Table 2: mean accuracy on the general family, with weight decay 0 and 0.01 (section 4.1).
TABLE_2 = pd.DataFrame(
    [[63.87, 72.76, 68.12], [61.6, 61.7, 65.1]],
    index=pd.Index([0.0, 0.01], name="weight_decay"),
    columns=["pretrained", "intertrained", "fused"],
)

#: Table 3 (Appendix C): standard deviation over seeds, in the layout of Table 1.
TABLE_3 = pd.DataFrame(
    [
        [1.02, 2.83, 2.66, 2.17],
        [1.42, 0.64, 2.76, 1.61],
        [1.82, 1.56, 3.34, 2.24],
        [1.45, 1.41, 2.29, 1.72],
        [1.04, 0.69, 1.91, 1.21],
        [1.98, 1.78, 3.04, 2.27],
        [3.50, 1.67, 5.75, 3.64],
    ],
    index=_ROWS,
    columns=_COLUMNS,
)

#: What repeating a finetuning 20 times shows: computed here from the authors' later baselines, the
#: files `results/models_results_*_pretrain.csv` of github.com/IBM/model-recycling (Apache-2.0,
#: commit 1c1d4228). On 35 data sets (without STS-B): mean accuracy, mean of the medians, share of
#: collapsed runs. On the 14 of General: standard deviation of the mean over data sets if the runs
#: of one number belong together, and if data sets are independent. In percent or points.
PUBLISHED = pd.DataFrame(
    [
        [72.08, 72.71, 2.43, 0.72, 0.87],
        [71.81, 72.18, 1.86, 1.01, 1.02],
        [68.83, 72.38, 11.71, 4.92, 4.01],
        [78.72, 78.72, 0.29, 0.61, 0.83],
        [75.83, 75.91, 0.71, 0.84, 0.69],
        [75.17, 76.43, 4.14, 2.25, 1.91],
    ],
    index=pd.Index(
        [
            "bert-base-cased", "bert-base-uncased", "t5-v1_1-base", "deberta-v3-base",
            "roberta-base", "t5-base",
        ],
        name="model",
    ),
    columns=["mean", "median", "collapse", "together", "independent"],
)  # fmt: skip

#: Where the paper's numbers and its words disagree, by the notebook that it matters to.
CONTRADICTIONS = {
    "family_table": [
        "Pretrained on general is 63.81 in Table 1 and 63.87 in Table 2.",
        "Four of the nine fused cells of Table 1 lie below pretrained: all three on twitter, and "
        "fused twitter on nli.",
        "The average of fused twitter (61.26) is below that of pretrained (62.40).",
        "All nine fused cells of Table 1 lie below the intertrained cell of the same source, where "
        "the abstract says that fusing is often better than intertraining (that rests on pairs, "
        "Figure 2).",
        "NLI is called consistently the best family to fuse, but on twitter it is not: 54.54 "
        "against 54.71 for general.",
        "Two nli cells of Table 3 (2.83 for intertrained general, 1.78 for fused twitter) exceed "
        "pretrained's 1.67, where the caption says that both methods deviate less.",
        "The text speaks of 30 data sets; its lists hold 31 entries, 27 of them distinct.",
        "SST-2 is called the second largest set of general, where QQP and QNLI are larger.",
    ],
    "pairwise_heatmap": [
        "The abstract says that fusing is often better than intertraining; that rests on these "
        "pairs. Of all models, fused, all nine cells of Table 1 lie below the intertrained ones.",
    ],
    "weight_decay": ["Pretrained on general is 63.87 in Table 2 and 63.81 in Table 1."],
}
