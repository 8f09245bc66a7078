"""hgt_infer over HTTP, in OpenAI's form: `create_app` for a service of one's own, `serve` for a whole one.

Needs the extra `serve`.
"""

from hgt_infer.server.app import create_app
from hgt_infer.server.limits import Limits
from hgt_infer.server.serve import serve

__all__ = ["Limits", "create_app", "serve"]
