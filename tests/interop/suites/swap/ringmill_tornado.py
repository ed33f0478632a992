"""What tornado's own runner of its tests does before it runs them: AsyncHTTPTestCase fails for logs that it doesn't expect."""

import logging

logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
