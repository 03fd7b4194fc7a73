"""What the runs say: the main experiment in one file, and the grid of `compare` in one table."""


use rule stage as summarise with:
    """Gather metrics, costs and pictures of the main experiment."""
    input:
        unpack(ask.summary_signals),
        ask.summary_files,
    output:
        report(ask.pictures("png")),
        ask.pictures("svg"),
        metrics="<top>/metrics.json",
        summary=report("<top>/summary.txt"),
    log:
        "<top>/logs/summarise.log",
    params:
        **job(
            "summarise",
            runs=ask.experiment_runs,
            folders=paths.folders(ask.config, ask.main_runs),
            shared_signals=ask.shared_signals(ask.main_runs),
        ),


use rule stage as compare with:
    """Gather the runs of the grid, the main experiment among them."""
    input:
        ask.compared_files,
        samples="<top>/samples.parquet",
    output:
        report("<top>/figures/comparison.png"),
        "<top>/figures/comparison.svg",
        comparison="<top>/comparison.parquet",
        tests="<top>/comparison.json",
        text=report("<top>/comparison.txt"),
    log:
        "<top>/logs/compare.log",
    params:
        **job(
            "compare",
            runs=ask.compared_runs,
            selection_logs=ask.selection_logs(),
            shared_signals=ask.shared_signals(ask.compared_runs),
        ),
