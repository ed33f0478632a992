"""The compiled core. Private: import from `ringmill`."""
