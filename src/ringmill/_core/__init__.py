"""The compiled core, one folder a concern. Private: import from `ringmill`."""
