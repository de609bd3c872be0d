"""Domain libraries that two or more services use. They import the platform and the generated stubs, but no service."""
