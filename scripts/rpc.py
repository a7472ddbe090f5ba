#!/usr/bin/env python3
"""Command line client of the target's JSON-RPC socket. Needs Python 3.9 and its standard library only.

Command lines, printing and exit codes are those of SPDK's rpc.py, so scripts written for it work with this one. Which
methods exist, their arguments and how their results print stands in rpc_methods.json beside this file, which is
written from the target's own method table; nothing about a single method is said here.

Exit status: 0 done, 1 no connection or an error reply, 2 bad command line.
"""

import argparse
import importlib
import json
import os
import shlex
import socket
import sys
import time

METHODS_FILE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "rpc_methods.json")

DEFAULT_ADDRESS = "/var/tmp/spdk.sock"
DEFAULT_PORT = 5260
DEFAULT_TIMEOUT_S = 60.0
RETRY_INTERVAL_S = 0.2
RECEIVE_BYTES = 65536

INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int32")
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"


class RpcFailure(Exception):
    """What a user is told instead of a result."""

    @property
    def message(self):
        return self.args[0]


class Requests:
    """Makes requests, one by one or, in batch mode, all for one array."""

    def __init__(self, batch_mode):
        self.batch_mode = batch_mode
        self.collected = []
        self.last_id = 0

    def __getattr__(self, method):
        # Plugins written for SPDK call methods as attributes of the client.
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda **params: self.call(method, params)

    def request(self, method, params):
        self.last_id += 1
        request = {"jsonrpc": "2.0", "method": method, "id": self.last_id}
        params = {name: value for name, value in (params or {}).items() if value is not None}
        if params:
            request["params"] = params
        return request

    def call(self, method, params=None):
        request = self.request(method, params)
        if self.batch_mode:
            self.collected.append(request)
            return None
        return self.perform(request)

    def finish_batch(self):
        """Sends what was collected; gives the results and the errors."""
        collected, self.collected = self.collected, []
        return self.perform_batch(collected) if collected else ([], [])


class DryRun(Requests):
    """Shows requests and sends nothing."""

    def perform(self, request):
        print("Request:\n" + json.dumps(request, indent=2))

    def perform_batch(self, requests):
        self.perform(requests)
        return [], []


class Client(Requests):
    """A connection to the target."""

    def __init__(self, address, port=DEFAULT_PORT, timeout=None, retries=0, batch_mode=False, verbose="ERROR"):
        super().__init__(batch_mode)
        self.timeout = DEFAULT_TIMEOUT_S if timeout is None else timeout
        self.verbose = verbose
        self.received = ""
        self.socket = None
        for _ in range(retries):
            try:
                self.connect(address, port)
                return
            except RpcFailure:
                time.sleep(RETRY_INTERVAL_S)
        self.connect(address, port)

    def log(self, level, what, text):
        if self.verbose == "DEBUG" or self.verbose == level:
            print(f"{level}: {what}:\n{text}", file=sys.stderr)

    def connect(self, address, port):
        self.log("DEBUG", "connecting", address)
        try:
            family, target = resolve(address, port)
            self.socket = socket.socket(family, socket.SOCK_STREAM)
            self.socket.connect(target)
        except OSError as error:
            # The words are SPDK's: scripts look for them.
            raise RpcFailure(f"Error while connecting to {address}\n"
                             "Is SPDK application running?\n"
                             f"Error details: {error}") from error

    def perform(self, request):
        try:
            reply = self.exchange(request)
        except ConnectionEnded:
            # The target may be gone before its reply is: that is what was asked for.
            if request["method"] == "spdk_kill_instance":
                return {}
            raise
        if "error" in reply:
            shown = dict(request.get("params", {}), method=request["method"], req_id=request["id"])
            raise RpcFailure("\n".join(["request:", json.dumps(shown, indent=2), "Got JSON-RPC error response",
                                        "response:", json.dumps(reply["error"], indent=2)]))
        return reply["result"]

    def perform_batch(self, requests):
        replies = self.exchange(requests)
        if not isinstance(replies, list):
            raise RpcFailure(f"Expected batch response array, got: {type(replies)}")
        results = [reply.get("result") for reply in replies if "error" not in reply]
        return results, [reply["error"] for reply in replies if "error" in reply]

    def exchange(self, request):
        """Sends a request or a batch and waits for the next complete value."""
        if self.timeout <= 0:
            raise RpcFailure(f"Timeout value is invalid: {self.timeout}\n")
        text = json.dumps(request, indent=2)
        self.log("INFO", "Requests", text)
        self.socket.settimeout(self.timeout + wait_asked_for(request))
        try:
            self.socket.sendall(text.encode())
            reply = self.receive()
        except socket.timeout as error:
            raise RpcFailure(f"Timeout while waiting for response:\n{self.received}\n") from error
        except OSError as error:
            raise ConnectionEnded(f"Connection lost: {error}\n") from error
        self.log("INFO", "response", json.dumps(reply, indent=2))
        return reply

    def receive(self):
        while True:
            data = self.socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionEnded(f"Connection closed with partial response:\n{self.received}\n")
            # Replies are ASCII.
            self.received += data.decode("ascii", "replace")
            if data.rstrip()[-1:] not in (b"}", b"]", b""):
                continue  # In the middle of a reply; a large one is not parsed at every piece of it.
            try:
                reply, end = json.JSONDecoder().raw_decode(self.received.lstrip())
            except ValueError:
                continue
            self.received = self.received.lstrip()[end:]
            return reply


