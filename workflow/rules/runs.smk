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
        adapter="{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/adapter",
    output:
        "{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/ranks.parquet",
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
        "python -m minirec evaluate {params.settings}"
        " --samples {input.samples:q} --catalogue {input.catalogue:q} --model {input.model:q} --adapter {input.adapter:q}"
        " --whitening {input.adapter:q}/whitening.safetensors --frozen_states {input.frozen_states:q}"
        " --out {output:q} --log {log:q} --wildcards {params.wildcards:q}"


rule measure:
    """Metrics of the trained policy, beside those before RL and of the baselines."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        ranks="{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/ranks.parquet",
        before="{results}/{dataset}/base/{model}/ranks.parquet",
        baselines="{results}/{dataset}/baselines.parquet",
    output:
        "{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}/metrics.json",
    log:
        "{results}/logs/{dataset}/measure/{model}/{selector}/{method}-{budget}/seed{seed}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/measure/{model}/{selector}/{method}-{budget}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("measure")
    resources:
        **needs("measure"),
    params:
        wildcards=experiment.named,
        settings=settings("measure"),
        code=code("measure"),
    shell:
        "python -m minirec measure {params.settings}"
        " --samples {input.samples:q} --catalogue {input.catalogue:q} --ranks {input.ranks:q}"
        " --before {input.before:q} --baselines {input.baselines:q}"
        " --out {output:q} --log {log:q} --wildcards {params.wildcards:q}"


rule evaluate_base:
    """The same ranking with the policy before RL, for comparison."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        item_table="{results}/{dataset}/base/{model}/items.safetensors",
        whitening="{results}/{dataset}/base/{model}/whitening.safetensors",
        model="data/models/{model}",
    output:
        "{results}/{dataset}/base/{model}/ranks.parquet",
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
        "python -m minirec evaluate {params.settings}"
        " --samples {input.samples:q} --catalogue {input.catalogue:q} --model {input.model:q}"
        " --items {input.item_table:q} --whitening {input.whitening:q}"
        " --out {output:q} --log {log:q} --wildcards {params.wildcards:q}"


rule measure_base:
    """Metrics of the policy before RL, beside those of the baselines."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        ranks="{results}/{dataset}/base/{model}/ranks.parquet",
        baselines="{results}/{dataset}/baselines.parquet",
    output:
        "{results}/{dataset}/base/{model}/metrics.json",
    log:
        "{results}/logs/{dataset}/measure_base/{model}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/measure_base/{model}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("measure")
    resources:
        **needs("measure"),
    params:
        wildcards=experiment.named,
        settings=settings("measure"),
        code=code("measure"),
    shell:
        "python -m minirec measure {params.settings}"
        " --samples {input.samples:q} --catalogue {input.catalogue:q} --ranks {input.ranks:q}"
        " --baselines {input.baselines:q}"
        " --out {output:q} --log {log:q} --wildcards {params.wildcards:q}"


rule baselines:
    """Rank the same test samples by popularity, TF-IDF and item transitions."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
    output:
        "{results}/{dataset}/baselines.parquet",
    log:
        "{results}/logs/{dataset}/baselines.log",
    benchmark:
        "{results}/benchmarks/{dataset}/baselines.tsv"
    conda:
        "../../environment.yml"
    threads: cores("baselines")
    resources:
        **needs("baselines"),
    params:
        wildcards=experiment.named,
        code=code("baselines"),
    shell:
        "python -m minirec baselines"
        " --samples {input.samples:q} --catalogue {input.catalogue:q}"
        " --out {output:q} --log {log:q} --wildcards {params.wildcards:q}"
