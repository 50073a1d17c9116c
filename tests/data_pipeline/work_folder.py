"""How far is a preparation that another process is at?"""

import contextlib


def count_done(place):
    """How many parts are done in the working folder at a place; the folder may vanish while it is read."""
    with contextlib.suppress(FileNotFoundError):
        return len(list(place.glob(".out.*/work/*/*.done")))
    return 0