class ConnectionEnded(RpcFailure):
    """The target closed the connection before its reply was complete."""


def wait_asked_for(request):
    """Seconds that the target was asked to wait (bdev_get_bdevs has a timeout in ms), on top of the client's own."""
    params = request.get("params", {}) if isinstance(request, dict) else {}
    return params.get("timeout", 0) / 1000 if isinstance(params.get("timeout", 0), int) else 0


def resolve(address, port):
    """Address family and address: IPv4, IPv6, or the path of a socket that exists."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
            return family, (address, port)
        except OSError:
            pass
    if os.path.exists(address):
        return socket.AF_UNIX, address
    raise OSError(f"Invalid or non-existing address: '{address}'")


def add_method(subparsers, method):
    """Gives a method its sub-command."""
    parser = subparsers.add_parser(method["name"], help=method["help"])
    for param in method["params"]:
        add_param(parser, param)

    def run(args):
        result = args.client.call(method["name"], params_of(method, args))
        if not args.client_is_dry:
            show(method["prints"], result)

    parser.set_defaults(func=run)


def add_param(parser, param):
    cli = param["cli"]
    if cli == "hidden":
        return
    if cli in ("mib", "mib_fraction"):
        parser.add_argument("total_size", type=float if cli == "mib_fraction" else int, help="size in MiB")
        return
    if cli == "members":
        for member in param["members"]:
            add_param(parser, member)
        return
    settings = {"help": help_of(param)}
    if cli in ("flag", "flag_off"):
        action = "store_true" if cli == "flag" else "store_false"
        parser.add_argument(*param["spelling"], dest=dest(param), action=action, **settings)
        return
    if cli in ("switch", "switch_off"):
        action = argparse.BooleanOptionalAction
        settings["default"] = None if cli == "switch" else False
        parser.add_argument(*param["spelling"], dest=dest(param), action=action, required=param["required"], **settings)
        return
    if cli in ("list", "set"):
        settings["type"] = list_reader(param)
    elif cli == "words":
        settings["type"] = str.split
    elif cli == "mask":
        settings["type"] = lambda text: int(text, base=16)
    elif param["type"] in INTEGERS:
        settings["type"] = int
    elif param["type"] == "boolean":
        settings["type"] = lambda text: {"true": True, "false": False}[text.lower()]
    if "choices" in param and cli != "list":
        settings["choices"] = param["choices"]
    if cli in ("positional", "mask", "nqn"):
        if not param["required"]:
            settings["nargs"] = "?"
        parser.add_argument(dest(param), metavar=param["name"], **settings)
    else:
        parser.add_argument(*param["spelling"], dest=dest(param), required=param["required"], **settings)


def list_reader(param):
    """Reads a comma-separated list; of one with known words, `all` is all of them."""
    words = param.get("choices") or [member["name"] for member in param.get("members", [])]
    element = int if any(f"<{integer}>" in param["type"] for integer in INTEGERS) else str

    def read(text):
        elements = [element(part) for part in text.split(",")]
        unknown = [one for one in elements if words and one not in (*words, "all")]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of all, {', '.join(words)}")
        return words if words and "all" in elements else elements

    return read


def dest(param):
    """Where the parser puts a param: not where a global option of the same name already is."""
    return "param_" + param["name"]


def help_of(param):
    text = param["help"] + (f" (default: {param['default']})" if "default" in param else "")
    return text.replace("%", "%%")


def params_of(method, args):
    """The params object that a command line asks for."""
    given = vars(args)
    params = {}
    for param in method["params"]:
        if param["cli"] in ("mib", "mib_fraction"):
            if args.param_block_size <= 0:
                raise RpcFailure("ERROR: block_size must be > 0")
            params[param["name"]] = int(args.total_size * 1024 * 1024 // args.param_block_size)
        elif param["cli"] == "members":
            members = {member["name"]: given.get(dest(member)) for member in param["members"]}
            params[param["name"]] = {name: value for name, value in members.items() if value is not None} or None
        elif param["cli"] != "hidden":
            params[param["name"]] = value_of(param, given[dest(param)])
        if "needs" in param and params[param["name"]] and not given["param_" + param["needs"]]:
            option, other = ("--" + name.replace("_", "-") for name in (param["needs"], param["name"]))
            raise RpcFailure(f"ERROR: {option} must be > 0 when {other} is > 0")
    return params


def value_of(param, value):
    """What is sent for what was read."""
    if param["cli"] == "set" and value is not None:
        return {name: True for name in value}
    if param["cli"] == "nqn" and value == "discovery":
        return DISCOVERY_NQN
    return value


def show(prints, result):
    if prints == "json":
        print(json.dumps(result, indent=2))
    elif prints == "bare":
        print(json.dumps(result, indent=2).strip('"'))
    elif prints == "words":
        print(" ".join(shlex.quote(word) for word in result))
    elif prints == "text":
        print(result)


def save_config(client, args):
    """Prints the configuration of all subsystems, or of some and those they depend on."""
    subsystems = client.call("framework_get_subsystems")
    needs = {}
    for one in subsystems:
        needs[one["subsystem"]] = {one["subsystem"]}.union(*(needs.get(other, ()) for other in one["depends_on"]))
    try:
        wanted = needs if args.subsystems is None else set().union(*(needs[name] for name in args.subsystems.split(",")))
    except KeyError as error:
        raise RpcFailure(f"Subsystem {error} not found") from error
    config = [subsystem_config(client, name, args.with_batches) for name in needs if name in wanted]
    print_config({"subsystems": config}, args.indent)


def save_subsystem_config(client, args):
    """Prints the configuration of one subsystem."""
    print_config(subsystem_config(client, args.name, args.with_batches), args.indent)


def subsystem_config(client, name, with_batches):
    config = client.call("framework_get_config", {"name": name, "with_batches": with_batches})
    return {"subsystem": name, "config": config}


def print_config(config, indent):
    print(json.dumps(config, indent=None if indent < 0 else indent))


def read_config(source):
    """A configuration from a file, from its text, or from stdin."""
    try:
        if source is None:
            return json.load(sys.stdin)
        if os.path.exists(source):
            with open(source, encoding="utf-8") as file:
                return json.load(file)
        return json.loads(source)
    except (OSError, ValueError) as error:
        raise RpcFailure(f"The configuration cannot be read: {error}") from error


def methods_of(entry):
    return [one.get("method") for one in (entry if isinstance(entry, list) else [entry])]


def run_entries(client, entries, allowed):
    """Makes the calls that may be made now; gives those that are left."""
    left = []
    for entry in entries:
        if not all(method in allowed for method in methods_of(entry)):
            left.append(entry)
        elif isinstance(entry, list):
            errors = client.perform_batch([client.request(one["method"], one.get("params")) for one in entry])[1]
            if errors:
                raise RpcFailure(json.dumps(errors, indent=2))
        else:
            client.call(entry["method"], entry.get("params"))
    return left


def check_known(client, entries, include_aliases):
    known = client.call("rpc_get_methods", {"include_aliases": include_aliases})
    if not all(method in known for entry in entries for method in methods_of(entry)):
        raise RpcFailure("Unknown method was included in the config file")
    return known


def load_config(client, args):
    """Makes the calls of a configuration, and starts the target in between if it waits for that."""
    sections = [section["config"] for section in read_config(args.json_conf)["subsystems"] if section["config"]]
    known = check_known(client, [entry for section in sections for entry in section], args.include_aliases)
    if not sections and "framework_start_init" in known:
        client.call("framework_start_init")
        return
    while sections:
        allowed = client.call("rpc_get_methods", {"current": True, "include_aliases": args.include_aliases})
        left = [run_entries(client, section, allowed) for section in sections]
        moved = sum(map(len, left)) < sum(map(len, sections))
        sections = [section for section in left if section]
        if "framework_start_init" in allowed:
            client.call("framework_start_init")
        elif not moved:
            break
    if sections:
        print("Some configs were skipped because the RPC state that can call them passed over.")


def load_subsystem_config(client, args):
    """Makes the calls of one subsystem that may be made now."""
    entries = read_config(args.json_conf)["config"] or []
    check_known(client, entries, False)
    if run_entries(client, entries, client.call("rpc_get_methods", {"current": True})):
        print("Some configs were skipped because they cannot be called in the current RPC state.")


def add_composites(subparsers):
    """The commands that are more than one call."""
    def add(name, run, text):
        parser = subparsers.add_parser(name, help=text)

        def run_composite(args):
            if args.client_is_dry or args.batch_mode:
                raise RpcFailure(f"{name} makes several calls, one after the other")
            run(args.client, args)

        parser.set_defaults(func=run_composite)
        return parser

    def add_saving(parser):
        parser.add_argument("-i", "--indent", type=int, default=2, help="indent; less than 0 for one line (default: 2)")
        parser.add_argument("--with-batches", action=argparse.BooleanOptionalAction, default=False, help="keep batches")

    parser = add("save_config", save_config, "print the configuration of the target")
    add_saving(parser)
    parser.add_argument("-s", "--subsystems", help="subsystems to save, with those they depend on")
    parser = add("load_config", load_config, "configure the target")
    parser.add_argument("-i", "--include-aliases", action="store_true", help="accept deprecated names")
    parser.add_argument("-j", "--json-conf", help="configuration, or its file (default: stdin)")
    parser = add("save_subsystem_config", save_subsystem_config, "print the configuration of one subsystem")
    add_saving(parser)
    parser.add_argument("-n", "--name", required=True, help="name of the subsystem")
    parser = add("load_subsystem_config", load_subsystem_config, "configure one subsystem")
    parser.add_argument("-j", "--json-conf", help="configuration, or its file (default: stdin)")


def command_line():
    """The parser, and its sub-parsers for plugins to add to."""
    parser = argparse.ArgumentParser(description="JSON-RPC command line of the storage target",
                                     usage="%(prog)s [options]")
    parser.add_argument("-s", dest="server_addr", default=DEFAULT_ADDRESS,
                        help=f"path of the RPC socket, or an IP address (default: {DEFAULT_ADDRESS})")
    parser.add_argument("-p", dest="port", type=int, default=DEFAULT_PORT,
                        help=f"port, with an IP address (default: {DEFAULT_PORT})")
    parser.add_argument("-t", dest="timeout", type=float,
                        help=f"seconds to wait for a reply (default: {DEFAULT_TIMEOUT_S})")
    parser.add_argument("-r", dest="conn_retries", type=int, default=0,
                        help=f"retries of a failed connect, every {RETRY_INTERVAL_S} s (default: 0)")
    parser.add_argument("-v", dest="verbose", action="store_const", const="INFO", default="ERROR",
                        help="show requests and replies")
    parser.add_argument("--verbose", dest="verbose", choices=["DEBUG", "INFO", "ERROR"], help="what to show")
    parser.add_argument("--dry-run", action="store_true", help="show the request and do not send it")
    parser.add_argument("--go-client", action="store_true",
                        help="accepted for compatibility; there is one client only")
    parser.add_argument("--server", dest="is_server", action="store_true",
                        help="run each line of stdin as a command line of its own, on a connection of its own, and "
                             "end its output with **STATUS=0 or **STATUS=1")
    parser.add_argument("-b", "--batch-mode", action=argparse.BooleanOptionalAction,
                        help="send all commands of stdin as one batch")
    parser.add_argument("--plugin", dest="rpc_plugin", help="module with more methods")
    subparsers = parser.add_subparsers(help="methods", dest="called_rpc_name", metavar="")
    with open(METHODS_FILE, encoding="utf-8") as file:
        for method in json.load(file)["methods"]:
            add_method(subparsers, method)
    add_composites(subparsers)
    return parser, subparsers


def load_plugin(words, subparsers, loaded):
    """Loads the module that a command line names, before that line is parsed: it may use the module's methods."""
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--plugin", dest="rpc_plugin")
    name = finder.parse_known_args(words)[0].rpc_plugin
    if name is None or name in loaded:
        return
    try:
        importlib.import_module(name).spdk_rpc_plugin_initialize(subparsers)
        loaded.append(name)
    except ModuleNotFoundError:
        print(f"Module {name} not found")
    except AttributeError:
        print(f"Module {name} does not contain 'spdk_rpc_plugin_initialize' function")


