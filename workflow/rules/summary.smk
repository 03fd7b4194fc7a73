"""The main experiment in one file: metrics, costs and pictures."""


rule summarise:
    """Gather metrics, costs and pictures of the main experiment."""
    input:
        unpack(lambda wildcards: experiment.summary_inputs(CONFIG, wildcards.results, wildcards.dataset)),
    output:
        metrics="{results}/{dataset}/metrics.json",
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
        settings=settings("summarise"),
        main=CONFIG.main.model_dump_json(),  # a change is seen although the files keep their names
        config=experiment.config_files(workflow.configfiles),
        code=code("summarise"),
    shell:
        "python -m minirec summarise {params.settings} --results {wildcards.results:q}/{wildcards.dataset:q}"
        " --config {params.config:q} --out {output.metrics:q} --log {log:q}"
