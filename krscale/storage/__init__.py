"""A storage that is no shared disk: a URI, and on every machine a working folder in its place.

Whatever reads or writes files does so in the working folder, as on a shared disk; the functions of
this folder bring what is missing there and send what others need. For a path that lies in no
working folder they do nothing.
"""
