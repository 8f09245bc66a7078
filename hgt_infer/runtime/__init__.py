"""What every device has: a session, a cache, an eager runner; and the CPU as a device."""
