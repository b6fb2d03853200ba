"""A storage that is not a shared disk: a URI, with a local working folder on every machine.

Files are read and written in the working folder, as on a shared disk. The functions of this package
fetch files that are missing there and send files that other machines need. For a path outside every
working folder they do nothing.
"""
