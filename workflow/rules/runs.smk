"""One run: a fresh policy trained on a curriculum, and what it is worth."""


use rule stage as train with:
    """Train a fresh policy on the curriculum; checkpoints/ beside the adapter lets a failed job resume."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        curriculum="<selection>/curriculum.parquet",
        item_table="<base>/items.safetensors",
        whitening="<base>/whitening.safetensors",
        frozen_states="<base>/frozen_states.safetensors",
        model="data/models/{model}",
    output:
        adapter=directory("<run>/adapter"),
        history="<run>/history.parquet",
    log:
        "<run>/logs/train.log",
    params:
        **job("train"),


use rule stage as evaluate with:
    """Rank the whole catalogue for every test sample with the trained policy."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        frozen_states="<base>/frozen_states.safetensors",
        model="data/models/{model}",
        adapter="<run>/adapter",
    output:
        ranks="<run>/ranks.parquet",
    log:
        "<run>/logs/evaluate.log",
    params:
        **job("evaluate"),


use rule stage as evaluate_base with:
    """The same policy before RL, for comparison."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        item_table="<base>/items.safetensors",
        whitening="<base>/whitening.safetensors",
        model="data/models/{model}",
    output:
        ranks="<base>/ranks.parquet",
    log:
        "<base>/logs/evaluate_base.log",
    params:
        **job("evaluate"),


use rule stage as baselines with:
    """Rank the test samples with recommenders that have no language model: popularity, TF-IDF, item transitions, SASRec."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
    output:
        baselines="<top>/baselines.parquet",
    log:
        "<top>/logs/baselines.log",
    params:
        **job("baselines"),


use rule stage as measure with:
    """Metrics of a run, compared with the policy before RL and with the baselines."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        ranks="<run>/ranks.parquet",
        before="<base>/ranks.parquet",
        baselines="<top>/baselines.parquet",
    output:
        metrics="<run>/metrics.json",
    log:
        "<run>/logs/measure.log",
    params:
        **job("measure"),


use rule stage as measure_base with:
    """Metrics of the policy before RL."""
    input:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        ranks="<base>/ranks.parquet",
        baselines="<top>/baselines.parquet",
    output:
        metrics="<base>/metrics.json",
    log:
        "<base>/logs/measure_base.log",
    params:
        **job("measure"),
