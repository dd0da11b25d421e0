"""Files beside the package that a wheel holds, too: configurations, launch files, SLURM's scripts.

`configs`, `launch` and `slurm` are links to the folders of the repository; a wheel has the files themselves.
"""
