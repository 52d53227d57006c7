"""What is measured, with what it is compared with. `make bench` runs all of it; README's "Speed" shows the figures."""
