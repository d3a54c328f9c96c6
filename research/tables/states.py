"""The words of other tools for the state of a run, and for a value that is missing: those of our
own records, W&B, MLflow, Optuna, Ray Tune, Slurm, Kubernetes, ClearML, Determined, the clouds, and
spreadsheets.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DONE = _words(
    "done finished finish complete completed cd succeeded success successful ok passed "
    "terminated closed published ended inactive"
)
NOT_DONE = _words(
    # our own
    "failed diverged unfinished running held "
    # W&B, MLflow, Optuna, Ray Tune
    "crashed crash killed preempted preempting pending scheduled fail pruned waiting paused error "
    "errored restoring "
    # Slurm, with its short forms and sacct's
    "bootfail bf cancelled canceled ca configuring cf completing cg deadline dl f nodefail nf "
    "outofmemory outofme oom pd pr r resvdelhold requeuefed requeuehold requeued rq resizing "
    "revoked rv signaling si specialexit se stageout so stopped st suspended s timeout to "
    # the others
    "active aborted archived created crashloopbackoff deleted evicted exception expired failure "
    "finalizing imagepullbackoff incomplete initializing inprogress interrupted invalid killing "
    "launching new notresponding notstarted oomkilled partial planned preparing provisioning "
    "publishing queued queueing rejected retrying shutdown skipped started starting stale stop "
    "stopping stoppingcanceled stoppingerror stuck terminating timedout unresponsive "
    "unschedulable upstreamfailed"
)
MISSING = _words(
    "- -- --- – — . .. ... … ? na n/a n.a. n.a #n/a #na <na> none null (null) nil nat missing "
    "undefined unknown tbd tba empty blank (empty) (blank) (none) \\n"
)
SPREADSHEET_ERRORS = _words("#div/0! #value! #ref! #num! #name? #null! #error!")
COLUMNS = _words("status state runstate runstatus trialstate trialstatus jobstate jobstatus")
# Columns that say by a truth value, or by an exit code, how a run ended: sys/failed, hasCrashed.
_ENDED_BADLY = _words(
    "failed hasfailed isfailed crashed hascrashed iscrashed diverged hasdiverged isdiverged "
    "aborted killed oom running isrunning exitcode returncode"
)
_YES, _CODE = _words("true yes 1 1.0"), re.compile(r"(-?\d+)(?:\.0)?(?::(\d+))?")
_PREFIX = re.compile(
    r"^(?:\w*state|\w*status)[._]+", re.IGNORECASE
)  # TrialState.PRUNED, JOB_STATE_


def normalized(word: object) -> str:
    """A state as it is looked up: "CANCELLED by 1000", "TrialState.PRUNED", "In progress"."""
    text = _PREFIX.sub("", str(word).strip())
    text = re.sub(r"\s+by\s+\S+$", "", text, flags=re.IGNORECASE).rstrip("+")
    return re.sub(r"[\s_-]+", "", text).casefold()


def is_missing(value: object) -> bool:
    """Whether a cell says that there is no value. NaN is one: a run diverged."""
    return value is None or (isinstance(value, str) and value.strip().casefold() in {"", *MISSING})


def is_no_number(value: object) -> bool:
    """Whether a word in the place of a number says that a run has none: "OOM", "diverged"."""
    word = str(value).strip().casefold()
    return word in SPREADSHEET_ERRORS or (len(word) > 2 and normalized(word) in NOT_DONE)


def reason_to_leave_out(status: object, finished: tuple[str, ...] = ()) -> str:
    """Why a run of this state is no result, or nothing: an empty cell says nothing of it. A word
    that is neither known nor among `finished` is a reason of its own."""
    said = str(status).strip()
    word = normalized(status)
    if said in finished or status is True or word in DONE:
        return ""
    if (is_missing(status) and word != "unknown") or word == "nan":
        return ""
    if word in NOT_DONE or status is False:
        return said
    return f"its state {said[:40]!r} is not known (--finished={said[:40]})"


def unknown_state(reason: str) -> str:
    """The word of a `reason_to_leave_out` that is no known state, or nothing."""
    found = re.fullmatch(r"its state .* is not known \(--finished=(.*)\)", reason)
    return found[1] if found else ""


def is_state(value: object) -> bool:
    return isinstance(value, str) and normalized(value) in DONE | NOT_DONE


def ended_badly(column: object, value: object) -> bool:
    """Whether a column that says how a run ended says that it did not end well, or has not yet."""
    name = re.sub(r"[\W_]+", "", re.split(r"[/.:]", str(column))[-1]).casefold()
    if name not in _ENDED_BADLY or is_missing(value):
        return False
    text = str(value).strip().casefold()
    if name in ("exitcode", "returncode"):
        code = _CODE.fullmatch(text)
        return bool(code) and any(part and int(part) for part in code.groups())
    return text in _YES


def names_states(column: object) -> bool:
    """Whether a column is called what trackers call the state of a run: State, run.status."""
    last = re.split(r"[/.:]", str(column))[-1]
    return re.sub(r"[\s_-]+", "", last).casefold() in COLUMNS
