"""`make gpu-check`: whether the network is right on a GPU in every precision, trains there, and how fast it is."""
