"""Rates of a named GPU, from the file that `make bench-gpu` writes."""

import pytest

from minirec.errors import InputError
from minirec.planning.gpu_rates import TRAINING, WRITING, GpuRates

HEAD = "card,memory_gb,torch,transformers,model,what,value,unit"
BUILTIN = WRITING["builtin"]
SIZES = {"small": 1e9, "large": 3e9}


def rows(card, model, tokens, tflop, memory=80):
    start = f"{card},{memory},2.13.0,5.23,{model}"
    return [
        f'{start},"{BUILTIN}",{tokens},tokens/s',
        f"{start},another thing,7,s",
        f"{start},{TRAINING},{tflop},TFLOP/s",
    ]


@pytest.fixture
def file(tmp_path):
    lines = [HEAD, *rows("NVIDIA H100 80GB HBM3", "small", 1, 1), *rows("NVIDIA H100 80GB HBM3", "small", 900, 200)]
    lines += [*rows("NVIDIA H100 80GB HBM3", "large", 500, 300), *rows("NVIDIA A100", "small", 300, 100, 40)]
    lines += rows("NVIDIA T4", "small", 30, 10)[:1]  # its training failed
    (tmp_path / "gpu.csv").write_text("\n".join(lines))
    return tmp_path / "gpu.csv"


def test_the_newest_rates_of_the_card_with_the_model_of_the_nearest_size(file):
    assert GpuRates.read(file, "h100", SIZES, 0.5e9) == GpuRates("NVIDIA H100 80GB HBM3", 80e9, 1e9, 900, 200e12)
    assert GpuRates.read(file, "H100", SIZES, 2.5e9) == GpuRates("NVIDIA H100 80GB HBM3", 80e9, 3e9, 500, 300e12)
    assert GpuRates.read(file, "a100", SIZES, 7e9).memory == 40e9


def test_writing_grows_with_the_weights_and_other_operations_do_not():
    rates = GpuRates("H100", 80e9, parameters=2e9, tokens=1_000, flop=100e12)
    assert rates.seconds(written=5_000, flop=2 * 2e9 * 5_000, parameters=2e9) == 5
    assert rates.seconds(written=5_000, flop=2 * 4e9 * 5_000, parameters=4e9) == 10
    assert rates.seconds(written=0, flop=3e14, parameters=4e9) == 3


def test_the_rate_of_writing_is_that_of_the_engine(file):
    start = "NVIDIA H100 80GB HBM3,80,2.13.0,5.23,small"
    with file.open("a") as stream:
        stream.write(f"\n{start},{WRITING['vllm']},20000,tokens/s")
    assert GpuRates.read(file, "h100", SIZES, 1e9, "vllm").tokens == 20_000
    assert GpuRates.read(file, "h100", SIZES, 1e9).tokens == 900
    with pytest.raises(InputError, match="no rates of a h100 with the engine transformers, only of: NVIDIA A100"):
        GpuRates.read(file, "h100", SIZES, 1e9, "transformers")


@pytest.mark.parametrize("name", ["b200", "t4"])
def test_a_card_without_both_rates_is_refused_with_those_that_are_there(file, name):
    with pytest.raises(
        InputError, match=f"no rates of a {name}, only of: NVIDIA A100, NVIDIA H100 80GB HBM3, NVIDIA T4"
    ):
        GpuRates.read(file, name, SIZES, 1e9)


def test_without_the_file_the_command_that_makes_it_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gpu.csv does not exist; run make bench-gpu on a h100 first"):
        GpuRates.read(tmp_path / "gpu.csv", "h100", SIZES, 1e9)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["memory_gb,model,what,value", f'80,small,"{BUILTIN}",5'], "'card'"),
        ([HEAD, rows("H100", "small", "fast", 1)[0]], "could not convert string to float: 'fast'"),
        ([HEAD, rows("H100", "small", 0, 1)[0]], f"{BUILTIN} is 0.0"),
        ([HEAD, rows("H100", "small", "nan", 1)[0]], f"{BUILTIN} is nan"),
    ],
)
def test_a_file_that_bench_gpu_did_not_write_is_refused_in_one_sentence(tmp_path, lines, reason):
    (tmp_path / "gpu.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"gpu\.csv is not as make bench-gpu writes it \({reason}\); measure again"):
        GpuRates.read(tmp_path / "gpu.csv", "h100", SIZES, 1e9)


def test_a_name_that_may_be_one_of_several_cards_is_refused(tmp_path):
    lines = [HEAD, *rows("NVIDIA H100 PCIe", "small", 5, 5), *rows("NVIDIA H100 NVL", "small", 6, 6)]
    (tmp_path / "gpu.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="h100 may be one of NVIDIA H100 NVL, NVIDIA H100 PCIe; name one of them"):
        GpuRates.read(tmp_path / "gpu.csv", "h100", SIZES, 1e9)
    assert GpuRates.read(tmp_path / "gpu.csv", "h100 pcie", SIZES, 1e9).tokens == 5
