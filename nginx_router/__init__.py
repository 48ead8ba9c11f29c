"""nginx-router: decides, on a PaaS host, which running app instance answers a request."""

__version__ = "0.1.0"
