"""How threads and tasks of event loops sleep until something is published, and are woken. Uses `platform`."""
