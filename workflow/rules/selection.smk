"""Which samples are kept, and in which order they are trained."""


rule select:
    """Keep the best samples within the budget, each unlike those already kept."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        scores="{results}/{dataset}/signals/{selector}/scores.parquet",
        embeddings="{results}/{dataset}/signals/{selector}/embeddings.safetensors",
        winners=experiment.winners(CONFIG),
    output:
        "{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/selection.parquet",
    log:
        "{results}/logs/{dataset}/select/{selector}/{method}-{budget}/seed{seed}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/select/{selector}/{method}-{budget}/seed{seed}.tsv"
    wildcard_constraints:
        selector=experiment.one_of(CONFIG.models),
        method=experiment.one_of(experiment.methods(CONFIG, signals=True)),
    conda:
        "../../environment.yml"
    threads: cores("select")
    resources:
        **needs("select"),
    params:
        wildcards=experiment.named,
        settings=settings("select"),
        method=lambda wildcards: CONFIG.method(wildcards.method),
        winners=experiment.flags_of("winners"),
        code=code("select"),
    shell:
        "python -m minirec select {params.settings} --method {params.method:q} --budget {wildcards.budget}"
        " --seed {wildcards.seed} {params.winners} --samples {input.samples:q} --scores {input.scores:q}"
        " --embeddings {input.embeddings:q} --out {output:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule select_shard:
    """The first of two rounds: pick as many as the budget allows in one part of the samples."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        scores="{results}/{dataset}/signals/{selector}/scores.parquet",
        embeddings="{results}/{dataset}/signals/{selector}/embeddings.safetensors",
    output:
        "{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/shards/{shard}/selection.parquet",
    log:
        "{results}/logs/{dataset}/select/{selector}/{method}-{budget}/seed{seed}/shards/{shard}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/select/{selector}/{method}-{budget}/seed{seed}/shards/{shard}.tsv"
    wildcard_constraints:
        selector=experiment.one_of(CONFIG.models),
        method=experiment.one_of(experiment.methods(CONFIG, signals=True)),
    conda:
        "../../environment.yml"
    threads: cores("select")
    resources:
        **needs("select"),
    params:
        wildcards=experiment.named,
        settings=settings("select"),
        method=lambda wildcards: CONFIG.method(wildcards.method),
        code=code("select"),
    shell:
        "python -m minirec select {params.settings} --method {params.method:q} --budget {wildcards.budget}"
        " --seed {wildcards.seed} --shard {wildcards.shard} --samples {input.samples:q} --scores {input.scores:q}"
        " --embeddings {input.embeddings:q} --out {output:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule select_without_signals:
    """Keep samples that no selector has judged: at random, or all of them."""
    input:
        samples="{results}/{dataset}/samples.parquet",
    output:
        "{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/selection.parquet",
    log:
        "{results}/logs/{dataset}/select/{selector}/{method}-{budget}/seed{seed}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/select/{selector}/{method}-{budget}/seed{seed}.tsv"
    wildcard_constraints:
        selector="none",
        method=experiment.one_of(experiment.methods(CONFIG, signals=False)),
    conda:
        "../../environment.yml"
    threads: cores("select")
    resources:
        **needs("select"),
    params:
        wildcards=experiment.named,
        settings=settings("select"),
        method=lambda wildcards: CONFIG.method(wildcards.method),
        code=code("select"),
    shell:
        "python -m minirec select {params.settings} --method {params.method:q} --budget {wildcards.budget}"
        " --seed {wildcards.seed} --samples {input.samples:q} --out {output:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule curriculum:
    """Order the selection from easy to hard within shuffled groups."""
    input:
        selection="{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/selection.parquet",
        scores="{results}/{dataset}/signals/{selector}/scores.parquet",
    output:
        "{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/curriculum.parquet",
    log:
        "{results}/logs/{dataset}/curriculum/{selector}/{method}-{budget}/seed{seed}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/curriculum/{selector}/{method}-{budget}/seed{seed}.tsv"
    wildcard_constraints:
        selector=experiment.one_of(CONFIG.models),
        method=experiment.one_of(experiment.methods(CONFIG, signals=True)),
    conda:
        "../../environment.yml"
    threads: cores("curriculum")
    resources:
        **needs("curriculum"),
    params:
        wildcards=experiment.named,
        settings=settings("curriculum"),
        code=code("curriculum"),
    shell:
        "python -m minirec curriculum {params.settings} --selection {input.selection:q} --scores {input.scores:q}"
        " --out {output:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule curriculum_without_signals:
    """Keep the order of a selection that no selector has judged."""
    input:
        selection="{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/selection.parquet",
    output:
        "{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/curriculum.parquet",
    log:
        "{results}/logs/{dataset}/curriculum/{selector}/{method}-{budget}/seed{seed}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/curriculum/{selector}/{method}-{budget}/seed{seed}.tsv"
    wildcard_constraints:
        selector="none",
        method=experiment.one_of(experiment.methods(CONFIG, signals=False)),
    conda:
        "../../environment.yml"
    threads: cores("curriculum")
    resources:
        **needs("curriculum"),
    params:
        wildcards=experiment.named,
        settings=settings("curriculum"),
        code=code("curriculum"),
    shell:
        "python -m minirec curriculum {params.settings} --selection {input.selection:q}"
        " --out {output:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"
