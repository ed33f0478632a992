"""What tornado's runner of its tests does first: AsyncHTTPTestCase fails for logs that it does not expect."""

import logging

logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
