"""What a selector, trained as a proxy, makes of every training sample; computed once for all methods and budgets."""

SHARDS = ask.config.rollout.shards
PART = "shards/{shard}/" if SHARDS > 1 else ""


use rule stage as embed_base with:
    """Embed the catalogue with the base model and fit the whitening."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        model=ask.fetched_model,
    output:
        item_table="<base>/items.safetensors",
        whitening="<base>/whitening.safetensors",
        frozen_states="<base>/frozen_states.safetensors",
    log:
        "<base>/logs/embed_base.log",
    params:
        **job("embed", least_samples=ask.least_samples),


use rule stage as train_proxy with:
    """Train the selector on a few random samples, so that its rewards tell the samples apart."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        curriculum=ask.proxy_curriculum,
        item_table=ask.selector_base("items.safetensors"),
        whitening=ask.selector_base("whitening.safetensors"),
        frozen_states=ask.selector_base("frozen_states.safetensors"),
        model=ask.selector_model,
    output:
        adapter=directory("<signals>/proxy/adapter"),
        history="<signals>/proxy/history.parquet",
    log:
        "<signals>/proxy/logs/train_proxy.log",
    params:
        **job("train", train="proxy"),


use rule stage as embed_proxy with:
    """Embed the catalogue with the proxy."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        frozen_states=ask.selector_base("frozen_states.safetensors"),
        model=ask.selector_model,
        adapter=ask.signal("proxy/adapter"),
    output:
        item_table="<signals>/items.safetensors",
    log:
        "<signals>/logs/embed_proxy.log",
    params:
        **job("embed"),


use rule stage as rollout with:
    """Let the proxy write completions for its share of the training samples and reward them."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        item_table=ask.signal("items.safetensors"),
        model=ask.selector_model,
        adapter=ask.signal("proxy/adapter"),
    output:
        rollouts=f"<signals>/{PART}rollouts.parquet",
        hidden=f"<signals>/{PART}hidden.safetensors",
    log:
        f"<signals>/{PART}logs/rollout.log",
    wildcard_constraints:
        signal_set=ask.signal_sets(by_heads=False),
    params:
        **job("rollout"),


use rule stage as embed_users with:
    """Read the prompts of the training samples with the base model, once for the heads of all seeds."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        whitening="<base>/whitening.safetensors",
        model=ask.fetched_model,
    output:
        users="<users>/users.safetensors",
    log:
        "<users>/logs/embed_users.log",
    params:
        **job("embed_users"),


use rule stage as crossfit with:
    """Reward every training sample by heads on frozen states, without a proxy's training and completions."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        item_table=ask.selector_base("items.safetensors"),
        users=ask.selector_base("users/users.safetensors"),
    output:
        rollouts="<signals>/rollouts.parquet",
        embeddings="<signals>/embeddings.safetensors",
    log:
        "<signals>/logs/crossfit.log",
    wildcard_constraints:
        signal_set=ask.signal_sets(by_heads=True),
    params:
        **job("crossfit", train="proxy"),


if SHARDS > 1:

    use rule stage as gather with:
        """Join the shards; the result is the same as from one job."""
        input:
            rollout_shards=expand("<signals>/shards/{shard}/rollouts.parquet", shard=range(SHARDS), allow_missing=True),
            hidden_shards=expand("<signals>/shards/{shard}/hidden.safetensors", shard=range(SHARDS), allow_missing=True),
        output:
            rollouts="<signals>/rollouts.parquet",
            hidden="<signals>/hidden.safetensors",
        log:
            "<signals>/logs/gather.log",
        wildcard_constraints:
            signal_set=ask.signal_sets(by_heads=False),
        params:
            **job("gather", shards_folder=ask.rollout_shards, shards=SHARDS),


use rule stage as gradient with:
    """Gradient and Hessian-vector product of the item loss at every sample, and what diversity compares."""
    input:
        unpack(ask.gradient_inputs),
        samples="<top>/samples.parquet",
        item_table=ask.signal("items.safetensors"),
        adapter=ask.signal("proxy/adapter"),
        rollouts=ask.signal("rollouts.parquet"),
        hidden=ask.signal("hidden.safetensors"),
    output:
        gradients="<signals>/gradients.safetensors",
        embeddings="<signals>/embeddings.safetensors",
    log:
        "<signals>/logs/gradient.log",
    wildcard_constraints:
        signal_set=ask.signal_sets(by_heads=False),
    params:
        **job("gradient"),


use rule stage as influence with:
    """How much a small recommender, SASRec, needs every training sample; for methods that ask for it."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
    output:
        influences="<surrogate>/influences.parquet",
    log:
        "<surrogate>/logs/influence.log",
    params:
        **job("influence"),


use rule stage as score with:
    """How learnable and how representative every training sample is."""
    input:
        rollouts=ask.signal("rollouts.parquet"),
        gradients=ask.signal("gradients.safetensors"),
    output:
        scores="<signals>/scores.parquet",
    log:
        "<signals>/logs/score.log",
    params:
        **job("score"),
