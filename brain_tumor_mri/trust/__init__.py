"""What an answer is worth: calibration, prediction sets, familiarity, decisions. NumPy only."""
