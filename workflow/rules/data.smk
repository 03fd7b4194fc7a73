"""From raw files to samples, and the language models."""


# No rule makes the files of a data set of your own, so nothing can overwrite or delete them. To fetch anew, delete them.
use rule stage as fetch_data with:
    """Download and convert a data set; nothing is filtered."""
    output:
        interactions="data/{dataset}/interactions.parquet",
        item_metadata="data/{dataset}/items.parquet",
    log:
        "data/logs/{dataset}.log",
    wildcard_constraints:
        dataset=ask.fetched(),
    params:
        **job("fetch", source=ask.source("datasets")),


use rule stage as fetch_model with:
    """Get a language model as safetensors; a tiny one for tests is made from the titles of a data set."""
    input:
        unpack(ask.tokenizer_inputs),
    output:
        model=directory("data/models/{model}"),
    log:
        "data/logs/models/{model}.log",
    params:
        **job("fetch", source=ask.source("models")),


use rule stage as prepare with:
    """Filter the interactions and cut them into samples, split by time."""
    input:
        unpack(ask.prepare_inputs),
    output:
        samples="<top>/samples.parquet",
        catalogue="<top>/catalogue.parquet",
        dropped="<top>/prepare.json",
    log:
        "<top>/logs/prepare.log",
    params:
        **job("prepare", filter=ask.filter, format=ask.format),
