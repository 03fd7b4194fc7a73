"""One run: a fresh policy trained on a curriculum, and what it is worth."""


rule train:
    """Train a fresh policy on the curriculum; checkpoints/ beside the adapter lets a failed job resume."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        curriculum="{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/curriculum.parquet",
        item_table="{results}/{dataset}/base/{model}/items.safetensors",
        whitening="{results}/{dataset}/base/{model}/whitening.safetensors",
        frozen_states="{results}/{dataset}/base/{model}/frozen_states.safetensors",
        model="data/models/{model}",
    output:
        adapter=directory("{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/adapter"),
        history="{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/history.parquet",
    log:
        "{results}/logs/{dataset}/train/{model}/{selector}/{method}-{budget}/seed{seed}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/train/{model}/{selector}/{method}-{budget}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("train")
    resources:
        **needs("train"),
    params:
        wildcards=experiment.named,
        settings=settings("train"),
        code=code("train"),
    shell:
        "python -m minirec train {params.settings} --seed {wildcards.seed} --samples {input.samples:q}"
        " --catalogue {input.catalogue:q} --curriculum {input.curriculum:q} --model {input.model:q}"
        " --items {input.item_table:q} --whitening {input.whitening:q} --frozen_states {input.frozen_states:q} --history {output.history:q} --out {output.adapter:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"
        " --processes {resources.processes} --nodes {resources.nodes}"


rule evaluate:
    """Rank the whole catalogue for every test sample with the trained policy."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        frozen_states="{results}/{dataset}/base/{model}/frozen_states.safetensors",
        model="data/models/{model}",
        before="{results}/{dataset}/base/{model}/ranks.parquet",
        references="{results}/{dataset}/references.parquet",
        adapter="{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/adapter",
    output:
        metrics="{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/metrics.json",
        ranks="{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/ranks.parquet",
    log:
        "{results}/logs/{dataset}/evaluate/{model}/{selector}/{method}-{budget}/seed{seed}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/evaluate/{model}/{selector}/{method}-{budget}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("evaluate")
    resources:
        **needs("evaluate"),
    params:
        wildcards=experiment.named,
        settings=settings("evaluate"),
        code=code("evaluate"),
    shell:
        "python -m minirec evaluate {params.settings} --samples {input.samples:q} --catalogue {input.catalogue:q}"
        " --model {input.model:q} --adapter {input.adapter:q}"
        " --whitening {input.adapter:q}/whitening.safetensors --frozen_states {input.frozen_states:q}"
        " --before {input.before:q} --references {input.references:q} --ranks {output.ranks:q} --out {output.metrics:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule evaluate_base:
    """The same policy before RL, for comparison."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        item_table="{results}/{dataset}/base/{model}/items.safetensors",
        whitening="{results}/{dataset}/base/{model}/whitening.safetensors",
        model="data/models/{model}",
        references="{results}/{dataset}/references.parquet",
    output:
        metrics="{results}/{dataset}/base/{model}/metrics.json",
        ranks="{results}/{dataset}/base/{model}/ranks.parquet",
    log:
        "{results}/logs/{dataset}/evaluate_base/{model}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/evaluate_base/{model}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("evaluate")
    resources:
        **needs("evaluate"),
    params:
        wildcards=experiment.named,
        settings=settings("evaluate"),
        code=code("evaluate"),
    shell:
        "python -m minirec evaluate {params.settings} --samples {input.samples:q} --catalogue {input.catalogue:q}"
        " --model {input.model:q} --items {input.item_table:q} --whitening {input.whitening:q}"
        " --references {input.references:q} --ranks {output.ranks:q} --out {output.metrics:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule references:
    """What simple recommenders reach on the same test samples: popularity, TF-IDF, item transitions."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
    output:
        metrics="{results}/{dataset}/references.json",
        ranks="{results}/{dataset}/references.parquet",
    log:
        "{results}/logs/{dataset}/references.log",
    benchmark:
        "{results}/benchmarks/{dataset}/references.tsv"
    conda:
        "../../environment.yml"
    threads: cores("references")
    resources:
        **needs("references"),
    params:
        wildcards=experiment.named,
        settings=settings("references"),
        code=code("references"),
    shell:
        "python -m minirec references {params.settings} --samples {input.samples:q}"
        " --catalogue {input.catalogue:q} --ranks {output.ranks:q} --out {output.metrics:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"
