"""Which samples are kept, and in which order they are trained."""


use rule stage as select with:
    """Keep the samples within the budget that a method prefers, by the signals that it needs."""
    input:
        unpack(ask.select_inputs),
        samples="<top>/samples.parquet",
    output:
        selection="<selection>/selection.parquet",
    log:
        "<selection>/logs/select.log",
    params:
        **job("select", shards_folder=ask.shard_selections),


use rule select as select_shard with:
    """The first of two rounds: pick as many as the budget allows in one part of the samples."""
    output:
        selection="<selection>/shards/{shard}/selection.parquet",
    log:
        "<selection>/shards/{shard}/logs/select.log",


use rule stage as curriculum with:
    """Order the selection from easy to hard within shuffled groups."""
    input:
        selection="<selection>/selection.parquet",
    output:
        out="<selection>/curriculum.parquet",
    log:
        "<selection>/logs/curriculum.log",
    params:
        **job("curriculum"),
