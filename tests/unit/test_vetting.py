"""The variables that a text makes at http level, read as nginx reads it."""

from __future__ import annotations

import pytest

from nginx_router.vetting import http_variables


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("map $uri $a { default 1; }", {"a"}),
        ("map $uri$host $A { default 1; }", {"a"}),
        ("geo $a { default 1; }\ngeo $remote_addr $b { default 1; }", {"a", "b"}),
        ("split_clients \"$uri; {\" '$a' { 50% x; * y; }", {"a"}),
        ('"map" "${uri}" "$a"\n{\n default "}"; }\nmap $host $b { x "{"; }', {"a", "b"}),
        ("# map $uri $a { }\nserver { # }\n set $b 1; location / { } }\nmap $uri $c { # {\n}", {"c"}),
        ("js_set $a main.f;\nperl_set $b 'sub { return \"x;\"; }';", {"a", "b"}),
        ("server { location / { set $a 1; } }", set()),
        ("log_format x '$a { } map $b $c {';", set()),
        ("map;\nmap $uri\n", set()),
        ("}\nmap $uri $a { }", {"a"}),
        ("", set()),
    ],
)
def test_the_variables_that_a_text_makes_at_http_level(text: str, made: set[str]) -> None:
    assert http_variables(text) == made
