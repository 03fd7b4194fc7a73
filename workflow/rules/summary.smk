"""What the runs say: the main experiment in one file, and the grid of `compare` in one table."""

MAIN_RUNS = experiment.main_runs(CONFIG)
PICTURES = experiment.pictures(MAIN_RUNS)


rule summarise:
    """Gather metrics, costs and pictures of the main experiment."""
    input:
        unpack(lambda wildcards: experiment.summary_inputs(MAIN_RUNS, wildcards.results, wildcards.dataset)),
    output:
        metrics="{results}/{dataset}/metrics.json",
        text=report("{results}/{dataset}/summary.txt"),
        pictures=report(expand("{results}/{dataset}/figures/{name}.png", name=PICTURES, allow_missing=True)),
        vectors=expand("{results}/{dataset}/figures/{name}.svg", name=PICTURES, allow_missing=True),
    log:
        "{results}/logs/{dataset}/summarise.log",
    benchmark:
        "{results}/benchmarks/{dataset}/summarise.tsv"
    conda:
        "../../environment.yml"
    threads: cores("summarise")
    resources:
        **needs("summarise"),
    params:
        wildcards=experiment.named,
        settings=settings("summarise"),
        main=CONFIG.main.model_dump_json(),
        run=MAIN_RUNS,
        job=experiment.jobs(CONFIG),
        code=code("summarise"),
    shell:
        "python -m minirec summarise {params.settings} --results {wildcards.results:q}/{wildcards.dataset:q}"
        " --main {params.main:q} --run {params.run:q} --job {params.job:q} --out {output.metrics:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule compare:
    """Gather the runs of the grid, the main experiment among them."""
    input:
        lambda wildcards: experiment.compared_files(CONFIG, wildcards.results, wildcards.dataset),
    output:
        table="{results}/{dataset}/comparison.parquet",
        gains="{results}/{dataset}/comparison.json",
        text=report("{results}/{dataset}/comparison.txt"),
        picture=report("{results}/{dataset}/figures/comparison.png"),
        vectors="{results}/{dataset}/figures/comparison.svg",
    log:
        "{results}/logs/{dataset}/compare.log",
    benchmark:
        "{results}/benchmarks/{dataset}/compare.tsv"
    conda:
        "../../environment.yml"
    threads: cores("compare")
    resources:
        **needs("compare"),
    params:
        wildcards=experiment.named,
        settings=settings("compare"),
        run=experiment.compared_runs(CONFIG),
        code=code("compare"),
    shell:
        "python -m minirec compare {params.settings} --results {wildcards.results:q}/{wildcards.dataset:q}"
        " --run {params.run:q} --out {output.table:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"
