"""What a shell can add to a line that is being typed: `apsis completion bash|zsh|fish`.

The scripts know nothing: for each Tab they ask `apsis _complete WORDS...`, so that what they offer is
what this version takes, and the jobs and runs are those of the server that the line means.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

PATIENCE = 2.0  # s for the server's answer; who types does not wait
RUNS = 50  # offered at once: the newest

# The last word is the one to complete, perhaps empty. A bash without `compopt` falls back to file names
# by itself, as the others do where nothing is offered.
SCRIPTS: Mapping[str, str] = {
    "bash": """_apsis() {
    local IFS=$'\\n'
    local cur="${COMP_WORDS[COMP_CWORD]}"
    COMPREPLY=($("${COMP_WORDS[0]}" _complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F _apsis apsis apsisctl
""",
    "zsh": """#compdef apsis apsisctl
_apsis() {
    local -a found
    found=("${(@f)$("${words[1]}" _complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -a found; else _files; fi
}
compdef _apsis apsis apsisctl
""",
    "fish": """function __apsis_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found ($words[1] _complete $words[2..-1] 2>/dev/null)
    if test -n "$found[1]"
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c apsis -f -a '(__apsis_complete)'
complete -c apsisctl -f -a '(__apsis_complete)'
""",
}

Ask = Callable[[argparse.Namespace, str], Iterable[str]]  # (the options so far, JOB or RUN) -> IDs


def complete(parser: argparse.ArgumentParser, words: Sequence[str], ask: Ask) -> list[str]:
    """What the last of the words may become, sorted. Empty: the shell may offer file names."""
    if not words:
        return []
    *before, partial = words
    given = argparse.Namespace(host=None, port=None)
    command = ""
    seen = 0  # words that are no options, of the command at hand
    expecting: argparse.Action | None = None
    for word in before:
        options = _options(parser)
        if expecting is not None:
            setattr(given, expecting.dest, word)
            expecting = None
        elif word.startswith("-") and word != "-":
            name, equals, value = word.partition("=")
            option = options.get(name)
            if option is not None and option.nargs != 0:
                if equals:
                    setattr(given, option.dest, value)
                else:
                    expecting = option
        elif (inner := _commands(parser).get(word)) is not None and not command:
            parser, command, seen = inner, word, 0
        else:
            seen += 1
    if expecting is not None:
        found = _values(expecting, given, command, ask)
    elif partial.startswith("-"):
        found = [name for name in _options(parser) if name.startswith("--")]
    elif not command:
        found = [] if seen else [name for name in _commands(parser) if not name.startswith("_")]
    else:
        place = _positional(parser, seen)
        found = [] if place is None else _values(place, given, command, ask)
    return sorted({word for word in found if word.startswith(partial)})


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return dict(parser._option_string_actions)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _positional(parser: argparse.ArgumentParser, seen: int) -> argparse.Action | None:
    """What the next word that is no option is; the last list of words goes on."""
    places = [action for action in parser._actions if not action.option_strings]
    if seen < len(places):
        return places[seen]
    last = places[-1] if places else None
    return last if last is not None and last.nargs in ("+", "*") else None


def _values(action: argparse.Action, given: argparse.Namespace, command: str, ask: Ask) -> Iterable[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    match action.metavar:
        case "JOB":
            return ask(given, "JOB")
        case "RUN":
            return ask(given, f"RUN {command}")
        case "STATE":
            from apsislib.states import FINISHED, State

            return [state.value for state in State if command != "mark" or state in FINISHED]
        case "SIGNAL":
            import signal

            return [number.name.removeprefix("SIG") for number in signal.Signals]
        case "TIME":
            return ["now"]
    return []


# Which runs a command is for; the others take any.
_STATES = {
    "stop": ("running", "stopping"),
    "signal": ("running", "stopping"),
    "skip": ("scheduled", "waiting"),
    "start": ("scheduled", "waiting"),
    "waiting": ("waiting",),
    "mark": ("success", "failure", "error", "skipped"),
}


def ask_server(given: argparse.Namespace, what: str) -> list[str]:
    """IDs of the server's jobs or newest runs; none where there is no answer."""
    import os

    from apsislib.cli import address
    from apsislib.cli.client import ApiError, Client, Trouble

    try:
        port = None if given.port is None else address.parse_port(given.port)
        client = Client(*address.find(given.host, port, os.environ))
        if what == "JOB":
            answer: Any = client.get("v1", "jobs", patience=PATIENCE)
            return [str(job["job_id"]) for job in answer]
        states = [("state", state) for state in _STATES.get(what.removeprefix("RUN "), ())]
        query = [("limit", str(RUNS)), *states]
        answer = client.get("v1", "search", "runs", query=query, patience=PATIENCE)
        return list(answer["runs"])
    except (ApiError, Trouble, ValueError, KeyError, TypeError):
        return []
