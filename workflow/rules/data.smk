"""From raw files to samples, and the language models."""

import shlex


# No rule makes the files of a data set of your own, so nothing can overwrite or delete them. The digest of the code is
# left out here: a new version of minirec must not download gigabytes again. To fetch anew, delete the files.
rule fetch_data:
    """Download and convert a data set; nothing is filtered."""
    output:
        interactions="data/{dataset}/interactions.parquet",
        item_file="data/{dataset}/items.parquet",
    log:
        f"{RESULTS}/logs/{{dataset}}/fetch.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{dataset}}/fetch.tsv"
    wildcard_constraints:
        dataset=experiment.one_of(name for name, data in CONFIG.datasets.items() if data.source != "own"),
    conda:
        "../../environment.yml"
    threads: cores("fetch")
    resources:
        **needs("fetch"),
    params:
        wildcards=experiment.named,
        source=lambda wildcards: experiment.entry(CONFIG, "datasets", wildcards.dataset),
    shell:
        "python -m minirec fetch --dataset {wildcards.dataset:q} --source {params.source:q}"
        " --out data/{wildcards.dataset:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule fetch_model:
    """Get a language model as safetensors; a tiny one for tests is made from the titles of a data set."""
    input:
        lambda wildcards: experiment.tokenizer_items(CONFIG, wildcards.model),
    output:
        directory("data/models/{model}"),
    log:
        f"{RESULTS}/logs/models/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("fetch")
    resources:
        **needs("fetch"),
    params:
        wildcards=experiment.named,
        source=lambda wildcards: experiment.entry(CONFIG, "models", wildcards.model),
        titles=lambda wildcards, input: f"--items {shlex.quote(str(input))}" if input else "",
    shell:
        "python -m minirec fetch --model {wildcards.model:q} --source {params.source:q} {params.titles}"
        " --out {output:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule prepare:
    """Filter the interactions and cut them into samples, split by time."""
    input:
        unpack(lambda wildcards: experiment.prepare_inputs(CONFIG, wildcards.dataset)),
    output:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        dropped="{results}/{dataset}/prepare.json",
    log:
        "{results}/logs/{dataset}/prepare.log",
    benchmark:
        "{results}/benchmarks/{dataset}/prepare.tsv"
    conda:
        "../../environment.yml"
    threads: cores("prepare")
    resources:
        **needs("prepare"),
    params:
        wildcards=experiment.named,
        settings=settings("prepare"),
        filter=lambda wildcards: experiment.data_filter(CONFIG, wildcards.dataset),
        code=code("prepare"),
    shell:
        "python -m minirec prepare {params.settings} --filter {params.filter:q}"
        " --interactions {input.interactions:q} --items {input.item_file:q}"
        " --out {wildcards.results:q}/{wildcards.dataset:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"
