"""The subscription ring, and what every published item goes through. Uses `ring`, `waiting` and `platform`."""
