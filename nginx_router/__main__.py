"""`python -m nginx_router`: the same as `router`."""

from .cli import main

raise SystemExit(main())
