"""A mesh of many processes on one machine: which there are, how they are kept running, and how they are asked to be restarted."""
