"""What each figure of the page shows, and what its marks are."""

CAPTIONS = {
    "ladder": "Loss of larger runs, predicted before they were trained and measured. Left: dots "
    "are the runs that were fitted, the line is the least loss of a budget 6 N D as registered, "
    "with its 95 % band; diamonds are predictions with the 95 % interval of a run, stars what was "
    "measured. Right: measured over predicted, on the intervals of the law (thick) and of a run "
    "(thin).",
    "forecasts": "Training curves of larger runs as they were forecast, and as they came out.",
    "isoflop": "Loss against size at each budget. Each line joins the runs of one budget, in "
    "FLOPs as the table counts them; large marks are where its minimum was located, by either "
    "method, and the power law of N* by these FLOPs is in the legend.",
    "loss": "Held-out loss of the runs, and the law that was fitted to them. Dots are runs that "
    "were fitted, circles runs that were left out; the line is the law with its 95 % band, stars "
    "are runs held out of the fit, beside the predictions (diamonds) with the 95 % interval of a "
    "run.",
    "losses": "Held-out loss against parameters, tokens and training FLOPs 6 N D. Dots are runs, "
    "coloured by parameters, stars runs that were held out; the line is the least loss that the "
    "law allows a budget.",
    "contours": "Loss of the law over parameters and tokens. Lines join equal losses, dots are the "
    "runs in the colour of their measured loss, and the orange line is the efficient frontier: "
    "the best size of each budget.",
    "frontier": "Optimal parameters, optimal tokens and their ratio against training FLOPs 6 N D. "
    "The line is this fit, with the band or the bars of its 95 % intervals; dashed lines are laws "
    "that others published.",
    "envelope": "Loss against training FLOPs, as the table counts them, and the lower convex hull. "
    "Dots are runs, coloured by parameters; the line joins those that lie on the hull.",
    "residuals": "Measured loss over the law, against what the law reads. Dots are runs that were "
    "fitted, stars runs that were held out; the band is one standard deviation of a run.",
    "pairs": "Resampled parameters of the law against each other. Each dot is a refit, the star is "
    "the best fit; a narrow cloud says that the data tell only a combination of both.",
    "multiverse": "The exponent over all defensible ways of counting and cleaning. Left: every "
    "refit, sorted; right: the median exponent with each choice.",
    "curves": "Learning curves of all runs. Lines are the smoothed training loss, marks the "
    "held-out loss; colours go by size.",
    "collapse": "Learning curves, normalized, and what they share. Left: a line for each run by "
    "size, dashed what they share; right: how far each is off it, on the band that noise and "
    "spread allow. Runs in orange leave the bundle.",
    "compare": "Losses of all groups, before and after their multiplier of compute. Right: the "
    "same runs at compute times the multiplier of their group, on one line if that is all that "
    "tells them apart.",
    "settling": "The prediction at the target as runs were added, the cheapest first. The band is "
    "the 95 % interval of the law.",
    "recipe": "What a learning rate off its optimum costs, and how the optimum moves. Left: a dot "
    "for each run, and the fitted parabola; right: the best rate of each cell with its 95 % "
    "interval, on the range that was tried.",
    "confusion": "Predicted against true classes, of the most accurate run.",
    "metric": "Held-out metric of the runs. Dots are means over seeds, bars their standard "
    "deviation.",
}


def caption(figure: str) -> str:
    """The caption of a figure by its name, which is that of its kind, after its law or group."""
    kind = "metric" if figure.startswith("metric_") else figure.rpartition("_")[2]
    return CAPTIONS.get(kind, f"Figure: {figure}.")
