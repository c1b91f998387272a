"""The core of a session in virtual time: schedules, what must always hold, faults to be found."""
