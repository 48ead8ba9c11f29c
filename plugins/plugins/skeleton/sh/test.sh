#!/bin/sh
# Installs this plugin into a root of its own and asks it; `router` is on PATH, or is what ROUTER_BIN says.
# It says nothing unless something is wrong.
set -eu
router=${ROUTER_BIN:-router}
ROUTER_ROOT=$(mktemp -d)
export ROUTER_ROOT
trap 'rm -rf "$ROUTER_ROOT"' EXIT

run() {
    $router "$@" 2>"$ROUTER_ROOT/said" || { cat "$ROUTER_ROOT/said" >&2; return 1; }
}

check() {
    [ "$2" = "$3" ] || { echo "$1: '$2' instead of '$3'" >&2; exit 1; }
}

run plugins:install "$(dirname "$0")"
check "the command" "$(run __NAME__:hello)" hello
run apps:create blog
check "the header" "$(run plugins:trigger nginx-server-snippet blog)" 'add_header __HEADER__ "hello" always;'
run plugins:set __NAME__ value good-day --app blog
check "its app's own value" "$(run plugins:trigger nginx-server-snippet blog)" 'add_header __HEADER__ "good-day" always;'
