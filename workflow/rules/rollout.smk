"""The proxy tries every training sample: in one job, or in `rollout.shards` jobs whose results are joined."""


rule rollout:
    """Let the proxy write completions for its share of the training samples and reward them."""
    input:
        samples="{results}/{dataset}/samples.parquet",
        catalogue="{results}/{dataset}/catalogue.parquet",
        item_table="{results}/{dataset}/signals/{selector}/items.safetensors",
        model="data/models/{selector}",
        adapter="{results}/{dataset}/signals/{selector}/proxy/adapter",
    output:
        rollouts=f"{{results}}/{{dataset}}/signals/{{selector}}/{SHARD}rollouts.parquet",
        hidden=f"{{results}}/{{dataset}}/signals/{{selector}}/{SHARD}hidden.safetensors",
    log:
        f"{{results}}/logs/{{dataset}}/rollout/{SHARD}{{selector}}.log",
    benchmark:
        f"{{results}}/benchmarks/{{dataset}}/rollout/{SHARD}{{selector}}.tsv"
    conda:
        "../../environment.yml"
    threads: cores("rollout")
    resources:
        **needs("rollout"),
    params:
        wildcards=experiment.named,
        settings=settings("rollout"),
        shard=lambda wildcards: f"--shard {wildcards.shard}" if SHARD else "",
        code=code("rollout"),
    shell:
        "python -m minirec rollout {params.settings} {params.shard} --samples {input.samples:q}"
        " --catalogue {input.catalogue:q} --items {input.item_table:q} --model {input.model:q}"
        " --adapter {input.adapter:q} --whitening {input.adapter:q}/whitening.safetensors"
        " --rollouts {output.rollouts:q} --hidden {output.hidden:q}"
        " --log {log:q} --wildcards {params.wildcards:q}"


if SHARD:

    rule gather:
        """Join the shards; the result is the same as from one job."""
        input:
            rollouts=expand(rules.rollout.output.rollouts, shard=range(CONFIG.rollout.shards), allow_missing=True),
            hidden=expand(rules.rollout.output.hidden, shard=range(CONFIG.rollout.shards), allow_missing=True),
        output:
            rollouts="{results}/{dataset}/signals/{selector}/rollouts.parquet",
            hidden="{results}/{dataset}/signals/{selector}/hidden.safetensors",
        log:
            "{results}/logs/{dataset}/gather/{selector}.log",
        benchmark:
            "{results}/benchmarks/{dataset}/gather/{selector}.tsv"
        conda:
            "../../environment.yml"
        threads: cores("gather")
        resources:
            **needs("gather"),
        params:
            wildcards=experiment.named,
            code=code("gather"),
        shell:
            "python -m minirec gather --rollout-shards {input.rollouts:q} --hidden-shards {input.hidden:q}"
            " --rollouts {output.rollouts:q} --hidden {output.hidden:q}"
            " --log {log:q} --wildcards {params.wildcards:q}"
