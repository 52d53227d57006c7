"""What is measured, and with what it is compared. `make bench` runs all; docs/performance.md shows the figures."""
