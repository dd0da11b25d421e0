"""Which variables go along with a job."""

from __future__ import annotations

from llmkit.cluster.environment import exported, left_behind, wrong_variables

SET = {
    "PATH": "/bin",
    "HOME": "/h",
    "NCCL_DEBUG": "INFO",
    "WANDB_PROJECT": "p",
    "WANDB_API_KEY": "0" * 40,
    "HF_TOKEN": "hf_abcdefghijklmnop",
    "HF_HOME": "/hf",
    "AWS_SECRET_ACCESS_KEY": "x",
    "MY_PASSWORD": "x",
    "EDITOR": "vi",
    "https_proxy": "http://user:word@proxy",
    "http_proxy": "http://proxy:80",
    "SLURM_JOB_ID": "7",
    "SBATCH_QOS": "low",
    "MAX_FAULTS": "9",
    "CONDA_PREFIX": "local-" + "a" * 30,
    "LC_ALL": "C",
}


def test_usual_variables_go_along_and_secrets_do_not() -> None:
    assert exported(SET, ["MAX_FAULTS", "PYTHON"], []) == [
        "HF_HOME",
        "HOME",
        "LC_ALL",
        "MAX_FAULTS",
        "NCCL_DEBUG",
        "PATH",
        "WANDB_PROJECT",
        "http_proxy",
    ]


def test_what_is_asked_for_goes_along() -> None:
    names = exported(SET, [], ["HF_TOKEN", "MY_PASSWORD"])
    assert {"HF_TOKEN", "MY_PASSWORD"} <= set(names)
    assert left_behind(SET, names) == ["WANDB_API_KEY"]
    assert left_behind({"HF_TOKEN": ""}, []) == []


def test_wrong_names() -> None:
    asked = ["EDITOR", "NOT_SET", "SLURM_JOB_ID", "A=b", "A,B", "x\ny", ""]
    wrong = list(wrong_variables(SET, asked))
    assert len(wrong) == 6
    assert "NOT_SET is not set here" in wrong[0] and "SLURM_JOB_ID belongs to a job" in wrong[1]
