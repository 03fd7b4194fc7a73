"""What a selector, trained as a proxy, thinks of every training sample. Computed once, shared by all methods and budgets."""


rule embed_base:
    """Embed the catalogue with the base model and fit the whitening."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        model="data/models/{model}",
    output:
        item_table="{results}/{dataset}/base/{model}/items.safetensors",
        whitening="{results}/{dataset}/base/{model}/whitening.safetensors",
        frozen_states="{results}/{dataset}/base/{model}/frozen_states.safetensors",
    log:
        "{results}/logs/{dataset}/embed_base/{model}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/embed_base/{model}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("embed")
    resources:
        **needs("embed"),
    params:
        wildcards=experiment.named,
        settings=settings("embed"),
        code=code("embed"),
    shell:
        "python -m minirec embed {params.settings} --samples {input.samples:q} --catalogue {input.catalogue:q}"
        " --model {input.model:q} --whitening {output.whitening:q}"
        " --frozen_states {output.frozen_states:q} --out {output.item_table:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule train_proxy:
    """Train the selector on a few random samples, so that its rewards tell the samples apart."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        item_table="{results}/{dataset}/base/{selector}/items.safetensors",
        whitening="{results}/{dataset}/base/{selector}/whitening.safetensors",
        frozen_states="{results}/{dataset}/base/{selector}/frozen_states.safetensors",
        model="data/models/{selector}",
    output:
        adapter=directory("{results}/{dataset}/signals/{selector}/proxy/adapter"),
        history="{results}/{dataset}/signals/{selector}/proxy/history.parquet",
    log:
        "{results}/logs/{dataset}/train_proxy/{selector}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/train_proxy/{selector}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("train")
    resources:
        **needs("train"),
    params:
        wildcards=experiment.named,
        settings=settings("train"),
        seed=CONFIG.rollout.seed,
        code=code("train"),
    shell:
        "python -m minirec train {params.settings} --seed {params.seed}"
        " --samples {input.samples:q} --catalogue {input.catalogue:q} --model {input.model:q}"
        " --items {input.item_table:q} --whitening {input.whitening:q} --frozen_states {input.frozen_states:q} --history {output.history:q} --out {output.adapter:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"
        " --processes {resources.processes} --nodes {resources.nodes}"


rule embed_proxy:
    """Embed the catalogue with the proxy."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        frozen_states="{results}/{dataset}/base/{selector}/frozen_states.safetensors",
        model="data/models/{selector}",
        adapter="{results}/{dataset}/signals/{selector}/proxy/adapter",
    output:
        "{results}/{dataset}/signals/{selector}/items.safetensors",
    log:
        "{results}/logs/{dataset}/embed_proxy/{selector}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/embed_proxy/{selector}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("embed")
    resources:
        **needs("embed"),
    params:
        wildcards=experiment.named,
        settings=settings("embed"),
        code=code("embed"),
    shell:
        "python -m minirec embed {params.settings} --samples {input.samples:q} --catalogue {input.catalogue:q}"
        " --model {input.model:q} --adapter {input.adapter:q} --whitening {input.adapter:q}/whitening.safetensors --frozen_states {input.frozen_states:q}"
        " --out {output:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule gradient:
    """Gradient and Hessian-vector product of the item loss at every sample, and what diversity compares."""
    input:
        unpack(experiment.gradient_inputs(CONFIG)),
        samples="{results}/{dataset}/samples.parquet",
        item_table="{results}/{dataset}/signals/{selector}/items.safetensors",
        proxy="{results}/{dataset}/signals/{selector}/proxy/adapter",
        rollouts="{results}/{dataset}/signals/{selector}/rollouts.parquet",
        hidden="{results}/{dataset}/signals/{selector}/hidden.safetensors",
    output:
        gradients="{results}/{dataset}/signals/{selector}/gradients.safetensors",
        embeddings="{results}/{dataset}/signals/{selector}/embeddings.safetensors",
    log:
        "{results}/logs/{dataset}/gradient/{selector}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/gradient/{selector}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("gradient")
    resources:
        **needs("gradient"),
    params:
        wildcards=experiment.named,
        settings=settings("gradient"),
        policy=experiment.flags_of("catalogue", "model", "adapter"),
        code=code("gradient"),
    shell:
        "python -m minirec gradient {params.settings} --samples {input.samples:q} --items {input.item_table:q}"
        " --whitening {input.proxy:q}/whitening.safetensors --rollouts {input.rollouts:q} --hidden {input.hidden:q} {params.policy}"
        " --gradients {output.gradients:q} --embeddings {output.embeddings:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


rule score:
    """How learnable and how representative every training sample is."""
    input:
        rollouts="{results}/{dataset}/signals/{selector}/rollouts.parquet",
        gradients="{results}/{dataset}/signals/{selector}/gradients.safetensors",
    output:
        "{results}/{dataset}/signals/{selector}/scores.parquet",
    log:
        "{results}/logs/{dataset}/score/{selector}.log",
    benchmark:
        "{results}/benchmarks/{dataset}/score/{selector}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("score")
    resources:
        **needs("score"),
    params:
        wildcards=experiment.named,
        settings=settings("score"),
        code=code("score"),
    shell:
        "python -m minirec score {params.settings} --rollouts {input.rollouts:q} --gradients {input.gradients:q}"
        " --out {output:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"
