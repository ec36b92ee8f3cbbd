//! Black-box tests of the built binary: see the folder `tests/` of this package.
