"""When one machine is not enough: a pool of engines, robots that use it, and what it takes."""
