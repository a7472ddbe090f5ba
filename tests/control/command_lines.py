"""Compares the command line of scripts/rpc.py with that of SPDK's client, run by SPDK's Python.

Usage: command_lines.py scripts/rpc.py METHOD… For each method: the arguments that SPDK requires and nothing else, each
optional one with them, all of them together, and each required one left out. Both clients must make the same request of
a line, or both must refuse it with the same status. Prints the number of lines, and those that differ, as JSON.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import shlex
import sys

from spdk import spdk_rpc

# Words that SPDK checks itself, behind its parser, and lists that have to be told from words.
VALUES = {
    "admin_cmd_passthru": ["identify_ctrlr,sanitize", "all"],
    "base_bdevs": ["first  second"],
    "borders": ["10,20"],
    "dhchap_dhgroups": ["ffdhe2048,ffdhe3072"],
    "dhchap_digests": ["sha256,sha384"],
    "discovery_filters": ["transport,address"],
    "masked_fuses": ["fcws", "all"],
    "masked_oncs": ["nvmcmps,reservs", "all"],
    "names": ["first,second", "first second"],
    "nqn": ["nqn.2026-11.org.example:disk0", "discovery"],
    "uuid": ["5f1b9c9e-0000-4000-8000-0123456789ab"],
}
CANDIDATES = ["512", "word", "0x3", "true", "1.5"]


class Recorder:
    """A client that notes what it is asked to call."""

    def __init__(self):
        self.calls = []

    def call(self, method, params=None):
        self.calls.append([method, {name: value for name, value in (params or {}).items() if value is not None}])
        return []

    def __getattr__(self, method):
        return lambda **params: self.call(method, params)


def values(action):
    """What may stand behind an argument."""
    if action.nargs == 0:
        return [None]
    if action.dest in VALUES:
        return VALUES[action.dest]
    if action.choices:
        return [str(list(action.choices)[-1])]
    for candidate in CANDIDATES:
        try:
            (action.type or str)(candidate)
            return [candidate]
        except (ValueError, KeyError, argparse.ArgumentTypeError):
            pass
    raise RuntimeError(f"no value for {action.dest}")


def words(action, value):
    if not action.option_strings:
        return [value]
    # Each spelling must be known: the lines take turns.
    return [[spelling] if value is None else [spelling, value] for spelling in action.option_strings]


def spellings(action):
    """The ways to give an argument."""
    ways = []
    for value in values(action):
        ways.extend(words(action, value) if action.option_strings else [words(action, value)])
    return ways


def lines(parser):
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    needed = [action for action in actions if action.required]
    first = lambda chosen: [word for action in chosen for word in spellings(action)[0]]
    yield first(needed)
    for action in needed:
        yield first([other for other in needed if other is not action])
    for action in actions:
        others = [other for other in needed if other is not action]
        for way in spellings(action):
            yield first(others) + way if action.option_strings else first_with(needed, action, way, first)
    exclusive = [group._group_actions[1:] for group in parser._mutually_exclusive_groups]
    left_out = [action for group in exclusive for action in group]
    yield first([action for action in actions if action not in left_out])


def first_with(needed, action, way, first):
    """A positional argument keeps its place."""
    line = []
    for other in needed if action in needed else [*needed, action]:
        line += way if other is action else first([other])
    return line


def outcome(parse, run, line, failure=()):
    """The requests that a client makes of a line, or its exit status."""
    recorder = Recorder()
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        try:
            args = parse(line)
            args.client = recorder
            run(args)
        except SystemExit as end:
            return end.code
        except failure:
            return 1
    return recorder.calls


def without_own(calls, known):
    """Flags of our own that were not given are sent as false; SPDK has no such param."""
    if not isinstance(calls, list):
        return calls
    return [[method, {name: value for name, value in params.items() if name in known or value is not False}]
            for method, params in calls]


def main():
    spec = importlib.util.spec_from_file_location("rpc", sys.argv[1])
    ours = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ours)
    spdk_rpc.suppress_cli_prints()
    their_parser, their_methods = spdk_rpc.create_parser()
    our_parser, _ = ours.command_line()

    def run_ours(args):
        args.client_is_dry = True
        args.func(args)

    compared = 0
    different = []
    for method in sys.argv[2:]:
        for line in lines(their_methods.choices[method]):
            line = [method, *line]
            theirs = outcome(their_parser.parse_args, lambda args: args.func(args), line)
            known = {name for _, params in theirs for name in params} if isinstance(theirs, list) else set()
            our_outcome = without_own(outcome(our_parser.parse_args, run_ours, line, ours.RpcFailure), known)
            compared += 1
            if json.dumps(our_outcome, sort_keys=True) != json.dumps(theirs, sort_keys=True):
                different.append({"line": shlex.join(line), "theirs": theirs, "ours": our_outcome})
    print(json.dumps({"compared": compared, "different": different}))


if __name__ == "__main__":
    main()
