"""W&B's own environment variables: what becomes of each in a run of llmkit.

The lists are those of wandb 0.31; a test compares them with the installed package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from llmkit.config.mistakes import access_in_url, display

SETTINGS = {
    "WANDB_MODE": "mode",
    "WANDB_DISABLED": "mode",
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
    "WANDB_NAME": "name",
    "WANDB_TAGS": "tags",
    "WANDB_RUN_GROUP": "group",
    "WANDB_NOTES": "notes",
    "WANDB_JOB_TYPE": "job_type",
}
"""Variable: the setting of monitor.wandb that takes its value where it is not given itself."""

ANSWERED = (
    "WANDB_RUN_ID",
    "WANDB_BASE_URL",
    "WANDB_API_KEY",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_CONFIG_DIR",
)
"""Heeded by llmkit without a setting: the id of a new run, the server, whether there is a key."""

FOLDER = "the files of W&B lie in the run folder"
SAME_RUN = "a run always goes on under its own id"
LIMITS = "the mirror process has limits of its own"
NO_CODE = "code is not uploaded"
NO_GIT = "addresses of git remotes may hold secrets"
SETTINGS_IN_LOG = "its log would hold all settings of wandb, secrets too"
OWN_PROCESS = "the mirror process starts a wandb of its own"
PASSED_OVER = {
    "WANDB_DIR": FOLDER,
    "WANDB_ROOT_DIR": FOLDER,
    "WANDB_RUN_DIR": FOLDER,
    "WANDB_RESUME": SAME_RUN,
    "WANDB_RESUMED": SAME_RUN,
    "WANDB_RESUME_FROM": SAME_RUN,
    "WANDB_FORK_FROM": SAME_RUN,
    "WANDB_SAGEMAKER_DISABLE": SAME_RUN,
    "WANDB_REINIT": SAME_RUN,
    "WANDB_CONSOLE": "the console's output is not uploaded",
    "WANDB_CAPTURE_LOGGERS": "the console's output is not uploaded",
    "WANDB_SILENT": "what wandb says is in logs/wandb.log",
    "WANDB_SAVE_CODE": NO_CODE,
    "WANDB_DISABLE_CODE": NO_CODE,
    "WANDB_CODE_DIR": NO_CODE,
    "WANDB_DISABLE_GIT": NO_GIT,
    "WANDB_GIT_REMOTE": NO_GIT,
    "WANDB_GIT_REMOTE_URL": NO_GIT,
    "WANDB_GIT_ROOT": NO_GIT,
    "WANDB_GIT_COMMIT": NO_GIT,
    "WANDB_ARGS": "command lines may hold secrets",
    "WANDB_INIT_TIMEOUT": LIMITS,
    "WANDB_FINISH_TIMEOUT": LIMITS,
    "WANDB_FINISH_TIMEOUT_RAISES": LIMITS,
    "WANDB_LOGIN_TIMEOUT": LIMITS,
    "WANDB_STOP_ON_FATAL_ERROR": "an outage of W&B does not end a run",
    "WANDB_STOP_FN": "W&B does not end a run",
    "WANDB_CORE_DEBUG": SETTINGS_IN_LOG,
    "WANDB_DEBUG": SETTINGS_IN_LOG,
    "WANDB_SERVICE": OWN_PROCESS,
    "WANDB_SYNC_TENSORBOARD": "monitor.trackers has tensorboard",
    "WANDB_MAGIC": "the mirror gets its values from the run's record",
    "WANDB_CONFIG_PATHS": "the settings of the run are shown, and no others",
    "WANDB__DISABLE_META": "command lines may hold secrets",
    "WANDB__SAVE_REQUIREMENTS": "lists of packages may hold addresses with secrets",
    "WANDB__STATS_PID": "the training process is watched",
    "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "rows must be on the disk at once",
}
"""Variable: why the mirror decides this itself. None of them reaches wandb."""
SAME = {
    "WANDB_CONSOLE": ("off",),
    "WANDB_SILENT": ("true", "1"),
    "WANDB_SAVE_CODE": ("false", "0"),
    "WANDB_DISABLE_CODE": ("true", "1"),
    "WANDB_DISABLE_GIT": ("true", "1"),
    "WANDB_RESUME": ("allow",),
}
"""Values that say what holds anyway."""
SET_BY_THE_AGENT = ("WANDB_DIR",)
"""Variables that `wandb agent` sets in every sweep; there they are passed over without a note."""

LEFT_TO_WANDB = (
    # the server and the way to it
    "WANDB_APP_URL", "WANDB_APP_URL_OVERRIDE", "WANDB_CREDENTIALS_FILE", "WANDB_ORGANIZATION",
    "WANDB_ANONYMOUS", "WANDB_HTTP_TIMEOUT", "WANDB_HTTP_PROXY", "WANDB_HTTPS_PROXY",
    "WANDB_INSECURE_DISABLE_SSL", "WANDB_FILE_PUSHER_TIMEOUT", "WANDB_AZURE_ACCOUNT_URL_TO_ACCESS_KEY",
    "WANDB_HEARTBEAT_SECONDS", "WANDB_RELOGIN", "WANDB_FORCE",
    "WANDB_ERROR_REPORTING", "WANDB_STRICT",
    # who and where
    "WANDB_USERNAME", "WANDB_USER_EMAIL", "WANDB_EMAIL", "WANDB_HOST", "WANDB_PROGRAM",
    "WANDB_PROGRAM_ABSPATH", "WANDB_PROGRAM_RELPATH", "WANDB_DOCKER", "WANDB_DESCRIPTION", "WANDB_JUPYTER",
    "WANDB_NOTEBOOK_NAME", "WANDB_SHOW_RUN", "WANDB_X_EXECUTABLE", "WANDB_RUN_STORAGE_ID", "WANDB_INITED",
    "WANDB_CRASH_NOSYNC_TIME", "WANDB_LABEL_DISABLE",
    # sweeps and queues
    "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_AGENT_REPORT_INTERVAL", "WANDB_AGENT_KILL_DELAY",
    "WANDB_AGENT_DISABLE_FLAPPING", "WANDB_AGENT_MAX_INITIAL_FAILURES", "WANDB_LAUNCH",
    "WANDB_LAUNCH_CONFIG_PATH", "WANDB_LAUNCH_QUEUE_NAME", "WANDB_LAUNCH_QUEUE_ENTITY",
    "WANDB_LAUNCH_TRACE_ID", "WANDB_JOB_NAME", "WANDB_JOB_SOURCE", "WANDB_DISABLE_JOB_CREATION",
    
    # files and their upload
    "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_ARTIFACT_FETCH_FILE_URL_BATCH_SIZE",
    "WANDB_ALLOW_MEDIA_SYMLINK", "WANDB_ALLOW_OFFLINE_ARTIFACTS", "WANDB_IGNORE_GLOBS",
    "WANDB_SETTINGS_SYSTEM", "WANDB_USE_DOT_WANDB", "WANDB_SYMLINK",
    # what is shown and how
    "WANDB_QUIET", "WANDB_SHOW_COLORS", "WANDB_SHOW_EMOJI", "WANDB_SHOW_ERRORS", "WANDB_SHOW_INFO",
    "WANDB_SHOW_WARNINGS", "WANDB_MAX_END_OF_RUN_HISTORY_METRICS", "WANDB_MAX_END_OF_RUN_SUMMARY_METRICS",
    "WANDB_SUMMARY_TIMEOUT", "WANDB_SUMMARY_WARNINGS", "WANDB_ALLOW_VAL_CHANGE",
    "WANDB_TABLE_RAISE_ON_MAX_ROW_LIMIT_EXCEEDED", "WANDB_CONSOLE_MULTIPART",
    "WANDB_CONSOLE_CHUNK_MAX_BYTES", "WANDB_CONSOLE_CHUNK_MAX_SECONDS", "WANDB_DISABLE_GIT_FORK_POINT",
    "WANDB_ENABLE_DCGM_PROFILING",
)  # fmt: skip
"""Variables that reach wandb as they are."""
PRIVATE = ("WANDB__", "WANDB_X_")
"""Either begins the names of wandb's private settings; but for those above they reach wandb as they are."""


