"""Every part of the GPU benchmark at toy size, on the CPU: what fails is said, and no row is lost."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.on_gpu import profiling, steps
from benchmarks.on_gpu.operations import forms_on
from benchmarks.on_gpu.report import Page, Row
from benchmarks.workloads import ROOT
from llmkit.kernels.operators import FORMS
from tests.limits import HANG

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def path_as_it_was() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def run_part(part: str, folder: Path, *options: str) -> str:
    """The page of a part at toy size."""
    assert gpu.main(["--part", part, "--toy", "--rounds", "1", "--out", str(folder), *options]) == 0
    (file,) = folder.iterdir()
    return file.read_text()


def tables(page: str) -> dict[str, list[dict[str, str]]]:
    """Heading -> rows by column."""
    found: dict[str, list[dict[str, str]]] = {}
    for section in page.split("\n## ")[1:-1]:
        title, _, rest = section.partition("\n")
        lines = [line for line in rest.splitlines() if line.startswith("|")]
        head, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
        found[title] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


def test_ceilings(tmp_path: Path) -> None:
    page = run_part("ceilings", tmp_path)

    found = tables(page)
    assert [row["product"] for row in found["Products"]][:2] == ["square", "toy qkv"]
    assert all(float(row["x w' TFLOP/s"].split()[0]) > 0 for row in found["Products"])
    assert [row["pass"] for row in found["Memory"]][-1] == "AdamW"
    for fact in ("toy sizes, the figures mean nothing", f"torch {torch.__version__}", "commit", "--toy"):
        assert fact in page
    assert not re.search(r"(^|[\s`(])/\w", page), "an absolute path"


def test_attention(tmp_path: Path) -> None:
    plain, documents = tables(run_part("attention", tmp_path)).values()

    rows = {row["form"]: row for row in plain}
    assert rows["SDPA CUDNN_ATTENTION"]["forward us"].startswith("did not run: RuntimeError")
    assert float(rows["SDPA MATH"]["both TFLOP/s"]) > 0
    assert float(rows["llmkit sdpa"]["both TFLOP/s"]) > 0
    assert all(row["form"].startswith("llmkit ") for row in documents)


def test_a_gpu_is_not_measured_by_the_kernels_of_a_cpu() -> None:
    for operator, forms in FORMS.items():
        assert forms_on(CPU, operator) == list(forms)
        assert set(forms) - set(forms_on(torch.device("cuda"), operator)) <= {"avx512"}
    assert "avx512" not in forms_on(torch.device("cuda"), "linear")


def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.kernels.operators import FUNCTIONS

    resets: list[bool] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    found = tables(run_part("kernels", tmp_path))

    assert set(found) == set(FUNCTIONS) - {"attention"}, "an operator has no measurement"
    exact = [rows for operator, rows in found.items() if operator != "linear"]  # fp8 rounds
    errors = [row["error"] for rows in exact for row in rows if row.get("error")]
    assert len(errors) > 15
    assert max(map(float, errors)) < 1e-4
    liger = [row for row in found["activation"] if "Liger" in row["operator and form"]]
    assert liger and all(row["us"].startswith("did not run: ") for row in liger)
    names = [row["operator and form"] for rows in found.values() for row in rows]
    compiled = [name for name in names if name.endswith(": torch.compile")]
    assert len(resets) == len(compiled) > 8, "it compiles eight versions of a function at most"


def test_steps(tmp_path: Path) -> None:
    peers = ["llama-compiled", "llama-liger", "litgpt"]
    (rows,) = tables(run_part("step", tmp_path, "--peers", ",".join(peers))).values()

    assert [row["contender"] for row in rows] == ["llmkit", "llmkit, document masks", *peers]
    by_name = {row["contender"]: row for row in rows}
    assert by_name["llama-liger"]["tokens/s"] == "did not run: RuntimeError: Liger's kernels need a GPU"
    for name in ("llmkit", "llmkit, document masks", "llama-compiled"):
        first, last = map(float, by_name[name]["loss"].split(" to "))
        assert last < first < 6.4
        assert (by_name[name]["turns"], by_name[name]["micro-batch x accumulation"]) == ("2", "4 x 1")
        assert float(by_name[name]["x llmkit"]) > 0
    if not importlib.util.find_spec("litgpt"):
        assert by_name["litgpt"]["tokens/s"].startswith("did not run: ModuleNotFoundError")


@pytest.mark.exhaustive
def test_engines_and_recomputation(tmp_path: Path) -> None:
    (engines,) = tables(run_part("zero", tmp_path / "zero")).values()
    (recompute,) = tables(run_part("recompute", tmp_path / "recompute")).values()

    assert [row["contender"] for row in engines] == list(steps.ENGINES)
    assert len({row["loss"] for row in engines}) == 1
    assert {row["micro-batch x accumulation"] for row in engines} == {"2 x 2"}
    assert [row["contender"] for row in recompute] == list(steps.RECOMPUTE)
    assert len({row["loss"] for row in recompute}) == 1


def test_where_a_step_goes(tmp_path: Path) -> None:
    (rows,) = tables(run_part("profile", tmp_path)).values()

    kinds = {row["kernel"]: row for row in rows if row["kernel"].startswith("all: ")}
    assert "all: products" in kinds
    assert sum(float(row["share"].rstrip("%")) for row in kinds.values()) == pytest.approx(100, abs=1)
    assert len(rows) > len(kinds) + 5


def test_ranges_of_kernels_are_no_kernels() -> None:
    def step() -> None:
        with torch.profiler.record_function("Optimizer.step"):
            torch.ones(8, 8) @ torch.ones(8, 8)

    found = [name for name, _, _ in profiling.kernel_times(step, CPU)]
    assert "aten::mm" in found and "Optimizer.step" not in found


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x256>", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x256x64", "products"),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "fused by torch.compile"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "over all parameters"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "between GPUs"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::elementwise_kernel<128, 4>", "the rest"),
    ],
)
def test_kernels_have_their_kind(kernel: str, kind: str) -> None:
    assert profiling.kind_of(kernel) == kind


def test_generation(tmp_path: Path) -> None:
    (rows,) = tables(run_part("generate", tmp_path)).values()

    assert [row["tokens before"] for row in rows] == ["3", "20"]
    assert all(float(row["first token ms"]) > 0 for row in rows)


@pytest.mark.exhaustive
def test_losses_and_fp8(tmp_path: Path) -> None:
    (losses,) = tables(run_part("loss", tmp_path / "loss")).values()
    (fp8,) = tables(run_part("fp8", tmp_path / "fp8")).values()

    for row in losses:
        found = row["largest difference"]
        assert found.startswith("did not run") or float(found) < 0.02, row
    assert float(losses[0]["largest difference"]) > 0
    assert [row["contender"] for row in fp8] == ["bf16", "fp8"]


def test_each_row_is_on_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    page = Page(tmp_path / "page.md", "Title", {"device": "a GPU"}, ["a note"])

    def rows() -> Iterator[Row]:
        yield Row("first", {"name": "a", "us": "1"})
        assert "| a | 1 |" in page.path.read_text()
        yield Row("first", {"name": "b", "us": "2 | 3"})
        yield Row("first", {"name": "a", "us": "4", "error": "0.1"})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(page.fill(rows()))
    text = page.path.read_text()
    assert "| a | 4 | 0.1 |\n| b | 2 \\| 3 |  |" in text
    assert "a note" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--toy", "--shapes", "7b", "--part", "step"], "--shapes: '7b' is not among 124m"),
        (["--toy", "--peers", "gpt3"], "--peers: 'gpt3' is not among gpt2"),
        (["--toy", "--wheels", "no/such/folder"], "--wheels no/such/folder cannot be used"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    assert gpu.main(["--part", "ceilings"]) == 2
    assert "no GPU is found; --toy" in capsys.readouterr().err
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True", "not as in training"


def test_wheels_are_unpacked_once_behind_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "kernels_of_ours-1.0-py3-none-any.whl"
    info = "kernels_of_ours-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {
            "kernels_of_ours.py": "VALUE = 7\n",
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: kernels-of-ours\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }.items():
            archive.writestr(name, text)
    gpu.use_wheels(tmp_path)
    assert sys.path[-1] == str(tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "kernels_of_ours.py").exists()

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("unpacked again"))
    gpu.use_wheels(tmp_path)
    gpu.use_wheels(tmp_path / "unpacked")  # packages as they are
    assert sys.path[-1] == str(tmp_path / "unpacked")


def test_the_script_starts_without_more_than_the_standard_library(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu.py"
    code = (
        f"import sys, runpy; sys.argv = ['gpu.py', '--help']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        f"except SystemExit: print([m for m in ('torch', 'numpy', 'llmkit') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=HANG
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
