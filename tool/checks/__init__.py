"""The parts of tool/doctor.py."""