_KNOWN = frozenset((*SETTINGS, *ANSWERED, *PASSED_OVER, *LEFT_TO_WANDB))


def known_variables() -> tuple[str, ...]:
    """Every variable that has an answer here, private ones not counted."""
    return (*SETTINGS, *ANSWERED, *PASSED_OVER, *LEFT_TO_WANDB)


def passed_over(environment: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that is set and not heeded, with the reason; names that W&B has not, too."""
    for variable, given in environment.items():
        reason = PASSED_OVER.get(_common(variable))
        agents = variable in SET_BY_THE_AGENT and "WANDB_SWEEP_ID" in environment
        if reason and given and not agents and given.lower() not in SAME.get(variable, ()):
            yield f"{variable}={display(given)} is passed over: {reason}"
    if access_in_url(environment.get("WANDB_BASE_URL", "")):
        yield "the user, password or key in WANDB_BASE_URL is passed over: wandb would write it into logs"
    for variable in filter(_is_unknown, environment):
        close = difflib.get_close_matches(variable, known_variables(), n=1)
        yield f"{variable} is no variable of W&B" + (f"; did you mean {close[0]}?" if close else "")


def _common(variable: str) -> str:
    """The usual name of a variable: private ones have two."""
    return f"WANDB__{variable.removeprefix('WANDB_X_')}" if variable.startswith("WANDB_X_") else variable


def _is_unknown(variable: str) -> bool:
    return variable.startswith("WANDB_") and not variable.startswith(PRIVATE) and variable not in _KNOWN


def for_wandb(environment: Mapping[str, str], settings: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of the mirror process.

    settings: what holds for variables of the run's identity; None = it is not set. In a sweep wandb takes
    these from the environment alone.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if _common(name) not in PASSED_OVER and not _is_unknown(name)  # wandb reads some of these, too
    }
    for name in (*SETTINGS, "WANDB_RUN_ID"):
        kept.pop(name, None)
    return kept | {name: value for name, value in settings.items() if value is not None}
