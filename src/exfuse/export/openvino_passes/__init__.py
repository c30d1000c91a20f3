"""Changes to a converted OpenVINO model that make it faster or keep its labels exact."""
