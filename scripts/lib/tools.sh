# shellcheck shell=bash
# Sourced by the scripts: installs what a bare Debian machine lacks, once, and only what is asked for.

# Everything that is not the project's own goes here; git ignores it.
: "${RINGSIDE_CACHE:=$PWD/.cache}"
export RINGSIDE_CACHE

say() { printf '%s\n' "$*" >&2; }

# need_packages PROGRAM=PACKAGE...: installs the packages whose programs are missing.
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        say "Missing: ${missing[*]}. Install them (apt-get install ${missing[*]}) or run this once as root."
        return 1
    fi
    say "Installing ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
    need_packages cc=gcc
    command -v cargo >/dev/null && return
    say "A Rust toolchain is missing: install rustup and a stable toolchain (see rust-version in Cargo.toml)."
    return 1
}

need_shellcheck() { need_packages shellcheck=shellcheck; }

# A version that is known to read the current lock file and licence names.
CARGO_DENY_VERSION=0.20.2
CARGO_DENY=$RINGSIDE_CACHE/tools/bin/cargo-deny
need_cargo_deny() {
    command -v "$CARGO_DENY" >/dev/null && return
    if command -v cargo-deny >/dev/null; then
        CARGO_DENY=$(command -v cargo-deny)
        return
    fi
    say "Building cargo-deny $CARGO_DENY_VERSION (once, some minutes)"
    # Not optimised: it runs for a second, and builds for a quarter of the time.
    cargo install cargo-deny --version "$CARGO_DENY_VERSION" --locked --debug --quiet \
        --root "$RINGSIDE_CACHE/tools" --target-dir "$RINGSIDE_CACHE/tools/target"
    rm -rf "$RINGSIDE_CACHE/tools/target"
}

need_venv() {
    need_packages python3=python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages no-such-program=python3-venv
}

# SPDK's own client, as a peer for the tests.
SPDK_VERSION=26.9
SPDK_RPC=$RINGSIDE_CACHE/spdk-$SPDK_VERSION/bin/spdk-rpc
need_spdk_rpc() {
    [ -x "$SPDK_RPC" ] && "${SPDK_RPC%/*}/python3" -c 'import configshell_fb' 2>/dev/null && return
    need_venv
    say "Installing spdk-rpc $SPDK_VERSION"
    local env=$RINGSIDE_CACHE/spdk-$SPDK_VERSION
    rm -rf "$env"
    python3 -m venv "$env"
    "$env/bin/pip" install --quiet --disable-pip-version-check "spdk==$SPDK_VERSION" configshell-fb || { rm -rf "$env"; return 1; }
}

# SPDK's NVMe driver, as a peer for the tests: no package has it but this one, which builds it (v19.10) into a module for Python.
PYNVME_VERSION=2.3.2
PYNVME_SHA256=75f3b8ccf10bb3399906d5e6408d25dd0a9bcf0a55150a7073bac7116032e391
PYNVME=$RINGSIDE_CACHE/pynvme-$PYNVME_VERSION
need_pynvme() {
    [ -r "$PYNVME/nvme.so" ] && return
    need_venv
    say "Fetching pynvme $PYNVME_VERSION"
    local new=$PYNVME.new
    rm -rf "$new" "$PYNVME"
    mkdir -p "$new"
    python3 -m venv "$new/venv"
    echo "pynvme==$PYNVME_VERSION --hash=sha256:$PYNVME_SHA256" >"$new/requirements"
    "$new/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary pynvme --require-hashes \
        --requirement "$new/requirements" --dest "$new" || { rm -rf "$new"; return 1; }
    tar -xzf "$new"/pynvme-*.tar.gz --no-same-owner -C "$new" --strip-components=1 "pynvme-$PYNVME_VERSION/nvme.so"
    rm -rf "$new/venv"
    mv "$new" "$PYNVME"
}