def client_of(args):
    if args.dry_run:
        return DryRun(args.batch_mode)
    return Client(args.server_addr, args.port, args.timeout, args.conn_retries, args.batch_mode, args.verbose)


def run_command(args, client):
    args.client = client
    args.client_is_dry = isinstance(client, DryRun)
    args.func(args)


def run_script(parser, client, lines):
    """One command a line, up to the first that fails."""
    done = []
    for line in map(str.rstrip, lines):
        words = shlex.split(line, comments=False)
        if not words:
            continue
        done.append(line)
        if words[0].startswith("#"):
            continue
        args = parser.parse_args(words)
        try:
            run_command(args, client)
        except RpcFailure as failure:
            raise RpcFailure("Exception:\n" + "\n".join(done) + " <<<\n" + failure.message) from failure
    if client.batch_mode:
        run_batch(client)


def run_batch(client):
    try:
        results, errors = client.finish_batch()
    except RpcFailure as failure:
        raise RpcFailure("Exception:\n" + failure.message) from failure
    for result in results:
        if result is not None:
            print(json.dumps(result, indent=2))
    for error in errors:
        print(json.dumps(error, indent=2), file=sys.stderr)
    if errors:
        sys.exit(1)


def run_server(parser, subparsers, plugins):
    """Serves a coprocess: a command line in, its output and a status line out."""
    for line in sys.stdin:
        status = 1
        try:
            words = shlex.split(line)
            load_plugin(words, subparsers, plugins)
            args = parser.parse_args(words)
            if not hasattr(args, "func"):
                parser.error("no method")
            run_command(args, client_of(args))
            status = 0
        except RpcFailure as failure:
            print(failure.message)
        except SystemExit:
            pass  # The parser has said what is wrong.
        print(f"**STATUS={status}", flush=True)


def main():
    parser, subparsers = command_line()
    plugins = []
    load_plugin(None, subparsers, plugins)
    args = parser.parse_args()
    has_method = hasattr(args, "func")
    if not has_method and sys.stdin.isatty():
        parser.print_help()
        return 1
    if args.is_server:
        run_server(parser, subparsers, plugins)
        return 0
    try:
        if has_method:
            args.batch_mode = False
        client = client_of(args)
        if has_method:
            run_command(args, client)
        else:
            run_script(parser, client, sys.stdin)
    except RpcFailure as failure:
        print(failure.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
