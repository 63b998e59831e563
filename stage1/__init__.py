"""What the three stage-1 scripts stand on; one job a file.

exposure            find, open and check one exposure
files               whole files only, from one process at a time
correction          a rate image corrected once, with the untouched one kept
pipeline            flat field, quiet jwst, provenance, parameter files
command             log, options and settings, one file after the other
masks, filters      small functions on images, and the ones made fast
wisp_templates      find and read wisp templates
adaptive_wisps      the adaptive fit of wisps
adaptive_striping   the adaptive method for 1/f striping

A script that is copied elsewhere takes this folder along.
"""

VERSION = '1.1.0'
