#!/bin/sh
# Installs this plugin into a root of its own and asks it; `router` is on PATH, or is what ROUTER_BIN says.
set -eu
router=${ROUTER_BIN:-router}
ROUTER_ROOT=$(mktemp -d)
export ROUTER_ROOT
trap 'rm -rf "$ROUTER_ROOT"' EXIT

check() {
    [ "$2" = "$3" ] || { echo "$1: '$2' instead of '$3'" >&2; exit 1; }
}

$router plugins:install "$(dirname "$0")"
check "the command" "$($router __NAME__:hello)" hello
check "the header" "$($router plugins:trigger nginx-server-snippet blog)" 'add_header __HEADER__ "hello" always;'
$router apps:create blog
$router plugins:set __NAME__ value good-day --app blog
check "its app's own value" "$($router plugins:trigger nginx-server-snippet blog)" 'add_header __HEADER__ "good-day" always;'
echo "ok" >&2
