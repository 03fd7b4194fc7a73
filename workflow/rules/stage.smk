"""What all rules share. Threads, memory, time and GPUs of each are in the profile: set-threads, set-resources."""


rule stage:
    log:
        "logs/stage.log",
    conda:
        ask.environment
    shell:
        "{params.command} --log {log:q}"
