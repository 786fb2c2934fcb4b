"""Ground floor: errors, files, console, hardware, memory settings. It knows nothing of the rooms above."""
