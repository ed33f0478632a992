"""The subscription ring, and the delivery of published items. Uses `ring`, `waiting` and `platform`."""
